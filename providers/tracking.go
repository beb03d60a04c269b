package providers

import (
	"context"

	"hypersdk/cbt"
)

// ChangeTracker is a platform that notes which blocks of a disk are written, so that what changed
// between two snapshots need not be found by reading all.
//
// The order that loses nothing is: keep the points of the last copy ([Disk.ChangeID] of its snapshot),
// delete that snapshot, take the next one, and ask for the changes up to it since the points kept.
type ChangeTracker interface {
	// SetTracking switches the tracking of all disks of a VM on or off. What is so already stays so, and
	// keeps its points. Switching on is Unsupported where the VM cannot be tracked, and Precondition where
	// a snapshot would make its map untrue. A VM that runs is tracked only from the next moment on that it
	// is stopped for, which a snapshot does: [Tracking] says so.
	SetTracking(ctx context.Context, vm VMID, on bool) error
	// Tracking says which disks of a VM are tracked, and what is missing for those that are not.
	Tracking(ctx context.Context, vm VMID) (TrackingStatus, error)
	// Changes tells the ranges of a disk that may differ between the point since, taken from the ChangeID
	// of an earlier snapshot's disk, and the snapshot of ref. Others do not differ: what cannot be proved
	// is TrackingLost, with a sentence, and then the disk is to be copied in full. The empty point asks for
	// all that is allocated; the rest reads as zeros. A caller makes sure besides that the disk still has
	// the size that it had at since.
	Changes(ctx context.Context, ref DiskRef, since cbt.Point) (cbt.Changes, error)
}

// TrackingStatus is how far the changes of a VM's disks are tracked.
type TrackingStatus struct {
	VM        VMID           `json:"vm"`
	Supported bool           `json:"supported" doc:"Whether the platform can track this VM"`
	Enabled   bool           `json:"enabled" doc:"Whether tracking is switched on"`
	Active    bool           `json:"active" doc:"Whether the changes of every disk that can be tracked are being tracked now"`
	Missing   []string       `json:"missing,omitempty" doc:"What is missing, in sentences"`
	Disks     []DiskTracking `json:"disks,omitempty"`
}

// DiskTracking is how far the changes of one disk are tracked.
type DiskTracking struct {
	ID       DiskID    `json:"id" example:"2000"`
	Label    string    `json:"label" example:"Hard disk 1"`
	Tracked  bool      `json:"tracked" doc:"Whether its changes are being tracked now"`
	ChangeID cbt.Point `json:"change_id,omitempty" doc:"The newest point of its tracking"`
	Missing  string    `json:"missing,omitempty" doc:"Why it is not tracked, in one sentence"`
}
