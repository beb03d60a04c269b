package vdi

import (
	"context"
	"fmt"
	"io"

	"hypersdk/formats/blocks"
)

// Info is what a VDI says of itself.
type Info struct {
	Subformat    string  `json:"subformat"`
	DiskSize     int64   `json:"disk_size"` // of the disk, bytes
	Version      string  `json:"version"`
	Banner       string  `json:"banner,omitempty"` // what the file begins with: who made it
	Comment      string  `json:"comment,omitempty"`
	BlockSize    int64   `json:"block_size"`
	BlockExtra   int64   `json:"block_extra,omitempty"` // bytes before those of the disk in each block
	Blocks       int64   `json:"blocks"`
	Allocated    int64   `json:"allocated"`
	ID           string  `json:"id"`
	Modification string  `json:"modification"`
	Parent       *Parent `json:"parent,omitempty"`
}

// Parent is what a differencing image knows of its parent.
type Parent struct {
	ID           string `json:"id"`
	Modification string `json:"modification"`
	Name         string `json:"name"` // that it is asked for by
}

// Inspect reads what the VDI stored in r says of itself. Its parent is not opened.
func Inspect(_ context.Context, r io.ReaderAt, size int64) (Info, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return Info{}, fmt.Errorf("vdi: %w", err)
	}
	h := d.header
	i := Info{
		Subformat:    h.subformat(),
		DiskSize:     h.size,
		Version:      fmt.Sprintf("%d.%d", h.version>>16, h.version&0xffff),
		Banner:       h.banner,
		Comment:      h.comment,
		BlockSize:    h.block,
		BlockExtra:   h.extra,
		Blocks:       h.blocks,
		Allocated:    h.allocated,
		ID:           h.id.String(),
		Modification: h.modified.String(),
	}
	if h.kind == typeDifferencing {
		i.Parent = &Parent{ID: h.parent.String(), Modification: h.parentMod.String(), Name: parentName(h.parent)}
	}
	return i, nil
}

// Check reads all that describes the disk stored in r and reports where it contradicts itself. The
// error is for what keeps it from looking; its parent is not opened.
func Check(ctx context.Context, r io.ReaderAt, size int64) (blocks.Report, error) {
	var rep blocks.Report
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return rep, fmt.Errorf("vdi: %w", err)
	}
	h := d.header
	rep.Blocks = h.needed()
	err = d.walk(ctx, func(i, v int64) bool {
		rep.Allocated++
		if _, err := d.place(i, v); err != nil {
			rep.Errorf("%v", err)
		}
		return !rep.Full()
	})
	if err == nil && len(rep.Errors) == 0 {
		err = blocks.Disjoint(ctx, &rep, h.blocks, 1, func(yield func(int64, int64) bool) error { return d.walk(ctx, yield) })
	}
	if err != nil {
		return rep, fmt.Errorf("vdi: %w", err)
	}
	if h.allocated != rep.Allocated {
		rep.Warnf("header: %d allocated blocks, the block map has %d", h.allocated, rep.Allocated)
	}
	return rep, nil
}

// walk yields every stored block of the disk and its place among the blocks of the file.
func (d *disk) walk(ctx context.Context, yield func(block, place int64) bool) error {
	for i, n := int64(0), d.header.needed(); i < n; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		v, run, err := d.table.Run(i, n-i)
		if err != nil {
			return fmt.Errorf("block map: %w", err)
		}
		for ; v < entryZero && run > 0; run-- {
			if !yield(i, int64(v)) {
				return nil
			}
			i++
		}
		i += run
	}
	return nil
}
