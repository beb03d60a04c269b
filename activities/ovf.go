package activities

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"hypersdk/formats/ovf"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Packages: formats of an export in which the disks come with a description of the VM. Their disks are
// streamOptimized VMDKs, which is what every importer of packages reads.
const (
	PackageOVF = "ovf" // a folder: descriptor, disks, manifest
	PackageOVA = "ova" // all of that in one archive
)

// Packages lists the formats that are packages.
func Packages() []string { return []string{PackageOVA, PackageOVF} }

// unpackaged is the format of the disks in an export of a format, and the kind of its package, if it is
// one.
func unpackaged(format string) (disks, pkg string) {
	for _, p := range Packages() {
		if strings.EqualFold(p, format) {
			return "vmdk", p
		}
	}
	return format, ""
}

// maxBase is the longest name of a package in bytes: with what comes behind it ("-disk-120.vmdk") the
// names of its files stay within the 100 bytes of an archive that every importer reads.
const maxBase = 84

// PackageName is the name that the files of a package begin with, for a folder's name.
func PackageName(folder string) string {
	if len(folder) <= maxBase {
		return folder
	}
	sum := sha256.Sum256([]byte(folder))
	short := folder[:maxBase-9]
	for !utf8.ValidString(short) {
		short = short[:len(short)-1]
	}
	return strings.TrimRight(short, ". ") + "-" + hex.EncodeToString(sum[:4])
}

// Indescribable says why no package can be made of a VM as it was asked for; "" where one can.
func Indescribable(s job.Spec, vm providers.VM) string {
	switch {
	case s.Thin != nil && !*s.Thin:
		return "the disks of an OVF or OVA are compressed, so that they cannot be allocated in full; leave out thin: false, or export raw disks"
	case vm.NumCPU < 1:
		return fmt.Sprintf("the number of processors of %s is not known, without which no OVF can describe it; export its disks (qcow2, vmdk, raw)", vm.Name)
	case vm.MemoryMB < 1:
		return fmt.Sprintf("the memory of %s is not known, without which no OVF can describe it; export its disks (qcow2, vmdk, raw)", vm.Name)
	}
	return ""
}

// envelope describes a VM with these disks; populated is how many bytes of each hold data.
//
// Importers are many and lenient in different ways, so it says no more than all of them understand: no
// MAC addresses, which would be in use twice once the import runs beside its source (they are in
// manifest.json), and no CD drives, whose media are no part of the export.
func envelope(vm providers.VM, disks []PackagedDisk, populated []int64) ovf.Envelope {
	s := ovf.System{
		ID: vm.Name, Name: vm.Name, Annotation: vm.Annotation, OS: guest(vm), HardwareVersion: vm.HardwareVersion,
		CPUs: vm.NumCPU, Memory: vm.MemoryMB << 20, Firmware: ovf.BIOS,
	}
	if !strings.HasPrefix(s.HardwareVersion, "vmx-") {
		s.HardwareVersion = "" // of another platform, which no importer knows: the usual one
	}
	if strings.EqualFold(vm.Firmware, string(ovf.EFI)) {
		s.Firmware = ovf.EFI
	}
	var e ovf.Envelope
	// Instance ids 1 and 2 are left to processors and memory, as everywhere.
	next := 2
	id := func() string { next++; return strconv.Itoa(next) }
	for i, d := range disks {
		file, disk := fmt.Sprintf("file%d", i+1), fmt.Sprintf("vmdisk%d", i+1)
		e.Files = append(e.Files, ovf.File{ID: file, Href: d.File, Size: d.Stored})
		e.Disks = append(e.Disks, ovf.Disk{ID: disk, File: file, Capacity: d.Disk.Size, Populated: populated[i], Format: ovf.StreamVMDK})
		c := controller(&s, d.Disk, id)
		unit := free(s, c, d.Disk.Unit)
		s.Drives = append(s.Drives, ovf.Drive{
			ID: id(), Name: cmp.Or(d.Disk.Label, fmt.Sprintf("Hard disk %d", i+1)), Kind: ovf.HardDisk, Disk: disk, Controller: c, Unit: unit,
		})
	}
	for i, n := range vm.NICs {
		s.NICs = append(s.NICs, ovf.NIC{
			ID: id(), Name: cmp.Or(n.Label, fmt.Sprintf("Network adapter %d", i+1)), Network: cmp.Or(n.Network, "VM Network"),
			Model: card(n.Model), Unit: 7 + i, Connected: true,
		})
	}
	e.Systems = []ovf.System{s}
	return e
}

// controller finds or adds what a disk is attached to, and answers its id.
func controller(s *ovf.System, d providers.Disk, id func() string) string {
	c := ovf.Controller{Bus: ovf.SCSI, Number: d.Bus}
	switch strings.ToLower(d.Controller) {
	case "ide":
		c.Bus = ovf.IDE
	case "sata", "ahci":
		c.Bus, c.Model = ovf.SATA, "vmware.sata.ahci"
	case "nvme":
		c.Bus, c.Model = ovf.NVMe, "vmware.nvme.controller"
	case "lsilogic", "scsi":
		c.Model = "lsilogic"
	case "lsilogicsas":
		c.Model = "lsilogicsas"
	case "buslogic":
		c.Model = "buslogic"
	default: // pvscsi, and what only other platforms have
		c.Model = "VirtualSCSI"
	}
	for _, have := range s.Controllers {
		if have.Bus == c.Bus && have.Number == c.Number {
			return have.ID
		}
	}
	c.ID = id()
	s.Controllers = append(s.Controllers, c)
	return c.ID
}

// card is the model of a network card as OVF names it. What only other platforms have becomes the card
// that every guest has a driver for.
func card(model string) string {
	switch strings.ToLower(model) {
	case "vmxnet3", "sriov":
		return "VmxNet3"
	case "vmxnet2":
		return "VmxNet2"
	case "e1000e":
		return "E1000e"
	case "pcnet32":
		return "PCNet32"
	}
	return "E1000"
}

// free is the unit that a disk has on its controller, or where another disk has it (a platform that does
// not say) the next one. Unit 7 of SCSI is the controller itself.
func free(s ovf.System, controller string, unit int) int {
	taken := map[int]bool{}
	for _, d := range s.Drives {
		if d.Controller == controller {
			taken[d.Unit] = true
		}
	}
	for _, c := range s.Controllers {
		if c.ID == controller && c.Bus == ovf.SCSI {
			taken[7] = true
		}
	}
	for taken[unit] {
		unit++
	}
	return unit
}

// guests are operating systems by what is found in their identifier or name, special ones first, with
// their numbers in CIM_OperatingSystem.OsType for 32 and 64 bits.
var guests = []struct {
	word        string
	short, wide int
}{
	{"ubuntu", 93, 94}, {"debian", 95, 96}, {"centos", 106, 107}, {"oracle", 108, 109},
	{"rhel", 79, 80}, {"red hat", 79, 80}, {"sles", 84, 85}, {"suse linux enterprise", 84, 85}, {"suse", 82, 83},
	{"freebsd", 42, 78}, {"solaris", 29, 81}, {"vmkernel", 104, 104}, {"esxi", 104, 104},
	{"windows2022", 116, 116}, {"windows2019", 116, 116}, {"windows9server", 116, 116}, {"server 2016", 116, 116},
	{"server 2019", 116, 116}, {"server 2022", 116, 116}, {"server 2012 r2", 115, 115}, {"windows8server", 112, 112},
	{"server 2012", 112, 112}, {"windows7server", 103, 103}, {"server 2008 r2", 103, 103}, {"server 2008", 76, 77},
	{"winlonghorn", 76, 77}, {"server 2003", 69, 70}, {"winnet", 69, 70}, {"windows11", 119, 120}, {"windows12", 119, 120},
	{"windows9", 119, 120}, {"windows 11", 119, 120}, {"windows 10", 119, 120}, {"windows8", 113, 114}, {"windows 8", 113, 114},
	{"windows7", 105, 105}, {"windows 7", 105, 105}, {"winvista", 73, 74}, {"winxp", 67, 71},
	{"linux", 36, 101},
}

// other is an operating system of which no more is known.
const (
	other   = 1
	other64 = 102
)

// guest is the operating system of a VM.
func guest(vm providers.VM) ovf.OS {
	out := ovf.OS{ID: other, Type: vm.GuestID, Description: vm.GuestOS}
	names := strings.ToLower(vm.GuestID + " " + vm.GuestOS)
	wide := strings.Contains(names, "64")
	if wide {
		out.ID = other64
	}
	for _, g := range guests {
		if strings.Contains(names, g.word) {
			out.ID = g.short
			if wide {
				out.ID = g.wide
			}
			return out
		}
	}
	return out
}
