package raw

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"hypersdk/formats"
)

// Encode writes a disk front to back into w; what nobody writes becomes zeros.
func Encode(ctx context.Context, w io.Writer, size int64, o formats.CreateOptions) (formats.Writer, error) {
	if size < 0 {
		return nil, fmt.Errorf("raw: a disk of %d bytes: %w", size, formats.ErrFormat)
	}
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	return &encoder{ctx: ctx, w: w, size: size}, nil
}

type encoder struct {
	ctx  context.Context
	w    io.Writer
	size int64
	at   int64 // where the next byte goes
	err  error // of the pipe: nothing can be mended behind it
}

func (e *encoder) BlockSize() int64 { return 1 }

// advance writes zeros up to off.
func (e *encoder) advance(off int64) error {
	for e.err == nil && e.at < off {
		if err := context.Cause(e.ctx); err != nil {
			return err
		}
		var n int
		n, e.err = e.w.Write(zeros[:min(off-e.at, int64(len(zeros)))])
		e.at += int64(n)
	}
	return e.err
}

func (e *encoder) fits(off, n int64) error {
	switch {
	case e.err != nil:
		return e.err
	case off < 0 || n < 0 || off > e.size-n:
		return fmt.Errorf("raw: write of %d bytes at %d of %d", n, off, e.size)
	case off < e.at:
		return fmt.Errorf("raw: write at %d into a pipe that has come to %d", off, e.at)
	}
	return context.Cause(e.ctx)
}

func (e *encoder) WriteAt(p []byte, off int64) (int, error) {
	if err := e.fits(off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := e.advance(off); err != nil {
		return 0, err
	}
	var n int
	n, e.err = e.w.Write(p)
	e.at += int64(n)
	return n, e.err
}

// WriteZeroes leaves the zeros to what comes next.
func (e *encoder) WriteZeroes(off, n int64) error { return e.fits(off, n) }

// Checkpoint answers the beginning: a pipe cannot be gone on with.
func (e *encoder) Checkpoint(int64) (formats.Checkpoint, error) { return formats.Checkpoint{}, nil }

func (e *encoder) Sync(ctx context.Context) error { return context.Cause(ctx) }

func (e *encoder) Commit(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return e.advance(e.size)
}

func (e *encoder) Close() error {
	if e.err == nil {
		e.err = fs.ErrClosed
	}
	return nil
}
