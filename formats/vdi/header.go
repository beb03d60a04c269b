package vdi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// The pre-header and the header of version 1.1, little-endian ("VDIPREHEADER" and "VDIHEADER1PLUS" of
// VirtualBox).
const (
	signature    = 0xbeda107f
	signatureAt  = 0x40
	version11    = 1<<16 | 1
	headerEnd    = 0x1d8 // with the geometry that version 1.1 has added
	headerEnd0   = 0x1c8 // without
	headerLen    = headerEnd - 0x48
	shortHeader  = headerEnd0 - 0x48
	headerBuffer = 512
)

// banner is the text that such a file begins with.
const banner = "<<< Oracle VM VirtualBox Disk Image >>>\n"

// Image types.
const (
	typeDynamic      = 1
	typeStatic       = 2
	typeUndo         = 3
	typeDifferencing = 4
)

// Table entries that are no block of the file.
const (
	entryFree = 0xffffffff // never written: zeros, or what the parent has
	entryZero = 0xfffffffe // zeros
)

// maxBlock is the largest block that is read. VirtualBox makes blocks of 1 MiB.
const maxBlock = 1 << 30

// header is what a VDI says of itself.
type header struct {
	version   uint32
	banner    string
	comment   string
	kind      uint32
	flags     uint32
	table     int64 // offset of the block map
	data      int64 // offset of the first block
	size      int64 // of the disk
	block     int64 // bytes of the disk
	extra     int64 // bytes before those of the disk in each block
	blocks    int64 // entries of the map
	allocated int64
	id        blocks.ID // in the order of the text
	modified  blocks.ID // changes whenever the disk does
	parent    blocks.ID // id of the parent
	parentMod blocks.ID // what the parent's modified was
}

// parseHeader reads the first 512 bytes.
func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if le.Uint32(b[signatureAt:]) != signature {
		return header{}, fmt.Errorf("header: no signature %#x: %w", uint32(signature), formats.ErrFormat)
	}
	h := header{
		version:   le.Uint32(b[0x44:]),
		banner:    text(b[:0x40]),
		kind:      le.Uint32(b[0x4c:]),
		flags:     le.Uint32(b[0x50:]),
		comment:   text(b[0x54:0x154]),
		table:     int64(le.Uint32(b[0x154:])),
		data:      int64(le.Uint32(b[0x158:])),
		block:     int64(le.Uint32(b[0x178:])),
		extra:     int64(le.Uint32(b[0x17c:])),
		blocks:    int64(le.Uint32(b[0x180:])),
		allocated: int64(le.Uint32(b[0x184:])),
		id:        blocks.GUID(b[0x188:]),
		modified:  blocks.GUID(b[0x198:]),
		parent:    blocks.GUID(b[0x1a8:]),
		parentMod: blocks.GUID(b[0x1b8:]),
	}
	if h.version>>16 != 1 {
		return h, fmt.Errorf("header: version %d.%d: %w", h.version>>16, h.version&0xffff, formats.ErrFormat)
	}
	if n := le.Uint32(b[0x48:]); n < shortHeader {
		return h, fmt.Errorf("header: its size is %d, which is less than %d: %w", n, shortHeader, formats.ErrCorrupt)
	}
	size := le.Uint64(b[0x170:])
	if size > 1<<62 {
		return h, fmt.Errorf("header: disk size %d: %w", size, formats.ErrCorrupt)
	}
	h.size = int64(size)
	return h, h.valid(le.Uint32(b[0x168:]))
}

func (h header) valid(sectorSize uint32) error {
	bad := func(field string, v int64, why string) error {
		return fmt.Errorf("header: %s %d %s: %w", field, v, why, formats.ErrCorrupt)
	}
	switch {
	case h.kind == typeUndo || h.kind < typeDynamic || h.kind > typeDifferencing:
		return fmt.Errorf("header: image type %d: %w", h.kind, formats.ErrFormat)
	case sectorSize != 512:
		return fmt.Errorf("header: sectors of %d bytes: %w", sectorSize, formats.ErrFormat)
	case h.block < 512 || h.block > maxBlock || bits.OnesCount64(uint64(h.block)) != 1:
		return bad("block size", h.block, "is not a power of two from 512 to 1 GiB")
	case h.extra > h.block:
		return bad("extra data of a block", h.extra, "is larger than the block")
	case h.blocks < h.needed():
		return bad("number of blocks", h.blocks, fmt.Sprintf("does not cover the disk of %d bytes", h.size))
	case h.allocated > h.blocks:
		return bad("number of allocated blocks", h.allocated, fmt.Sprintf("is more than the %d that there are", h.blocks))
	case h.table < shortHeader+0x48:
		return bad("offset of the block map", h.table, "lies in the header")
	case h.data < h.table+h.blocks*4:
		return bad("offset of the data", h.data, "lies in the header or the block map")
	}
	return nil
}

// needed is how many blocks the disk has.
func (h header) needed() int64 { return (h.size + h.block - 1) / h.block }

// stride is how many bytes a block takes in the file.
func (h header) stride() int64 { return h.extra + h.block }

func (h header) subformat() string {
	switch h.kind {
	case typeDynamic:
		return Dynamic
	case typeStatic:
		return Static
	}
	return Differencing
}

// encode is the header and what fills its first 512 bytes. The geometry is left to VirtualBox, which
// computes it where it is zero.
func (h header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, headerBuffer)
	copy(b, banner)
	le.PutUint32(b[signatureAt:], signature)
	le.PutUint32(b[0x44:], version11)
	le.PutUint32(b[0x48:], headerLen)
	le.PutUint32(b[0x4c:], h.kind)
	le.PutUint32(b[0x154:], uint32(h.table))
	le.PutUint32(b[0x158:], uint32(h.data))
	le.PutUint32(b[0x168:], 512)
	le.PutUint64(b[0x170:], uint64(h.size))
	le.PutUint32(b[0x178:], uint32(h.block))
	le.PutUint32(b[0x180:], uint32(h.blocks))
	le.PutUint32(b[0x184:], uint32(h.allocated))
	blocks.PutGUID(b[0x188:], h.id)
	blocks.PutGUID(b[0x198:], h.modified)
	le.PutUint32(b[0x1c8+12:], 512)
	return b
}

// text is what a field says up to its first NUL.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(bytes.ToValidUTF8(bytes.TrimSpace(s), []byte("?")))
}
