package vhd

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// Sizes of what the specification lays out, bytes.
const (
	sector     = 512
	footerSize = 512
	oldFooter  = 511 // before Virtual PC 2004
	headerSize = 1024
)

const (
	footerCookie = "conectix"
	headerCookie = "cxsparse"
	version1     = 0x00010000
	noOffset     = 1<<64 - 1
)

// Disk types ("Hard Disk Footer Format").
const (
	typeFixed        = 2
	typeDynamic      = 3
	typeDifferencing = 4
)

// maxSize is the largest disk whose every block a BAT of 32-bit sector numbers reaches: 2040 GiB.
const maxSize = 2040 << 30

// epoch is the beginning of the time of a VHD.
var epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// footer is the hard disk footer: "Hard Disk Footer Format" of the specification, all big-endian.
type footer struct {
	features       uint32
	version        uint32
	header         uint64 // offset of the dynamic disk header; all ones in a fixed disk
	timestamp      uint32 // seconds since epoch
	creator        string // 4 bytes
	creatorVersion uint32
	creatorOS      string // 4 bytes
	originalSize   uint64
	currentSize    uint64
	geometry       Geometry
	kind           uint32
	id             blocks.ID
	saved          uint8
}

// Geometry is what an ATA disk of that size would answer.
type Geometry struct {
	Cylinders uint16 `json:"cylinders"`
	Heads     uint8  `json:"heads"`
	Sectors   uint8  `json:"sectors"` // a track
}

// Size is what the geometry reaches, bytes.
func (g Geometry) Size() int64 {
	return int64(g.Cylinders) * int64(g.Heads) * int64(g.Sectors) * sector
}

// maxGeometry is that of every disk from 127.5 GiB on.
var maxGeometry = Geometry{Cylinders: 65535, Heads: 16, Sectors: 255}

// geometryOf is the geometry of a disk of size bytes: "Appendix: CHS Calculation".
func geometryOf(size int64) Geometry {
	total := min(size/sector, maxGeometry.Size()/sector)
	if total >= 65535*16*63 {
		return Geometry{Cylinders: uint16(total / 255 / 16), Heads: 16, Sectors: 255}
	}
	spt := int64(17)
	tracks := total / spt
	heads := max((tracks+1023)/1024, 4)
	if tracks >= heads*1024 || heads > 16 {
		spt, heads = 31, 16
		tracks = total / spt
	}
	if tracks >= heads*1024 {
		spt, heads = 63, 16
		tracks = total / spt
	}
	return Geometry{Cylinders: uint16(tracks / heads), Heads: uint8(heads), Sectors: uint8(spt)}
}

// checksum is the one's complement of the sum of all bytes but those of the sum itself, at off.
func checksum(b []byte, off int) uint32 {
	var s uint32
	for i, c := range b {
		if i < off || i >= off+4 {
			s += uint32(c)
		}
	}
	return ^s
}

const (
	footerSum = 64
	headerSum = 36
)

// parseFooter reads a footer of 512 or 511 bytes.
func parseFooter(b []byte) (footer, error) {
	be := binary.BigEndian
	if string(b[:8]) != footerCookie {
		return footer{}, fmt.Errorf("footer: no cookie %q: %w", footerCookie, formats.ErrFormat)
	}
	if got, want := be.Uint32(b[footerSum:]), checksum(b, footerSum); got != want {
		return footer{}, fmt.Errorf("footer: checksum is %#x, the footer's bytes give %#x: %w", got, want, formats.ErrCorrupt)
	}
	f := footer{
		features:       be.Uint32(b[8:]),
		version:        be.Uint32(b[12:]),
		header:         be.Uint64(b[16:]),
		timestamp:      be.Uint32(b[24:]),
		creator:        string(b[28:32]),
		creatorVersion: be.Uint32(b[32:]),
		creatorOS:      string(b[36:40]),
		originalSize:   be.Uint64(b[40:]),
		currentSize:    be.Uint64(b[48:]),
		geometry:       Geometry{Cylinders: be.Uint16(b[56:]), Heads: b[58], Sectors: b[59]},
		kind:           be.Uint32(b[60:]),
		id:             blocks.ID(b[68:84]),
		saved:          b[84],
	}
	return f, f.valid()
}

func (f footer) valid() error {
	if f.version>>16 != 1 {
		return fmt.Errorf("footer: file format version %d.%d: %w", f.version>>16, f.version&0xffff, formats.ErrFormat)
	}
	if f.kind != typeFixed && f.kind != typeDynamic && f.kind != typeDifferencing {
		return fmt.Errorf("footer: disk type %d: %w", f.kind, formats.ErrFormat)
	}
	if f.currentSize%sector != 0 {
		return fmt.Errorf("footer: current size %d is no whole number of sectors: %w", f.currentSize, formats.ErrCorrupt)
	}
	if f.currentSize > 1<<62 {
		return fmt.Errorf("footer: current size %d: %w", f.currentSize, formats.ErrCorrupt)
	}
	if f.kind != typeFixed && f.currentSize > maxSize {
		return fmt.Errorf("footer: current size %d is more than the %d that a %s VHD can hold: %w", f.currentSize, int64(maxSize), f.subformat(), formats.ErrCorrupt)
	}
	return nil
}

// size is the size of the disk, bytes. Virtual PC, and qemu when it writes as Virtual PC does, let
// the geometry decide what a guest sees; all others write the size that they mean. A geometry at its
// maximum says nothing, and one beyond the current size reaches what is not there.
func (f footer) size() int64 {
	chs := f.geometry.Size()
	if (f.creator == "vpc " || f.creator == "qemu") && f.geometry != maxGeometry && chs > 0 {
		return min(chs, int64(f.currentSize))
	}
	return int64(f.currentSize)
}

func (f footer) subformat() string {
	switch f.kind {
	case typeFixed:
		return Fixed
	case typeDynamic:
		return Dynamic
	}
	return Differencing
}

// timeOf is when a disk was made.
func timeOf(timestamp uint32) time.Time {
	return epoch.Add(time.Duration(timestamp) * time.Second)
}

func (f footer) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, footerSize)
	copy(b, footerCookie)
	be.PutUint32(b[8:], f.features)
	be.PutUint32(b[12:], version1)
	be.PutUint64(b[16:], f.header)
	be.PutUint32(b[24:], f.timestamp)
	copy(b[28:32], f.creator)
	be.PutUint32(b[32:], f.creatorVersion)
	copy(b[36:40], f.creatorOS)
	be.PutUint64(b[40:], f.originalSize)
	be.PutUint64(b[48:], f.currentSize)
	be.PutUint16(b[56:], f.geometry.Cylinders)
	b[58], b[59] = f.geometry.Heads, f.geometry.Sectors
	be.PutUint32(b[60:], f.kind)
	copy(b[68:], f.id[:])
	b[84] = f.saved
	be.PutUint32(b[footerSum:], checksum(b, footerSum))
	return b
}

// found is a footer and where it was.
type found struct {
	footer
	at     int64 // offset in the file
	len    int64
	damage error // of the footer at the end, where the copy at the beginning had to do
}

// findFooter reads the footer at the end of the file, or its copy at the beginning where that at the
// end is missing or broken. The copy never counts while the footer at the end is good: in a fixed
// disk the first sector is the guest's, who may write there what he likes.
func findFooter(r blocks.File) (found, error) {
	var damage error
	for _, n := range []int64{footerSize, oldFooter} {
		if r.Size < n {
			continue
		}
		b := make([]byte, n)
		if err := r.ReadFull(b, r.Size-n); err != nil {
			return found{}, fmt.Errorf("footer: %w", err)
		}
		if string(b[:8]) != footerCookie {
			continue
		}
		f, err := parseFooter(b)
		if err == nil {
			return found{footer: f, at: r.Size - n, len: n}, nil
		}
		damage = err
	}
	if r.Size < footerSize {
		return found{}, fmt.Errorf("a file of %d bytes has no footer: %w", r.Size, formats.ErrFormat)
	}
	b := make([]byte, footerSize)
	if err := r.ReadFull(b, 0); err != nil {
		return found{}, fmt.Errorf("copy of the footer: %w", err)
	}
	f, err := parseFooter(b)
	switch {
	case err == nil && f.kind != typeFixed:
		if damage == nil {
			damage = fmt.Errorf("footer: missing at the end of the file: %w", formats.ErrCorrupt)
		}
		return found{footer: f, at: 0, len: footerSize, damage: damage}, nil
	case damage != nil:
		return found{}, damage
	case string(b[:8]) == footerCookie && err != nil:
		return found{}, fmt.Errorf("copy of the %w", err)
	}
	return found{}, fmt.Errorf("no footer at the end of the file: %w", formats.ErrFormat)
}

// printable is four characters of a creator without what pads them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.TrimRight(s, " \x00"))
}
