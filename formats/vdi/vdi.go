// Package vdi reads and writes VDI, the disk format of VirtualBox, version 1.
//
// Read are dynamic, static and differencing images, with blocks of any power of two and extra data
// before each. A differencing image knows its parent by its UUID only, so what is asked for through
// [formats.OpenOptions.Beside] is "{UUID}.vdi", as VirtualBox names its snapshots: rename or link a
// base so, or have Beside know it.
//
// Written are dynamic and static images in blocks of 1 MiB, laid out as VirtualBox does. A VDI counts
// in sectors: a disk that is no whole number of them gets zeros up to the next one.
package vdi

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// Subformats.
const (
	Dynamic      = "dynamic"
	Static       = "static"
	Differencing = "differencing"
)

// Format is VDI.
func Format() formats.Format {
	return formats.Format{
		Name:   "vdi",
		Ext:    ".vdi",
		Probe:  probe,
		Open:   Open,
		Create: Create,
		Info:   info,
		Check:  check,
	}
}

func probe(head, _ []byte) bool {
	return len(head) >= signatureAt+4 && binary.LittleEndian.Uint32(head[signatureAt:]) == signature
}

// Open reads the disk stored in r.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return nil, fmt.Errorf("vdi: %w", err)
	}
	return d.open(ctx, o, nil)
}

// disk is a VDI whose header is read.
type disk struct {
	file   blocks.File
	header header
	table  *blocks.Table
}

func load(r blocks.File) (*disk, error) {
	if r.Size < headerBuffer {
		return nil, fmt.Errorf("a file of %d bytes has no header: %w", r.Size, formats.ErrFormat)
	}
	b := make([]byte, headerBuffer)
	if err := r.ReadFull(b, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if !r.Holds(h.table, h.blocks*4) {
		return nil, fmt.Errorf("header: block map of %d entries at %d, the file ends at %d: %w", h.blocks, h.table, r.Size, formats.ErrCorrupt)
	}
	return &disk{file: r, header: h, table: blocks.NewTable(r, h.table, h.blocks, 4, binary.LittleEndian)}, nil
}

// open makes an Image; above are the files that led to this one.
func (d *disk) open(ctx context.Context, o formats.OpenOptions, above []string) (formats.Image, error) {
	if o.Snapshot != "" {
		return nil, fmt.Errorf("vdi: snapshot %q: a VDI has none inside: %w", o.Snapshot, formats.ErrFormat)
	}
	img := blocks.Disk{Format: "vdi", File: d.file, Size: d.header.size, Locate: d.locate}
	if d.header.kind == typeDifferencing && !o.Layer {
		parent, err := d.parent(ctx, o, above)
		if err != nil {
			return nil, err
		}
		img.Parent = parent
	}
	return blocks.NewImage(ctx, img), nil
}

func (d *disk) parent(ctx context.Context, o formats.OpenOptions, above []string) (*blocks.Parent, error) {
	h := d.header
	return blocks.FindParent(blocks.Search{
		Format: "vdi",
		Names:  []string{parentName(h.parent)},
		What:   fmt.Sprintf("UUID %s", h.parent),
		Open: func(f formats.Opened, o formats.OpenOptions, above []string) (formats.Image, error) {
			p, err := load(blocks.File{ReaderAt: f, Size: f.Size})
			switch {
			case err != nil:
				return nil, err
			case p.header.id != h.parent:
				return nil, fmt.Errorf("its UUID is %s: %w", p.header.id, blocks.ErrStranger)
			case h.parentMod != (blocks.ID{}) && p.header.modified != h.parentMod:
				return nil, fmt.Errorf("it was written to after this image was made upon it (modification UUID %s instead of %s): %w",
					p.header.modified, h.parentMod, formats.ErrCorrupt)
			}
			return p.open(ctx, o, above)
		},
	}, o, above)
}

// parentName is the name that a parent is asked for by.
func parentName(id blocks.ID) string { return "{" + id.String() + "}.vdi" }

func (d *disk) locate(off, n int64) (blocks.Piece, error) {
	h := d.header
	i, in := off/h.block, off%h.block
	v, run, err := d.table.Run(i, (in+n+h.block-1)/h.block)
	if err != nil {
		return blocks.Piece{}, fmt.Errorf("block map: %w", err)
	}
	switch v {
	case entryFree:
		origin := blocks.Zero
		if h.kind == typeDifferencing {
			origin = blocks.Below
		}
		return blocks.Piece{Len: run*h.block - in, Origin: origin}, nil
	case entryZero:
		return blocks.Piece{Len: run*h.block - in, Origin: blocks.Zero}, nil
	}
	at, err := d.place(i, int64(v))
	if err != nil {
		return blocks.Piece{}, err
	}
	return blocks.Piece{Len: h.block - in, Origin: blocks.Here, Off: at + in}, nil
}

// place answers where the bytes of block i are, which is the v-th in the file.
func (d *disk) place(i, v int64) (int64, error) {
	h := d.header
	at := h.data + v*h.stride() + h.extra
	if v >= h.blocks {
		return 0, fmt.Errorf("block map: entry %d is %d of %d blocks: %w", i, v, h.blocks, formats.ErrCorrupt)
	}
	if n := min(h.block, h.size-i*h.block); !d.file.Holds(at, n) {
		return 0, fmt.Errorf("block map: entry %d is at byte %d, the file ends at %d: %w", i, at, d.file.Size, formats.ErrCorrupt)
	}
	return at, nil
}
