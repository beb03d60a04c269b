package cbt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"hypersdk/formats"
)

// View is img with only ranges in it: the rest is Absent, so that a copy of it is an incremental copy.
// Closing it closes img. It is a formats.PackedReader where img is one.
func View(img formats.Image, ranges Set) formats.Image {
	v := &view{img, ranges.Clip(0, img.Size())}
	if p, ok := img.(formats.PackedReader); ok {
		return &packedView{v, p}
	}
	return v
}

type view struct {
	formats.Image
	ranges Set
}

type packedView struct {
	*view
	packed formats.PackedReader
}

// ReadAt reads what is in the view.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if n := min(int64(len(p)), v.Size()-off); off >= 0 && n > 0 && !v.ranges.Covers(off, n) {
		return 0, fmt.Errorf("read of %d bytes at %d: %w", n, off, formats.ErrAbsent)
	}
	return v.Image.ReadAt(p, off)
}

// Extents yields what img says of the ranges, and Absent between them.
func (v *view) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if err := inside(off, n, v.Size()); err != nil {
			yield(formats.Extent{}, err)
			return
		}
		at, end := off, off+n
		for r := range v.ranges.within(off, end) {
			if r.Off > at && !yield(formats.Extent{Off: at, Len: r.Off - at, Kind: formats.Absent}, nil) {
				return
			}
			for e, err := range v.Image.Extents(ctx, r.Off, r.Len) {
				if !yield(e, err) || err != nil {
					return
				}
			}
			at = r.End()
		}
		if at < end {
			yield(formats.Extent{Off: at, Len: end - at, Kind: formats.Absent}, nil)
		}
	}
}

// ReadPacked answers blocks that lie in the view whole.
func (v *packedView) ReadPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	if !v.ranges.Covers(off, 1) {
		return formats.Packed{}, 0, nil
	}
	p, n, err := v.packed.ReadPacked(ctx, off, buf)
	if err != nil || n == 0 || !v.ranges.Covers(off, n) {
		return formats.Packed{}, 0, err
	}
	return p, n, nil
}

// inside says whether [off, off+n) is a stretch of a disk of size bytes.
func inside(off, n, size int64) error {
	if off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("map of %d bytes at %d of a disk of %d", n, off, size)
	}
	return nil
}

// readFull fills p from off on. An image that ends early is corrupt, whatever it says.
func readFull(img io.ReaderAt, p []byte, off int64) error {
	n, err := img.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("read of %d bytes at %d gave %d: %w", len(p), off, n, formats.ErrCorrupt)
	}
	return err
}
