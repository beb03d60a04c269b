package endtoend

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/cbt"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// chainLab is a lab with the chain of one VM, whose disks are kept as they were at each point.
type chainLab struct {
	*lab
	vm     string
	frozen map[int64][]string // raw files of the disks, by point
}

func newChainLab(t *testing.T, name string, args []string, disks ...int64) *chainLab {
	t.Helper()
	l := &chainLab{lab: newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm(name, disks...)}}), vm: name, frozen: map[int64][]string{}}
	l.up(args...)
	return l
}

// track switches the tracking of changes on, as an operator does. It begins with the next snapshot.
func (l *chainLab) track() {
	l.t.Helper()
	_, err := l.api.EnableCBT(l.t.Context(), api.VMRequest{Target: api.Target{VMPath: l.vm}})
	require.NoError(l.t, err)
}

func (l *chainLab) spec() job.Spec {
	s := l.lab.spec(l.vm, "")
	s.Incremental = true
	return s
}

func (l *chainLab) dir() string { return filepath.Join(l.exports, l.vm) }

// write lets the guest write n bytes at off of a disk.
func (l *chainLab) write(disk int, off, n int64) {
	l.t.Helper()
	b := make([]byte, n)
	img, err := l.sim.Disk(l.vm, disk)
	require.NoError(l.t, err)
	_, err = img.ReadAt(b, off)
	require.True(l.t, err == nil || errors.Is(err, io.EOF), "%v", err)
	for i := range b {
		b[i] ^= 0x5a
	}
	require.NoError(l.t, l.sim.GuestWrite(l.vm, disk, off, b))
}

// freeze keeps the disks as they are.
func (l *chainLab) freeze(disks int) (files []string) {
	l.t.Helper()
	for i := range disks {
		img, err := l.sim.Disk(l.vm, i)
		require.NoError(l.t, err)
		f, err := os.CreateTemp(l.t.TempDir(), "disk-*.raw")
		require.NoError(l.t, err)
		_, err = io.Copy(f, io.NewSectionReader(img, 0, img.Size()))
		require.NoError(l.t, err)
		require.NoError(l.t, f.Close())
		files = append(files, f.Name())
	}
	return files
}

// point runs an incremental export to its end, and checks every byte of every point, with tools that know
// nothing of it.
func (l *chainLab) point(disks int, change ...func(*job.Spec)) job.Job {
	l.t.Helper()
	s := l.spec()
	for _, f := range change {
		f(&s)
	}
	frozen := l.freeze(disks)
	return l.pointed(l.submit(s), frozen)
}

// pointed waits for a job that adds a point of these disks.
func (l *chainLab) pointed(id string, frozen []string) job.Job {
	l.t.Helper()
	j := l.end(id, 2*time.Minute)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.NotNil(l.t, j.Result.Point)
	require.Len(l.t, j.Result.Disks, len(frozen))
	require.Empty(l.t, j.Result.Leftover)
	l.frozen[j.Result.Point.Number] = frozen
	l.whole()
	snaps, err := l.sim.Snapshots(l.vm)
	require.NoError(l.t, err)
	require.Empty(l.t, snaps)
	require.Equal(l.t, []string{filepath.Join(l.dir(), ".lock")}, l.hidden(), "hidden files are left")
	var size int64
	for _, f := range j.Result.Files {
		st, err := os.Stat(f)
		require.NoError(l.t, err)
		size += st.Size()
	}
	require.Equal(l.t, size, j.Result.TotalSize)
	return j
}

// whole checks the chain: every point is what the disks were.
func (l *chainLab) whole() {
	l.t.Helper()
	c, err := cbt.Open(l.t.Context(), l.dir(), cbt.Options{ReadOnly: true})
	require.NoError(l.t, err)
	defer c.Close()
	r, err := c.Check(l.t.Context(), cbt.CheckOptions{Depth: cbt.CheckData})
	require.NoError(l.t, err)
	require.Empty(l.t, r.Problems)
	require.Empty(l.t, r.Strays)
	m := c.Manifest()
	require.Len(l.t, m.Points, len(l.frozen))
	for _, p := range m.Points {
		for i, d := range p.Disks {
			file := filepath.Join(l.dir(), d.File)
			for _, args := range [][]string{{"check", file}, {"compare", "-f", "qcow2", "-F", "raw", file, l.frozen[p.Number][i]}} {
				out, err := exec.CommandContext(l.t.Context(), "qemu-img", args...).CombinedOutput()
				require.NoError(l.t, err, "point %d: %s: %s", p.Number, d.Disk, out)
			}
		}
	}
}

// sent is how many bytes of a disk have left the vCenter, and in how many requests.
func (l *chainLab) sent(disk int) (bytes int64, requests int) {
	l.t.Helper()
	c, err := l.sim.ServedDisk(l.vm, disk)
	require.NoError(l.t, err)
	return c.Sent(), c.Requests
}

func TestIncrementalExports(t *testing.T) {
	t.Parallel()
	l := newChainLab(t, "web-01", nil, 96*mib, 24*mib)
	l.track()
	l.sim.ResetRecord()
	first := l.point(2)
	require.EqualValues(t, 1, first.Result.Point.Number)
	for i, d := range first.Result.Disks {
		require.True(t, d.Full)
		require.Equal(t, "first point of the chain", d.Reason)
		bytes, _ := l.sent(i)
		require.InDelta(t, d.Size*2/3, bytes, 3*mib, "only what is allocated is read")
	}

	var changed int64
	for off := int64(mib); off < 90*mib; off += 7 * mib {
		l.write(0, off, 64<<10)
		changed += 64 << 10
	}
	l.sim.ResetRecord()
	second := l.point(2)
	require.EqualValues(t, 2, second.Result.Point.Number)
	require.EqualValues(t, 1, second.Result.Point.Parent)
	require.Equal(t, first.Result.Point.Chain, second.Result.Point.Chain)
	require.Equal(t, changed, second.Result.Point.Changed)
	for _, d := range second.Result.Disks {
		require.Equal(t, "tracking", d.By)
		require.Equal(t, strings.Replace(d.File, "000002", "000001", 1), d.Backing)
	}
	bytes, _ := l.sent(0)
	require.LessOrEqual(t, bytes, changed+changed/10)
	require.Equal(t, second.Result.Disks[0].Read, bytes-1, "but for the byte that shows that it can be read")
	bytes, _ = l.sent(1)
	require.LessOrEqual(t, bytes, int64(1), "the second disk did not change")

	// Changes that lie close together are read at once.
	for off := int64(0); off < 16*mib; off += mib {
		l.write(0, off, mib-64<<10)
	}
	l.sim.ResetRecord()
	third := l.point(2)
	bytes, requests := l.sent(0)
	require.LessOrEqual(t, bytes, third.Result.Point.Changed*11/10)
	require.LessOrEqual(t, requests, 12)

	full := l.point(2, func(s *job.Spec) { s.Options.Full = true })
	require.Equal(t, "it was asked for", full.Result.Disks[1].Reason)
	require.Empty(t, full.Result.Disks[1].Backing)

	out, errs, code := l.hyperctl("submit", l.vm, "--output", l.exports, "--incremental", "--watch")
	require.Zero(t, code, out+errs)
	l.frozen[5] = l.freeze(2)
	l.whole()
	for _, args := range [][]string{{"--format", "raw", "--incremental"}, {"--overwrite", "--incremental"}, {"--thick", "--incremental"}, {"--full"}} {
		_, errs, code = l.hyperctl(append([]string{"submit", l.vm, "--output", l.exports}, args...)...)
		require.NotZero(t, code, "%v", args)
		require.Contains(t, errs, "incremental")
	}
	out, errs, code = l.hyperctl("submit", l.vm, "--output", l.exports, "--incremental", "--transport", "nfc", "--watch")
	require.NotZero(t, code)
	require.Contains(t, out+errs, "front to back")

	// A full export goes beside it.
	l.end(l.submit(l.lab.spec(l.vm, "qcow2")), time.Minute)
	require.FileExists(t, filepath.Join(l.dir(), "manifest.json"))
	require.Equal(t, "tracking", l.pointed(l.submit(l.spec()), l.freeze(2)).Result.Disks[0].By)
}

// What is in doubt is copied in full, and why is said; where nobody tracks, what differs is found.
func TestDoubtIsAFullCopy(t *testing.T) {
	t.Parallel()
	l := newChainLab(t, "web-01", nil, 12*mib, 8*mib)
	untracked := l.point(2)
	require.True(t, untracked.Result.Disks[0].Full)
	l.write(0, 5*mib+17, 4000)
	compared := l.point(2)
	require.Equal(t, "comparison", compared.Result.Disks[0].By)
	require.Contains(t, compared.Result.Disks[0].Reason, "its changes are not tracked")
	require.EqualValues(t, mib, compared.Result.Point.Changed)

	l.track()
	l.write(0, 2*mib, 100)
	begun := l.point(2)
	require.Equal(t, "comparison", begun.Result.Disks[0].By)
	require.Contains(t, begun.Result.Disks[0].Reason, "were not tracked yet at the newest point")
	l.write(0, 3*mib, 100)
	require.Equal(t, "tracking", l.point(2).Result.Disks[0].By)

	n := 2
	for _, c := range []struct {
		name    string
		between func()
		disk    int
		why     string
	}{
		{"reset", func() { require.NoError(t, l.sim.ResetTracking(l.vm)) }, 0, "tracking began anew since the last copy"},
		{"resized", func() { require.NoError(t, l.sim.ResizeDisk(l.vm, 0, 20*mib)) }, 0, "the disk was resized from 12582912 to 20971520 bytes"},
		{"off in between", func() {
			_, err := l.api.DisableCBT(t.Context(), api.VMRequest{Target: api.Target{VMPath: l.vm}})
			require.NoError(t, err)
			l.stun()
			l.track()
		}, 0, "tracking began anew since the last copy"},
		{"reverted", l.revert, 0, "its changes cannot be told: "},
		{"added", func() {
			n = 3
			require.NoError(t, l.sim.AddDisk(l.vm, vspheretest.Disk{Size: 4 * mib, Content: vspheretest.Generated(9, 2*mib)}))
		}, 2, "the disk was not there at point"},
		{"replaced", func() {
			require.NoError(t, l.sim.RemoveDisk(l.vm))
			require.NoError(t, l.sim.AddDisk(l.vm, vspheretest.Disk{Size: 4 * mib, Content: vspheretest.Generated(10, 3*mib)}))
		}, 2, "tracking began anew since the last copy"},
	} {
		l.write(0, 4*mib, 1000)
		c.between()
		j := l.point(n)
		d := j.Result.Disks[c.disk]
		require.True(t, d.Full, c.name)
		require.Contains(t, d.Reason, c.why, c.name)
		l.write(0, mib, 1000)
		for _, d := range l.point(n).Result.Disks {
			require.Equal(t, "tracking", d.By, "%s: after it all is as ever", c.name)
		}
	}
	require.NoError(t, l.sim.RemoveDisk(l.vm))
	require.Len(t, l.point(2).Result.Disks, 2)
}

// object is the VM, as another program's client has it.
func (l *chainLab) object() *object.VirtualMachine {
	l.t.Helper()
	c, err := govmomi.NewClient(l.t.Context(), l.sim.LoginURL(), true)
	require.NoError(l.t, err)
	l.t.Cleanup(c.CloseIdleConnections)
	i := slices.IndexFunc(l.sim.State().VMs, func(v vspheretest.VMState) bool { return v.Name == l.vm })
	return object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: l.sim.State().VMs[i].ID})
}

// stun lets the VM stand still for a moment.
func (l *chainLab) stun() {
	l.t.Helper()
	l.snapshotted(func(*object.VirtualMachine) {})
}

// revert takes the VM back to how it was at its last point.
func (l *chainLab) revert() {
	l.t.Helper()
	l.snapshotted(func(vm *object.VirtualMachine) {
		l.write(0, 6*mib, 5000)
		task, err := vm.RevertToSnapshot(l.t.Context(), "by hand", false)
		require.NoError(l.t, err)
		require.NoError(l.t, task.Wait(l.t.Context()))
	})
}

func (l *chainLab) snapshotted(do func(*object.VirtualMachine)) {
	l.t.Helper()
	ctx := l.t.Context()
	vm := l.object()
	task, err := vm.CreateSnapshot(ctx, "by hand", "", false, false)
	require.NoError(l.t, err)
	require.NoError(l.t, task.Wait(ctx))
	do(vm)
	task, err = vm.RemoveAllSnapshot(ctx, nil)
	require.NoError(l.t, err)
	require.NoError(l.t, task.Wait(ctx))
	require.NoError(l.t, session.NewManager(vm.Client()).Logout(ctx))
}

// A tracker that forgets writes is caught by an audit, and the point is right all the same.
func TestAuditedTracking(t *testing.T) {
	t.Parallel()
	l := newChainLab(t, "web-01", nil, 16*mib)
	l.track()
	audit := func(s *job.Spec) { s.Options.VerifyTracking = true }
	l.point(1)
	l.write(0, mib, 1000)
	honest := l.point(1, audit)
	require.Empty(t, honest.Result.Alerts)
	require.Equal(t, "tracking", honest.Result.Disks[0].By)
	require.NoError(t, l.sim.ForgetWrites(l.vm, 0, 1))
	l.write(0, 9*mib, 70_000)
	j := l.point(1, audit)
	require.Len(t, j.Result.Alerts, 1)
	require.Contains(t, j.Result.Alerts[0], "the platform's tracking missed changes of")
	require.Equal(t, "comparison", j.Result.Disks[0].By)
	require.Contains(t, j.Result.Disks[0].Reason, "missed changes")
	var log strings.Builder
	_, err := l.api.Log(t.Context(), j.ID, client.LogOptions{}, &log)
	require.NoError(t, err)
	require.Contains(t, log.String(), "cannot be trusted")
}

// A daemon that is killed in the middle of a delta goes on where it was.
func TestKilledInADelta(t *testing.T) {
	t.Parallel()
	for _, tracked := range []bool{true, false} {
		t.Run(fmt.Sprint("tracked ", tracked), func(t *testing.T) {
			t.Parallel()
			l := newChainLab(t, "web-01", nil, 160*mib)
			if tracked {
				l.track()
			}
			l.point(1)
			for off := int64(0); off < 150*mib; off += mib {
				l.write(0, off, mib-64<<10)
			}
			frozen := l.freeze(1)
			l.sim.ResetRecord()
			s := l.spec()
			s.Options.LimitMBps = 60
			id := l.submit(s)
			for _, at := range []int64{50 * mib, 100 * mib} {
				l.moved(id, at)
				l.write(0, 3*mib, 5000) // which is not part of the point
				l.daemon.kill()
				l.up()
			}
			l.unlimited(id)
			j := l.pointed(id, frozen)
			require.False(t, j.Result.Disks[0].Full)
			bytes, _ := l.sent(0)
			want := j.Result.Point.Changed
			if !tracked {
				want += 160 * mib
			}
			require.LessOrEqual(t, bytes, want+want/10+2*segment)
			require.Positive(t, j.Result.Disks[0].Retries)
			require.Equal(t, job.Completed, j.Status)
		})
	}
}

// A cancelled export leaves the chain as it was: the first one leaves nothing.
func TestCancelledInADelta(t *testing.T) {
	t.Parallel()
	l := newChainLab(t, "web-01", nil, 120*mib)
	l.track()
	s := l.spec()
	s.Options.LimitMBps = 20
	cancel := func() {
		t.Helper()
		id := l.submit(s)
		l.moved(id, 10*mib)
		_, err := l.api.Cancel(t.Context(), id)
		require.NoError(t, err)
		j := l.end(id, 30*time.Second)
		require.Equal(t, job.Cancelled, j.Status)
		require.NotContains(t, j.Error, "left behind")
		snaps, err := l.sim.Snapshots(l.vm)
		require.NoError(t, err)
		require.Empty(t, snaps)
	}
	cancel()
	require.NoDirExists(t, l.dir())
	l.point(1)
	l.write(0, 0, 100*mib)
	before, manifest := l.listing(), l.manifest()
	cancel()
	require.Equal(t, before, l.listing())
	require.Equal(t, manifest, l.manifest())
	require.Equal(t, "tracking", l.point(1).Result.Disks[0].By)
}

// listing is the files of the chain with their sizes.
func (l *chainLab) listing() map[string]int64 {
	l.t.Helper()
	entries, err := os.ReadDir(l.dir())
	require.NoError(l.t, err)
	out := map[string]int64{}
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(l.t, err)
		out[e.Name()] = info.Size()
	}
	return out
}

func (l *chainLab) manifest() string {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir(), "chain.json"))
	require.NoError(l.t, err)
	return string(b)
}

// Where the operator lets them, incremental exports switch tracking on themselves; a default format that is
// no chain's does not matter to them.
func TestDaemonThatTracks(t *testing.T) {
	t.Parallel()
	l := newChainLab(t, "web-01", []string{"--enable-cbt", "--default-format", "raw"}, 8*mib)
	l.point(1, func(s *job.Spec) { s.Compress = true })
	require.True(t, l.info(l.vm).ChangeTracking)
	l.write(0, mib, 10)
	d := l.point(1).Result.Disks[0]
	require.Equal(t, "tracking", d.By)
	require.Contains(t, l.manifest(), `"compression": "zlib"`)
}

func TestHyperexportIncremental(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("web-01", 24*mib), vm("db-01", 8*mib))
	run := func(args ...string) string {
		t.Helper()
		out, errs, code := l.call(append(args, "-o", l.exports)...)
		require.Zero(t, code, out+errs)
		return out
	}
	out := run("web-01", "--incremental", "--dry-run")
	require.Contains(t, out, "point 1, the first: all disks in full")
	require.NoDirExists(t, filepath.Join(l.exports, "web-01"))
	run("web-01", "--incremental")
	out = run("web-01", "--incremental", "--dry-run")
	require.Contains(t, out, "point 2: what changed since point 1 of")
	var plan struct {
		Chain struct{ Point, Parent int64 }
		Need  int64
	}
	require.NoError(t, json.Unmarshal([]byte(run("web-01", "--incremental", "--dry-run", "--json")), &plan))
	require.EqualValues(t, 2, plan.Chain.Point)
	require.EqualValues(t, 1, plan.Chain.Parent)
	require.Zero(t, plan.Need)
	require.Contains(t, run("web-01", "--incremental", "--full", "--dry-run"), "all disks in full")
	run("web-01", "--incremental", "--full", "--verify-tracking")

	batch := filepath.Join(t.TempDir(), "vms.yaml")
	require.NoError(t, os.WriteFile(batch, []byte("- {vm: web-01, incremental: true}\n- vm: db-01\n  incremental: true\n  options: {full: true}\n"), 0o600))
	run("--batch", batch)
	for name, points := range map[string]int{"web-01": 3, "db-01": 1} {
		c, err := cbt.Open(t.Context(), filepath.Join(l.exports, name), cbt.Options{ReadOnly: true})
		require.NoError(t, err)
		m := c.Manifest()
		require.Len(t, m.Points, points)
		require.NoError(t, c.Close())
	}
	for want, args := range map[string][]string{
		"--format must be qcow2":                    {"web-01", "--incremental", "--format", "raw"},
		"--full means nothing without":              {"web-01", "--full"},
		"--skip-existing and --incremental exclude": {"web-01", "--incremental", "--skip-existing"},
	} {
		_, errs, code := l.call(append(args, "-o", l.exports)...)
		require.Equal(t, 2, code, errs)
		require.Contains(t, errs, want)
	}
}
