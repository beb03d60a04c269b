package vspheretest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

func TestInventoryIsWhatWasAskedFor(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		Datacenters: []string{"north", "south"}, Clusters: 2, Hosts: 3,
		Datastores: []vspheretest.Datastore{{Name: "fast"}, {Name: "nas", Type: "NFS"}, {Name: "vsan", Type: "vsan", Datacenter: "south"}},
		VMs: []vspheretest.VM{
			{Name: "web-01", Folder: "web/blue"},
			{Name: "web-02", Datacenter: "south", Datastore: "nas", Folder: "web"},
			{Name: "gold", Template: true},
		},
	})
	c := login(t, s)
	finder := find.NewFinder(c.Client.Client)
	list := func(kind string) []string {
		t.Helper()
		v, err := view.NewManager(c.Client.Client).CreateContainerView(c.ctx, c.ServiceContent.RootFolder, []string{kind}, true)
		require.NoError(t, err)
		var objs []mo.ManagedEntity
		require.NoError(t, v.Retrieve(c.ctx, []string{kind}, []string{"name"}, &objs))
		var names []string
		for _, o := range objs {
			names = append(names, o.Name)
		}
		slices.Sort(names)
		return names
	}
	require.Equal(t, []string{"gold", "web-01", "web-02"}, list("VirtualMachine"), "nothing that was not asked for")
	require.Equal(t, []string{"north", "south"}, list("Datacenter"))
	require.Len(t, list("HostSystem"), 12)
	require.Len(t, list("ClusterComputeResource"), 4)
	require.Equal(t, []string{"fast", "fast", "nas", "nas", "vsan"}, list("Datastore"))
	_, err := finder.VirtualMachine(c.ctx, "/north/vm/web/blue/web-01")
	require.NoError(t, err)

	ds, err := finder.Datastore(c.ctx, "/south/datastore/vsan")
	require.NoError(t, err)
	var o mo.Datastore
	c.props(ds, &o, "summary", "info")
	require.Equal(t, "vsan", o.Summary.Type)
	require.IsType(t, &types.VsanDatastoreInfo{}, o.Info)

	gold, err := finder.VirtualMachine(c.ctx, "/north/vm/gold")
	require.NoError(t, err)
	template, err := gold.IsTemplate(c.ctx)
	require.NoError(t, err)
	require.True(t, template)
}

func TestVMIsDescribed(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{
		Name: "db-01", NumCPU: 8, MemoryMB: 32768, GuestID: "rhel9_64Guest", GuestName: "Red Hat Enterprise Linux 9 (64-bit)",
		Firmware: "efi", Hardware: "vmx-21", Annotation: "the database", Hostname: "db-01.example.com",
		Addresses: []string{"192.0.2.7", "2001:db8::7"}, ISO: "[datastore1] iso/rhel.iso", NICs: 2,
		Disks: []vspheretest.Disk{
			{Size: 10 << 30}, {Size: 20 << 30, Thick: true}, {Size: 1 << 30, Controller: "lsilogic-sas"},
			{Size: 1 << 30, Controller: "sata"}, {Size: 1 << 30, Controller: "nvme"}, {Size: 1 << 30, Controller: "ide"},
		},
	}}})
	c := login(t, s)
	var o mo.VirtualMachine
	c.props(c.vm("db-01"), &o, "name", "config", "runtime", "guest", "summary", "capability")
	require.Equal(t, int32(8), o.Config.Hardware.NumCPU)
	require.Equal(t, int32(32768), o.Summary.Config.MemorySizeMB)
	require.Equal(t, "Red Hat Enterprise Linux 9 (64-bit)", o.Summary.Config.GuestFullName)
	require.Equal(t, "efi", o.Config.Firmware)
	require.Equal(t, "vmx-21", o.Config.Version)
	require.Equal(t, "the database", o.Config.Annotation)
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, o.Runtime.PowerState)
	require.Equal(t, "db-01.example.com", o.Guest.HostName)
	require.Equal(t, []string{"192.0.2.7", "2001:db8::7"}, o.Guest.Net[0].IpAddress)
	require.True(t, o.Capability.ChangeTrackingSupported)

	devices := object.VirtualDeviceList(o.Config.Hardware.Device)
	got := map[string][3]int64{}
	for _, d := range disks(devices) {
		got[devices.Name(d)] = [3]int64{int64(d.Key), d.CapacityInBytes, int64(*d.UnitNumber)}
	}
	require.Equal(t, map[string][3]int64{
		"disk-1000-0":  {2000, 10 << 30, 0},
		"disk-1000-1":  {2001, 20 << 30, 1},
		"disk-1001-0":  {2016, 1 << 30, 0},
		"disk-15000-0": {16000, 1 << 30, 0},
		"disk-31000-0": {32000, 1 << 30, 0},
		"disk-200-0":   {3000, 1 << 30, 0},
	}, got)
	var labels []string
	for _, d := range disks(devices) {
		labels = append(labels, d.DeviceInfo.GetDescription().Label)
	}
	require.Equal(t, "Hard disk 1", labels[0])
	require.Len(t, devices.SelectByType((*types.VirtualEthernetCard)(nil)), 2)
	cds := devices.SelectByType((*types.VirtualCdrom)(nil))
	require.Len(t, cds, 1)
	require.True(t, cds[0].GetVirtualDevice().Connectable.Connected)
}

func TestManyDisksTakeSeveralControllers(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "db-01", Disks: slices.Repeat([]vspheretest.Disk{{Size: MiB}}, 20)}}})
	c := login(t, s)
	var o mo.VirtualMachine
	c.props(c.vm("db-01"), &o, "config.hardware.device")
	all := disks(o.Config.Hardware.Device)
	require.Len(t, all, 20)
	require.Equal(t, int32(1000), all[14].ControllerKey)
	require.Equal(t, int32(15), *all[14].UnitNumber, "7 is the controller's own")
	require.Equal(t, int32(1001), all[15].ControllerKey)
	require.Equal(t, int32(2016), all[15].Key)
}

// Names that break programs which build paths, URLs or shell lines of them.
var hardNames = []string{
	"plain", "with space", "a/b\\c", "100% done", "it's \"quoted\"", "ünïcødé 日本語 🚀", "#hash?query&amp;=+",
	"..", "[brackets] (x)", "-rf", strings.Repeat("long name ", 20)[:200], strings.Repeat("長", 200), "new\nline", "<xml>",
}

func TestNamesOfAllKinds(t *testing.T) {
	var vms []vspheretest.VM
	for i, name := range hardNames {
		vms = append(vms, vspheretest.VM{Name: name, Disks: []vspheretest.Disk{{Content: vspheretest.FromBytes(pattern(MiB, byte(i)))}}})
	}
	s := vspheretest.Start(t, vspheretest.Options{VMs: vms})
	c := login(t, s)
	v, err := view.NewManager(c.Client.Client).CreateContainerView(c.ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	require.NoError(t, err)
	var objs []mo.VirtualMachine
	require.NoError(t, v.Retrieve(c.ctx, []string{"VirtualMachine"}, []string{"name", "config.hardware.device", "summary.config.name"}, &objs))
	require.Len(t, objs, len(hardNames))
	unescape := strings.NewReplacer("%2f", "/", "%5c", `\`, "%25", "%")
	for _, o := range objs {
		name := unescape.Replace(o.Name)
		i := slices.Index(hardNames, name)
		require.GreaterOrEqual(t, i, 0, "%q", o.Name)
		require.NotContains(t, o.Name, "/")
		require.Equal(t, o.Name, o.Summary.Config.Name)

		vm := object.NewVirtualMachine(c.Client.Client, o.Self)
		ref := c.snapshot(vm, name)
		left, err := s.Snapshots(o.Self.Value)
		require.NoError(t, err)
		require.Equal(t, name, left[0].Name)
		var path object.DatastorePath
		require.True(t, path.FromString(c.snapshotChain(ref, 0)[0]))
		_, body, err := c.get(path.Datastore, strings.TrimSuffix(path.Path, ".vmdk")+"-flat.vmdk", "")
		require.NoError(t, err)
		require.True(t, bytes.Equal(pattern(MiB, byte(i)), body), "%q", name)
		c.removeSnapshot(vm, ref)
		require.NoError(t, s.DeleteVM(name))
	}
}

func TestVMsThatCannotBeMadeAreRefused(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}}})
	broken := func(io.WriterAt, int64) error { return errors.New("no such image") }
	for want, v := range map[string]vspheretest.VM{
		"there is one of that name": {Name: "web-01"},
		"needs a name":              {},
		"no datacenter":             {Name: "a", Datacenter: "mars"},
		"no datastore":              {Name: "a", Datastore: "mars"},
		"no such image":             {Name: "a", Disks: []vspheretest.Disk{{Content: broken}}},
		"size of":                   {Name: "a", Disks: []vspheretest.Disk{{}}},
		"longer than the disk":      {Name: "a", Disks: []vspheretest.Disk{{Size: 1024, Content: vspheretest.FromBytes(pattern(MiB, 1))}}},
		"unknown SCSI controller":   {Name: "a", Disks: []vspheretest.Disk{{Size: MiB, Controller: "floppy"}}},
	} {
		_, err := s.AddVM(v)
		require.ErrorContains(t, err, want)
	}
	entries, err := os.ReadDir(filepath.Join(s.Dir(), "datastores", "DC0", "datastore1"))
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing is left of them: only web-01 and the simulator's own folder")
	_, err = s.AddVM(vspheretest.VM{Name: "web-01", Folder: "other"})
	require.NoError(t, err, "the same name in another folder is fine")
	_, err = s.Disk("web-01", 0)
	require.ErrorContains(t, err, "several VMs")
}

func TestContent(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.img")
	f, err := os.Create(raw)
	require.NoError(t, err)
	_, err = f.WriteAt(pattern(MiB, 9), 5*MiB)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(40*MiB+100))
	require.NoError(t, f.Close())
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{
		{Content: vspheretest.FromFile(raw)},
		{Size: 64 * MiB, Content: vspheretest.Generated(1, 16*MiB)},
		{Size: 64 * MiB, Content: vspheretest.Generated(1, 16*MiB)},
		{Size: 64 * MiB, Content: vspheretest.Generated(2, 16*MiB)},
		{Size: 32 << 30},
	}}}})
	image := func(i int) *vspheretest.Image {
		image, err := s.Disk("web-01", i)
		require.NoError(t, err)
		return image
	}
	sum := func(i int) [32]byte { return sha256.Sum256(content(t, image(i))) }

	require.Equal(t, int64(40*MiB+1024), image(0).Size(), "rounded up to what the API can say")
	require.True(t, bytes.Equal(pattern(MiB, 9), content(t, image(0))[5*MiB:6*MiB]))
	require.Equal(t, sum(1), sum(2), "the same seed, the same disk")
	require.NotEqual(t, sum(1), sum(3))
	zeros := 0
	for b := range slices.Chunk(content(t, image(1)), MiB) {
		if bytes.Equal(b, make([]byte, MiB)) {
			zeros++
		}
	}
	require.Equal(t, 48, zeros, "16 of 64 MiB have data")
	require.Equal(t, int64(32<<30), image(4).Size())

	var total int64
	require.NoError(t, filepath.Walk(s.Dir(), func(path string, info os.FileInfo, err error) error {
		if err == nil && strings.HasSuffix(path, ".vmdk") {
			total += blocks(info)
		}
		return err
	}))
	require.Less(t, total, int64(60*MiB), "the files have holes")
}

func TestTLS(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TLS: true, VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}}})
	require.Equal(t, "https", s.URL().Scheme)
	connect := func(prepare func(*soap.Client)) error {
		sc := soap.NewClient(s.URL(), false)
		defer sc.CloseIdleConnections()
		prepare(sc)
		vc, err := vim25.NewClient(t.Context(), sc)
		if err != nil {
			return err
		}
		return session.NewManager(vc).Login(t.Context(), s.LoginURL().User)
	}
	require.Error(t, connect(func(*soap.Client) {}), "nobody trusts it")
	require.NoError(t, connect(func(c *soap.Client) { c.SetThumbprint(s.URL().Host, s.Thumbprint()) }))
	require.NoError(t, connect(func(c *soap.Client) { c.SetThumbprint(s.URL().Host, s.ThumbprintSHA256()) }))
	require.Error(t, connect(func(c *soap.Client) { c.SetThumbprint(s.URL().Host, strings.Repeat("00:", 19)+"00") }))
	require.NoError(t, connect(func(c *soap.Client) {
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(s.CertificatePEM()))
		c.DefaultTransport().TLSClientConfig = &tls.Config{RootCAs: pool}
	}))
	c := login(t, s)
	res, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "bytes=0-9")
	require.NoError(t, err)
	require.Equal(t, http.StatusPartialContent, res.StatusCode)
}

func TestGeneratedVMs(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Clusters: 2, VMs: vspheretest.GeneratedVMs(200)})
	c := login(t, s)
	v, err := view.NewManager(c.Client.Client).CreateContainerView(c.ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	require.NoError(t, err)
	var objs []mo.VirtualMachine
	require.NoError(t, v.Retrieve(c.ctx, []string{"VirtualMachine"}, []string{"name", "runtime", "config.uuid", "config.instanceUuid", "parent"}, &objs))
	require.Len(t, objs, 200)
	on, hosts, ids := 0, map[string]int{}, map[string]bool{}
	for _, o := range objs {
		if o.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			on++
		}
		hosts[o.Runtime.Host.Value]++
		ids[o.Config.Uuid], ids[o.Config.InstanceUuid] = true, true
	}
	require.Equal(t, 150, on)
	require.Len(t, hosts, 6, "on all hosts")
	require.Len(t, ids, 400, "no two are alike")
	found, err := find.NewFinder(c.Client.Client).VirtualMachineList(c.ctx, "/DC0/vm/team-7/*")
	require.NoError(t, err)
	require.Len(t, found, 20)
	task, err := c.vm("/DC0/vm/team-7/vm-00007").PowerOn(c.ctx)
	require.NoError(t, err)
	require.NoError(t, task.Wait(c.ctx))
}

func TestServersOfOneProcessDoNotKnowEachOther(t *testing.T) {
	for _, name := range []string{"a", "b", "c"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := vspheretest.Start(t, vspheretest.Options{TLS: name == "b", VMs: []vspheretest.VM{{Name: name, Disks: []vspheretest.Disk{{Size: MiB}}}}})
			c := login(t, s)
			for range 3 {
				vm := c.vm(name)
				c.removeSnapshot(vm, c.snapshot(vm, "s"))
			}
			require.Len(t, s.Sessions(), 1)
		})
	}
}

func TestListenOnATakenPort(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	_, err := vspheretest.New(vspheretest.Options{Listen: s.URL().Host})
	require.ErrorContains(t, err, "listen")
}

func TestTemporaryFolderIsRemoved(t *testing.T) {
	s, err := vspheretest.New(vspheretest.Options{VMs: []vspheretest.VM{{Name: "a", Disks: []vspheretest.Disk{{Size: MiB}}}}})
	require.NoError(t, err)
	require.DirExists(t, s.Dir())
	require.NoError(t, s.Close())
	require.NoDirExists(t, s.Dir())
	_, err = govmomi.NewClient(context.Background(), s.LoginURL(), true)
	require.Error(t, err)
}
