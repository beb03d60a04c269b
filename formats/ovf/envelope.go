// Package ovf reads and writes packages of virtual machines: the Open Virtualization Format (DMTF
// DSP0243), as a folder of files or as one tar file, an OVA.
//
// A package is an [Envelope] (what the machines are and which files hold their disks), a [Manifest] of
// the sums of its files, a certificate that signs the manifest, and the files. An OVA is read front to
// back without unpacking it ([Reader]), or where it is stored ([Index]), and written in one pass into a
// file ([WriteFile]) or in two into a pipe ([Write]); where the sizes of its files are known beforehand,
// in one into a pipe ([WriteOnce]), or a file at a time in any order ([Layout]).
package ovf

import (
	"fmt"
	"strings"

	"hypersdk/formats"
)

// Envelope is the descriptor of a package.
type Envelope struct {
	Files    []File    `json:"files"`
	Disks    []Disk    `json:"disks"`
	Networks []Network `json:"networks,omitempty"`
	Systems  []System  `json:"systems"`
}

// File is a file of the package.
type File struct {
	ID   string `json:"id"`
	Href string `json:"href"`           // its name in the package
	Size int64  `json:"size,omitempty"` // bytes as stored; 0: not said
	Gzip bool   `json:"gzip,omitempty"` // it is compressed
	// ChunkSize is the size of all but the last of the parts that it is split into, whose names are
	// Href and nine digits (".000000000"). 0: it is not split.
	ChunkSize int64 `json:"chunk_size,omitempty"`
}

// Disk is a virtual disk.
type Disk struct {
	ID        string `json:"id"`
	File      string `json:"file,omitempty"` // id of the file that holds it; "": an empty disk
	Capacity  int64  `json:"capacity"`       // bytes
	Populated int64  `json:"populated,omitempty"`
	Format    string `json:"format"` // URL of its format
	Parent    string `json:"parent,omitempty"`
}

// StreamVMDK is the format of a disk in a streamOptimized VMDK, the one that VMware imports.
const StreamVMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

// Network is a network that machines are connected to, by the name it has in the package.
type Network struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
}

// Firmware is what a machine boots with.
type Firmware string

const (
	BIOS Firmware = "bios"
	EFI  Firmware = "efi"
)

// System is a virtual machine.
type System struct {
	ID              string       `json:"id"`
	Name            string       `json:"name"`
	Annotation      string       `json:"annotation,omitempty"`
	OS              OS           `json:"os"`
	HardwareVersion string       `json:"hardware_version,omitempty"` // "vmx-19"; of several the first
	CPUs            int          `json:"cpus"`
	CoresPerSocket  int          `json:"cores_per_socket,omitempty"`
	Memory          int64        `json:"memory"` // bytes
	Firmware        Firmware     `json:"firmware"`
	SecureBoot      bool         `json:"secure_boot,omitempty"`
	Controllers     []Controller `json:"controllers,omitempty"`
	Drives          []Drive      `json:"drives,omitempty"`
	NICs            []NIC        `json:"nics,omitempty"`
	// Config are VMware's settings that have no field here, in their order.
	Config []Setting `json:"config,omitempty"`
}

// OS is the operating system of a machine.
type OS struct {
	ID          int    `json:"id"`             // CIM_OperatingSystem.OsType
	Type        string `json:"type,omitempty"` // VMware's name: "ubuntu64Guest"
	Description string `json:"description,omitempty"`
}

// Setting is a name and a value.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Bus is the kind of a controller.
type Bus string

const (
	IDE  Bus = "ide"
	SCSI Bus = "scsi"
	SATA Bus = "sata"
	NVMe Bus = "nvme"
	USB  Bus = "usb"
)

// Controller is what drives are attached to.
type Controller struct {
	ID     string `json:"id"` // instance id, of all items of a machine the only one
	Bus    Bus    `json:"bus"`
	Model  string `json:"model,omitempty"` // "lsilogic", "VirtualSCSI", "AHCI"
	Number int    `json:"number"`          // of its bus
}

// DriveKind is what a drive holds.
type DriveKind string

const (
	HardDisk DriveKind = "disk"
	CDROM    DriveKind = "cdrom"
	Floppy   DriveKind = "floppy"
)

// Drive is a drive of a machine.
type Drive struct {
	ID         string    `json:"id"`
	Name       string    `json:"name,omitempty"` // "Hard disk 1"
	Kind       DriveKind `json:"kind"`
	Disk       string    `json:"disk,omitempty"`       // id of the disk in it
	File       string    `json:"file,omitempty"`       // id of the file in it, of an ISO image
	Controller string    `json:"controller,omitempty"` // instance id
	Unit       int       `json:"unit"`
}

// NIC is a network card.
type NIC struct {
	ID        string `json:"id"`
	Name      string `json:"name,omitempty"` // "Network adapter 1"
	Network   string `json:"network"`
	Model     string `json:"model,omitempty"` // "VmxNet3", "E1000"
	MAC       string `json:"mac,omitempty"`
	Unit      int    `json:"unit"`
	Connected bool   `json:"connected"` // when the machine is powered on
}

// File finds a file by its id.
func (e *Envelope) File(id string) (File, bool) {
	for _, f := range e.Files {
		if f.ID == id {
			return f, true
		}
	}
	return File{}, false
}

// Disk finds a disk by its id.
func (e *Envelope) Disk(id string) (Disk, bool) {
	for _, d := range e.Disks {
		if d.ID == id {
			return d, true
		}
	}
	return Disk{}, false
}

// check refuses an envelope that contradicts itself.
func (e *Envelope) check() error {
	ids := make(map[string]bool)
	names := make(map[string]bool)
	for _, f := range e.Files {
		if f.ID == "" || ids[f.ID] {
			return fmt.Errorf("ovf: file id %q is empty or not the only one: %w", f.ID, formats.ErrCorrupt)
		}
		if err := checkName(f.Href); err != nil {
			return fmt.Errorf("ovf: file %q: %w", f.ID, err)
		}
		if names[f.Href] {
			return fmt.Errorf("ovf: two files are called %q: %w", f.Href, formats.ErrCorrupt)
		}
		if f.Size < 0 || f.ChunkSize < 0 {
			return fmt.Errorf("ovf: file %q of %d bytes in chunks of %d: %w", f.ID, f.Size, f.ChunkSize, formats.ErrCorrupt)
		}
		ids[f.ID], names[f.Href] = true, true
	}
	disks := make(map[string]bool)
	for _, d := range e.Disks {
		if d.ID == "" || disks[d.ID] {
			return fmt.Errorf("ovf: disk id %q is empty or not the only one: %w", d.ID, formats.ErrCorrupt)
		}
		if d.File != "" && !ids[d.File] {
			return fmt.Errorf("ovf: disk %q is in file %q, which the package does not have: %w", d.ID, d.File, formats.ErrCorrupt)
		}
		if d.Capacity < 0 || d.Populated < 0 {
			return fmt.Errorf("ovf: disk %q of %d bytes: %w", d.ID, d.Capacity, formats.ErrCorrupt)
		}
		disks[d.ID] = true
	}
	if len(e.Systems) == 0 {
		return fmt.Errorf("ovf: no virtual machine is described: %w", formats.ErrCorrupt)
	}
	for _, s := range e.Systems {
		for _, d := range s.Drives {
			if d.Disk != "" && !disks[d.Disk] || d.File != "" && !ids[d.File] {
				return fmt.Errorf("ovf: machine %q: drive %q holds %q, which the package does not have: %w", s.Name, d.Name, d.Disk+d.File, formats.ErrCorrupt)
			}
		}
	}
	return nil
}

// checkName refuses names that are not simply those of files beside the descriptor: what comes from
// outside must not lead anywhere else.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
	case len(name) > 255:
	case strings.ContainsAny(name, `/\:`), strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
	default:
		return nil
	}
	return fmt.Errorf("%q is not the name of a file in the package: %w", name, formats.ErrCorrupt)
}
