package vspheretest_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

// one is a server with the VM "web-01" of one disk with the given content.
func one(t *testing.T, content []byte) *vspheretest.Server {
	return vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{
		Name: "web-01", Disks: []vspheretest.Disk{{Content: vspheretest.FromBytes(content)}},
	}}})
}

func TestSnapshotFreezesTheBase(t *testing.T) {
	before := pattern(3*MiB, 1)
	s := one(t, before)
	c := login(t, s)
	vm := c.vm("web-01")
	require.Equal(t, []string{"[datastore1] web-01/web-01.vmdk"}, c.liveChain(vm, 0))

	ref := c.snapshot(vm, "before")
	require.Equal(t, []string{"[datastore1] web-01/web-01-000001.vmdk", "[datastore1] web-01/web-01.vmdk"}, c.liveChain(vm, 0))
	require.Equal(t, []string{"[datastore1] web-01/web-01.vmdk"}, c.snapshotChain(ref, 0))

	require.NoError(t, s.GuestWrite("web-01", 0, 1*MiB+7, []byte("written by the guest")))
	after := slices.Clone(before)
	copy(after[1*MiB+7:], "written by the guest")

	live, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	frozen, err := s.DiskAt("web-01", 0, "before")
	require.NoError(t, err)
	require.True(t, bytes.Equal(after, content(t, live)))
	require.True(t, bytes.Equal(before, content(t, frozen)))
	_, flat, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "")
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, flat), "the base must not change while there is a snapshot")

	c.removeSnapshot(vm, ref)
	require.Equal(t, []string{"[datastore1] web-01/web-01.vmdk"}, c.liveChain(vm, 0))
	require.True(t, bytes.Equal(after, content(t, live)), "the guest must not notice the consolidation")
	_, flat, err = c.get("datastore1", "web-01/web-01-flat.vmdk", "")
	require.NoError(t, err)
	require.True(t, bytes.Equal(after, flat), "the delta is now in the base")
	_, err = frozen.ReadAt(make([]byte, 1), 0)
	require.ErrorContains(t, err, "has been removed")

	files, err := filepath.Glob(filepath.Join(s.Dir(), "datastores", "DC0", "datastore1", "web-01", "*-000001*"))
	require.NoError(t, err)
	require.Empty(t, files, "no delta is left over")
	var o mo.VirtualMachine
	c.props(vm, &o, "snapshot", "rootSnapshot", "runtime.consolidationNeeded")
	require.Nil(t, o.Snapshot)
	require.Empty(t, o.RootSnapshot)
	require.False(t, o.Runtime.ConsolidationNeeded)
}

func TestSnapshotsMakeAChain(t *testing.T) {
	truth := pattern(2*MiB, 1)
	s := one(t, truth)
	c := login(t, s)
	vm := c.vm("web-01")
	write := func(off int64, text string) []byte {
		require.NoError(t, s.GuestWrite("web-01", 0, off, []byte(text)))
		truth = slices.Clone(truth)
		copy(truth[off:], text)
		return truth
	}
	atA := truth
	a := c.snapshot(vm, "a")
	atB := write(100, "after a")
	b := c.snapshot(vm, "b")
	atC := write(70_000, "after b, in another grain")
	c.snapshot(vm, "c")
	now := write(90, "after c, over what came before")

	check := func(snapshot string, want []byte) {
		t.Helper()
		image, err := s.DiskAt("web-01", 0, snapshot)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, content(t, image)), "disk at %s", snapshot)
	}
	live := func() {
		t.Helper()
		image, err := s.Disk("web-01", 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(now, content(t, image)), "disk now")
	}
	check("a", atA)
	check("b", atB)
	check("c", atC)
	live()

	var o mo.VirtualMachine
	c.props(vm, &o, "snapshot")
	require.Len(t, o.Snapshot.RootSnapshotList, 1)
	root := o.Snapshot.RootSnapshotList[0]
	require.Equal(t, "a", root.Name)
	require.Equal(t, "b", root.ChildSnapshotList[0].Name)
	require.Equal(t, "c", root.ChildSnapshotList[0].ChildSnapshotList[0].Name)

	c.removeSnapshot(vm, b) // in the middle: c's layer is merged down
	check("a", atA)
	check("c", atC)
	live()
	c.removeSnapshot(vm, a) // the oldest: the base takes what came after it
	check("c", atC)
	live()
	require.Len(t, c.liveChain(vm, 0), 2)

	task, err := vm.RemoveAllSnapshot(c.ctx, nil)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	live()
	require.Len(t, c.liveChain(vm, 0), 1)
	left, err := s.Snapshots("")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestRevertGoesBackAndBranches(t *testing.T) {
	before := pattern(1*MiB, 1)
	s := one(t, before)
	c := login(t, s)
	vm := c.vm("web-01")
	c.snapshot(vm, "a")
	require.NoError(t, s.GuestWrite("web-01", 0, 0, []byte("lost by the revert")))
	task, err := vm.RevertToSnapshot(c.ctx, "a", true)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	live, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, content(t, live)))
	require.Len(t, c.liveChain(vm, 0), 2, "a fresh delta on the frozen base")

	// A second branch on a: neither sees what the other writes.
	require.NoError(t, s.GuestWrite("web-01", 0, 0, []byte("first")))
	c.snapshot(vm, "b")
	task, err = vm.RevertToSnapshot(c.ctx, "a", true)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	require.NoError(t, s.GuestWrite("web-01", 0, 0, []byte("other")))
	first, err := s.DiskAt("web-01", 0, "b")
	require.NoError(t, err)
	require.Equal(t, "first", string(content(t, first)[:5]))
	require.Equal(t, "other", string(content(t, live)[:5]))
	task, err = vm.RemoveAllSnapshot(c.ctx, nil)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	require.Equal(t, "other", string(content(t, live)[:5]))
	require.Len(t, c.liveChain(vm, 0), 1)
}

func TestSnapshotRemovedWithoutConsolidationLeavesADelta(t *testing.T) {
	s := one(t, pattern(1*MiB, 1))
	c := login(t, s)
	vm := c.vm("web-01")
	ref := c.snapshot(vm, "a")
	require.NoError(t, s.GuestWrite("web-01", 0, 5, []byte("x")))
	no := false
	task, err := vm.RemoveSnapshot(c.ctx, ref.Value, false, &no)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	var o mo.VirtualMachine
	c.props(vm, &o, "runtime.consolidationNeeded", "snapshot")
	require.Nil(t, o.Snapshot)
	require.True(t, o.Runtime.ConsolidationNeeded)
	require.Len(t, c.liveChain(vm, 0), 2)

	res, err := methods.ConsolidateVMDisks_Task(c.ctx, c.Client, &types.ConsolidateVMDisks_Task{This: vm.Reference()})
	require.NoError(t, err)
	require.NoError(t, waitTask(c, res.Returnval))
	require.Len(t, c.liveChain(vm, 0), 1)
	c.props(vm, &o, "runtime.consolidationNeeded")
	require.False(t, o.Runtime.ConsolidationNeeded)
	live, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	require.Equal(t, byte('x'), content(t, live)[5])
}

func TestIndependentDiskHasNoPartInSnapshots(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{
		{Size: MiB}, {Size: MiB, Mode: "independent_persistent"},
	}}}})
	c := login(t, s)
	vm := c.vm("web-01")
	c.snapshot(vm, "a")
	require.Len(t, c.liveChain(vm, 0), 2)
	require.Equal(t, []string{"[datastore1] web-01/web-01_1.vmdk"}, c.liveChain(vm, 1))
	require.NoError(t, s.GuestWrite("web-01", 1, 0, []byte("straight into the base")))
	_, body, err := c.get("datastore1", "web-01/web-01_1-flat.vmdk", "bytes=0-7")
	require.NoError(t, err)
	require.Equal(t, "straight", string(body))
	_, err = s.DiskAt("web-01", 1, "a")
	require.ErrorContains(t, err, "no part")
}

func TestRemovedSnapshotIsGone(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	vm := c.vm("web-01")
	ref := c.snapshot(vm, "a")
	c.removeSnapshot(vm, ref)
	_, err := methods.RemoveSnapshot_Task(c.ctx, c.Client, &types.RemoveSnapshot_Task{This: ref})
	requireFault(t, err, &types.ManagedObjectNotFound{})
	var o mo.VirtualMachineSnapshot
	err = c.PropertyCollector().RetrieveOne(c.ctx, ref, []string{"config"}, &o)
	requireFault(t, err, &types.ManagedObjectNotFound{})
}

func TestLayoutTellsTheChainAndTheSpace(t *testing.T) {
	data := pattern(2*MiB, 1)
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{
		{Size: 64 * MiB, Content: vspheretest.FromBytes(data)},
	}}}})
	c := login(t, s)
	vm := c.vm("web-01")
	used := func() (files map[string]int64, committed int64, chain int) {
		var o mo.VirtualMachine
		c.props(vm, &o, "layoutEx", "summary.storage")
		files = map[string]int64{}
		for _, f := range o.LayoutEx.File {
			files[f.Name] = f.Size
		}
		return files, o.Summary.Storage.Committed, len(o.LayoutEx.Disk[0].Chain)
	}
	files, committed, links := used()
	require.Equal(t, 1, links)
	require.InDelta(t, 2*MiB, files["[datastore1] web-01/web-01-flat.vmdk"], 256<<10, "a thin disk takes what was written")
	require.InDelta(t, 2*MiB, committed, 512<<10)
	c.snapshot(vm, "a")
	files, _, links = used()
	require.Equal(t, 2, links)
	require.Contains(t, files, "[datastore1] web-01/web-01-000001-delta.vmdk")
}

func TestGuestWriteOutsideTheDiskIsRefused(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	require.ErrorContains(t, s.GuestWrite("web-01", 0, MiB-1, []byte("ab")), "1048576")
	require.ErrorContains(t, s.GuestWrite("web-01", 0, -1, []byte("a")), "-1")
	require.ErrorContains(t, s.GuestWrite("web-01", 1, 0, []byte("a")), "no disk 1")
	require.ErrorContains(t, s.GuestWrite("web-02", 0, 0, []byte("a")), "no VM")
	image, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	n, err := image.ReadAt(make([]byte, 10), MiB-4)
	require.Equal(t, 4, n)
	require.ErrorIs(t, err, io.EOF)
}

func TestSnapshotFailsWhereThereIsNoDisk(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	vm := c.vm("web-01")
	require.NoError(t, os.RemoveAll(filepath.Join(s.Dir(), "datastores", "DC0", "datastore1", "web-01")))
	task, err := vm.CreateSnapshot(c.ctx, "a", "", false, false)
	require.NoError(t, err)
	requireFault(t, task.Wait(c.ctx), &types.FileFault{})
	left, err := s.Snapshots("web-01")
	require.NoError(t, err)
	require.Empty(t, left)
}
