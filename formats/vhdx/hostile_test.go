package vhdx_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

func TestLiesAreRefused(t *testing.T) {
	u16 := func(v uint16) []byte { return le.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	// Places in the image: the region tables (both), the metadata table, its items, and the table.
	const (
		regions = -1
		meta    = metadataAt
		entry   = meta + 32 // of the metadata table, 32 bytes each
		params  = meta + 64*kib
		size    = params + 8
		logical = size + 8 + 16
		parent  = logical + 8
		bat     = batAt
	)
	for lie, c := range map[string]struct {
		place int
		off   int
		value []byte
		is    error
		says  string
	}{
		"identifier":                 {0, 0, []byte("vhdxfilE"), formats.ErrFormat, "no identifier"},
		"more regions than fit":      {regions, 8, u32(2048), formats.ErrCorrupt, "region table 1: 2048 entries"},
		"no regions":                 {regions, 8, u32(0), formats.ErrCorrupt, "no block allocation table"},
		"no metadata":                {regions, 8, u32(1), formats.ErrCorrupt, "no metadata region"},
		"region in the headers":      {regions, 32, u64(0), formats.ErrCorrupt, "block allocation table has 1048576 bytes at 0"},
		"region at an odd place":     {regions, 32, u64(3*mib + 512), formats.ErrCorrupt, "must be multiples of 1 MiB"},
		"region of an odd length":    {regions, 40, u32(4096), formats.ErrCorrupt, "has 4096 bytes"},
		"region of no length":        {regions, 40, u32(0), formats.ErrCorrupt, "has 0 bytes"},
		"region in the log":          {regions, 32, u64(1 * mib), formats.ErrCorrupt, "block allocation table shares bytes of the file with the log"},
		"regions that overlap":       {regions, 32, u64(2 * mib), formats.ErrCorrupt, "metadata region shares bytes of the file with the block allocation table"},
		"region that overflows":      {regions, 32, u64(1<<64 - mib), formats.ErrCorrupt, "block allocation table"},
		"region behind the end":      {regions, 32, u64(1 << 40), formats.ErrCorrupt, "block allocation table of 1048576 bytes at 1099511627776"},
		"metadata behind the end":    {regions, 64, u64(1 << 40), formats.ErrCorrupt, "metadata table"},
		"region nobody knows":        {regions, 16, guid("00000000-1111-2222-3333-444444444444"), formats.ErrFormat, "region 00000000-1111-2222-3333-444444444444 is required and not known"},
		"metadata signature":         {meta, 0, []byte("metadatA"), formats.ErrCorrupt, "metadata table: no signature"},
		"more items than fit":        {meta, 10, u16(2048), formats.ErrCorrupt, "2048 entries"},
		"no items":                   {meta, 10, u16(0), formats.ErrCorrupt, "the file parameters has 0 bytes"},
		"item nobody knows":          {entry, 0, guid("00000000-1111-2222-3333-444444444444"), formats.ErrFormat, "item 00000000-1111-2222-3333-444444444444 is required"},
		"the same item twice":        {entry, 32, guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B"), formats.ErrCorrupt, "two items are the file parameters"},
		"item in the table":          {entry, 16, u32(100), formats.ErrCorrupt, "file parameters has 8 bytes at 100"},
		"item behind the region":     {entry, 16, u32(mib), formats.ErrCorrupt, "file parameters has 8 bytes at 1048576"},
		"item of no length":          {entry, 20, u32(0), formats.ErrCorrupt, "file parameters has 0 bytes"},
		"item too short":             {entry, 20, u32(4), formats.ErrCorrupt, "file parameters has 4 bytes"},
		"item too long":              {entry, 20, u32(1 << 31), formats.ErrCorrupt, "file parameters has 2147483648 bytes"},
		"block size 0":               {params, 0, u32(0), formats.ErrCorrupt, "block size 0"},
		"block size 3 MiB":           {params, 0, u32(3 * mib), formats.ErrCorrupt, "block size 3145728"},
		"block size 512 MiB":         {params, 0, u32(512 * mib), formats.ErrCorrupt, "block size 536870912"},
		"block larger than the file": {params, 0, u32(256 * mib), formats.ErrCorrupt, "block 0 is at byte 4194304, the file ends"},
		"size beyond 64 TiB":         {size, 0, u64(64*tib + 512), formats.ErrCorrupt, "virtual disk size 70368744178176"},
		"size in half sectors":       {size, 0, u64(1000), formats.ErrCorrupt, "virtual disk size 1000"},
		"size beyond the table":      {size, 0, u64(1 * tib), formats.ErrCorrupt, "the disk needs"},
		"sectors of 520 bytes":       {logical, 0, u32(520), formats.ErrCorrupt, "logical sector size 520"},
		"locator of another type":    {parent, 0, guid("00000000-1111-2222-3333-444444444444"), formats.ErrFormat, "parent locator: type"},
		"locator with many entries":  {parent, 18, u16(60000), formats.ErrCorrupt, "parent locator: 60000 entries"},
		"locator key behind the end": {parent, 20, u32(1 << 31), formats.ErrCorrupt, "parent locator: key of entry 0"},
		"locator key of no length":   {parent, 28, u16(0), formats.ErrCorrupt, "parent locator: key of entry 0"},
		"locator value behind":       {parent, 24, u32(1<<32 - 1), formats.ErrCorrupt, "parent locator: value of"},
		"block behind the end":       {bat, 0, u64(1<<40 | 6), formats.ErrCorrupt, "block 0 is at byte 1099511627776"},
		"block beyond all files":     {bat, 0, u64(0xfffffffffff00006), formats.ErrCorrupt, "block 0 is at byte"},
		"block at the end":           {bat, 24, u64(7*mib | 6), formats.ErrCorrupt, "block 3 is at byte 7340032, the file ends"},
		"block in the headers":       {bat, 0, u64(6), formats.ErrCorrupt, "in the header section"},
		"block in the log":           {bat, 0, u64(1*mib | 6), formats.ErrCorrupt, "in the log"},
		"block in the metadata":      {bat, 0, u64(2*mib | 6), formats.ErrCorrupt, "in the metadata region"},
		"block in the table":         {bat, 0, u64(3*mib | 6), formats.ErrCorrupt, "in the block allocation table"},
		"state 4":                    {bat, 8, u64(4), formats.ErrCorrupt, "block 1 has state 4"},
		"state 5":                    {bat, 8, u64(5*mib | 5), formats.ErrCorrupt, "block 1 has state 5"},
		"partial without a bitmap":   {bat + 8*4096, 0, u64(0), formats.ErrCorrupt, "its bitmap has state 0"},
		"bitmap behind the end":      {bat + 8*4096, 0, u64(1<<40 | 6), formats.ErrCorrupt, "bitmap 0 is at byte 1099511627776"},
		"bitmap in the log":          {bat + 8*4096, 0, u64(1*mib | 6), formats.ErrCorrupt, "bitmap 0 is at byte 1048576, in the log"},
	} {
		t.Run(lie, func(t *testing.T) {
			b := spec{size: 4*mib - 512, differs: true, locator: map[string]string{"parent_linkage": "{" + parentID + "}"},
				blocks: map[int]stored{0: whole(1), 3: partly(map[int]byte{1: 1})}}.bytes()
			b = b[:len(b):len(b)]
			if c.place == regions {
				tables(b, func(r []byte) { copy(r[c.off:], c.value) })
			} else {
				copy(b[c.place+c.off:], c.value)
			}
			err := inMemory.ReadAll(t.Context(), b, formats.OpenOptions{Layer: true})
			if err == nil || !bytes.Contains([]byte(err.Error()), []byte("parent")) {
				require.NotErrorIs(t, err, formats.ErrAbsent)
			}
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestPartialBlockWithoutAParentIsRefused(t *testing.T) {
	b := spec{size: mib, blocks: map[int]stored{0: {state: 7}}}.bytes()
	require.ErrorContains(t, inMemory.ReadAll(t.Context(), b, formats.OpenOptions{}), "block 0 has state 7")
}

func TestOverlappingBlocksAreFound(t *testing.T) {
	b := spec{size: 4 * mib, blocks: map[int]stored{0: whole(1), 3: whole(2)}}.bytes()
	copy(b[batAt+8:], b[batAt:batAt+8])
	rep, err := vhdx.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.EqualValues(t, 3, rep.Allocated)
	require.Len(t, rep.Errors, 1)
	require.Contains(t, rep.Errors[0], "blocks 0 and 1 are stored in the same bytes")
}

func TestEveryCutIsNoticed(t *testing.T) {
	b := spec{size: 3 * mib, blocks: map[int]stored{0: whole(1), 2: whole(2)}}.bytes()
	inMemory.EveryCut(t, b, 0)
}

// A disk of 64 TiB in blocks of 1 MiB has a table of 512 MiB. Neither walking it nor reading it all
// over the place may take memory.
func TestHugeTableIsPaged(t *testing.T) {
	const entries = 64<<20 + 64<<8
	b := spec{size: 64 * tib}.bytes()
	tables(b, func(r []byte) { le.PutUint32(r[16+24:], (entries*8+mib-1)/mib*mib) })
	f := formatstest.Padded{Head: b, Size: batAt + entries*8 + mib}
	formatstest.Paged(t, func() formats.Image {
		img, err := vhdx.Open(t.Context(), f, f.Size, formats.OpenOptions{})
		require.NoError(t, err)
		return img
	})
}

// The largest log that is read, full of descriptors that each write more than the last, is gone
// through in bounded time and memory.
func TestLogOfManyWritesIsBounded(t *testing.T) {
	const length = 16 * mib
	b := spec{size: mib, blocks: map[int]stored{0: whole(1)}}.bytes()
	logOff := int64(len(b))
	b = append(b, make([]byte, length)...)
	b = with(b, func(h []byte) {
		copy(h[48:], guid(logID))
		le.PutUint32(h[68:], length)
		le.PutUint64(h[72:], uint64(logOff))
	})
	at, sequence := int64(0), uint64(1)
	for at < length {
		e := entry{sequence: sequence, flushed: int64(len(b)), last: int64(len(b))}
		for i := range min(100000, (length-at)/32-64) {
			e.writes = append(e.writes, logged{off: block0 + i%250*4096, zeros: 4096 * (1 + i%5)})
		}
		at += int64(copy(b[logOff+at:], e.bytes()))
		sequence++
		if length-at < 8192 {
			break
		}
	}
	begin := time.Now()
	_, err := inMemory.Open(t.Context(), b, formats.OpenOptions{})
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "more than 262144 writes")
	require.Less(t, time.Since(begin), time.Minute)
}

// fuzzHead is how much of an image the fuzzer is given to play with: everything that is not zeros, cut
// out of its place.
func fuzzHead(b []byte) []byte {
	var out []byte
	for _, p := range fuzzParts {
		out = append(out, b[p[0]:p[0]+p[1]]...)
	}
	return out
}

// fuzzParts are the parts of an image that say something: offset and length.
var fuzzParts = [][2]int{{0, 32}, {headersAt, 96}, {2 * headersAt, 96}, {regionsAt, 96}, {metadataAt, 256}, {metadataAt + 64*kib, 256}, {batAt, 64}, {batAt + 8*4096, 16}, {logAt, 3 * 4096}}

// fuzzImage puts them back.
func fuzzImage(head []byte) []byte {
	b := spec{size: 3 * mib, blocks: map[int]stored{0: whole(1)}}.bytes()
	for _, p := range fuzzParts {
		n := copy(b[p[0]:p[0]+p[1]], head)
		head = head[n:]
	}
	header(b, 0, func([]byte) {})
	header(b, 1, func([]byte) {})
	tables(b, func([]byte) {})
	return b
}

func FuzzOpen(f *testing.F) {
	f.Add(fuzzHead(spec{size: 3 * mib, blocks: map[int]stored{0: whole(1)}}.bytes()))
	f.Add(fuzzHead(chain()["mid.avhdx"]))
	f.Add(fuzzHead(useLog(twoBlocks(), entry{sequence: 1, writes: []logged{{off: block0, data: page(7)}, {off: block0 + 4096, zeros: 8192}}})))
	base := chain()
	f.Fuzz(func(t *testing.T, head []byte) {
		b := fuzzImage(head)
		inMemory.Fuzz(t, b, base)
	})
}

// FuzzLog gives the fuzzer a log whose entries have the right checksums.
func FuzzLog(f *testing.F) {
	one := entry{sequence: 1, flushed: mib, last: 5 * mib, writes: []logged{{off: block0, data: page(7)}, {off: block0 + 4096, zeros: 8192}}}.bytes()
	two := entry{sequence: 2, flushed: mib, last: 5 * mib, writes: []logged{{off: block0, zeros: 4096}}}.bytes()
	f.Add(one)
	f.Add(append(bytes.Clone(one), two...))
	f.Fuzz(func(t *testing.T, log []byte) {
		if len(log) > mib {
			return
		}
		b := useLog(twoBlocks())
		copy(b[logAt:], log)
		for at := 0; at+4096 <= len(log); at += 4096 {
			e := b[logAt+at : logAt+mib]
			if n := le.Uint32(e[8:]); string(e[:4]) == "loge" && n >= 8 && int(n) <= len(e) {
				resum(e[:n])
			}
		}
		if img, err := inMemory.Open(t.Context(), b, formats.OpenOptions{}); err == nil {
			_ = formatstest.Tiles(t.Context(), img, img.Size())
			require.NoError(t, img.Close())
		}
	})
}
