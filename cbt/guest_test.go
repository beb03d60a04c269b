package cbt

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// disk is a disk in memory. It knows which pages are zeros.
type memory []byte

const page = 4096

var zeroPage = make([]byte, page)

func (m memory) Size() int64  { return int64(len(m)) }
func (m memory) Close() error { return nil }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return formats.Merged(func(yield func(formats.Extent, error) bool) {
		for end := off + n; off < end; {
			e := formats.Extent{Off: off, Len: min(page-off%page, end-off), Kind: formats.Zero}
			if !bytes.Equal(m[off:e.End()], zeroPage[:e.Len]) {
				e.Kind = formats.Data
			}
			if !yield(e, nil) {
				return
			}
			off = e.End()
		}
	})
}

// drive is a disk of the guest, with a tracker as a platform has one.
type drive struct {
	name    string
	data    memory
	lineage int // of the tracker: a reset begins a new one
	seq     int
	tracked bool        // nothing was written while tracking was off, since lineage began
	dirty   map[int]Set // by the number of the point it began at: what was written since
}

const trackGrain = 64 << 10

func (d *drive) id(seq int) Point {
	if !d.tracked {
		return ""
	}
	return Point(fmt.Sprintf("%s-%d/%d", d.name, d.lineage, seq))
}

func (d *drive) touch(off, n int64) {
	for i := range d.dirty {
		s := d.dirty[i]
		lo := off / trackGrain * trackGrain
		_ = s.Add(lo, min((off+n+trackGrain-1)/trackGrain*trackGrain, d.data.Size())-lo)
		d.dirty[i] = s
	}
}

// noise is what does not compress.
var noise = func() []byte {
	r := rand.New(rand.NewPCG(5, 5))
	b := make([]byte, 1<<20+13)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}()

func (d *drive) write(r *rand.Rand) {
	if d.data.Size() == 0 {
		return
	}
	off := r.Int64N(d.data.Size()/512) * 512
	n := min((1+r.Int64N(1<<r.IntN(9)))*512, d.data.Size()-off)
	b := d.data[off : off+n]
	switch r.IntN(3) {
	case 0: // discard
		clear(b)
	case 1: // what compresses
		for i := range b {
			b[i] = byte(i / 700)
		}
	default:
		at := r.IntN(len(noise))
		for i := range b {
			b[i] = noise[(at+i)%len(noise)]
		}
	}
	d.touch(off, n)
}

func (d *drive) resize(size int64) {
	old := d.data.Size()
	d.data = append(slices.Clone(d.data), make([]byte, max(size-old, 0))...)[:size]
	for i := range d.dirty {
		d.dirty[i] = d.dirty[i].Clip(0, size)
	}
}

func (d *drive) reset() {
	d.lineage++
	d.dirty = make(map[int]Set)
	d.seq++
}

// snapshot is the disk now, and its change id; changes are those since a change id, or nil.
func (d *drive) snapshot(since Point) (data memory, id Point, changes *Changes) {
	d.seq++
	id = d.id(d.seq)
	for seq, dirty := range d.dirty {
		if d.id(seq) == since && since != "" && id != "" {
			changes = &Changes{From: since, To: id, By: Tracked, Ranges: dirty.Clone()}
		}
	}
	d.dirty[d.seq] = Set{}
	return slices.Clone(d.data), id, changes
}

func newDrive(name string, size int64) *drive {
	return &drive{name: name, data: make(memory, size), tracked: true, dirty: make(map[int]Set)}
}

// truth is what every point of the chain must hold.
type truth map[int64]map[string]memory

// quick is a folder in memory where there is one: the tests that die a thousand times are kills of a
// process, for which it is as good as a disk.
func quick(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cbt-test") //nolint:usetesting // t.TempDir has no say in where
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newChain is an empty chain in a new folder.
func newChain(t testing.TB, o Options) (*Chain, string) {
	t.Helper()
	dir := quick(t)
	c, err := Create(t.Context(), dir, VM{ID: "vm-1", Name: "guest"}, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c, dir
}

// add appends a point of one disk; changes nil: in full.
func add(t testing.TB, c *Chain, name string, img formats.Image, id Point, changes *Changes) int64 {
	t.Helper()
	a, err := c.Begin(t.Context(), NewPoint{Key: string(id), Disks: []NewDisk{{Disk: name, Size: img.Size(), ChangeID: id, Changes: changes}}})
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Copy(t.Context(), name, img, formats.CopyOptions{})
	require.NoError(t, err)
	require.NoError(t, a.Commit(t.Context()))
	return a.Number()
}

// requireDisk compares a disk at a point with what it was.
func requireDisk(t testing.TB, c *Chain, number int64, name string, want memory) {
	t.Helper()
	img, err := c.Open(t.Context(), number, name)
	require.NoError(t, err)
	defer img.Close()
	requireContent(t, img, want, "point %d, disk %s", number, name)
}

func requireContent(t testing.TB, img formats.Image, want memory, what string, args ...any) {
	t.Helper()
	require.Equal(t, want.Size(), img.Size(), what, args)
	got := make([]byte, len(want))
	require.NoError(t, readFull(img, got, 0), what, args)
	if !bytes.Equal(want, got) {
		for i := range want {
			if want[i] != got[i] {
				require.FailNow(t, fmt.Sprintf(what, args...), "byte %d is %#x instead of %#x", i, got[i], want[i])
			}
		}
	}
}

func (w truth) require(t testing.TB, c *Chain) {
	t.Helper()
	m := c.Manifest()
	require.Len(t, m.Points, len(w))
	for _, p := range m.Points {
		require.Len(t, p.Disks, len(w[p.Number]), "point %d", p.Number)
		for name, want := range w[p.Number] {
			requireDisk(t, c, p.Number, name, want)
		}
	}
}

func (w truth) clone() truth {
	c := make(truth)
	for n, disks := range w {
		c[n] = disks
	}
	return c
}
