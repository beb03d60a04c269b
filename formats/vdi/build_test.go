package vdi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"hypersdk/formats/formatstest"
	"hypersdk/formats/vdi"
)

var le = binary.LittleEndian

// spec is a VDI written down field by field, to be read.
type spec struct {
	version   uint32 // 1.1
	headerLen uint32 // 400
	kind      uint32 // 1 dynamic, 2 static, 4 differencing
	size      int64
	block     int64 // 1 MiB
	extra     int64
	table     int64 // 512
	data      int64 // behind the table, on a multiple of 512
	comment   string
	id        byte // fills the UUIDs
	modified  byte
	parent    byte
	parentMod byte
	blocks    map[int]int // block of the disk: what fills it, or zeroed
}

// zeroed is a block that the map says is zeros.
const zeroed = -2

func (s spec) bytes() []byte {
	if s.version == 0 {
		s.version = 0x10001
	}
	if s.headerLen == 0 {
		s.headerLen = 400
	}
	if s.block == 0 {
		s.block = mib
	}
	if s.table == 0 {
		s.table = 512
	}
	n := int((s.size + s.block - 1) / s.block)
	if s.data == 0 {
		s.data = (s.table + int64(4*n) + 511) / 512 * 512
	}
	b := make([]byte, s.data)
	copy(b, "<<< by hand >>>\n")
	le.PutUint32(b[0x40:], 0xbeda107f)
	le.PutUint32(b[0x44:], s.version)
	le.PutUint32(b[0x48:], s.headerLen)
	le.PutUint32(b[0x4c:], s.kind)
	copy(b[0x54:], s.comment)
	le.PutUint32(b[0x154:], uint32(s.table))
	le.PutUint32(b[0x158:], uint32(s.data))
	le.PutUint32(b[0x168:], 512)
	le.PutUint64(b[0x170:], uint64(s.size))
	le.PutUint32(b[0x178:], uint32(s.block))
	le.PutUint32(b[0x17c:], uint32(s.extra))
	le.PutUint32(b[0x180:], uint32(n))
	for i, v := range []byte{s.id, s.modified, s.parent, s.parentMod} {
		copy(b[0x188+16*i:], bytes.Repeat([]byte{v}, 16))
	}
	stored := uint32(0)
	for i := range n {
		v, ok := s.blocks[i]
		e := b[s.table+4*int64(i):]
		switch {
		case !ok:
			le.PutUint32(e, 0xffffffff)
		case v == zeroed:
			le.PutUint32(e, 0xfffffffe)
		default:
			le.PutUint32(e, stored)
			stored++
			b = append(b, bytes.Repeat([]byte{0xee}, int(s.extra))...)
			b = append(b, bytes.Repeat([]byte{byte(v)}, int(s.block))...)
		}
	}
	le.PutUint32(b[0x184:], stored)
	return b
}

// uuid is a UUID of one byte sixteen times.
func uuid(b byte) string {
	h := strings.Repeat(fmt.Sprintf("%02x", b), 16)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// files are what lies beside an image.
type files = formatstest.Files

var inMemory = formatstest.InMemory{Format: vdi.Format()}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
