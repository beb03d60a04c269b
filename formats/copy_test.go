package formats_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/formats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func digests(t *testing.T, size int64) *formats.Digests {
	t.Helper()
	d, err := formats.CreateDigests(&memFile{}, size)
	require.NoError(t, err)
	return d
}

// truth is the content digest of b, computed by reading it anew.
func truth(t *testing.T, b []byte) formats.Digest {
	t.Helper()
	d, err := formats.DigestOf(t.Context(), &memImage{b: b}, digests(t, int64(len(b))), formats.VerifyOptions{})
	require.NoError(t, err)
	return d
}

var sizes = []int64{0, 1, 511, 64 << 10, 1 << 20, 2<<20 - 1, 2 << 20, 2<<20 + 1, 5<<20 + 12345, 64<<20 + 7}

func TestCopyEveryTargetEverySize(t *testing.T) {
	for _, size := range sizes {
		src := content(uint64(size), size)
		for name, dst := range map[string]interface {
			formats.Writer
			bytes() []byte
		}{
			"ordered":  view{newWriter(size, 1)},
			"clusters": view{newWriter(size, 64<<10)},
			"parallel": parallelView{parallelWriter{newWriter(size, 512)}},
			"packing":  packingView{newPackingWriter(size)},
		} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				d := digests(t, size)
				res, err := formats.Copy(t.Context(), dst, &memImage{b: src}, formats.CopyOptions{Workers: 3, Digests: d})
				require.NoError(t, err)
				require.True(t, bytes.Equal(src, dst.bytes()), "the copy differs")
				require.Equal(t, size, res.Done)
				require.Equal(t, size, res.Read)
				require.Equal(t, truth(t, src), res.Digest)
			})
		}
	}
}

type view struct{ *memWriter }

func (v view) bytes() []byte { return v.b }

type parallelView struct{ parallelWriter }

func (v parallelView) bytes() []byte { return v.b }

type packingView struct{ *packingWriter }

func (v packingView) bytes() []byte { return v.b }

func TestCopyReadsOnlyData(t *testing.T) {
	const mib = 1 << 20
	src := content(1, 40*mib)
	clear(src[3*mib : 30*mib])
	img := &memImage{b: src, extents: []formats.Extent{
		{Off: 0, Len: 3 * mib, Kind: formats.Data},
		{Off: 3 * mib, Len: 27 * mib, Kind: formats.Zero},
		{Off: 30 * mib, Len: 10 * mib, Kind: formats.Data},
	}}
	dst := newWriter(40*mib, 512)
	for i := range dst.b {
		dst.b[i] = 0xee // zeros must be written over what was there
	}
	d := digests(t, 40*mib)
	res, err := formats.Copy(t.Context(), dst, img, formats.CopyOptions{Digests: d})
	require.NoError(t, err)
	require.EqualValues(t, 13*mib, res.Read)
	require.True(t, bytes.Equal(src, dst.b))
	require.Equal(t, truth(t, src), res.Digest)
}

func TestCopyLeavesWhatIsAbsent(t *testing.T) {
	const k = 64 << 10
	src := content(2, 160*k)
	img := &memImage{b: src, extents: []formats.Extent{
		{Off: 0, Len: 3 * k, Kind: formats.Absent},
		{Off: 3 * k, Len: k, Kind: formats.Data},
		{Off: 4 * k, Len: 100 * k, Kind: formats.Absent},
		{Off: 104 * k, Len: k, Kind: formats.Zero},
		{Off: 105 * k, Len: 55 * k, Kind: formats.Data},
	}}
	dst := newWriter(160*k, k)
	old := content(3, 160*k)
	copy(dst.b, old)
	want := bytes.Clone(old)
	copy(want[3*k:4*k], src[3*k:4*k])
	clear(want[104*k : 105*k])
	copy(want[105*k:], src[105*k:])

	res, err := formats.Copy(t.Context(), dst, img, formats.CopyOptions{Digests: digests(t, 160*k)})
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, dst.b))
	require.Zero(t, res.Digest, "part of the disk is unknown, so there is no digest of it")

	img.extents[1].Len, img.extents[2] = k/2, formats.Extent{Off: 3*k + k/2, Len: 100*k + k/2, Kind: formats.Absent}
	_, err = formats.Copy(t.Context(), dst, img, formats.CopyOptions{})
	require.ErrorIs(t, err, formats.ErrAlign, "half a cluster would erase its other half")
}

// Data is read while the map of the disk is still being made; what is none is one stretch, however long.
func TestMergedAhead(t *testing.T) {
	const mib = 1 << 20
	var asked int64
	seq := func(yield func(formats.Extent, error) bool) {
		for off := int64(0); off < 1000*mib; off += 30 * mib {
			kind := formats.Data
			if off >= 600*mib {
				kind = formats.Zero
			}
			if asked = off; !yield(formats.Extent{Off: off, Len: 30 * mib, Kind: kind}, nil) {
				return
			}
		}
	}
	var got []formats.Extent
	for e, err := range formats.MergedAhead(seq) {
		require.NoError(t, err)
		if got = append(got, e); len(got) == 1 {
			require.LessOrEqual(t, asked, int64(90*mib), "not farther than it has to")
		}
	}
	for i := range 6 {
		require.Equal(t, formats.Extent{Off: int64(i) * 90 * mib, Len: 90 * mib, Kind: formats.Data}, got[i])
	}
	require.Equal(t, formats.Extent{Off: 540 * mib, Len: 60 * mib, Kind: formats.Data}, got[6])
	require.Equal(t, formats.Extent{Off: 600 * mib, Len: 420 * mib, Kind: formats.Zero}, got[7])
	require.Len(t, got, 8)
}

func TestCopyRefusesAMapThatDoesNotTile(t *testing.T) {
	for name, extents := range map[string][]formats.Extent{
		"gap":     {{Off: 0, Len: 10, Kind: formats.Data}, {Off: 20, Len: 80, Kind: formats.Data}},
		"overlap": {{Off: 0, Len: 60, Kind: formats.Data}, {Off: 50, Len: 50, Kind: formats.Data}},
		"short":   {{Off: 0, Len: 60, Kind: formats.Data}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := formats.Copy(t.Context(), newWriter(100, 1), &memImage{b: make([]byte, 100), extents: extents}, formats.CopyOptions{})
			require.ErrorIs(t, err, formats.ErrCorrupt)
		})
	}
}

// A copy that is cut anywhere and taken up at its last durable checkpoint gives the same disk and the
// same digest, and reads at most 64 MiB twice.
func TestCopyResumes(t *testing.T) {
	const size = 120<<20 + 4321
	src := content(4, size)
	cut := errors.New("cut")
	for _, at := range []int64{0, 1 << 20, 30 << 20, 99 << 20, size - 10} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			dst, file, journalFile := newWriter(size, 64<<10), &memFile{}, &memFile{}
			d, err := formats.CreateDigests(file, size)
			require.NoError(t, err)
			j, from, err := formats.OpenJournal(journalFile, "disk 1")
			require.NoError(t, err)
			require.Zero(t, from)
			var reached atomic.Int64
			img := &memImage{b: src, reads: func(off int64, n int) error {
				if off+int64(n) > at {
					return cut
				}
				reached.Store(max(reached.Load(), off+int64(n)))
				return nil
			}}
			_, err = formats.Copy(t.Context(), dst, img, formats.CopyOptions{Workers: 4, Digests: d, Durable: j.Record})
			require.ErrorIs(t, err, cut)

			j, from, err = formats.OpenJournal(journalFile.crash(), "disk 1")
			require.NoError(t, err)
			if from.Off > 0 {
				d, err = formats.OpenDigests(file.crash())
			} else {
				d, err = formats.CreateDigests(file.crash(), size)
			}
			require.NoError(t, err)
			require.LessOrEqual(t, reached.Load()-from.Off, int64(64<<20))
			again := newWriter(size, 64<<10)
			if from.Off > 0 {
				var i int
				_, err := fmt.Sscan(from.Token, &i)
				require.NoError(t, err)
				copy(again.b, dst.saved[i])
			}
			res, err := formats.Copy(t.Context(), again, &memImage{b: src}, formats.CopyOptions{From: from, Digests: d, Durable: j.Record})
			require.NoError(t, err)
			require.Equal(t, size-from.Off, res.Read)
			require.True(t, bytes.Equal(src, again.b))
			require.Equal(t, truth(t, src), res.Digest)
		})
	}
}

// What an earlier copy of a delta passed over has no sum, wherever the next one begins.
func TestCopyOfADeltaResumes(t *testing.T) {
	const size = 64 << 20
	src := content(11, size)
	img := &memImage{b: src, extents: []formats.Extent{
		{Off: 0, Len: 8 << 20, Kind: formats.Absent}, {Off: 8 << 20, Len: size - 8<<20, Kind: formats.Data}}}
	d, from := digests(t, size), formats.Checkpoint{}
	for i := int64(8); i < 32; i++ {
		require.NoError(t, d.Put(i, sha256.Sum256(src[i<<20:(i+1)<<20])))
	}
	from.Off = 32 << 20
	res, err := formats.Copy(t.Context(), newWriter(size, 64<<10), img, formats.CopyOptions{From: from, Digests: d})
	require.NoError(t, err)
	require.Zero(t, res.Digest, "not every block of the disk is known")
	require.EqualValues(t, 32<<20, res.Read)
}

func TestCopyTakesCheckpointsAsFarApartAsItIsTold(t *testing.T) {
	src := content(3, 64<<20)
	for distance, want := range map[int64][]int64{
		0:        {24 << 20, 48 << 20, 64 << 20},
		10 << 20: {10 << 20, 20 << 20, 30 << 20, 40 << 20, 50 << 20, 60 << 20, 64 << 20},
		1 << 40:  {64 << 20},
	} {
		var got []int64
		_, err := formats.Copy(t.Context(), newWriter(int64(len(src)), 512), wholeImage{&memImage{b: src}}, formats.CopyOptions{
			Distance: distance, Durable: func(c formats.Checkpoint) error { got = append(got, c.Off); return nil }})
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// What is passed over costs nothing to pass over again.
func TestCopyTakesNoCheckpointsOverNothing(t *testing.T) {
	src := content(3, 64<<20)
	for _, kind := range []formats.Kind{formats.Zero, formats.Absent} {
		var got []int64
		img := endsOnly{&memImage{b: src}, kind}
		_, err := formats.Copy(t.Context(), newWriter(int64(len(src)), 512), img, formats.CopyOptions{
			Distance: 2 << 20, Durable: func(c formats.Checkpoint) error { got = append(got, c.Off); return nil }})
		require.NoError(t, err)
		require.Equal(t, []int64{2 << 20, 64 << 20}, got)
	}
}

// endsOnly says that there is nothing but the first and the last 2 MiB.
type endsOnly struct {
	*memImage
	between formats.Kind
}

func (e endsOnly) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		for _, x := range []formats.Extent{{Off: 0, Len: 2 << 20, Kind: formats.Data}, {Off: 2 << 20, Len: 60 << 20, Kind: e.between}, {Off: 62 << 20, Len: 2 << 20, Kind: formats.Data}} {
			lo, hi := max(off, x.Off), min(off+n, x.End())
			if lo < hi && !yield(formats.Extent{Off: lo, Len: hi - lo, Kind: x.Kind}, nil) {
				return
			}
		}
	}
}

// wholeImage says that all is data.
type wholeImage struct{ *memImage }

func (wholeImage) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return formats.AllData(off, n)
}

func TestCopyStopsOnRequestAndKeepsWhatItDid(t *testing.T) {
	const size = 100 << 20
	src := content(5, size)
	stop := make(chan struct{})
	var last formats.Checkpoint
	n := 0
	img := &memImage{b: src, reads: func(int64, int) error {
		if n++; n == 20 {
			close(stop)
		}
		return nil
	}}
	dst := newWriter(size, 512)
	_, err := formats.Copy(t.Context(), dst, img, formats.CopyOptions{Workers: 1, Stop: stop,
		Durable: func(cp formats.Checkpoint) error { last = cp; return nil }})
	require.ErrorIs(t, err, formats.ErrStopped)
	require.GreaterOrEqual(t, last.Off, int64(40<<20), "20 windows of 2 MiB were read")
	require.Less(t, last.Off, int64(size))
	require.True(t, bytes.Equal(src[:last.Off], dst.b[:last.Off]))
}

func TestCopyFailsPromptlyAndOnce(t *testing.T) {
	boom := errors.New("boom")
	src := content(6, 50<<20)
	t.Run("source", func(t *testing.T) {
		img := &memImage{b: src, reads: func(off int64, _ int) error {
			if off >= 20<<20 {
				return boom
			}
			return nil
		}}
		_, err := formats.Copy(t.Context(), newWriter(50<<20, 512), img, formats.CopyOptions{})
		require.ErrorIs(t, err, boom)
	})
	t.Run("short source", func(t *testing.T) {
		_, err := formats.Copy(t.Context(), newWriter(50<<20, 512), shortImage{&memImage{b: src}}, formats.CopyOptions{})
		require.ErrorIs(t, err, formats.ErrCorrupt)
	})
	t.Run("target", func(t *testing.T) {
		for _, dst := range []formats.Writer{&memWriter{b: make([]byte, 50<<20), block: 512, fail: boom},
			parallelWriter{&memWriter{b: make([]byte, 50<<20), block: 512, fail: boom}}} {
			_, err := formats.Copy(t.Context(), dst, &memImage{b: src}, formats.CopyOptions{})
			require.ErrorIs(t, err, boom)
		}
	})
	t.Run("checkpoint", func(t *testing.T) {
		_, err := formats.Copy(t.Context(), newWriter(50<<20, 512), &memImage{b: src},
			formats.CopyOptions{Durable: func(formats.Checkpoint) error { return boom }})
		require.ErrorIs(t, err, boom)
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		img := &memImage{b: src, reads: func(off int64, _ int) error {
			if off >= 10<<20 {
				cancel()
			}
			return nil
		}}
		_, err := formats.Copy(ctx, newWriter(50<<20, 512), img, formats.CopyOptions{})
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("pace", func(t *testing.T) {
		_, err := formats.Copy(t.Context(), newWriter(50<<20, 512), &memImage{b: src},
			formats.CopyOptions{Pace: func(context.Context, int64) error { return boom }})
		require.ErrorIs(t, err, boom)
	})
}

type shortImage struct{ *memImage }

func (s shortImage) Size() int64 { return s.memImage.Size() + 100 }

// paddedImage stores every block with bytes behind it that are nobody's, up to the next sector, as qcow2
// does: there the length of a packed block is known in sectors only.
type paddedImage struct{ packedImage }

func (m paddedImage) ReadPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	p, n, err := m.packedImage.ReadPacked(ctx, off, buf)
	p.Bytes = append(p.Bytes, bytes.Repeat([]byte{0xee}, -len(p.Bytes)&511)...)
	return p, n, err
}

// chunksOf cuts src into packed grains of 64 KiB, leaving out the empty ones.
func chunksOf(src []byte) []formats.Chunk {
	var out []formats.Chunk
	for off := 0; off < len(src); off += 64 << 10 {
		b := src[off:min(off+64<<10, len(src))]
		if !bytes.Equal(b, make([]byte, len(b))) {
			out = append(out, formats.Chunk{Off: int64(off), Len: int64(len(b)), Packed: pack(b)})
		}
	}
	return out
}

func TestManyCopiesShareBuffers(t *testing.T) {
	buffers := formats.NewBuffers(8 << 20)
	errs := make(chan error, 8)
	for i := range 8 {
		src := content(uint64(20+i), 30<<20)
		dst := newWriter(30<<20, 512)
		go func() {
			_, err := formats.Copy(t.Context(), dst, &memImage{b: src}, formats.CopyOptions{Workers: 4, Buffers: buffers})
			if err == nil && !bytes.Equal(src, dst.b) {
				err = errors.New("the copy differs")
			}
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
}
