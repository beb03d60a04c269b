package formatstest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
)

// record is a test that may fail.
type record struct {
	testing.TB
	mu     sync.Mutex
	failed bool
}

func (r *record) Helper() {}
func (r *record) Errorf(string, ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}
func (r *record) FailNow() {
	r.Errorf("")
	runtime.Goexit()
}

// fails says whether fn fails.
func fails(t *testing.T, fn func(testing.TB)) bool {
	r := &record{TB: t}
	var wg sync.WaitGroup
	wg.Go(func() { fn(r) })
	wg.Wait()
	return r.failed
}

// wrong is an image with a fault of its own.
type wrong struct {
	formats.Image
	read    func(p []byte, off int64) (int, error)
	extents func(off, n int64) []formats.Extent
	size    int64
}

func (w wrong) Size() int64 {
	if w.size != 0 {
		return w.size
	}
	return w.Image.Size()
}

func (w wrong) ReadAt(p []byte, off int64) (int, error) {
	if w.read != nil {
		return w.read(p, off)
	}
	return w.Image.ReadAt(p, off)
}

func (w wrong) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if w.extents == nil || off < 0 || n < 0 || off+n > w.Size() {
		return w.Image.Extents(ctx, off, n)
	}
	return func(yield func(formats.Extent, error) bool) {
		for _, e := range w.extents(off, n) {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestTheExamFindsWrongReaders(t *testing.T) {
	d := formatstest.NewDisk(1, 5<<20+512)
	size := d.Size()
	data := formats.Data
	for name, img := range map[string]wrong{
		"size": {Image: d, size: size - 512},
		"one byte": {Image: d, read: func(p []byte, off int64) (int, error) {
			n, err := d.ReadAt(p, off)
			if at := 3_000_000 - off; at >= 0 && at < int64(n) {
				p[at]++
			}
			return n, err
		}},
		"no io.EOF": {Image: d, read: func(p []byte, off int64) (int, error) {
			n, err := d.ReadAt(p, off)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}},
		"an error as zeros": {Image: d, read: func(p []byte, off int64) (int, error) {
			if off > 2<<20 && off < size {
				clear(p)
				return len(p), nil
			}
			return d.ReadAt(p, off)
		}},
		"a gap in the map": {Image: d, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n / 3, Kind: data}, {Off: off + n/3 + 1, Len: n - n/3 - 1, Kind: data}}
		}},
		"a map that overlaps": {Image: d, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n, Kind: data}, {Off: off, Len: n, Kind: data}}
		}},
		"a map that is too long": {Image: d, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n + 512, Kind: data}}
		}},
		"data called zeros": {Image: d, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n, Kind: formats.Zero}}
		}},
		"data called absent": {Image: d, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n, Kind: formats.Absent}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			require.True(t, fails(t, func(tb testing.TB) { formatstest.CheckImage(tb, img, d, false) }))
		})
	}
	require.False(t, fails(t, func(tb testing.TB) { formatstest.CheckImage(tb, d, d, true) }), "a right one passes")

	delta := formatstest.NewDelta(2, 4<<20, 4096)
	require.False(t, fails(t, func(tb testing.TB) { formatstest.CheckImage(tb, delta, delta, true) }))
	zeros := wrong{Image: delta, read: func(p []byte, off int64) (int, error) {
		n, err := delta.ReadAt(p, off)
		if errors.Is(err, formats.ErrAbsent) {
			clear(p)
			return len(p), nil
		}
		return n, err
	}}
	require.True(t, fails(t, func(tb testing.TB) { formatstest.CheckImage(tb, zeros, delta, true) }), "absent read as zeros")
	large := formatstest.NewDisk(3, 1<<40)
	require.True(t, fails(t, func(tb testing.TB) {
		formatstest.CheckImage(tb, wrong{Image: large, extents: func(off, n int64) []formats.Extent {
			return []formats.Extent{{Off: off, Len: n, Kind: data}}
		}}, large, true)
	}), "a terabyte of zeros called data")
}

func TestDisksAreWhatTheirSeedSays(t *testing.T) {
	for _, size := range []int64{1, 511, 512, 100_000, 17 << 20, 1 << 40, 16<<40 + 512} {
		d, again, other := formatstest.NewDisk(1, size), formatstest.NewDisk(1, size), formatstest.NewDisk(2, size)
		bounds := d.Bounds()
		require.Equal(t, bounds, again.Bounds())
		if size > 1<<20 {
			require.NotEqual(t, bounds, other.Bounds())
		}
		require.EqualValues(t, 0, bounds[0])
		require.Equal(t, size, bounds[len(bounds)-1])
		// The same bytes in one read and in many.
		n := min(size, 300_000)
		whole, parts := make([]byte, n), make([]byte, 0, n)
		_, err := d.ReadAt(whole, size-n)
		require.NoError(t, err)
		for at := size - n; at < size; {
			b := make([]byte, min(7777, size-at))
			_, err := again.ReadAt(b, at)
			require.NoError(t, err)
			parts, at = append(parts, b...), at+int64(len(b))
		}
		require.True(t, bytes.Equal(whole, parts), "%d bytes", size)
	}
}

func TestCrash(t *testing.T) {
	f := formatstest.NewMemFile()
	write := func(s string, off int64) {
		_, err := f.WriteAt([]byte(s), off)
		require.NoError(t, err)
	}
	read := func(f *formatstest.MemFile, off int64) string {
		b := make([]byte, 3)
		_, err := f.ReadAt(b, off)
		require.NoError(t, err)
		return string(b)
	}
	write("old", 0)
	write("old", 8192)
	require.NoError(t, f.Sync())
	write("new", 0)
	write("new", 8192)
	write("new", 1<<20)
	require.Equal(t, "new", read(f, 0))
	require.Equal(t, "old", read(f.Synced(), 0))
	require.EqualValues(t, 8195, f.Synced().Size())
	formatstest.RequireEqual(t, f, f.Clone())
	require.True(t, fails(t, func(tb testing.TB) { formatstest.RequireEqual(tb, f, f.Synced()) }))
	seen := make(map[string]bool)
	for seed := range uint64(50) {
		c := f.Crash(seed)
		seen[fmt.Sprint(read(c, 0), read(c, 8192), c.Size() > 8195)] = true
	}
	require.Len(t, seen, 8, "each page and the size on their own")
	require.NoError(t, f.Truncate(2))
	require.NoError(t, f.Truncate(10000))
	require.Equal(t, "ne\x00", read(f, 0), "what was cut off is gone")
	require.Equal(t, "\x00\x00\x00", read(f, 8192))
	require.Equal(t, "old", read(f.Synced(), 8192), "but not durably")
}

func TestFaults(t *testing.T) {
	f := formatstest.NewMemFile()
	b := make([]byte, 100)
	at := &formatstest.Faulty{File: f, Fault: formatstest.At(formatstest.Write, 150, formatstest.ErrInjected)}
	_, err := at.WriteAt(b, 0)
	require.NoError(t, err)
	_, err = at.WriteAt(b, 100)
	require.ErrorIs(t, err, formatstest.ErrInjected)
	full := &formatstest.Faulty{File: f, Fault: formatstest.NoSpace(150)}
	_, err = full.WriteAt(b, 0)
	require.NoError(t, err)
	_, err = full.WriteAt(b, 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	short := &formatstest.Faulty{File: f, Fault: formatstest.After(formatstest.Read, 1, formatstest.ErrShort)}
	_, err = short.ReadAt(b, 0)
	require.NoError(t, err)
	n, err := short.ReadAt(b, 0)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 50, n)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stalled := &formatstest.Faulty{File: f, Fault: formatstest.Stall(ctx, formatstest.Read, 10)}
	_, err = stalled.ReadAt(b, 0)
	require.ErrorIs(t, err, context.Canceled)
}

// Fill writes what the disk holds, wherever it is cut.
func TestFill(t *testing.T) {
	for _, cut := range []int64{4096, 1 << 20, 2<<20 + 8192} {
		d := formatstest.NewDisk(4, 3<<20+100)
		f := formatstest.NewMemFile()
		w, err := raw.Create(t.Context(), f, d.Size(), formats.CreateOptions{}, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, formatstest.Fill(w, d, 0, cut))
		require.NoError(t, formatstest.Fill(w, d, cut, d.Size()))
		require.NoError(t, w.Commit(t.Context()))
		img, err := raw.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		formatstest.CheckImage(t, img, d, false)
	}
}
