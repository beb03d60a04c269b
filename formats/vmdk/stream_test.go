package vmdk_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"hash/adler32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vmdk"
)

// drained is the disk that a stream delivers.
func drained(t testing.TB, b []byte) ([]byte, error) {
	t.Helper()
	s, err := vmdk.Stream(t.Context(), struct{ io.Reader }{bytes.NewReader(b)})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	disk := make([]byte, s.Size())
	for {
		c, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return disk, nil
		}
		if err != nil {
			return nil, err
		}
		if c.Packed.Codec != formats.NoCodec {
			require.Equal(t, formats.Deflate, c.Packed.Codec)
			c.Data, err = io.ReadAll(flate.NewReader(bytes.NewReader(c.Packed.Bytes)))
			if err != nil || adler32.Checksum(c.Data) != c.Packed.Sum {
				return nil, errors.Join(formats.ErrCorrupt, err)
			}
		}
		require.EqualValues(t, c.Len, len(c.Data))
		copy(disk[c.Off:], c.Data)
	}
}

func opened(t testing.TB, b []byte) ([]byte, error) {
	t.Helper()
	img, err := vmdk.Open(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer img.Close()
	return io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
}

const streamSize = 10*grain + 3*sector

// esxiStream is a stream with grains out of order, one of them twice, one that is incompressible, one of
// zeros, and most missing.
func esxiStream(version uint32) (file, disk []byte) {
	disk = make([]byte, streamSize)
	var b streamBuilder
	b.begin(version, streamSize)
	put := func(i int, plain []byte, level int) {
		b.grain(uint64(i)*128, plain, level)
		copy(disk[i*grain:], plain)
	}
	put(7, pattern(7, grain), 6)
	put(2, pattern(99, grain), 6) // replaced below
	put(3, make([]byte, grain), 9)
	put(0, pattern(1, grain), 0) // stored: larger than a grain
	put(2, pattern(2, grain), 1)
	put(10, pattern(10, 3*sector), 6)
	return b.finish(version), disk
}

func TestReadsTheStreamsOfESXi(t *testing.T) {
	for _, version := range []uint32{1, 2, 3} {
		file, disk := esxiStream(version)
		for name, f := range map[string][]byte{
			"as it is":              file,
			"padded":                append(bytes.Clone(file), make([]byte, 3*sector)...),
			"padded, not to a size": append(bytes.Clone(file), 0, 0, 0),
		} {
			got, err := drained(t, f)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(disk, got), "read front to back, %s", name)
			got, err = opened(t, f)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(disk, got), "read at random, %s", name)
		}
	}
}

func TestTheLastGrainMayBePackedWhole(t *testing.T) {
	var b streamBuilder
	b.begin(3, streamSize)
	last := pattern(5, grain)
	b.grain(10*128, last, 6)
	file := b.finish(3)
	want := append(make([]byte, 10*grain), last[:3*sector]...)
	for _, read := range []func(testing.TB, []byte) ([]byte, error){drained, opened} {
		got, err := read(t, file)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
	}
}

// qemuStream is what qemu writes: tables at the front, no end.
func qemuStream(t testing.TB, d *formatstest.Disk) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stream.vmdk")
	formatstest.QemuConvert(t, "raw", d.Save(t), "vmdk", path, "-o", "subformat=streamOptimized")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func TestReadsTheStreamsOfQemuAndOpenVMDK(t *testing.T) {
	d := formatstest.NewDisk(11, 35<<20+512)
	want, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	require.NoError(t, err)
	file := qemuStream(t, d)
	formatstest.CheckStream(t, vmdk.Format(), file, d)

	// open-vmdk adds an end-of-stream marker.
	closed := append(bytes.Clone(file), make([]byte, -len(file)&(sector-1)+sector)...)
	got, err := drained(t, closed)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))

	// A download that stopped and was filled up with zeros has that marker too, wherever it stopped.
	for _, n := range []int{len(file) / 2, len(file) * 9 / 10} {
		torn := append(bytes.Clone(file[:n/sector*sector]), make([]byte, len(file)-n/sector*sector)...)
		_, err := drained(t, torn)
		require.ErrorIs(t, err, formats.ErrCorrupt)
	}
}

// markers are the offsets of all markers of a stream whose grains begin at sector 128.
func markers(b []byte) []int {
	var all []int
	for at := 128 * sector; at+16 <= len(b); {
		all = append(all, at)
		n := 12 + int(le.Uint32(b[at+8:]))
		if n == 12 {
			n = sector * (1 + int(le.Uint64(b[at:])))
		}
		at += (n + sector - 1) / sector * sector
	}
	return all
}

func TestAStreamCutShortIsNeverWhole(t *testing.T) {
	file, _ := esxiStream(3)
	cuts := markers(file)
	require.Len(t, cuts, 6+1+1+1+1) // grains, table, directory, footer, end
	for _, at := range cuts {
		for _, n := range []int{at - 1, at, at + 8, at + 12, at + 100, at + sector} {
			if n >= len(file) {
				continue
			}
			_, err := drained(t, file[:n])
			require.ErrorIs(t, err, formats.ErrCorrupt, "cut at %d of %d, front to back", n, len(file))
			_, err = opened(t, file[:n])
			require.ErrorIs(t, err, formats.ErrCorrupt, "cut at %d of %d, at random", n, len(file))
		}
		// As much taken out of the middle.
		for _, from := range cuts {
			if from < at {
				_, err := drained(t, append(bytes.Clone(file[:from]), file[at:]...))
				require.ErrorIs(t, err, formats.ErrCorrupt, "without [%d, %d)", from, at)
			}
		}
	}
}

func TestRefusesStreamsThatLie(t *testing.T) {
	build := func(f func(*streamBuilder)) []byte {
		var b streamBuilder
		b.begin(3, streamSize)
		f(&b)
		return b.finish(3)
	}
	good, _ := esxiStream(3)
	edit := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	footerAt := len(good) - 2*sector
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "ends after 0 bytes"},
		{"no magic", edit(0, 'X'), "no sparse extent"},
		{"version", edit(4, 9), "version 9"},
		{"line ends", edit(73, '\r'), "line ends"},
		{"grain size 0", edit(20, 0), "grain size of 0"},
		{"grain size of no power of two", edit(20, 127), "grain size of 127"},
		{"grain size of terabytes", edit(24, 0xff), "grain size"},
		{"capacity", edit(19, 0x7f), "capacity"},
		{"capacity 0", edit(12, 0, 0), "capacity of 0"},
		{"entries", edit(44, 0, 0), "0 entries"},
		{"algorithm", edit(77, 7), "algorithm 7"},
		{"overhead 0", edit(64, 0), "overhead of 0"},
		{"overhead", edit(70, 0xff), "overhead"},
		{"grain behind the end", build(func(b *streamBuilder) { b.grain(11*128, pattern(1, grain), 6) }), "sector 1408 of"},
		{"grain between two", build(func(b *streamBuilder) { b.grain(5, pattern(1, grain), 6) }), "sector 5 of"},
		{"grain too short", build(func(b *streamBuilder) { b.grain(10*128, pattern(1, sector), 6) }), "512 bytes instead of 1536"},
		{"grain of too many bytes", edit(128*sector+8, 0xff, 0xff, 0xff, 0x7f), "packed bytes"},
		{"no zlib", edit(128*sector+12, 0), "no zlib"},
		{"marker of no type", build(func(b *streamBuilder) { b.marker(77, 0) }), "type 77"},
		{"endless marker", build(func(b *streamBuilder) { b.marker(1, 1<<63) }), "type 1 for"},
		{"long marker", build(func(b *streamBuilder) { b.marker(1, 1<<30) }), "ends early"},
		{"footer of two sectors", build(func(b *streamBuilder) { b.marker(3, 2) }), "footer of 2"},
		{"two footers", build(func(b *streamBuilder) { b.tables(); b.footer(3) }), "behind the footer"},
		{"grain behind the footer", build(func(b *streamBuilder) { b.tables(); b.footer(3); b.grain(0, pattern(1, grain), 6) }), "behind the footer"},
		{"footer of another disk", edit(footerAt+12, 1), "not that of the header"},
		{"footer with another directory", edit(footerAt+56, 1), "grain directory at sector"},
		{"ended before the tables", build(func(b *streamBuilder) { b.end() }), "without its footer"},
	} {
		_, err := drained(t, c.file)
		require.ErrorContains(t, err, c.want, c.name)
		if !errors.Is(err, formats.ErrFormat) {
			require.ErrorIs(t, err, formats.ErrCorrupt, c.name)
		}
	}
}

// TestRottenGrain: what the sum behind a grain does not match is for the copy to find; the image finds
// it itself.
func TestRottenGrain(t *testing.T) {
	file, _ := esxiStream(3)
	at := markers(file)[0]
	n := int(le.Uint32(file[at+8:]))
	file[at+12+n-1] ^= 1
	_, err := opened(t, file)
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "checksum")

	s, err := vmdk.Stream(t.Context(), bytes.NewReader(file))
	require.NoError(t, err)
	var out bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &out, s.Size(), formats.CreateOptions{})
	require.NoError(t, err)
	_, err = formats.Copy(t.Context(), w, s, formats.CopyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
}

func TestOnlyStreamsCanBeStreamed(t *testing.T) {
	d := formatstest.NewDisk(12, 1<<20)
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	createPath(t, path, d, formats.CreateOptions{})
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = drained(t, b)
	require.ErrorIs(t, err, formats.ErrFormat)
	_, err = drained(t, []byte("# Disk DescriptorFile\nversion=1\n"+string(make([]byte, 600))))
	require.ErrorIs(t, err, formats.ErrFormat)
}
