package qcow2

import (
	"context"
	"fmt"
	"io/fs"
	"sync"

	"hypersdk/formats"
)

// Create lays a disk out in f, from the beginning or from a checkpoint. Clusters are allocated in the
// order in which they are written, so the same writes give the same file.
//
// Where the disk has no backing file, zeros take no room. Blocks may be written in any order and more
// than once; what a later write replaces leaves a hole that is not used again.
//
// Where the order is not that of the disk there may be fewer checkpoints than were asked for: one that
// is asked for while blocks behind it are written already is the last one before. A write below the
// last checkpoint voids all of them: going on from one is refused then, and the zero Checkpoint is all
// there is.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	w, err := newWriter(f, size, o)
	if err != nil {
		return nil, err
	}
	if from == (formats.Checkpoint{}) {
		err = w.begin()
	} else {
		err = w.resume(from)
	}
	if err == nil && w.prealloc {
		err = w.preallocate(ctx, from.Off)
	}
	if err != nil {
		return nil, err
	}
	if w.codec == formats.NoCodec {
		return w, nil
	}
	return newPackedWriter(w, o.Level)
}

func newWriter(f formats.File, size int64, o formats.CreateOptions) (*writer, error) {
	l, err := newLayout(size, o.ClusterSize)
	if err != nil {
		return nil, err
	}
	w := &writer{layout: l, f: f, opt: o, l1: make([]uint64, l.l1Entries), l1Lo: l.l1Entries,
		l2s: newStore(f, l.cluster()), refs: newStore(f, l.cluster())}
	switch o.Compression {
	case "":
	case "zlib":
		w.codec = formats.Deflate
	case "zstd":
		w.codec = formats.Zstd
	default:
		return nil, unsupported("compression %q: zlib and zstd are", o.Compression)
	}
	switch o.Prealloc {
	case "", "off":
	case "metadata":
		w.prealloc = true
		if w.codec != formats.NoCodec || o.Backing != "" {
			return nil, unsupported("preallocation with compression or a backing file")
		}
	default:
		return nil, unsupported("preallocation %q: off and metadata are", o.Prealloc)
	}
	if o.Subformat != "" {
		return nil, unsupported("subformat %q", o.Subformat)
	}
	return w, l.checkBacking(o)
}

// writer writes plain clusters.
type writer struct {
	layout
	f        formats.File
	opt      formats.CreateOptions
	codec    formats.Codec
	prealloc bool

	l1         []uint64
	l1Lo, l1Hi int64 // entries that changed since they were written
	l2s        store
	refs       store
	next       int64 // the first cluster of the file that was never allocated
	pack       int64 // offset in the file behind the last packed cluster
	end        int64 // of the file

	high int64              // the disk was written up to there
	mark formats.Checkpoint // the last one given out
	void bool               // a write came below mark

	mu  sync.Mutex // of err: Sync runs beside writes
	err error      // the first failure, or fs.ErrClosed: a file that lacks a write is never committed
}

// begin lays out the front of an empty file.
func (w *writer) begin() error {
	if err := w.f.Truncate(0); err != nil {
		return fmt.Errorf("qcow2: empty the file: %w", err)
	}
	w.next = w.start
	if err := w.extend(); err != nil {
		return err
	}
	for r := range w.first {
		if _, err := w.refs.fresh(w.slot(r) << w.clusterBits); err != nil {
			return err
		}
	}
	for c := range w.start {
		if err := w.count(c, 1); err != nil {
			return err
		}
	}
	return nil
}

// extend makes the file as long as what is allocated of it.
func (w *writer) extend() error {
	if end := w.next << w.clusterBits; w.end < end {
		if err := w.f.Truncate(end); err != nil {
			return fmt.Errorf("qcow2: set the file's size to %d: %w", end, err)
		}
		w.end = end
	}
	return nil
}

func (w *writer) write(b []byte, off int64) error {
	if _, err := w.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("qcow2: write at %d of the file: %w", off, err)
	}
	w.end = max(w.end, off+int64(len(b)))
	return nil
}

// fail keeps the first error.
func (w *writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// BlockSize is the size of a cluster.
func (w *writer) BlockSize() int64 { return w.cluster() }

// fits examines a write before it changes anything.
func (w *writer) fits(off, n int64) error {
	if off < 0 || n < 0 || off > w.size-n {
		return fmt.Errorf("qcow2: write of %d bytes at %d of %d", n, off, w.size)
	}
	if off%w.cluster() != 0 || n%w.cluster() != 0 && off+n != w.size {
		return fmt.Errorf("qcow2: write of %d bytes at %d in clusters of %d: %w", n, off, w.cluster(), formats.ErrAlign)
	}
	if err := w.failure(); err != nil {
		return fmt.Errorf("qcow2: write at %d: %w", off, err)
	}
	if off < w.mark.Off && n > 0 {
		if err := w.voidCheckpoints(); err != nil {
			return w.fail(err)
		}
	}
	w.high = max(w.high, off+n)
	return nil
}

// WriteAt stores p plain, also where the disk is compressed: what is to be packed goes through Pack
// and WritePacked.
func (w *writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.fits(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n, err := w.writeRun(p[done:], off+int64(done))
		if err != nil {
			return done, w.fail(err)
		}
		done += n
	}
	return done, nil
}

// writeRun writes as many clusters of p as lie together in the file.
func (w *writer) writeRun(p []byte, off int64) (int, error) {
	var start, n int64
	for n < int64(len(p)) {
		host, ok, err := w.plainAt(off+n, start+n, n == 0)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		if n == 0 {
			start = host
		}
		n += min(w.cluster(), int64(len(p))-n)
	}
	return int(n), w.write(p[:n], start)
}

// plainAt allocates a plain cluster for the one at off, or takes the one it has. Unless anywhere is
// true it does so only where that lies at want.
func (w *writer) plainAt(off, want int64, anywhere bool) (host int64, ok bool, err error) {
	t, i, err := w.l2(off, anywhere)
	if err != nil || t == nil {
		return 0, false, err
	}
	e := t.entry(i)
	if host := int64(e & offsetMask); e&flagPacked == 0 && host != 0 {
		return host, anywhere || host == want, nil
	}
	if !anywhere && (w.next<<w.clusterBits != want || w.isSlot(w.next)) {
		return 0, false, nil
	}
	if host, err = w.take(); err != nil {
		return 0, false, err
	}
	if err := w.release(e); err != nil {
		return 0, false, err
	}
	t.setEntry(i, uint64(host)|flagCopied)
	return host, true, nil
}

// WriteZeroes frees whole clusters; over a backing file they are marked as zeros.
func (w *writer) WriteZeroes(off, n int64) error {
	fresh := w.high
	if err := w.fits(off, n); err != nil {
		return err
	}
	if w.prealloc {
		return w.zeroInPlace(off, min(off+n, fresh))
	}
	for end := off + n; off < end; {
		if w.l1[off/w.cover()] == 0 && w.opt.Backing == "" {
			off = (off/w.cover() + 1) * w.cover()
			continue
		}
		if err := w.zeroCluster(off); err != nil {
			return w.fail(err)
		}
		off += w.cluster()
	}
	return nil
}

func (w *writer) zeroCluster(off int64) error {
	t, i, err := w.l2(off, true)
	if err != nil {
		return err
	}
	var zeroed uint64
	if w.opt.Backing != "" {
		zeroed = flagZero
	}
	e := t.entry(i)
	if e == zeroed {
		return nil
	}
	if err := w.release(e); err != nil {
		return err
	}
	t.setEntry(i, zeroed)
	return nil
}

// zeroInPlace keeps preallocated clusters allocated.
func (w *writer) zeroInPlace(off, end int64) error {
	if off >= end {
		return nil // never written: it is a hole
	}
	zeros := make([]byte, min(end-off, max(w.cluster(), 256<<10)))
	for off < end {
		n, err := w.writeRun(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return w.fail(err)
		}
		off += int64(n)
	}
	return nil
}

// preallocate allocates all clusters of the disk from off on.
func (w *writer) preallocate(ctx context.Context, off int64) error {
	for ; off < w.size; off += w.cluster() {
		if off%w.cover() == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		if _, _, err := w.plainAt(off, 0, true); err != nil {
			return err
		}
	}
	return w.extend()
}

// Sync makes the file durable.
func (w *writer) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// What a failed sync has lost, a later one does not notice.
	if err := w.f.Sync(); err != nil {
		return w.fail(fmt.Errorf("qcow2: %w", err))
	}
	return nil
}

// Commit writes the tables, and then the header that makes the file an image.
func (w *writer) Commit(ctx context.Context) error {
	if err := w.failure(); err != nil {
		return fmt.Errorf("qcow2: commit: %w", err)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.commit(ctx); err != nil {
		return w.fail(err)
	}
	return w.Close()
}

func (w *writer) commit(ctx context.Context) error {
	table, clusters, err := w.finishTables()
	if err != nil {
		return err
	}
	if err := w.flushTables(); err != nil {
		return err
	}
	if err := w.extend(); err != nil {
		return err
	}
	if err := w.Sync(ctx); err != nil {
		return err
	}
	if err := w.write(w.header(table, clusters), 0); err != nil {
		return err
	}
	return w.Sync(ctx)
}

// Close releases the writer.
func (w *writer) Close() error {
	_ = w.fail(fs.ErrClosed)
	return nil
}
