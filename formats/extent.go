package formats

import (
	"context"
	"fmt"
	"iter"
	"math"
)

// Clip is the part of e inside [off, off+n); its Len is 0 where they do not meet.
func (e Extent) Clip(off, n int64) Extent {
	lo, hi := max(e.Off, off), min(e.End(), off+n)
	return Extent{Off: lo, Len: max(hi-lo, 0), Kind: e.Kind}
}

// AllData is the map of a source that cannot tell zeros from data.
func AllData(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if n > 0 {
			yield(Extent{Off: off, Len: n, Kind: Data}, nil)
		}
	}
}

// Merged joins neighbours of one kind.
func Merged(seq iter.Seq2[Extent, error]) iter.Seq2[Extent, error] {
	return merged(seq, math.MaxInt64)
}

// MergedAhead joins neighbours of one kind, but data only until it is 64 MiB long: who reads as he goes need
// not wait until the map of a full disk is known to its end, nor have it forgotten by then.
func MergedAhead(seq iter.Seq2[Extent, error]) iter.Seq2[Extent, error] {
	return merged(seq, 64<<20)
}

func merged(seq iter.Seq2[Extent, error], most int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var cur Extent
		for e, err := range seq {
			switch {
			case err != nil:
				if cur.Len > 0 && !yield(cur, nil) {
					return
				}
				yield(Extent{}, err)
				return
			case e.Len == 0:
			case cur.Len > 0 && e.Kind == cur.Kind && e.Off == cur.End() && (e.Kind != Data || cur.Len < most):
				cur.Len += e.Len
			default:
				if cur.Len > 0 && !yield(cur, nil) {
					return
				}
				cur = e
			}
		}
		if cur.Len > 0 {
			yield(cur, nil)
		}
	}
}

// tiled passes the extents of img on and fails where they do not tile [off, off+n): a gap that went
// unnoticed would be a hole in the copy.
func tiled(ctx context.Context, img Image, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		at, end := off, off+n
		for e, err := range img.Extents(ctx, off, n) {
			if err == nil && (e.Off != at || e.Len <= 0 || e.End() > end) {
				err = fmt.Errorf("extent [%d, %d) where one from %d on was due: %w", e.Off, e.End(), at, ErrCorrupt)
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			at = e.End()
			if !yield(e, nil) {
				return
			}
		}
		if at != end {
			yield(Extent{}, fmt.Errorf("extents end at %d instead of %d: %w", at, end, ErrCorrupt))
		}
	}
}
