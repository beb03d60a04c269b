// Package providers is the vocabulary of platforms that run virtual machines, and the contract that
// each of them is reached by.
//
// What a provider can do is which methods it has: [Provider] is three methods, everything else is a
// small capability that is found by [As] and listed by [Capabilities]. A provider is a folder
// (providers/vsphere, …) with a [Driver]; providers/all lists them. Nothing here, or in a provider,
// has heard of Temporal.
//
// Errors of every provider are an [*Error] with a [Reason]; who is to act follows from the reason.
package providers

import (
	"context"
	"io"
	"iter"
	"time"

	"hypersdk/cbt"
	"hypersdk/formats"
)

// Provider is a live connection to one platform. It may be used from several goroutines at once.
type Provider interface {
	Kind() string
	// Ping makes sure that the connection works and is allowed to.
	Ping(ctx context.Context) error
	// Close ends the session, if there is one. A closed provider is not used again.
	Close() error
}

// VMID names a VM on its platform for as long as the VM lives ("vm-42").
type VMID string

// DiskID names a disk of a VM for as long as it is attached ("2000").
type DiskID string

// SnapshotID names a snapshot on its platform ("snapshot-7").
type SnapshotID string

// Power is whether a VM runs.
type Power string

const (
	PowerOn        Power = "poweredOn"
	PowerOff       Power = "poweredOff"
	PowerSuspended Power = "suspended"
	PowerUnknown   Power = "unknown"
)

// Word is the state as people say it: "on", "off", "suspended".
func (p Power) Word() string {
	switch p {
	case PowerOn:
		return "on"
	case PowerOff:
		return "off"
	}
	return string(p)
}

// VM is a virtual machine as its platform describes it. A listing fills the fields of the first
// group only; [Inventory.VM] fills all that the platform knows.
type VM struct {
	ID           VMID   `json:"id" doc:"Name of the VM on its platform, stable while it lives" example:"vm-42"`
	Name         string `json:"name" example:"web-01"`
	Path         string `json:"path" doc:"Inventory path" example:"/datacenter/vm/web-01"`
	PowerState   Power  `json:"power_state" enum:"poweredOn,poweredOff,suspended,unknown"`
	GuestOS      string `json:"guest_os" doc:"Guest operating system as the platform names it"`
	MemoryMB     int64  `json:"memory_mb" doc:"Memory in MiB"`
	NumCPU       int    `json:"num_cpu"`
	StorageBytes int64  `json:"storage_bytes" doc:"Space that the VM takes on its datastores"`

	UUID            string     `json:"uuid,omitempty" doc:"BIOS UUID"`
	GuestID         string     `json:"guest_id,omitempty" doc:"Guest operating system by the platform's own identifier" example:"ubuntu64Guest"`
	Host            string     `json:"host,omitempty" doc:"Host that the VM runs on"`
	Firmware        string     `json:"firmware,omitempty" enum:"bios,efi"`
	HardwareVersion string     `json:"hardware_version,omitempty" example:"vmx-19"`
	Hostname        string     `json:"hostname,omitempty" doc:"Name that the guest gives itself"`
	Addresses       []string   `json:"ip_addresses,omitempty"`
	Annotation      string     `json:"annotation,omitempty"`
	ChangeTracking  bool       `json:"change_tracking,omitempty" doc:"Whether changed block tracking is on"`
	Template        bool       `json:"template,omitempty"`
	Disks           []Disk     `json:"disks,omitempty"`
	NICs            []NIC      `json:"nics,omitempty"`
	Snapshots       []Snapshot `json:"snapshots,omitempty" doc:"All snapshots, parents before children"`
	CDROMs          []CDROM    `json:"cdroms,omitempty"`
}

// Disk is a virtual disk of a VM.
type Disk struct {
	ID            DiskID `json:"id" example:"2000"`
	Label         string `json:"label" example:"Hard disk 1"`
	Size          int64  `json:"size" doc:"Size of the virtual disk in bytes"`
	Used          int64  `json:"used,omitempty" doc:"Bytes that it takes on its datastore, where the platform says"`
	Thin          bool   `json:"thin,omitempty"`
	Path          string `json:"path" doc:"Where the platform stores it" example:"[datastore1] web-01/web-01.vmdk"`
	Datastore     string `json:"datastore,omitempty"`
	DatastoreType string `json:"datastore_type,omitempty" example:"VMFS"`
	Controller    string `json:"controller,omitempty" doc:"Kind of controller" example:"pvscsi"`
	Bus           int    `json:"bus"`
	Unit          int    `json:"unit"`
	Mode          string `json:"mode,omitempty" doc:"Disk mode; an independent disk has no part in snapshots" example:"persistent"`
	// ChangeID is the point that a snapshot is to the tracking of the disk's changes; see [ChangeTracker].
	// It says something only among the disks of a snapshot.
	ChangeID cbt.Point `json:"change_id,omitempty" doc:"Point in the tracking of its changes, where they are tracked"`
}

// NIC is a network card of a VM.
type NIC struct {
	ID        string `json:"id"`
	Label     string `json:"label"`
	Model     string `json:"model" example:"vmxnet3"`
	MAC       string `json:"mac"`
	Network   string `json:"network"`
	Connected bool   `json:"connected"`
}

// CDROM is a CD or DVD drive of a VM.
type CDROM struct {
	ID        string `json:"id"`
	Label     string `json:"label"`
	Media     string `json:"media,omitempty" doc:"Image or device in it"`
	Connected bool   `json:"connected"`
}

// Snapshot is a snapshot of a VM. Disks is filled by [Snapshotter.Snapshot] only: the disks as they
// were at that moment, which is what can be read.
type Snapshot struct {
	ID          SnapshotID `json:"id"`
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Created     time.Time  `json:"created"`
	Parent      SnapshotID `json:"parent,omitempty"`
	Quiesced    bool       `json:"quiesced,omitempty" doc:"Whether the guest's file systems were at rest"`
	Memory      bool       `json:"memory,omitempty" doc:"Whether it holds the memory of the guest"`
	Disks       []Disk     `json:"disks,omitempty"`
}

// Filter narrows a listing. The zero Filter is all VMs.
type Filter struct {
	Name   string // part of the name, without regard to case
	Folder string // inventory path that the VM lies below
	Power  Power
}

// Inventory lists VMs.
type Inventory interface {
	// VMs yields VMs ordered by path; it stops at the first error.
	VMs(ctx context.Context, f Filter) iter.Seq2[VM, error]
	// VM finds one VM by its id, its inventory path, or its name where only one VM has it, and
	// describes it in full. NotFound says what was looked for; an ambiguous name is Invalid and the
	// message lists the paths.
	VM(ctx context.Context, ref string) (VM, error)
}

// SnapshotOptions say how a snapshot is taken.
type SnapshotOptions struct {
	// Key names the snapshot for ever: asking again with the same key answers the snapshot that is
	// there. It becomes (part of) its name, or of its description where it has a name of its own.
	Key         string
	Name        string // for people; empty: made of the key
	Description string
	Memory      bool // with the memory of the guest
	Quiesce     bool // with the guest's file systems at rest, where the guest's tools can; see Snapshot.Quiesced
}

// Snapshotter takes snapshots. Both methods may be repeated: the first is idempotent in opt.Key, the
// second succeeds when the snapshot, or the VM, is no longer there.
type Snapshotter interface {
	Snapshot(ctx context.Context, vm VMID, opt SnapshotOptions) (Snapshot, error)
	DeleteSnapshot(ctx context.Context, vm VMID, id SnapshotID) error
	// FindSnapshot looks for the snapshot with this key; NotFound where there is none.
	FindSnapshot(ctx context.Context, vm VMID, key string) (Snapshot, error)
}

// Transport is one way to read the disks of a VM, and whether it may be used for this VM as it is now.
type Transport struct {
	Name      string `json:"name" example:"datastore"`
	Why       string `json:"why,omitempty" doc:"Why it cannot be used; empty where it can"`
	Resumable bool   `json:"resumable" doc:"Whether a cut costs at most a segment"`
	Leased    bool   `json:"leased,omitempty" doc:"Whether the disks of a VM are read together under one lease, each front to back"`
}

// DiskRef names a disk as it was when a snapshot was taken.
type DiskRef struct {
	VM        VMID       `json:"vm"`
	Snapshot  SnapshotID `json:"snapshot"`
	Disk      DiskID     `json:"disk"`
	Transport string     `json:"transport,omitempty"` // "": the provider's best
}

// SnapshotRef names the disks of a VM as they were when a snapshot was taken; without a snapshot, the
// disks of a VM that is off.
type SnapshotRef struct {
	VM       VMID       `json:"vm"`
	Snapshot SnapshotID `json:"snapshot,omitempty"`
}

// DiskSource reads disks block by block, in any order, as of a snapshot.
type DiskSource interface {
	// Transports lists the ways to read the disks of vm once our own snapshot is its newest, best
	// first, each usable or with the reason why not.
	Transports(ctx context.Context, vm VM) ([]Transport, error)
	// OpenDisk checks again that the transport is safe and fails with Precondition where it no longer
	// is. ctx bounds the life of the image.
	OpenDisk(ctx context.Context, ref DiskRef) (formats.Image, error)
}

// Confirmer is an optional ability of an image that [DiskSource] opened, where the platform could change
// it under whoever reads it: a snapshot that somebody removes lets the disk be written again.
type Confirmer interface {
	// Confirm says, after the last read, whether everything that was read since the image was opened is
	// the disk as of its snapshot. NotFound and Precondition say that it need not be.
	Confirm(ctx context.Context) error
}

// DiskLeaser reads the disks of a VM under a lease: all of them at once, each front to back. Its
// transports are those that [DiskSource.Transports] calls leased.
type DiskLeaser interface {
	// Lease asks for the disks and waits until they can be read. A VM has one lease at a time: while
	// somebody else has one, the error is Precondition. What a program that was killed left of a lease of
	// this connection on the VM is ended first. Without a snapshot the VM must be off, and stays as it is
	// until the lease ends. ctx bounds the life of the lease: when it ends, reads fail.
	Lease(ctx context.Context, ref SnapshotRef) (Lease, error)
}

// Lease is the right to read the disks of a VM. It keeps itself alive, also while nobody reads, until
// Commit or Close. Its disks may be read at the same time, from different goroutines.
type Lease interface {
	Disks() []LeasedDisk
	// Open reads a disk from its beginning, again if it was read before. tap, where it is not nil, is
	// given the bytes of the stored form as they come, before they are understood, and all of them by the
	// time the stream answers io.EOF; its error ends the stream. A stream that answered io.EOF is what the
	// platform says that it sent, where the platform says so. One that was cut is Unavailable, bytes that
	// are not those that were sent are Corrupt. ctx bounds the life of the stream.
	Open(ctx context.Context, disk DiskID, tap io.Writer) (formats.Stream, error)
	// Err says why the lease no longer holds: Unavailable, where another one may do better. nil: it holds.
	Err() error
	// Commit compares what the platform says that it sent with what came, as far as Open could not, and
	// ends the lease.
	Commit(ctx context.Context) error
	// Close without Commit aborts the lease.
	Close() error
}

// LeasedDisk is a disk that can be read under a lease.
type LeasedDisk struct {
	ID     DiskID
	Size   int64  // of the virtual disk, in bytes
	Stored int64  // bytes that will come, estimated; 0: the platform does not say
	Format string // of the bytes that come, by the name of the disk format: "vmdk"
}
