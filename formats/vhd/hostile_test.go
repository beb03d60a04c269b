package vhd_test

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhd"
)

func TestLiesAreRefused(t *testing.T) {
	be := binary.BigEndian
	u16 := func(v uint16) []byte { return be.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return be.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return be.AppendUint64(nil, v) }
	dynamic := spec{kind: 3, size: 8 * mib, blocks: map[int]stored{0: whole(1), 3: whole(2)}}
	child := spec{kind: 4, size: 8 * mib, id: 2, parentID: 1, parentName: "base.vhd", relative: `.\base.vhd`, blocks: map[int]stored{0: {0: sectorOf(1)}}}
	fixed := spec{kind: 2, size: 4096, fixed: make([]byte, 4096)}
	const footer, header, table = 0, 512, 1536
	for _, c := range []struct {
		lie    string
		of     spec
		part   int // footer (both of them), header or table
		off    int
		value  []byte
		is     error
		says   string
		summed bool // the checksum is left wrong
	}{
		{lie: "cookie", of: fixed, part: footer, off: 0, value: []byte("conectiX"), is: formats.ErrFormat, says: "footer"},
		{lie: "version", of: dynamic, part: footer, off: 12, value: u32(0x20000), is: formats.ErrFormat, says: "file format version 2.0"},
		{lie: "data offset behind the end", of: dynamic, part: footer, off: 16, value: u64(1 << 40), is: formats.ErrCorrupt, says: "dynamic header"},
		{lie: "data offset beyond all files", of: dynamic, part: footer, off: 16, value: u64(1<<64 - 1), is: formats.ErrCorrupt, says: "data offset"},
		{lie: "data offset that overflows", of: dynamic, part: footer, off: 16, value: u64(1<<63 - 100), is: formats.ErrCorrupt, says: "data offset"},
		{lie: "data offset into the footer", of: dynamic, part: footer, off: 16, value: u64(0), is: formats.ErrCorrupt, says: "data offset"},
		{lie: "current size of a fixed disk", of: fixed, part: footer, off: 48, value: u64(8192), is: formats.ErrCorrupt, says: "current size 8192, the file holds 4096"},
		{lie: "current size, negative", of: fixed, part: footer, off: 48, value: u64(1<<64 - 512), is: formats.ErrCorrupt, says: "current size"},
		{lie: "current size in half sectors", of: fixed, part: footer, off: 48, value: u64(1000), is: formats.ErrCorrupt, says: "whole number of sectors"},
		{lie: "current size beyond the table", of: dynamic, part: footer, off: 48, value: u64(64 * mib), is: formats.ErrCorrupt, says: "4 table entries of 2097152 bytes do not cover"},
		{lie: "current size beyond 2040 GiB", of: dynamic, part: footer, off: 48, value: u64(most + 512), is: formats.ErrCorrupt, says: "current size"},
		{lie: "disk type 0", of: dynamic, part: footer, off: 60, value: u32(0), is: formats.ErrFormat, says: "disk type 0"},
		{lie: "disk type 7", of: dynamic, part: footer, off: 60, value: u32(7), is: formats.ErrFormat, says: "disk type 7"},
		{lie: "checksum of the footer", of: fixed, part: footer, off: 64, value: u32(1), is: formats.ErrCorrupt, says: "footer: checksum", summed: true},

		{lie: "cookie of the header", of: dynamic, part: header, off: 0, value: []byte("cxsparsE"), is: formats.ErrCorrupt, says: "dynamic header: no cookie"},
		{lie: "checksum of the header", of: dynamic, part: header, off: 36, value: u32(1), is: formats.ErrCorrupt, says: "dynamic header: checksum", summed: true},
		{lie: "version of the header", of: dynamic, part: header, off: 24, value: u32(0x30000), is: formats.ErrFormat, says: "dynamic header: version 3.0"},
		{lie: "table offset behind the end", of: dynamic, part: header, off: 16, value: u64(1 << 40), is: formats.ErrCorrupt, says: "table of 4 entries"},
		{lie: "table offset that overflows", of: dynamic, part: header, off: 16, value: u64(1<<64 - 8), is: formats.ErrCorrupt, says: "table offset"},
		{lie: "no entries", of: dynamic, part: header, off: 28, value: u32(0), is: formats.ErrCorrupt, says: "0 table entries"},
		{lie: "more entries than the file holds", of: dynamic, part: header, off: 28, value: u32(1<<32 - 1), is: formats.ErrCorrupt, says: "table of 4294967295 entries"},
		{lie: "block size 0", of: dynamic, part: header, off: 32, value: u32(0), is: formats.ErrCorrupt, says: "block size 0"},
		{lie: "block size below a sector", of: dynamic, part: header, off: 32, value: u32(256), is: formats.ErrCorrupt, says: "block size 256"},
		{lie: "block size no power of two", of: dynamic, part: header, off: 32, value: u32(3 * mib), is: formats.ErrCorrupt, says: "block size 3145728"},
		{lie: "block size of 2 GiB", of: dynamic, part: header, off: 32, value: u32(1 << 31), is: formats.ErrCorrupt, says: "entry 0 points at"},

		{lie: "block behind the end", of: dynamic, part: table, off: 0, value: u32(0xfffffffe), is: formats.ErrCorrupt, says: "entry 0 points at byte 2199023254528"},
		{lie: "block across the end", of: dynamic, part: table, off: 12, value: u32(4 * mib / 512), is: formats.ErrCorrupt, says: "entry 3 points at"},
		{lie: "block in the copy of the footer", of: dynamic, part: table, off: 0, value: u32(0), is: formats.ErrCorrupt, says: "copy of the footer"},
		{lie: "block in the header", of: dynamic, part: table, off: 0, value: u32(1), is: formats.ErrCorrupt, says: "dynamic header"},
		{lie: "block in the table", of: dynamic, part: table, off: 0, value: u32(3), is: formats.ErrCorrupt, says: "block allocation table"},

		{lie: "locator longer than any name", of: child, part: header, off: 576 + 8, value: u32(1 << 31), is: formats.ErrCorrupt, says: "parent locator W2ru"},
		{lie: "locator behind the end", of: child, part: header, off: 576 + 16, value: u64(1 << 40), is: formats.ErrCorrupt, says: "parent locator W2ru"},
		{lie: "locator that overflows", of: child, part: header, off: 576 + 16, value: u64(1<<64 - 2), is: formats.ErrCorrupt, says: "parent locator W2ru"},
		{lie: "parent id", of: child, part: header, off: 40, value: u16(0), is: formats.ErrCorrupt, says: "it is not the parent"},
	} {
		t.Run(c.lie, func(t *testing.T) {
			b := c.of.bytes()
			places := []int{c.part}
			if c.part == footer {
				places = []int{len(b) - 512}
				if c.of.kind != 2 {
					places = append(places, 0)
				}
			}
			for _, at := range places {
				copy(b[at+c.off:], c.value)
				switch {
				case c.summed:
				case c.part == footer:
					resum(b[at:at+512], 64)
				case c.part == header:
					resum(b[at:at+1024], 36)
				}
			}
			base := files{"base.vhd": spec{kind: 3, size: 8 * mib, id: 1}.bytes()}
			err := inMemory.ReadAll(t.Context(), b, formats.OpenOptions{Beside: base.Beside})
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestOverlappingBlocksAreFound(t *testing.T) {
	b := spec{kind: 3, size: 8 * mib, blocks: map[int]stored{0: whole(1), 3: whole(2)}}.bytes()
	copy(b[1536+4:], b[1536:1536+4])
	binary.BigEndian.PutUint32(b[1536+8:], binary.BigEndian.Uint32(b[1536+12:])-1)
	rep, err := vhd.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.EqualValues(t, 4, rep.Allocated)
	require.Len(t, rep.Errors, 3)
	require.Contains(t, rep.Errors[0], "blocks 0 and 1 are stored in the same bytes")
}

func TestEveryCutIsNoticed(t *testing.T) {
	for name, s := range map[string]spec{
		"dynamic": {kind: 3, size: 4 * mib, blocks: map[int]stored{0: whole(1), 1: whole(2)}},
		"fixed":   {kind: 2, size: 64 * kib, fixed: bytes.Repeat([]byte{1}, 64*kib)},
	} {
		t.Run(name, func(t *testing.T) {
			b := s.bytes()
			inMemory.EveryCut(t, b, 512)
		})
	}
}

// A disk of 2040 GiB in blocks of 512 KiB has a table of 16 MiB. Neither walking it nor reading it all
// over the place may take memory.
func TestHugeTableIsPaged(t *testing.T) {
	b := spec{kind: 3, size: most, block: 512 * kib}.bytes()
	formatstest.Paged(t, func() formats.Image { return inMemory.MustOpen(t, b, formats.OpenOptions{}) })
	runtime.KeepAlive(b)
}

func FuzzOpen(f *testing.F) {
	f.Add(spec{kind: 2, size: 1024, fixed: make([]byte, 1024)}.bytes())
	f.Add(spec{kind: 2, size: 1024, fixed: make([]byte, 1024), oldFooter: true}.bytes())
	f.Add(spec{kind: 3, size: 4 * kib, block: 1024, blocks: map[int]stored{0: {1: sectorOf(1)}, 3: {0: sectorOf(2)}}}.bytes())
	f.Add(spec{kind: 4, size: 4 * kib, block: 1024, parentName: "base.vhd", relative: `.\x\base.vhd`, blocks: map[int]stored{3: {1: sectorOf(1)}}}.bytes())
	f.Add(spec{kind: 3, size: 4 * kib, block: 512, creator: "vpc ", geometry: chs(1, 2, 3), noFooter: true}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		for _, sums := range []bool{false, true} {
			if sums { // let the fuzzer see what is behind the checksums
				mend(b)
			}
			fuzzOne(t, b)
		}
	})
}

// mend makes the checksums right.
func mend(b []byte) {
	if len(b) < 512 {
		return
	}
	resum(b[len(b)-512:], 64)
	resum(b[:512], 64)
	if at := binary.BigEndian.Uint64(b[len(b)-512+16:]); len(b) >= 1024 && at <= uint64(len(b)-1024) {
		resum(b[at:at+1024], 36)
	}
}

func fuzzOne(t *testing.T, b []byte) {
	base := files{"base.vhd": spec{kind: 3, size: 64 * kib, block: 4096, blocks: map[int]stored{0: {0: sectorOf(9)}}}.bytes()}
	inMemory.Fuzz(t, b, base)
}
