package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	govmomiovf "github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
)

// packed is a disk as packages have it.
func packed(t *testing.T, disk []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &b, int64(len(disk)), formats.CreateOptions{})
	require.NoError(t, err)
	src, err := raw.Format().Open(t.Context(), bytes.NewReader(disk), int64(len(disk)), formats.OpenOptions{})
	require.NoError(t, err)
	_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	return b.Bytes()
}

// guestDisk is n bytes that are unlike those of another seed.
func guestDisk(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		if i%(256<<10) < 100<<10 { // the rest is zeros
			b[i] = byte(i*int(seed) ^ i>>9)
		}
	}
	return b
}

// opens counts how often each file of a package was opened.
type opens map[string]int

// packaged is a package of a VM with these disks and a card on "office".
func packaged(t *testing.T, count opens, disks ...[]byte) providers.Package {
	t.Helper()
	e := ovf.Envelope{
		Networks: []ovf.Network{{Name: "office"}},
		Systems: []ovf.System{{
			ID: "web", Name: "web", OS: ovf.OS{ID: 101, Type: "otherLinux64Guest"}, HardwareVersion: "vmx-13", CPUs: 2, Memory: 1 << 30, Firmware: ovf.BIOS,
			Controllers: []ovf.Controller{{ID: "3", Bus: ovf.SCSI, Model: "VirtualSCSI"}},
			NICs:        []ovf.NIC{{ID: "4", Name: "Network adapter 1", Network: "office", Model: "VmxNet3", Unit: 7, Connected: true}},
		}},
	}
	var p providers.Package
	for i, d := range disks {
		name, b := fmt.Sprintf("web-disk%d.vmdk", i+1), packed(t, d)
		e.Files = append(e.Files, ovf.File{ID: fmt.Sprint("file", i), Href: name, Size: int64(len(b))})
		e.Disks = append(e.Disks, ovf.Disk{ID: fmt.Sprint("disk", i), File: fmt.Sprint("file", i), Capacity: int64(len(d)), Format: ovf.StreamVMDK})
		e.Systems[0].Drives = append(e.Systems[0].Drives, ovf.Drive{ID: fmt.Sprint(10 + i), Name: fmt.Sprint("Hard disk ", i+1), Kind: ovf.HardDisk, Disk: fmt.Sprint("disk", i), Controller: "3", Unit: i})
		p.Files = append(p.Files, providers.PackageFile{Name: name, Size: int64(len(b)), Open: func(context.Context) (io.ReadCloser, error) {
			if count != nil {
				count[name]++
			}
			return io.NopCloser(bytes.NewReader(b)), nil
		}})
	}
	var text bytes.Buffer
	_, err := e.WriteTo(&text)
	require.NoError(t, err)
	p.Descriptor = text.String()
	return p
}

func toNetwork(name string) providers.ImportTarget {
	return providers.ImportTarget{Name: name, Networks: map[string]string{"office": "VM Network"}}
}

// holdsDisks compares the disks of a VM of the fake with what they should hold.
func holdsDisks(t *testing.T, s *vspheretest.Server, vm string, disks ...[]byte) {
	t.Helper()
	for i, want := range disks {
		im, err := s.Disk(vm, i)
		require.NoError(t, err)
		got := make([]byte, im.Size())
		_, err = io.ReadFull(io.NewSectionReader(im, 0, im.Size()), got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "disk %d of %s", i, vm)
	}
}

// noVM makes sure that a VM, and every lease, is gone.
func noVM(t *testing.T, s *vspheretest.Server, vm string) {
	t.Helper()
	require.Eventually(t, func() bool { return s.Leases() == 0 }, time.Minute, 10*time.Millisecond, "a lease is left")
	for _, one := range s.State().VMs {
		require.NotEqual(t, vm, one.Name, "the VM is left")
	}
}

func TestImport(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TLS: true, Datastores: []vspheretest.Datastore{{Name: "fast"}, {Name: "slow"}}})
	p := connect(t, s)
	disks := [][]byte{guestDisk(3, 3*mib), guestDisk(7, mib+64<<10)}
	pkg := packaged(t, nil, disks...)
	to := toNetwork("web 50")
	to.Datastore = "slow"

	plan, err := p.PlanImport(t.Context(), pkg.Descriptor, to)
	require.NoError(t, err)
	require.Equal(t, providers.ImportTarget{
		Name: "web 50", Folder: "/DC0/vm", Pool: "/DC0/host/DC0_C0", Host: plan.Target.Host, Datastore: "/DC0/datastore/slow",
		Networks: map[string]string{"office": "/DC0/network/VM Network"},
	}, plan.Target)
	require.Equal(t, []string{"web-disk1.vmdk", "web-disk2.vmdk"}, plan.Files)
	require.Positive(t, plan.Free)
	require.Zero(t, s.Calls()["ImportVApp"], "nothing is made by a plan")

	vm, err := p.ImportPackage(t.Context(), pkg, plan.Target, "job-1")
	require.NoError(t, err)
	require.Equal(t, "web 50", vm.Name)
	require.Equal(t, "/DC0/vm/web 50", vm.Path)
	require.Equal(t, providers.PowerOff, vm.PowerState)
	require.Equal(t, 2, vm.NumCPU)
	require.EqualValues(t, 1024, vm.MemoryMB)
	require.Equal(t, "VM Network", vm.NICs[0].Network)
	require.Len(t, vm.Disks, 2)
	require.Equal(t, "slow", vm.Disks[0].Datastore)
	holdsDisks(t, s, string(vm.ID), disks...)
	require.Zero(t, s.Leases())

	again, err := p.ImportPackage(t.Context(), pkg, plan.Target, "job-1")
	require.NoError(t, err)
	require.Equal(t, vm.ID, again.ID)
	require.Equal(t, 1, s.Calls()["ImportVApp"], "what is there is not made again")
	require.NoError(t, p.DiscardImport(t.Context(), plan.Target, "job-1"))
	_, err = p.VM(t.Context(), string(vm.ID))
	require.NoError(t, err, "what is complete is not discarded")

	_, err = p.ImportPackage(t.Context(), pkg, plan.Target, "job-2")
	require.ErrorIs(t, err, providers.Exists)
	require.NoError(t, p.DiscardImport(t.Context(), plan.Target, "job-2"))
	_, err = p.VM(t.Context(), string(vm.ID))
	require.NoError(t, err, "what is another's is left alone")
}

func TestImportSurvivesTheNetwork(t *testing.T) {
	cut, flip := int64(40_000), int64(70_000)
	for name, fault := range map[string]vspheretest.Fault{
		"cut":     {CutAfter: &cut, Times: 2},
		"refused": {Status: 503, Times: 1},
		"flipped": {FlipAt: &flip, Times: 1}, // the server received something else, and tells
	} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{})
			p := connect(t, s)
			disk, count := guestDisk(5, 2*mib), opens{}
			fault.File = "disk-0.vmdk"
			_, err := s.Inject(fault)
			require.NoError(t, err)
			vm, err := p.ImportPackage(t.Context(), packaged(t, count, disk), toNetwork("web"), "job-1")
			if name == "flipped" && err != nil {
				// A bit that spoils the packing is found by the server itself.
				require.ErrorIs(t, err, providers.Unavailable)
				noVM(t, s, "web")
				return
			}
			require.NoError(t, err)
			holdsDisks(t, s, string(vm.ID), disk)
			require.Greater(t, count["web-disk1.vmdk"], 1)
			require.Equal(t, 1, s.Calls()["ImportVApp"], "under one lease")
		})
	}
}

func TestImportLeavesNothingHalfDone(t *testing.T) {
	broken := errors.New("the package is damaged")
	stall := vspheretest.Fault{File: "disk-0.vmdk", Stall: true}
	for name, c := range map[string]struct {
		faults []vspheretest.Fault
		change func(*providers.Package)
		cancel bool
		reason providers.Reason
		says   string
	}{
		"cancelled":       {faults: []vspheretest.Fault{stall}, cancel: true, reason: providers.Canceled},
		"lease lost":      {faults: []vspheretest.Fault{stall, {Call: "HttpNfcLeaseProgress", Skip: 1, Fault: "Timedout"}}, reason: providers.Unavailable, says: "lost"},
		"no space":        {faults: []vspheretest.Fault{{Call: "ImportVApp", Task: true, Fault: "NoDiskSpace", Message: "the datastore is full"}}, reason: providers.Exhausted, says: "the datastore is full"},
		"never completed": {faults: []vspheretest.Fault{{Call: "HttpNfcLeaseComplete", Fault: "HostCommunication"}}, reason: providers.Unavailable},
		"source": {change: func(p *providers.Package) {
			p.Files[0].Open = func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(strings.NewReader("KDMV"), failing{&providers.Error{Op: "read", Reason: providers.Corrupt, Err: broken}})), nil
			}
		}, reason: providers.Corrupt, says: "damaged"},
		"rubbish": {change: func(p *providers.Package) {
			p.Files[0].Size = 0
			p.Files[0].Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("no disk")), nil }
		}, reason: providers.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			patience := 8 * time.Second
			if name == "lease lost" {
				patience = 2 * time.Second
			}
			s := vspheretest.Start(t, vspheretest.Options{LeaseTimeout: patience})
			p := connect(t, s)
			for _, f := range c.faults {
				_, err := s.Inject(f)
				require.NoError(t, err)
			}
			disk := guestDisk(5, mib)
			pkg := packaged(t, nil, disk)
			if c.change != nil {
				c.change(&pkg)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.cancel {
				time.AfterFunc(300*time.Millisecond, cancel)
			}
			_, err := p.ImportPackage(ctx, pkg, toNetwork("web"), "job-1")
			require.Error(t, err)
			require.Equal(t, c.reason, providers.ReasonOf(err), "%v", err)
			require.ErrorContains(t, err, c.says)
			noVM(t, s, "web")
			s.ClearFaults()
			vm, err := p.ImportPackage(t.Context(), packaged(t, nil, disk), toNetwork("web"), "job-1")
			require.NoError(t, err, "the next attempt")
			holdsDisks(t, s, string(vm.ID), disk)
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The VM of an import whose answer was lost may appear between the look for it and the call that would make
// another.
func TestAnImportWhoseAnswerIsLost(t *testing.T) {
	const slow = 500 * time.Millisecond
	s := vspheretest.Start(t, vspheretest.Options{TaskDelay: slow, LeaseTimeout: 6 * slow})
	disk := guestDisk(9, mib)
	p := connect(t, s)
	inject(t, s, vspheretest.Fault{Call: "ImportVApp", After: true, Drop: true, Times: 1})
	inject(t, s, vspheretest.Fault{Call: "ImportVApp", Skip: 1, Times: 1, Delay: vspheretest.Duration(2 * slow)})
	_, err := p.ImportPackage(t.Context(), packaged(t, nil, disk), toNetwork("web"), "job-1")
	require.ErrorIs(t, err, providers.Unavailable)
	var vm providers.VM
	require.NoError(t, patiently(func() error {
		vm, err = p.ImportPackage(t.Context(), packaged(t, nil, disk), toNetwork("web"), "job-1")
		return err
	}))
	holdsDisks(t, s, string(vm.ID), disk)
}

// What a killed program has left: a VM under a lease of which nobody knows any more.
func TestImportAfterAKill(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{LeaseTimeout: 1500 * time.Millisecond})
	disk := guestDisk(9, mib)
	pkg := packaged(t, nil, disk)
	p := connect(t, s)
	begin(t, s, pkg, "begun job-1")
	_, err := p.ImportPackage(t.Context(), pkg, toNetwork("web"), "job-2")
	require.ErrorIs(t, err, providers.Exists, "it is not ours")
	_, err = p.ImportPackage(t.Context(), pkg, toNetwork("web"), "job-1")
	require.ErrorIs(t, err, providers.Precondition)
	require.ErrorContains(t, err, "lease of an earlier attempt")
	var vm providers.VM
	require.Eventually(t, func() bool {
		vm, err = p.ImportPackage(t.Context(), pkg, toNetwork("web"), "job-1")
		return err == nil
	}, time.Minute, 100*time.Millisecond, "once the server has given the lease up")
	holdsDisks(t, s, string(vm.ID), disk)
}

func TestDiscardImport(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	p := connect(t, s)
	pkg := packaged(t, nil, guestDisk(9, mib))
	lease := begin(t, s, pkg, "begun job-1")
	require.ErrorIs(t, p.DiscardImport(t.Context(), toNetwork("web"), "job-1"), providers.Precondition)
	require.NoError(t, lease())
	require.NoError(t, p.DiscardImport(t.Context(), toNetwork("web"), "job-9"), "nothing of it is there")
	require.Len(t, s.State().VMs, 1)
	require.NoError(t, p.DiscardImport(t.Context(), toNetwork("web"), "job-1"))
	require.NoError(t, p.DiscardImport(t.Context(), toNetwork("web"), "job-1"), "again")
	noVM(t, s, "web")
}

// begin starts an import with another program, and answers how to complete its lease without an upload.
func begin(t *testing.T, s *vspheretest.Server, pkg providers.Package, mark string) (complete func() error) {
	t.Helper()
	ctx := t.Context()
	c, err := govmomi.NewClient(ctx, s.LoginURL(), true)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Logout(context.WithoutCancel(ctx))) })
	f := find.NewFinder(c.Client)
	pool, err := f.ResourcePool(ctx, "/DC0/host/DC0_C0/Resources")
	require.NoError(t, err)
	ds, err := f.Datastore(ctx, "/DC0/datastore/datastore1")
	require.NoError(t, err)
	folder, err := f.Folder(ctx, "/DC0/vm")
	require.NoError(t, err)
	spec, err := govmomiovf.NewManager(c.Client).CreateImportSpec(ctx, pkg.Descriptor, pool, ds, &types.OvfCreateImportSpecParams{EntityName: "web"})
	require.NoError(t, err)
	require.Empty(t, spec.Error)
	one := spec.ImportSpec.(*types.VirtualMachineImportSpec)
	one.ConfigSpec.ExtraConfig = append(one.ConfigSpec.ExtraConfig, &types.OptionValue{Key: "hypersdk.import", Value: mark})
	l, err := pool.ImportVApp(ctx, one, folder, nil)
	require.NoError(t, err)
	_, err = l.Wait(ctx, spec.FileItem)
	require.NoError(t, err)
	return func() error { return l.Complete(ctx) }
}

func TestWhereAPackageCannotGo(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Datacenters: []string{"DC0", "DC1"}, Datastores: []vspheretest.Datastore{{Name: "a"}, {Name: "b"}}})
	p := connect(t, s)
	descriptor := packaged(t, nil, guestDisk(1, mib)).Descriptor
	two := strings.Replace(descriptor, "<VirtualSystem ", "<VirtualSystemCollection ovf:id=\"c\"><Info/><VirtualSystem ", 1)
	for name, c := range map[string]struct {
		descriptor string
		to         providers.ImportTarget
		reason     providers.Reason
		says       string
	}{
		"no name":          {descriptor, providers.ImportTarget{}, providers.Invalid, "needs a name"},
		"no descriptor":    {"<Envelope/>", toNetwork("web"), providers.Corrupt, ""},
		"broken":           {two, toNetwork("web"), providers.Corrupt, ""},
		"which datacenter": {descriptor, toNetwork("web"), providers.Invalid, "say which: /DC0/host/DC0_C0, /DC1/host/DC1_C0"},
		"which datastore":  {descriptor, providers.ImportTarget{Name: "web", Folder: "/DC0/vm"}, providers.Invalid, "say which: /DC0/datastore/a, /DC0/datastore/b"},
		"no datastore":     {descriptor, providers.ImportTarget{Name: "web", Folder: "/DC0/vm", Datastore: "c"}, providers.NotFound, "there are: /DC0/datastore/a"},
		"other datacenter": {descriptor, providers.ImportTarget{Name: "web", Folder: "/DC0/vm", Datastore: "/DC1/datastore/a"}, providers.NotFound, ""},
		"no network":       {descriptor, providers.ImportTarget{Name: "web", Folder: "/DC0/vm", Datastore: "a", Networks: map[string]string{"office": "dmz"}}, providers.NotFound, `network "office" of the package`},
		"no such network of the package": {
			descriptor, providers.ImportTarget{Name: "web", Folder: "/DC0/vm", Datastore: "a", Networks: map[string]string{"dmz": "VM Network"}}, providers.Invalid, "the package has no network",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.PlanImport(t.Context(), c.descriptor, c.to)
			require.Error(t, err)
			require.Equal(t, c.reason, providers.ReasonOf(err), "%v", err)
			require.ErrorContains(t, err, c.says)
		})
	}
	plan, err := p.PlanImport(t.Context(), descriptor, providers.ImportTarget{Name: "web", Host: "DC1_C0_H2", Datastore: "b"})
	require.NoError(t, err)
	require.Equal(t, providers.ImportTarget{
		Name: "web", Folder: "/DC1/vm", Pool: "/DC1/host/DC1_C0", Host: "/DC1/host/DC1_C0/DC1_C0_H2", Datastore: "/DC1/datastore/b",
		Networks: map[string]string{"office": "/DC1/network/VM Network"},
	}, plan.Target, "the host decides on the datacenter")
}
