package blocks

import (
	"context"
	"fmt"
	"slices"

	"hypersdk/formats"
)

// Region is a named part of a file.
type Region struct {
	Name string
	Off  int64
	Len  int64
}

// End is the offset of the first byte behind the region.
func (r Region) End() int64 { return r.Off + r.Len }

// Overlap finds a region that shares bytes with [off, off+n).
func Overlap(all []Region, off, n int64) (Region, bool) {
	for _, r := range all {
		if off < r.End() && r.Off < off+n {
			return r, true
		}
	}
	return Region{}, false
}

// Report is what a check found.
type Report struct {
	Blocks    int64 `json:"blocks"`    // of the disk
	Allocated int64 `json:"allocated"` // of them stored in the file
	// Errors are what is wrong with the image; its disk cannot be trusted then. At most 100 are kept.
	Errors []string `json:"errors,omitempty"`
	// Warnings are what is not as the specification says and does no harm to the disk.
	Warnings []string `json:"warnings,omitempty"`
}

// Shared is the report in the words of all formats.
func (r Report) Shared() formats.Report {
	return formats.Report{
		Blocks: r.Blocks, Allocated: r.Allocated, Corruptions: int64(len(r.Errors)),
		Problems: r.Errors, Warnings: r.Warnings,
	}
}

const mostFindings = 100

// Errorf notes an error.
func (r *Report) Errorf(format string, args ...any) { note(&r.Errors, format, args) }

// Warnf notes a warning.
func (r *Report) Warnf(format string, args ...any) { note(&r.Warnings, format, args) }

func note(to *[]string, format string, args []any) {
	switch {
	case len(*to) < mostFindings:
		*to = append(*to, fmt.Sprintf(format, args...))
	case len(*to) == mostFindings:
		*to = append(*to, "and more")
	}
}

// Full says whether further errors would not be noted.
func (r *Report) Full() bool { return len(r.Errors) > mostFindings }

// cells is how many blocks are looked at in one pass of Disjoint: 4 MiB of memory.
const cells = 1 << 18

// Disjoint notes blocks that share bytes of a file of that length. Each takes size bytes; walk
// answers, for every stored block in whatever order, its number and its offset, and is called once
// for every 2^18 blocks that the file has room for.
func Disjoint(ctx context.Context, r *Report, file, size int64, walk func(yield func(block, off int64) bool) error) error {
	type place struct {
		off   int64
		block uint32
	}
	var found []place
	for low := int64(0); low < file && !r.Full(); low += cells * size {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		found = found[:0]
		high := low + cells*size
		err := walk(func(block, off int64) bool {
			// One block before the window may reach into it. Where there are more than have room side by
			// side, some of them overlap for certain.
			if off > low-size && off < high {
				found = append(found, place{off, uint32(block)})
			}
			return len(found) < cells+2
		})
		if err != nil {
			return err
		}
		slices.SortFunc(found, func(a, b place) int { return int(min(max(a.off-b.off, -1), 1)) })
		for i := 1; i < len(found) && !r.Full(); i++ {
			if a, b := found[i-1], found[i]; b.off < a.off+size && b.off >= low {
				r.Errorf("blocks %d and %d are stored in the same bytes of the file (%d and %d)", a.block, b.block, a.off, b.off)
			}
		}
	}
	return nil
}
