package endtoend

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// chainDisk is the disk of a chain of these tests.
const chainDisk = "2000"

// layChain makes a chain with one disk of so many bytes in a folder that is there; every point after the
// first changes a twentieth. It answers what the disk holds at each, as raw files.
func layChain(t *testing.T, dir string, size int64, points int) []string {
	t.Helper()
	c, err := cbt.Create(t.Context(), dir, cbt.VM{ID: "vm-1", Name: "web-01"}, cbt.Options{})
	require.NoError(t, err)
	defer c.Close()
	truth := make([]string, points)
	truth[0] = rawImage(t, filepath.Join(t.TempDir(), "1.raw"), size, 9)
	for n := range points {
		d := cbt.NewDisk{Disk: chainDisk, Size: size, ChangeID: cbt.Point(fmt.Sprint("c/", n+1))}
		if n > 0 {
			truth[n] = filepath.Join(t.TempDir(), fmt.Sprint(n+1, ".raw"))
			changed := changedCopy(t, truth[n-1], truth[n], uint64(n))
			d.Changes = &cbt.Changes{From: cbt.Point(fmt.Sprint("c/", n)), To: d.ChangeID, By: cbt.Tracked, Ranges: changed}
		}
		a, err := c.Begin(t.Context(), cbt.NewPoint{Key: fmt.Sprint("run ", n), Time: time.Unix(1_700_000_000+int64(n)*3600, 0), Disks: []cbt.NewDisk{d}})
		require.NoError(t, err)
		img := openRaw(t, truth[n])
		_, err = a.Copy(t.Context(), chainDisk, img, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, a.Commit(t.Context()))
		require.NoError(t, img.Close())
	}
	return truth
}

func openRaw(t *testing.T, path string) formats.Image {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	require.NoError(t, err)
	r, err := all.ByName("raw")
	require.NoError(t, err)
	img, err := r.Open(t.Context(), f, st.Size(), formats.OpenOptions{})
	require.NoError(t, err)
	return img
}

// changedCopy copies a raw disk and changes a twentieth of it.
func changedCopy(t *testing.T, from, to string, seed uint64) (changed cbt.Set) {
	t.Helper()
	qemu(t, "convert", "-f", "raw", "-O", "raw", from, to)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	r, data := rand.New(rand.NewPCG(seed, 1)), rand.NewChaCha8([32]byte{byte(seed)})
	block := make([]byte, mib)
	for range st.Size() / mib / 20 {
		at := r.Int64N(st.Size()/mib) * mib
		_, _ = data.Read(block)
		_, err := f.WriteAt(block, at)
		require.NoError(t, err)
		require.NoError(t, changed.Add(at, mib))
	}
	return changed
}

// newChain is a lab whose daemon is up, and a chain.
func newChain(t *testing.T, size int64, points int) (l *lab, dir string, truth []string) {
	t.Helper()
	l, out := newImages(t)
	dir = filepath.Join(out, "web-01")
	require.NoError(t, os.Mkdir(dir, 0o755))
	truth = layChain(t, dir, size, points)
	l.up()
	return l, dir, truth
}

// began answers the id of a job that was accepted.
func began(t *testing.T) func(api.Started, error) string {
	return func(s api.Started, err error) string {
		t.Helper()
		require.NoError(t, err)
		return s.JobID
	}
}

// sameAt compares the points of a chain that are left with what the disk held, by the eyes of qemu-img too.
func sameAt(t *testing.T, dir string, truth []string, points ...int) {
	t.Helper()
	c, err := cbt.Open(t.Context(), dir, cbt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer c.Close()
	report, err := c.Check(t.Context(), cbt.CheckOptions{Depth: cbt.CheckData})
	require.NoError(t, err)
	require.NoError(t, report.Err())
	var have []int
	for _, p := range c.Manifest().Points {
		have = append(have, int(p.Number))
		qemu(t, "compare", "-f", "raw", "-F", "qcow2", truth[p.Number-1], filepath.Join(dir, p.Disks[0].File))
	}
	require.Equal(t, points, have)
}

// noneHidden makes sure that nothing unfinished is in a folder.
func noneHidden(t *testing.T, dir string) {
	t.Helper()
	for _, n := range names(t, dir) {
		require.True(t, !strings.HasPrefix(n, ".") || n == ".lock", "%s is left in %s", n, dir)
	}
}

func TestWorkOnAChain(t *testing.T) {
	t.Parallel()
	l, dir, truth := newChain(t, 40*mib, 4)
	ctx, start := t.Context(), began(t)
	ok := func(args ...string) string {
		t.Helper()
		out, errs, code := l.hyperctl(args...)
		require.Zero(t, code, errs)
		return out
	}

	begun := time.Now()
	v, err := l.api.Chain(ctx, api.ChainListRequest{Path: dir})
	require.NoError(t, err)
	t.Logf("listed in %s", time.Since(begun))
	require.Less(t, time.Since(begun), 5*time.Second)
	require.Len(t, v.Points, 4)
	require.Equal(t, "vm-1", v.VM.ID)
	require.Equal(t, cbt.Tracked, v.Points[3].Disks[0].By)
	require.Contains(t, ok("incremental", "list", "--vm", "web-01", "--output", filepath.Dir(dir)), "disk0-000004.qcow2")

	for _, depth := range []string{"links", "tables", "data"} {
		j := l.end(start(l.api.CheckChain(ctx, "", api.ChainCheckRequest{ChainPlace: api.ChainPlace{Path: dir}, Depth: depth})), time.Minute)
		require.Equal(t, job.Completed, j.Status, j.Error)
		require.Equal(t, job.Chain, j.Kind)
		require.Equal(t, 4, j.Result.Chain.Check.Links)
		require.Zero(t, j.Result.Chain.Check.Damage)
	}

	out := t.TempDir()
	id := strings.TrimSpace(ok("incremental", "flatten", dir, "-O", "vmdk", "-o", out+"/", "--point", "2"))
	j := l.converted(id)
	require.Equal(t, []string{filepath.Join(out, "web-01-disk-1.vmdk")}, j.Result.Files)
	require.Equal(t, digestOfFile(t, truth[1], "raw"), j.Result.Disks[0].Digest)
	require.Equal(t, "flatten web-01 at point 2", j.Definition.Name)
	qemu(t, "compare", "-f", "raw", truth[1], filepath.Join(out, "web-01-disk-1.vmdk"))
	l.converted(start(l.api.FlattenChain(ctx, "", api.ChainFlattenRequest{ChainPlace: api.ChainPlace{Path: dir}, Disk: chainDisk, TargetFormat: "raw", OutputPath: out + "/a.img"})))
	require.Equal(t, sha256File(t, truth[3]), sha256File(t, filepath.Join(out, "a.img")))
	require.Equal(t, []string{"a.img", "web-01-disk-1.vmdk"}, names(t, out), "nothing else is left")
	again := l.refused(start(l.api.FlattenChain(ctx, "", api.ChainFlattenRequest{ChainPlace: api.ChainPlace{Path: dir}, Disk: chainDisk, TargetFormat: "raw", OutputPath: out + "/a.img"})))
	require.Contains(t, again, "exists already")

	refused := l.end(start(l.api.DeletePoint(ctx, "", api.ChainDeleteRequest{ChainPlace: api.ChainPlace{Path: dir}, Point: 3})), time.Minute)
	require.Equal(t, "invalid", refused.Reason)
	require.Contains(t, refused.Error, `point 4 reads disk "2000" through it`)
	ok("incremental", "delete", dir, "--yes", "--follow")
	sameAt(t, dir, truth, 1, 2, 3)
	ok("incremental", "merge", dir, "--up-to", "2", "--yes", "--follow")
	sameAt(t, dir, truth, 2, 3)
	noneHidden(t, dir)
	require.Contains(t, l.refused(start(l.api.MergeChain(ctx, "", api.ChainMergeRequest{ChainPlace: api.ChainPlace{Path: dir}, UpTo: 9}))), "has no point 9")

	f, err := os.OpenFile(filepath.Join(dir, "disk0-000003.qcow2"), os.O_RDWR, 0)
	require.NoError(t, err)
	st, err := f.Stat()
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), st.Size()-st.Size()/4)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	said, _, code := l.hyperctl("incremental", "check", dir, "--depth", "data", "--follow")
	require.Equal(t, 4, code)
	require.Contains(t, said, "disk0-000003.qcow2")
	failed := l.job(strings.TrimSpace(strings.SplitN(said, "\n", 2)[0]))
	require.Equal(t, "corrupt", failed.Reason)
	require.Contains(t, failed.Error, "disk0-000003.qcow2")
	require.Equal(t, "disk0-000003.qcow2", failed.Result.Chain.Check.Problems[0].File)
	why := l.refused(start(l.api.FlattenChain(ctx, "", api.ChainFlattenRequest{ChainPlace: api.ChainPlace{Path: dir}, TargetFormat: "raw", OutputPath: out})))
	require.Contains(t, why, "a check of the chain")
	require.Equal(t, []string{"a.img", "web-01-disk-1.vmdk"}, names(t, out), "damage gets no name")
	_, err = l.api.Chain(ctx, api.ChainListRequest{Path: "/nowhere/web-01"})
	require.Error(t, err)
}

// A merge of which the daemon was killed in the middle goes on where it was, and the chain is whole at every
// moment.
func TestMergeSurvivesAKill(t *testing.T) {
	t.Parallel()
	l, dir, truth := newChain(t, 300*mib, 3)
	id := began(t)(l.api.MergeChain(t.Context(), "", api.ChainMergeRequest{ChainPlace: api.ChainPlace{Path: dir}, UpTo: 3, LimitMBps: 30}))
	l.moved(id, 150*mib)
	l.daemon.kill()
	sameAt(t, dir, truth, 1, 2, 3)
	l.up()
	j := l.until(id, time.Minute, "it was taken up", func(j job.Job) bool {
		return j.Progress != nil && len(j.Progress.Disks) == 1 && j.Progress.Disks[0].ResumedFrom > 0
	})
	require.GreaterOrEqual(t, j.Progress.Disks[0].ResumedFrom, int64(150*mib-segment), "a kill costs at most one segment")
	l.unlimited(id)
	j = l.converted(id)
	require.Equal(t, 1, j.Result.Chain.Points)
	sameAt(t, dir, truth, 3)
	noneHidden(t, dir)
}

func TestFlattenSurvivesAKill(t *testing.T) {
	t.Parallel()
	l, dir, truth := newChain(t, 300*mib, 3)
	out := t.TempDir()
	id := began(t)(l.api.FlattenChain(t.Context(), "", api.ChainFlattenRequest{
		ChainPlace: api.ChainPlace{Path: dir}, Point: 2, TargetFormat: "qcow2", Compress: true, OutputPath: out, LimitMBps: 30,
	}))
	l.moved(id, 150*mib)
	l.daemon.kill()
	target := filepath.Join(out, "web-01-disk-1.qcow2")
	require.NoFileExists(t, target, "nothing has its name before it is whole")
	l.up()
	j := l.until(id, time.Minute, "it was taken up", func(j job.Job) bool {
		return j.Progress != nil && len(j.Progress.Disks) == 1 && j.Progress.Disks[0].ResumedFrom > 0
	})
	require.GreaterOrEqual(t, j.Progress.Disks[0].ResumedFrom, int64(150*mib-segment), "a kill costs at most one segment")
	l.unlimited(id)
	j = l.converted(id)
	require.Equal(t, digestOfFile(t, truth[1], "raw"), j.Result.Disks[0].Digest)
	qemu(t, "compare", "-f", "raw", truth[1], target)
	require.Equal(t, []string{"web-01-disk-1.qcow2"}, names(t, out))
	noneHidden(t, dir)
}

// Jobs on one chain wait for one another; one that is paused stands still, and one that is cancelled leaves
// nothing.
func TestSteeringOfWorkOnAChain(t *testing.T) {
	t.Parallel()
	l, dir, truth := newChain(t, 200*mib, 3)
	ctx, start, out := t.Context(), began(t), t.TempDir()
	merge := start(l.api.MergeChain(ctx, "", api.ChainMergeRequest{ChainPlace: api.ChainPlace{Path: dir}, UpTo: 3, LimitMBps: 20}))
	l.moved(merge, 20*mib)
	check := start(l.api.CheckChain(ctx, "", api.ChainCheckRequest{ChainPlace: api.ChainPlace{Path: dir}}))
	l.until(check, 10*time.Second, "it waits for the merge", func(j job.Job) bool {
		return j.Progress != nil && strings.Contains(j.Progress.WaitingFor, "is being worked on by job "+merge)
	})
	v, err := l.api.Chain(ctx, api.ChainListRequest{Path: dir})
	require.NoError(t, err, "it is told also while it is worked on")
	require.Len(t, v.Points, 3)

	_, err = l.api.Pause(ctx, merge)
	require.NoError(t, err)
	j := l.until(merge, 10*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused && j.Progress.TransferRateMBps == 0 })
	var at int64
	l.eventually(10*time.Second, "no byte moves any more", func() bool {
		at = l.job(merge).Progress.BytesTransferred
		pause(t, time.Second)
		return l.job(merge).Progress.BytesTransferred == at
	})
	require.EqualValues(t, 400*mib, j.Progress.TotalBytes, "written, and read again")
	_, err = l.api.Resume(ctx, merge)
	require.NoError(t, err)
	l.moved(merge, at+5*mib)
	l.cancelled(merge)
	sameAt(t, dir, truth, 1, 2, 3)
	require.Equal(t, job.Completed, l.end(check, time.Minute).Status, "it had its turn")
	noneHidden(t, dir)

	flatten := start(l.api.FlattenChain(ctx, "", api.ChainFlattenRequest{ChainPlace: api.ChainPlace{Path: dir}, TargetFormat: "qcow2", OutputPath: out, LimitMBps: 20}))
	l.moved(flatten, 10*mib)
	require.NotEmpty(t, names(t, out))
	l.cancelled(flatten)
	require.Empty(t, names(t, out))
	noneHidden(t, dir)
}

// cancelled cancels a job, which stops at once.
func (l *lab) cancelled(id string) {
	l.t.Helper()
	at := time.Now()
	_, err := l.api.Cancel(l.t.Context(), id)
	require.NoError(l.t, err)
	require.Equal(l.t, job.Cancelled, l.end(id, 20*time.Second).Status)
	l.t.Logf("cancelled and clean after %s", time.Since(at))
}

// A look before the run: at a VM that is tracked, at one that is not, and with the daemon killed in between.
func TestAnalysisBeforeARun(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 8*mib), vm("off", mib)}})
	l.up()
	ctx := t.Context()
	ask := func(name, output string) api.Analyzed {
		t.Helper()
		a, err := l.api.AnalyzeIncremental(ctx, api.AnalyzeRequest{VMRequest: api.VMRequest{Target: api.Target{VMPath: name}}, OutputPath: output, LimitMBps: 1})
		require.NoError(t, err)
		require.Equal(t, job.Completed, a.Status)
		snaps, err := l.sim.Snapshots(name)
		require.NoError(t, err)
		require.Empty(t, snaps, "the snapshot of the analysis is gone")
		return a
	}
	off := ask("off", "")
	require.False(t, off.CanIncremental)
	require.Contains(t, off.Reason, "no incremental export of off is known")
	require.Contains(t, off.Reason, "hyperctl cbt enable")
	require.EqualValues(t, mib, off.ChangedBytes)

	on := api.VMRequest{Target: api.Target{VMPath: "web-01"}}
	_, err := l.api.EnableCBT(ctx, on)
	require.NoError(t, err)
	_, err = l.api.CreateSnapshot(ctx, api.SnapshotCreateRequest{VMRequest: on, SnapshotRequest: job.SnapshotRequest{Name: "first"}})
	require.NoError(t, err)
	_, err = l.api.DeleteSnapshot(ctx, api.SnapshotDeleteRequest{VMRequest: on, Snapshot: "first"})
	require.NoError(t, err)
	first := ask("web-01", l.exports)
	require.False(t, first.CanIncremental)
	require.Contains(t, first.Reason, "there is no chain in "+filepath.Join(l.exports, "web-01"))
	require.Positive(t, first.AllocatedBytes)
	require.Equal(t, first.AllocatedBytes, first.ChangedBytes)

	l.chainOf("web-01")
	require.NoError(t, l.sim.GuestWrite("web-01", 0, 3*mib, []byte(strings.Repeat("changed", 1000))))
	a := ask("web-01", l.exports)
	require.True(t, a.CanIncremental, a.Reason)
	require.EqualValues(t, 64<<10, a.ChangedBytes)
	require.Equal(t, a.AllocatedBytes-64<<10, a.EstimatedSavingsBytes)
	require.EqualValues(t, 1, a.LastPoint.Number)
	require.Equal(t, "1s", a.EstimatedDuration)
	out, errs, code := l.hyperctl("incremental", "analyze", "web-01", "--output", l.exports, "--json")
	require.Zero(t, code, errs)
	var shown api.Analyzed
	require.NoError(t, json.Unmarshal([]byte(out), &shown))
	require.Equal(t, a.ChangedBytes, shown.ChangedBytes)

	_, err = l.sim.Inject(vspheretest.Fault{Call: "QueryChangedDiskAreas", Delay: vspheretest.Duration(3 * time.Second), Times: 1})
	require.NoError(t, err)
	slow, err := l.api.AnalyzeIncremental(ctx, api.AnalyzeRequest{OutputPath: l.exports, VMRequest: api.VMRequest{
		Target: api.Target{VMPath: "web-01"}, Timeout: job.Duration(10 * time.Millisecond),
	}})
	require.NoError(t, err)
	require.Equal(t, job.Running, slow.Status)
	l.eventually(20*time.Second, "the analysis has its snapshot", func() bool {
		snaps, err := l.sim.Snapshots("web-01")
		return err == nil && len(snaps) == 1
	})
	l.daemon.kill()
	l.up()
	var ended api.Operation
	l.eventually(time.Minute, "the analysis goes on", func() bool {
		ended, err = l.api.Operation(ctx, slow.OperationID)
		return err == nil && ended.Status.Ended()
	})
	require.True(t, ended.Success, ended.Error)
	require.Equal(t, a.ChangedBytes, ended.Analysis.ChangedBytes)
	snaps, err := l.sim.Snapshots("web-01")
	require.NoError(t, err)
	require.Empty(t, snaps, "the snapshot is gone, whatever happened")
}

// chainOf makes a chain with one point of a VM as it is now, in the folder of its exports.
func (l *lab) chainOf(name string) {
	l.t.Helper()
	ctx := l.t.Context()
	status, err := l.api.CBTStatus(ctx, api.VMRequest{Target: api.Target{VMPath: name}})
	require.NoError(l.t, err)
	dir := filepath.Join(l.exports, name)
	require.NoError(l.t, os.Mkdir(dir, 0o755))
	c, err := cbt.Create(ctx, dir, cbt.VM{ID: string(l.info(name).ID), Name: name}, cbt.Options{})
	require.NoError(l.t, err)
	defer c.Close()
	var disks []cbt.NewDisk
	for i, d := range status.Tracking.Disks {
		truth, err := l.sim.Disk(name, i)
		require.NoError(l.t, err)
		disks = append(disks, cbt.NewDisk{Disk: string(d.ID), Size: truth.Size(), ChangeID: d.ChangeID})
	}
	a, err := c.Begin(ctx, cbt.NewPoint{Key: "first", Time: time.Now(), Disks: disks})
	require.NoError(l.t, err)
	r, err := all.ByName("raw")
	require.NoError(l.t, err)
	for i, d := range disks {
		truth, err := l.sim.Disk(name, i)
		require.NoError(l.t, err)
		img, err := r.Open(ctx, truth, truth.Size(), formats.OpenOptions{})
		require.NoError(l.t, err)
		_, err = a.Copy(ctx, d.Disk, img, formats.CopyOptions{})
		require.NoError(l.t, err)
	}
	require.NoError(l.t, a.Commit(ctx))
}

// An analysis finds the chain where the last export went, and the next export reads what it said.
func TestAnalysisIsWhatTheRunDoes(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 16*mib, 4*mib)}})
	l.up()
	ctx := t.Context()
	on := api.VMRequest{Target: api.Target{VMPath: "web-01"}}
	_, err := l.api.EnableCBT(ctx, on)
	require.NoError(t, err)
	s := l.spec("web-01", "")
	s.Incremental = true
	require.Equal(t, job.Completed, l.end(l.submit(s), time.Minute).Status)
	for i, off := range []int64{mib, 5*mib + 4096} {
		require.NoError(t, l.sim.GuestWrite("web-01", i/2, off, []byte(strings.Repeat("changed", 20_000))))
	}
	a, err := l.api.AnalyzeIncremental(ctx, api.AnalyzeRequest{VMRequest: on})
	require.NoError(t, err)
	require.True(t, a.CanIncremental, a.Reason)
	require.Equal(t, filepath.Join(l.exports, "web-01"), a.LastPoint.Folder)
	require.NotEmpty(t, a.EstimatedDuration, "at the rate of the export before")
	require.Len(t, a.Disks, 2)
	require.Zero(t, a.Disks[1].ChangedBytes)
	j := l.end(l.submit(s), time.Minute)
	require.Equal(t, job.Completed, j.Status, j.Error)
	require.Equal(t, a.ChangedBytes, j.Result.Point.Changed)
	snaps, err := l.sim.Snapshots("web-01")
	require.NoError(t, err)
	require.Empty(t, snaps)

	// While an export writes to the chain, it can be told what it is made of, and work on it waits.
	require.NoError(t, l.sim.GuestWrite("web-01", 0, 0, []byte(strings.Repeat("changed", 1_000_000))))
	s.Options.LimitMBps = 1
	export := l.submit(s)
	l.moved(export, 1)
	v, err := l.api.Chain(ctx, api.ChainListRequest{OutputPath: l.exports, VMPath: "web-01"})
	require.NoError(t, err)
	require.Len(t, v.Points, 2)
	check := began(t)(l.api.CheckChain(ctx, "", api.ChainCheckRequest{ChainPlace: api.ChainPlace{Path: v.Path}, Depth: "data"}))
	l.until(check, 20*time.Second, "it waits for the export", func(j job.Job) bool {
		return j.Progress != nil && strings.Contains(j.Progress.WaitingFor, "in use")
	})
	l.unlimited(export)
	require.Equal(t, job.Completed, l.end(export, time.Minute).Status)
	j = l.end(check, time.Minute)
	require.Equal(t, job.Completed, j.Status, j.Error)
	require.Equal(t, 3, j.Result.Chain.Points)
}
