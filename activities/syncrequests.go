package activities

import (
	"time"

	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities of warm copies.
const (
	NextSnapshotActivity = "next-snapshot" // Control.NextSnapshot
	SyncActivity         = "sync-disk"     // Data.SyncDisk
)

// NextSnapshotRequest asks for the snapshot of a round in the place of that of the round before.
type NextSnapshotRequest struct {
	Job        string         `json:"job"`
	Connection string         `json:"connection"`
	VM         providers.VMID `json:"vm"`
	Last       string         `json:"last,omitempty"` // key of the snapshot that goes; empty: there is none
	Key        string         `json:"key"`
	Quiesce    bool           `json:"quiesce,omitempty"`
}

// SyncRequest asks for the target of a disk to be brought from the round before to this one.
type SyncRequest struct {
	Job        string            `json:"job"`
	Connection string            `json:"connection"`
	Round      int               `json:"round"`
	Ref        providers.DiskRef `json:"ref"` // in the snapshot of this round
	Label      string            `json:"label"`
	Size       int64             `json:"size"`
	Need       int64             `json:"need"` // bytes on the target, estimated
	// Since is the point of the disk in the snapshot of the round before, and Point that in this one;
	// empty: its changes were not tracked.
	Since   cbt.Point  `json:"since,omitempty"`
	Point   cbt.Point  `json:"point,omitempty"`
	Target  Target     `json:"target"`
	File    string     `json:"file"` // final name
	Workers int        `json:"workers,omitempty"`
	Limits  job.Limits `json:"limits"`
}

// transfer is the request as one to copy the whole disk.
func (in SyncRequest) transfer() TransferRequest {
	return TransferRequest{
		Job: in.Job, Connection: in.Connection, Ref: in.Ref, Label: in.Label, Size: in.Size, Need: in.Need,
		Target: in.Target, File: in.File, Workers: in.Workers, Limits: in.Limits,
	}
}

// How a disk was brought to a round.
const (
	SyncedInFull    = "full"
	SyncedTracked   = string(cbt.Tracked)
	SyncedComparing = string(cbt.Compared)
)

// SyncedDisk is a disk whose target holds a round; it is still hidden.
type SyncedDisk struct {
	Transferred
	By      string        `json:"by"`            // SyncedInFull, SyncedTracked, SyncedComparing
	Why     string        `json:"why,omitempty"` // it was not by what the platform tracked
	Changed int64         `json:"changed"`       // bytes taken as changed; of a full copy what may be allocated
	Asked   time.Duration `json:"asked"`         // to find out what had changed
	Copied  time.Duration `json:"copied"`        // to copy it, by the attempt that was the last
}
