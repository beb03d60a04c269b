package providertest

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// tracked is the state of an exam of change tracking.
type tracked struct {
	Harness
	t    *testing.T
	p    providers.ChangeTracker
	snap providers.Snapshotter
	vm   providers.VM
}

// take takes a snapshot that is deleted at the latest with the test.
func (x *tracked) take(key string) providers.Snapshot {
	x.t.Helper()
	s, err := x.snap.Snapshot(x.t.Context(), x.vm.ID, providers.SnapshotOptions{Key: key})
	require.NoError(x.t, err)
	x.t.Cleanup(func() { _ = x.snap.DeleteSnapshot(context.Background(), x.vm.ID, s.ID) })
	return s
}

func (x *tracked) drop(s providers.Snapshot) {
	x.t.Helper()
	require.NoError(x.t, x.snap.DeleteSnapshot(x.t.Context(), x.vm.ID, s.ID))
}

func (x *tracked) ref(s providers.Snapshot, i int) providers.DiskRef {
	return providers.DiskRef{VM: x.vm.ID, Snapshot: s.ID, Disk: s.Disks[i].ID}
}

// changes asks for changes, which are to be told.
func (x *tracked) changes(s providers.Snapshot, i int, since cbt.Point) cbt.Changes {
	x.t.Helper()
	ch, err := x.p.Changes(x.t.Context(), x.ref(s, i), since)
	require.NoError(x.t, err)
	require.Equal(x.t, since, ch.From)
	require.Equal(x.t, s.Disks[i].ChangeID, ch.To, "the changes are those up to the snapshot")
	require.Equal(x.t, cbt.Tracked, ch.By)
	require.LessOrEqual(x.t, ch.Ranges.End(), s.Disks[i].Size, "no change lies behind the end of the disk")
	return ch
}

// lost asks for changes that cannot be told.
func (x *tracked) lost(s providers.Snapshot, i int, since cbt.Point, why string) {
	x.t.Helper()
	_, err := x.p.Changes(x.t.Context(), x.ref(s, i), since)
	require.ErrorIs(x.t, err, providers.TrackingLost, why)
}

func (x *tracked) status() providers.TrackingStatus {
	x.t.Helper()
	s, err := x.p.Tracking(x.t.Context(), x.vm.ID)
	require.NoError(x.t, err)
	require.Equal(x.t, x.vm.ID, s.VM)
	require.Len(x.t, s.Disks, len(x.vm.Disks))
	for i, d := range s.Disks {
		require.Equal(x.t, x.vm.Disks[i].ID, d.ID)
		require.Equal(x.t, d.Tracked, d.Missing == "" && s.Active, "a disk that is not tracked says why, or its VM does: %+v", s)
	}
	return s
}

// inside makes sure that two states of a disk differ within a set of ranges only.
func inside(t *testing.T, old, now []byte, set cbt.Set) {
	t.Helper()
	require.Len(t, now, len(old))
	at := int64(0)
	for r := range set.All() {
		require.True(t, bytes.Equal(old[at:r.Off], now[at:r.Off]), "a change in [%d, %d) was not told", at, r.Off)
		at = r.End()
	}
	require.True(t, bytes.Equal(old[at:], now[at:]), "a change behind %d was not told", at)
}

// changeTracking lets the guest write between snapshots and compares what is told with what is.
func (h Harness) changeTracking(t *testing.T) {
	p := h.open(t)
	x := &tracked{
		Harness: h, t: t, p: capability[providers.ChangeTracker](t, p), snap: capability[providers.Snapshotter](t, p), vm: h.vm(t, p),
	}
	ctx := t.Context()
	t.Cleanup(func() { _ = x.p.SetTracking(context.Background(), x.vm.ID, false) })

	before := x.status()
	require.True(t, before.Supported, "the VM can be tracked: %v", before.Missing)
	require.False(t, before.Enabled, "it is not to begin with")
	require.False(t, before.Active)
	require.NotEmpty(t, before.Missing)
	untracked := x.take("exam/untracked")
	require.Empty(t, untracked.Disks[0].ChangeID)
	x.lost(untracked, 0, "", "an untracked snapshot cannot tell even what is allocated")
	x.drop(untracked)

	for range 2 {
		require.NoError(t, x.p.SetTracking(ctx, x.vm.ID, true), "what is on is on")
		require.True(t, x.status().Enabled)
	}
	first := x.take("exam/first")
	require.True(t, x.status().Active, "a snapshot lets it begin")
	var truth [][]byte
	for i, d := range first.Disks {
		require.NotEmpty(t, d.ChangeID)
		truth = append(truth, h.Truth(t, x.vm, d))
		all := x.changes(first, i, "")
		inside(t, make([]byte, d.Size), truth[i], all.Ranges)
		same := x.changes(first, i, d.ChangeID)
		require.Zero(t, same.Ranges.Len(), "nothing changes from a point to itself")
	}
	x.write(first)
	x.drop(first)
	second := x.take("exam/second")
	x.compare(first, second, truth)
	require.NoError(t, x.p.SetTracking(ctx, x.vm.ID, true), "what is on is left alone")
	x.changes(second, 0, first.Disks[0].ChangeID)
	x.doubts(first, second)

	x.drop(second)
	for range 2 {
		require.NoError(t, x.p.SetTracking(ctx, x.vm.ID, false))
		require.False(t, x.status().Enabled)
	}
	off := x.take("exam/off")
	require.Empty(t, off.Disks[0].ChangeID)
	x.lost(off, 0, second.Disks[0].ChangeID, "nobody has tracked")
	x.drop(off)
	require.NoError(t, x.p.SetTracking(ctx, x.vm.ID, true))
	again := x.take("exam/again")
	x.lost(again, 0, second.Disks[0].ChangeID, "nobody has tracked in between")
	x.drop(again)
	require.NoError(t, x.p.SetTracking(ctx, x.vm.ID, false))
}

// write lets the guest write at both ends of every disk and in its middle.
func (x *tracked) write(s providers.Snapshot) {
	text := []byte("the guest wrote")
	for _, d := range s.Disks {
		for _, off := range []int64{0, d.Size/2 - 3, d.Size - 1} {
			x.Write(x.t, x.vm, d, off, text[:min(int64(len(text)), d.Size-off)])
		}
	}
}

// compare makes sure that what changed from first to second is told, and not much more.
func (x *tracked) compare(first, second providers.Snapshot, truth [][]byte) {
	x.t.Helper()
	for i, d := range second.Disks {
		require.NotEqual(x.t, first.Disks[i].ChangeID, d.ChangeID)
		ch := x.changes(second, i, first.Disks[i].ChangeID)
		now := x.Truth(x.t, x.vm, d)
		require.False(x.t, bytes.Equal(truth[i], now))
		inside(x.t, truth[i], now, ch.Ranges)
		require.Less(x.t, ch.Ranges.Bytes(), d.Size/2, "a few writes are not the whole disk")
		inside(x.t, make([]byte, d.Size), now, x.changes(second, i, "").Ranges)
	}
}

// doubts are points that nothing can be proved from, and disks that are not there.
func (x *tracked) doubts(first, second providers.Snapshot) {
	x.t.Helper()
	ctx := x.t.Context()
	for _, since := range []cbt.Point{"*", "no point", "/", second.Disks[0].ChangeID + "0", first.Disks[0].ChangeID + " "} {
		x.lost(second, 0, since, string(since))
	}
	if len(second.Disks) > 1 {
		x.lost(second, 0, first.Disks[1].ChangeID, "the point of another disk")
	}
	ref := x.ref(second, 0)
	for _, bad := range []providers.DiskRef{
		{VM: x.Absent, Snapshot: ref.Snapshot, Disk: ref.Disk},
		{VM: ref.VM, Snapshot: first.ID, Disk: ref.Disk},
		{VM: ref.VM, Snapshot: ref.Snapshot, Disk: "no-such-disk"},
	} {
		_, err := x.p.Changes(ctx, bad, first.Disks[0].ChangeID)
		require.ErrorIs(x.t, err, providers.NotFound, "%+v", bad)
	}
	_, err := x.p.Tracking(ctx, x.Absent)
	require.ErrorIs(x.t, err, providers.NotFound)
	require.ErrorIs(x.t, x.p.SetTracking(ctx, x.Absent, true), providers.NotFound)
	_, err = x.p.Changes(cancelled(x.t), ref, first.Disks[0].ChangeID)
	require.ErrorIs(x.t, err, context.Canceled)
	_, err = x.p.Tracking(cancelled(x.t), x.vm.ID)
	require.ErrorIs(x.t, err, context.Canceled)
	require.ErrorIs(x.t, x.p.SetTracking(cancelled(x.t), x.vm.ID, false), context.Canceled)
}
