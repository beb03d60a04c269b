package formatstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// CheckImage examines a reader: img must hold exactly what want holds. Zeros may be reported as Data,
// unless tight is true.
func CheckImage(t testing.TB, img formats.Image, want *Disk, tight bool) {
	t.Helper()
	require.Equal(t, want.Size(), img.Size(), "size of the disk")
	checkExtents(t, img, want, tight)
	checkContent(t, img, want)
	checkReads(t, img, want)
	checkEnd(t, img)
	if p, ok := img.(formats.PackedReader); ok {
		checkPacked(t, img, p, want)
	}
}

// Map is the map of [off, off+n) as img gives it, examined for being one: it tiles the range exactly,
// ascending.
func Map(t testing.TB, img formats.Image, off, n int64) []formats.Extent {
	t.Helper()
	var all []formats.Extent
	at := off
	for e, err := range img.Extents(t.Context(), off, n) {
		require.NoError(t, err)
		require.Equal(t, at, e.Off, "an extent begins where the last one ended")
		require.Positive(t, e.Len)
		require.LessOrEqual(t, e.Kind, formats.Data)
		at = e.End()
		all = append(all, e)
	}
	require.Equal(t, off+n, at, "the extents end where the range does")
	return all
}

func checkExtents(t testing.TB, img formats.Image, want *Disk, tight bool) {
	t.Helper()
	for _, e := range Map(t, img, 0, img.Size()) {
		for w, err := range want.Extents(t.Context(), e.Off, e.Len) {
			require.NoError(t, err)
			if w.Kind == formats.Absent || e.Kind == formats.Absent {
				require.Equal(t, w.Kind, e.Kind, "kind of [%d, %d)", w.Off, w.End())
			}
			if tight && w.Kind == formats.Zero && w.Len >= 32<<20 {
				require.LessOrEqual(t, dataIn(t, img, w), w.Len/2, "zeros of [%d, %d) reported as data", w.Off, w.End())
			}
			if e.Kind == formats.Zero && w.Kind == formats.Data {
				b := make([]byte, w.Len)
				_, err := want.ReadAt(b, w.Off)
				require.NoError(t, err)
				require.True(t, isZero(b), "[%d, %d) is data and reported as zeros", w.Off, w.End())
			}
		}
	}
	// Any stretch has a map, however it lies.
	r := rand.New(rand.NewPCG(1, 2))
	bounds := want.Bounds()
	for range 50 {
		off := max(bounds[r.IntN(len(bounds))]-r.Int64N(70000), 0)
		n := min(r.Int64N(3<<20), img.Size()-off)
		Map(t, img, off, n)
	}
	Map(t, img, img.Size(), 0)
	Map(t, img, 0, 0)
	for range img.Extents(t.Context(), 0, img.Size()) {
		break // a caller may stop early
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, img.Size() + 1}, {img.Size(), 1}, {0, -1}} {
		for _, err := range img.Extents(t.Context(), bad[0], bad[1]) {
			require.Error(t, err, "extents of [%d, %d)", bad[0], bad[0]+bad[1])
		}
	}
}

func dataIn(t testing.TB, img formats.Image, in formats.Extent) int64 {
	t.Helper()
	var n int64
	for _, e := range Map(t, img, in.Off, in.Len) {
		if e.Kind == formats.Data {
			n += e.Len
		}
	}
	return n
}

// checkContent compares all that either side calls data.
func checkContent(t testing.TB, img formats.Image, want *Disk) {
	t.Helper()
	got, exp := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range Map(t, img, 0, img.Size()) {
		if e.Kind == formats.Absent {
			_, err := img.ReadAt(got[:1], e.Off)
			require.ErrorIs(t, err, formats.ErrAbsent)
			continue
		}
		for w, err := range want.Extents(t.Context(), e.Off, e.Len) {
			require.NoError(t, err)
			if e.Kind == formats.Zero || w.Kind == formats.Zero && w.Len > 64<<20 {
				w.Len = min(w.Len, 64<<10)
			}
			for at := w.Off; at < w.End(); {
				n := min(w.End()-at, int64(len(got)))
				_, err := want.ReadAt(exp[:n], at)
				require.NoError(t, err)
				m, err := img.ReadAt(got[:n], at)
				require.NoError(t, noEOF(err), "read of %d bytes at %d", n, at)
				require.EqualValues(t, n, m)
				requireBytes(t, exp[:n], got[:n], at)
				at += n
			}
		}
	}
}

// noEOF drops the io.EOF that may come with the last byte of the disk.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func requireBytes(t testing.TB, want, got []byte, off int64) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			require.FailNow(t, fmt.Sprintf("byte %d of the disk is %#02x instead of %#02x", off+int64(i), got[i], want[i]))
		}
	}
}

// checkReads reads at random places, around every boundary, from several goroutines at once.
func checkReads(t testing.TB, img formats.Image, want *Disk) {
	t.Helper()
	const readers = 4
	bounds := want.Bounds()
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(i)))
			for range 100 {
				off := min(max(bounds[r.IntN(len(bounds))]+r.Int64N(9000)-4500, 0), img.Size())
				n := min(r.Int64N(1<<r.IntN(19)), img.Size()-off)
				if errs[i] = sameRead(img, want, off, n); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

func sameRead(img formats.Image, want *Disk, off, n int64) error {
	got, exp := make([]byte, n), make([]byte, n)
	_, expErr := want.ReadAt(exp, off)
	m, err := img.ReadAt(got, off)
	if errors.Is(expErr, formats.ErrAbsent) {
		if !errors.Is(err, formats.ErrAbsent) {
			return fmt.Errorf("read of %d bytes at %d, partly absent: error is %w", n, off, err)
		}
		return nil
	}
	if noEOF(err) != nil || int64(m) != n || !bytes.Equal(got, exp) {
		return fmt.Errorf("read of %d bytes at %d: %d bytes, equal %t, error %w", n, off, m, bytes.Equal(got, exp), err)
	}
	return nil
}

// checkEnd reads across and behind the end.
func checkEnd(t testing.TB, img formats.Image) {
	t.Helper()
	size := img.Size()
	b := make([]byte, 4096)
	n, err := img.ReadAt(b, size)
	require.Zero(t, n)
	require.ErrorIs(t, err, io.EOF)
	n, err = img.ReadAt(b, size+1<<40)
	require.Zero(t, n)
	require.ErrorIs(t, err, io.EOF)
	_, err = img.ReadAt(b, -1)
	require.Error(t, err)
	n, err = img.ReadAt(nil, 0)
	require.Zero(t, n)
	require.NoError(t, noEOF(err))
	back := min(size, 100)
	n, err = img.ReadAt(b, size-back)
	if errors.Is(err, formats.ErrAbsent) {
		return
	}
	require.ErrorIs(t, err, io.EOF)
	require.EqualValues(t, back, n)
}

// checkPacked reads blocks as they are stored and unpacks them.
func checkPacked(t testing.TB, img formats.Image, p formats.PackedReader, want *Disk) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for _, e := range Map(t, img, 0, img.Size()) {
		if e.Kind != formats.Data {
			continue
		}
		for off := e.Off; off < e.End(); {
			pk, n, err := p.ReadPacked(t.Context(), off, buf)
			require.NoError(t, err)
			if n == 0 {
				off += 512 - off%512
				continue
			}
			got, exp := Unpack(t, pk, n), make([]byte, n)
			_, err = want.ReadAt(exp, off)
			require.NoError(t, noEOF(err))
			requireBytes(t, exp, got, off)
			off += n
		}
	}
}

// Unpack unpacks a block of n bytes.
func Unpack(t testing.TB, p formats.Packed, n int64) []byte {
	t.Helper()
	out := make([]byte, n)
	var r io.Reader
	switch p.Codec {
	case formats.Deflate:
		r = flate.NewReader(bytes.NewReader(p.Bytes))
	case formats.Zstd:
		d, err := zstd.NewReader(bytes.NewReader(p.Bytes), zstd.WithDecoderConcurrency(1))
		require.NoError(t, err)
		defer d.Close()
		r = d
	default:
		require.FailNow(t, fmt.Sprintf("codec %d", p.Codec))
	}
	_, err := io.ReadFull(r, out)
	require.NoError(t, err, "unpacking a block")
	if p.HasSum {
		require.Equal(t, adler32.Checksum(out), p.Sum, "Adler-32 of a packed block")
	}
	return out
}

// cancelled opens a disk, cancels the context it was opened with, and expects it to be dead, also where
// the file below hangs at that moment.
func (h Harness) cancelled(t *testing.T) {
	d := NewDisk(11, h.examSize())
	f := h.CreateDisk(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hang atomic.Bool
	stall := Fault(func(op Op, off, n int64) error {
		if !hang.Load() {
			return nil
		}
		return Stall(ctx, Read, off)(op, off, n)
	})
	img, err := h.Format.Open(ctx, &sized{Faulty{File: f, Fault: stall}, FileSize(t, f)}, FileSize(t, f), h.Open)
	require.NoError(t, err)
	defer img.Close()
	b := make([]byte, 512)
	_, err = img.ReadAt(b, 0)
	require.NoError(t, noEOF(err))
	hang.Store(true)
	pending := make(chan error, 1)
	go func() {
		all := make([]byte, d.Size())
		_, err := img.ReadAt(all, 0)
		pending <- err
	}()
	cancel()
	select {
	case err := <-pending:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "a read goes on after its context was cancelled")
	}
	_, err = img.ReadAt(b, 0)
	require.ErrorIs(t, err, context.Canceled)

	img = h.OpenDisk(t, f)
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	var last error
	for _, last = range img.Extents(ctx, 0, img.Size()) {
		if last != nil {
			break
		}
	}
	require.ErrorIs(t, last, context.Canceled)
}
