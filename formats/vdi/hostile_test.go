package vdi_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vdi"
)

func TestLiesAreRefused(t *testing.T) {
	u32 := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	const table = 512
	for lie, c := range map[string]struct {
		off   int
		value []byte
		is    error
		says  string
	}{
		"signature":              {0x40, u32(0xbeda107e), formats.ErrFormat, "no signature"},
		"version 0":              {0x44, u32(2), formats.ErrFormat, "version 0.2"},
		"version 2":              {0x44, u32(0x20000), formats.ErrFormat, "version 2.0"},
		"header too short":       {0x48, u32(100), formats.ErrCorrupt, "its size is 100"},
		"image type 0":           {0x4c, u32(0), formats.ErrFormat, "image type 0"},
		"undo image":             {0x4c, u32(3), formats.ErrFormat, "image type 3"},
		"image type 5":           {0x4c, u32(5), formats.ErrFormat, "image type 5"},
		"map in the header":      {0x154, u32(0x100), formats.ErrCorrupt, "offset of the block map 256"},
		"map behind the data":    {0x154, u32(4096), formats.ErrCorrupt, "offset of the data 1024"},
		"map behind the end":     {0x154, u32(1<<32 - 1), formats.ErrCorrupt, "offset of the data"},
		"data in the map":        {0x158, u32(516), formats.ErrCorrupt, "offset of the data 516"},
		"data behind the end":    {0x158, u32(1<<32 - 1), formats.ErrCorrupt, "block map: entry 0 is at byte 4294967295"},
		"sectors of 4096 bytes":  {0x168, u32(4096), formats.ErrFormat, "sectors of 4096 bytes"},
		"size beyond all disks":  {0x170, u64(1 << 63), formats.ErrCorrupt, "disk size 9223372036854775808"},
		"size beyond the blocks": {0x170, u64(5 * mib), formats.ErrCorrupt, "number of blocks 4"},
		"block size 0":           {0x178, u32(0), formats.ErrCorrupt, "block size 0"},
		"block size 3 MiB":       {0x178, u32(3 * mib), formats.ErrCorrupt, "block size 3145728"},
		"block size 2 GiB":       {0x178, u32(1 << 31), formats.ErrCorrupt, "block size 2147483648"},
		"blocks twice as large":  {0x178, u32(4 * mib), formats.ErrCorrupt, "block map: entry 0 is at byte"},
		"extra data":             {0x17c, u32(1<<32 - 1), formats.ErrCorrupt, "extra data of a block 4294967295"},
		"no blocks":              {0x180, u32(0), formats.ErrCorrupt, "number of blocks 0"},
		"many blocks":            {0x180, u32(1<<32 - 1), formats.ErrCorrupt, "offset of the data 1024"},
		"many allocated":         {0x184, u32(5), formats.ErrCorrupt, "number of allocated blocks 5"},
		"block out of range":     {table, u32(4), formats.ErrCorrupt, "entry 0 is 4 of 4 blocks"},
		"block far out of range": {table, u32(0xfffffffd), formats.ErrCorrupt, "entry 0 is 4294967293 of 4 blocks"},
		"block behind the end":   {table, u32(2), formats.ErrCorrupt, "entry 0 is at byte"},
	} {
		t.Run(lie, func(t *testing.T) {
			b := spec{kind: 1, size: 4*mib - 512, blocks: map[int]int{0: 1, 3: 2}}.bytes()
			copy(b[c.off:], c.value)
			err := inMemory.ReadAll(t.Context(), b, formats.OpenOptions{})
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// A map that begins where it should and does not end within the file.
func TestMapBehindTheEndOfTheFile(t *testing.T) {
	b := spec{kind: 1, size: 4 * mib}.bytes()
	le.PutUint32(b[0x180:], 1<<30-1024)
	le.PutUint32(b[0x158:], 1<<32-512)
	require.ErrorContains(t, inMemory.ReadAll(t.Context(), b, formats.OpenOptions{}), "block map of 1073740800 entries at 512, the file ends at")
}

func TestEveryCutIsNoticed(t *testing.T) {
	b := spec{kind: 1, size: 3 * mib, blocks: map[int]int{0: 1, 2: 2}}.bytes()
	inMemory.EveryCut(t, b, 0)
}

// A disk of 64 TiB has a map of 256 MiB. Neither walking it nor reading it all over the place may take
// memory.
func TestHugeTableIsPaged(t *testing.T) {
	b := spec{kind: 1}.bytes()
	le.PutUint64(b[0x170:], 64<<40)
	le.PutUint32(b[0x180:], 64<<20)
	le.PutUint32(b[0x158:], 512+256*mib)
	f := formatstest.Padded{Head: b, Size: 512 + 256*mib, Rest: 0xff} // entries that are free
	formatstest.Paged(t, func() formats.Image {
		img, err := vdi.Open(t.Context(), f, f.Size, formats.OpenOptions{})
		require.NoError(t, err)
		return img
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(spec{kind: 1, size: 4 * kib, block: 1024, blocks: map[int]int{0: 1, 2: zeroed, 3: 2}}.bytes())
	f.Add(spec{kind: 2, size: 2 * kib, block: 1024, extra: 512, blocks: map[int]int{0: 1, 1: 2}}.bytes())
	f.Add(spec{kind: 4, size: 4 * kib, block: 1024, parent: 1, blocks: map[int]int{1: 1}}.bytes())
	base := files{"{" + uuid(1) + "}.vdi": spec{kind: 1, size: 4 * kib, id: 1, block: 512, blocks: map[int]int{0: 1}}.bytes()}
	f.Fuzz(func(t *testing.T, b []byte) {
		inMemory.Fuzz(t, b, base)
	})
}
