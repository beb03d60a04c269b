package vspheretest_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

// track switches the tracking of a VM on or off.
func (c *client) track(vm *object.VirtualMachine, on bool) {
	c.t.Helper()
	task, err := vm.Reconfigure(c.ctx, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(on)})
	require.NoError(c.t, err)
	require.NoError(c.t, task.Wait(c.ctx))
}

// changeIDs is the change ids of the disks of a snapshot.
func (c *client) changeIDs(snap types.ManagedObjectReference) (out []string) {
	c.t.Helper()
	var o mo.VirtualMachineSnapshot
	c.props(snap, &o, "config.hardware.device")
	for _, d := range disks(o.Config.Hardware.Device) {
		b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		out = append(out, b.ChangeId)
		if b.Parent != nil {
			require.Empty(c.t, b.Parent.ChangeId, "what lies below is another point")
		}
	}
	return out
}

func (c *client) changed(vm *object.VirtualMachine, snap *types.ManagedObjectReference, off int64, id string) (types.DiskChangeInfo, error) {
	res, err := methods.QueryChangedDiskAreas(c.ctx, c.Client.Client, &types.QueryChangedDiskAreas{
		This: vm.Reference(), Snapshot: snap, DeviceKey: 2000, StartOffset: off, ChangeId: id,
	})
	if err != nil {
		return types.DiskChangeInfo{}, err
	}
	return res.Returnval, nil
}

func TestChangedAreas(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{ChangedAreas: 2, VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}}})
	c := login(t, s)
	vm := c.vm("web-01")
	none := c.snapshot(vm, "untracked")
	require.Equal(t, []string{""}, c.changeIDs(none))
	_, err := c.changed(vm, &none, 0, "*")
	requireFault(t, err, &types.FileFault{})
	c.removeSnapshot(vm, none)

	c.track(vm, true)
	var o mo.VirtualMachine
	c.props(vm, &o, "config.changeTrackingEnabled", "config.hardware.device")
	require.True(t, *o.Config.ChangeTrackingEnabled)
	require.Empty(t, disks(o.Config.Hardware.Device)[0].Backing.(*types.VirtualDiskFlatVer2BackingInfo).ChangeId, "a VM that runs is not tracked yet")
	first := c.snapshot(vm, "first")
	id := c.changeIDs(first)[0]
	require.Regexp(t, `^([0-9a-f]{2} ){7}[0-9a-f]{2}-([0-9a-f]{2} ){7}[0-9a-f]{2}/1$`, id)

	for _, off := range []int64{10, 70_000, 200_000, 400_000, MiB - 1} {
		require.NoError(t, s.GuestWrite("web-01", 0, off, []byte{1}))
	}
	second := c.snapshot(vm, "second")
	require.Equal(t, strings.TrimSuffix(id, "1")+"2", c.changeIDs(second)[0])
	page, err := c.changed(vm, &second, 0, id)
	require.NoError(t, err)
	require.Equal(t, types.DiskChangeInfo{StartOffset: 0, Length: 6 << 16, ChangedArea: []types.DiskChangeExtent{
		{Start: 0, Length: 2 << 16}, {Start: 3 << 16, Length: 1 << 16},
	}}, page, "neighbours are one area; the length says how far the page goes")
	page, err = c.changed(vm, &second, page.Length, id)
	require.NoError(t, err)
	require.Equal(t, types.DiskChangeInfo{StartOffset: 6 << 16, Length: 10 << 16, ChangedArea: []types.DiskChangeExtent{
		{Start: 6 << 16, Length: 1 << 16}, {Start: 15 << 16, Length: 1 << 16},
	}}, page)
	for property, ask := range map[string]func() (types.DiskChangeInfo, error){
		"the end of the disk": func() (types.DiskChangeInfo, error) { return c.changed(vm, &second, MiB, id) },
		"no snapshot":         func() (types.DiskChangeInfo, error) { return c.changed(vm, nil, 0, id) },
		"no change id":        func() (types.DiskChangeInfo, error) { return c.changed(vm, &second, 0, "nonsense") },
	} {
		_, err := ask()
		require.Error(t, err, property)
		requireFault(t, err, &types.InvalidArgument{})
	}
	for _, foreign := range []string{strings.Replace(id, "-", "+", 1), strings.TrimSuffix(id, "1") + "3"} {
		_, err = c.changed(vm, &second, 0, foreign)
		requireFault(t, err, &types.FileFault{})
	}
	require.NoError(t, s.ResetTracking("web-01"))
	_, err = c.changed(vm, &second, 0, id)
	requireFault(t, err, &types.FileFault{})
}

// A disk that grows keeps its content, and has zeros behind it.
func TestADiskGrows(t *testing.T) {
	before := pattern(MiB, 1)
	s := one(t, before)
	c := login(t, s)
	vm := c.vm("web-01")
	snap := c.snapshot(vm, "in the way")
	require.ErrorContains(t, s.ResizeDisk("web-01", 0, 2*MiB), "has snapshots")
	c.removeSnapshot(vm, snap)
	require.Error(t, s.ResizeDisk("web-01", 0, MiB-1024), "a disk does not shrink")
	require.NoError(t, s.ResizeDisk("web-01", 0, 2*MiB))
	var o mo.VirtualMachine
	c.props(vm, &o, "config.hardware.device")
	require.EqualValues(t, 2*MiB, disks(o.Config.Hardware.Device)[0].CapacityInBytes)
	image, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(before, make([]byte, MiB)...), content(t, image)))
	require.NoError(t, s.GuestDiscard("web-01", 0, 100, 2*MiB-200))
	after := content(t, image)
	require.True(t, bytes.Equal(before[:100], after[:100]))
	require.True(t, bytes.Equal(make([]byte, 2*MiB-100), after[100:]))
}

// A host that was killed begins its tracking anew, and still tracks.
func TestTrackingAfterARestart(t *testing.T) {
	o := vspheretest.Options{Dir: t.TempDir(), VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}}}
	s, err := vspheretest.New(o)
	require.NoError(t, err)
	c := login(t, s)
	c.track(c.vm("web-01"), true)
	id := c.changeIDs(c.snapshot(c.vm("web-01"), "first"))[0]
	c.CloseIdleConnections()
	require.NoError(t, s.Close())

	s = vspheretest.Start(t, o)
	c = login(t, s)
	vm := c.vm("web-01")
	second := c.snapshot(vm, "second")
	now := c.changeIDs(second)
	require.Len(t, now, 1)
	require.NotEmpty(t, now[0])
	_, err = c.changed(vm, &second, 0, id)
	requireFault(t, err, &types.FileFault{})
}

func TestDisksAndTrackingAreControlled(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	h := vspheretest.Control(s)
	for body, path := range map[string]string{
		`{"vm":"web-01","disk":0,"size":2097152}`: "/hypersim/disk/resize",
		`{"vm":"web-01"}`:                         "/hypersim/tracking/reset",
		`{"vm":"web-01","disk":0,"every":2}`:      "/hypersim/tracking/forget",
	} {
		require.Equal(t, 200, post(h, path, body), path)
		require.Equal(t, 400, post(h, path, `{"vm":"nobody"}`), path)
	}
	image, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	require.EqualValues(t, 2*MiB, image.Size())
}

// post is the status of the answer to a request.
func post(h http.Handler, path, body string) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return w.Code
}
