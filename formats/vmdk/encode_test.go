package vmdk_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
)

func isRefusal(err error) bool {
	return errors.Is(err, formats.ErrFormat) || errors.Is(err, formats.ErrCorrupt)
}

// encoded is a disk as a stream.
func encoded(t testing.TB, d *formatstest.Disk, o formats.CreateOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &b, d.Size(), o)
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, formatstest.Fill(w, d, 0, d.Size()))
	require.NoError(t, w.Commit(t.Context()))
	return b.Bytes()
}

// TestWritesTheLayoutOfESXi reads what is fixed in a stream, byte by byte.
func TestWritesTheLayoutOfESXi(t *testing.T) {
	d := formatstest.NewDisk(31, 100<<20+512)
	b := encoded(t, d, formats.CreateOptions{})
	capacity := uint64(d.Size() / sector)
	require.Equal(t, head(3, 0x30001, capacity, 128, 1, 20, 512, 0, ^uint64(0), 128, 1), b[:sector])
	require.True(t, bytes.HasPrefix(b[sector:], []byte("# Disk DescriptorFile\nversion=1\n")))
	require.Zero(t, b[21*sector-1], "the descriptor is padded with NUL")

	n := len(b)
	require.Zero(t, n%sector)
	require.Equal(t, make([]byte, sector), b[n-sector:], "end-of-stream marker")
	gd := le.Uint64(b[n-2*sector+56:])
	require.Equal(t, head(3, 0x30001, capacity, 128, 1, 20, 512, 0, gd, 128, 1), b[n-2*sector:n-sector], "footer")
	require.Equal(t, append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}, make([]byte, sector-13)...), b[n-3*sector:n-2*sector], "footer's marker")

	kinds, last := map[uint32]int{}, uint64(0)
	for _, at := range markers(b) {
		lba, size, kind := le.Uint64(b[at:]), le.Uint32(b[at+8:]), le.Uint32(b[at+12:])
		if size != 0 {
			require.GreaterOrEqual(t, lba, last, "grains ascend")
			last = lba + 128
			gt := int(le.Uint32(b[int(gd)*sector+int(lba/65536)*4:])) * sector
			require.EqualValues(t, at/sector, le.Uint32(b[gt+int(lba/128%512)*4:]), "the entry of the grain for sector %d", lba)
			continue
		}
		kinds[kind]++
	}
	require.Equal(t, map[uint32]int{0: 1, 1: 4, 2: 1, 3: 1}, kinds)
}

func TestTheSameDiskGivesTheSameStreamHoweverItIsWritten(t *testing.T) {
	d := formatstest.NewDisk(32, 40<<20)
	want := encoded(t, d, formats.CreateOptions{})
	f := formatstest.NewMemFile()
	w, err := vmdk.Create(t.Context(), f, d.Size(), formats.CreateOptions{Subformat: "streamoptimized"}, formats.Checkpoint{})
	require.NoError(t, err)
	_, err = formats.Copy(t.Context(), w, d, formats.CopyOptions{Workers: 3})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	formatstest.RequireEqual(t, formatstest.MemFileOf(want), f)

	other := encoded(t, formatstest.NewDisk(33, 40<<20), formats.CreateOptions{})
	ids := map[uint32]bool{}
	for _, b := range [][]byte{want, other} {
		info, err := vmdk.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		ids[info.Descriptor.CID] = true
	}
	require.Len(t, ids, 2, "another disk has another content id")
}

// TestRepackingMovesGrains: from stream to stream, with and without seeking, nothing is packed again.
func TestRepackingMovesGrains(t *testing.T) {
	d := formatstest.NewDisk(34, 33<<20+512)
	want := encoded(t, d, formats.CreateOptions{Level: 7})
	for _, random := range []bool{false, true} {
		for _, trust := range []bool{false, true} {
			var src formats.Source
			var err error
			if random {
				src, err = vmdk.Open(t.Context(), bytes.NewReader(want), int64(len(want)), formats.OpenOptions{})
			} else {
				src, err = vmdk.Stream(t.Context(), bytes.NewReader(want))
			}
			require.NoError(t, err)
			var out bytes.Buffer
			w, err := vmdk.Encode(t.Context(), &out, src.Size(), formats.CreateOptions{Level: 1})
			require.NoError(t, err)
			_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{Trust: trust})
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			require.NoError(t, src.Close())
			got, err := opened(t, out.Bytes())
			require.NoError(t, err)
			disk, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
			require.NoError(t, err)
			require.True(t, bytes.Equal(disk, got))
			// The grain that the end of the disk cuts is packed again.
			whole := want[:markers(want)[len(markers(want))-6]]
			require.True(t, bytes.HasPrefix(out.Bytes()[20*sector:], whole[20*sector:]), "random %t, trust %t", random, trust)
		}
	}
}

func TestPackDoesNotDependOnWhatWasPackedBefore(t *testing.T) {
	for _, level := range []int{1, 6, 7} {
		w, err := vmdk.Encode(t.Context(), io.Discard, 1<<30, formats.CreateOptions{Level: level})
		require.NoError(t, err)
		p := w.(formats.PackedWriter)
		blocks := make([][]byte, 12)
		want := make([][]byte, len(blocks))
		d := formatstest.NewDisk(35, int64(len(blocks))*grain)
		for i := range blocks {
			blocks[i] = make([]byte, grain)
			_, err := d.ReadAt(blocks[i], int64(i)*grain)
			require.True(t, err == nil || errors.Is(err, io.EOF))
			pk, ok := p.Pack(nil, blocks[i])
			require.True(t, ok)
			want[i] = bytes.Clone(pk.Bytes)
		}
		var wg sync.WaitGroup
		for k := range 4 {
			wg.Go(func() {
				var buf []byte
				for i := range 30 {
					i = i * (k + 5) % len(blocks)
					pk, _ := p.Pack(buf, blocks[i])
					if buf = pk.Bytes; !bytes.Equal(buf, want[i]) {
						t.Errorf("level %d: block %d", level, i)
						return
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, w.Close())
	}
}

func TestWritePackedLearnsTheSumThatIsMissing(t *testing.T) {
	var out bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &out, 2*grain, formats.CreateOptions{})
	require.NoError(t, err)
	p := w.(formats.PackedWriter)
	z := deflate(pattern(1, grain), 6)
	pk := formats.Packed{Codec: formats.Deflate, Bytes: append(bytes.Clone(z[2:len(z)-4]), "rubbish behind"...)}
	require.True(t, p.Accepts(pk, grain))
	require.NoError(t, p.WritePacked(0, grain, pk))
	for name, bad := range map[string]formats.Packed{
		"another codec": {Codec: formats.Zstd, Bytes: z},
		"not deflate":   {Codec: formats.Deflate, Bytes: z},
		"too short":     {Codec: formats.Deflate, Bytes: deflate(pattern(1, 512), 6)[2:]},
	} {
		require.Error(t, p.WritePacked(grain, grain, bad), name)
	}
	require.Error(t, p.WritePacked(grain, 512, pk), "not a block")
	require.NoError(t, w.Commit(t.Context()))
	got, err := opened(t, out.Bytes())
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(pattern(1, grain), make([]byte, grain)...), got))
}

func TestRefusesOptionsThatItCannotKeep(t *testing.T) {
	for name, o := range map[string]formats.CreateOptions{
		"subformat":           {Subformat: "vmfs"},
		"compression":         {Compression: "zstd"},
		"compressed":          {Compression: "zlib", Subformat: vmdk.MonolithicSparse},
		"level":               {Level: 3},
		"level 10":            {Level: 10, Subformat: vmdk.StreamOptimized},
		"grains":              {ClusterSize: 4096},
		"delta":               {Backing: "base.vmdk"},
		"prealloc":            {Prealloc: "metadata"},
		"adapter":             {Adapter: "tape"},
		"adapter of a stream": {Adapter: "tape", Subformat: vmdk.StreamOptimized},
	} {
		_, err := vmdk.Create(t.Context(), formatstest.NewMemFile(), 1<<20, o, formats.Checkpoint{})
		require.ErrorIs(t, err, formats.ErrFormat, name)
	}
	for _, sub := range []string{vmdk.MonolithicFlat, vmdk.MonolithicSparse, vmdk.StreamOptimized} {
		for _, size := range []int64{0, -1, 1 << 62} {
			_, err := vmdk.Create(t.Context(), formatstest.NewMemFile(), size, formats.CreateOptions{Subformat: sub}, formats.Checkpoint{})
			require.ErrorIs(t, err, formats.ErrFormat, "%s of %d", sub, size)
		}
	}
	_, err := vmdk.Encode(t.Context(), io.Discard, 1<<20, formats.CreateOptions{Subformat: vmdk.MonolithicSparse})
	require.ErrorIs(t, err, formats.ErrFormat)
}

// TestOddSizes: what is behind the last byte of a disk that ends within a sector is zeros.
func TestOddSizes(t *testing.T) {
	for _, o := range []formats.CreateOptions{{}, {Subformat: vmdk.StreamOptimized}} {
		for _, size := range []int64{1, 511, 513, grain + 1, 2*grain - 1} {
			want := pattern(9, int(size))
			f := formatstest.NewMemFile()
			w, err := vmdk.Create(t.Context(), f, size, o, formats.Checkpoint{})
			require.NoError(t, err)
			src, err := raw.Open(t.Context(), bytes.NewReader(want), size, formats.OpenOptions{})
			require.NoError(t, err)
			_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{})
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			b := make([]byte, f.Size())
			_, err = f.ReadAt(b, 0)
			require.NoError(t, err)
			got, err := opened(t, b)
			require.NoError(t, err)
			require.True(t, bytes.Equal(append(want, make([]byte, -size&(sector-1))...), got), "%v of %d bytes", o, size)
		}
	}
}

// TestResumeRefusesWhatItsCheckpointDoesNotDescribe: a file that is not what it was is not gone on with.
func TestResumeRefusesWhatItsCheckpointDoesNotDescribe(t *testing.T) {
	d := formatstest.NewDisk(36, 70<<20)
	for _, o := range []formats.CreateOptions{{}, {Subformat: vmdk.StreamOptimized}} {
		f := formatstest.NewMemFile()
		w, err := vmdk.Create(t.Context(), f, d.Size(), o, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, formatstest.Fill(w, d, 0, 40<<20))
		cp, err := w.Checkpoint(40 << 20)
		require.NoError(t, err)
		require.NoError(t, w.Sync(t.Context()))
		require.NoError(t, w.Close())

		create := func(f formats.File, size int64, o formats.CreateOptions, cp formats.Checkpoint) error {
			w, err := vmdk.Create(t.Context(), f, size, o, cp)
			if err == nil {
				err = errors.Join(w.Close(), nil)
			}
			return err
		}
		require.NoError(t, create(f.Clone(), d.Size(), o, cp))
		short := f.Clone()
		require.NoError(t, short.Truncate(short.Size()/2))
		require.ErrorIs(t, create(short, d.Size(), o, cp), formats.ErrCorrupt)
		require.ErrorIs(t, create(f.Clone(), d.Size()+512, o, cp), formats.ErrCorrupt, "another size")
		o.Adapter = "ide"
		require.ErrorIs(t, create(f.Clone(), d.Size(), o, cp), formats.ErrCorrupt, "other options")
		o.Adapter = ""
		if o.Subformat == vmdk.StreamOptimized {
			for _, at := range []int64{128 * sector, f.Size() / 2 / sector * sector} {
				torn := f.Clone()
				zero := make([]byte, 128<<10)
				_, err := torn.WriteAt(zero, at)
				require.NoError(t, err)
				err = create(torn, d.Size(), o, cp)
				if at == 128*sector {
					require.ErrorIs(t, err, formats.ErrCorrupt)
				}
			}
		}
	}
}
