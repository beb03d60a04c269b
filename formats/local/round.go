package local

import (
	"context"
	"fmt"
	"io"
	"iter"

	"hypersdk/formats"
)

// sector is what most formats count a disk in.
const sector = 512

// rounded is a disk with zeros up to the next sector.
type rounded struct {
	formats.Image
	size int64
}

// RoundUp makes a disk a whole number of sectors.
func RoundUp(img formats.Image) formats.Image {
	if img.Size()%sector == 0 {
		return img
	}
	return rounded{img, (img.Size() + sector - 1) / sector * sector}
}

func (r rounded) Size() int64 { return r.size }

func (r rounded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	b := p[:min(int64(len(p)), r.size-off)]
	n := int(min(int64(len(b)), max(r.Image.Size()-off, 0)))
	if n > 0 {
		if got, err := r.Image.ReadAt(b[:n], off); got < n {
			return got, err
		}
	}
	clear(b[n:])
	if len(b) < len(p) {
		return len(b), io.EOF
	}
	return len(b), nil
}

func (r rounded) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if off < 0 || n < 0 || off > r.size-n {
			yield(formats.Extent{}, fmt.Errorf("map of [%d, %d) of %d bytes", off, off+n, r.size))
			return
		}
		end := r.Image.Size()
		if here := min(n, end-off); here > 0 {
			for e, err := range r.Image.Extents(ctx, off, here) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		if at := max(off, end); at < off+n {
			yield(formats.Extent{Off: at, Len: off + n - at, Kind: formats.Zero}, nil)
		}
	}
}
