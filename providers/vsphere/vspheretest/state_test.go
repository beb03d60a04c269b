package vspheretest_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

func TestSecondRunHasTheSameVMs(t *testing.T) {
	o := vspheretest.Options{Dir: t.TempDir(), TLS: true, VMs: []vspheretest.VM{
		{Name: "web/01", Folder: "team/web", Disks: []vspheretest.Disk{{Content: vspheretest.FromBytes(pattern(2*MiB, 1))}, {Size: MiB, Thick: true}}},
		{Name: "doomed", Disks: []vspheretest.Disk{{Size: MiB}}},
		{Name: "web-02", PoweredOff: true},
	}}
	type facts struct {
		id, print string
		power     types.VirtualMachinePowerState
		chain     []string
		a, b, now []byte
		snapshots []vspheretest.Snapshot
		uuid      string
	}
	look := func(s *vspheretest.Server) facts {
		c := login(t, s)
		vm := c.vm("/DC0/vm/team/web/web%2f01")
		f := facts{id: vm.Reference().Value, print: s.Thumbprint(), chain: c.liveChain(vm, 0)}
		for _, at := range []struct {
			snapshot string
			to       *[]byte
		}{{"a", &f.a}, {"b", &f.b}} {
			image, err := s.DiskAt("web/01", 0, at.snapshot)
			require.NoError(t, err)
			*at.to = content(t, image)
		}
		image, err := s.Disk("web/01", 0)
		require.NoError(t, err)
		f.now = content(t, image)
		f.snapshots, err = s.Snapshots("")
		require.NoError(t, err)
		var o mo.VirtualMachine
		c.props(vm, &o, "runtime.powerState", "config.uuid", "snapshot")
		f.power, f.uuid = o.Runtime.PowerState, o.Config.Uuid
		require.Equal(t, f.snapshots[1].ID, o.Snapshot.CurrentSnapshot.Value)
		return f
	}
	first, err := vspheretest.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = first.Close() })
	c := login(t, first)
	vm := c.vm("/DC0/vm/team/web/web%2f01")
	c.snapshot(vm, "a")
	require.NoError(t, first.GuestWrite("web/01", 0, 100, []byte("after a")))
	c.snapshot(vm, "b")
	require.NoError(t, first.GuestWrite("web/01", 0, MiB, []byte("after b")))
	gone := c.snapshot(vm, "gone")
	c.removeSnapshot(vm, gone)
	task, err := vm.PowerOff(c.ctx)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	require.NoError(t, first.DeleteVM("doomed"))
	before := look(first)
	require.Len(t, before.chain, 3)
	require.Equal(t, types.VirtualMachinePowerStatePoweredOff, before.power)

	// Without Close, as after a kill: everything was kept when it happened.
	o.VMs = slices.Clone(o.VMs)
	o.VMs[0].Disks = nil // what is there stays as it is
	o.VMs = append(o.VMs[:1], o.VMs[2:]...)
	second, err := vspheretest.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = second.Close() })
	after := look(second)
	require.True(t, bytes.Equal(before.a, after.a) && bytes.Equal(before.b, after.b) && bytes.Equal(before.now, after.now), "content")
	before.a, before.b, before.now, after.a, after.b, after.now = nil, nil, nil, nil, nil, nil
	require.Equal(t, before, after)

	// It goes on from there, and never gives an id twice.
	c = login(t, second)
	vm = c.vm("/DC0/vm/team/web/web%2f01")
	next := c.snapshot(vm, "next")
	require.NotEqual(t, gone.Value, next.Value)
	require.NoError(t, dropAll(c, vm))
	require.Len(t, c.liveChain(vm, 0), 1)
	id, err := second.AddVM(vspheretest.VM{Name: "doomed"})
	require.NoError(t, err)
	require.NotContains(t, []string{before.id}, id)
	_, err = second.Disk("web-02", 0)
	require.ErrorContains(t, err, "has no disk 0")
}
