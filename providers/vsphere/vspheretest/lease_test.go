package vspheretest_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

// two is a server with the VM "web-01" of two disks: 40 MiB + 1 KiB with content here and there, and
// one of a size that is no multiple of anything.
func two(t *testing.T, o vspheretest.Options, off bool) *vspheretest.Server {
	o.VMs = []vspheretest.VM{{Name: "web-01", PoweredOff: off, Disks: []vspheretest.Disk{
		{Size: 40*MiB + 1024, Content: func(w io.WriterAt, _ int64) error {
			for _, off := range []int64{0, 5*MiB - 100, 39 * MiB, 40*MiB + 1000} {
				if _, err := w.WriteAt(pattern(24, byte(off)), off); err != nil {
					return err
				}
			}
			_, err := w.WriteAt(pattern(MiB, 3), 7*MiB)
			return err
		}},
		{Size: MiB + 3072, Content: vspheretest.FromBytes(pattern(MiB+3072, 9)), Controller: "sata"},
	}}}
	return vspheretest.Start(t, o)
}

// download reads a lease's URL, without any session.
func download(t *testing.T, url string) ([]byte, *http.Response, error) {
	t.Helper()
	res, err := plain(t).Get(url)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return body, res, err
}

func (c *client) ready(l *nfc.Lease) *nfc.LeaseInfo {
	c.t.Helper()
	info, err := l.Wait(c.ctx, nil)
	require.NoError(c.t, err)
	return info
}

func (c *client) exportSnapshot(vm *object.VirtualMachine, ref types.ManagedObjectReference) *nfc.Lease {
	c.t.Helper()
	l, err := vm.ExportSnapshot(c.ctx, &ref)
	require.NoError(c.t, err)
	return l
}

// unpack makes a raw image of a VMDK, with the reference tool.
func unpack(t *testing.T, vmdk []byte) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img, the reference for VMDK, is not installed")
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.vmdk"), filepath.Join(dir, "out.raw")
	require.NoError(t, os.WriteFile(in, vmdk, 0o600))
	for _, args := range [][]string{{"check", "-f", "vmdk", in}, {"convert", "-f", "vmdk", "-O", "raw", in, out}} {
		text, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
		require.NoError(t, err, "%s", text)
	}
	raw, err := os.ReadFile(out)
	require.NoError(t, err)
	return raw
}

func TestExportSnapshotSendsTheDisksOfTheSnapshot(t *testing.T) {
	s := two(t, vspheretest.Options{}, false)
	c := login(t, s)
	vm := c.vm("web-01")
	var want [2][]byte
	for i := range want {
		image, err := s.Disk("web-01", i)
		require.NoError(t, err)
		want[i] = content(t, image)
	}
	ref := c.snapshot(vm, "a")
	require.NoError(t, s.GuestWrite("web-01", 0, 12345, []byte("not in the snapshot")))
	l := c.exportSnapshot(vm, ref)
	info := c.ready(l)
	require.Len(t, info.DeviceUrl, 2)
	require.Equal(t, int32(300), info.LeaseTimeout)
	require.Equal(t, int64(len(want[0])+len(want[1]))/1024, info.TotalDiskCapacityInKB)
	require.Equal(t, "/"+vm.Reference().Value+"/ParaVirtualSCSIController0:0", info.DeviceUrl[0].Key)
	require.Equal(t, "/"+vm.Reference().Value+"/VirtualAHCIController0:0", info.DeviceUrl[1].Key)
	require.Positive(t, info.DeviceUrl[0].FileSize)

	var streams [2][]byte
	for i, u := range info.DeviceUrl {
		require.Contains(t, u.Url, "/nfc/")
		var res *http.Response
		var err error
		streams[i], res, err = download(t, u.Url)
		require.NoError(t, err)
		require.Equal(t, 200, res.StatusCode)
		require.Equal(t, int64(-1), res.ContentLength, "nobody knows the length beforehand")
		require.Empty(t, res.Header.Get("Accept-Ranges"))
		again, _, err := download(t, u.Url)
		require.NoError(t, err)
		require.True(t, bytes.Equal(streams[i], again), "the same each time")
		raw := unpack(t, streams[i])
		require.True(t, bytes.Equal(want[i], raw[:len(want[i])]))
		require.Less(t, len(raw)-len(want[i]), 512)
	}
	manifest, err := l.GetManifest(c.ctx)
	require.NoError(t, err)
	require.Len(t, manifest, 2)
	for i, m := range manifest {
		sum1, sum256 := sha1.Sum(streams[i]), sha256.Sum256(streams[i])
		require.Equal(t, hex.EncodeToString(sum1[:]), m.Sha1)
		require.Equal(t, hex.EncodeToString(sum256[:]), m.Checksum)
		require.Equal(t, "sha256", m.ChecksumType)
		require.Equal(t, info.DeviceUrl[i].Key, m.Key)
		require.Equal(t, int64(len(streams[i])), m.Size)
		require.Equal(t, int64(len(want[i])), m.Capacity)
		require.Positive(t, m.PopulatedSize)
	}
	require.NoError(t, l.Progress(c.ctx, 50))
	require.Equal(t, 1, s.Leases())
	require.NoError(t, l.Complete(c.ctx))
	require.Zero(t, s.Leases())
	_, res, err := download(t, info.DeviceUrl[0].Url)
	require.NoError(t, err)
	require.Equal(t, 404, res.StatusCode, "the address is void")
	requireFault(t, l.Progress(c.ctx, 60), &types.ManagedObjectNotFound{})
}

func TestLeaseHasNoRanges(t *testing.T) {
	s := two(t, vspheretest.Options{}, false)
	c := login(t, s)
	vm := c.vm("web-01")
	info := c.ready(c.exportSnapshot(vm, c.snapshot(vm, "a")))
	all, _, err := download(t, info.DeviceUrl[1].Url)
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, info.DeviceUrl[1].Url, nil)
	require.NoError(t, err)
	req.Header.Set("Range", "bytes=100-199")
	res, err := plain(t).Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, 200, res.StatusCode)
	require.True(t, bytes.Equal(all, body))
	head, err := plain(t).Head(info.DeviceUrl[1].Url)
	require.NoError(t, err)
	head.Body.Close()
	require.Equal(t, 200, head.StatusCode)
	require.Equal(t, int64(-1), head.ContentLength)
}

func TestExportVMWantsItOffAndHoldsIt(t *testing.T) {
	s := two(t, vspheretest.Options{}, false)
	c := login(t, s)
	vm := c.vm("web-01")
	_, err := vm.Export(c.ctx)
	requireFault(t, err, &types.InvalidPowerState{})
	task, err := vm.PowerOff(c.ctx)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
	l, err := vm.Export(c.ctx)
	require.NoError(t, err)
	info := c.ready(l)
	_, err = vm.PowerOn(c.ctx)
	requireFault(t, err, &types.TaskInProgress{})
	_, err = vm.Export(c.ctx)
	requireFault(t, err, &types.TaskInProgress{})
	body, _, err := download(t, info.DeviceUrl[1].Url)
	require.NoError(t, err)
	require.True(t, bytes.Equal(pattern(MiB+3072, 9), unpack(t, body)[:MiB+3072]))
	require.NoError(t, l.Abort(c.ctx, nil))
	_, res, err := download(t, info.DeviceUrl[1].Url)
	require.NoError(t, err)
	require.Equal(t, 404, res.StatusCode)
	task, err = vm.PowerOn(c.ctx)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
}

func TestLeaseTimesOutWithoutProgress(t *testing.T) {
	s := two(t, vspheretest.Options{LeaseTimeout: 400 * time.Millisecond}, true)
	c := login(t, s)
	vm := c.vm("web-01")
	l, err := vm.Export(c.ctx)
	require.NoError(t, err)
	info := c.ready(l)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		require.NoError(t, l.Progress(c.ctx, 1), "progress keeps it alive")
	}
	eventually(t, func() bool {
		p, err := l.Properties(c.ctx, "state", "error")
		require.NoError(t, err)
		return p.State == types.HttpNfcLeaseStateError && p.Error != nil
	})
	requireFault(t, l.Progress(c.ctx, 2), &types.Timedout{})
	_, res, err := download(t, info.DeviceUrl[0].Url)
	require.NoError(t, err)
	require.Equal(t, 404, res.StatusCode)
	task, err := vm.PowerOn(c.ctx)
	require.NoError(t, err, "the VM is free again")
	require.NoError(t, task.Wait(c.ctx))
}

func TestLeaseFaults(t *testing.T) {
	s := two(t, vspheretest.Options{}, true)
	c := login(t, s)
	vm := c.vm("web-01")
	inject(t, s, vspheretest.Fault{Call: "ExportVm", Task: true, Fault: "FileLocked", Message: "it is locked", Times: 1})
	l, err := vm.Export(c.ctx)
	require.NoError(t, err)
	_, err = l.Wait(c.ctx, nil)
	require.ErrorContains(t, err, "it is locked")

	in := inject(t, s, vspheretest.Fault{Call: "ExportVm", Task: true, Stall: true})
	l, err = vm.Export(c.ctx)
	require.NoError(t, err)
	p, err := l.Properties(c.ctx, "state")
	require.NoError(t, err)
	require.Equal(t, types.HttpNfcLeaseStateInitializing, p.State)
	requireFault(t, l.Progress(c.ctx, 0), &types.InvalidState{})
	require.NoError(t, l.Abort(c.ctx, nil))
	in.Remove()

	cut, flip := int64(5000), int64(5000)
	inject(t, s, vspheretest.Fault{File: "disk-1.vmdk", CutAfter: &cut, Times: 1})
	inject(t, s, vspheretest.Fault{File: "disk-1.vmdk", FlipAt: &flip, Skip: 1, Times: 1})
	l, err = vm.Export(c.ctx)
	require.NoError(t, err)
	info := c.ready(l)
	body, _, err := download(t, info.DeviceUrl[1].Url)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Len(t, body, 5000)
	manifest, err := l.GetManifest(c.ctx)
	require.NoError(t, err)
	require.Empty(t, manifest, "only what was sent whole is in it")
	body, _, err = download(t, info.DeviceUrl[1].Url)
	require.NoError(t, err)
	manifest, err = l.GetManifest(c.ctx)
	require.NoError(t, err)
	sum := sha256.Sum256(body)
	require.NotEqual(t, hex.EncodeToString(sum[:]), manifest[0].Checksum, "an inverted byte shows in the manifest")
	require.Len(t, s.Requests(), 2)
	require.NoError(t, s.DeleteVM("web-01"))
	requireFault(t, l.Progress(c.ctx, 1), &types.ManagedObjectNotFound{})
}

func TestLeaseIsLostWhileItIsRead(t *testing.T) {
	s := two(t, vspheretest.Options{}, true)
	c := login(t, s)
	inject(t, s, vspheretest.Fault{File: "disk-*.vmdk", Rate: 100_000})
	l, err := c.vm("web-01").Export(c.ctx)
	require.NoError(t, err)
	info := c.ready(l)
	broken := make(chan error, 1)
	go func() {
		_, _, err := download(t, info.DeviceUrl[1].Url)
		broken <- err
	}()
	eventually(t, func() bool { return s.Served()["[datastore1] web-01/disk-1.vmdk"].Peak == 1 })
	require.NoError(t, l.Abort(c.ctx, nil))
	require.Error(t, <-broken)
}

const importOVF = `<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
<References><File ovf:href="d.vmdk" ovf:id="f1"/></References>
<DiskSection><Info/><Disk ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="d1" ovf:fileRef="f1"/></DiskSection>
<VirtualSystem ovf:id="x"><Info/><Name>x</Name><OperatingSystemSection ovf:id="1"><Info/></OperatingSystemSection>
<VirtualHardwareSection><Info/><System><vssd:ElementName>V</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
<vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType></System>
<Item><rasd:ElementName>c</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:ElementName>m</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
<Item><rasd:ElementName>s</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk0</rasd:ElementName><rasd:HostResource>ovf:/disk/d1</rasd:HostResource>
<rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>`

func TestUploadOfAnImportIsStored(t *testing.T) {
	// What is uploaded is what an export of a disk of the same size sends.
	data := pattern(2*MiB, 5)
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{
		Name: "source", PoweredOff: true, Disks: []vspheretest.Disk{{Content: vspheretest.FromBytes(data)}},
	}}})
	c := login(t, s)
	export, err := c.vm("source").Export(c.ctx)
	require.NoError(t, err)
	stream, _, err := download(t, c.ready(export).DeviceUrl[0].Url)
	require.NoError(t, err)
	require.NoError(t, export.Complete(c.ctx))

	finder := find.NewFinder(c.Client.Client)
	pool, err := finder.ResourcePool(c.ctx, "/DC0/host/DC0_C0/Resources")
	require.NoError(t, err)
	ds, err := finder.Datastore(c.ctx, "/DC0/datastore/datastore1")
	require.NoError(t, err)
	folder, err := finder.Folder(c.ctx, "/DC0/vm")
	require.NoError(t, err)
	spec, err := ovf.NewManager(c.Client.Client).CreateImportSpec(c.ctx, importOVF, pool, ds, &types.OvfCreateImportSpecParams{EntityName: "copy", DiskProvisioning: "thin"})
	require.NoError(t, err)
	require.Empty(t, spec.Error)
	l, err := pool.ImportVApp(c.ctx, spec.ImportSpec, folder, nil)
	require.NoError(t, err)
	info, err := l.Wait(c.ctx, spec.FileItem)
	require.NoError(t, err)
	upload := func(data []byte) int {
		res, err := plain(t).Post(info.Items[0].URL.String(), "application/x-vnd.vmware-streamVmdk", bytes.NewReader(data))
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode
	}
	require.Equal(t, 500, upload(bytes.Repeat([]byte("rubbish "), 100)))
	require.Equal(t, 500, upload(stream[:len(stream)/2]))
	require.Equal(t, 200, upload(stream))
	manifest, err := l.GetManifest(c.ctx)
	require.NoError(t, err)
	sum := sha1.Sum(stream)
	require.Equal(t, hex.EncodeToString(sum[:]), manifest[0].Sha1)
	require.NoError(t, l.Complete(c.ctx))

	image, err := s.Disk("copy", 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, content(t, image)))
	vm := c.vm("copy")
	ref := c.snapshot(vm, "a") // it is a VM as any other
	flat := strings.TrimSuffix(strings.TrimPrefix(c.snapshotChain(ref, 0)[0], "[datastore1] "), ".vmdk") + "-flat.vmdk"
	_, body, err := c.get("datastore1", flat, "")
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, body))
}
