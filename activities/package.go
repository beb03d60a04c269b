package activities

import (
	"time"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities that make packages; see those in requests.go.
const (
	BeginPackageActivity = "begin-package" // Data.BeginPackage
	PackActivity         = "pack-disk"     // Data.PackDisk
	SealActivity         = "seal-package"  // Data.SealPackage
	CheckPackageActivity = "check-package" // Data.CheckPackage
)

// PackageRequest asks for the package of a job to be begun, or sealed.
type PackageRequest struct {
	Job    string         `json:"job"`
	Target Target         `json:"target"`
	VM     providers.VM   `json:"vm"`
	Disks  []PackagedDisk `json:"disks"`
	Time   time.Time      `json:"time"` // of the snapshot; the members of an archive get it
	Limits job.Limits     `json:"limits"`
}

// PackagedDisk is a disk of a package.
type PackagedDisk struct {
	Disk   providers.Disk `json:"disk"`
	File   string         `json:"file"`
	Inode  uint64         `json:"inode"`            // of its hidden file, before it is packed
	Stored int64          `json:"stored"`           // size of the file
	SHA256 string         `json:"sha256,omitempty"` // of the file, where it is known
}

// BegunPackage is an archive without the contents of its disks.
type BegunPackage struct {
	Offsets []int64 `json:"offsets"` // where the disks go
	Size    int64   `json:"size"`
}

// PackRequest asks for the hidden file of a disk to be moved into the archive.
type PackRequest struct {
	Job    string            `json:"job"`
	Ref    providers.DiskRef `json:"ref"`
	Size   int64             `json:"size"` // of the virtual disk
	Target Target            `json:"target"`
	Disk   PackagedDisk      `json:"disk"`
	Offset int64             `json:"offset"`
	Limits job.Limits        `json:"limits"`
}

// PackedDisk is a disk that is in the archive, and nowhere else.
type PackedDisk struct {
	SHA256 string `json:"sha256"`
}

// SealedPackage is a package that is whole; its files are hidden.
type SealedPackage struct {
	Files []FinishFile `json:"files"`
}

// FinishFile is a file beside the disks that is to be given its name.
type FinishFile struct {
	Name   string `json:"name"`
	Inode  uint64 `json:"inode"`
	Stored int64  `json:"stored"`
	SHA256 string `json:"sha256,omitempty"`
}

// CheckPackageRequest asks for an archive to be read again.
type CheckPackageRequest struct {
	Job    string     `json:"job"`
	Target Target     `json:"target"`
	Limits job.Limits `json:"limits"`
}

// CheckedPackage is an archive whose members are what its manifest says.
type CheckedPackage struct {
	SHA256 string `json:"sha256"` // of the archive
	Stored int64  `json:"stored"`
}

// Archive is the name of the archive that the disks go into; "" where they are files of their own.
func (t Target) Archive() string {
	if t.Package == PackageOVA {
		return t.Base + ".ova"
	}
	return ""
}

// PackageFiles are the names of the files of a package beside its disks.
func (t Target) PackageFiles() []string {
	switch t.Package {
	case PackageOVA:
		return []string{t.Archive()}
	case PackageOVF:
		return []string{t.descriptor(), t.sums()}
	}
	return nil
}

func (t Target) descriptor() string { return t.Base + ".ovf" }

// sums is the name of the manifest of a package.
func (t Target) sums() string { return t.Base + ".mf" }
