package ovf_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats/ovf"
)

// shop is the machine of testdata/vmware.ovf.
func shop() *ovf.Envelope {
	return &ovf.Envelope{
		Files: []ovf.File{
			{ID: "file1", Href: "web-01-disk1.vmdk", Size: 1024},
			{ID: "file2", Href: "web-01-disk2.vmdk.gz", Size: 77, Gzip: true, ChunkSize: 40},
			{ID: "file3", Href: "web-01.nvram", Size: 8684},
		},
		Disks: []ovf.Disk{
			{ID: "vmdisk1", File: "file1", Capacity: 40 << 30, Populated: 1 << 30, Format: ovf.StreamVMDK},
			{ID: "vmdisk2", File: "file2", Capacity: 1 << 30, Format: ovf.StreamVMDK, Parent: "vmdisk1"},
			{ID: "empty", Capacity: 16 << 20},
		},
		Networks: []ovf.Network{{Name: "VM Network", Description: "The VM Network network"}},
		Systems: []ovf.System{{
			ID: "web-01", Name: "web & 01", Annotation: "the shop's\nfront page",
			OS:              ovf.OS{ID: 94, Type: "ubuntu64Guest", Description: "Ubuntu Linux (64-bit)"},
			HardwareVersion: "vmx-19", CPUs: 8, CoresPerSocket: 4, Memory: 4 << 30, Firmware: ovf.EFI, SecureBoot: true,
			Controllers: []ovf.Controller{
				{ID: "3", Bus: ovf.SCSI, Model: "VirtualSCSI"},
				{ID: "4", Bus: ovf.NVMe, Model: "vmware.nvme.controller", Number: 1},
				{ID: "5", Bus: ovf.SATA, Model: "vmware.sata.ahci"},
				{ID: "6", Bus: ovf.IDE},
				{ID: "7", Bus: ovf.USB, Model: "vmware.usb.xhci"},
			},
			Drives: []ovf.Drive{
				{ID: "8", Name: "Hard Disk 1", Kind: ovf.HardDisk, Disk: "vmdisk1", Controller: "3"},
				{ID: "9", Name: "Hard Disk 2", Kind: ovf.HardDisk, Disk: "vmdisk2", Controller: "4", Unit: 15},
				{ID: "10", Name: "CD/DVD drive 1", Kind: ovf.CDROM, Controller: "6", Unit: 1},
				{ID: "11", Name: "Floppy drive 1", Kind: ovf.Floppy},
			},
			NICs:   []ovf.NIC{{ID: "12", Name: "Network adapter 1", Network: "VM Network", Model: "VmxNet3", MAC: "00:50:56:aa:bb:cc", Unit: 7, Connected: true}},
			Config: []ovf.Setting{{Key: "cpuHotAddEnabled", Value: "false"}},
		}},
	}
}

func TestReadsWhatVSphereExports(t *testing.T) {
	f, err := os.Open("testdata/vmware.ovf")
	require.NoError(t, err)
	defer f.Close()
	e, err := ovf.ReadEnvelope(f)
	require.NoError(t, err)
	require.Equal(t, shop(), e)
}

func TestReadsOldDescriptors(t *testing.T) {
	f, err := os.Open("testdata/old.ovf")
	require.NoError(t, err)
	defer f.Close()
	e, err := ovf.ReadEnvelope(f)
	require.NoError(t, err)
	require.Len(t, e.Systems, 2)
	require.Equal(t, "eins", e.Systems[0].Name)
	require.Equal(t, int64(512<<20), e.Systems[0].Memory)
	require.Equal(t, []ovf.Drive{{ID: "3", Name: "Platte", Kind: ovf.HardDisk, Disk: "d"}}, e.Systems[0].Drives)
	require.Equal(t, "Größe", e.Systems[1].Name)
}

func TestWritesWhatItReads(t *testing.T) {
	for name, e := range map[string]*ovf.Envelope{
		"the shop": shop(),
		"two machines": {Systems: []ovf.System{
			{ID: "a", Name: "<a> \"quoted\"", OS: ovf.OS{ID: 1}, HardwareVersion: "vmx-10", CPUs: 1, Memory: 1 << 20, Firmware: ovf.BIOS},
			{ID: "b", Name: "b\t& ü", OS: ovf.OS{ID: 1}, HardwareVersion: "vmx-10", CPUs: 2, Memory: 1 << 30, Firmware: ovf.EFI},
		}},
	} {
		var b bytes.Buffer
		_, err := e.WriteTo(&b)
		require.NoError(t, err)
		got, err := ovf.ReadEnvelope(bytes.NewReader(b.Bytes()))
		require.NoError(t, err, name)
		want := *e
		want.Disks = append([]ovf.Disk(nil), e.Disks...)
		for i := range want.Disks {
			want.Disks[i].Format = ovf.StreamVMDK // the usual one, where none was named
		}
		require.Equal(t, &want, got, name)
		if _, err := exec.LookPath("xmllint"); err == nil {
			cmd := exec.CommandContext(t.Context(), "xmllint", "--noout", "-")
			cmd.Stdin = bytes.NewReader(b.Bytes())
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		} else {
			t.Log("xmllint is not installed (package libxml2-utils): no other parser has read it")
		}
	}
}

func TestItemsWithoutIdsGetSome(t *testing.T) {
	e := &ovf.Envelope{Systems: []ovf.System{{Name: "m", CPUs: 1, Memory: 1 << 30,
		Controllers: []ovf.Controller{{ID: "1", Bus: ovf.SCSI}},
		Drives:      []ovf.Drive{{Kind: ovf.HardDisk, Controller: "1"}, {Kind: ovf.CDROM}},
		NICs:        []ovf.NIC{{Network: "lan"}, {Network: "lan"}},
	}}}
	var b bytes.Buffer
	_, err := e.WriteTo(&b)
	require.NoError(t, err)
	got, err := ovf.ReadEnvelope(&b)
	require.NoError(t, err)
	s := got.Systems[0]
	seen := map[string]bool{s.Controllers[0].ID: true}
	for _, id := range []string{s.Drives[0].ID, s.Drives[1].ID, s.NICs[0].ID, s.NICs[1].ID} {
		require.False(t, seen[id], id)
		seen[id] = true
	}
	require.Equal(t, []ovf.Network{{Name: "lan"}}, got.Networks)
	require.Equal(t, "VirtualSCSI", s.Controllers[0].Model)
}

// minimal is a descriptor with a disk and one item of hardware.
func minimal(file, disk, item string) string {
	return fmt.Sprintf(`<Envelope><References><File %s/></References><DiskSection><Disk %s/></DiskSection>`+
		`<VirtualSystem id="m"><VirtualHardwareSection><Item>%s</Item></VirtualHardwareSection></VirtualSystem></Envelope>`, file, disk, item)
}

func TestRefusesDescriptorsThatLie(t *testing.T) {
	const file, disk = `id="f" href="a.vmdk"`, `diskId="d" fileRef="f" capacity="1"`
	good := minimal(file, disk, `<ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource>`)
	_, err := ovf.ReadEnvelope(strings.NewReader(good))
	require.NoError(t, err)
	for name, text := range map[string]string{
		"nothing":                "",
		"no XML":                 "MZ\x90\x00",
		"cut short":              good[:len(good)-20],
		"another document":       "<domain/>",
		"another encoding":       `<?xml version="1.0" encoding="EBCDIC-US"?>` + good,
		"an entity":              strings.Replace(good, `"a.vmdk"`, `"&xxe;"`, 1),
		"no machine":             `<Envelope/>`,
		"no hardware":            `<Envelope><VirtualSystem id="m"/></Envelope>`,
		"file without id":        minimal(`href="a"`, disk, ""),
		"a folder":               minimal(`id="f" href="dir/a.vmdk"`, disk, ""),
		"out of the package":     minimal(`id="f" href="../a.vmdk"`, disk, ""),
		"absolute":               minimal(`id="f" href="/etc/passwd"`, disk, ""),
		"a URL":                  minimal(`id="f" href="http://h/a.vmdk"`, disk, ""),
		"a Windows path":         minimal(`id="f" href="C:\a.vmdk"`, disk, ""),
		"control characters":     minimal(`id="f" href="a&#10;b"`, disk, ""),
		"dots":                   minimal(`id="f" href=".."`, disk, ""),
		"no name":                minimal(`id="f" href=""`, disk, ""),
		"negative size":          minimal(`id="f" href="a" size="-1"`, disk, ""),
		"size of no number":      minimal(`id="f" href="a" size="many"`, disk, ""),
		"chunks":                 minimal(`id="f" href="a" chunkSize="-5"`, disk, ""),
		"compression":            minimal(`id="f" href="a" compression="lzma"`, disk, ""),
		"disk without capacity":  minimal(file, `diskId="d"`, ""),
		"capacity":               minimal(file, `diskId="d" capacity="-1"`, ""),
		"capacity overflows":     minimal(file, `diskId="d" capacity="9" capacityAllocationUnits="byte * 2^62"`, ""),
		"units":                  minimal(file, `diskId="d" capacity="1" capacityAllocationUnits="parsec"`, ""),
		"units overflow":         minimal(file, `diskId="d" capacity="1" capacityAllocationUnits="byte * 10^60"`, ""),
		"file that is not there": minimal(file, `diskId="d" fileRef="g" capacity="1"`, ""),
		"disk that is not there": minimal(file, disk, `<ResourceType>17</ResourceType><HostResource>ovf:/disk/e</HostResource>`),
		"a host's file":          minimal(file, disk, `<ResourceType>17</ResourceType><HostResource>/dev/sda</HostResource>`),
		"processors":             minimal(file, disk, `<ResourceType>3</ResourceType><VirtualQuantity>99999999999</VirtualQuantity>`),
		"memory":                 minimal(file, disk, `<ResourceType>4</ResourceType><VirtualQuantity>x</VirtualQuantity>`),
		"type":                   minimal(file, disk, `<ResourceType>disk</ResourceType>`),
		"firmware":               `<Envelope><VirtualSystem id="m"><VirtualHardwareSection><Config key="firmware" value="coreboot"/></VirtualHardwareSection></VirtualSystem></Envelope>`,
		"two files of one name":  `<Envelope><References><File id="a" href="x"/><File id="b" href="x"/></References></Envelope>`,
		"too long":               good + strings.Repeat(" ", 5<<20),
		"deep":                   strings.Repeat("<Envelope>", 100000),
	} {
		_, err := ovf.ReadEnvelope(strings.NewReader(text))
		require.Error(t, err, name)
		require.True(t, isRefusal(err), "%s: %v", name, err)
	}
}

func TestRefusesMachinesThatCannotBeWritten(t *testing.T) {
	for name, change := range map[string]func(*ovf.Envelope){
		"no processors":   func(e *ovf.Envelope) { e.Systems[0].CPUs = 0 },
		"half a MiB":      func(e *ovf.Envelope) { e.Systems[0].Memory = 1<<20 + 1<<19 },
		"a path":          func(e *ovf.Envelope) { e.Files[0].Href = "../x" },
		"an unknown disk": func(e *ovf.Envelope) { e.Systems[0].Drives[0].Disk = "nope" },
		"no machine":      func(e *ovf.Envelope) { e.Systems = nil },
	} {
		e := shop()
		change(e)
		_, err := e.WriteTo(&bytes.Buffer{})
		require.True(t, isRefusal(err), "%s: %v", name, err)
	}
}

func FuzzEnvelope(f *testing.F) {
	for _, name := range []string{"testdata/vmware.ovf", "testdata/old.ovf"} {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte(minimal(`id="f" href="a"`, `diskId="d" capacity="1"`, "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ovf.ReadEnvelope(bytes.NewReader(b))
		if err != nil {
			if !isRefusal(err) {
				t.Fatal(err)
			}
			return
		}
		var out bytes.Buffer
		if _, err := e.WriteTo(&out); err != nil {
			if !isRefusal(err) {
				t.Fatal(err)
			}
			return
		}
		if _, err := ovf.ReadEnvelope(&out); err != nil && strings.Contains(err.Error(), "XML") {
			t.Fatalf("what was written is no XML: %v", err)
		}
	})
}
