package endtoend

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	api "hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// guest is a VM with tools in its guest and an image in its drive.
func guest(name string, shutdown time.Duration, disks ...int64) vspheretest.VM {
	v := vm(name, disks...)
	v.Hostname, v.ISO, v.ShutdownTime = name, "[datastore1] iso/debian.iso", vspheretest.Duration(shutdown)
	return v
}

// info is a VM as the API describes it.
func (l *lab) info(ref string) providers.VM {
	l.t.Helper()
	out, err := l.api.VM(l.t.Context(), api.VMInfoRequest{VMPath: ref})
	require.NoError(l.t, err)
	return out
}

// refused is the status of the answer that refused a request.
func refused(t *testing.T, err error) int {
	t.Helper()
	var answer *api.Error
	require.True(t, errors.As(err, &answer), "%v", err)
	return answer.Status
}

func TestOperationsOverTheAPI(t *testing.T) {
	t.Parallel()
	stubborn := guest("stubborn", 0, mib)
	stubborn.Stubborn = true
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{
		guest("web-01", 300*time.Millisecond, 2*mib), stubborn, vm("toolless", mib),
	}})
	l.up()
	ctx := t.Context()
	on := func(name string) api.VMRequest { return api.VMRequest{Target: api.Target{VMPath: name}} }
	done := func(out api.Operation, err error) api.Operation {
		t.Helper()
		require.NoError(t, err)
		require.True(t, out.Success, "%+v", out)
		require.Equal(t, job.Completed, out.Status)
		again, err := l.api.Operation(ctx, out.OperationID)
		require.NoError(t, err)
		require.Equal(t, out.Message, again.Message, "asked again, it is told the same")
		return out
	}

	t.Run("power", func(t *testing.T) {
		out := done(l.api.PowerOff(ctx, on("web-01")))
		require.Equal(t, providers.PowerOff, out.PowerState)
		require.Equal(t, providers.PowerOff, l.info("web-01").PowerState)
		require.Contains(t, done(l.api.PowerOff(ctx, on("web-01"))).Message, "already")
		done(l.api.PowerOn(ctx, on("web-01")))
		require.Equal(t, providers.PowerOn, l.info("web-01").PowerState)
	})
	t.Run("shutdown", func(t *testing.T) {
		out := done(l.api.ShutDown(ctx, api.ShutdownRequest{Target: api.Target{VMPath: "web-01"}}))
		require.False(t, out.Forced)
		require.Equal(t, providers.PowerOff, l.info("web-01").PowerState)
		done(l.api.PowerOn(ctx, on("web-01")))

		r := api.ShutdownRequest{Target: api.Target{VMPath: "stubborn"}, Timeout: job.Duration(time.Second)}
		_, err := l.api.ShutDown(ctx, r)
		require.Equal(t, 409, refused(t, err))
		require.ErrorContains(t, err, "did not shut down within 1s")
		require.Equal(t, providers.PowerOn, l.info("stubborn").PowerState)
		r.Then = job.ThenPowerOff
		require.True(t, done(l.api.ShutDown(ctx, r)).Forced)
		require.Equal(t, providers.PowerOff, l.info("stubborn").PowerState)

		begin := time.Now()
		_, err = l.api.ShutDown(ctx, api.ShutdownRequest{Target: api.Target{VMPath: "toolless"}})
		require.Equal(t, 409, refused(t, err))
		require.ErrorContains(t, err, "VMware Tools do not run")
		require.Less(t, time.Since(begin), 10*time.Second, "that is known at once")
	})
	t.Run("cdrom", func(t *testing.T) {
		out := done(l.api.RemoveCDROM(ctx, on("web-01")))
		require.Len(t, out.CDROMs, 1)
		require.Equal(t, "[datastore1] iso/debian.iso", out.CDROMs[0].Media)
		require.Empty(t, l.info("web-01").CDROMs[0].Media, "it runs: the drive is empty")
		done(l.api.PowerOff(ctx, on("web-01")))
		done(l.api.RemoveCDROM(ctx, on("web-01")))
		require.Empty(t, l.info("web-01").CDROMs, "it is off: the drive is gone")
		done(l.api.PowerOn(ctx, on("web-01")))
	})
	t.Run("snapshots", func(t *testing.T) {
		take := func(name string, change func(*job.SnapshotRequest)) api.Operation {
			r := api.SnapshotCreateRequest{VMRequest: on("web-01"), SnapshotRequest: job.SnapshotRequest{Name: name, Description: "by a test"}}
			change(&r.SnapshotRequest)
			return done(l.api.CreateSnapshot(ctx, r))
		}
		first := take("at rest", func(r *job.SnapshotRequest) { r.Quiesce = true })
		require.True(t, first.Snapshot.Quiesced)
		require.True(t, take("remembered", func(r *job.SnapshotRequest) { r.Memory = true }).Snapshot.Memory)
		list, err := l.api.Snapshots(ctx, api.VMInfoRequest{VMPath: "web-01"})
		require.NoError(t, err)
		require.Equal(t, 2, list.Total)
		require.Equal(t, "at rest", list.Snapshots[0].Name)
		require.Equal(t, "remembered", list.Snapshots[1].Name)
		done(l.api.DeleteSnapshot(ctx, api.SnapshotDeleteRequest{VMRequest: on("web-01"), Snapshot: "remembered"}))
		done(l.api.DeleteSnapshot(ctx, api.SnapshotDeleteRequest{VMRequest: on("web-01"), Snapshot: string(first.Snapshot.ID)}))
		_, err = l.api.DeleteSnapshot(ctx, api.SnapshotDeleteRequest{VMRequest: on("web-01"), Snapshot: "remembered"})
		require.Equal(t, 404, refused(t, err))
		_, err = l.api.CreateSnapshot(ctx, api.SnapshotCreateRequest{VMRequest: on("web-01"), SnapshotRequest: job.SnapshotRequest{Name: "x", Memory: true, Quiesce: true}})
		require.Equal(t, 422, refused(t, err))
		l.tidy("web-01")
	})
	t.Run("clone and template", func(t *testing.T) {
		r := api.CloneRequest{VMRequest: on("web-01"), CloneRequest: job.CloneRequest{Name: "web-02", PowerOn: true}}
		out := done(l.api.Clone(ctx, r))
		require.Equal(t, providers.PowerOn, l.info(out.Clone.Path).PowerState)
		_, err := l.api.Clone(ctx, r)
		require.Equal(t, 409, refused(t, err), "what is there is not replaced")
		_, err = l.api.SetTemplate(ctx, api.TemplateRequest{VMRequest: on("web-02")})
		require.Equal(t, 409, refused(t, err), "it runs")
		done(l.api.PowerOff(ctx, on("web-02")))
		done(l.api.SetTemplate(ctx, api.TemplateRequest{VMRequest: on("web-02")}))
		require.True(t, l.info("web-02").Template)
		no := false
		done(l.api.SetTemplate(ctx, api.TemplateRequest{VMRequest: on("web-02"), Template: &no}))
		require.False(t, l.info("web-02").Template)
	})
	t.Run("refused", func(t *testing.T) {
		_, err := l.api.PowerOff(ctx, on("no-such-vm"))
		require.Equal(t, 404, refused(t, err))
		_, err = l.api.Operation(ctx, "no-such-operation")
		require.Equal(t, 404, refused(t, err))
		_, err = l.sim.Inject(vspheretest.Fault{Call: "PowerOffVM_Task", Fault: "NoPermission", Times: 1})
		require.NoError(t, err)
		_, err = l.api.PowerOff(ctx, on("toolless"))
		require.Equal(t, 403, refused(t, err))
		require.Equal(t, providers.PowerOn, l.info("toolless").PowerState)
	})
	t.Run("credentials of its own", func(t *testing.T) {
		vc := api.Credentials{Server: l.sim.URL().String(), Username: l.sim.Username(), Password: "wrong " + l.sim.Password(), Insecure: true}
		r := api.VMRequest{Target: api.Target{VMPath: "toolless", VCenter: &vc}}
		begin := time.Now()
		_, err := l.api.PowerOff(ctx, r)
		require.Equal(t, 403, refused(t, err))
		require.Less(t, time.Since(begin), 10*time.Second, "a wrong password is told at once")
		vc.Password = l.sim.Password()
		done(l.api.PowerOff(ctx, r))
		l.forgotten()
	})
}

// forgotten makes sure that no credentials that came with a request are kept.
func (l *lab) forgotten() {
	l.t.Helper()
	l.eventually(10*time.Second, "the credentials are forgotten", func() bool {
		found := false
		_ = filepath.WalkDir(l.data, func(path string, d os.DirEntry, _ error) error {
			found = found || d != nil && strings.Contains(path, "connections") && strings.Contains(d.Name(), "job-")
			return nil
		})
		return !found
	})
}

// What takes longer than the caller waits goes on, also over a kill of the daemon.
func TestAnOperationThatTakesLong(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 0, mib)}})
	l.up()
	_, err := l.sim.Inject(vspheretest.Fault{Call: "CloneVM_Task", Task: true, Delay: vspheretest.Duration(4 * time.Second)})
	require.NoError(t, err)
	out, err := l.api.Clone(t.Context(), api.CloneRequest{
		VMRequest:    api.VMRequest{Target: api.Target{VMPath: "web-01"}, Timeout: job.Duration(time.Second)},
		CloneRequest: job.CloneRequest{Name: "web-02"},
	})
	require.NoError(t, err)
	require.Equal(t, job.Running, out.Status)
	l.daemon.kill()
	l.up()
	l.eventually(time.Minute, "the clone is made", func() bool {
		out, err = l.api.Operation(t.Context(), out.OperationID)
		return err == nil && out.Status != job.Running
	})
	require.True(t, out.Success, "%+v", out)
	require.Equal(t, "/DC0/vm/web-02", out.Clone.Path)
	vms, err := l.api.VMs(t.Context(), "", providers.Filter{})
	require.NoError(t, err)
	require.Len(t, vms, 2, "one clone, though it was begun twice")
}

// A guest that is shutting down when the daemon is killed is waited for by the next one.
func TestShutdownOverAKill(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 5*time.Second, mib)}})
	l.up()
	asked := make(chan error, 1)
	go func() {
		_, err := l.api.ShutDown(t.Context(), api.ShutdownRequest{Target: api.Target{VMPath: "web-01"}})
		asked <- err
	}()
	l.eventually(30*time.Second, "the guest was asked", func() bool { return l.sim.Calls()["ShutdownGuest"] > 0 })
	l.daemon.kill()
	require.Error(t, <-asked)
	l.up()
	l.eventually(time.Minute, "the guest is down", func() bool { return l.info("web-01").PowerState == providers.PowerOff })
}

// The drives of a VM are back as they were after an export, after a cancel, and after kills.
func TestCDROMIsPutBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 0, 200*mib)}})
	l.up()
	before := l.info("web-01").CDROMs
	require.Len(t, before, 1)
	require.True(t, before[0].Connected)
	spec := func() job.Spec {
		s := l.spec("web-01", "qcow2")
		s.Options.RemoveCDROM, s.Options.LimitMBps = true, 40
		return s
	}
	t.Run("kill", func(t *testing.T) {
		id := l.submit(spec())
		l.moved(id, 20*mib)
		require.Empty(t, l.info("web-01").CDROMs[0].Media, "nothing is in the drive meanwhile")
		l.daemon.kill()
		l.up()
		l.unlimited(id)
		l.completed(id, "web-01", 2*time.Minute)
		require.Equal(t, before, l.info("web-01").CDROMs)
	})
	t.Run("cancel", func(t *testing.T) {
		s := spec()
		s.Options.Overwrite = true
		id := l.submit(s)
		l.moved(id, 10*mib)
		_, err := l.api.Cancel(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, job.Cancelled, l.end(id, time.Minute).Status)
		require.Equal(t, before, l.info("web-01").CDROMs)
		l.tidy("web-01")
	})
	t.Run("kept out", func(t *testing.T) {
		s := spec()
		s.Options.Overwrite, s.Options.KeepCDROMRemoved, s.Options.LimitMBps = true, true, 0
		l.completed(l.submit(s), "web-01", time.Minute)
		require.Empty(t, l.info("web-01").CDROMs[0].Media)
	})
}

// An export that shuts its VM down starts it again.
func TestExportOfAVMThatIsShutDown(t *testing.T) {
	t.Parallel()
	stubborn := guest("stubborn", 0, 8*mib)
	stubborn.Stubborn = true
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 200*time.Millisecond, 60*mib), stubborn}})
	l.up()
	before := l.info("web-01")

	s := l.spec("web-01", "qcow2")
	s.Options.Shutdown, s.Options.RemoveCDROM, s.Options.LimitMBps = true, true, 20
	id := l.submit(s)
	l.moved(id, 5*mib)
	during := l.info("web-01")
	require.Equal(t, providers.PowerOff, during.PowerState)
	require.Empty(t, during.CDROMs, "it is off, so that the drive is out")
	l.daemon.kill()
	l.up()
	l.unlimited(id)
	l.completed(id, "web-01", time.Minute)
	after := l.info("web-01")
	require.Equal(t, providers.PowerOn, after.PowerState)
	require.Equal(t, before.CDROMs[0].Media, after.CDROMs[0].Media)

	s.Options.PowerOn, s.Options.Overwrite = job.PowerOnAfterSnapshot, true
	id = l.submit(s)
	l.moved(id, 5*mib)
	require.Equal(t, providers.PowerOn, l.info("web-01").PowerState, "it was away for its snapshot only")
	l.unlimited(id)
	l.completed(id, "web-01", time.Minute)
	require.Equal(t, after.CDROMs[0].Media, l.info("web-01").CDROMs[0].Media)

	fail := l.spec("stubborn", "raw")
	fail.Options.Shutdown, fail.Options.ShutdownTimeout = true, job.Duration(time.Second)
	j := l.end(l.submit(fail), 5*time.Minute)
	require.Equal(t, job.Failed, j.Status)
	require.Contains(t, j.Error, "did not shut down within 1s")
	require.Equal(t, providers.PowerOn, l.info("stubborn").PowerState)
	fail.Options.ShutdownThen, fail.Options.PowerOn = job.ThenPowerOff, job.PowerOnNever
	l.completed(l.submit(fail), "stubborn", time.Minute)
	require.Equal(t, providers.PowerOff, l.info("stubborn").PowerState)
}

func TestHyperctlOperations(t *testing.T) {
	t.Parallel()
	stubborn := guest("stubborn", 0, mib)
	stubborn.Stubborn = true
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 0, mib), stubborn}})
	l.up()
	ok := func(want string, args ...string) {
		t.Helper()
		out, errs, code := l.hyperctl(append([]string{"vms"}, args...)...)
		require.Zero(t, code, "%v: %s%s", args, out, errs)
		require.Contains(t, out, want, "%v", args)
	}
	ok("web-01 is on already", "poweron", "web-01")
	ok("web-01 has shut down", "shutdown", "web-01", "--timeout", "1m", "--yes")
	ok("its power was taken away", "shutdown", "stubborn", "--timeout", "1s", "--then", "poweroff", "-y")
	ok("web-01 has lost CD/DVD drive 1", "remove-cdrom", "web-01", "-y")
	ok("web-01 is on", "poweron", "web-01")
	ok("has the snapshot before", "snapshot", "create", "web-01", "--name", "before", "--quiesce")
	ok("guest at rest", "snapshots", "web-01")
	ok("does not have the snapshot before any more", "snapshot", "delete", "web-01", "before", "-y")
	ok("No snapshots.", "snapshots", "web-01")
	ok("web-01 is off", "poweroff", "web-01", "-y")
	ok("was cloned to /DC0/vm/web-02", "clone", "web-01", "--name", "web-02")
	ok("web-02 is a template", "template", "web-02")
	ok("is a VM, and no template", "template", "web-02", "--undo")

	out, _, code := l.hyperctl("vms", "poweron", "web-01", "--json")
	require.Zero(t, code)
	var op api.Operation
	require.NoError(t, json.Unmarshal([]byte(out), &op))
	require.True(t, op.Success)
	ok("web-01 is on", "operation", op.OperationID)

	for code, args := range map[int][]string{
		3: {"poweroff", "no-such-vm"},
		2: {"shutdown", "web-01", "--then", "explode"},
		1: {"snapshot", "create", "web-01", "--name", "x", "--connection", "job-1"},
	} {
		out, errs, got := l.hyperctl(append([]string{"vms"}, args...)...)
		require.Equal(t, code, got, "%v: %s%s", args, out, errs)
		require.NotEmpty(t, errs)
	}
}
