package blocks

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"

	"hypersdk/formats"
)

// Plain is where an image keeps a disk in one piece.
type Plain struct {
	Name string // of format and subformat, for errors
	Size int64  // of the disk
	Head int64  // bytes at the beginning of the file that are zero until Commit
	Data int64  // offset of the disk in the file
	End  int64  // offset of what follows the disk; the file has that length until Commit
	// Commit writes what is missing beside the marks, which it answers.
	Commit func(f formats.File, s Seed) ([]Mark, error)
}

// touch is how finely is known what was written: 8 MiB of memory for a disk of 64 TiB.
const touch = 1 << 20

// parallel writers are more than any copy uses.
const parallel = 64

// fixed writes a Plain. Every byte of the disk has its place, so blocks may come in any order.
type fixed struct {
	writer
	Plain
	touched []atomic.Uint64 // bit i: something may be stored in the i-th touch bytes
}

// Fix writes an image of a Plain into f, from the beginning or from a checkpoint.
func Fix(ctx context.Context, f formats.File, l Plain, from formats.Checkpoint) (formats.Writer, error) {
	key := fmt.Sprintf("%s %d %d", l.Name, l.Size, l.End)
	w := &fixed{writer: writer{name: l.Name, key: key, f: f, ctx: ctx, size: l.Size}, Plain: l}
	w.touched = make([]atomic.Uint64, l.Size/touch/64+1)
	keep := int64(0)
	if from != (formats.Checkpoint{}) {
		if _, err := w.number(from, 0); err != nil {
			return nil, err
		}
		if from.Off > 0 {
			if err := w.has(l.Data + from.Off - 1); err != nil {
				return nil, err
			}
			keep = l.Data + from.Off
			if err := w.put(zeroBuf[:l.Head], 0); err != nil {
				return nil, err
			}
			w.touch(0, from.Off)
		}
	}
	// What was stored behind the checkpoint is cut off: all there is zero again.
	if err := w.truncate(keep); err != nil {
		return nil, err
	}
	return w, w.truncate(l.End)
}

// Parallelism lets blocks come in any order; into a file of this system from one goroutine, since the
// file system would let others in one after the other, and have them spin while they wait.
func (w *fixed) Parallelism() int {
	if _, ok := w.f.(syscall.Conn); ok {
		return 1
	}
	return parallel
}

// touch notes that something may be stored in [off, off+n).
func (w *fixed) touch(off, n int64) {
	for i := off / touch; i*touch < off+n; i++ {
		w.touched[i/64].Or(1 << (i % 64))
	}
}

func (w *fixed) WriteAt(p []byte, off int64) (int, error) {
	if err := w.admit(off, int64(len(p))); err != nil {
		return 0, err
	}
	w.touch(off, int64(len(p)))
	if err := w.put(p, w.Data+off); err != nil {
		return 0, w.fail(err)
	}
	return len(p), nil
}

// WriteZeroes stores zeros only where something else may be stored.
func (w *fixed) WriteZeroes(off, n int64) error {
	if err := w.admit(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		i := off / touch
		if i%64 == 0 && w.touched[i/64].Load() == 0 {
			off = min(end, (i+64)*touch)
			continue
		}
		n := min(end-off, (i+1)*touch-off)
		if w.touched[i/64].Load()>>(i%64)&1 == 1 {
			if err := w.zero(w.Data+off, n); err != nil {
				return w.fail(err)
			}
		}
		off += n
	}
	return nil
}

func (w *fixed) Checkpoint(off int64) (formats.Checkpoint, error) { return w.checkpoint(off, 0) }

func (w *fixed) Commit(ctx context.Context) error {
	if err := w.alive("commit"); err != nil {
		return err
	}
	h := w.seed()
	if err := digest(ctx, h, w.f, w.Data, min(w.size, identity)); err != nil {
		return fmt.Errorf("%s: disk: %w", w.name, err)
	}
	marks, err := w.Plain.Commit(w.f, Seed(h.Sum(nil)))
	if err != nil {
		return fmt.Errorf("%s: commit: %w", w.name, err)
	}
	return w.finish(ctx, marks)
}
