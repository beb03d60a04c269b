package formatstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

func (h Harness) roundTrip(t *testing.T, size int64) {
	d := NewDisk(uint64(size), size)
	CheckImage(t, h.OpenDisk(t, h.CreateDisk(t, d)), d, !h.Dense)
}

// empty is a disk that nobody wrote to.
func (h Harness) empty(t *testing.T) {
	f := h.newFile(t)
	w, err := h.Format.Create(t.Context(), f, h.examSize(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, w.WriteZeroes(0, h.examSize()))
	require.NoError(t, w.Commit(t.Context()))
	img := h.OpenDisk(t, f)
	all, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	require.NoError(t, err)
	require.EqualValues(t, h.examSize(), len(all))
	require.True(t, isZero(all))
}

// packs has a writer with compression pack blocks, each on its own: what was packed before, and by how
// many at once, makes no difference.
func (h Harness) packs(t *testing.T) {
	w, err := h.Format.Create(t.Context(), NewMemFile(), h.examSize(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	require.Implements(t, (*formats.PackedWriter)(nil), w)
	p := w.(formats.PackedWriter)
	block := w.BlockSize()
	blocks := make([][]byte, min(max(4<<20/block, 4), 24))
	for i := range blocks {
		d := &Disk{size: block, parts: []part{{end: block, style: style(1 + i%3), seed: uint64(i)}}}
		blocks[i] = make([]byte, block)
		_, err := d.ReadAt(blocks[i], 0)
		require.NoError(t, noEOF(err))
	}
	want := make([]formats.Packed, len(blocks))
	for i, b := range blocks {
		pk, ok := p.Pack(nil, b)
		require.Equal(t, style(1+i%3) != noise, ok, "noise does not become smaller, text does")
		if !ok {
			continue
		}
		require.Less(t, int64(len(pk.Bytes)), block)
		require.Equal(t, b, Unpack(t, pk, block))
		require.True(t, p.Accepts(pk, block), "it stores what it packs")
		want[i] = pk
	}
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for g := range errs {
		wg.Go(func() {
			var buf []byte
			for i := range blocks {
				i = (i*(2*g+5) + g) % len(blocks)
				pk, ok := p.Pack(buf, blocks[i])
				if ok && !bytes.Equal(pk.Bytes, want[i].Bytes) {
					errs[g] = fmt.Errorf("block %d packed differently", i)
				}
				if ok {
					buf = pk.Bytes
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

func (h Harness) sameBytes(t *testing.T) {
	d := NewDisk(21, h.examSize())
	a, b := NewMemFile(), NewMemFile()
	h.createIn(t, a, d)
	h.createIn(t, b, d)
	RequireEqual(t, a, b)
}

// lastWriteCounts writes a disk in pieces out of order, some of them over others, then once more as it
// has to be. Formats that are written as streams have to refuse that.
func (h Harness) lastWriteCounts(t *testing.T) {
	d, junk := NewDisk(31, h.examSize()), NewDisk(32, h.examSize())
	f := NewMemFile()
	w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	block := max(w.BlockSize(), page)
	if h.Ascending {
		require.NoError(t, Fill(w, junk, block, 2*block))
		require.Error(t, Fill(w, NewDisk(33, 2*block), 0, block), "a block before one that is written already")
		return
	}
	pieces := make([][2]int64, 0)
	step := (d.Size()/9 + block) / block * block
	for off := int64(0); off < d.Size(); off += step {
		pieces = append(pieces, [2]int64{off, min(off+step, d.Size())})
	}
	for i := range pieces { // junk, last piece first
		p := pieces[len(pieces)-1-i]
		require.NoError(t, Fill(w, junk, p[0], p[1]))
	}
	require.NoError(t, w.WriteZeroes(pieces[0][0], pieces[0][1]-pieces[0][0]))
	for i := range pieces { // the disk, every other piece
		p := pieces[(i*2+1)%len(pieces)]
		require.NoError(t, Fill(w, d, p[0], p[1]))
	}
	for _, p := range pieces {
		require.NoError(t, Fill(w, d, p[0], p[1]))
	}
	require.NoError(t, w.Commit(t.Context()))
	CheckImage(t, h.OpenDisk(t, f), d, false)
	if h.Qemu != "" {
		h.qemuAgrees(t, f, d)
	}
}

// misfits are writes outside the disk and writes that are not whole blocks.
func (h Harness) misfits(t *testing.T) {
	size := h.examSize()
	f := NewMemFile()
	w, err := h.Format.Create(t.Context(), f, size, h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	block := w.BlockSize()
	require.Positive(t, block)
	require.Zero(t, block&(block-1), "the block size %d is a power of two", block)
	b := make([]byte, 2*block)
	for _, off := range []int64{-block, size / block * block, size + block, size/block*block + block, 1<<62 + block} {
		_, err := w.WriteAt(b, off)
		require.Error(t, err, "write of %d bytes at %d of %d", len(b), off, size)
		require.Error(t, w.WriteZeroes(off, 2*block), "zeros at %d of %d", off, size)
	}
	require.Error(t, w.WriteZeroes(0, -block))
	if block > 1 {
		_, err = w.WriteAt(b[:block], 1)
		require.ErrorIs(t, err, formats.ErrAlign)
		_, err = w.WriteAt(b[:block-1], 0)
		require.ErrorIs(t, err, formats.ErrAlign)
		require.ErrorIs(t, w.WriteZeroes(0, block+1), formats.ErrAlign)
		require.ErrorIs(t, w.WriteZeroes(block/2, block), formats.ErrAlign)
	}
	_, err = h.Format.Create(t.Context(), NewMemFile(), -1, h.Options, formats.Checkpoint{})
	require.Error(t, err, "a disk of negative size")
	_, err = h.Format.Create(t.Context(), NewMemFile(), size, h.Options, formats.Checkpoint{Off: block, Token: "\x00nonsense"})
	require.Error(t, err, "a checkpoint of nobody")
	// Refusals harm nobody.
	d := NewDisk(41, size)
	half := size / 2 / max(block, page) * max(block, page)
	require.NoError(t, Fill(w, d, 0, half))
	cp, err := w.Checkpoint(half)
	require.NoError(t, err)
	if cp != (formats.Checkpoint{}) {
		_, err = h.Format.Create(t.Context(), NewMemFile(), size, h.Options, cp)
		require.Error(t, err, "a checkpoint of another file")
	}
	require.NoError(t, Fill(w, d, half, size))
	require.NoError(t, w.Commit(t.Context()))
	require.NoError(t, w.Close())
	require.NoError(t, w.Close(), "closing twice")
	CheckImage(t, h.OpenDisk(t, f), d, false)
}

// uncommitted leaves a disk without Commit: it must not pass for a whole one.
func (h Harness) uncommitted(t *testing.T) {
	d := NewDisk(51, h.examSize())
	f := NewMemFile()
	w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, Fill(w, d, 0, d.Size()))
	_, err = w.Checkpoint(d.Size())
	require.NoError(t, err)
	require.NoError(t, w.Sync(t.Context()))
	require.NoError(t, w.Close())
	if h.Headerless {
		return
	}
	img, err := h.Format.Open(t.Context(), f, f.Size(), h.Open)
	if err == nil {
		err = img.Close()
		require.NoError(t, err)
		require.FailNow(t, "a disk that was never committed opens")
	}
}

// writeFaults lets a writer run out of space at many places, then go on from its last checkpoint with
// more room: the result must be what it would have been.
func (h Harness) writeFaults(t *testing.T) {
	d := NewDisk(61, h.examSize())
	want := NewMemFile()
	h.createIn(t, want, d)
	total := want.Stored()
	for i := range int64(6) {
		f := NewMemFile()
		full := &Faulty{File: f, Fault: NoSpace(total * i / 6)}
		cp, err := h.fillTo(t, full, d, formats.Checkpoint{})
		if err == nil {
			continue // it needed less
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		_, err = h.fillTo(t, f, d, cp)
		require.NoError(t, err)
		RequireEqual(t, want, f)
	}
	for _, op := range []Op{Truncate, Sync} {
		_, err := h.fillTo(t, &Faulty{File: NewMemFile(), Fault: After(op, 0, ErrInjected)}, d, formats.Checkpoint{})
		if op == Truncate && err == nil {
			continue // never truncates
		}
		require.ErrorIs(t, err, ErrInjected, "fault of op %d", op)
	}
}

// fillTo writes d from cp on with checkpoints, commits, and answers the last checkpoint that became
// durable and the first error.
func (h Harness) fillTo(t *testing.T, f formats.File, d *Disk, cp formats.Checkpoint) (formats.Checkpoint, error) {
	t.Helper()
	w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, cp)
	if err != nil {
		return cp, err
	}
	defer w.Close()
	last := cp
	step := h.step(w, d)
	for off := cp.Off; off < d.Size(); off += step {
		end := min(off+step, d.Size())
		if err := Fill(w, d, off, end); err != nil {
			// What failed must not be committed as if nothing had been.
			if !errors.Is(err, formats.ErrAlign) {
				require.Error(t, w.Commit(t.Context()), "commit after %v", err)
			}
			return last, err
		}
		next, err := w.Checkpoint(end)
		if err != nil {
			return last, err
		}
		if err := w.Sync(t.Context()); err != nil {
			return last, err
		}
		last = next
	}
	return last, w.Commit(t.Context())
}

// step is how far two checkpoints are apart.
func (h Harness) step(w formats.Writer, d *Disk) int64 {
	block := max(w.BlockSize(), 64<<10)
	return (d.Size()/7 + block) / block * block
}

// readFaults makes every read of some byte of the file fail, or end early, and lets the whole disk be
// read: either the byte is never needed, or the fault surfaces. It never becomes data.
func (h Harness) readFaults(t *testing.T) {
	d := NewDisk(71, h.examSize())
	f := h.CreateDisk(t, d)
	size := FileSize(t, f)
	for _, off := range strewn(size) {
		for _, fault := range []error{ErrInjected, ErrShort} {
			err := h.readAll(t, &sized{Faulty{File: f, Fault: At(Read, off, fault)}, size}, d)
			if err == nil {
				continue
			}
			require.NotErrorIs(t, err, errWrong, "%v at byte %d of the file", fault, off)
			if errors.Is(fault, ErrInjected) {
				require.ErrorIs(t, err, ErrInjected, "byte %d of the file", off)
			}
		}
	}
}

// truncated cuts the file at many places: it is refused, or reading it fails, or what was cut off did
// not matter.
func (h Harness) truncated(t *testing.T) {
	if h.Headerless {
		t.Log("any bytes are a disk of this format: a shorter file is a smaller disk")
		return
	}
	d := NewDisk(81, h.examSize())
	f := NewMemFile()
	h.createIn(t, f, d)
	for _, size := range strewn(f.Size()) {
		short := f.Clone()
		require.NoError(t, short.Truncate(size))
		err := h.readAll(t, short, d)
		require.NotErrorIs(t, err, errWrong, "cut at %d of %d", size, f.Size())
	}
}

// strewn are places all over a file: its ends, and some between.
func strewn(size int64) []int64 {
	var all []int64
	const parts = 12
	for i := range int64(parts) {
		for _, off := range []int64{size * i / parts, i * 512, size - 1 - i*512} {
			if off >= 0 && off < size {
				all = append(all, off)
			}
		}
	}
	return all
}

var errWrong = errors.New("wrong data without an error")

// readAll opens and reads a disk and compares it with d.
func (h Harness) readAll(t *testing.T, f io.ReaderAt, d *Disk) error {
	img, err := h.Format.Open(t.Context(), f, FileSize(t, f), h.Open)
	if err != nil {
		return err
	}
	defer img.Close()
	if img.Size() != d.Size() {
		return fmt.Errorf("size %d instead of %d: %w", img.Size(), d.Size(), errWrong)
	}
	got, want := make([]byte, 256<<10), make([]byte, 256<<10)
	for e, err := range img.Extents(t.Context(), 0, img.Size()) {
		if err != nil {
			return err
		}
		for at := e.Off; at < e.End(); {
			n := min(int64(len(got)), e.End()-at)
			if _, err := d.ReadAt(want[:n], at); err != nil {
				return err
			}
			clear(got)
			if e.Kind == formats.Data {
				m, err := img.ReadAt(got[:n], at)
				if err != nil && (!errors.Is(err, io.EOF) || int64(m) < n) {
					if errors.Is(err, io.EOF) {
						return fmt.Errorf("io.EOF at %d of %d: %w", at+int64(m), d.Size(), errWrong)
					}
					return err
				}
			}
			if !bytes.Equal(got[:n], want[:n]) {
				return fmt.Errorf("at %d: %w", at, errWrong)
			}
			at += n
		}
	}
	return nil
}

// sized is a faulty file that knows its size.
type sized struct {
	Faulty
	size int64
}

func (s *sized) Size() int64 { return s.size }

// overlay writes some of a disk over a backing file; the rest is absent from the overlay's own layer.
func (h Harness) overlay(t *testing.T) {
	opt := h.Options
	opt.Backing, opt.BackingFmt = "base.raw", "raw"
	block := h.blockSize(t)
	for _, size := range []int64{10 * block, 40*block + 3*h.unit()} {
		d := NewDelta(uint64(size), size, block)
		f := NewMemFile()
		w, err := h.Format.Create(t.Context(), f, size, opt, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, Fill(w, d, 0, size))
		require.NoError(t, w.Commit(t.Context()))
		require.NoError(t, w.Close())

		layer := h.Open
		layer.Layer = true
		img, err := h.Format.Open(t.Context(), f, f.Size(), layer)
		require.NoError(t, err)
		CheckImage(t, img, d, false)
		require.NoError(t, img.Close())

		// Without a way to its backing file the image is refused rather than read as zeros.
		_, err = h.Format.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.ErrorIs(t, err, formats.ErrFormat)
	}
}

func (h Harness) blockSize(t *testing.T) int64 {
	t.Helper()
	w, err := h.Format.Create(t.Context(), NewMemFile(), h.examSize(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	return w.BlockSize()
}
