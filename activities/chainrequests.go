package activities

import (
	"path/filepath"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities that work on chains.
const (
	AskChainActivity      = "ask-chain"         // Control.AskChain
	LookAtChainActivity   = "look-at-chain"     // Control.LookAtChain
	DescribeChainActivity = "describe-chain"    // Control.DescribeChain
	CheckChainActivity    = "check-chain"       // Data.CheckChain
	MergeChainActivity    = "merge-chain"       // Data.MergeChain
	DiscardMergeActivity  = "discard-merge"     // Control.DiscardMerge
	DeletePointActivity   = "delete-point"      // Control.DeletePoint
	MeasureActivity       = "measure-increment" // Control.Measure
)

// ChainKey begins the keys of tickets for chains; the others are of VMs.
const ChainKey = "chain:"

// AskChainRequest asks for a job on a chain to be admitted.
type AskChainRequest struct {
	Job      string `json:"job"`
	Path     string `json:"path"`
	Priority int    `json:"priority,omitempty"`
}

// LookAtChainRequest asks a host whether it has a chain, and for what a job on it has to know.
type LookAtChainRequest struct {
	Job  string        `json:"job"`
	Work job.ChainWork `json:"work"`
}

// ChainSeen is a chain that was looked at for a job. A host answers it inside a [Looked].
type ChainSeen struct {
	ID     string `json:"id"`
	VM     cbt.VM `json:"vm"`
	Points int    `json:"points"`
	Point  int64  `json:"point"` // that the job works on; 0: on all
	Weight int64  `json:"weight"`
	// Disks are those that the job copies, in the order of the chain.
	Disks []DiskSeen `json:"disks,omitempty"`
}

// DiskSeen is a disk of a point that a job copies.
type DiskSeen struct {
	Disk   string `json:"disk"`
	Number int    `json:"number"` // among the disks that the chain has seen, from 1
	Size   int64  `json:"size"`
	Held   int64  `json:"held"` // bytes of the files that it is read through
	File   string `json:"file"`
	Digest string `json:"digest"`
}

// ChainSource is a disk of a chain that is copied into an image of its own.
type ChainSource struct {
	Path   string `json:"path"` // folder of the chain
	ID     string `json:"id"`   // of the chain
	Point  int64  `json:"point"`
	Disk   string `json:"disk"`
	Digest string `json:"digest"` // of the disk at the point
}

// ChainRequest asks for work on a chain.
type ChainRequest struct {
	Job    string        `json:"job"`
	Work   job.ChainWork `json:"work"`
	Seen   ChainSeen     `json:"seen"`
	Limits job.Limits    `json:"limits"`
}

// ChainDone is what came of it.
type ChainDone struct {
	Points int             `json:"points"` // that the chain has now
	Files  []string        `json:"files,omitempty"`
	Total  int64           `json:"total,omitempty"` // bytes of them together
	Disks  []cbt.Disk      `json:"disks,omitempty"` // that a merge has written anew
	Check  *job.ChainCheck `json:"check,omitempty"`
	// First is the first problem that a check found, in one sentence.
	First string `json:"first,omitempty"`
}

// DescribeChainRequest asks a host what a chain is made of.
type DescribeChainRequest struct {
	Target Target `json:"target"`
	Newest bool   `json:"newest,omitempty"` // only the newest point
}

// DescribedChain is what a chain is made of; nil, with the reason, where the host does not have it.
type DescribedChain struct {
	View    *job.ChainView   `json:"view,omitempty"`
	Missing string           `json:"missing,omitempty"`
	Reason  providers.Reason `json:"reason,omitempty"`
}

// MeasureRequest asks what an incremental copy of a VM into its chain would read.
type MeasureRequest struct {
	Touch
	// Snapshot is what the changes are asked up to; "": the VM is not tracked, and Why says why.
	Snapshot providers.SnapshotID `json:"snapshot,omitempty"`
	Why      string               `json:"why,omitempty"`
	// Points are where the tracking of its disks stood then; one that is not tracked has none.
	Points map[providers.DiskID]cbt.Point `json:"points,omitempty"`
	Target *Target                        `json:"target,omitempty"` // the chain; nil: there is none
}

// Measured is what an incremental copy would read.
type Measured struct {
	Disks []job.AnalyzedDisk `json:"disks"`
}

// What is told of a chain, and what a job may work on, is bounded by what a history should hold.
const (
	maxToldProblems = 100
	maxToldDisks    = 300 // lines of all points together
	maxChainDisks   = 120 // of one point, in one job
)

// PlaceOf is the target that names the folder of a chain by its path.
func PlaceOf(path string) Target {
	return Target{Output: filepath.Dir(path), Folder: filepath.Base(path)}
}

// ChainLayout is how the images of flattened disks are laid out.
func ChainLayout(w job.ChainWork) formats.CreateOptions {
	var o formats.CreateOptions
	if w.Compress {
		o.Compression = "zlib"
	}
	return o
}
