package vhd_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhd"
)

// write lays a disk out and answers the file.
func write(t *testing.T, d *formatstest.Disk, o formats.CreateOptions) []byte {
	t.Helper()
	h := formatstest.Harness{Format: vhd.Format(), Options: o}
	f := h.CreateDisk(t, d).(*formatstest.MemFile)
	b := make([]byte, f.Size())
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

// requireSpec reads a VHD by the letter of the specification, with nothing of the package, and
// answers its disk.
func requireSpec(t *testing.T, b []byte, kind uint32, size int64) []byte {
	t.Helper()
	be := binary.BigEndian
	require.Zero(t, len(b)%512, "a VHD is whole sectors")
	footer := b[len(b)-512:]
	require.Equal(t, "conectix", string(footer[:8]))
	require.EqualValues(t, 2, be.Uint32(footer[8:]), "features: the reserved bit, and no other")
	require.EqualValues(t, 0x10000, be.Uint32(footer[12:]), "file format version")
	require.Contains(t, []string{"Wi2k", "Mac "}, string(footer[36:40]), "creator host OS")
	require.Equal(t, be.Uint64(footer[40:]), be.Uint64(footer[48:]), "original and current size")
	require.EqualValues(t, size, be.Uint64(footer[48:]), "current size")
	c, h, s := int64(be.Uint16(footer[56:])), int64(footer[58]), int64(footer[59])
	require.Equal(t, appendix(size/512), [3]int64{c, h, s}, "geometry")
	require.Equal(t, kind, be.Uint32(footer[60:]), "disk type")
	require.Equal(t, sum(footer, 64), be.Uint32(footer[64:]), "checksum of the footer")
	require.NotEqual(t, make([]byte, 16), footer[68:84], "unique id")
	require.Equal(t, make([]byte, 512-84), footer[84:], "saved state and reserved")
	if kind == 2 {
		require.Equal(t, ^uint64(0), be.Uint64(footer[16:]), "data offset of a fixed disk")
		require.Len(t, b, int(size)+512)
		return b[:size]
	}
	require.Equal(t, footer, b[:512], "copy of the footer")
	at := be.Uint64(footer[16:])
	require.EqualValues(t, 512, at)
	header := b[at : at+1024]
	require.Equal(t, "cxsparse", string(header[:8]))
	require.Equal(t, ^uint64(0), be.Uint64(header[8:]), "data offset")
	require.EqualValues(t, 0x10000, be.Uint32(header[24:]), "header version")
	require.Equal(t, sum(header, 36), be.Uint32(header[36:]), "checksum of the header")
	require.Equal(t, make([]byte, 1024-40), header[40:], "no parent, reserved")
	table, entries, block := int64(be.Uint64(header[16:])), int64(be.Uint32(header[28:])), int64(be.Uint32(header[32:]))
	require.Zero(t, table%512, "the table begins on a sector")
	require.Equal(t, (size+block-1)/block, entries, "max table entries")

	disk := make([]byte, entries*block)
	end := (table + 4*entries + 511) / 512 * 512
	for _, v := range b[table+4*entries : end] {
		require.Equal(t, byte(0xff), v, "the table is padded with ones")
	}
	taken := map[int64]bool{}
	last := end
	bitmap := (block/512/8 + 511) / 512 * 512
	for i := range entries {
		v := be.Uint32(b[table+4*i:])
		if v == 0xffffffff {
			continue
		}
		at := int64(v) * 512
		require.GreaterOrEqual(t, at, end, "block %d is behind the table", i)
		for s := at; s < at+bitmap+block; s += 512 {
			require.False(t, taken[s], "block %d shares sector %d", i, s/512)
			taken[s] = true
		}
		require.Equal(t, bytes.Repeat([]byte{0xff}, int(block/512/8)), b[at:at+block/512/8], "bitmap of block %d", i)
		require.Zero(t, (at+bitmap)%4096, "block %d is aligned", i)
		copy(disk[i*block:], b[at+bitmap:at+bitmap+block])
		last = max(last, at+bitmap+block)
	}
	require.LessOrEqual(t, int64(len(b))-512-last, int64(4096), "the footer follows the last block")
	require.Equal(t, make([]byte, int64(len(disk))-size), disk[size:], "what the last block has behind the disk")
	return disk[:size]
}

func sum(b []byte, off int) uint32 {
	var s uint32
	for i, c := range b {
		if i < off || i >= off+4 {
			s += uint32(c)
		}
	}
	return ^s
}

// appendix is "Appendix: CHS Calculation" as it is printed.
func appendix(totalSectors int64) [3]int64 {
	if totalSectors > 65535*16*255 {
		totalSectors = 65535 * 16 * 255
	}
	var sectorsPerTrack, heads, cylinderTimesHeads int64
	if totalSectors >= 65535*16*63 {
		sectorsPerTrack = 255
		heads = 16
		cylinderTimesHeads = totalSectors / sectorsPerTrack
	} else {
		sectorsPerTrack = 17
		cylinderTimesHeads = totalSectors / sectorsPerTrack
		heads = (cylinderTimesHeads + 1023) / 1024
		if heads < 4 {
			heads = 4
		}
		if cylinderTimesHeads >= heads*1024 || heads > 16 {
			sectorsPerTrack = 31
			heads = 16
			cylinderTimesHeads = totalSectors / sectorsPerTrack
		}
		if cylinderTimesHeads >= heads*1024 {
			sectorsPerTrack = 63
			heads = 16
			cylinderTimesHeads = totalSectors / sectorsPerTrack
		}
	}
	return [3]int64{cylinderTimesHeads / heads, heads, sectorsPerTrack}
}

func TestWhatIsWrittenIsByTheSpecification(t *testing.T) {
	for _, size := range []int64{512, 2*mib - 512, 2 * mib, 19*mib + 512} {
		for sub, kind := range map[string]uint32{vhd.Dynamic: 3, vhd.Fixed: 2} {
			for _, block := range []int64{0, 512 * kib} {
				t.Run(fmt.Sprintf("%s %d in blocks of %d", sub, size, block), func(t *testing.T) {
					d := formatstest.NewDisk(uint64(size), size)
					want := make([]byte, size)
					_, err := d.ReadAt(want, 0)
					require.NoError(t, err)
					got := requireSpec(t, write(t, d, formats.CreateOptions{Subformat: sub, ClusterSize: block}), kind, size)
					require.True(t, bytes.Equal(want, got), "the disk")
				})
			}
		}
	}
}

func TestGeometryIsThatOfTheAppendix(t *testing.T) {
	for _, sectors := range []int64{1, 17 * 4, 17*4*1024 - 1, 17 * 4 * 1024, 17 * 5 * 1024, 17 * 16 * 1024, 17*16*1024 + 17, 31 * 16 * 1024,
		31*16*1024 + 31, 65535*16*63 - 1, 65535 * 16 * 63, 65535*16*255 - 1, 65535 * 16 * 255, 65535*16*255 + 1, most / 512} {
		f := formatstest.NewMemFile()
		w, err := vhd.Create(t.Context(), f, sectors*512, formats.CreateOptions{Subformat: vhd.Fixed}, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		i, err := vhd.Inspect(t.Context(), f, f.Size())
		require.NoError(t, err)
		require.Equal(t, appendix(sectors), [3]int64{int64(i.Geometry.Cylinders), int64(i.Geometry.Heads), int64(i.Geometry.Sectors)}, "%d sectors", sectors)
		require.Equal(t, sectors*512, i.DiskSize)
	}
}

func TestSizesThatAVHDCannotExpressAreRoundedUp(t *testing.T) {
	for _, c := range []struct {
		sub          string
		kind         uint32
		size, stored int64
	}{
		{vhd.Dynamic, 3, 1, 512},
		{vhd.Dynamic, 3, mib + 1, mib + 512},
		{vhd.Fixed, 2, mib + 100, mib + 512},
		{vhd.Fixed, 2, mib + 512, mib + 512},
		{vhd.Azure, 2, mib, mib},
		{vhd.Azure, 2, mib + 1, 2 * mib},
		{vhd.Azure, 2, 3*mib - 512, 3 * mib},
	} {
		t.Run(fmt.Sprintf("%s %d", c.sub, c.size), func(t *testing.T) {
			f := formatstest.NewMemFile()
			w, err := vhd.Create(t.Context(), f, c.size, formats.CreateOptions{Subformat: c.sub}, formats.Checkpoint{})
			require.NoError(t, err)
			_, err = w.WriteAt(bytes.Repeat([]byte{7}, int(c.size)), 0)
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			b := make([]byte, f.Size())
			_, err = f.ReadAt(b, 0)
			require.NoError(t, err)
			disk := requireSpec(t, b, c.kind, c.stored)
			require.Equal(t, bytes.Repeat([]byte{7}, int(c.size)), disk[:c.size])
			require.Equal(t, make([]byte, c.stored-c.size), disk[c.size:])
		})
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		o    formats.CreateOptions
		says string
	}{
		"2040 GiB and a sector": {most + 512, formats.CreateOptions{}, "larger than the 2040 GiB that a VHD can hold"},
		"so large and fixed":    {most + 512, formats.CreateOptions{Subformat: vhd.Fixed}, "larger than the 2040 GiB"},
		"a subformat":           {mib, formats.CreateOptions{Subformat: "dynamc"}, `subformat "dynamc", which is not one of ["dynamic" "fixed" "azure"]`},
		"a cluster size":        {mib, formats.CreateOptions{ClusterSize: 64 * kib}, "cluster size 65536, which is not one of [2097152 524288]"},
		"compression":           {mib, formats.CreateOptions{Compression: "zlib"}, `compression "zlib"`},
		"a parent":              {mib, formats.CreateOptions{Backing: "base.vhd"}, `writing a differencing disk upon "base.vhd"`},
		"preallocation":         {mib, formats.CreateOptions{Prealloc: "full"}, `preallocation "full"`},
		"too many small blocks": {2039 * gib, formats.CreateOptions{ClusterSize: 512 * kib}, "more than a dynamic VHD can hold, use larger ones"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vhd.Create(t.Context(), formatstest.NewMemFile(), c.size, c.o, formats.Checkpoint{})
			require.ErrorIs(t, err, formats.ErrFormat)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestIdentifiersAreMadeOfTheDisk(t *testing.T) {
	id := func(seed uint64, o formats.CreateOptions) string {
		b := write(t, formatstest.NewDisk(seed, 4*mib), o)
		i, err := vhd.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		require.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, i.ID)
		return i.ID
	}
	for _, o := range []formats.CreateOptions{{}, {Subformat: vhd.Fixed}} {
		require.Equal(t, id(1, o), id(1, o), "same disk")
		require.NotEqual(t, id(1, o), id(2, o), "another disk")
	}
	require.NotEqual(t, id(1, formats.CreateOptions{}), id(1, formats.CreateOptions{Subformat: vhd.Fixed}))
}

func TestLibvhdiAgrees(t *testing.T) {
	for _, sub := range []string{vhd.Dynamic, vhd.Fixed} {
		for _, size := range []int64{mib, 9*mib + 512, 40 * mib} {
			t.Run(fmt.Sprintf("%s %d", sub, size), func(t *testing.T) {
				d := formatstest.NewDisk(uint64(size), size)
				path := filepath.Join(t.TempDir(), "disk.vhd")
				require.NoError(t, os.WriteFile(path, write(t, d, formats.CreateOptions{Subformat: sub}), 0o600))
				formatstest.Libyal(t, formatstest.Libvhdi, d, size, path)
			})
		}
	}
}

// libvhdi 20210425 takes zeros for the parent's sectors where one byte of a bitmap has bits of both
// kinds, so it is asked about eight sectors at a time.
func TestLibvhdiAgreesOnAChain(t *testing.T) {
	some := stored{}
	for i := range 8 {
		some[16+i], some[4000+i] = sectorOf(3), sectorOf(4)
	}
	dir := t.TempDir()
	f := files{
		"base.vhd": spec{kind: 3, size: 8 * mib, id: 1, blocks: map[int]stored{0: whole(1), 2: whole(1)}}.bytes(),
		"top.vhd":  spec{kind: 4, size: 8 * mib, id: 2, parentID: 1, parentName: "base.vhd", blocks: map[int]stored{0: some, 3: some}}.bytes(),
	}
	for name, b := range f {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	img := inMemory.MustOpen(t, f["top.vhd"], formats.OpenOptions{Beside: f.Beside})
	formatstest.Libyal(t, formatstest.Libvhdi, img, img.Size(), filepath.Join(dir, "top.vhd"), filepath.Join(dir, "base.vhd"))
}

func TestQemuReadsOurSizes(t *testing.T) {
	for _, sub := range []string{vhd.Dynamic, vhd.Fixed, vhd.Azure} {
		path := filepath.Join(t.TempDir(), "disk.vhd")
		require.NoError(t, os.WriteFile(path, write(t, formatstest.NewDisk(1, 17*mib), formats.CreateOptions{Subformat: sub}), 0o600))
		require.Contains(t, formatstest.Qemu(t, "info", "-f", "vpc", "--output", "json", path), fmt.Sprintf(`"virtual-size": %d`, 17*mib))
	}
}
