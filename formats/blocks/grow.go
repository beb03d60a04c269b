package blocks

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"hypersdk/formats"
)

// Layout is where an image that grows keeps its table and its blocks. A block is stored where the
// last one ended, in the order of their first writes.
type Layout struct {
	Name  string // of format and subformat, for errors
	Size  int64  // of the disk
	Block int64  // bytes of the disk that one entry of the table stands for
	Head  int64  // bytes at the beginning of the file that are zero until Commit

	Table   int64 // offset of the table in the file
	Entries int64 // of the table, those that stand for no block included
	Width   int   // bytes of an entry, 4 or 8
	Order   binary.ByteOrder
	Index   func(block int64) int64 // the entry of a block
	Free    uint64                  // entry of a block that is not stored
	First   uint64                  // entry of the first stored block
	Step    uint64                  // from one stored block's entry to the next one's

	Data   int64  // offset of the first stored block in the file
	Stride int64  // from one stored block to the next
	Before []byte // stored before the bytes of each block

	// Commit writes what is missing beside the marks, which it answers. stored is the number of
	// blocks that are stored, end the length of the file.
	Commit func(f formats.File, stored, end int64, s Seed) ([]Mark, error)
}

// growing writes a Layout.
type growing struct {
	writer
	Layout
	table *Table

	mu   sync.Mutex
	next int64 // number of the next block that is stored
	high int64 // end of what was written of the disk: blocks behind it hold nothing but zeros
}

// Grow writes an image of a Layout into f, from the beginning or from a checkpoint.
func Grow(ctx context.Context, f formats.File, l Layout, from formats.Checkpoint) (formats.Writer, error) {
	key := fmt.Sprintf("%s %d %d", l.Name, l.Size, l.Block)
	w := &growing{writer: writer{name: l.Name, key: key, f: f, ctx: ctx, size: l.Size}, Layout: l}
	// The file reaches at least to Data from now on, so the table can be read whole.
	w.table = NewTable(File{ReaderAt: f, Size: l.Data}, l.Table, l.Entries, l.Width, l.Order)
	if from == (formats.Checkpoint{}) {
		return w, w.begin()
	}
	return w, w.resume(from)
}

func (w *growing) begin() error {
	if err := w.truncate(0); err != nil {
		return err
	}
	if err := w.truncate(w.Data); err != nil {
		return err
	}
	if w.Free == 0 {
		return nil
	}
	if err := WriteTable(w.f, w.Table, w.Entries, w.Width, w.Order, func(int64) uint64 { return w.Free }); err != nil {
		return fmt.Errorf("%s: table: %w", w.name, err)
	}
	return nil
}

// resume goes back to a checkpoint: blocks that were stored after it are forgotten and cut off, so
// that what follows is stored as it was then.
func (w *growing) resume(from formats.Checkpoint) error {
	next, err := w.number(from, w.blocks())
	if err != nil {
		return err
	}
	last := w.Data - 1
	if next > 0 {
		last = w.Data + (next-1)*w.Stride
	}
	if err := w.has(last); err != nil {
		return err
	}
	if err := w.put(zeroBuf[:w.Head], 0); err != nil {
		return err
	}
	if err := w.truncate(w.Data + next*w.Stride); err != nil {
		return err
	}
	w.next = next
	kept := int64(0)
	for b := int64(0); b < w.blocks(); {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		i := w.Index(b)
		v, n, err := w.table.Run(i, w.blocks()-b)
		if err != nil {
			return fmt.Errorf("%s: table: %w", w.name, err)
		}
		if v == w.Free {
			// A run may cross entries that stand for no block: they are Free as well.
			for b++; b < w.blocks() && w.Index(b) < i+n; b++ {
			}
			continue
		}
		if w.stored(v) {
			kept++
			w.high = min((b+1)*w.Block, w.size)
		} else if err := w.set(b, w.Free); err != nil {
			return err
		}
		b++
	}
	if kept != next {
		return fmt.Errorf("%s: the table has %d of the %d blocks of its checkpoint: %w", w.name, kept, next, formats.ErrCorrupt)
	}
	return nil
}

func (w *growing) blocks() int64 { return (w.size + w.Block - 1) / w.Block }

// stored says whether an entry is that of one of the blocks stored so far.
func (w *growing) stored(v uint64) bool {
	return v >= w.First && (v-w.First)%w.Step == 0 && (v-w.First)/w.Step < uint64(w.next)
}

// set writes an entry of the table, and the page of it that is in memory.
func (w *growing) set(block int64, v uint64) error {
	at := w.Index(block) * int64(w.Width)
	b, err := w.table.pages.from(at)
	if err != nil {
		return fmt.Errorf("%s: table: %w", w.name, err)
	}
	old := w.table.value(b)
	w.table.put(b, v)
	if err := w.put(b[:w.Width], w.Table+at); err != nil {
		w.table.put(b, old)
		return err
	}
	return nil
}

// find answers where the bytes of a block are stored in the file, or -1.
func (w *growing) find(block int64) (int64, error) {
	v, _, err := w.table.Run(w.Index(block), 1)
	if err != nil {
		return 0, fmt.Errorf("%s: table: %w", w.name, err)
	}
	if v == w.Free {
		return -1, nil
	}
	if !w.stored(v) {
		return 0, fmt.Errorf("%s: table: entry %#x of block %d is none that was written: %w", w.name, v, block, formats.ErrCorrupt)
	}
	return w.Data + int64((v-w.First)/w.Step)*w.Stride + int64(len(w.Before)), nil
}

// store makes room for a block and answers where its bytes are.
func (w *growing) store(block int64) (int64, error) {
	at := w.Data + w.next*w.Stride
	if len(w.Before) > 0 {
		if err := w.put(w.Before, at); err != nil {
			return 0, err
		}
	}
	if err := w.set(block, w.First+uint64(w.next)*w.Step); err != nil {
		return 0, err
	}
	w.next++
	return at + int64(len(w.Before)), nil
}

func (w *growing) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.write(p, off)
	return n, w.fail(err)
}

func (w *growing) write(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		in := off % w.Block
		part := p[done:][:min(int64(len(p)-done), w.Block-in)]
		at, err := w.find(off / w.Block)
		if err == nil && at < 0 && !zeros(part) {
			at, err = w.store(off / w.Block)
		}
		if err != nil {
			return done, err
		}
		if at >= 0 {
			if err := w.put(part, at+in); err != nil {
				return done, err
			}
			w.high = max(w.high, off+int64(len(part)))
		}
		done, off = done+len(part), off+int64(len(part))
	}
	return done, nil
}

// WriteZeroes stores zeros only where something else may be stored.
func (w *growing) WriteZeroes(off, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(off, n); err != nil {
		return err
	}
	return w.fail(w.writeZeroes(off, min(off+n, w.high)))
}

// writeZeroes stores zeros in what is stored of [off, end).
func (w *growing) writeZeroes(off, end int64) error {
	for off < end {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		b := off / w.Block
		v, run, err := w.table.Run(w.Index(b), w.blocks()-b)
		if err != nil {
			return fmt.Errorf("%s: table: %w", w.name, err)
		}
		if v == w.Free {
			i := w.Index(b)
			for b++; b < w.blocks() && w.Index(b) < i+run; b++ {
			}
			off = b * w.Block
			continue
		}
		at, err := w.find(b)
		if err != nil {
			return err
		}
		in := off % w.Block
		n := min(end-off, w.Block-in)
		if err := w.zero(at+in, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (w *growing) Checkpoint(off int64) (formats.Checkpoint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checkpoint(off, w.next)
}

func (w *growing) Commit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.alive("commit"); err != nil {
		return err
	}
	end := w.Data + w.next*w.Stride
	if err := w.truncate(end); err != nil {
		return err
	}
	seed, err := w.identify(ctx)
	if err != nil {
		return err
	}
	marks, err := w.Layout.Commit(w.f, w.next, end, seed)
	if err != nil {
		return fmt.Errorf("%s: commit: %w", w.name, err)
	}
	return w.finish(ctx, marks)
}

// identify reads what the Seed is made of: the table, and what is stored of the first MiB.
func (w *growing) identify(ctx context.Context) (Seed, error) {
	h := w.seed()
	if err := digest(ctx, h, w.f, w.Table, w.Entries*int64(w.Width)); err != nil {
		return Seed{}, fmt.Errorf("%s: table: %w", w.name, err)
	}
	for off := int64(0); off < min(w.size, identity); off += w.Block {
		at, err := w.find(off / w.Block)
		if err != nil {
			return Seed{}, err
		}
		if at < 0 {
			continue
		}
		if err := digest(ctx, h, w.f, at, min(w.Block, identity-off, w.size-off)); err != nil {
			return Seed{}, fmt.Errorf("%s: disk: %w", w.name, err)
		}
	}
	return Seed(h.Sum(nil)), nil
}
