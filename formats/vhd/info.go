package vhd

import (
	"context"
	"fmt"
	"io"
	"time"

	"hypersdk/formats/blocks"
)

// Info is what a VHD says of itself.
type Info struct {
	Subformat      string    `json:"subformat"`
	DiskSize       int64     `json:"disk_size"`    // of the disk as it is read, bytes
	CurrentSize    int64     `json:"current_size"` // as stored
	OriginalSize   uint64    `json:"original_size"`
	Geometry       Geometry  `json:"geometry"`
	Creator        string    `json:"creator"`
	CreatorVersion string    `json:"creator_version"`
	CreatorOS      string    `json:"creator_os"`
	Created        time.Time `json:"created"`
	ID             string    `json:"id"`
	BlockSize      int64     `json:"block_size,omitempty"`
	SavedState     bool      `json:"saved_state,omitempty"` // a guest was suspended while it used the disk
	Parent         *Parent   `json:"parent,omitempty"`
}

// Parent is what a differencing disk knows of its parent.
type Parent struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Names   []string  `json:"names"` // in the order they are tried
}

// Inspect reads what the VHD stored in r says of itself. Its parent is not opened.
func Inspect(_ context.Context, r io.ReaderAt, size int64) (Info, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return Info{}, fmt.Errorf("vhd: %w", err)
	}
	f := d.footer
	i := Info{
		Subformat:      f.subformat(),
		DiskSize:       f.size(),
		CurrentSize:    int64(f.currentSize),
		OriginalSize:   f.originalSize,
		Geometry:       f.geometry,
		Creator:        printable(f.creator),
		CreatorVersion: fmt.Sprintf("%d.%d", f.creatorVersion>>16, f.creatorVersion&0xffff),
		CreatorOS:      printable(f.creatorOS),
		Created:        timeOf(f.timestamp),
		ID:             f.id.String(),
		BlockSize:      d.header.block,
		SavedState:     f.saved != 0,
	}
	if f.kind == typeDifferencing {
		names, err := d.header.names(d.file)
		if err != nil {
			return Info{}, fmt.Errorf("vhd: %w", err)
		}
		i.Parent = &Parent{ID: d.header.parentID.String(), Created: timeOf(d.header.parentTime), Names: names}
	}
	return i, nil
}

// Check reads all that describes the disk stored in r and reports where it contradicts itself. The
// error is for what keeps it from looking; its parent is not opened.
func Check(ctx context.Context, r io.ReaderAt, size int64) (blocks.Report, error) {
	var rep blocks.Report
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return rep, fmt.Errorf("vhd: %w", err)
	}
	f := d.footer
	switch {
	case f.damage != nil:
		rep.Errorf("%v; its copy at the beginning was used", f.damage)
	case f.len == oldFooter:
		rep.Warnf("footer: 511 bytes long, as before Virtual PC 2004")
	}
	if f.size() != int64(f.currentSize) {
		rep.Warnf("footer: current size %d, but a disk that %q made has the %d bytes of its geometry", f.currentSize, printable(f.creator), f.size())
	}
	if f.kind == typeFixed {
		return rep, nil
	}
	if err := d.checkCopy(&rep); err != nil {
		return rep, fmt.Errorf("vhd: %w", err)
	}
	for i, m := range d.meta {
		if o, ok := blocks.Overlap(d.meta[:i], m.Off, m.Len); ok {
			rep.Errorf("the %s and the %s share bytes of the file", o.Name, m.Name)
		}
	}
	if err := d.checkBlocks(ctx, &rep); err != nil {
		return rep, fmt.Errorf("vhd: %w", err)
	}
	return rep, nil
}

// checkCopy compares the footer with its copy.
func (d *disk) checkCopy(rep *blocks.Report) error {
	if d.footer.at == 0 {
		return nil
	}
	b := make([]byte, footerSize)
	if err := d.file.ReadFull(b, 0); err != nil {
		return err
	}
	c, err := parseFooter(b)
	switch {
	case err != nil:
		rep.Errorf("copy of the %v", err)
	case c != d.footer.footer:
		rep.Errorf("copy of the footer: not what the footer says")
	}
	return nil
}

// checkBlocks walks the table: every block within the file, none in what describes the disk, none in
// another.
func (d *disk) checkBlocks(ctx context.Context, rep *blocks.Report) error {
	rep.Blocks = (d.footer.size() + d.header.block - 1) / d.header.block
	err := d.walk(ctx, func(i, at int64) bool {
		rep.Allocated++
		if err := d.admit(i, at); err != nil {
			rep.Errorf("%v", err)
		}
		return !rep.Full()
	})
	if err != nil || len(rep.Errors) > 0 {
		return err
	}
	return blocks.Disjoint(ctx, rep, d.file.Size, d.header.bitmap()+d.header.block, func(yield func(int64, int64) bool) error {
		return d.walk(ctx, yield)
	})
}

// walk yields every stored block of the disk and its offset in the file.
func (d *disk) walk(ctx context.Context, yield func(block, off int64) bool) error {
	n := (d.footer.size() + d.header.block - 1) / d.header.block
	for i := int64(0); i < n; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		v, run, err := d.table.Run(i, n-i)
		if err != nil {
			return fmt.Errorf("block allocation table: %w", err)
		}
		for ; v != free && run > 0; run-- {
			if !yield(i, int64(v)*sector) {
				return nil
			}
			i++
		}
		i += run
	}
	return nil
}
