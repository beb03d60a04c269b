// Package cbt is incremental copies: which bytes of a disk changed between two points in time, what a
// disk is with only those in it, and chains of a base and deltas that keep every point readable.
//
// A platform that tracks changes answers a [Set] of ranges; where none does, [Compare] finds the ranges
// by the digests of the blocks, and [Audit] tells whether a tracker left one out; a [Chain] does both for
// its newest point, and goes on where it was killed. [View] makes an image of an image's ranges, so that a
// copy of it is an incremental copy; [Stack] reads images through one another. A [Chain] is a folder with
// a base and deltas for every disk of a VM.
package cbt

// Point names the state of a disk at one time as its provider does: a change id, a checkpoint, a
// bitmap. It is opaque to everyone else. The empty Point is before all writes.
type Point string

// Tracking says how changes were found.
type Tracking string

const (
	// Tracked: the platform noted the writes.
	Tracked Tracking = "tracking"
	// Compared: all blocks of both points were digested and compared.
	Compared Tracking = "comparison"
)

// Changes are the ranges of a disk that may differ between two points; all others are the same.
type Changes struct {
	From, To Point
	By       Tracking
	Ranges   Set
	// Since is the number of the point of a chain that they were compared with; 0: of none.
	Since int64
}
