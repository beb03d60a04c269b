package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

func create(t *testing.T, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) formats.Writer {
	t.Helper()
	w, err := qcow2.Create(t.Context(), f, size, o, from)
	require.NoError(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

func reopened(t *testing.T, f *formatstest.MemFile) *qcow2.Image {
	t.Helper()
	img, err := qcow2.Open(t.Context(), f, f.Size(), formats.OpenOptions{Layer: true})
	require.NoError(t, err)
	return img
}

// The refcount table comes last, wherever that is: just before a region of refcounts ends, too.
func TestTheRefcountTableFitsAnywhere(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 600*512)
	for n := range int64(600) {
		f := formatstest.NewMemFile()
		w := create(t, f, 64<<20, formats.CreateOptions{ClusterSize: 512}, formats.Checkpoint{})
		_, err := w.WriteAt(data[:n*512], 0)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		r := checkClean(t, reopened(t, f))
		require.Equal(t, n, r.Allocated)
		require.Equal(t, f.Size(), r.End, "%d clusters of data: nothing behind the last", n)
		if n%100 == 50 {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			f.Save(t, path)
			formatstest.QemuCheck(t, "qcow2", path)
		}
	}
}

// A table that is longer than a region of refcounts is possible with the smallest clusters only.
func TestALongRefcountTable(t *testing.T) {
	f := formatstest.NewMemFile()
	const size = 2304 << 20
	w := create(t, f, size, formats.CreateOptions{ClusterSize: 512, Prealloc: "metadata"}, formats.Checkpoint{})
	_, err := w.WriteAt([]byte(strings.Repeat("end.", 128)), size-512)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	r := checkClean(t, reopened(t, f))
	require.EqualValues(t, size/512, r.Allocated)
	path := filepath.Join(t.TempDir(), "a.qcow2")
	f.Save(t, path)
	formatstest.QemuCheck(t, "qcow2", path)
}

// A refcount of 16 bits cannot count more packed clusters than 65,535 in one.
func TestManyPackedClustersInOne(t *testing.T) {
	const cluster = 2 << 20
	f := formatstest.NewMemFile()
	w := create(t, f, 66000*cluster, formats.CreateOptions{ClusterSize: cluster, Compression: "zstd"}, formats.Checkpoint{})
	p := w.(formats.PackedWriter)
	for i := range int64(66000) {
		require.NoError(t, p.WritePacked(i*cluster, cluster, formats.Packed{Codec: formats.Zstd, Bytes: []byte("20 bytes, no cluster")}))
	}
	require.NoError(t, w.Commit(t.Context()))
	require.EqualValues(t, 66000, checkClean(t, reopened(t, f)).Compressed)
}

// Packed blocks of another program may be longer than plain ones.
func TestAPackedBlockThatIsLongerIsStoredPlain(t *testing.T) {
	block := make([]byte, 512)
	for i := range block {
		block[i] = byte(i * i)
	}
	stored := append([]byte{0x01, 0x00, 0x02, 0xff, 0xfd}, block...) // RFC 1951, 3.2.4
	f := formatstest.NewMemFile()
	w := create(t, f, 1024, formats.CreateOptions{ClusterSize: 512, Compression: "zlib"}, formats.Checkpoint{})
	p := w.(formats.PackedWriter)
	require.True(t, p.Accepts(formats.Packed{Codec: formats.Deflate}, 512))
	require.False(t, p.Accepts(formats.Packed{Codec: formats.Deflate}, 100))
	require.False(t, p.Accepts(formats.Packed{Codec: formats.Zstd}, 512))
	require.NoError(t, p.WritePacked(0, 512, formats.Packed{Codec: formats.Deflate, Bytes: stored}))
	require.ErrorIs(t, p.WritePacked(512, 512, formats.Packed{Codec: formats.Zstd, Bytes: stored}), formats.ErrFormat)
	require.ErrorIs(t, p.WritePacked(512, 512, formats.Packed{Codec: formats.Deflate}), formats.ErrFormat)
	require.ErrorIs(t, p.WritePacked(0, 1024, formats.Packed{Codec: formats.Deflate, Bytes: stored}), formats.ErrAlign)
	require.ErrorIs(t, p.WritePacked(0, 100, formats.Packed{Codec: formats.Deflate, Bytes: stored}), formats.ErrAlign)
	require.ErrorIs(t, p.WritePacked(512, 512, formats.Packed{Codec: formats.Deflate, Bytes: bytes.Repeat([]byte{0xff}, 600)}), formats.ErrCorrupt)
	require.NoError(t, w.Commit(t.Context()))
	img := reopened(t, f)
	got := make([]byte, 512)
	_, err := img.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, block, got)
	r := checkClean(t, img)
	require.EqualValues(t, 1, r.Allocated)
	require.Zero(t, r.Compressed)
}

// The copy loop is stopped in the middle of its second checkpoint, by a loss of power, and goes on.
func TestACopyThatIsInterruptedGivesTheSameFile(t *testing.T) {
	d := formatstest.NewDisk(11, 90<<20+512)
	for _, o := range []formats.CreateOptions{{}, {Compression: "zlib"}, {Compression: "zstd", ClusterSize: 4096}} {
		copyTo := func(ctx context.Context, f *formatstest.MemFile, from formats.Checkpoint, durable func(formats.Checkpoint) error) error {
			w, err := qcow2.Create(ctx, f, d.Size(), o, from)
			require.NoError(t, err)
			defer w.Close()
			if _, err := formats.Copy(ctx, w, d, formats.CopyOptions{From: from, Durable: durable, Distance: 1 << 20}); err != nil {
				return err
			}
			return w.Commit(ctx)
		}
		want, f := formatstest.NewMemFile(), formatstest.NewMemFile()
		require.NoError(t, copyTo(t.Context(), want, formats.Checkpoint{}, nil))
		var cp formats.Checkpoint
		var left *formatstest.MemFile
		power := errors.New("power lost")
		err := copyTo(t.Context(), f, cp, func(next formats.Checkpoint) error {
			if cp.Off > 0 {
				left = f.Crash(1)
				return power
			}
			cp = next
			return nil
		})
		require.ErrorIs(t, err, power)
		require.Positive(t, cp.Off)
		require.NoError(t, copyTo(t.Context(), left, cp, nil))
		formatstest.RequireEqual(t, want, left)
		checkClean(t, reopened(t, left))
	}
}

// A checkpoint covers what it says and no more.
func TestCheckpointsOfBlocksOutOfOrder(t *testing.T) {
	const c = 64 << 10
	block := bytes.Repeat([]byte("a"), c)
	f := formatstest.NewMemFile()
	w := create(t, f, 10*c, formats.CreateOptions{}, formats.Checkpoint{})
	write := func(i int64) {
		_, err := w.WriteAt(block, i*c)
		require.NoError(t, err)
	}
	checkpoint := func(i int64) formats.Checkpoint {
		cp, err := w.Checkpoint(i * c)
		require.NoError(t, err)
		return cp
	}
	require.Equal(t, formats.Checkpoint{}, checkpoint(0))
	write(0)
	first := checkpoint(1)
	require.EqualValues(t, c, first.Off)
	write(5)
	require.Equal(t, first, checkpoint(2), "block 5 is written already: it cannot go on from 2")
	write(1)
	second := checkpoint(6)
	require.EqualValues(t, 6*c, second.Off)
	require.NoError(t, w.Sync(t.Context()))

	// Block 0 below the checkpoint again: from now on there is nothing to go on from.
	write(0)
	require.Equal(t, formats.Checkpoint{}, checkpoint(6))
	for seed := range uint64(4) {
		_, err := qcow2.Create(t.Context(), f.Crash(seed), 10*c, formats.CreateOptions{}, second)
		require.ErrorIs(t, err, formats.ErrCorrupt)
		require.ErrorContains(t, err, "from the beginning")
	}
	require.NoError(t, w.Commit(t.Context()))
	require.EqualValues(t, 3, checkClean(t, reopened(t, f)).Allocated)
}

func TestCheckpointsThatAreRefused(t *testing.T) {
	d := formatstest.NewDisk(8, 4<<20)
	f := formatstest.NewMemFile()
	w := create(t, f, d.Size(), formats.CreateOptions{Compression: "zlib"}, formats.Checkpoint{})
	require.NoError(t, formatstest.Fill(w, d, 0, 2<<20))
	cp, err := w.Checkpoint(2 << 20)
	require.NoError(t, err)
	require.NoError(t, w.Sync(t.Context()))
	for name, c := range map[string]struct {
		cp   formats.Checkpoint
		o    formats.CreateOptions
		size int64
		cut  int64
		err  error
	}{
		"another codec":        {cp, formats.CreateOptions{Compression: "zstd"}, d.Size(), 0, formats.ErrFormat},
		"another cluster size": {cp, formats.CreateOptions{Compression: "zlib", ClusterSize: 4096}, d.Size(), 0, formats.ErrFormat},
		"a smaller disk":       {cp, formats.CreateOptions{Compression: "zlib"}, 1 << 20, 0, formats.ErrFormat},
		"no token":             {formats.Checkpoint{Off: 2 << 20}, formats.CreateOptions{Compression: "zlib"}, d.Size(), 0, formats.ErrFormat},
		"a token with more":    {formats.Checkpoint{Off: 2 << 20, Token: cp.Token + " "}, formats.CreateOptions{Compression: "zlib"}, d.Size(), 0, formats.ErrFormat},
		"inside a cluster":     {formats.Checkpoint{Off: 2<<20 + 512, Token: cp.Token}, formats.CreateOptions{Compression: "zlib"}, d.Size(), 0, formats.ErrFormat},
		"a file cut short":     {cp, formats.CreateOptions{Compression: "zlib"}, d.Size(), 70000, formats.ErrCorrupt},
		"an empty file":        {cp, formats.CreateOptions{Compression: "zlib"}, d.Size(), f.Size(), formats.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			left := f.Clone()
			require.NoError(t, left.Truncate(left.Size()-c.cut))
			_, err := qcow2.Create(t.Context(), left, c.size, c.o, c.cp)
			require.ErrorIs(t, err, c.err)
		})
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	for says, c := range map[string]struct {
		size int64
		o    formats.CreateOptions
	}{
		`compression "lzma"`:                 {1 << 20, formats.CreateOptions{Compression: "lzma"}},
		"zlib level 10":                      {1 << 20, formats.CreateOptions{Compression: "zlib", Level: 10}},
		"zstd level 23":                      {1 << 20, formats.CreateOptions{Compression: "zstd", Level: 23}},
		`preallocation "full"`:               {1 << 20, formats.CreateOptions{Prealloc: "full"}},
		"preallocation with":                 {1 << 20, formats.CreateOptions{Prealloc: "metadata", Compression: "zlib"}},
		`subformat "fixed"`:                  {1 << 20, formats.CreateOptions{Subformat: "fixed"}},
		"clusters of 256 bytes":              {1 << 20, formats.CreateOptions{ClusterSize: 256}},
		"clusters of 4194304 bytes":          {1 << 20, formats.CreateOptions{ClusterSize: 4 << 20}},
		"clusters of 65537 bytes":            {1 << 20, formats.CreateOptions{ClusterSize: 65537}},
		"clusters of -512 bytes":             {1 << 20, formats.CreateOptions{ClusterSize: -512}},
		"a disk of 1000 bytes":               {1000, formats.CreateOptions{}},
		"larger clusters":                    {1 << 40, formats.CreateOptions{ClusterSize: 512}},
		"a backing file without its format":  {1 << 20, formats.CreateOptions{Backing: "a"}},
		"a backing format without":           {1 << 20, formats.CreateOptions{BackingFmt: "raw"}},
		"a backing file name of 1024 bytes ": {1 << 20, formats.CreateOptions{Backing: strings.Repeat("a", 1024), BackingFmt: "raw"}},
	} {
		_, err := qcow2.Create(t.Context(), formatstest.NewMemFile(), c.size, c.o, formats.Checkpoint{})
		require.ErrorIs(t, err, formats.ErrFormat, says)
		require.ErrorContains(t, err, says)
	}
}

// An overlay read together with its base is the disk: what was not written shows through, zeros do not.
func TestAnOverlayAndItsBaseAreTheDisk(t *testing.T) {
	dir := t.TempDir()
	const size = 5<<20 + 512
	base, delta := formatstest.NewDisk(9, size), formatstest.NewDelta(10, size, 64<<10)
	formatstest.QemuConvert(t, "raw", base.Save(t), "qcow2", filepath.Join(dir, "base.qcow2"), "-c")
	f := formatstest.NewMemFile()
	w := create(t, f, size, formats.CreateOptions{Compression: "zlib", Backing: "base.qcow2", BackingFmt: "qcow2"}, formats.Checkpoint{})
	require.NoError(t, formatstest.Fill(w, delta, 0, size))
	require.NoError(t, w.Commit(t.Context()))
	path := filepath.Join(dir, "top.qcow2")
	f.Save(t, path)
	formatstest.QemuCheck(t, "qcow2", path)

	img := mustOpen(t, path, formats.OpenOptions{Beside: beside(dir)})
	equalsQemu(t, img, path)
	got, want := make([]byte, size), make([]byte, size)
	_, err := base.ReadAt(want, 0)
	require.NoError(t, err)
	for e, err := range delta.Extents(t.Context(), 0, size) {
		require.NoError(t, err)
		if e.Kind != formats.Absent {
			_, err := delta.ReadAt(want[e.Off:e.End()], e.Off)
			require.NoError(t, err)
		}
	}
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))

	// Packed clusters come from both files.
	var ofTop, ofBase int
	for off := int64(0); off < size; off += 64 << 10 {
		pk, n, err := img.ReadPacked(t.Context(), off, nil)
		require.NoError(t, err)
		if n == 0 {
			continue
		}
		require.EqualValues(t, 64<<10, n)
		require.Equal(t, want[off:off+n], formatstest.Unpack(t, pk, n))
		if formatstest.Map(t, delta, off, n)[0].Kind == formats.Absent {
			ofBase++
		} else {
			ofTop++
		}
	}
	require.Positive(t, ofTop)
	require.Positive(t, ofBase)
}
