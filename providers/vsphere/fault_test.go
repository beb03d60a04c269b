package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

const mib = 1 << 20

// bench is a VM with one disk, a snapshot of it and the disk's content at that moment.
type bench struct {
	*testing.T
	server *vspheretest.Server
	p      *vsphere.Provider
	vm     providers.VM
	snap   providers.Snapshot
	ref    providers.DiskRef
	truth  []byte
}

func setup(t *testing.T, size int64, change ...func(*vsphere.Config)) *bench {
	t.Helper()
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{disk(7, size)}}}})
	b := &bench{T: t, server: s, p: connect(t, s, change...)}
	var err error
	b.vm, err = b.p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	b.snap, err = b.p.Snapshot(t.Context(), b.vm.ID, providers.SnapshotOptions{Key: "job/1"})
	require.NoError(t, err)
	b.ref = providers.DiskRef{VM: b.vm.ID, Snapshot: b.snap.ID, Disk: b.snap.Disks[0].ID}
	b.truth = content(t, s, "web-01", 0, string(b.snap.ID))
	return b
}

func (b *bench) open() formats.Image {
	b.Helper()
	im, err := b.p.OpenDisk(b.Context(), b.ref)
	require.NoError(b, err)
	b.Cleanup(func() { im.Close() })
	return im
}

// readAll reads the disk with four readers of 256 KiB.
func readAll(im formats.Image) ([]byte, error) {
	const chunk = 256 << 10
	got := make([]byte, im.Size())
	var g errgroup.Group
	g.SetLimit(4)
	for off := int64(0); off < im.Size(); off += chunk {
		g.Go(func() error {
			n, err := im.ReadAt(got[off:min(off+chunk, im.Size())], off)
			if errors.Is(err, io.EOF) && off+int64(n) == im.Size() {
				err = nil
			}
			return err
		})
	}
	return got, g.Wait()
}

func TestTheGuestGoesOnWritingWhileItIsRead(t *testing.T) {
	b := setup(t, 4*mib)
	im := b.open()
	for i := range int64(16) {
		require.NoError(t, b.server.GuestWrite("web-01", 0, i*100_000, bytes.Repeat([]byte("new"), 20_000)))
	}
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got), "the disk is that of the snapshot")
}

func TestASessionThatEndsInTheMiddleOfADisk(t *testing.T) {
	b := setup(t, 8*mib)
	im := b.open()
	logins := b.server.Calls()["Login"]
	for round := range 3 {
		b.server.ExpireSessions()
		got, err := readAll(im)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b.truth, got))
		require.Equal(t, logins+1+round, b.server.Calls()["Login"], "one login for all readers")
	}
}

func TestConnectionsAreCutAnywhere(t *testing.T) {
	b := setup(t, 2*mib)
	im := b.open()
	var cuts []*vspheretest.Injection
	for _, at := range []int64{0, 1, 4095, 4096, 65535, 65536, 200_000, 256<<10 - 1, 256 << 10, mib - 1, mib, mib + 77, 2*mib - 1} {
		cuts = append(cuts, inject(t, b.server, vspheretest.Fault{File: "*-flat.vmdk", CutAt: &at, Times: 1}))
	}
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
	for _, c := range cuts {
		require.Equal(t, 1, c.Struck())
	}
	served, err := b.server.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.Less(t, served.Again(), int64(512<<10), "what had come is not asked for again")
}

func TestAllConnectionsAreCutAgainAndAgain(t *testing.T) {
	b := setup(t, 8*mib)
	im := b.open()
	inject(t, b.server, vspheretest.Fault{File: "*-flat.vmdk", Rate: 16 * mib, Shared: true})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				b.server.CloseConnections()
			}
		}
	}()
	got, err := readAll(im)
	close(stop)
	<-done
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
}

func TestAServerThatFallsSilent(t *testing.T) {
	b := setup(t, 2*mib, func(c *vsphere.Config) { c.StallTimeout = vsphere.Duration(150 * time.Millisecond) })
	im := b.open()
	at := int64(300_000)
	stall := inject(t, b.server, vspheretest.Fault{File: "*-flat.vmdk", CutAt: &at, Stall: true, Times: 1})
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
	require.Equal(t, 1, stall.Struck())
}

func TestASlowServerIsNotASilentOne(t *testing.T) {
	b := setup(t, mib, func(c *vsphere.Config) { c.StallTimeout = vsphere.Duration(200 * time.Millisecond) })
	im := b.open()
	inject(t, b.server, vspheretest.Fault{File: "*-flat.vmdk", Rate: mib})
	got := make([]byte, mib)
	_, err := im.ReadAt(got, 0) // takes a second
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
	served, err := b.server.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.Less(t, served.Again(), int64(2), "it was one request")
}

func TestABusyServerIsLeftAlone(t *testing.T) {
	b := setup(t, 2*mib)
	im := b.open()
	in := inject(t, b.server, vspheretest.Fault{File: "*", Status: 503, RetryAfter: vspheretest.Duration(4 * time.Second), Times: 3})
	for range 3 {
		_, err := im.ReadAt(make([]byte, 10), 0)
		require.ErrorIs(t, err, providers.Throttled)
		require.Equal(t, 4*time.Second, providers.RetryAfter(err))
	}
	require.Equal(t, 3, in.Struck(), "each read asked once")
	got, err := readAll(im)
	require.NoError(t, err, "the same image works once the server does")
	require.True(t, bytes.Equal(b.truth, got))
}

func TestAServerThatAnswersOtherThanAsked(t *testing.T) {
	for name, c := range map[string]struct {
		fault vspheretest.Fault
		want  providers.Reason
	}{
		"another range": {vspheretest.Fault{WrongRange: true}, providers.Unavailable},
		"no range":      {vspheretest.Fault{NoRange: true}, providers.Unsupported},
		"too short":     {vspheretest.Fault{Short: 5}, providers.Unavailable},
		"denied":        {vspheretest.Fault{Status: 403}, providers.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			b := setup(t, mib)
			im := b.open()
			c.fault.File = "*-flat.vmdk"
			inject(t, b.server, c.fault)
			_, err := im.ReadAt(make([]byte, 1000), 10)
			require.Equal(t, c.want, providers.ReasonOf(err), "%v", err)
			_, err = b.p.OpenDisk(t.Context(), b.ref)
			require.Equal(t, c.want, providers.ReasonOf(err), "%v", err)
			require.Equal(t, 1, b.server.Calls()["Login"], "the session is not to blame")
		})
	}
}

func TestTheSnapshotIsDeletedUnderARead(t *testing.T) {
	b := setup(t, 2*mib)
	flats, err := filepath.Glob(filepath.Join(b.server.Dir(), "datastores", "*", "*", "*", "*-flat.vmdk"))
	require.NoError(t, err)
	require.Len(t, flats, 1)
	require.NoError(t, os.Chtimes(flats[0], time.Time{}, time.Unix(1e9, 0))) // written long before this second
	im := b.open()
	require.NoError(t, b.server.GuestWrite("web-01", 0, 0, bytes.Repeat([]byte("x"), 512<<10)))
	require.NoError(t, b.p.DeleteSnapshot(t.Context(), b.vm.ID, b.snap.ID))
	_, err = im.ReadAt(make([]byte, 1000), 0)
	require.ErrorIs(t, err, providers.NotFound)
	require.ErrorContains(t, err, "nothing freezes its disks")
	_, err = im.ReadAt(make([]byte, 1000), mib)
	require.ErrorIs(t, err, providers.NotFound, "no part of it is trusted any more")
	_, err = b.p.OpenDisk(t.Context(), b.ref)
	require.ErrorIs(t, err, providers.NotFound)
}

func TestTheVMIsDeletedUnderARead(t *testing.T) {
	b := setup(t, 2*mib)
	im := b.open()
	require.NoError(t, b.server.DeleteVM("web-01"))
	before := b.server.Calls()["RetrievePropertiesEx"]
	_, err := im.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, providers.NotFound)
	require.ErrorContains(t, err, "there is no such VM")
	require.Equal(t, before+1, b.server.Calls()["RetrievePropertiesEx"], "it asks once and believes the answer")
	_, err = b.p.OpenDisk(t.Context(), b.ref)
	require.ErrorIs(t, err, providers.NotFound)
	require.NoError(t, b.p.DeleteSnapshot(t.Context(), b.vm.ID, b.snap.ID), "it is gone with its VM")
}

// administrator is another client of the same vCenter.
func administrator(t *testing.T, s *vspheretest.Server, vm providers.VMID) *object.VirtualMachine {
	t.Helper()
	c, err := govmomi.NewClient(t.Context(), s.LoginURL(), true)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Logout(context.Background()))
		c.Client.CloseIdleConnections()
	})
	return object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: string(vm)})
}

func TestAnotherSnapshot(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{disk(7, mib)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	why := func() string {
		tr, err := p.Transports(t.Context(), vm)
		require.NoError(t, err)
		require.Len(t, tr, 3)
		require.Equal(t, "datastore", tr[0].Name)
		require.True(t, tr[0].Resumable)
		require.Equal(t, providers.Transport{Name: "nfc", Leased: true}, tr[1], "a lease does not mind other snapshots")
		return tr[0].Why
	}
	require.Empty(t, why())

	admin := administrator(t, s, vm.ID)
	task, err := admin.CreateSnapshot(t.Context(), "nightly", "", false, false)
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	require.Contains(t, why(), `another snapshot ("nightly")`)

	snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "job/1"})
	require.NoError(t, err)
	ref := providers.DiskRef{VM: vm.ID, Snapshot: snap.ID, Disk: snap.Disks[0].ID}
	_, err = p.OpenDisk(t.Context(), ref)
	require.ErrorIs(t, err, providers.Precondition)
	require.ErrorContains(t, err, "nightly")

	task, err = admin.RemoveSnapshot(t.Context(), "nightly", false, nil)
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	require.Empty(t, why(), "ours alone is fine")
	im, err := p.OpenDisk(t.Context(), ref)
	require.NoError(t, err, "it waits until the other snapshot is gone")
	defer im.Close()
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content(t, s, "web-01", 0, string(snap.ID)), got))
}

func TestDisksThatCannotBeReadFromTheirDatastore(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		Datastores: []vspheretest.Datastore{{Name: "fast"}, {Name: "objects", Type: "vsan"}},
		VMs: []vspheretest.VM{
			{Name: "on-vsan", Datastore: "objects", Disks: []vspheretest.Disk{disk(1, mib)}},
			{Name: "independent", Disks: []vspheretest.Disk{disk(1, mib), {Size: mib, Mode: "independent_persistent"}}},
		},
	})
	p := connect(t, s)
	for name, says := range map[string]string{
		"on-vsan":     `datastore "objects" of kind vsan`,
		"independent": "is independent",
	} {
		vm, err := p.VM(t.Context(), name)
		require.NoError(t, err)
		tr, err := p.Transports(t.Context(), vm)
		require.NoError(t, err)
		require.Contains(t, tr[0].Why, says)
		snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "job/1"})
		require.NoError(t, err)
		last := vm.Disks[len(vm.Disks)-1].ID
		_, err = p.OpenDisk(t.Context(), providers.DiskRef{VM: vm.ID, Snapshot: snap.ID, Disk: last})
		require.Error(t, err)
		require.NotEqual(t, providers.Unavailable, providers.ReasonOf(err), "%v", err)
	}
}

func TestASnapshotTaskThatFails(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, mib)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	for fault, want := range map[string]providers.Reason{
		"FileLocked": providers.Precondition, "TaskInProgress": providers.Precondition, "NoDiskSpace": providers.Exhausted,
		"ApplicationQuiesceFault": providers.Precondition, "SystemError": providers.Unavailable, "NotSupported": providers.Unsupported,
	} {
		for _, task := range []bool{true, false} {
			in := inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", Fault: fault, Message: "it is so", Task: task})
			_, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "k"})
			require.Equal(t, want, providers.ReasonOf(err), "%s: %v", fault, err)
			require.ErrorContains(t, err, "it is so")
			in.Remove()
		}
	}
	snaps, err := s.Snapshots("vm")
	require.NoError(t, err)
	require.Empty(t, snaps)
	snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "k"})
	require.NoError(t, err)

	in := inject(t, s, vspheretest.Fault{Call: "RemoveSnapshot_Task", Fault: "TaskInProgress", Task: true})
	require.ErrorIs(t, p.DeleteSnapshot(t.Context(), vm.ID, snap.ID), providers.Precondition)
	in.Remove()
	require.NoError(t, p.DeleteSnapshot(t.Context(), vm.ID, snap.ID))
}

func TestASnapshotWhoseAnswerIsLost(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, mib)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	for i := range 3 {
		opt := providers.SnapshotOptions{Key: fmt.Sprintf("lost/%d", i)}
		in := inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", After: true, Drop: true, Times: 1})
		_, err = p.Snapshot(t.Context(), vm.ID, opt)
		require.ErrorIs(t, err, providers.Unavailable)
		require.Equal(t, 1, in.Struck())
		require.Eventually(t, func() bool {
			_, err := p.Snapshot(t.Context(), vm.ID, opt)
			return err == nil
		}, time.Minute, 10*time.Millisecond)
		snaps, err := s.Snapshots("vm")
		require.NoError(t, err)
		require.Len(t, snaps, i+1, "the snapshot that was taken is found, not taken again")
	}
}

// The task of a snapshot whose answer was lost may still run when it is asked for again, and end between
// the look for it and the call that would take another.
func TestASnapshotThatIsStillBeingTaken(t *testing.T) {
	const slow = 200 * time.Millisecond
	opt := providers.SnapshotOptions{Key: "job/1"}
	for name, again := range map[string]func(context.Context, providers.Snapshotter, providers.VMID) (providers.Snapshot, error){
		"asked for again": func(ctx context.Context, p providers.Snapshotter, vm providers.VMID) (providers.Snapshot, error) {
			return p.Snapshot(ctx, vm, opt)
		},
		"looked for": func(ctx context.Context, p providers.Snapshotter, vm providers.VMID) (providers.Snapshot, error) {
			return p.FindSnapshot(ctx, vm, opt.Key)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{TaskDelay: slow, VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, mib)}}}})
			p := connect(t, s)
			vm, err := p.VM(t.Context(), "vm")
			require.NoError(t, err)
			inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", After: true, Drop: true, Times: 1})
			inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", Skip: 1, Delay: vspheretest.Duration(2 * slow)})
			_, err = p.Snapshot(t.Context(), vm.ID, opt)
			require.ErrorIs(t, err, providers.Unavailable)
			snap, err := again(t.Context(), p, vm.ID)
			require.NoError(t, err)
			snaps, err := s.Snapshots("vm")
			require.NoError(t, err)
			require.Len(t, snaps, 1)
			require.Equal(t, string(snap.ID), snaps[0].ID)
		})
	}
}

func TestGivingUpASnapshotCancelsItsTask(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, mib)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", Task: true, Delay: vspheretest.Duration(time.Hour)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := p.Snapshot(ctx, vm.ID, providers.SnapshotOptions{Key: "k"})
		ended <- err
	}()
	calls := func(method string) int { return s.Calls()[method] }
	require.True(t, eventually(t, func() bool { return calls("CreateSnapshot_Task") == 1 }))
	asked := calls("RetrievePropertiesEx")
	require.True(t, eventually(t, func() bool { return calls("RetrievePropertiesEx") > asked+1 })) // for the state of the task
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Equal(t, 1, calls("CancelTask"))
}

func TestTwoSnapshotsAtOnce(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TaskDelay: 50 * time.Millisecond,
		VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, mib)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	var g errgroup.Group
	for i := range 4 {
		g.Go(func() error {
			return patiently(func() error {
				_, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: fmt.Sprint("job/", i)})
				return err
			})
		})
	}
	require.NoError(t, g.Wait())
	snaps, err := s.Snapshots("vm")
	require.NoError(t, err)
	require.Len(t, snaps, 4)
}
