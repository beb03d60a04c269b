// Package vhd reads and writes VHD, the disk format of Virtual PC, Hyper-V's first generation, Xen
// and Azure ("Virtual Hard Disk Image Format Specification" 1.0).
//
// Read are fixed, dynamic and differencing disks. The parent of a differencing disk is opened through
// [formats.OpenOptions.Beside] by its stored names and must bear the stored unique id; without it the
// disk is refused, or read as one layer.
//
// Written are fixed and dynamic ones of up to 2040 GiB. A VHD counts in sectors: a disk that is no
// whole number of them gets zeros up to the next one.
package vhd

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
	Fixed        = "fixed"
	Dynamic      = "dynamic"
	Differencing = "differencing"
	// Azure is Fixed with zeros up to the next whole MiB, as Azure wants it.
	Azure = "azure"
)

// Format is VHD.
func Format() formats.Format {
	return formats.Format{
		Name:   "vhd",
		Alias:  []string{"vpc"},
		Ext:    ".vhd",
		Probe:  probe,
		Open:   Open,
		Create: Create,
		Info:   info,
		Check:  check,
	}
}

// probe finds the footer at the end, of 512 or 511 bytes, or its copy at the beginning.
func probe(head, tail []byte) bool {
	has := func(b []byte) bool { return len(b) >= 8 && string(b[:8]) == footerCookie }
	if has(head) || len(tail) >= footerSize && has(tail[len(tail)-footerSize:]) {
		return true
	}
	return len(tail) >= oldFooter && has(tail[len(tail)-oldFooter:])
}

// Open reads the disk stored in r.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return nil, fmt.Errorf("vhd: %w", err)
	}
	return d.open(ctx, o, nil)
}

// disk is a VHD whose footer and header are read.
type disk struct {
	file   blocks.File
	footer found
	header header // of a disk that is not fixed
	table  *blocks.Table
	bits   *blocks.Pages   // the file, for bitmaps
	meta   []blocks.Region // where in the file the disk is described
}

func load(r blocks.File) (*disk, error) {
	f, err := findFooter(r)
	if err != nil {
		return nil, err
	}
	d := &disk{file: r, footer: f}
	if f.kind == typeFixed {
		if f.size() > f.at {
			return nil, fmt.Errorf("footer: current size %d, the file holds %d: %w", f.size(), f.at, formats.ErrCorrupt)
		}
		return d, nil
	}
	if f.footer.header < footerSize || f.footer.header > 1<<62 {
		return nil, fmt.Errorf("footer: data offset %d: %w", f.footer.header, formats.ErrCorrupt)
	}
	b := make([]byte, headerSize)
	if err := r.ReadFull(b, int64(f.footer.header)); err != nil {
		return nil, fmt.Errorf("dynamic header: %w", err)
	}
	if d.header, err = parseHeader(b); err != nil {
		return nil, err
	}
	if err := d.header.fits(f.size(), r); err != nil {
		return nil, err
	}
	d.table = blocks.NewTable(r, d.header.table, d.header.entries, 4, binary.BigEndian)
	d.bits = blocks.NewPages(r, 0, r.Size)
	d.meta = d.metadata()
	return d, nil
}

// open makes an Image; above are the files that led to this one.
func (d *disk) open(ctx context.Context, o formats.OpenOptions, above []string) (formats.Image, error) {
	if o.Snapshot != "" {
		return nil, fmt.Errorf("vhd: snapshot %q: a VHD has none inside: %w", o.Snapshot, formats.ErrFormat)
	}
	img := blocks.Disk{Format: "vhd", File: d.file, Size: d.footer.size(), Locate: d.locate}
	if d.footer.kind == typeFixed {
		img.Locate = func(off, n int64) (blocks.Piece, error) {
			return blocks.Piece{Len: n, Origin: blocks.Here, Off: off}, nil
		}
	}
	if d.footer.kind == typeDifferencing && !o.Layer {
		parent, err := d.parent(ctx, o, above)
		if err != nil {
			return nil, err
		}
		img.Parent = parent
	}
	return blocks.NewImage(ctx, img), nil
}

func (d *disk) parent(ctx context.Context, o formats.OpenOptions, above []string) (*blocks.Parent, error) {
	names, err := d.header.names(d.file)
	if err != nil {
		return nil, fmt.Errorf("vhd: %w", err)
	}
	return blocks.FindParent(blocks.Search{
		Format: "vhd",
		Names:  names,
		What:   fmt.Sprintf("%q with unique id %s", d.header.parentName, d.header.parentID),
		Open: func(f formats.Opened, o formats.OpenOptions, above []string) (formats.Image, error) {
			p, err := load(blocks.File{ReaderAt: f, Size: f.Size})
			if err != nil {
				return nil, err
			}
			if p.footer.id != d.header.parentID {
				return nil, fmt.Errorf("its unique id is %s: %w", p.footer.id, blocks.ErrStranger)
			}
			return p.open(ctx, o, above)
		},
	}, o, above)
}

// free is the table entry of a block that is not stored.
const free = 0xffffffff

// locate finds a piece of a dynamic or differencing disk. A sector whose bit is clear was never
// written: it is zeros, or the parent's.
func (d *disk) locate(off, n int64) (blocks.Piece, error) {
	size := d.header.block
	i, in := off/size, off%size
	v, run, err := d.table.Run(i, (in+n+size-1)/size)
	if err != nil {
		return blocks.Piece{}, fmt.Errorf("block allocation table: %w", err)
	}
	if v == free {
		return blocks.Piece{Len: run*size - in, Origin: d.unwritten()}, nil
	}
	at := int64(v) * sector
	if err := d.admit(i, at); err != nil {
		return blocks.Piece{}, err
	}
	n = min(n, size-in)
	first := in / sector
	m := blocks.Bitmap{Pages: d.bits, Off: at, HighFirst: true}
	set, run, err := m.Run(first, (in+n+sector-1)/sector-first)
	if err != nil {
		return blocks.Piece{}, fmt.Errorf("bitmap of block %d: %w", i, err)
	}
	p := blocks.Piece{Len: (first+run)*sector - in, Origin: blocks.Here, Off: at + d.header.bitmap() + in}
	if !set {
		p.Origin = d.unwritten()
	}
	return p, nil
}

func (d *disk) unwritten() blocks.Origin {
	if d.footer.kind == typeDifferencing {
		return blocks.Below
	}
	return blocks.Zero
}

// admit checks where the table says that block i is stored: within the file, and not in what
// describes the disk.
func (d *disk) admit(i, at int64) error {
	n := d.header.bitmap() + min(d.header.block, d.footer.size()-i*d.header.block)
	if !d.file.Holds(at, n) {
		return fmt.Errorf("block allocation table: entry %d points at byte %d, the file ends at %d: %w", i, at, d.file.Size, formats.ErrCorrupt)
	}
	if m, ok := blocks.Overlap(d.meta, at, n); ok {
		return fmt.Errorf("block allocation table: entry %d points at byte %d, into the %s: %w", i, at, m.Name, formats.ErrCorrupt)
	}
	return nil
}

func (d *disk) metadata() []blocks.Region {
	all := []blocks.Region{
		{Name: "copy of the footer", Off: 0, Len: footerSize},
		{Name: "dynamic header", Off: int64(d.footer.header), Len: headerSize},
		{Name: "block allocation table", Off: d.header.table, Len: d.header.entries * 4},
	}
	if d.footer.at > 0 {
		all = append(all, blocks.Region{Name: "footer", Off: d.footer.at, Len: d.footer.len})
	}
	return all
}
