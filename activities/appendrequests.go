package activities

import (
	"time"

	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities of incremental exports.
const (
	FindChainActivity   = "find-chain"   // Control.FindChain
	AppendActivity      = "append-point" // Data.AppendPoint
	FinishPointActivity = "finish-point" // Control.FinishPoint
)

// FindChainRequest asks a host whether it has the chain of a VM.
type FindChainRequest struct {
	Job    string         `json:"job"`
	Output string         `json:"output"` // Spec.OutputPath
	Folder string         `json:"folder"` // below it; a safe name
	VM     providers.VMID `json:"vm"`
}

// ChainFound is what a host sees of a chain.
type ChainFound struct {
	Host Host `json:"host"`
	Free int  `json:"free"` // places
	// Has says that there is a chain; Ours that it can be read and is the VM's, and then Newest is the time
	// of its newest point.
	Has    bool      `json:"has,omitempty"`
	Ours   bool      `json:"ours,omitempty"`
	Newest time.Time `json:"newest,omitzero"`
}

// AppendRequest asks for a point to be added to the chain in the folder of a target.
type AppendRequest struct {
	Job        string               `json:"job"`
	Connection string               `json:"connection"`
	VM         cbt.VM               `json:"vm"`
	Snapshot   providers.SnapshotID `json:"snapshot"`
	Time       time.Time            `json:"time"` // of the snapshot
	Transport  string               `json:"transport"`
	Target     Target               `json:"target"`
	Disks      []AppendDisk         `json:"disks"`
	Full       bool                 `json:"full,omitempty"`      // copy all of them in full
	Audit      bool                 `json:"audit,omitempty"`     // hold what the platform says against the truth
	NoVerify   bool                 `json:"no_verify,omitempty"` // do not read again what was written
	Workers    int                  `json:"workers,omitempty"`
	Limits     job.Limits           `json:"limits"`
}

// AppendDisk is one disk of a point.
type AppendDisk struct {
	Disk     providers.DiskID `json:"disk"`
	Label    string           `json:"label"`
	Size     int64            `json:"size"`
	ChangeID cbt.Point        `json:"change_id,omitempty"` // of the snapshot
}

// Appended is a point that is part of its chain.
type Appended struct {
	Dir   string           `json:"dir"`
	Point job.PointResult  `json:"point"`
	Disks []job.DiskResult `json:"disks"` // in the order of the request
	Files []string         `json:"files"` // paths, the manifest last
	Total int64            `json:"total"` // bytes of them together
	// Alerts say what somebody has to know although the point is whole.
	Alerts []string `json:"alerts,omitempty"`
}

// FinishPointRequest ends the job's claim on the folder of a chain: from then on the point stays.
type FinishPointRequest struct {
	Job    string `json:"job"`
	Target Target `json:"target"`
	Number int64  `json:"number"`
}
