package vhd_test

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"

	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhd"
)

// spec is a VHD written down by the letter of the specification, to be read.
type spec struct {
	kind       uint32 // 2 fixed, 3 dynamic, 4 differencing
	size       int64
	block      int64 // 2 MiB
	creator    string
	geometry   [4]byte
	id         byte // fills the unique id
	parentID   byte
	parentName string
	relative   string // W2ru
	absolute   string // W2ku
	blocks     map[int]stored
	fixed      []byte // data of a fixed disk
	oldFooter  bool   // 511 bytes
	noCopy     bool
	noFooter   bool
}

// stored is a block: its sectors that are there, by number.
type stored map[int][]byte

// whole is a block of which every sector is there.
func whole(b byte) stored {
	s := stored{}
	for i := range 2 * mib / 512 {
		s[i] = bytes.Repeat([]byte{b}, 512)
	}
	return s
}

const (
	headerAt = 512
	tableAt  = 512 + 1024
)

func (s spec) footer() []byte {
	be := binary.BigEndian
	b := make([]byte, 512)
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)
	be.PutUint32(b[12:], 0x10000)
	be.PutUint64(b[16:], headerAt)
	if s.kind == 2 {
		be.PutUint64(b[16:], ^uint64(0))
	}
	copy(b[28:32], "win ")
	if s.creator != "" {
		copy(b[28:32], s.creator)
	}
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(s.size))
	be.PutUint64(b[48:], uint64(s.size))
	copy(b[56:], s.geometry[:])
	be.PutUint32(b[60:], s.kind)
	copy(b[68:84], bytes.Repeat([]byte{s.id}, 16))
	resum(b, 64)
	return b
}

// resum stores the checksum of b at off.
func resum(b []byte, off int) {
	clear(b[off : off+4])
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(b[off:], ^sum)
}

func (s spec) header(entries int64, locators int64) []byte {
	be := binary.BigEndian
	b := make([]byte, 1024)
	copy(b, "cxsparse")
	be.PutUint64(b[8:], ^uint64(0))
	be.PutUint64(b[16:], tableAt)
	be.PutUint32(b[24:], 0x10000)
	be.PutUint32(b[28:], uint32(entries))
	be.PutUint32(b[32:], uint32(s.block))
	copy(b[40:56], bytes.Repeat([]byte{s.parentID}, 16))
	for i, c := range utf16.Encode([]rune(s.parentName)) {
		be.PutUint16(b[64+2*i:], c)
	}
	for i, l := range []struct{ platform, name string }{{"W2ru", s.relative}, {"W2ku", s.absolute}} {
		if l.name == "" {
			continue
		}
		e := b[576+24*i:]
		copy(e, l.platform)
		be.PutUint32(e[4:], 1)
		be.PutUint32(e[8:], uint32(2*len(l.name)))
		be.PutUint64(e[16:], uint64(locators+512*int64(i)))
	}
	resum(b, 36)
	return b
}

// bytes is the file.
func (s spec) bytes() []byte {
	be := binary.BigEndian
	footer := s.footer()
	if s.oldFooter {
		footer = footer[:511]
	}
	if s.kind == 2 {
		return append(bytes.Clone(s.fixed), footer...)
	}
	if s.block == 0 {
		s.block = 2 * mib
	}
	entries := (s.size + s.block - 1) / s.block
	locators := (tableAt + 4*entries + 511) / 512 * 512
	var out []byte
	if s.noCopy {
		out = make([]byte, 512)
	} else {
		out = append(out, s.footer()...)
	}
	out = append(out, s.header(entries, locators)...)
	out = append(out, bytes.Repeat([]byte{0xff}, int(locators-tableAt))...)
	for _, name := range []string{s.relative, s.absolute} {
		b := make([]byte, 512)
		for i, c := range utf16.Encode([]rune(name)) {
			binary.LittleEndian.PutUint16(b[2*i:], c)
		}
		out = append(out, b...)
	}
	for i := range int(entries) {
		sectors, ok := s.blocks[i]
		if !ok {
			continue
		}
		be.PutUint32(out[tableAt+4*i:], uint32(len(out)/512))
		n := int(s.block / 512)
		bitmap := make([]byte, (n+4095)/4096*512)
		data := make([]byte, s.block)
		for j, b := range sectors {
			bitmap[j/8] |= 0x80 >> (j % 8)
			copy(data[j*512:], b)
		}
		out = append(append(out, bitmap...), data...)
	}
	if !s.noFooter {
		out = append(out, footer...)
	}
	return out
}

// files are what lies beside an image.
type files = formatstest.Files

var inMemory = formatstest.InMemory{Format: vhd.Format()}

func sectorOf(b byte) []byte { return bytes.Repeat([]byte{b}, 512) }
