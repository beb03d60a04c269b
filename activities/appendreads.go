package activities

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
)

// tapped is a disk of the platform as a point is read from it: what is read is held to the limits of the
// job, and counted. What the copy reads back from the chain is neither.
type tapped struct {
	formats.Image
	ctx   context.Context
	stop  <-chan struct{}
	limit *throttle
	m     *meter
	read  atomic.Int64
}

func (t *tapped) ReadAt(p []byte, off int64) (int, error) {
	if err := t.limit.wait(t.ctx, t.stop, t.m, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := t.Image.ReadAt(p, off)
	t.read.Add(int64(n))
	t.m.touch()
	return n, err
}

// confirm asks the platform, after the last read, whether all that was read is the disk as of its snapshot.
func (t *tapped) confirm(ctx context.Context) error {
	if c, ok := t.Image.(providers.Confirmer); ok {
		return c.Confirm(ctx)
	}
	return nil
}

// mapped is an image of which only some ranges hold anything; the rest reads as zeros.
type mapped struct {
	formats.Image
	ranges cbt.Set
}

// Extents yields the ranges as data, and zeros between them.
func (a mapped) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if off < 0 || n < 0 || off > a.Size()-n {
			yield(formats.Extent{}, refuse(providers.Invalid, "extents of %d bytes at %d lie outside of a disk of %d", n, off, a.Size()))
			return
		}
		at, end := off, off+n
		for r := range a.ranges.Clip(off, n).All() {
			if err := context.Cause(ctx); err != nil {
				yield(formats.Extent{}, err)
				return
			}
			if r.Off > at && !yield(formats.Extent{Off: at, Len: r.Off - at, Kind: formats.Zero}, nil) {
				return
			}
			if !yield(formats.Extent{Off: r.Off, Len: r.Len, Kind: formats.Data}, nil) {
				return
			}
			at = r.End()
		}
		if at < end {
			yield(formats.Extent{Off: at, Len: end - at, Kind: formats.Zero}, nil)
		}
	}
}

const (
	// mergeWithin is the most that is read at once, and what it is aligned to: the window of a copy.
	mergeWithin = 2 << 20
	// mergeGap is the widest gap that may be cheaper to read than to ask once more, and mergeStep what the
	// gaps between changes are multiples of.
	mergeGap  = 256 << 10
	mergeStep = 64 << 10
)

// merged joins ranges over the widest gaps for which all that is read remains within a twelfth of what has
// to be.
func merged(ranges cbt.Set) cbt.Set {
	most := ranges.Bytes() + ranges.Bytes()/12
	for gap := int64(mergeGap); gap > 0; gap -= mergeStep {
		if m := ranges.Coalesce(gap); m.Bytes() <= most {
			return m
		}
	}
	return ranges
}

// gathered is an image that is read in a few ranges more than are wanted, so that it is asked less often:
// a read of a part of a range that was merged reads all of that, as far as it lies within one window, and
// keeps it for those that come for the rest.
type gathered struct {
	formats.Image
	ranges cbt.Set // merged

	mu   sync.Mutex
	kept map[int64]*stretch // by where they begin
}

// stretch is what was read at once.
type stretch struct {
	ready chan struct{}
	off   int64
	data  []byte
	err   error
}

// gather reads img by merged ranges of wanted, each of which is read once, and in order.
func gather(img formats.Image, wanted cbt.Set) formats.Image {
	m := merged(wanted)
	if m.Len() == wanted.Len() {
		return img
	}
	return &gathered{Image: img, ranges: m, kept: map[int64]*stretch{}}
}

// around is the stretch that holds n bytes at off.
func (g *gathered) around(off, n int64) (cbt.Range, bool) {
	at := off - off%mergeWithin
	for r := range g.ranges.Clip(at, mergeWithin).All() {
		if r.Off <= off && off+n <= r.End() {
			return r, r.Len > n
		}
	}
	return cbt.Range{}, false
}

func (g *gathered) ReadAt(p []byte, off int64) (int, error) {
	r, more := g.around(off, int64(len(p)))
	if !more {
		return g.Image.ReadAt(p, off)
	}
	g.mu.Lock()
	s := g.kept[r.Off]
	first := s == nil
	if first {
		s = &stretch{ready: make(chan struct{}), off: r.Off}
		g.kept[r.Off] = s
	}
	g.mu.Unlock()
	if first {
		s.data = make([]byte, r.Len)
		n, err := g.Image.ReadAt(s.data, r.Off)
		if err != nil && !(errors.Is(err, io.EOF) && n == len(s.data)) {
			s.err = err
		}
		close(s.ready)
	}
	<-s.ready
	if s.err != nil || off+int64(len(p)) == r.End() { // nobody comes after, or another try reads again
		g.mu.Lock()
		if g.kept[r.Off] == s {
			delete(g.kept, r.Off)
		}
		g.mu.Unlock()
	}
	if s.err != nil {
		return 0, s.err
	}
	return copy(p, s.data[off-s.off:]), nil
}
