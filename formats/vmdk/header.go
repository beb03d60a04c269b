package vmdk

import (
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
)

const (
	sector = 512

	// grainSectors and tableEntries are what VMware writes and reads everywhere: grains of 64 KiB, and
	// tables of 512 of them, 32 MiB of the disk.
	grainSectors = 128
	grainSize    = grainSectors * sector
	tableEntries = 512
	tableSectors = tableEntries * 4 / sector

	// maxGrain bounds what is unpacked at once, in sectors: 2 MiB.
	maxGrain = 4096
	// maxTable bounds the entries of one grain table; COWD has 4,096.
	maxTable = 1 << 16
	// maxSectors is the largest disk that is believed: 1 PiB. VMware ends at 62 TiB.
	maxSectors = 1 << 41
)

// sparseMagic begins a sparse extent: "KDMV".
const sparseMagic = 0x564d444b

// gdAtEnd is the grain directory's offset where only the footer knows it.
const gdAtEnd = ^uint64(0)

// Flags of a sparse extent.
const (
	flagNewLines   = 1 << 0  // the four bytes behind uncleanShutdown are to be checked
	flagRedundant  = 1 << 1  // there is a second grain directory, at rgdOffset
	flagZeroGrain  = 1 << 2  // an entry of 1 is a grain of zeros
	flagCompressed = 1 << 16 // grains are compressed
	flagMarkers    = 1 << 17 // and begin with a marker
)

const deflateAlgorithm = 1

// header is the head (and foot) of a sparse extent: SparseExtentHeader of VMware's "Virtual Disk
// Format 5.0", section "Hosted Sparse Extents". Sizes and offsets are in sectors.
type header struct {
	version      uint32
	flags        uint32
	capacity     uint64
	grain        uint64
	descriptor   uint64 // offset; 0: none
	descriptorSz uint64
	entries      uint32 // of a grain table
	rgd          uint64
	gd           uint64
	overhead     uint64 // where the grains may begin
	unclean      bool
	algorithm    uint16
}

func isSparse(b []byte) bool {
	return len(b) >= 4 && binary.LittleEndian.Uint32(b) == sparseMagic
}

// parseHeader reads a header of one sector and refuses what contradicts itself.
func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if len(b) < sector || !isSparse(b) {
		return header{}, fmt.Errorf("header: no sparse extent begins here: %w", formats.ErrFormat)
	}
	h := header{
		version:      le.Uint32(b[4:]),
		flags:        le.Uint32(b[8:]),
		capacity:     le.Uint64(b[12:]),
		grain:        le.Uint64(b[20:]),
		descriptor:   le.Uint64(b[28:]),
		descriptorSz: le.Uint64(b[36:]),
		entries:      le.Uint32(b[44:]),
		rgd:          le.Uint64(b[48:]),
		gd:           le.Uint64(b[56:]),
		overhead:     le.Uint64(b[64:]),
		unclean:      b[72] != 0,
		algorithm:    le.Uint16(b[77:]),
	}
	return h, h.check([4]byte(b[73:77]))
}

func (h header) check(newLines [4]byte) error {
	switch {
	case h.version < 1 || h.version > 3:
		return fmt.Errorf("header: version %d: %w", h.version, formats.ErrFormat)
	case h.flags&flagNewLines != 0 && newLines != [4]byte{'\n', ' ', '\r', '\n'}:
		return fmt.Errorf("header: line ends %q: the file was moved as if it were text: %w", newLines, formats.ErrCorrupt)
	case h.compressed() && h.algorithm != deflateAlgorithm:
		return fmt.Errorf("header: compression algorithm %d: %w", h.algorithm, formats.ErrFormat)
	case !h.compressed() && h.markers():
		return fmt.Errorf("header: flags %#x: markers without compression: %w", h.flags, formats.ErrFormat)
	case h.capacity > maxSectors:
		return fmt.Errorf("header: capacity of %d sectors: %w", h.capacity, formats.ErrCorrupt)
	case h.grain == 0 || h.grain > maxGrain || h.grain&(h.grain-1) != 0:
		return fmt.Errorf("header: grain size of %d sectors: %w", h.grain, formats.ErrFormat)
	case h.entries == 0 || h.entries > maxTable:
		return fmt.Errorf("header: %d entries in a grain table: %w", h.entries, formats.ErrFormat)
	case h.descriptor > maxSectors || h.descriptorSz > maxSectors:
		return fmt.Errorf("header: descriptor of %d sectors at %d: %w", h.descriptorSz, h.descriptor, formats.ErrCorrupt)
	case h.overhead > maxSectors:
		return fmt.Errorf("header: overhead of %d sectors: %w", h.overhead, formats.ErrCorrupt)
	case h.gd > maxSectors && h.gd != gdAtEnd, h.flags&flagRedundant != 0 && h.rgd > maxSectors:
		return fmt.Errorf("header: grain directories at sectors %d and %d: %w", h.gd, h.rgd, formats.ErrCorrupt)
	}
	return nil
}

func (h header) compressed() bool { return h.flags&flagCompressed != 0 }
func (h header) markers() bool    { return h.flags&flagMarkers != 0 }

// size is that of the disk, in bytes.
func (h header) size() int64 { return int64(h.capacity) * sector }

// grainBytes is the size of a grain in bytes.
func (h header) grainBytes() int64 { return int64(h.grain) * sector }

// tables is how many grain tables the disk has.
func (h header) tables() int64 {
	per := h.grain * uint64(h.entries)
	return int64((h.capacity + per - 1) / per)
}

// largest is how many bytes the packed form of a grain may take: what incompressible bytes grow by in
// stored blocks, generously.
func (h header) largest() int64 { return 2*h.grainBytes() + 1024 }

// encode makes the sector of a header.
func (h header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, sector)
	le.PutUint32(b, sparseMagic)
	le.PutUint32(b[4:], h.version)
	le.PutUint32(b[8:], h.flags)
	le.PutUint64(b[12:], h.capacity)
	le.PutUint64(b[20:], h.grain)
	le.PutUint64(b[28:], h.descriptor)
	le.PutUint64(b[36:], h.descriptorSz)
	le.PutUint32(b[44:], h.entries)
	le.PutUint64(b[48:], h.rgd)
	le.PutUint64(b[56:], h.gd)
	le.PutUint64(b[64:], h.overhead)
	copy(b[73:], "\n \r\n")
	le.PutUint16(b[77:], h.algorithm)
	return b
}

// Types of a marker that is not a grain's.
const (
	markEnd uint32 = iota
	markTable
	markDirectory
	markFooter
)

// marker is what lies between the grains of a stream ("Stream-Optimized Compressed Sparse Extents").
// Where size is not 0 it is that of a packed grain, whose bytes follow at once; elsewhere sectors of
// the type follow, behind the marker's own sector.
type marker struct {
	value uint64 // the sector of the disk that a grain begins with, or how many sectors follow
	size  uint32 // bytes
	kind  uint32
}

// grainHead is how long the marker of a grain is.
const grainHead = 12

func parseMarker(b []byte) marker {
	m := marker{value: binary.LittleEndian.Uint64(b), size: binary.LittleEndian.Uint32(b[8:])}
	if m.size == 0 {
		m.kind = binary.LittleEndian.Uint32(b[12:])
	}
	return m
}

// appendMarker adds the sector of a marker of n sectors.
func appendMarker(b []byte, kind uint32, n uint64) []byte {
	at := len(b)
	b = append(b, make([]byte, sector)...)
	binary.LittleEndian.PutUint64(b[at:], n)
	binary.LittleEndian.PutUint32(b[at+12:], kind)
	return b
}

// zlibHead is what the packed bytes of a grain begin with: deflate, a window of 32 KiB, the default
// level.
const zlibHead = "\x78\x9c"

// unwrap takes the head and the sum off a zlib stream (RFC 1950).
func unwrap(b []byte) (formats.Packed, error) {
	if len(b) < 2+1+4 || b[0]&0x0f != 8 || b[0]>>4 > 7 || b[1]&0x20 != 0 || (int(b[0])<<8|int(b[1]))%31 != 0 {
		return formats.Packed{}, fmt.Errorf("%d bytes that are no zlib stream: %w", len(b), formats.ErrCorrupt)
	}
	end := len(b) - 4
	return formats.Packed{
		Codec:  formats.Deflate,
		Bytes:  b[2:end:end],
		Sum:    binary.BigEndian.Uint32(b[end:]),
		HasSum: true,
	}, nil
}

// up is n rounded up to a multiple of unit.
func up(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
