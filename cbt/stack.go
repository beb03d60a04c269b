package cbt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sort"
	"sync"

	"hypersdk/formats"
)

// Stack reads layers through one another: the base first, then deltas, the newest last. What is Absent
// in a layer is what the ones below it hold. The disk has the size of the newest; where a layer is
// shorter than the ones above it, what they leave to it behind its end is zeros, whatever lies below: so
// a disk that shrank and grew again does not show what was cut off. What is absent from the base stays
// Absent.
//
// Closing the stack closes its layers. It is a formats.PackedReader where one of them is. Who holds what
// is found layer by layer for long stretches at once, and kept for the last ones: reading costs about as
// much however many layers there are. Layers must not change.
func Stack(layers ...formats.Image) (formats.Image, error) {
	if len(layers) == 0 {
		return nil, errors.New("stack: no layers")
	}
	s := &stack{layers: layers, size: layers[len(layers)-1].Size()}
	for _, l := range layers {
		if _, ok := l.(formats.PackedReader); ok {
			return &packedStack{s}, nil
		}
	}
	return s, nil
}

type stack struct {
	layers []formats.Image // the base first
	size   int64

	mu    sync.Mutex
	clock int64
	kept  map[int64]*stretch // by number
}

type packedStack struct{ *stack }

// Owners of a tile that are no layer.
const (
	nobody  = -1 // zeros behind the end of a layer
	unknown = -2
)

// tile is an extent and the layer that answers for it.
type tile struct {
	formats.Extent
	layer int
}

const (
	stretchSize = 64 << 20 // that is resolved at once to be read
	keptMost    = 16       // stretches
	maxTiles    = 8192     // that are resolved at once to be mapped
)

// stretch is the tiles of a part of the disk that is being read.
type stretch struct {
	once  sync.Once
	tiles []tile
	err   error
	used  int64
}

// Size is the size of the newest layer.
func (s *stack) Size() int64 { return s.size }

// Close closes all layers.
func (s *stack) Close() error {
	var errs []error
	for _, l := range s.layers {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// resolve answers who holds [off, off+n), or the beginning of it where that takes more than most tiles.
func (s *stack) resolve(ctx context.Context, off, n int64, most int) ([]tile, error) {
	tiles := []tile{{formats.Extent{Off: off, Len: n}, unknown}}
	var spare []tile // two take turns: there is one pass a layer
	for i := len(s.layers) - 1; i >= 0; i-- {
		b := tiling{in: tiles, out: spare[:0]}
		end := tiles[len(tiles)-1].End()
		if in := min(end, s.layers[i].Size()); in > off {
			for e, err := range s.layers[i].Extents(ctx, off, in-off) {
				if err != nil {
					return nil, err
				}
				if e.Off != b.at(off) || e.Len <= 0 || e.End() > in {
					return nil, fmt.Errorf("stack: layer %d: extent [%d, %d) where one from %d on was due: %w", i, e.Off, e.End(), b.at(off), formats.ErrCorrupt)
				}
				if e.Kind == formats.Absent && i > 0 {
					b.put(e, unknown)
				} else {
					b.put(e, i)
				}
				if len(b.out) > most {
					break
				}
			}
			if at := b.at(off); at < in && len(b.out) <= most {
				return nil, fmt.Errorf("stack: layer %d: extents end at %d instead of %d: %w", i, at, in, formats.ErrCorrupt)
			}
		}
		if at := b.at(off); at < end && len(b.out) <= most {
			b.put(formats.Extent{Off: at, Len: end - at, Kind: formats.Zero}, nobody)
		}
		tiles, spare = b.out, tiles
	}
	return slices.Clip(tiles), nil
}

// tiling puts a layer below tiles.
type tiling struct {
	in, out []tile
}

// at is how far it has come.
func (b *tiling) at(off int64) int64 {
	if len(b.out) == 0 {
		return off
	}
	return b.out[len(b.out)-1].End()
}

// put makes layer answer for the part of e that nobody answers for yet.
func (b *tiling) put(e formats.Extent, layer int) {
	for len(b.in) > 0 && b.in[0].Off < e.End() {
		t := &b.in[0]
		part := tile{t.Clip(e.Off, e.Len), t.layer}
		if t.layer == unknown {
			part.Kind, part.layer = e.Kind, layer
		}
		if l := len(b.out); l > 0 && b.out[l-1].layer == part.layer && b.out[l-1].Kind == part.Kind {
			b.out[l-1].Len += part.Len
		} else {
			b.out = append(b.out, part)
		}
		if t.End() > e.End() {
			t.Off, t.Len = e.End(), t.End()-e.End()
			return
		}
		b.in = b.in[1:]
	}
}

// Extents maps the disk. It looks ahead the farther, the less there is.
func (s *stack) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return formats.MergedAhead(func(yield func(formats.Extent, error) bool) {
		if err := inside(off, n, s.size); err != nil {
			yield(formats.Extent{}, err)
			return
		}
		ahead := int64(stretchSize)
		for end := off + n; off < end; {
			tiles, err := s.look(ctx, off, min(ahead, end-off))
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			if ahead *= 2; len(tiles) > 1 || tiles[0].Kind == formats.Data {
				ahead = stretchSize
			}
			for _, t := range tiles {
				e := t.Clip(off, end-off)
				if off += e.Len; e.Len == 0 {
					break
				}
				if !yield(e, nil) {
					return
				}
			}
		}
	})
}

// look answers the tiles from off on. A stretch of them is kept to be read; where there is nothing in
// one, the next answer is about more, and is not.
func (s *stack) look(ctx context.Context, off, n int64) ([]tile, error) {
	if n > stretchSize {
		return s.resolve(ctx, off, n, maxTiles)
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	all, err := s.tilesAt(off)
	if err != nil {
		return nil, err
	}
	return all[sort.Search(len(all), func(i int) bool { return all[i].End() > off }):], nil
}

// tilesAt answers the tiles of the stretch that off lies in.
func (s *stack) tilesAt(off int64) ([]tile, error) {
	number := off / stretchSize
	s.mu.Lock()
	st := s.kept[number]
	if st == nil {
		st = new(stretch)
		if s.kept == nil {
			s.kept = make(map[int64]*stretch)
		}
		if len(s.kept) >= keptMost {
			oldest := int64(-1)
			for n, k := range s.kept {
				if oldest < 0 || k.used < s.kept[oldest].used {
					oldest = n
				}
			}
			delete(s.kept, oldest)
		}
		s.kept[number] = st
	}
	s.clock++
	st.used = s.clock
	s.mu.Unlock()
	st.once.Do(func() {
		// The layers end when the context that they were opened with does.
		first := number * stretchSize
		st.tiles, st.err = s.resolve(context.Background(), first, min(stretchSize, s.size-first), stretchSize)
	})
	if st.err != nil {
		s.mu.Lock()
		if s.kept[number] == st {
			delete(s.kept, number)
		}
		s.mu.Unlock()
	}
	return st.tiles, st.err
}

// ReadAt reads the disk.
func (s *stack) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("stack: read at %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	b := p[:min(int64(len(p)), s.size-off)]
	for done := 0; done < len(b); {
		n, err := s.readStretch(b[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	if len(b) < len(p) {
		return len(b), io.EOF
	}
	return len(b), nil
}

// readStretch fills b as far as the stretch goes that off lies in.
func (s *stack) readStretch(b []byte, off int64) (int, error) {
	tiles, err := s.tilesAt(off)
	if err != nil {
		return 0, err
	}
	done := 0
	for i := sort.Search(len(tiles), func(i int) bool { return tiles[i].End() > off }); i < len(tiles) && done < len(b); i++ {
		at := off + int64(done)
		to := b[done:min(int64(len(b)), int64(done)+tiles[i].End()-at)]
		switch tiles[i].Kind {
		case formats.Data:
			if err := readFull(s.layers[tiles[i].layer], to, at); err != nil {
				return done, err
			}
		case formats.Zero:
			clear(to)
		default:
			return done, fmt.Errorf("stack: read of %d bytes at %d: %w", len(to), at, formats.ErrAbsent)
		}
		done += len(to)
	}
	return done, nil
}

// ReadPacked answers a block that one layer holds whole.
func (s *packedStack) ReadPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	if off < 0 || off >= s.size {
		return formats.Packed{}, 0, nil
	}
	tiles, err := s.tilesAt(off)
	if err != nil {
		return formats.Packed{}, 0, err
	}
	t := tiles[sort.Search(len(tiles), func(i int) bool { return tiles[i].End() > off })]
	if t.Kind != formats.Data {
		return formats.Packed{}, 0, nil
	}
	src, ok := s.layers[t.layer].(formats.PackedReader)
	if !ok {
		return formats.Packed{}, 0, nil
	}
	p, n, err := src.ReadPacked(ctx, off, buf)
	// A block that goes on in another stretch is left to be read plain.
	if err != nil || n == 0 || n > t.End()-off {
		return formats.Packed{}, 0, err
	}
	return p, n, nil
}
