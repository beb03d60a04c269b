package endtoend

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// leaseSpec is a job that reads under a lease.
func (l *lab) leaseSpec(name, format string) job.Spec {
	s := l.spec(name, format)
	s.Options.Transport = "nfc"
	return s
}

// sent is how many times a disk was asked for under a lease, and the bytes of the last time.
func (l *lab) sent(vm string, disk int) (times int, bytes int64) {
	for _, r := range l.sim.Requests() {
		if strings.HasSuffix(r.File, fmt.Sprintf("%s/disk-%d.vmdk", vm, disk)) {
			times, bytes = times+1, r.Sent
		}
	}
	return times, bytes
}

// leased waits for a job to be completed over a lease, and that nothing is left of it.
func (l *lab) leased(id, vm string, within time.Duration) job.Job {
	l.t.Helper()
	j := l.completed(id, vm, within)
	require.Equal(l.t, "nfc", j.Result.Transport)
	require.Zero(l.t, l.sim.Leases(), "a lease is left")
	return j
}

// connection is a configuration file with one connection, "lab", to the vCenter.
func (l *lab) connection(fields ...string) string {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "config.yaml")
	all := append([]string{"kind: vsphere", "insecure: true", fmt.Sprintf("server: %q", l.sim.URL()),
		fmt.Sprintf("username: %q", l.sim.Username()), fmt.Sprintf("password: %q", l.sim.Password())}, fields...)
	require.NoError(l.t, os.WriteFile(file, []byte("connections: {lab: {"+strings.Join(all, ", ")+"}}\n"), 0o600))
	return file
}

// vsphere is a connection of the test's own, which closes it.
func (l *lab) vsphere() *vsphere.Provider {
	l.t.Helper()
	c := vsphere.Default()
	c.Server, c.Username, c.Password, c.Insecure = l.sim.URL().String(), l.sim.Username(), providers.Secret(l.sim.Password()), true
	p, err := vsphere.Open(l.t.Context(), c, providers.Env{Log: slog.New(slog.DiscardHandler)})
	require.NoError(l.t, err)
	return p
}

// beginning waits until a disk is on its way under a lease.
func (l *lab) beginning(id string, bytes int64) {
	l.t.Helper()
	l.until(id, time.Minute, "bytes come under a lease", func(j job.Job) bool {
		var read int64
		if j.Progress != nil && j.Progress.Phase == job.Transfer {
			for _, d := range j.Progress.Disks {
				read += d.Done
			}
		}
		return read >= bytes
	})
}

func TestLeaseIntoEveryForm(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 40*mib, 9*mib)}})
	l.up()
	for _, c := range []struct {
		format   string
		compress bool
		kept     bool
	}{{"raw", false, false}, {"qcow2", false, false}, {"qcow2", true, false}, {"vmdk", false, false}, {"vmdk", true, true}} {
		t.Run(fmt.Sprintf("%s compressed %t", c.format, c.compress), func(t *testing.T) {
			l.sim.ResetRecord()
			s := l.leaseSpec("web-01", c.format)
			s.Compress, s.OutputPath = c.compress, filepath.Join(l.exports, fmt.Sprint(c))
			require.NoError(t, os.MkdirAll(s.OutputPath, 0o755))
			j := l.leased(l.submit(s), "web-01", time.Minute)
			for i, d := range j.Result.Disks {
				times, bytes := l.sent("web-01", i)
				require.Equal(t, 1, times, "every disk comes once")
				require.NotEmpty(t, d.SHA256)
				if c.kept {
					require.Equal(t, bytes, d.Stored, "the file is what the lease sent")
				}
			}
		})
	}
}

// A package holds the disks as the lease sent them.
func TestLeaseIntoAPackage(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 12*mib, 3*mib)}})
	l.up()
	for _, format := range []string{"ova", "ovf"} {
		t.Run(format, func(t *testing.T) {
			l.sim.ResetRecord()
			s := l.leaseSpec("web-01", format)
			s.Options.Overwrite = true
			j, _ := l.packaged(l.submit(s), "web-01", time.Minute)
			require.Equal(t, "nfc", j.Result.Transport)
			require.Zero(t, l.sim.Leases())
			for i, d := range j.Result.Disks {
				_, bytes := l.sent("web-01", i)
				require.Equal(t, bytes, d.Stored)
			}
		})
	}
}

// The plan chooses, and says why.
func TestTransportIsChosenAndFallsBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{
		VMs:        []vspheretest.VM{vm("web-01", 8*mib, 2*mib), vm("db-01", 4*mib), {Name: "vsan-01", Datastore: "v", Disks: vm("x", 4*mib).Disks}},
		Datastores: []vspheretest.Datastore{{Name: "datastore1"}, {Name: "v", Type: "vsan"}},
	})
	l.up()
	reason := func(id string) string {
		return l.until(id, time.Minute, "the transport is told", func(j job.Job) bool {
			return j.Progress != nil && j.Progress.Transport == "nfc"
		}).Progress.TransportReason
	}
	t.Run("the best one that is safe", func(t *testing.T) {
		require.Equal(t, "datastore", l.completed(l.submit(l.spec("db-01", "raw")), "db-01", time.Minute).Result.Transport)
	})
	t.Run("vSAN gives out no files", func(t *testing.T) {
		s := l.spec("vsan-01", "qcow2")
		s.Options.LimitMBps = 2
		id := l.submit(s)
		require.Contains(t, reason(id), "datastore: ")
		out, _, _ := l.hyperctl("status", id)
		require.Contains(t, out, "nfc (datastore: ")
		l.unlimited(id)
		l.leased(id, "vsan-01", time.Minute)
	})
	t.Run("refused when it comes to it", func(t *testing.T) {
		defer l.sim.ClearFaults()
		in := inject(t, l, vspheretest.Fault{File: "*-flat.vmdk", Status: 403})
		s := l.spec("web-01", "qcow2")
		id := l.submit(s)
		require.Contains(t, reason(id), "403")
		l.leased(id, "web-01", time.Minute)
		require.Positive(t, in.Struck())
		log, _, _ := l.hyperctl("logs", id)
		require.Contains(t, log, "copying under a lease")
		require.Contains(t, log, "403")
	})
	t.Run("forced, it is refused", func(t *testing.T) {
		defer l.sim.ClearFaults()
		inject(t, l, vspheretest.Fault{File: "*-flat.vmdk", Status: 403})
		s := l.spec("web-01", "raw")
		s.Options.Transport, s.Options.Overwrite = "datastore", true
		j := l.end(l.submit(s), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "403")
	})
}

func TestLeaseReadsBesideTheSnapshotsOfOthers(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 12*mib)}})
	p := l.vsphere()
	v, err := p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	for _, key := range []string{"before the update", "after the update"} {
		_, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotOptions{Key: key})
		require.NoError(t, err)
		require.NoError(t, l.sim.GuestWrite("web-01", 0, 4*mib, []byte("written after "+key)))
	}
	require.NoError(t, p.Close())
	l.up()
	j := l.end(l.submit(l.spec("web-01", "raw")), time.Minute)
	require.Equal(t, job.Completed, j.Status, j.Error)
	require.Equal(t, "nfc", j.Result.Transport)
	l.same(j, "web-01")
	snaps, err := l.sim.Snapshots("web-01")
	require.NoError(t, err)
	require.Len(t, snaps, 2, "theirs stay, ours is gone")
	require.Zero(t, l.sim.Leases())
}

// What happens to a lease and its disks that a job gets over.
func TestLeaseFaultsThatAJobGetsOver(t *testing.T) {
	t.Parallel()
	const size = 48 * mib
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", size, 2*mib)}, LeaseTimeout: 10 * time.Second})
	l.up("--config", l.connection("lease_ready: 2s", "stall_timeout: 2s"))
	for _, c := range []struct {
		name  string
		fault vspheretest.Fault
		again int // how often the large disk has to be begun
	}{
		{"a connection cut in the middle", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(5 * mib), Times: 2}, 3},
		{"a connection dropped without an answer", vspheretest.Fault{File: "disk-0.vmdk", Drop: true, Times: 1}, 2},
		{"a server with too much to do", vspheretest.Fault{File: "disk-0.vmdk", Status: 503, RetryAfter: vspheretest.Duration(time.Second), Times: 1}, 2},
		{"a connection that falls silent", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(5 * mib), Stall: true, Times: 1}, 2},
		{"a lease that does not become ready", vspheretest.Fault{Call: "ExportSnapshot", Task: true, Stall: true, Times: 1}, 1},
		{"a lease that fails before it is ready", vspheretest.Fault{Call: "ExportSnapshot", Task: true, Fault: "HostCommunication", Times: 1}, 1},
		{"a host that is away", vspheretest.Fault{Call: "ExportSnapshot", Fault: "HostNotConnected", Times: 2}, 1},
		{"progress that cannot be reported for a moment", vspheretest.Fault{Call: "HttpNfcLeaseProgress", Status: 503, Times: 2}, 1},
		{"a manifest that cannot be read at first", vspheretest.Fault{Call: "HttpNfcLeaseGetManifest", Status: 503, Times: 1}, 1},
		{"an end that is lost", vspheretest.Fault{Call: "HttpNfcLeaseComplete", Fault: "HostCommunication", After: true, Times: 1}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer l.sim.ClearFaults()
			l.sim.ResetRecord()
			in := inject(t, l, c.fault)
			s := l.leaseSpec("web-01", "qcow2")
			s.Compress, s.Options.Overwrite, s.Connection = true, true, "lab"
			j := l.leased(l.submit(s), "web-01", 2*time.Minute)
			require.Positive(t, in.Struck())
			times, _ := l.sent("web-01", 0)
			require.Equal(t, c.again, times, "%+v", l.sim.Requests())
			if c.again > 1 {
				require.EqualValues(t, c.again-1, j.Result.Disks[0].Retries)
			}
			times, _ = l.sent("web-01", 1)
			require.Equal(t, 1, times, "the other disk goes on")
		})
	}
}

// A lease that is lost costs the disks that are not whole yet.
func TestLeaseIsLostInTheMiddle(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 40*mib, mib)}, LeaseTimeout: 4 * time.Second})
	l.up()
	in := inject(t, l, vspheretest.Fault{File: "disk-0.vmdk", Rate: mib})
	id := l.submit(l.leaseSpec("web-01", "qcow2"))
	l.until(id, time.Minute, "the small disk is whole", func(j job.Job) bool {
		return j.Progress != nil && len(j.Progress.Disks) == 2 && j.Progress.Disks[1].Done == mib && j.Progress.Disks[0].Read > 0
	})
	lost := inject(t, l, vspheretest.Fault{Call: "HttpNfcLeaseProgress", Fault: "HostCommunication"})
	j := l.until(id, time.Minute, "the loss is told", func(j job.Job) bool {
		return j.Progress != nil && strings.Contains(j.Progress.WaitingFor, "the lease was lost")
	})
	require.Contains(t, j.Progress.WaitingFor, "1 of 2 disks are whole")
	lost.Remove()
	in.Remove()
	l.leased(id, "web-01", time.Minute)
	small, _ := l.sent("web-01", 1)
	large, _ := l.sent("web-01", 0)
	require.Equal(t, 1, small, "a disk that is whole stays whole")
	require.GreaterOrEqual(t, large, 2)
	log, _, _ := l.hyperctl("logs", id)
	require.Contains(t, log, "the lease was lost")
}

// What ends a job that reads under a lease: with one clear sentence, and nothing left.
func TestLeaseFaultsThatEndAJob(t *testing.T) {
	t.Parallel()
	eight := make([]int64, 8)
	for i := range eight {
		eight[i] = 4 * mib
	}
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 8*mib), vm("wide-01", eight...)}})
	l.up()
	for _, c := range []struct {
		name, vm, want string
		fault          vspheretest.Fault
	}{
		{"a byte that nothing but the manifest tells", "web-01", "manifest", vspheretest.Fault{File: "disk-0.vmdk", FlipAt: at(6000)}},
		{"a grain that rots on the way", "web-01", "corrupt", vspheretest.Fault{File: "disk-0.vmdk", FlipAt: at(100_000)}},
		{"no right to export", "web-01", "permission", vspheretest.Fault{Call: "ExportSnapshot", Fault: "NoPermission", Message: "Permission to perform this operation was denied."}},
		{"one disk of eight", "wide-01", "Hard disk 6", vspheretest.Fault{File: "disk-5.vmdk", Status: 403}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer l.sim.ClearFaults()
			inject(t, l, c.fault)
			j := l.end(l.submit(l.leaseSpec(c.vm, "vmdk")), time.Minute)
			require.Equal(t, job.Failed, j.Status)
			require.Contains(t, strings.ToLower(j.Error), strings.ToLower(c.want))
			l.tidy(c.vm)
			require.Zero(t, l.sim.Leases())
		})
	}
}

func TestLeaseOutlivesAPauseAndASession(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib)}, LeaseTimeout: timeout})
	l.up()
	s := l.leaseSpec("web-01", "qcow2")
	s.Compress, s.Options.LimitMBps = true, 8
	id := l.submit(s)
	l.beginning(id, 4*mib)
	_, err := l.api.Pause(t.Context(), id)
	require.NoError(t, err)
	l.until(id, 5*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused })
	pause(t, 3*timeout)
	require.Equal(t, 1, l.sim.Leases(), "the lease lives")
	l.sim.ExpireSessions()
	_, err = l.api.Resume(t.Context(), id)
	require.NoError(t, err)
	l.unlimited(id)
	l.leased(id, "web-01", time.Minute)
	times, _ := l.sent("web-01", 0)
	require.Equal(t, 1, times, "it went on where it was")
}

func TestLeaseOfACancelledJob(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib, 8*mib)}})
	l.up()
	s := l.leaseSpec("web-01", "raw")
	s.Options.LimitMBps = 4
	id := l.submit(s)
	l.beginning(id, mib)
	_, err := l.api.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, job.Cancelled, l.end(id, 20*time.Second).Status)
	l.tidy("web-01")
	require.Zero(t, l.sim.Leases())
}

// A daemon that is killed cannot end its lease. The next one does, and begins the disks that were not
// whole anew.
func TestLeaseOfAKilledDaemon(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib, mib)}})
	l.up()
	s := l.leaseSpec("web-01", "qcow2")
	s.Options.LimitMBps = 6
	id := l.submit(s)
	l.until(id, time.Minute, "the small disk is whole", func(j job.Job) bool {
		return j.Progress != nil && len(j.Progress.Disks) == 2 && j.Progress.Disks[1].Done == mib && j.Progress.Disks[0].Done > 2*mib
	})
	l.daemon.kill()
	require.Equal(t, 1, l.sim.Leases())
	l.up()
	l.unlimited(id)
	l.leased(id, "web-01", 2*time.Minute)
	small, _ := l.sent("web-01", 1)
	require.Equal(t, 1, small, "a disk that is whole stays whole")
}

func TestCleanStopEndsTheLease(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib)}})
	l.up()
	s := l.leaseSpec("web-01", "qcow2")
	s.Options.LimitMBps = 6
	id := l.submit(s)
	l.beginning(id, 2*mib)
	require.Zero(t, l.daemon.stop(30*time.Second))
	require.Zero(t, l.sim.Leases())
	require.Empty(t, l.sim.Sessions())
	l.up()
	l.unlimited(id)
	l.leased(id, "web-01", time.Minute)
}
