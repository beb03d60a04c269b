package cbt

import (
	"bytes"
	"context"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

// sparse is a layer: a disk of which only some is there.
func sparse(r *rand.Rand, size int64) (formats.Image, memory, Set) {
	data, s := make(memory, size), Set{}
	for range r.IntN(30) {
		off := r.Int64N(size/512) * 512
		n := min((1+r.Int64N(200))*512, size-off)
		_ = s.Add(off, n)
		if r.IntN(3) > 0 {
			copy(data[off:off+n], noise[r.IntN(1000):])
		}
	}
	return View(data, s), data, s
}

func TestStackIsWhatAnOverlayShows(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 4))
		size := (1 + r.Int64N(4000)) * 512
		base := make(memory, size)
		copy(base, noise[r.IntN(99):])
		layers, want := []formats.Image{base}, slices.Clone(base)
		there := Whole(size) // false: absent from all, and so from the stack
		if r.IntN(3) == 0 {
			layers[0], want, there = sparse(r, size)
			want = slices.Clone(want)
		}
		for range r.IntN(8) {
			if r.IntN(3) == 0 {
				old := size
				size = (1 + r.Int64N(4000)) * 512
				want = append(want, make(memory, max(size-old, 0))...)[:size]
				there = there.Clip(0, size)
				if size > old {
					_ = there.Add(old, size-old)
				}
			}
			img, data, s := sparse(r, size)
			for p := range s.All() {
				copy(want[p.Off:p.End()], data[p.Off:p.End()])
			}
			there = there.Union(s)
			layers = append(layers, img)
		}
		img, err := Stack(layers...)
		require.NoError(t, err)
		requireSame(t, img, want, there)
		require.NoError(t, img.Close())
	}
}

// requireSame compares an image of which only some is there.
func requireSame(t *testing.T, img formats.Image, want memory, there Set) {
	t.Helper()
	require.Equal(t, want.Size(), img.Size())
	var got Set
	for _, e := range formatstest.Map(t, img, 0, img.Size()) {
		b := make([]byte, e.Len)
		switch e.Kind {
		case formats.Absent:
			_, err := img.ReadAt(b, e.Off)
			require.ErrorIs(t, err, formats.ErrAbsent)
			continue
		case formats.Data:
			require.NoError(t, readFull(img, b, e.Off))
		case formats.Zero:
			c := make([]byte, e.Len)
			require.NoError(t, readFull(img, c, e.Off))
			require.Equal(t, b, c)
		}
		require.True(t, bytes.Equal(want[e.Off:e.End()], b), "[%d, %d)", e.Off, e.End())
		require.NoError(t, got.Add(e.Off, e.Len))
	}
	require.True(t, there.Equal(got), "what is there: %v instead of %v", got, there)
	_, err := img.ReadAt(make([]byte, 1), img.Size())
	require.ErrorIs(t, err, io.EOF)
	_, err = img.ReadAt(make([]byte, 1), -1)
	require.Error(t, err)
	for _, bad := range [][2]int64{{-1, 1}, {0, img.Size() + 1}, {0, -1}} {
		for _, err := range img.Extents(t.Context(), bad[0], bad[1]) {
			require.Error(t, err)
		}
	}
}

func TestStackOfLongDisksTakesLittle(t *testing.T) {
	const size = 64 << 40
	var s Set
	for i := range int64(20000) { // dense in one place, and nothing for far around it
		require.NoError(t, s.Add(30<<40+i*8192, 4096))
	}
	img, err := Stack(formatstest.NewDisk(1, size), View(formatstest.NewDisk(2, size), s), View(formatstest.NewDisk(3, size), Set{}))
	require.NoError(t, err)
	n := 0
	for range formatstest.Map(t, img, 0, size) {
		n++
	}
	require.Greater(t, n, 20)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := make([]byte, 3<<20)
			for i := range int64(40) { // more stretches than are kept
				if err := readFull(img, b, 30<<40-1<<20+i*stretchSize/2); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, len(img.(*stack).kept), keptMost)
}

// packed is an image of nothing but blocks of 64 KiB that are stored packed.
type packed struct{ memory }

func (p packed) ReadPacked(_ context.Context, off int64, _ []byte) (formats.Packed, int64, error) {
	if off%trackGrain != 0 {
		return formats.Packed{}, 0, nil
	}
	return formats.Packed{Codec: formats.Zstd, Bytes: []byte{byte(off / trackGrain)}}, trackGrain, nil
}

func (p packed) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return formats.AllData(off, n)
}

func TestPackedBlocksStayPacked(t *testing.T) {
	base := packed{make(memory, 8*trackGrain)}
	changed := Set{[]Range{{trackGrain, trackGrain}, {3*trackGrain + 512, 512}}}
	img, err := Stack(base, View(base.memory, changed))
	require.NoError(t, err)
	view := View(base, Set{[]Range{{0, trackGrain}, {2*trackGrain + 512, 2 * trackGrain}}})
	for i, want := range []struct{ stack, view bool }{{true, true}, {false, false}, {true, false}, {false, true}, {true, false}} {
		for _, x := range []struct {
			img  formats.Image
			want bool
		}{{img, want.stack}, {view, want.view}} {
			p, n, err := x.img.(formats.PackedReader).ReadPacked(t.Context(), int64(i)*trackGrain, nil)
			require.NoError(t, err)
			require.Equal(t, x.want, n == trackGrain, "block %d of %T", i, x.img)
			if x.want {
				require.Equal(t, []byte{byte(i)}, p.Bytes)
			}
		}
	}
	_, plain := View(base.memory, changed).(formats.PackedReader)
	require.False(t, plain, "what is not packed does not say so")
}

// A copy of a view is an incremental copy.
func TestACopyOfAViewHoldsTheChangesAndNothingElse(t *testing.T) {
	data := some(3, 4<<20)
	changed := Set{[]Range{{100, 5}, {trackGrain * 9, 3 * trackGrain}, {4<<20 - 1, 1}}}
	aligned := changed.Align(trackGrain, data.Size())
	f := formatstest.NewMemFile()
	w, err := qcow2.Create(t.Context(), f, data.Size(), formats.CreateOptions{Backing: "base", BackingFmt: "raw"}, formats.Checkpoint{})
	require.NoError(t, err)
	res, err := formats.Copy(t.Context(), w, View(data, aligned), formats.CopyOptions{})
	require.NoError(t, err)
	require.LessOrEqual(t, res.Read, aligned.Bytes())
	require.NoError(t, w.Commit(t.Context()))
	layer, err := qcow2.Open(t.Context(), f, f.Size(), formats.OpenOptions{Layer: true})
	require.NoError(t, err)
	requireSame(t, layer, data, aligned)

	_, err = formats.Copy(t.Context(), w, View(data, changed), formats.CopyOptions{})
	require.ErrorIs(t, err, formats.ErrAlign, "finer than the target can store is refused")
}

// damaged fails where it is read.
type damaged struct{ memory }

func (damaged) ReadAt([]byte, int64) (int, error) { return 0, formatstest.ErrInjected }

func TestErrorsOfLayersSurface(t *testing.T) {
	data := some(1, 1<<20)
	img, err := Stack(damaged{data}, View(data, Set{[]Range{{0, 512}}}))
	require.NoError(t, err)
	require.NoError(t, readFull(img, make([]byte, 512), 0))
	require.ErrorIs(t, readFull(img, make([]byte, 513), 0), formatstest.ErrInjected)
	_, err = Stack()
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range View(formatstest.NewDisk(1, 1<<20), Whole(1<<20)).Extents(ctx, 0, 1<<20) {
		require.ErrorIs(t, err, context.Canceled)
	}
}
