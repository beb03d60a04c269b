package formats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// slack is how much more than a window its blocks may take as a stream has them: what does not become
// smaller grows by a few bytes each.
const slack = 64 << 10

// planImage cuts an image along windows; windows of nothing but zeros, or of nothing at all, are
// joined.
func (c *copier) planImage(ctx context.Context, img Image, emit func(*piece) error) error {
	var cur *piece
	flush := func() error {
		p := cur
		cur = nil
		if p == nil {
			return nil
		}
		return emit(p)
	}
	next := c.opt.From.Off
	for e, err := range MergedAhead(tiled(ctx, img, next, c.size-next)) {
		if err != nil {
			if cur != nil {
				c.opt.Buffers.put(cur)
			}
			return err
		}
		for e.Len > 0 {
			if cur == nil && c.stopped() {
				return nil
			}
			if cur == nil && e.Kind != Data && e.Off%c.window == 0 && (e.Len >= c.window || e.End() == c.size) {
				// A long run without data needs no buffer.
				n := e.Len
				if e.End() != c.size {
					n -= n % c.window
				}
				p, err := c.opt.Buffers.get(ctx, 0)
				if err != nil {
					return err
				}
				p.off, p.n, p.zero, p.absent = e.Off, n, e.Kind == Zero, e.Kind == Absent
				if err := emit(p); err != nil {
					return err
				}
				e.Off, e.Len = e.Off+n, e.Len-n
				continue
			}
			if cur == nil {
				if cur, err = c.opt.Buffers.get(ctx, c.footprint()); err != nil {
					return err
				}
				cur.off = e.Off
			}
			part := e.Clip(e.Off, c.window-e.Off%c.window)
			cur.extents = append(cur.extents, part)
			cur.n += part.Len
			e.Off, e.Len = e.Off+part.Len, e.Len-part.Len
			if (cur.off+cur.n)%c.window == 0 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// planStream gathers the chunks of a stream by window.
func (c *copier) planStream(ctx context.Context, src Stream, emit func(*piece) error) error {
	var cur *piece
	passed := int64(0) // everything before it was passed on
	flush := func() error {
		if cur == nil {
			return nil
		}
		p := cur
		cur = nil
		if p.late {
			c.late = bounded(append(c.late, blocksOf(p, c.size)...))
		}
		passed = max(passed, p.off+p.n)
		return emit(p)
	}
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		ch, err := src.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if ch.Off < 0 || ch.Len <= 0 || ch.Len > c.size-ch.Off {
			return fmt.Errorf("stream: a chunk of %d bytes at %d of %d: %w", ch.Len, ch.Off, c.size, ErrCorrupt)
		}
		if ch.Off/c.window != (ch.Off+ch.Len-1)/c.window {
			return fmt.Errorf("stream: a chunk of %d bytes at %d crosses a boundary of %d: %w", ch.Len, ch.Off, c.window, ErrFormat)
		}
		at := ch.Off - ch.Off%c.window
		if cur != nil && (cur.off != at || !cur.fits(ch)) {
			if err := flush(); err != nil {
				return err
			}
		}
		if cur == nil {
			if err := c.zeroes(ctx, passed, at, emit); err != nil {
				return err
			}
			if cur, err = c.opt.Buffers.get(ctx, c.footprint()); err != nil {
				return err
			}
			cur.off, cur.n, cur.late = at, min(c.window, c.size-at), at < passed
			cur.raw = slices.Grow(cur.raw, int(c.window+slack))
			passed = max(passed, at)
		}
		cur.keep(ch)
		c.read.Add(int64(len(ch.Packed.Bytes)))
		if ch.Packed.Codec == NoCodec {
			c.read.Add(int64(len(ch.Data)))
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return c.zeroes(ctx, passed, c.size, emit)
}

// zeroes passes on what a stream left out.
func (c *copier) zeroes(ctx context.Context, from, to int64, emit func(*piece) error) error {
	if from >= to {
		return nil
	}
	p, err := c.opt.Buffers.get(ctx, 0)
	if err != nil {
		return err
	}
	p.off, p.n, p.zero = from, to-from, true
	return emit(p)
}

// maxLate bounds the memory for what comes late. Of a stream without any order, all is late.
const maxLate = 4096

// bounded answers what covers all of late, in not too many stretches.
func bounded(late []Extent) []Extent {
	if len(late) <= maxLate {
		return late
	}
	lo, hi := late[0].Off, late[0].End()
	for _, e := range late {
		lo, hi = min(lo, e.Off), max(hi, e.End())
	}
	return append(late[:0], Extent{Off: lo, Len: hi - lo, Kind: Data})
}

// blocksOf is the stretch of whole blocks that a late piece touches.
func blocksOf(p *piece, size int64) []Extent {
	var out []Extent
	for _, ch := range p.chunks {
		lo := ch.Off - ch.Off%BlockSize
		hi := min((ch.Off+ch.Len+BlockSize-1)/BlockSize*BlockSize, size)
		if n := len(out); n > 0 && lo <= out[n-1].End() && lo >= out[n-1].Off {
			out[n-1].Len = max(out[n-1].Len, hi-out[n-1].Off)
			continue
		}
		out = append(out, Extent{Off: lo, Len: hi - lo, Kind: Data})
	}
	return out
}
