package activities

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// watched is a platform that tracks the changes of its disks.
type watched struct {
	*platform
	changed map[cbt.Point]cbt.Changes // by where they begin
	fail    error
}

func (w *watched) SetTracking(context.Context, providers.VMID, bool) error { return nil }

func (w *watched) Tracking(context.Context, providers.VMID) (providers.TrackingStatus, error) {
	return providers.TrackingStatus{Enabled: true, Active: true}, nil
}

func (w *watched) Changes(_ context.Context, _ providers.DiskRef, since cbt.Point) (cbt.Changes, error) {
	if c, ok := w.changed[since]; ok {
		return c, nil
	}
	if w.fail != nil {
		return cbt.Changes{}, w.fail
	}
	return cbt.Changes{}, &providers.Error{Op: "fake: changes", Object: "2000", Reason: providers.TrackingLost, Msg: "the change id is of another lineage"}
}

func stretch64(t *testing.T, off, n int64) cbt.Set {
	t.Helper()
	var s cbt.Set
	require.NoError(t, s.Add(off, n))
	return s
}

func newWatched(b *bench, size int64) *watched {
	w := &watched{platform: b.platform, changed: map[cbt.Point]cbt.Changes{}}
	b.platform.vm.Disks[0].Size = size
	b.conns.provider = w
	return w
}

func TestMeasure(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	here := PlaceOf(g.dir)
	w := newWatched(b, 6*mib)
	w.changed[""] = cbt.Changes{To: "c/4", By: cbt.Tracked, Ranges: stretch64(b.t, 0, 5*mib)}
	ask := func(in MeasureRequest) job.AnalyzedDisk {
		t.Helper()
		in.Touch = Touch{Job: "o1", VM: "vm-42"}
		if in.Snapshot != "" && in.Points == nil {
			in.Points = map[providers.DiskID]cbt.Point{"2000": "c/4"}
		}
		out, err := call(b, b.control.Measure, in)
		require.NoError(t, err)
		require.Len(t, out.Disks, 1)
		require.Equal(t, "Hard disk 1", out.Disks[0].Label)
		return out.Disks[0]
	}

	w.changed["c/3"] = cbt.Changes{From: "c/3", To: "c/4", By: cbt.Tracked, Ranges: stretch64(t, 100, 10)}
	d := ask(MeasureRequest{Snapshot: "s1", Target: &here})
	require.Equal(t, job.AnalyzedDisk{Disk: "2000", Label: "Hard disk 1", Size: 6 * mib, CanIncremental: true, By: cbt.Tracked,
		ChangedBytes: 64 << 10, AllocatedBytes: 5 * mib}, d, "in whole clusters")

	d = ask(MeasureRequest{Snapshot: "s1"})
	require.False(t, d.CanIncremental)
	require.EqualValues(t, 5*mib, d.ChangedBytes, "a first copy reads what the disk holds")

	d = ask(MeasureRequest{Target: &here, Why: "the changes of web-01 are not tracked"})
	require.Equal(t, job.AnalyzedDisk{Disk: "2000", Label: "Hard disk 1", Size: 6 * mib, By: cbt.Compared, ChangedBytes: 6 * mib,
		Reason: "the changes of web-01 are not tracked"}, d, "read in full, and compared")

	d = ask(MeasureRequest{Snapshot: "s1", Target: &here, Points: map[providers.DiskID]cbt.Point{}})
	require.Equal(t, cbt.Compared, d.By, "a disk that is not tracked, of a VM that is, is compared as its export does")
	require.Contains(t, d.Reason, "not tracked")
	require.EqualValues(t, 6*mib, d.ChangedBytes)

	delete(w.changed, "c/3")
	d = ask(MeasureRequest{Snapshot: "s1", Target: &here})
	require.False(t, d.CanIncremental)
	require.Contains(t, d.Reason, "another lineage")
	require.EqualValues(t, 5*mib, d.ChangedBytes)

	w.changed["c/3"] = cbt.Changes{From: "c/3", To: "c/4", By: cbt.Tracked, Ranges: stretch64(t, 100, 10)}
	b.platform.vm.Disks[0].Size = 7 * mib
	require.Contains(t, ask(MeasureRequest{Snapshot: "s1", Target: &here}).Reason, "resized")

	b.platform.vm.Disks[0].Mode = "independent_persistent"
	require.Contains(t, ask(MeasureRequest{Snapshot: "s1", Target: &here}).Reason, "independent disk")

	b.platform.vm.Disks[0].Mode, w.changed = "", nil
	w.fail = &providers.Error{Op: "fake: changes", Reason: providers.Denied, Msg: "no privilege"}
	_, err := call(b, b.control.Measure, MeasureRequest{Touch: Touch{Job: "o1", VM: "vm-42"}, Snapshot: "s1", Target: &here,
		Points: map[providers.DiskID]cbt.Point{"2000": "c/4"}})
	require.Equal(t, string(providers.Denied), failure(t, err).Type())
}
