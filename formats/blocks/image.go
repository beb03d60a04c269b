package blocks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"hypersdk/formats"
)

// Origin is where the bytes of a piece of a disk come from.
type Origin uint8

const (
	// Zero reads as zeros.
	Zero Origin = iota
	// Here is in this file.
	Here
	// Below is what the parent holds.
	Below
)

// Piece is the beginning of a stretch of a disk that comes from one place.
type Piece struct {
	Len    int64 // at least 1
	Origin Origin
	Off    int64 // in the file, where it is Here
}

// Disk is what a format knows of a disk that it has opened.
type Disk struct {
	Format string // its name, for errors
	File   File
	Size   int64 // of the disk, bytes
	// Locate finds where the bytes [off, off+n) of the disk begin to come from. It answers a piece of
	// at most n bytes, and may be called from several goroutines.
	Locate func(off, n int64) (Piece, error)
	// Parent is what is Below; nil: this is one layer, and what is below is Absent.
	Parent *Parent
}

// image is a Disk as an Image.
type image struct {
	Disk
	ctx context.Context
}

// NewImage makes an Image of a disk. Closing it closes its parents, not its file.
func NewImage(ctx context.Context, d Disk) formats.Image { return &image{Disk: d, ctx: ctx} }

func (d *image) Size() int64 { return d.Disk.Size }

func (d *image) Close() error {
	if d.Parent == nil {
		return nil
	}
	return d.Parent.Close()
}

// locate looks up a piece and makes sure that it may be believed.
func (d *image) locate(off, n int64) (Piece, error) {
	if err := context.Cause(d.ctx); err != nil {
		return Piece{}, err
	}
	p, err := d.Locate(off, n)
	if err != nil {
		return p, fmt.Errorf("%s: %w", d.Format, err)
	}
	p.Len = min(p.Len, n)
	return p, nil
}

func (d *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at %d", d.Format, off)
	}
	done := 0
	for done < len(p) && off < d.Disk.Size {
		at, err := d.locate(off, min(int64(len(p)-done), d.Disk.Size-off))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(at.Len)]
		switch at.Origin {
		case Zero:
			clear(part)
		case Here:
			if err := d.File.ReadFull(part, at.Off); err != nil {
				return done, fmt.Errorf("%s: %w", d.Format, err)
			}
		case Below:
			if err := d.readBelow(part, off); err != nil {
				return done, err
			}
		}
		done += len(part)
		off += at.Len
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readBelow reads what the parent holds, and zeros where it is shorter.
func (d *image) readBelow(p []byte, off int64) error {
	if d.Parent == nil {
		return fmt.Errorf("%s: bytes [%d, %d) are the parent's: %w", d.Format, off, off+int64(len(p)), formats.ErrAbsent)
	}
	n := int(max(0, min(int64(len(p)), d.Parent.Size()-off)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	got, err := d.Parent.ReadAt(p[:n], off)
	if got == n {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("ends at %d: %w", off+int64(got), formats.ErrCorrupt)
	}
	return fmt.Errorf("%s: parent %s: %w", d.Format, d.Parent.Name, err)
}

func (d *image) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if off < 0 || n < 0 || off > d.Disk.Size || n > d.Disk.Size-off {
		return func(yield func(formats.Extent, error) bool) {
			yield(formats.Extent{}, fmt.Errorf("%s: extents of %d bytes at %d of %d", d.Format, n, off, d.Disk.Size))
		}
	}
	return formats.Merged(func(yield func(formats.Extent, error) bool) {
		for end := off + n; off < end; {
			if err := context.Cause(ctx); err != nil {
				yield(formats.Extent{}, err)
				return
			}
			p, err := d.locate(off, end-off)
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			if !d.extentsOf(ctx, p, off, yield) {
				return
			}
			off += p.Len
		}
	})
}

// extentsOf yields the extents of one piece; false ends the walk.
func (d *image) extentsOf(ctx context.Context, p Piece, off int64, yield func(formats.Extent, error) bool) bool {
	e := formats.Extent{Off: off, Len: p.Len, Kind: formats.Data}
	switch {
	case p.Origin == Zero:
		e.Kind = formats.Zero
	case p.Origin == Below && d.Parent == nil:
		e.Kind = formats.Absent
	case p.Origin == Below:
		return d.extentsBelow(ctx, e, yield)
	}
	return yield(e, nil)
}

func (d *image) extentsBelow(ctx context.Context, e formats.Extent, yield func(formats.Extent, error) bool) bool {
	n := max(0, min(e.Len, d.Parent.Size()-e.Off))
	if n > 0 {
		for below, err := range d.Parent.Extents(ctx, e.Off, n) {
			if err != nil {
				err = fmt.Errorf("%s: parent %s: %w", d.Format, d.Parent.Name, err)
			}
			if !yield(below, err) || err != nil {
				return false
			}
		}
	}
	if n == e.Len {
		return true
	}
	return yield(formats.Extent{Off: e.Off + n, Len: e.Len - n, Kind: formats.Zero}, nil)
}
