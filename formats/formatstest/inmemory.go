package formatstest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// InMemory opens images of a format that are byte slices: the tests of a format make them by hand.
type InMemory struct{ Format formats.Format }

// Open opens an image.
func (m InMemory) Open(ctx context.Context, b []byte, o formats.OpenOptions) (formats.Image, error) {
	return m.Format.Open(ctx, bytes.NewReader(b), int64(len(b)), o)
}

// MustOpen opens an image for as long as the test runs.
func (m InMemory) MustOpen(t testing.TB, b []byte, o formats.OpenOptions) formats.Image {
	t.Helper()
	img, err := m.Open(t.Context(), b, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, img.Close()) })
	return img
}

// ReadAll opens an image, walks its map and reads all that is data: what a copy does.
func (m InMemory) ReadAll(ctx context.Context, b []byte, o formats.OpenOptions) error {
	img, err := m.Open(ctx, b, o)
	if err != nil {
		return err
	}
	defer img.Close()
	buf := make([]byte, 1<<20)
	for e, err := range img.Extents(ctx, 0, img.Size()) {
		if err != nil {
			return err
		}
		for off := e.Off; e.Kind == formats.Data && off < e.End(); off += int64(len(buf)) {
			if _, err := img.ReadAt(buf[:min(int64(len(buf)), e.End()-off)], off); err != nil {
				return err
			}
		}
	}
	return nil
}

// EveryCut wants an image to be refused whenever some of its end is missing, but for the last spare
// bytes. It is cut in some hundred places.
func (m InMemory) EveryCut(t testing.TB, b []byte, spare int) {
	t.Helper()
	require.NoError(t, m.ReadAll(t.Context(), b, formats.OpenOptions{}))
	for n := 0; n < len(b)-spare; n += max(1, len(b)/499) {
		require.Error(t, m.ReadAll(t.Context(), b[:n], formats.OpenOptions{}), "%d of %d bytes", n, len(b))
	}
}

// Fuzz does with b whatever is done with an image, in every way that it may be opened. Any error will
// do; a map that does not tile, and whatever panics, will not.
func (m InMemory) Fuzz(t testing.TB, b []byte, beside Files) {
	t.Helper()
	ctx := t.Context()
	for _, o := range []formats.OpenOptions{{}, {Layer: true}, {Beside: beside.Beside}} {
		img, err := m.Open(ctx, b, o)
		if err != nil {
			continue
		}
		_ = Tiles(ctx, img, min(img.Size(), 64<<20))
		require.NoError(t, img.Close())
	}
	_, _ = m.Format.Info(ctx, bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	_, _ = m.Format.Check(ctx, bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
}

// Tiles walks the first n bytes of a disk and reads a little of every extent. It panics where the
// extents do not tile.
func Tiles(ctx context.Context, img formats.Image, n int64) error {
	next := int64(0)
	for e, err := range img.Extents(ctx, 0, n) {
		if err != nil {
			return err
		}
		if e.Off != next || e.Len <= 0 || e.End() > n {
			panic(fmt.Sprintf("extent [%d, %d) where one from %d on was due", e.Off, e.End(), next))
		}
		next = e.End()
		if _, err := img.ReadAt(make([]byte, min(e.Len, 4096)), e.Off); e.Kind != formats.Absent && err != nil {
			return err
		}
	}
	if next != n {
		panic(fmt.Sprintf("the extents end at %d of %d", next, n))
	}
	return nil
}

// Files are what lies beside an image, by name.
type Files map[string][]byte

// Beside opens one of them.
func (f Files) Beside(name string) (formats.Opened, error) {
	b, ok := f[name]
	if !ok {
		return formats.Opened{}, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return formats.Opened{ReaderAt: bytes.NewReader(b), Closer: io.NopCloser(nil), Size: int64(len(b)), Name: name, Beside: f.Beside}, nil
}

// Padded is a file of which the beginning is given; the rest is one byte again and again.
type Padded struct {
	Head []byte
	Size int64
	Rest byte
}

func (p Padded) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		b[i] = p.Rest
	}
	if off < int64(len(p.Head)) {
		copy(b, p.Head[off:])
	}
	if off+int64(len(b)) > p.Size {
		return int(max(0, p.Size-off)), io.EOF
	}
	return len(b), nil
}

// Peek is n bytes of a disk.
func Peek(t testing.TB, img formats.Image, off int64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, err := img.ReadAt(b, off)
	require.NoError(t, err)
	return b
}

// Paged wants a disk without data, whose table is far larger than that, to be walked and read all over
// the place in 2 MiB of memory.
func Paged(t testing.TB, open func() formats.Image) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	img := open()
	require.Equal(t, []formats.Extent{{Len: img.Size(), Kind: formats.Zero}}, Map(t, img, 0, img.Size()))
	for off := int64(0); off < img.Size()-10; off += img.Size() / 5000 {
		Peek(t, img, off, 10)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(2<<20))
	runtime.KeepAlive(img)
}

// LostParent is a way in which a parent is not what its child was made upon.
type LostParent struct {
	Beside func(Files) Files // what lies there instead of the chain; nil: nothing may be opened
	Is     error
	Says   string
}

// Parents wants the image top of a chain to be refused for each of cases, in one line.
func (m InMemory) Parents(t *testing.T, chain func() Files, top string, cases map[string]LostParent) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var o formats.OpenOptions
			if c.Beside != nil {
				o.Beside = c.Beside(chain()).Beside
			}
			_, err := m.Open(t.Context(), chain()[top], o)
			require.ErrorIs(t, err, c.Is)
			require.ErrorContains(t, err, c.Says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}
