package endtoend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

func at(n int64) *int64 { return &n }

func inject(t *testing.T, l *lab, f vspheretest.Fault) *vspheretest.Injection {
	t.Helper()
	in, err := l.sim.Inject(f)
	require.NoError(t, err)
	return in
}

// What the network and the vCenter do to a copy that must get over it by itself.
func TestFaultsThatAJobGetsOver(t *testing.T) {
	t.Parallel()
	const size = 96 * mib
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", size)}})
	l.up()
	for _, c := range []struct {
		name   string
		faults []vspheretest.Fault
	}{
		{"connection cut at many offsets", []vspheretest.Fault{
			{File: "*-flat.vmdk", CutAt: at(0), Times: 1}, {File: "*-flat.vmdk", CutAt: at(1), Times: 1},
			{File: "*-flat.vmdk", CutAt: at(7*mib + 511), Times: 2}, {File: "*-flat.vmdk", CutAt: at(40 * mib), Times: 3},
			{File: "*-flat.vmdk", CutAt: at(size - 1), Times: 2},
		}},
		{"every fifth read cut", []vspheretest.Fault{{File: "*-flat.vmdk", CutAfter: at(100_000), Skip: 4, Times: 10}}},
		{"503 in bursts", []vspheretest.Fault{{File: "*-flat.vmdk", Status: 503, RetryAfter: vspheretest.Duration(time.Second), Skip: 10, Times: 12}}},
		{"dropped without an answer", []vspheretest.Fault{{File: "*-flat.vmdk", Drop: true, Skip: 5, Times: 6}}},
		{"a snapshot call that fails at first", []vspheretest.Fault{{Call: "CreateSnapshot_Task", Status: 503, Times: 1}}},
		{"a lost answer to a snapshot that was taken", []vspheretest.Fault{{Call: "CreateSnapshot_Task", After: true, Fault: "HostCommunication", Times: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer l.sim.ClearFaults()
			var in []*vspheretest.Injection
			for _, f := range c.faults {
				in = append(in, inject(t, l, f))
			}
			s := l.spec("web-01", "raw")
			s.Options.Overwrite = true
			l.completed(l.submit(s), "web-01", 3*time.Minute)
			for i, injected := range in {
				require.Positive(t, injected.Struck(), "fault %d never struck", i)
			}
		})
	}
}

func TestSessionExpiresInTheMiddle(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 200*mib)}})
	l.up()
	s := l.spec("web-01", "qcow2")
	s.Options.LimitMBps = 40
	id := l.submit(s)
	for n := int64(1); n <= 3; n++ {
		l.moved(id, n*20*mib)
		l.sim.ExpireSessions()
	}
	l.unlimited(id)
	j := l.completed(id, "web-01", time.Minute)
	c, err := l.sim.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.LessOrEqual(t, c.Again(), int64(3*segment))
	require.NotNil(t, j.Result)
}

// What ends a job: with one clear sentence, and nothing left.
func TestFaultsThatEndAJob(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 64*mib), vm("old-01", 64*mib)}})
	l.up()
	t.Run("the snapshot task fails", func(t *testing.T) {
		defer l.sim.ClearFaults()
		inject(t, l, vspheretest.Fault{Call: "CreateSnapshot_Task", Task: true, Fault: "SnapshotDisabled", Message: "snapshots are disabled"})
		j := l.end(l.submit(l.spec("web-01", "raw")), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "snapshot")
		l.tidy("web-01")
	})
	t.Run("no such VM", func(t *testing.T) {
		j := l.end(l.submit(l.spec("nobody", "raw")), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "nobody")
	})
	t.Run("bytes that rot on the way are found by nobody but the source: the target must equal what was received", func(t *testing.T) {
		j := l.end(l.submit(l.spec("old-01", "raw")), time.Minute)
		require.Equal(t, job.Completed, j.Status)
	})
	t.Run("the VM is deleted in the middle", func(t *testing.T) {
		s := l.spec("web-01", "raw")
		s.Options.LimitMBps = 5
		id := l.submit(s)
		l.moved(id, 4*mib)
		require.NoError(t, l.sim.DeleteVM("web-01"))
		j := l.end(id, time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.NotEmpty(t, j.Error)
		require.Empty(t, l.hidden())
	})
}

func TestTargetFolderIsRemovedInTheMiddle(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 200*mib)}})
	l.up()
	s := l.spec("web-01", "raw")
	s.Options.LimitMBps = 40
	id := l.submit(s)
	l.moved(id, 10*mib)
	require.NoError(t, os.RemoveAll(filepath.Join(l.exports, "web-01")))
	j := l.end(id, time.Minute)
	require.Equal(t, job.Failed, j.Status)
	require.Contains(t, j.Error, "removed")
	l.tidy("web-01")
}

func TestTwoJobsForOneVM(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib), vm("db-01", 8*mib)}})
	l.up()
	first := l.spec("web-01", "raw")
	first.Options.LimitMBps = 10
	a := l.submit(first)
	l.moved(a, mib)
	second := job.Spec{VMPath: "web-01", OutputPath: filepath.Join(l.exports, "second"), Format: "qcow2"} // another name of the same VM
	require.NoError(t, os.MkdirAll(second.OutputPath, 0o755))
	b := l.submit(second)
	j := l.until(b, 10*time.Second, "the second waits and says for what", func(j job.Job) bool {
		return j.Status == job.Pending && j.Progress != nil && strings.Contains(j.Progress.WaitingFor, a)
	})
	require.Contains(t, j.Progress.WaitingFor, "web-01")
	require.Equal(t, job.Completed, l.end(l.submit(l.spec("db-01", "raw")), time.Minute).Status, "another VM does not wait")
	l.unlimited(a)
	require.Equal(t, job.Completed, l.end(a, time.Minute).Status)
	l.completed(b, "web-01", time.Minute)
}
