package vhdx_test

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

// write lays a disk out and answers the file.
func write(t *testing.T, d *formatstest.Disk, o formats.CreateOptions) []byte {
	t.Helper()
	h := formatstest.Harness{Format: vhdx.Format(), Options: o}
	f := h.CreateDisk(t, d).(*formatstest.MemFile)
	b := make([]byte, f.Size())
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

func requireSum(t *testing.T, b []byte, what string) {
	t.Helper()
	want := le.Uint32(b[4:])
	c := bytes.Clone(b)
	clear(c[4:8])
	require.Equal(t, crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli)), want, "CRC-32C of the %s", what)
}

// requireSpec reads a VHDX by the letter of [MS-VHDX], with nothing of the package, and answers its
// disk.
func requireSpec(t *testing.T, b []byte, size, block int64, fixed bool) []byte {
	t.Helper()
	require.Zero(t, len(b)%mib, "the file is whole MiB")
	require.Equal(t, "vhdxfile", string(b[:8]))
	var header []byte
	for i := range 2 {
		h := b[headersAt*(1+i):][:4*kib]
		require.Equal(t, "head", string(h[:4]))
		requireSum(t, h, "header")
		require.Equal(t, make([]byte, 16), h[48:64], "log GUID: the log is empty")
		require.EqualValues(t, 0, le.Uint16(h[64:]), "log version")
		require.EqualValues(t, 1, le.Uint16(h[66:]), "version")
		require.NotEqual(t, make([]byte, 16), h[16:32], "file write GUID")
		require.NotEqual(t, make([]byte, 16), h[32:48], "data write GUID")
		require.Equal(t, make([]byte, 4096-80), h[80:], "reserved")
		if header == nil || le.Uint64(h[8:]) > le.Uint64(header[8:]) {
			header = h
		}
	}
	require.NotEqual(t, le.Uint64(b[headersAt+8:]), le.Uint64(b[2*headersAt+8:]), "sequence numbers")
	require.Equal(t, b[regionsAt:][:64*kib], b[regionsAt+64*kib:][:64*kib], "region tables")
	r := b[regionsAt:][:64*kib]
	require.Equal(t, "regi", string(r[:4]))
	requireSum(t, r, "region table")
	require.EqualValues(t, 2, le.Uint32(r[8:]), "regions")

	used := map[int64]string{0: "header section"} // by MiB of the file
	use := func(off, n int64, what string) {
		require.Zero(t, off%mib, what)
		require.Zero(t, n%mib, what)
		require.LessOrEqual(t, off+n, int64(len(b)), what)
		for at := off / mib; at < (off+n)/mib; at++ {
			require.Empty(t, used[at], "%s at MiB %d", what, at)
			used[at] = what
		}
	}
	use(int64(le.Uint64(header[72:])), int64(le.Uint32(header[68:])), "log")
	place := map[string]int64{}
	for i := range 2 {
		e := r[16+32*i:]
		require.EqualValues(t, 1, le.Uint32(e[28:]), "required")
		use(int64(le.Uint64(e[16:])), int64(le.Uint32(e[24:])), "region")
		place[string(e[:16])] = int64(le.Uint64(e[16:]))
	}
	meta := b[place[string(guid("8B7CA206-4790-4B9A-B8FE-575F050F886E"))]:][:mib]
	bat := b[place[string(guid("2DC27766-F623-4200-9D64-115E9BFD4A08"))]:]
	params := requireItem(t, meta, "CAA16737-FA36-4D43-B3B6-33F0AA44E76B", 4, 8)
	require.EqualValues(t, block, le.Uint32(params))
	want := uint32(0)
	if fixed {
		want = 1
	}
	require.Equal(t, want, le.Uint32(params[4:]), "leave blocks allocated, has no parent")
	require.EqualValues(t, size, le.Uint64(requireItem(t, meta, "2FA54224-CD1B-4876-B211-5DBED83BF4B8", 6, 8)))
	require.NotEqual(t, make([]byte, 16), requireItem(t, meta, "BECA12AB-B2E6-4523-93EF-C309E000C746", 6, 16))
	require.EqualValues(t, 512, le.Uint32(requireItem(t, meta, "8141BF1D-A96F-4709-BA47-F233A8FAAB5F", 6, 4)))
	require.EqualValues(t, 4096, le.Uint32(requireItem(t, meta, "CDA348C7-445D-4471-9CC9-E9885251C556", 6, 4)))

	ratio := 512 << 23 / block
	blocks := (size + block - 1) / block
	disk := make([]byte, blocks*block)
	for i := range blocks + (blocks-1)/ratio {
		v := le.Uint64(bat[8*i:])
		require.Zero(t, v>>3&0x1ffff, "reserved bits of entry %d", i)
		if i%(ratio+1) == ratio {
			require.Zero(t, v, "entry %d is a bitmap's", i)
			continue
		}
		if fixed {
			require.EqualValues(t, 6, v&7, "entry %d", i)
		}
		if v == 0 {
			continue
		}
		require.EqualValues(t, 6, v&7, "entry %d", i)
		at := int64(v>>20) * mib
		use(at, block, "block")
		copy(disk[(i-i/(ratio+1))*block:], b[at:at+block])
	}
	require.Len(t, used, len(b)/mib, "every MiB of the file is of use")
	require.Equal(t, make([]byte, int64(len(disk))-size), disk[size:], "what the last block has behind the disk")
	return disk[:size]
}

func requireItem(t *testing.T, meta []byte, id string, flags uint32, n int) []byte {
	t.Helper()
	require.Equal(t, "metadata", string(meta[:8]))
	require.EqualValues(t, 5, le.Uint16(meta[10:]), "items")
	for i := range 5 {
		e := meta[32+32*i:]
		if !bytes.Equal(e[:16], guid(id)) {
			continue
		}
		off := int(le.Uint32(e[16:]))
		require.GreaterOrEqual(t, off, 64*kib)
		require.EqualValues(t, n, le.Uint32(e[20:]))
		require.Equal(t, flags, le.Uint32(e[24:]), "flags of %s", id)
		require.Zero(t, le.Uint32(e[28:]), "reserved")
		return meta[off : off+n]
	}
	require.Fail(t, "no item", id)
	return nil
}

func TestWhatIsWrittenIsByTheSpecification(t *testing.T) {
	for _, size := range []int64{512, mib, 33*mib + 512, 70 * mib} {
		for _, sub := range []string{vhdx.Dynamic, vhdx.Fixed} {
			for _, block := range []int64{1 * mib, 32 * mib} {
				t.Run(fmt.Sprintf("%s %d in blocks of %d", sub, size, block), func(t *testing.T) {
					d := formatstest.NewDisk(uint64(size), size)
					want := make([]byte, size)
					_, err := d.ReadAt(want, 0)
					require.NoError(t, err)
					got := requireSpec(t, write(t, d, formats.CreateOptions{Subformat: sub, ClusterSize: block}), size, block, sub == vhdx.Fixed)
					require.True(t, bytes.Equal(want, got), "the disk")
				})
			}
		}
	}
}

func TestSizesInHalfSectorsAreRoundedUp(t *testing.T) {
	for _, sub := range []string{vhdx.Dynamic, vhdx.Fixed} {
		f := formatstest.NewMemFile()
		w, err := vhdx.Create(t.Context(), f, 1000, formats.CreateOptions{Subformat: sub, ClusterSize: mib}, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = w.WriteAt(fill(7, 1000), 0)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		img, err := vhdx.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		require.EqualValues(t, 1024, img.Size())
		require.Equal(t, append(fill(7, 1000), fill(0, 24)...), formatstest.Peek(t, img, 0, 1024))
	}
}

// Entries of bitmaps lie between those of blocks from the 4 GiB on.
func TestFixedDiskOfManyChunks(t *testing.T) {
	f := formatstest.NewMemFile()
	const size = 9<<30 + 512
	w, err := vhdx.Create(t.Context(), f, size, formats.CreateOptions{Subformat: vhdx.Fixed, ClusterSize: mib}, formats.Checkpoint{})
	require.NoError(t, err)
	for _, off := range []int64{0, 4<<30 - 512, 4 << 30, 8<<30 - 512, 8 << 30, 9 << 30} {
		_, err = w.WriteAt(fill(byte(off>>30+1), 512), off)
		require.NoError(t, err)
	}
	require.NoError(t, w.Commit(t.Context()))
	img, err := vhdx.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
	require.NoError(t, err)
	for _, off := range []int64{0, 4<<30 - 512, 4 << 30, 8<<30 - 512, 8 << 30, 9 << 30} {
		require.Equal(t, fill(byte(off>>30+1), 512), formatstest.Peek(t, img, off, 512))
	}
	rep, err := vhdx.Check(t.Context(), f, f.Size())
	require.NoError(t, err)
	require.Empty(t, rep.Errors)
	require.EqualValues(t, 9<<10+1, rep.Allocated)
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		o    formats.CreateOptions
		says string
	}{
		"64 TiB and a sector": {64*tib + 512, formats.CreateOptions{}, "a VHDX holds up to 64 TiB"},
		"a subformat":         {mib, formats.CreateOptions{Subformat: "sparse"}, `subformat "sparse", which is not one of ["dynamic" "fixed"]`},
		"a cluster size":      {mib, formats.CreateOptions{ClusterSize: 64 * kib}, "cluster size 65536"},
		"compression":         {mib, formats.CreateOptions{Compression: "zlib"}, `compression "zlib"`},
		"a parent":            {mib, formats.CreateOptions{Backing: "base.vhdx"}, `upon "base.vhdx"`},
		"preallocation":       {mib, formats.CreateOptions{Prealloc: "full"}, `preallocation "full"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vhdx.Create(t.Context(), formatstest.NewMemFile(), c.size, c.o, formats.Checkpoint{})
			require.ErrorIs(t, err, formats.ErrFormat)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestIdentifiersAreMadeOfTheDisk(t *testing.T) {
	ids := func(seed uint64) [2]string {
		b := write(t, formatstest.NewDisk(seed, 4*mib), formats.CreateOptions{ClusterSize: mib})
		i, err := vhdx.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		return [2]string{i.ID, i.DataWriteID}
	}
	a, b := ids(1), ids(2)
	require.Equal(t, a, ids(1), "same disk")
	require.NotEqual(t, a[0], a[1])
	require.NotEqual(t, a[0], b[0], "another disk")
	require.NotEqual(t, a[1], b[1])
}
