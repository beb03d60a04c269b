package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// sparseWriter writes a monolithicSparse disk: header, descriptor, two grain directories and their
// tables, and grains in the order of their first writes. The header comes last, so that a disk that was
// never completed is none.
type sparseWriter struct {
	ctx     context.Context
	f       formats.File
	size    int64
	adapter string
	key     string // what a checkpoint must have been taken with
	at      sparseLayout

	mu    sync.Mutex
	pages tablePages
	next  int64 // number of the next grain that is stored
	high  int64 // end of what was stored of the disk
	state error // why nothing can be written any more
}

// sparseLayout is where the parts of a monolithicSparse file are, in bytes. Tables begin on 4 KiB.
type sparseLayout struct {
	tables   int64 // how many
	rgd, rgt int64
	gd, gt   int64
	data     int64 // of the first grain
}

func layOut(size int64) sparseLayout {
	l := sparseLayout{tables: (size + tableEntries*grainSize - 1) / (tableEntries * grainSize)}
	directory, tables := up(l.tables*4, pageSize), up(l.tables*tableSectors*sector, pageSize)
	l.rgd = up((descriptorAt+descriptorSectors)*sector, pageSize)
	l.rgt = l.rgd + directory
	l.gd = l.rgt + tables
	l.gt = l.gd + directory
	l.data = up(l.gt+tables, grainSize)
	return l
}

func createSparse(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	if err := fits(size); err != nil {
		return nil, err
	}
	if _, err := describe(MonolithicSparse, Extent{}, 0, o.Adapter); err != nil {
		return nil, err
	}
	l := layOut(size)
	if l.data > maxFile-grainSize {
		return nil, fmt.Errorf("vmdk: a disk of %d bytes: its tables alone would fill the 2 TiB that a sparse extent can address: %w", size, formats.ErrFormat)
	}
	w := &sparseWriter{ctx: ctx, f: f, size: size, adapter: o.Adapter, at: l,
		key: fmt.Sprintf("%s %d %s", MonolithicSparse, size, o.Adapter)}
	w.pages = tablePages{f: f, at: [2]int64{l.gt, l.rgt}, held: make(map[int64]*tablePage)}
	if from == (formats.Checkpoint{}) {
		if err := w.truncate(0); err != nil {
			return nil, err
		}
		return w, w.truncate(l.data)
	}
	return w, w.resume(from)
}

// maxFile is what a table of sectors of 32 bits can address.
const maxFile = 1 << 32 * sector

func (w *sparseWriter) truncate(n int64) error {
	if err := w.f.Truncate(n); err != nil {
		return fmt.Errorf("vmdk: length %d: %w", n, err)
	}
	return nil
}

// resume goes back to a checkpoint: grains stored after it are forgotten and cut off.
func (w *sparseWriter) resume(from formats.Checkpoint) error {
	grains := (w.size + grainSize - 1) / grainSize
	token, ok := strings.CutPrefix(from.Token, w.key+" at ")
	next, err := strconv.ParseInt(token, 10, 64)
	if !ok || err != nil || next < 0 || next > grains || from.Off < 0 || from.Off > w.size {
		return fmt.Errorf("vmdk: checkpoint %q at %d is not of this image: %w", from.Token, from.Off, formats.ErrCorrupt)
	}
	end := w.at.data + next*grainSize
	var last [1]byte // of the tables, or the first of the last grain
	if n, err := w.f.ReadAt(last[:], max(w.at.data-1, end-grainSize)); n != 1 {
		if err == nil || errors.Is(err, io.EOF) {
			err = formats.ErrCorrupt
		}
		return fmt.Errorf("vmdk: the file does not hold what its checkpoint says: %w", err)
	}
	if _, err := w.f.WriteAt(make([]byte, sector), 0); err != nil {
		return fmt.Errorf("vmdk: header: %w", err)
	}
	if err := w.truncate(end); err != nil {
		return err
	}
	w.next = next
	kept, err := w.pages.keep(w.ctx, grains, uint32(w.at.data/sector), uint32(end/sector))
	if err != nil {
		return fmt.Errorf("vmdk: grain tables: %w", err)
	}
	if kept.n != next {
		return fmt.Errorf("vmdk: the tables have %d of the %d grains of their checkpoint: %w", kept.n, next, formats.ErrCorrupt)
	}
	w.high = min(kept.end*grainSize, w.size)
	return nil
}

func (w *sparseWriter) BlockSize() int64 { return grainSize }

func (w *sparseWriter) admit(off, n int64) error {
	if w.state != nil {
		return fmt.Errorf("vmdk: write at %d: %w", off, w.state)
	}
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > w.size || n > w.size-off {
		return fmt.Errorf("vmdk: write of %d bytes at %d of a disk of %d", n, off, w.size)
	}
	if off%grainSize != 0 || n%grainSize != 0 && off+n != w.size {
		return fmt.Errorf("vmdk: write of %d bytes at %d: %w", n, off, formats.ErrAlign)
	}
	return nil
}

func (w *sparseWriter) fail(err error) error {
	w.state = err
	return err
}

// WriteAt stores grains, those that follow one another in the file by one write.
func (w *sparseWriter) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(off, int64(len(p))); err != nil {
		return 0, err
	}
	first, place := 0, int64(-1) // the run that is gathered: where in p, where in the file
	for done := 0; ; {
		at := int64(-1)
		n := min(grainSize, len(p)-done)
		if n > 0 {
			var err error
			if at, err = w.room(off+int64(done), p[done:done+n]); err != nil {
				return first, w.fail(err)
			}
		}
		if place >= 0 && (n == 0 || at != place+int64(done-first)) {
			if _, err := w.f.WriteAt(p[first:done], place); err != nil {
				return first, w.fail(fmt.Errorf("vmdk: %d bytes at %d of the file: %w", done-first, place, err))
			}
			place = -1
		}
		if n == 0 {
			return len(p), nil
		}
		if place < 0 {
			first, place = done, at
		}
		done += n
	}
}

// room answers where in the file a grain goes, or -1 where it is zeros and need not be stored.
func (w *sparseWriter) room(off int64, b []byte) (int64, error) {
	entry, err := w.pages.entry(off / grainSize)
	if err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint32(entry.b)
	if v != 0 {
		return int64(v) * sector, nil
	}
	if zeros(b) {
		return -1, nil
	}
	at := w.at.data + w.next*grainSize
	if at > maxFile-grainSize {
		return 0, fmt.Errorf("vmdk: the file would grow beyond the 2 TiB that its tables can address: %w", formats.ErrFormat)
	}
	binary.LittleEndian.PutUint32(entry.b, uint32(at/sector))
	entry.page.dirty = true
	w.next++
	w.high = max(w.high, off+int64(len(b)))
	return at, nil
}

// WriteZeroes stores zeros only where something else may be stored.
func (w *sparseWriter) WriteZeroes(off, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(off, n); err != nil {
		return err
	}
	for end := min(off+n, w.high); off < end; off += grainSize {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		entry, err := w.pages.entry(off / grainSize)
		if err != nil {
			return w.fail(err)
		}
		if v := binary.LittleEndian.Uint32(entry.b); v != 0 {
			if _, err := w.f.WriteAt(zeroGrain[:], int64(v)*sector); err != nil {
				return w.fail(fmt.Errorf("vmdk: zeros at %d of the file: %w", int64(v)*sector, err))
			}
		}
	}
	return nil
}

func (w *sparseWriter) Checkpoint(off int64) (formats.Checkpoint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != nil {
		return formats.Checkpoint{}, fmt.Errorf("vmdk: checkpoint: %w", w.state)
	}
	if err := w.pages.flush(); err != nil {
		return formats.Checkpoint{}, w.fail(err)
	}
	return formats.Checkpoint{Off: off, Token: fmt.Sprintf("%s at %d", w.key, w.next)}, nil
}

func (w *sparseWriter) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("vmdk: sync: %w", err)
	}
	return nil
}

func (w *sparseWriter) Commit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != nil {
		return fmt.Errorf("vmdk: commit: %w", w.state)
	}
	if err := w.complete(ctx); err != nil {
		return w.fail(err)
	}
	w.state = errCommitted
	return nil
}

// complete writes all that is missing, the header last.
func (w *sparseWriter) complete(ctx context.Context) error {
	if err := w.pages.flush(); err != nil {
		return err
	}
	if err := w.truncate(w.at.data + w.next*grainSize); err != nil {
		return err
	}
	for _, d := range [][2]int64{{w.at.rgd, w.at.rgt}, {w.at.gd, w.at.gt}} {
		if err := w.directory(ctx, d[0], d[1]); err != nil {
			return err
		}
	}
	h := header{
		version: 1, flags: flagNewLines | flagRedundant,
		capacity: uint64(up(w.size, sector) / sector), grain: grainSectors,
		descriptor: descriptorAt, descriptorSz: descriptorSectors, entries: tableEntries,
		rgd: uint64(w.at.rgd / sector), gd: uint64(w.at.gd / sector), overhead: uint64(w.at.data / sector),
	}
	id, err := w.identify()
	if err != nil {
		return err
	}
	d, err := describe(MonolithicSparse, Extent{Access: "RW", Sectors: int64(h.capacity), Type: "SPARSE", Name: "disk.vmdk"}, id, w.adapter)
	if err != nil {
		return err
	}
	text := make([]byte, descriptorSectors*sector)
	copy(text, d.text())
	if err := w.put(text, descriptorAt*sector); err != nil {
		return err
	}
	if err := w.Sync(ctx); err != nil {
		return err
	}
	if err := w.put(h.encode(), 0); err != nil {
		return err
	}
	return w.Sync(ctx)
}

func (w *sparseWriter) put(b []byte, off int64) error {
	if _, err := w.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("vmdk: %d bytes at %d of the file: %w", len(b), off, err)
	}
	return nil
}

// directory writes a grain directory whose tables follow one another from byte gt on.
func (w *sparseWriter) directory(ctx context.Context, gd, gt int64) error {
	var b []byte
	for i := range w.at.tables {
		b = binary.LittleEndian.AppendUint32(b, uint32(gt/sector+i*tableSectors))
		if len(b) < flushSize && i+1 < w.at.tables {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := w.put(b, gd); err != nil {
			return err
		}
		gd, b = gd+int64(len(b)), b[:0]
	}
	return nil
}

// identify makes the content id of where the grains are and of what is stored at the beginning.
func (w *sparseWriter) identify() (uint32, error) {
	key := fmt.Appendf(nil, "%s %d %d ", MonolithicSparse, w.size, w.next)
	b := make([]byte, grainSize)
	file := blocks.File{ReaderAt: w.f, Size: w.at.data + w.next*grainSize}
	for off := int64(0); off < min(w.size, identity); off += grainSize {
		entry, err := w.pages.entry(off / grainSize)
		if err != nil {
			return 0, err
		}
		v := binary.LittleEndian.Uint32(entry.b)
		key = binary.BigEndian.AppendUint32(key, v)
		if v == 0 {
			continue
		}
		if err := file.ReadFull(b, int64(v)*sector); err != nil {
			return 0, fmt.Errorf("vmdk: %w", err)
		}
		key = append(key, b...)
	}
	return contentID(key), nil
}

func (w *sparseWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == nil {
		w.state = errClosed
	}
	return nil
}
