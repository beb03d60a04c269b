package activities

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats/ovf"
	"hypersdk/providers"
)

func TestEnvelope(t *testing.T) {
	vm := providers.VM{
		Name: "db & <01>", NumCPU: 4, MemoryMB: 8192, Firmware: "efi", HardwareVersion: "vmx-19", Annotation: "first line\nsecond",
		GuestID: "windows2019srv_64Guest", GuestOS: "Microsoft Windows Server 2019 (64-bit)",
		NICs: []providers.NIC{{ID: "4000", Label: "Network adapter 1", Model: "vmxnet3", MAC: "00:50:56:aa:bb:cc", Network: "prod"}, {Model: "virtio"}},
	}
	disk := func(controller string, bus, unit int) PackagedDisk {
		return PackagedDisk{Disk: providers.Disk{Label: "d", Size: 1 << 30, Controller: controller, Bus: bus, Unit: unit}, File: fmt.Sprintf("%s-%d-%d.vmdk", controller, bus, unit), Stored: 1000}
	}
	disks := []PackagedDisk{disk("pvscsi", 0, 0), disk("pvscsi", 0, 1), disk("lsilogic", 1, 0), disk("ide", 1, 1), disk("sata", 0, 3), disk("nvme", 0, 0), disk("pvscsi", 0, 1)}
	disks[6].File = "seventh.vmdk"
	e := envelope(vm, disks, make([]int64, len(disks)))
	var b strings.Builder
	_, err := e.WriteTo(&b)
	require.NoError(t, err)
	require.NotContains(t, b.String(), "00:50:56", "a MAC address is used once")
	got, err := ovf.ReadEnvelope(strings.NewReader(b.String()))
	require.NoError(t, err)
	s := got.Systems[0]
	require.Equal(t, "db & <01>", s.Name)
	require.Equal(t, ovf.EFI, s.Firmware)
	require.Equal(t, "vmx-19", s.HardwareVersion)
	require.Equal(t, int64(8192<<20), s.Memory)
	require.Equal(t, 4, s.CPUs)
	require.Equal(t, "windows2019srv_64Guest", s.OS.Type)
	require.Equal(t, "first line\nsecond", s.Annotation)
	type place struct {
		bus    ovf.Bus
		model  string
		number int
		unit   int
	}
	var places []place
	ids := map[string]bool{}
	for _, d := range s.Drives {
		require.False(t, ids[d.ID], "an instance id twice")
		ids[d.ID] = true
		for _, c := range s.Controllers {
			if c.ID == d.Controller {
				places = append(places, place{c.Bus, c.Model, c.Number, d.Unit})
			}
		}
	}
	require.Equal(t, []place{
		{ovf.SCSI, "VirtualSCSI", 0, 0}, {ovf.SCSI, "VirtualSCSI", 0, 1}, {ovf.SCSI, "lsilogic", 1, 0}, {ovf.IDE, "", 1, 1},
		{ovf.SATA, "vmware.sata.ahci", 0, 3}, {ovf.NVMe, "vmware.nvme.controller", 0, 0},
		{ovf.SCSI, "VirtualSCSI", 0, 2}, // two disks cannot be in one place
	}, places)
	require.Equal(t, "prod", s.NICs[0].Network)
	require.Equal(t, "VmxNet3", s.NICs[0].Model)
	require.Equal(t, "E1000", s.NICs[1].Model)
	require.Equal(t, "VM Network", s.NICs[1].Network)

	vm.HardwareVersion = "pc-q35-8.2"
	b.Reset()
	e = envelope(vm, disks, make([]int64, len(disks)))
	_, err = e.WriteTo(&b)
	require.NoError(t, err)
	require.Contains(t, b.String(), "<vssd:VirtualSystemType>vmx-13<", "what only another platform knows is not written")
}

func TestGuestSystems(t *testing.T) {
	for _, c := range []struct {
		id, name string
		want     int
	}{
		{"ubuntu64Guest", "Ubuntu Linux (64-bit)", 94}, {"", "Debian GNU/Linux 12 (64-bit)", 96}, {"rhel9_64Guest", "", 80},
		{"windows9_64Guest", "Microsoft Windows 10 (64-bit)", 120}, {"windows9Server64Guest", "", 116}, {"other3xLinux64Guest", "", 101},
		{"otherGuest64", "", 102}, {"otherGuest", "Other", 1}, {"", "", 1}, {"freebsdGuest", "", 42},
	} {
		require.Equal(t, c.want, guest(providers.VM{GuestID: c.id, GuestOS: c.name}).ID, "%s %s", c.id, c.name)
	}
}

func TestPackageNames(t *testing.T) {
	require.Equal(t, "web-01", PackageName("web-01"))
	long := strings.Repeat("虚", 60)
	short := PackageName(long)
	require.LessOrEqual(t, len(short+"-disk-120.vmdk"), 100)
	require.NotEqual(t, short, PackageName(long+"拟"))
	require.True(t, strings.HasPrefix(long, short[:len(short)-9]))
}

// Whatever a VM is called, its files can be members of an archive.
func TestPackageNamesThatMakeTrouble(t *testing.T) {
	for _, name := range []string{
		"with space", "with/slash", `quote"and'tick`, "ünïcödé 虚拟机", strings.Repeat("long", 50), strings.Repeat("虚", 80), "..", "-rf", ".hidden",
		"back\\slash", "a:b", "web (1)", "CON", "trailing.", "line\nbreak",
	} {
		base := PackageName(SafeName(name))
		disks := []PackagedDisk{{File: base + "-disk-120.vmdk", Stored: 10, Disk: providers.Disk{Size: 1 << 20}}}
		l, err := ovf.NewLayout(ovf.Content{Name: base, Envelope: envelope(providers.VM{Name: name, NumCPU: 1, MemoryMB: 1}, disks, []int64{0})})
		require.NoError(t, err, "%q", name)
		f, err := os.Create(filepath.Join(t.TempDir(), "ova"))
		require.NoError(t, err)
		require.NoError(t, l.Begin(f), "%q", name)
		sum := sha256.Sum256(make([]byte, 10))
		require.NoError(t, ovf.Seal(t.Context(), f, l.Size(), ovf.Manifest{{Name: disks[0].File, Hash: crypto.SHA256, Sum: sum[:]}}, nil), "%q", name)
		pkg, err := ovf.Index(t.Context(), f, l.Size())
		require.NoError(t, err, "%q", name)
		_, err = pkg.Verify(t.Context())
		require.NoError(t, err, "%q", name)
		require.NoError(t, f.Close())
	}
}
