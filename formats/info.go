package formats

import "time"

// Info is how a disk is stored, in the words that all formats share and, in Details, in its own.
type Info struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual_size"`           // of the disk, bytes
	Variant     string `json:"variant,omitempty"`      // "dynamic", "streamOptimized", …
	ClusterSize int64  `json:"cluster_size,omitempty"` // of what is allocated at once, bytes
	Compression string `json:"compression,omitempty"`  // of the clusters that are packed, if there are any
	// Parent is what holds the rest of the disk; nil: all is here.
	Parent    *ParentInfo    `json:"parent,omitempty"`
	Snapshots []SnapshotInfo `json:"snapshots,omitempty"`
	Bitmaps   []BitmapInfo   `json:"bitmaps,omitempty"`
	Details   []Detail       `json:"details,omitempty"`
}

// ParentInfo names the parent of an image as the image does.
type ParentInfo struct {
	Name   string `json:"name"`
	Format string `json:"format,omitempty"`
}

// SnapshotInfo is a snapshot inside an image.
type SnapshotInfo struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Time        time.Time `json:"time"`
	VirtualSize int64     `json:"virtual_size"` // bytes
	StateSize   int64     `json:"state_size"`   // of the machine's memory, bytes
}

// BitmapInfo is a bitmap of changes inside an image.
type BitmapInfo struct {
	Name        string `json:"name"`
	Granularity int64  `json:"granularity"` // bytes of the disk a bit stands for
	Enabled     bool   `json:"enabled"`     // it goes on recording
	InUse       bool   `json:"in_use"`      // it was not closed: what it says is not to be trusted
}

// Detail is a fact that only one format knows of.
type Detail struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Report is what a check of an image found.
type Report struct {
	Blocks    int64 `json:"blocks,omitempty"` // of the disk
	Allocated int64 `json:"allocated"`        // of them stored in the file
	// Corruptions is how many contradictions were found, or that many and more: the disk cannot be
	// trusted.
	Corruptions int64 `json:"corruptions"`
	// Leaks is how many clusters of the file nothing uses: space is lost, nothing else.
	Leaks int64 `json:"leaks"`
	// Problems describes the first of both, a hundred or so.
	Problems []string `json:"problems,omitempty"`
	// Warnings are what is not as the specification says and does no harm to the disk.
	Warnings []string `json:"warnings,omitempty"`
}
