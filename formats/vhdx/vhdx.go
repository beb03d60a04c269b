// Package vhdx reads and writes VHDX, the disk format of Hyper-V ([MS-VHDX]).
//
// Read are fixed, dynamic and differencing disks with sectors of 512 or 4096 bytes. A log that was
// left in use is replayed in memory; the file is never written. The parent of a differencing disk is
// opened through [formats.OpenOptions.Beside] by its stored names and must bear the stored write
// identifier; without it the disk is refused, or read as one layer.
//
// Written are dynamic and fixed disks of up to 64 TiB with sectors of 512 bytes. A disk that is no
// whole number of them gets zeros up to the next one.
package vhdx

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
)

// Format is VHDX.
func Format() formats.Format {
	return formats.Format{
		Name:   "vhdx",
		Ext:    ".vhdx",
		Probe:  probe,
		Open:   Open,
		Create: Create,
		Info:   info,
		Check:  check,
	}
}

func probe(head, _ []byte) bool {
	return len(head) >= len(identifierSignature) && string(head[:len(identifierSignature)]) == identifierSignature
}

// Open reads the disk stored in r.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	d, err := load(ctx, blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return nil, fmt.Errorf("vhdx: %w", err)
	}
	return d.open(ctx, o, nil)
}

// disk is a VHDX whose headers, regions and metadata are read.
type disk struct {
	file     blocks.File // with its log replayed
	creator  string
	header   header
	replayed int // log entries
	regions  regions
	meta     metadata
	ratio    int64 // blocks of the disk to one block of bitmaps
	table    *blocks.Table
	bits     *blocks.Pages // the file, for bitmaps
}

func load(ctx context.Context, r blocks.File) (*disk, error) {
	d := &disk{}
	var err error
	if d.creator, err = readIdentifier(r); err != nil {
		return nil, err
	}
	if d.header, err = findHeader(r); err != nil {
		return nil, err
	}
	if d.file, d.replayed, err = replay(ctx, r, d.header); err != nil {
		return nil, err
	}
	if d.regions, err = findRegions(d.file, d.header); err != nil {
		return nil, err
	}
	if d.meta, err = readMetadata(d.file, d.regions.metadata); err != nil {
		return nil, err
	}
	d.ratio = chunkRatio(d.meta.logical, d.meta.block)
	bat, entries := d.regions.bat, d.entries()
	if entries*8 > bat.Len || !d.file.Holds(bat.Off, entries*8) {
		return nil, fmt.Errorf("region table: block allocation table of %d bytes at %d, the disk needs %d entries and the file ends at %d: %w",
			bat.Len, bat.Off, entries, d.file.Size, formats.ErrCorrupt)
	}
	d.table = blocks.NewTable(d.file, bat.Off, entries, 8, binary.LittleEndian)
	d.bits = blocks.NewPages(d.file, 0, d.file.Size)
	return d, nil
}

// readIdentifier reads the file type identifier, [MS-VHDX] 2.2.1, and answers who made the file.
func readIdentifier(r blocks.File) (string, error) {
	b := make([]byte, len(identifierSignature)+512)
	if r.Size < int64(len(b)) {
		return "", fmt.Errorf("a file of %d bytes has no identifier: %w", r.Size, formats.ErrFormat)
	}
	if err := r.ReadFull(b, identifierAt); err != nil {
		return "", fmt.Errorf("identifier: %w", err)
	}
	if !probe(b, nil) {
		return "", fmt.Errorf("no identifier %q: %w", identifierSignature, formats.ErrFormat)
	}
	return decode16(b[len(identifierSignature):]), nil
}

// chunkRatio is how many blocks one block of bitmaps covers: 2^23 sectors.
func chunkRatio(logical, block int64) int64 { return logical << 23 / block }

// entries is how many entries the table needs. Behind every ratio blocks of the disk there is one for
// their bitmaps, which a disk without a parent does not need after the last.
func (d *disk) entries() int64 {
	n := (d.meta.size + d.meta.block - 1) / d.meta.block
	if d.meta.differs {
		return (n + d.ratio - 1) / d.ratio * (d.ratio + 1)
	}
	return tableLen(n, d.ratio)
}

func tableLen(n, ratio int64) int64 {
	if n == 0 {
		return 0
	}
	return n + (n-1)/ratio
}

// open makes an Image; above are the files that led to this one.
func (d *disk) open(ctx context.Context, o formats.OpenOptions, above []string) (formats.Image, error) {
	if o.Snapshot != "" {
		return nil, fmt.Errorf("vhdx: snapshot %q: a VHDX has none inside: %w", o.Snapshot, formats.ErrFormat)
	}
	img := blocks.Disk{Format: "vhdx", File: d.file, Size: d.meta.size, Locate: d.locate}
	if d.meta.differs && !o.Layer {
		parent, err := d.parent(ctx, o, above)
		if err != nil {
			return nil, err
		}
		img.Parent = parent
	}
	return blocks.NewImage(ctx, img), nil
}

// parentIDs are the write identifiers that the parent may have, [MS-VHDX] 2.6.2.6.3.
func (d *disk) parentIDs() (ids []blocks.ID, err error) {
	for _, key := range []string{parentLinkage, parentLinkage2} {
		text, ok := d.meta.parent[key]
		if !ok {
			continue
		}
		id, err := blocks.ParseID(text)
		if err != nil {
			return nil, fmt.Errorf("parent locator: %s: %w: %w", key, err, formats.ErrCorrupt)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("parent locator: no %s: %w", parentLinkage, formats.ErrCorrupt)
	}
	return ids, nil
}

func (d *disk) parentNames() []string {
	return blocks.Names([]string{d.meta.parent[relativePath]}, []string{d.meta.parent[volumePath], d.meta.parent[absolutePath]})
}

func (d *disk) parent(ctx context.Context, o formats.OpenOptions, above []string) (*blocks.Parent, error) {
	ids, err := d.parentIDs()
	if err != nil {
		return nil, fmt.Errorf("vhdx: %w", err)
	}
	return blocks.FindParent(blocks.Search{
		Format: "vhdx",
		Names:  d.parentNames(),
		What:   fmt.Sprintf("write identifier %s", ids[0]),
		Open: func(f formats.Opened, o formats.OpenOptions, above []string) (formats.Image, error) {
			p, err := load(ctx, blocks.File{ReaderAt: f, Size: f.Size})
			if err != nil {
				return nil, err
			}
			for _, id := range ids {
				if p.header.dataWrite == id {
					return p.open(ctx, o, above)
				}
			}
			return nil, fmt.Errorf("its write identifier is %s: %w", p.header.dataWrite, blocks.ErrStranger)
		},
	}, o, above)
}

// States of a block, [MS-VHDX] 2.5.1.1.
const (
	notPresent       = 0 // zeros, or what the parent has
	undefined        = 1
	zero             = 2
	unmapped         = 3
	fullyPresent     = 6
	partiallyPresent = 7 // what the bitmap says, else what the parent has
)

func (d *disk) locate(off, n int64) (blocks.Piece, error) {
	size := d.meta.block
	i, in := off/size, off%size
	wanted := (in + n + size - 1) / size
	v, run, err := d.table.Run(i+i/d.ratio, min(wanted, d.ratio-i%d.ratio))
	if err != nil {
		return blocks.Piece{}, fmt.Errorf("block allocation table: %w", err)
	}
	p := blocks.Piece{Len: run*size - in, Origin: blocks.Zero}
	switch state := v & 7; {
	case state == notPresent:
		if d.meta.differs {
			p.Origin = blocks.Below
		}
		return p, nil
	case state == undefined || state == zero || state == unmapped:
		return p, nil
	case state == fullyPresent || state == partiallyPresent && d.meta.differs:
		at, err := d.place(i, v)
		if err != nil {
			return blocks.Piece{}, err
		}
		p = blocks.Piece{Len: size - in, Origin: blocks.Here, Off: at + in}
		if state == partiallyPresent {
			return d.partial(i, in, min(n, p.Len), p)
		}
		return p, nil
	}
	return blocks.Piece{}, fmt.Errorf("block allocation table: block %d has state %d: %w", i, v&7, formats.ErrCorrupt)
}

// partial cuts a piece of block i to sectors that are all here or all the parent's.
func (d *disk) partial(i, in, n int64, p blocks.Piece) (blocks.Piece, error) {
	chunk := i / d.ratio
	v, _, err := d.table.Run(chunk*(d.ratio+1)+d.ratio, 1)
	if err != nil {
		return p, fmt.Errorf("block allocation table: %w", err)
	}
	if v&7 != fullyPresent {
		return p, fmt.Errorf("block allocation table: block %d is partially present, its bitmap has state %d: %w", i, v&7, formats.ErrCorrupt)
	}
	at, err := d.bitmapAt(chunk, v)
	if err != nil {
		return p, err
	}
	sector := d.meta.logical
	first := in / sector
	m := blocks.Bitmap{Pages: d.bits, Off: at + i%d.ratio*(d.meta.block/sector/8)}
	set, run, err := m.Run(first, (in+n+sector-1)/sector-first)
	if err != nil {
		return p, fmt.Errorf("bitmap of block %d: %w", i, err)
	}
	p.Len = (first+run)*sector - in
	if !set {
		p.Origin = blocks.Below
	}
	return p, nil
}

// offsetOf is where a table entry points: whole MiB, in its upper 44 bits.
func offsetOf(v uint64) int64 { return int64(min(v>>20, maxOffset>>20)) << 20 }

// place checks where the table says that block i is stored.
func (d *disk) place(i int64, v uint64) (int64, error) {
	at := offsetOf(v)
	return at, d.admit(fmt.Sprintf("block %d", i), at, min(d.meta.block, d.meta.size-i*d.meta.block))
}

// bitmapAt checks where the table says that the bitmaps of a chunk are stored.
func (d *disk) bitmapAt(chunk int64, v uint64) (int64, error) {
	at := offsetOf(v)
	return at, d.admit(fmt.Sprintf("bitmap %d", chunk), at, mib)
}

// admit checks that something lies within the file, and not in what describes the disk.
func (d *disk) admit(what string, at, n int64) error {
	if !d.file.Holds(at, n) {
		return fmt.Errorf("block allocation table: %s is at byte %d, the file ends at %d: %w", what, at, d.file.Size, formats.ErrCorrupt)
	}
	if r, ok := blocks.Overlap(d.regions.all, at, n); ok {
		return fmt.Errorf("block allocation table: %s is at byte %d, in the %s: %w", what, at, r.Name, formats.ErrCorrupt)
	}
	return nil
}
