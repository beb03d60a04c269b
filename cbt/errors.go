package cbt

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: a chain, a point, or a disk of a point that is not there.
	ErrNotFound = errors.New("not found")
	// ErrInUse: another process, or another handle of this one, has the chain.
	ErrInUse = errors.New("in use")
	// ErrNeeded: other points build upon what was to be deleted.
	ErrNeeded = errors.New("needed by other points")
	// ErrExists: a chain or a file is there already.
	ErrExists = errors.New("exists")
	// ErrReadOnly: the chain was opened to be read.
	ErrReadOnly = errors.New("opened read-only")
)

// LinkError names the file that keeps a point from being read. It wraps formats.ErrCorrupt where the
// file is missing or damaged.
type LinkError struct {
	Point int64  // that the file belongs to
	Disk  string // as the provider calls it
	File  string
	Err   error
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("point %d of disk %q: link %s: %v", e.Point, e.Disk, e.File, e.Err)
}

// Unwrap is the cause.
func (e *LinkError) Unwrap() error { return e.Err }

func (l link) fail(err error) error {
	return &LinkError{Point: l.point.Number, Disk: l.disk.Disk, File: l.disk.File, Err: err}
}

// FullError says that there is nothing to compare a disk with, or to build upon: it has to be copied in
// full, and Reason is why.
type FullError struct{ Reason string }

func (e *FullError) Error() string { return "it has to be copied in full: " + e.Reason }
