package vhd

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf16"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// header is the dynamic disk header: "Dynamic Disk Header Format", all big-endian.
type header struct {
	table      int64 // offset of the block allocation table
	entries    int64 // of the table
	block      int64 // bytes of the disk
	parentID   blocks.ID
	parentTime uint32 // seconds since epoch
	parentName string
	locators   [8]locator
}

// locator says where the name of the parent is stored in the way of one platform.
type locator struct {
	platform string // four characters
	length   uint32 // bytes
	off      uint64
}

// Platform codes of locators that are read: UTF-16LE, relative or absolute.
const (
	relativePath = "W2ru"
	absolutePath = "W2ku"
)

// maxName is the longest name of a parent that is read, bytes. Windows allows 32,767 characters.
const maxName = 64 << 10

func parseHeader(b []byte) (header, error) {
	be := binary.BigEndian
	if string(b[:8]) != headerCookie {
		return header{}, fmt.Errorf("dynamic header: no cookie %q: %w", headerCookie, formats.ErrCorrupt)
	}
	if got, want := be.Uint32(b[headerSum:]), checksum(b, headerSum); got != want {
		return header{}, fmt.Errorf("dynamic header: checksum is %#x, its bytes give %#x: %w", got, want, formats.ErrCorrupt)
	}
	if v := be.Uint32(b[24:]); v>>16 != 1 {
		return header{}, fmt.Errorf("dynamic header: version %d.%d: %w", v>>16, v&0xffff, formats.ErrFormat)
	}
	h := header{
		entries:    int64(be.Uint32(b[28:])),
		block:      int64(be.Uint32(b[32:])),
		parentID:   blocks.ID(b[40:56]),
		parentTime: be.Uint32(b[56:]),
		parentName: decode16(b[64:576], be),
	}
	table := be.Uint64(b[16:])
	if table > 1<<62 {
		return header{}, fmt.Errorf("dynamic header: table offset %d: %w", table, formats.ErrCorrupt)
	}
	h.table = int64(table)
	if h.block < sector || bits.OnesCount64(uint64(h.block)) != 1 {
		return header{}, fmt.Errorf("dynamic header: block size %d is not a power of two of sectors: %w", h.block, formats.ErrCorrupt)
	}
	for i := range h.locators {
		l := b[576+24*i:]
		h.locators[i] = locator{platform: string(l[:4]), length: be.Uint32(l[8:]), off: be.Uint64(l[16:])}
	}
	return h, nil
}

func (h header) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, headerSize)
	copy(b, headerCookie)
	be.PutUint64(b[8:], noOffset)
	be.PutUint64(b[16:], uint64(h.table))
	be.PutUint32(b[24:], version1)
	be.PutUint32(b[28:], uint32(h.entries))
	be.PutUint32(b[32:], uint32(h.block))
	be.PutUint32(b[headerSum:], checksum(b, headerSum))
	return b
}

// bitmap is how many bytes of each block come before those of the disk: a bit a sector, whole sectors.
func (h header) bitmap() int64 { return blocks.Up((h.block/sector+7)/8, sector) }

// fits checks the table against the disk and the file.
func (h header) fits(size int64, r blocks.File) error {
	if h.entries*h.block < size {
		return fmt.Errorf("dynamic header: %d table entries of %d bytes do not cover the disk of %d: %w", h.entries, h.block, size, formats.ErrCorrupt)
	}
	if !r.Holds(h.table, h.entries*4) {
		return fmt.Errorf("dynamic header: table of %d entries at %d, the file ends at %d: %w", h.entries, h.table, r.Size, formats.ErrCorrupt)
	}
	return nil
}

// names are what a differencing disk calls its parent, the best first.
func (h header) names(r blocks.File) ([]string, error) {
	var relative, absolute []string
	for _, l := range h.locators {
		if l.platform != relativePath && l.platform != absolutePath || l.length == 0 {
			continue
		}
		if l.length > maxName || l.off > 1<<62 {
			return nil, fmt.Errorf("parent locator %s: %d bytes at %d: %w", l.platform, l.length, l.off, formats.ErrCorrupt)
		}
		b := make([]byte, l.length)
		if err := r.ReadFull(b, int64(l.off)); err != nil {
			return nil, fmt.Errorf("parent locator %s: %w", l.platform, err)
		}
		name := decode16(b, binary.LittleEndian)
		if l.platform == relativePath {
			relative = append(relative, name)
		} else {
			absolute = append(absolute, name)
		}
	}
	return blocks.Names(append(relative, h.parentName), absolute), nil
}

// decode16 reads UTF-16 up to a NUL or the end.
func decode16(b []byte, order binary.ByteOrder) string {
	u := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		c := order.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
