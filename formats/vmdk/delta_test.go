package vmdk_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
)

// agreesWithQemu compares what an image reads as with what qemu reads.
func agreesWithQemu(t *testing.T, path string, img formats.Image) []byte {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	require.NoError(t, err)
	ours := filepath.Join(t.TempDir(), "ours.raw")
	require.NoError(t, os.WriteFile(ours, got, 0o600))
	formatstest.QemuCompare(t, "vmdk", path, "raw", ours)
	return got
}

func TestReadsCOWD(t *testing.T) {
	const sectors = 2*4096 + 100
	offsets := []int64{0, 512, 7 * 512, 4095 * 512, (sectors - 1) * 512}
	path := described(t, "vmfsSparse", "VMFSSPARSE", "", sectors, cowdExtent(sectors, offsets...))
	img, err := openPath(t, path, formats.OpenOptions{})
	require.NoError(t, err)
	got := agreesWithQemu(t, path, img)
	want := make([]byte, sectors*512)
	for i, off := range offsets {
		copy(want[off:], pattern(byte(i), 512))
	}
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, formats.Extent{Off: 0, Len: 1024, Kind: formats.Data}, formatstest.Map(t, img, 0, img.Size())[0])
	require.Empty(t, checkPath(t, path))
}

func TestRefusesCOWDThatLies(t *testing.T) {
	const sectors = 2*4096 + 100
	for _, c := range []struct {
		name string
		at   int
		v    uint32
		want string
	}{
		{"version", 4, 2, "version 2"},
		{"capacity 0", 12, 0, "capacity of 0"},
		{"capacity below the descriptor's", 12, sectors - 1, "the descriptor has"},
		{"grain size 0", 16, 0, "grain size"},
		{"grain size of no power of two", 16, 3, "grain size"},
		{"directory behind the end", 20, 1 << 30, "grain directory"},
		{"too few tables", 24, 2, "2 grain tables"},
	} {
		b := cowdExtent(sectors, 0)
		le.PutUint32(b[c.at:], c.v)
		_, err := openPath(t, described(t, "vmfsSparse", "VMFSSPARSE", "", sectors, b), formats.OpenOptions{})
		require.ErrorContains(t, err, c.want, c.name)
	}
	b := cowdExtent(sectors, 0)
	le.PutUint32(b[2048:], 1<<30) // the table
	img, err := openPath(t, described(t, "vmfsSparse", "VMFSSPARSE", "", sectors, b), formats.OpenOptions{})
	require.NoError(t, err)
	_, err = img.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "grain table 0")
}

func TestReadsSeSparse(t *testing.T) {
	const sectors = 4096*8*2 + 8
	entries := map[int64]uint64{
		0:    0x3000000000000000,
		1:    0x3001000000000000, // its low 12 bits are above
		2:    0x1000000000000000, // given back by the guest
		3:    0x2000000000000000, // zeros
		4095: 0x3002000000000000,
	}
	path := described(t, "seSparse", "SESPARSE", "", sectors, seExtent(sectors, entries, 3))
	img, err := openPath(t, path, formats.OpenOptions{})
	require.NoError(t, err)
	got := agreesWithQemu(t, path, img)
	want := make([]byte, sectors*512)
	copy(want, pattern(0, 4096))
	copy(want[4096:], pattern(1, 4096))
	copy(want[4095*4096:], pattern(2, 4096))
	require.True(t, bytes.Equal(want, got))
	require.Empty(t, checkPath(t, path))
}

func TestSeSparseDeltasTellZerosFromAbsence(t *testing.T) {
	const sectors = 4096 * 8
	entries := map[int64]uint64{0: 0x3000000000000000, 1: 0x1000000000000000, 2: 0x2000000000000000}
	path := described(t, "seSparse", "SESPARSE", "", sectors, seExtent(sectors, entries, 1))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	text = bytes.Replace(text, []byte("parentCID=ffffffff"), []byte("parentCID=00000007\nparentFileNameHint=\"base.vmdk\""), 1)
	require.NoError(t, os.WriteFile(path, text, 0o600))
	img, err := openPath(t, path, formats.OpenOptions{Layer: true})
	require.NoError(t, err)
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 4096, Kind: formats.Data},
		{Off: 4096, Len: 2 * 4096, Kind: formats.Zero},
		{Off: 3 * 4096, Len: sectors*512 - 3*4096, Kind: formats.Absent},
	}, formatstest.Map(t, img, 0, img.Size()))
}

func TestRefusesSeSparseThatLies(t *testing.T) {
	const sectors = 4096 * 8
	for _, c := range []struct {
		name string
		at   int
		v    uint64
		want string
	}{
		{"magic", 0, 1, "no seSparse"},
		{"version", 8, 1, "version 0x1"},
		{"capacity 0", 16, 0, "capacity of 0"},
		{"capacity", 16, 1 << 60, "capacity of"},
		{"grain size", 24, 16, "grains of 16"},
		{"flags", 40, 1, "flags 0x1"},
		{"volatile header behind the end", 80, 1 << 30, "volatile header"},
		{"volatile header of nobody", 80, 2, "volatile header: magic"},
		{"journal not replayed", 512 + 24, 1, "journal"},
		{"directory behind the end", 128, 1 << 40, "grain directory"},
		{"tables out of this world", 144, 1 << 60, "parts at"},
	} {
		b := seExtent(sectors, nil, 0)
		le.PutUint64(b[c.at:], c.v)
		_, err := openPath(t, described(t, "seSparse", "SESPARSE", "", sectors, b), formats.OpenOptions{})
		require.ErrorContains(t, err, c.want, c.name)
	}
	for _, v := range []uint64{1, 0x4000000000000000, 0x3fffffffffffffff, 0x3000000000ffffff} {
		path := described(t, "seSparse", "SESPARSE", "", sectors, seExtent(sectors, map[int64]uint64{0: v}, 1))
		img, err := openPath(t, path, formats.OpenOptions{})
		require.NoError(t, err)
		_, err = img.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, formats.ErrCorrupt, "%#x", v)
		require.Len(t, checkPath(t, path), 1)
	}
}
