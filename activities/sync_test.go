package activities

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// living is a platform with a VM that runs: its disk changes, snapshots freeze it, and its changes are
// tracked in grains of 64 KiB.
type living struct {
	*platform
	bytes  []byte
	frozen map[providers.SnapshotID][]byte
	lost   error // of the tracker
}

func newLiving(t *testing.T, size int64) (*bench, *living) {
	b := newBench(t)
	b.formats = map[string]formats.Format{"qcow2": qcow2.Format()}
	l := &living{platform: b.platform, bytes: make([]byte, size), frozen: map[providers.SnapshotID][]byte{}}
	d := formatstest.NewDisk(uint64(size), size)
	_, err := d.ReadAt(l.bytes, 0)
	require.NoError(t, noEOF(err))
	b.conns.provider = l
	return b, l
}

func noEOF(err error) error {
	if errors.Is(err, os.ErrNotExist) || err == nil || err.Error() == "EOF" {
		return nil
	}
	return err
}

func (l *living) OpenDisk(ctx context.Context, ref providers.DiskRef) (formats.Image, error) {
	b, ok := l.frozen[ref.Snapshot]
	if !ok {
		return nil, &providers.Error{Op: "fake: open", Object: string(ref.Snapshot), Reason: providers.NotFound}
	}
	img, err := raw.Open(ctx, bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	return &remote{Image: img, p: l.platform, ctx: ctx}, err
}

func (l *living) SetTracking(context.Context, providers.VMID, bool) error { return nil }
func (l *living) Tracking(context.Context, providers.VMID) (providers.TrackingStatus, error) {
	return providers.TrackingStatus{}, nil
}

const trackedGrain = 64 << 10

func (l *living) Changes(_ context.Context, ref providers.DiskRef, since cbt.Point) (cbt.Changes, error) {
	c := cbt.Changes{From: since, To: cbt.Point(ref.Snapshot), By: cbt.Tracked}
	if l.lost != nil {
		return c, l.lost
	}
	now, old := l.frozen[ref.Snapshot], l.frozen[providers.SnapshotID(since)]
	for off := int64(0); off < int64(len(now)); off += trackedGrain {
		end := min(off+trackedGrain, int64(len(now)))
		was := make([]byte, end-off)
		if since != "" {
			was = old[off:end]
		}
		if !bytes.Equal(now[off:end], was) {
			if err := c.Ranges.Add(off, trackedGrain); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// write has the guest write.
func (l *living) write(off int64, b []byte) { copy(l.bytes[off:], b) }

func (l *living) writes(r *rand.Rand, n, size int) {
	for range n {
		b := make([]byte, 1+r.IntN(size))
		if r.IntN(3) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		l.write(r.Int64N(int64(len(l.bytes)-len(b))), b)
	}
}

// freeze takes the snapshot of a round.
func (l *living) freeze(round int) providers.SnapshotID {
	id := providers.SnapshotID("r" + string(rune('0'+round)))
	l.frozen[id] = slices.Clone(l.bytes)
	return id
}

// warmed is a warm copy of one disk.
type warmed struct {
	*bench
	l      *living
	format string
	round  int
}

func newWarmed(t *testing.T, format string, size int64) *warmed {
	b, l := newLiving(t, size)
	w := &warmed{bench: b, l: l, format: format}
	_, err := b.prepare(func(in *PrepareRequest) { in.Target, in.Files = w.target(), []string{w.file()} })
	require.NoError(t, err)
	return w
}

func (w *warmed) target() Target { return Target{Output: w.out, Folder: "web-01", Format: w.format} }
func (w *warmed) file() string   { return "web-01-disk-1." + w.format }

// turn begins the next round.
func (w *warmed) turn() {
	w.round++
	w.l.freeze(w.round)
}

func (w *warmed) request() SyncRequest {
	at := func(round int) string { return "r" + string(rune('0'+round)) }
	in := SyncRequest{
		Job: "job-1", Round: w.round, Ref: providers.DiskRef{VM: "vm-42", Snapshot: providers.SnapshotID(at(w.round)), Disk: "2000"},
		Label: "Hard disk 1", Size: int64(len(w.l.frozen[providers.SnapshotID(at(w.round))])), Point: cbt.Point(at(w.round)), Target: w.target(), File: w.file(),
	}
	if w.round > 1 {
		in.Since = cbt.Point(at(w.round - 1))
	}
	return in
}

func (w *warmed) sync(change ...func(*SyncRequest)) (SyncedDisk, error) {
	in := w.request()
	for _, f := range change {
		f(&in)
	}
	return call(w.bench, w.data.SyncDisk, in)
}

// synced brings the target to the round, and makes sure that it is there.
func (w *warmed) synced(change ...func(*SyncRequest)) SyncedDisk {
	w.t.Helper()
	out, err := w.sync(change...)
	require.NoError(w.t, err)
	w.holds(out)
	return out
}

// holds compares the target with the disk in the snapshot, byte by byte and by its digests.
func (w *warmed) holds(out SyncedDisk) {
	w.t.Helper()
	f, err := w.bench.format(w.format)
	require.NoError(w.t, err)
	file, err := os.Open(w.path(partName(w.file())))
	require.NoError(w.t, err)
	defer file.Close()
	st, err := file.Stat()
	require.NoError(w.t, err)
	img, err := f.Open(w.t.Context(), file, st.Size(), formats.OpenOptions{})
	require.NoError(w.t, err)
	defer img.Close()
	got := make([]byte, img.Size())
	_, err = img.ReadAt(got, 0)
	require.NoError(w.t, noEOF(err))
	require.True(w.t, bytes.Equal(w.l.frozen[w.request().Ref.Snapshot], got), "the target is not the disk of round %d", w.round)
	if f.Check != nil {
		rep, err := f.Check(w.t.Context(), file, st.Size(), formats.OpenOptions{})
		require.NoError(w.t, err)
		require.Zero(w.t, rep.Corruptions+rep.Leaks, "%q", rep.Problems)
	}
	_, err = call(w.bench, w.data.VerifyDisk, VerifyRequest{
		Job: "job-1", Disk: "2000", Label: "Hard disk 1", Size: img.Size(), Target: w.target(), File: w.file(), Digest: out.Digest,
	})
	require.NoError(w.t, err)
}

func TestSyncDisk(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			w := newWarmed(t, format, 21*mib+512)
			r := rand.New(rand.NewPCG(1, 2))
			w.turn()
			out := w.synced()
			require.Equal(t, SyncedInFull, out.By)
			require.Less(t, out.Changed, int64(len(w.l.bytes)), "only what is allocated")
			for range 4 {
				w.l.writes(r, 12, 200<<10)
				w.turn()
				w.l.writes(r, 3, 100<<10) // goes into the next round
				before := w.platform.read
				out = w.synced()
				require.Equal(t, SyncedTracked, out.By)
				require.Empty(t, out.Why)
				require.Positive(t, out.Changed)
				require.LessOrEqual(t, w.platform.read-before, out.Changed+out.Changed/10)
				require.Equal(t, w.platform.read-before, out.Read)
			}
			// What is done is not done again, and nothing is read for nothing.
			before := w.platform.read
			again := w.synced()
			require.Equal(t, out.Digest, again.Digest)
			w.l.frozen["r6"] = w.l.frozen["r5"]
			w.round = 6
			quiet := w.synced()
			require.Equal(t, out.Digest, quiet.Digest)
			require.Zero(t, quiet.Changed)
			require.Equal(t, before, w.platform.read)

			st, err := os.Stat(w.path(partName(w.file())))
			require.NoError(t, err)
			_, err = call(w.bench, w.control.Finish, FinishRequest{
				Job: "job-1", Target: w.target(), Spec: job.Spec{VMPath: "web-01"}, Host: Host{ID: "h1"},
				Disks: []FinishDisk{{DiskResult: job.DiskResult{Disk: "2000", File: w.file(), Format: format, Digest: quiet.Digest}, Inode: inodeOf(st)}},
			})
			require.NoError(t, err)
			require.Equal(t, []string{"manifest.json", w.file(), w.file() + ".digests"}, w.names(), "nothing hidden is left")
		})
	}
}

// A round that was cut off is gone on with where its journal stands.
func TestSyncDiskIsTakenUp(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			w := newWarmed(t, format, 100*mib)
			w.turn()
			w.synced()
			const changed = 90 * mib
			noise := make([]byte, changed)
			for i := range noise {
				noise[i] = byte(i*31 + i>>13 + 1)
			}
			w.l.write(5*mib+7, noise)
			w.turn()
			w.platform.fault = cut(80 * mib)
			before := w.platform.read
			_, err := w.sync()
			require.ErrorContains(t, err, "connection reset")
			st, err := os.ReadFile(w.path(roundName(w.file())))
			require.NoError(t, err)
			require.Contains(t, string(st), `"round":2,"by":"tracking"`, "it is known to be a mixture")
			out := w.synced()
			require.Positive(t, out.ResumedFrom)
			require.LessOrEqual(t, w.platform.read-before, int64(changed+segment))
		})
	}
}

// Where the tracker cannot tell, the disk is compared, and only what differs is written.
func TestSyncDiskCompares(t *testing.T) {
	for name, c := range map[string]struct {
		lost   error
		change func(*SyncRequest)
		why    string
	}{
		"tracking was reset":       {&providers.Error{Op: "fake: changes", Reason: providers.TrackingLost, Msg: "the tracking began anew"}, func(*SyncRequest) {}, "its changes cannot be told: the tracking began anew"},
		"the platform cannot":      {&providers.Error{Op: "fake: changes", Reason: providers.Unsupported}, func(*SyncRequest) {}, "the platform does not track its changes"},
		"it is not tracked":        {nil, func(in *SyncRequest) { in.Point = "" }, "its changes are not tracked"},
		"it was not tracked then":  {nil, func(in *SyncRequest) { in.Since = "" }, "its changes were not tracked yet in the round before"},
		"it tells of another time": {nil, func(in *SyncRequest) { in.Point = "elsewhen" }, "its changes cannot be told: "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWarmed(t, "qcow2", 20*mib)
			w.turn()
			w.synced()
			w.l.write(3*mib+9, []byte("changed"))
			w.turn()
			w.l.lost = c.lost
			out := w.synced(c.change)
			require.Equal(t, SyncedComparing, out.By)
			require.Contains(t, out.Why, c.why)
			require.EqualValues(t, mib, out.Changed, "a block of digests")

			// The next round can be tracked again.
			w.l.lost = nil
			w.l.write(9*mib, []byte("again"))
			w.turn()
			require.Equal(t, SyncedTracked, w.synced().By)
		})
	}
}

// A round that was cut off while what differs was being written is compared with what the file holds now,
// whichever way it had begun.
func TestSyncDiskComparesAfterACut(t *testing.T) {
	for _, tracked := range []bool{false, true} {
		w := newWarmed(t, "qcow2", 60*mib)
		w.turn()
		w.synced()
		r := rand.New(rand.NewPCG(9, 9))
		noise := make([]byte, 40*mib)
		for i := range noise {
			noise[i] = byte(r.Uint32()) | 1
		}
		w.l.write(8*mib, noise)
		w.turn()
		lost := &providers.Error{Op: "fake: changes", Reason: providers.TrackingLost, Msg: "lost"}
		at := int64(90 * mib) // behind the comparison
		if tracked {
			at = 35 * mib
		} else {
			w.l.lost = lost
		}
		w.platform.fault = cut(at)
		_, err := w.sync()
		require.ErrorContains(t, err, "connection reset")
		if w.l.lost = lost; !tracked {
			w.l.lost = nil // a tracker that answers again is not asked any more
		}
		require.Equal(t, SyncedComparing, w.synced().By)
	}
}

// What cannot be gone on with is copied in full, and says why.
func TestSyncDiskStartsAnew(t *testing.T) {
	for name, c := range map[string]struct {
		do  func(t *testing.T, w *warmed)
		why string
	}{
		"another host": {func(t *testing.T, w *warmed) {
			require.NoError(t, os.Remove(w.path(roundName(w.file()))))
			require.NoError(t, os.Remove(w.path(partName(w.file()))))
		}, "what the rounds before had copied is not on this host"},
		"the file is another": {func(t *testing.T, w *warmed) {
			b, err := os.ReadFile(w.path(partName(w.file())))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(w.path("other"), b, 0o600))
			require.NoError(t, os.Rename(w.path("other"), w.path(partName(w.file()))))
		}, "what the rounds before had copied is not on this host"},
		"the state is torn": {func(t *testing.T, w *warmed) {
			require.NoError(t, os.WriteFile(w.path(roundName(w.file())), []byte(`{"round": 1, "who`), 0o600))
		}, "what the rounds before had copied is not on this host"},
		"it grew":            {func(_ *testing.T, w *warmed) { w.l.bytes = append(w.l.bytes, make([]byte, mib)...) }, "the disk was resized from 20971520 to 22020096 bytes"},
		"a round is missing": {func(_ *testing.T, w *warmed) { w.turn() }, "its file holds round 1, and round 2 was the one before"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWarmed(t, "qcow2", 20*mib)
			w.turn()
			w.synced()
			c.do(t, w)
			w.l.write(mib, []byte("changed"))
			w.turn()
			w.platform.fault = cut(mib)
			_, err := w.sync()
			require.ErrorContains(t, err, "connection reset")
			out := w.synced()
			require.Equal(t, SyncedInFull, out.By)
			require.Equal(t, c.why, out.Why)
			w.l.write(2*mib, []byte("again"))
			w.turn()
			require.Equal(t, SyncedTracked, w.synced().By)
		})
	}
}

func TestSyncDiskWithDamagedDigests(t *testing.T) {
	w := newWarmed(t, "raw", 20*mib)
	w.turn()
	w.synced()
	require.NoError(t, os.WriteFile(w.path(digestsName(w.file())), []byte("nonsense"), 0o600))
	w.l.write(mib, []byte("changed"))
	w.turn()
	out := w.synced()
	require.Equal(t, "the digests of its blocks were damaged", out.Why)
	require.EqualValues(t, mib, out.Changed)
}

func TestSyncDiskIsRefused(t *testing.T) {
	w := newWarmed(t, "raw", 20*mib)
	w.turn()
	_, err := w.sync(func(in *SyncRequest) { in.Target.Format = "vmdk" })
	require.Equal(t, string(providers.Unsupported), failure(t, err).Type())
	require.ErrorContains(t, err, "not written in place")
	_, err = w.sync(func(in *SyncRequest) { in.Job = "job-2" })
	require.ErrorContains(t, err, "belongs to job job-1 now")
	w.platform.thawed = &providers.Error{Op: "fake: read disk", Reason: providers.NotFound, Msg: "the VM has no snapshot any more"}
	_, err = w.sync()
	require.True(t, failure(t, err).NonRetryable())
	w.platform.thawed = nil
	w.synced()
	w.l.write(mib, []byte("changed"))
	w.turn()
	w.platform.thawed = &providers.Error{Op: "fake: read disk", Reason: providers.NotFound, Msg: "the VM has no snapshot any more"}
	_, err = w.sync()
	require.ErrorContains(t, err, "the VM has no snapshot any more")
	w.platform.thawed = nil
	w.synced()

	require.NoError(t, do(w.bench, w.control.Discard, DiscardRequest{Job: "job-1", Target: w.target()}))
	require.Empty(t, w.names())
}

// There is one snapshot at a time, and the host knows which one it would have to remove.
func TestNextSnapshot(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	next := func(last, key string) error {
		_, err := call(b, b.control.NextSnapshot, NextSnapshotRequest{Job: "job-1", VM: "vm-42", Last: last, Key: key})
		return err
	}
	require.NoError(t, next("", "k1"))
	require.NoError(t, next("k1", "k2"))
	require.NoError(t, next("k1", "k2"), "again")
	require.Equal(t, map[string]providers.SnapshotID{"k2": "sk2"}, b.platform.snapshots)
	rec, err := os.ReadFile(filepath.Join(b.site.recordPath("job-1")))
	require.NoError(t, err)
	require.Contains(t, string(rec), `"snapshot_key":"k2"`)
}
