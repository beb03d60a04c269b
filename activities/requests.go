package activities

import (
	"time"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities. They are contracts like those of the workflows: never renamed.
const (
	AskActivity          = "ask"           // Control.Ask
	EndedActivity        = "ended"         // Control.Ended
	PlaceActivity        = "place"         // Control.Place
	InspectActivity      = "inspect"       // Control.Inspect
	PrepareActivity      = "prepare"       // Control.Prepare
	SnapshotActivity     = "snapshot"      // Control.Snapshot
	DropSnapshotActivity = "drop-snapshot" // Control.DropSnapshot
	TransferActivity     = "transfer-disk" // Data.TransferDisk
	LeaseActivity        = "lease-disks"   // Data.LeaseDisks
	VerifyActivity       = "verify-disk"   // Data.VerifyDisk
	FinishActivity       = "finish"        // Control.Finish
	DiscardActivity      = "discard"       // Control.Discard
	LeaveActivity        = "leave"         // Control.Leave
	ReadLogActivity      = "read-log"      // Control.ReadLog

	AskConversionActivity = "ask-conversion" // Control.AskConversion
	HostsActivity         = "hosts"          // Control.Hosts
	LookActivity          = "look-at-images" // Control.Look
	SettleActivity        = "settle"         // Control.Settle
	PrepareImagesActivity = "prepare-images" // Control.PrepareImages
	FinishImagesActivity  = "finish-images"  // Control.FinishImages
)

// AskRequest asks for a job to be admitted.
type AskRequest struct {
	Job  string   `json:"job"`
	Spec job.Spec `json:"spec"`
}

// Asked says that the job is in the queue of admission, and on what terms it will be worked on: they
// are the worker's configuration, and part of the history from here on.
type Asked struct {
	VM    string `json:"vm"` // name for people
	Terms Terms  `json:"terms"`
	// ID names the VM of an export, and Folder is what its folder is called.
	ID     providers.VMID `json:"id,omitempty"`
	Folder string         `json:"folder,omitempty"`
}

// Terms are the times that a workflow keeps to.
type Terms struct {
	HostAway    time.Duration `json:"host_away"`
	Heartbeat   time.Duration `json:"heartbeat"`
	CleanWithin time.Duration `json:"clean_within"`
	Format      string        `json:"format"` // of a job that names none
	// Track says that incremental exports may switch the tracking of a VM's changes on.
	Track bool `json:"track,omitempty"`
}

// EndedRequest asks which of these jobs have ended.
type EndedRequest struct {
	Jobs []string `json:"jobs"`
}

// EndedResult lists those that have.
type EndedResult struct {
	Jobs []string `json:"jobs"`
}

// PlaceRequest asks for a host that has a place for a job.
type PlaceRequest struct {
	Job string `json:"job"`
}

// Host is where a job works.
type Host struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// InspectRequest asks for the facts that a plan is made of.
type InspectRequest struct {
	Job    string        `json:"job"`
	Spec   job.Spec      `json:"spec"`
	Format string        `json:"format"`
	Waited time.Duration `json:"waited"` // for admission and a place; for the log
}

// Facts are what a plan is made of.
type Facts struct {
	Kind         string                `json:"kind"` // of provider
	Capabilities []string              `json:"capabilities"`
	VM           providers.VM          `json:"vm"` // without its snapshots
	Transports   []providers.Transport `json:"transports"`
	Format       FormatFacts           `json:"format"`
}

// FormatFacts are what the host knows of the disk format asked for.
type FormatFacts struct {
	Name string `json:"name"`
	Ext  string `json:"ext"`
	// Package is the kind of package that was asked for, whose disks are in this format; empty: none.
	Package string `json:"package,omitempty"`
	Why     string `json:"why,omitempty"` // why it cannot be written as asked; empty where it can
}

// Target is where an export goes, and how.
type Target struct {
	Output   string `json:"output"` // Spec.OutputPath
	Folder   string `json:"folder"` // below it; a safe name
	Format   string `json:"format"`
	Compress bool   `json:"compress,omitempty"`
	Thick    bool   `json:"thick,omitempty"`
	// Overwrite lets the files of an earlier export be replaced, once the new ones are whole.
	Overwrite bool `json:"overwrite,omitempty"`
	// Package is the kind of package that the disks become parts of, PackageOVA or PackageOVF; empty: none.
	// Base is what the names of its files begin with.
	Package string `json:"package,omitempty"`
	Base    string `json:"base,omitempty"`
	// Alone is the final name of the only file, which goes into Output itself; Folder is empty then.
	Alone string `json:"alone,omitempty"`
	// Create says how a disk is laid out where Compress is not all that was asked for.
	Create *formats.CreateOptions `json:"create,omitempty"`
	// Chain says that the folder holds a chain, to which the export adds a point.
	Chain bool `json:"chain,omitempty"`
}

// PrepareRequest asks for the output folder to be claimed and checked. What it writes down lets the
// host clean up after a job that died without doing so itself.
type PrepareRequest struct {
	Job         string         `json:"job"`
	Target      Target         `json:"target"`
	Files       []string       `json:"files"` // final names of the disks
	Need        int64          `json:"need"`  // bytes, estimated
	Connection  string         `json:"connection"`
	VM          providers.VMID `json:"vm"`
	SnapshotKey string         `json:"snapshot_key"`
	// Chain is whose chain the folder is to hold, of a target that is one.
	Chain cbt.VM `json:"chain,omitzero"`
}

// Prepared is the claimed folder.
type Prepared struct {
	Dir string `json:"dir"`
	// TookOver is the host that the job had claimed the same folder from: nothing is left there.
	TookOver string `json:"took_over,omitempty"`
	// Ours says that files with final names are this job's own, from another host, and may be replaced.
	Ours bool `json:"ours,omitempty"`
}

// SnapshotRequest asks for a snapshot of the source.
type SnapshotRequest struct {
	Job        string         `json:"job"`
	Connection string         `json:"connection"`
	VM         providers.VMID `json:"vm"`
	Key        string         `json:"key"`
	Quiesce    bool           `json:"quiesce,omitempty"`
}

// DropRequest asks for the snapshot with a key to be removed.
type DropRequest struct {
	Job        string         `json:"job"`
	Connection string         `json:"connection"`
	VM         providers.VMID `json:"vm"`
	Key        string         `json:"key"`
}

// TransferRequest asks for one disk to be copied.
type TransferRequest struct {
	Job        string            `json:"job"`
	Connection string            `json:"connection"`
	Ref        providers.DiskRef `json:"ref"`
	Label      string            `json:"label"`
	Size       int64             `json:"size"`
	Need       int64             `json:"need"` // bytes on the target, estimated
	Target     Target            `json:"target"`
	File       string            `json:"file"` // final name
	Workers    int               `json:"workers,omitempty"`
	Limits     job.Limits        `json:"limits"`
	// Image is what is copied where that is no disk of a VM; Ref only names it then.
	Image *Image `json:"image,omitempty"`
	// Chain is what is copied where that is a disk of a chain; Ref only names it then.
	Chain *ChainSource `json:"chain,omitempty"`
	// Else is the transport that the job goes on with where that of Ref is refused: then a refusal is not
	// waited out, it ends the activity with a [Refused] in its failure.
	Else string `json:"else,omitempty"`
}

// Refused is the detail of a failure that says that a transport cannot be used.
type Refused struct {
	Transport string `json:"transport"`
	Why       string `json:"why"`
}

// LeaseRequest asks for disks of a VM to be copied under one lease.
type LeaseRequest struct {
	Job        string                `json:"job"`
	Connection string                `json:"connection"`
	Ref        providers.SnapshotRef `json:"ref"`
	Transport  string                `json:"transport"`
	Why        string                `json:"why,omitempty"` // it is this one; for the log
	Target     Target                `json:"target"`
	Disks      []LeaseDisk           `json:"disks"`
	Workers    int                   `json:"workers,omitempty"`
	Limits     job.Limits            `json:"limits"`
}

// LeaseDisk is one disk to be copied under a lease.
type LeaseDisk struct {
	Disk  providers.DiskID `json:"disk"`
	Label string           `json:"label"`
	Size  int64            `json:"size"`
	Need  int64            `json:"need"` // bytes on the target, estimated
	File  string           `json:"file"` // final name
}

// Leased is disks that were copied, in the order of the request; they are still hidden.
type Leased struct {
	Disks []Transferred `json:"disks"`
}

// Transferred is a disk that was copied; it is still hidden.
type Transferred struct {
	Digest      string `json:"digest"`
	Read        int64  `json:"read"`   // all attempts on this host, but for what a kill cut off
	Stored      int64  `json:"stored"` // size of the file
	Inode       uint64 `json:"inode"`
	Attempts    int32  `json:"attempts"`
	ResumedFrom int64  `json:"resumed_from,omitempty"`
}

// VerifyRequest asks for one disk of the target to be read again.
type VerifyRequest struct {
	Job     string     `json:"job"`
	Disk    string     `json:"disk"`
	Label   string     `json:"label"`
	Size    int64      `json:"size"`
	Target  Target     `json:"target"`
	File    string     `json:"file"`
	Digest  string     `json:"digest"`
	Workers int        `json:"workers,omitempty"`
	Limits  job.Limits `json:"limits"`
}

// Verified is a disk whose bytes on the target are those that were received.
type Verified struct {
	SHA256 string `json:"sha256"`
	Stored int64  `json:"stored"`
}

// FinishRequest asks for the files to get their names, and for the manifest.
type FinishRequest struct {
	Job      string       `json:"job"`
	Target   Target       `json:"target"`
	Spec     job.Spec     `json:"spec"`
	VM       providers.VM `json:"vm"`
	Kind     string       `json:"kind"`
	Host     Host         `json:"host"`
	Started  time.Time    `json:"started"`
	Snapshot time.Time    `json:"snapshot"`
	Verified bool         `json:"verified"`
	Via      string       `json:"via"` // transport
	Disks    []FinishDisk `json:"disks"`
	// Package are the files of a package beside its disks.
	Package []FinishFile `json:"package,omitempty"`
}

// FinishDisk is one disk to be finished.
type FinishDisk struct {
	job.DiskResult
	Label string `json:"label"`
	Inode uint64 `json:"inode"`
}

// Finished is an export that is complete.
type Finished struct {
	Dir   string   `json:"dir"`
	Files []string `json:"files"` // paths, the manifest last
	Total int64    `json:"total"` // bytes of them together
}

// DiscardRequest asks for what a job has hidden in its output folder to be removed.
type DiscardRequest struct {
	Job    string `json:"job"`
	Target Target `json:"target"`
}

// LeaveRequest ends a job's stay on a host: its place is free, its own credentials are forgotten.
type LeaveRequest struct {
	Job        string    `json:"job"`
	Host       string    `json:"host,omitempty"` // id of the host that the job was on
	Connection string    `json:"connection"`
	State      job.State `json:"state"`
	Outcome    string    `json:"outcome"` // one sentence, for the log
	// Clean says that nothing of the job is left on the source or in the output folder.
	Clean bool `json:"clean"`
}
