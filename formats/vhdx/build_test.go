package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
	"unicode/utf16"

	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

var le = binary.LittleEndian

// guid is a GUID as [MS-VHDX] stores it.
func guid(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		panic(text)
	}
	return []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// resum stores the CRC-32C of b at its fourth byte.
func resum(b []byte) {
	clear(b[4:8])
	le.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func utf16le(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, c)
	}
	return b
}

const (
	writeID  = "11111111-2222-3333-4444-555555555555"
	parentID = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	logID    = "99999999-8888-7777-6666-555555555555"

	headersAt  = 64 * kib
	regionsAt  = 192 * kib
	logAt      = 1 * mib
	metadataAt = 2 * mib
	batAt      = 3 * mib
	dataAt     = 4 * mib
)

// spec is a VHDX written down by the letter of the specification, to be read. Its log is empty.
type spec struct {
	size    int64
	block   int64 // 1 MiB
	logical int64 // 512
	writeID string
	differs bool
	locator map[string]string
	blocks  map[int]stored
}

// stored is a block of the disk.
type stored struct {
	state   byte
	data    []byte         // of the whole block
	sectors map[int][]byte // those that are here, of a partially present one
}

func (s spec) bytes() []byte {
	if s.block == 0 {
		s.block = mib
	}
	if s.logical == 0 {
		s.logical = 512
	}
	if s.writeID == "" {
		s.writeID = writeID
	}
	b := make([]byte, dataAt)
	copy(b, append([]byte("vhdxfile"), utf16le("by hand")...))
	for i := range 2 {
		h := b[headersAt*(1+i):][:4*kib]
		copy(h, "head")
		le.PutUint64(h[8:], uint64(7+i))
		copy(h[16:], guid(parentID))
		copy(h[32:], guid(s.writeID))
		le.PutUint16(h[66:], 1)
		le.PutUint32(h[68:], mib)
		le.PutUint64(h[72:], logAt)
		resum(h)
		r := b[regionsAt+64*kib*i:][:64*kib]
		copy(r, "regi")
		le.PutUint32(r[8:], 2)
		region(r[16:], "2DC27766-F623-4200-9D64-115E9BFD4A08", batAt, mib, 1)
		region(r[48:], "8B7CA206-4790-4B9A-B8FE-575F050F886E", metadataAt, mib, 1)
		resum(r)
	}
	s.metadata(b[metadataAt:])
	return s.store(b)
}

func region(b []byte, id string, off uint64, n, required uint32) {
	copy(b, guid(id))
	le.PutUint64(b[16:], off)
	le.PutUint32(b[24:], n)
	le.PutUint32(b[28:], required)
}

func (s spec) metadata(b []byte) {
	copy(b, "metadata")
	at := 64 * kib
	add := func(id string, flags uint32, item []byte) {
		n := int(le.Uint16(b[10:]))
		e := b[32+32*n:]
		copy(e, guid(id))
		le.PutUint32(e[16:], uint32(at))
		le.PutUint32(e[20:], uint32(len(item)))
		le.PutUint32(e[24:], flags)
		le.PutUint16(b[10:], uint16(n+1))
		at += copy(b[at:], item)
	}
	var flags uint32
	if s.differs {
		flags = 2
	}
	add("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", 4, le.AppendUint32(le.AppendUint32(nil, uint32(s.block)), flags))
	add("2FA54224-CD1B-4876-B211-5DBED83BF4B8", 6, le.AppendUint64(nil, uint64(s.size)))
	add("BECA12AB-B2E6-4523-93EF-C309E000C746", 6, guid("12345678-9abc-def0-1234-56789abcdef0"))
	add("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", 6, le.AppendUint32(nil, uint32(s.logical)))
	add("CDA348C7-445D-4471-9CC9-E9885251C556", 6, le.AppendUint32(nil, 4096))
	if s.differs {
		add("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", 4, locator(s.locator))
	}
}

func locator(entries map[string]string) []byte {
	b := append(guid("B04AEFB7-D19E-4A81-B789-25B8E9445913"), 0, 0, byte(len(entries)), 0)
	at := len(b) + 12*len(entries)
	var texts []byte
	for k, v := range entries {
		key, value := utf16le(k), utf16le(v)
		b = le.AppendUint32(b, uint32(at+len(texts)))
		b = le.AppendUint32(b, uint32(at+len(texts)+len(key)))
		b = le.AppendUint16(b, uint16(len(key)))
		b = le.AppendUint16(b, uint16(len(value)))
		texts = append(append(texts, key...), value...)
	}
	return append(b, texts...)
}

// store appends the blocks and the bitmaps that they need.
func (s spec) store(b []byte) []byte {
	ratio := int(s.logical << 23 / s.block)
	bitmaps := map[int]int{}
	for i := range int((s.size + s.block - 1) / s.block) {
		blk, ok := s.blocks[i]
		if !ok {
			continue
		}
		e := b[batAt+8*(i+i/ratio):]
		le.PutUint64(e, uint64(blk.state))
		if blk.state < 6 {
			continue
		}
		le.PutUint64(e, uint64(len(b))|uint64(blk.state))
		at := len(b)
		b = append(b, make([]byte, s.block)...)
		copy(b[at:], blk.data)
		if blk.state != 7 {
			continue
		}
		chunk := i / ratio
		if bitmaps[chunk] == 0 {
			bitmaps[chunk] = len(b)
			le.PutUint64(b[batAt+8*(chunk*(ratio+1)+ratio):], uint64(len(b))|6)
			b = append(b, make([]byte, mib)...)
		}
		for n, sector := range blk.sectors {
			copy(b[at+n*int(s.logical):], sector)
			bit := i%ratio*int(s.block/s.logical) + n
			b[bitmaps[chunk]+bit/8] |= 1 << (bit % 8)
		}
	}
	return b
}

// whole is a block that is there.
func whole(b byte) stored { return stored{state: 6, data: bytes.Repeat([]byte{b}, mib)} }

// partly is a block of which some sectors of 512 bytes are there; what lies in the place of the
// others is nobody's.
func partly(sectors map[int]byte) stored {
	s := stored{state: 7, data: bytes.Repeat([]byte("rubbish"), mib/7), sectors: map[int][]byte{}}
	for i, b := range sectors {
		s.sectors[i] = bytes.Repeat([]byte{b}, 512)
	}
	return s
}

// files are what lies beside an image.
type files = formatstest.Files

var inMemory = formatstest.InMemory{Format: vhdx.Format()}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
