package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// grains is a sparse extent of any kind: a directory of tables of grains, each found by a number.
type grains struct {
	file    blocks.File
	size    int64 // of the extent, bytes of the disk
	grain   int64 // bytes
	entries int64 // of a table
	gd      int64 // offset of the directory in the file
	rgd     int64 // of the second directory, 0: there is none
	width   int64 // bytes of an entry, in the directory as in a table
	packed  bool  // grains are zlib streams
	marked  bool  // behind a marker
	largest int64 // bytes of a packed grain
	meta    []blocks.Region

	// table answers where the table of a directory's entry is, 0 for none.
	table func(entry uint64) (int64, error)
	// find answers what a table's entry is, and where its grain is in the file.
	find func(entry uint64) (blocks.Origin, int64, error)

	// pages are of the file; they are given up when many extents are in use.
	pages atomic.Pointer[blocks.Table]
}

// numbers is the file as an array of entries.
func (g *grains) numbers() *blocks.Table {
	if t := g.pages.Load(); t != nil {
		return t
	}
	t := blocks.NewTable(g.file, 0, g.file.Size/g.width, int(g.width), binary.LittleEndian)
	g.pages.Store(t)
	return t
}

// tables is how many grain tables the extent has.
func (g *grains) tables() int64 {
	cover := g.entries * g.grain
	return (g.size + cover - 1) / cover
}

// maxTables bounds the walks over a directory: 2 PiB in tables of 32 MiB.
const maxTables = 1 << 26

// fits checks that the directory lies within the file.
func (g *grains) fits() error {
	if g.tables() > maxTables {
		return fmt.Errorf("header: %d grain tables: %w", g.tables(), formats.ErrFormat)
	}
	if g.gd <= 0 || g.gd%g.width != 0 || !g.file.Holds(g.gd, g.tables()*g.width) {
		return fmt.Errorf("grain directory: %d entries at byte %d, the file ends at %d: %w", g.tables(), g.gd, g.file.Size, formats.ErrCorrupt)
	}
	return nil
}

// piece is where a stretch of an extent comes from.
type piece struct {
	blocks.Piece
	packed bool
	// Of a packed piece: it is the bytes from skip on of the grain of full bytes whose marker (or zlib
	// stream) is at Off, and ends hint bytes behind it, or somewhere else.
	skip, full, hint int64
	no               int64 // number of the grain
}

// locate finds where the bytes [off, off+n) of the extent begin to come from.
func (g *grains) locate(off, n int64) (piece, error) {
	no, in := off/g.grain, off%g.grain
	at, run, err := g.tableOf(no / g.entries)
	if err != nil {
		return piece{}, err
	}
	if at == 0 {
		cover := g.entries * g.grain
		return piece{Piece: blocks.Piece{Len: run*cover - off%cover, Origin: blocks.Below}}, nil
	}
	i := no % g.entries
	origin, place, run, err := g.entry(no, at, g.entries-i)
	if err != nil {
		return piece{}, err
	}
	if origin != blocks.Here {
		return piece{Piece: blocks.Piece{Len: run*g.grain - in, Origin: origin}}, nil
	}
	if err := g.admit(no, place); err != nil {
		return piece{}, err
	}
	p := piece{Piece: blocks.Piece{Len: g.grain - in, Origin: origin, Off: place + in}, no: no}
	if g.packed {
		p.Off, p.packed, p.skip, p.full = place, true, in, min(g.grain, g.size-no*g.grain)
		p.Len = p.full - in
		p.hint, err = g.packedLen(no, at, place)
		return p, err
	}
	// Grains that follow one another in the file are one piece.
	for p.Len < n && i+1 < g.entries {
		i, no = i+1, no+1
		if !g.follows(no, at, p.Off+p.Len) {
			break
		}
		p.Len += g.grain
	}
	return p, nil
}

// follows says whether grain no is stored at that place. What is wrong with it is told when it is its
// turn.
func (g *grains) follows(no, table, place int64) bool {
	o, at, _, err := g.entry(no, table, 1)
	return err == nil && o == blocks.Here && at == place && g.admit(no, at) == nil
}

// tableOf answers where table i is in the file, or 0 and how many tables from i on are not there.
func (g *grains) tableOf(i int64) (at, run int64, err error) {
	v, run, err := g.numbers().Run(g.gd/g.width+i, g.tables()-i)
	if err != nil {
		return 0, 0, fmt.Errorf("grain directory: %w", err)
	}
	at, err = g.table(v)
	if err == nil && at != 0 && (at%g.width != 0 || !g.file.Holds(at, g.entries*g.width)) {
		err = fmt.Errorf("at byte %d, the file ends at %d: %w", at, g.file.Size, formats.ErrCorrupt)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("grain table %d: %w", i, err)
	}
	return at, run, nil
}

// entry answers what the table at a byte of the file says of grain no, and how many grains from it on,
// at most limit, are the same.
func (g *grains) entry(no, table, limit int64) (o blocks.Origin, at, run int64, err error) {
	v, run, err := g.numbers().Run(table/g.width+no%g.entries, limit)
	if err == nil {
		o, at, err = g.find(v)
	}
	if err != nil {
		return 0, 0, 0, fmt.Errorf("grain %d: %w", no, err)
	}
	return o, at, run, nil
}

// admit checks that a grain is stored within the file, and not in what describes it.
func (g *grains) admit(no, at int64) error {
	n := min(g.grain, g.size-no*g.grain)
	if g.packed {
		n = grainHead
	}
	if !g.file.Holds(at, n) {
		return fmt.Errorf("grain %d: at byte %d, the file ends at %d: %w", no, at, g.file.Size, formats.ErrCorrupt)
	}
	if m, ok := blocks.Overlap(g.meta, at, n); ok {
		return fmt.Errorf("grain %d: at byte %d, in the %s: %w", no, at, m.Name, formats.ErrCorrupt)
	}
	return nil
}

// packedLen guesses how long the grain at a byte of the file is when packed: up to where the next one
// begins, if that is near.
func (g *grains) packedLen(no, table, at int64) (int64, error) {
	guess := min(g.grain/2+sector, g.largest)
	if no%g.entries+1 < g.entries && (no+1)*g.grain < g.size {
		o, next, _, err := g.entry(no+1, table, 1)
		if err == nil && o == blocks.Here && next > at && next-at <= g.largest {
			guess = next - at
		}
	}
	return min(guess, g.file.Size-at), nil
}

// sparse reads the header of a hosted sparse extent.
func sparse(f blocks.File) (*grains, header, error) {
	b := make([]byte, sector)
	if err := f.ReadFull(b, 0); err != nil {
		return nil, header{}, fmt.Errorf("header: %w", err)
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, h, err
	}
	gd := h.gd
	if gd == gdAtEnd {
		foot, err := footer(f, h)
		if err != nil {
			return nil, h, err
		}
		gd = foot.gd
	}
	if h.capacity == 0 {
		return nil, h, nil
	}
	g := &grains{
		file: f, size: h.size(), grain: h.grainBytes(), entries: int64(h.entries), gd: int64(gd) * sector, width: 4,
		packed: h.compressed(), marked: h.markers(), largest: h.largest(),
		meta:  []blocks.Region{{Name: "header", Off: 0, Len: sector}},
		table: func(v uint64) (int64, error) { return int64(v) * sector, nil },
		find: func(v uint64) (blocks.Origin, int64, error) {
			switch {
			case v == 0:
				return blocks.Below, 0, nil
			case v == 1 && h.flags&flagZeroGrain != 0:
				return blocks.Zero, 0, nil
			}
			return blocks.Here, int64(v) * sector, nil
		},
	}
	if h.flags&flagRedundant != 0 && h.gd != gdAtEnd {
		g.rgd = int64(h.rgd) * sector
	}
	if h.descriptor != 0 && h.descriptorSz != 0 {
		g.meta = append(g.meta, blocks.Region{Name: "descriptor", Off: int64(h.descriptor) * sector, Len: int64(h.descriptorSz) * sector})
	}
	g.meta = append(g.meta, blocks.Region{Name: "grain directory", Off: g.gd, Len: g.tables() * g.width})
	return g, h, g.fits()
}

// trailing is how far from the end of the file a footer is looked for: some programs pad files.
const trailing = 64 << 10

// footer finds the footer of a stream: the last sector that is one, behind its marker.
func footer(f blocks.File, h header) (header, error) {
	n := min(f.Size, trailing)
	from := (f.Size - n) / sector * sector
	b := make([]byte, f.Size-from)
	if err := f.ReadFull(b, from); err != nil {
		return header{}, fmt.Errorf("footer: %w", err)
	}
	for at := (len(b)/sector - 2) * sector; at >= sector; at -= sector {
		m := parseMarker(b[at-sector:])
		end := parseMarker(b[at+sector:])
		if !isSparse(b[at:]) || m.size != 0 || m.kind != markFooter || end != (marker{}) {
			continue
		}
		foot, err := parseHeader(b[at : at+sector])
		switch {
		case err != nil:
			return header{}, fmt.Errorf("footer: %w", err)
		case foot.capacity != h.capacity || foot.grain != h.grain || foot.entries != h.entries:
			return header{}, fmt.Errorf("footer: it is not that of the header: %w", formats.ErrCorrupt)
		case foot.gd == gdAtEnd:
			return header{}, fmt.Errorf("footer: no grain directory: %w", formats.ErrCorrupt)
		}
		return foot, nil
	}
	return header{}, fmt.Errorf("footer: there is none, the file was cut short: %w", formats.ErrCorrupt)
}

// isCOWD says whether b begins a sparse extent of ESX.
func isCOWD(b []byte) bool { return len(b) >= 4 && string(b[:4]) == "COWD" }

// cowd reads the header of a vmfsSparse extent ("ESXi Host Sparse Extents").
func cowd(f blocks.File) (*grains, error) {
	b := make([]byte, 2048)
	if err := f.ReadFull(b, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	le := binary.LittleEndian
	version, capacity, grain := le.Uint32(b[4:]), int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:]))
	gd, tables := int64(le.Uint32(b[20:])), int64(le.Uint32(b[24:]))
	switch {
	case version != 1:
		return nil, fmt.Errorf("header: version %d: %w", version, formats.ErrFormat)
	case capacity == 0:
		return nil, fmt.Errorf("header: capacity of 0 sectors: %w", formats.ErrCorrupt)
	case grain == 0 || grain > maxGrain || grain&(grain-1) != 0:
		return nil, fmt.Errorf("header: grain size of %d sectors: %w", grain, formats.ErrFormat)
	}
	g := &grains{
		file: f, size: capacity * sector, grain: grain * sector, entries: 4096, gd: gd * sector, width: 4,
		meta:  []blocks.Region{{Name: "header", Off: 0, Len: 2048}, {Name: "grain directory", Off: gd * sector, Len: tables * 4}},
		table: func(v uint64) (int64, error) { return int64(v) * sector, nil },
		find: func(v uint64) (blocks.Origin, int64, error) {
			if v == 0 {
				return blocks.Below, 0, nil
			}
			return blocks.Here, int64(v) * sector, nil
		},
	}
	if tables < g.tables() {
		return nil, fmt.Errorf("header: %d grain tables for %d sectors: %w", tables, capacity, formats.ErrCorrupt)
	}
	return g, g.fits()
}

// Magic numbers of the two headers of a seSparse extent.
const (
	seMagic         = 0xcafebabe
	seVolatileMagic = 0xcafecafe
)

// isSE says whether b begins a seSparse extent.
func isSE(b []byte) bool { return len(b) >= 8 && binary.LittleEndian.Uint64(b) == seMagic }

// seSparse reads the headers of an extent of ESXi's space-efficient kind. VMware has not documented
// it; its fields are those that its disks have and other readers of it agree upon.
func seSparse(f blocks.File) (*grains, error) {
	b := make([]byte, sector)
	if err := f.ReadFull(b, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	field := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	version, capacity, grain, tableSize, flags := field(1), field(2), field(3), field(4), field(5)
	volatile, gd, tables, first := field(10), field(16), field(18), field(24)
	switch {
	case field(0) != seMagic:
		return nil, fmt.Errorf("header: no seSparse extent begins here: %w", formats.ErrFormat)
	case version != 0x2_0000_0001:
		return nil, fmt.Errorf("header: version %#x: %w", version, formats.ErrFormat)
	case grain != 8 || tableSize != 64:
		return nil, fmt.Errorf("header: grains of %d sectors in tables of %d: %w", grain, tableSize, formats.ErrFormat)
	case flags != 0:
		return nil, fmt.Errorf("header: flags %#x: %w", flags, formats.ErrFormat)
	case capacity == 0 || capacity > maxSectors:
		return nil, fmt.Errorf("header: capacity of %d sectors: %w", capacity, formats.ErrCorrupt)
	case max(volatile, gd, tables, first) > maxSectors:
		return nil, fmt.Errorf("header: parts at sectors %d, %d, %d and %d: %w", volatile, gd, tables, first, formats.ErrCorrupt)
	}
	v := make([]byte, sector)
	if err := f.ReadFull(v, int64(volatile)*sector); err != nil {
		return nil, fmt.Errorf("volatile header: %w", err)
	}
	switch le := binary.LittleEndian; {
	case le.Uint64(v) != seVolatileMagic:
		return nil, fmt.Errorf("volatile header: magic %#x: %w", le.Uint64(v), formats.ErrCorrupt)
	case le.Uint64(v[24:]) != 0:
		return nil, fmt.Errorf("volatile header: the journal was not replayed (power the VM on once, or consolidate its snapshots): %w", formats.ErrFormat)
	}
	g := &grains{
		file: f, size: int64(capacity) * sector, grain: 8 * sector, entries: 4096, gd: int64(gd) * sector, width: 8,
		meta:  []blocks.Region{{Name: "header", Off: 0, Len: sector}},
		table: seTable(int64(tables)),
		find:  seGrain(int64(first)),
	}
	return g, g.fits()
}

var errEntry = errors.New("an entry that is none")

// seTable: the highest nibble of a directory's entry is 1 where there is a table, its lower half is
// the number of the table. tables is the sector that they begin at.
func seTable(tables int64) func(uint64) (int64, error) {
	return func(v uint64) (int64, error) {
		switch {
		case v == 0:
			return 0, nil
		case v>>32 != 0x1000_0000:
			return 0, fmt.Errorf("%#x: %w: %w", v, errEntry, formats.ErrCorrupt)
		}
		return (tables + int64(v&0xffff_ffff)*64) * sector, nil
	}
}

// seGrain: the highest nibble of a table's entry is 0 for the parent's grains, 1 for those that the
// guest gave back and 2 for zeros, both of which read as zeros, and 3 for stored ones. Their number is
// in two parts: its low 12 bits below the nibble, the others in the low 48 bits.
func seGrain(first int64) func(uint64) (blocks.Origin, int64, error) {
	return func(v uint64) (blocks.Origin, int64, error) {
		switch v >> 60 {
		case 0:
			if v == 0 {
				return blocks.Below, 0, nil
			}
		case 1, 2:
			return blocks.Zero, 0, nil
		case 3:
			if no := v>>48&0xfff | v&0xffff_ffff_ffff<<12; no < maxSectors/8 {
				return blocks.Here, (first + int64(no)*8) * sector, nil
			}
		}
		return 0, 0, fmt.Errorf("%#x: %w: %w", v, errEntry, formats.ErrCorrupt)
	}
}
