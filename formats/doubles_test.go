package formats_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"

	"github.com/klauspost/compress/flate"

	"hypersdk/formats"
)

// memFile is a formats.File that can forget what was not synced.
type memFile struct {
	mu      sync.Mutex
	b       []byte
	durable []byte
	fail    error // of the next write
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return 0, f.fail
	}
	if end := off + int64(len(p)); end > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, end-int64(len(f.b)))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *memFile) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n <= int64(len(f.b)) {
		f.b = f.b[:n:n]
	} else {
		f.b = append(f.b, make([]byte, n-int64(len(f.b)))...)
	}
	return nil
}

func (f *memFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.durable = bytes.Clone(f.b)
	return nil
}

// crash is the file after a power cut: what was not synced is gone.
func (f *memFile) crash() *memFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &memFile{b: bytes.Clone(f.durable), durable: f.durable}
}

// memImage is a disk with a map of its own.
type memImage struct {
	b       []byte
	extents []formats.Extent // nil: all data
	reads   func(off int64, n int) error
}

func (m *memImage) Size() int64  { return int64(len(m.b)) }
func (m *memImage) Close() error { return nil }

func (m *memImage) ReadAt(p []byte, off int64) (int, error) {
	if m.reads != nil {
		if err := m.reads(off, len(p)); err != nil {
			return 0, err
		}
	}
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memImage) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if m.extents == nil {
		return formats.AllData(off, n)
	}
	return func(yield func(formats.Extent, error) bool) {
		for _, e := range m.extents {
			if e = e.Clip(off, n); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// memWriter is a plain target that starts as `old`.
type memWriter struct {
	mu     sync.Mutex
	b      []byte
	block  int64
	marks  []formats.Checkpoint
	saved  [][]byte // the target as each checkpoint saw it
	fail   error
	writes int
}

func newWriter(size, block int64) *memWriter { return &memWriter{b: make([]byte, size), block: block} }

func (w *memWriter) check(off, n int64) error {
	size := int64(len(w.b))
	if off < 0 || n < 0 || off+n > size || off%w.block != 0 || (off+n)%w.block != 0 && off+n != size {
		return fmt.Errorf("[%d, %d) of %d: %w", off, off+n, size, formats.ErrAlign)
	}
	return w.fail
}

func (w *memWriter) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes++
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return copy(w.b[off:], p), nil
}

func (w *memWriter) WriteZeroes(off, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.check(off, n); err != nil {
		return err
	}
	clear(w.b[off : off+n])
	return nil
}

func (w *memWriter) BlockSize() int64 { return w.block }

func (w *memWriter) Checkpoint(off int64) (formats.Checkpoint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cp := formats.Checkpoint{Off: off, Token: fmt.Sprint(len(w.marks))}
	w.marks = append(w.marks, cp)
	w.saved = append(w.saved, bytes.Clone(w.b[:off]))
	return cp, nil
}

func (w *memWriter) Sync(context.Context) error   { return nil }
func (w *memWriter) Commit(context.Context) error { return nil }
func (w *memWriter) Close() error                 { return nil }

// parallelWriter takes blocks in any order.
type parallelWriter struct{ *memWriter }

func (parallelWriter) Parallelism() int { return 4 }

// packingWriter stores blocks of 64 KiB packed and remembers how each came.
type packingWriter struct {
	*memWriter
	moved map[int64]formats.Packed
	sums  bool // wants to know the sum
}

func newPackingWriter(size int64) *packingWriter {
	return &packingWriter{memWriter: newWriter(size, 64<<10), moved: map[int64]formats.Packed{}}
}

func (w *packingWriter) Accepts(p formats.Packed, _ int64) bool {
	return p.Codec == formats.Deflate && (p.HasSum || !w.sums)
}

func (w *packingWriter) Pack(buf, block []byte) (formats.Packed, bool) {
	p := pack(block)
	if len(p.Bytes) >= len(block) {
		return formats.Packed{}, false
	}
	p.Bytes = append(buf, p.Bytes...)
	return p, true
}

func (w *packingWriter) WritePacked(off, n int64, p formats.Packed) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(flate.NewReader(bytes.NewReader(p.Bytes)), b); err != nil {
		return err
	}
	if w.sums && !p.HasSum {
		return errors.New("sum is missing")
	}
	w.mu.Lock()
	p.Bytes = bytes.Clone(p.Bytes)
	w.moved[off] = p
	w.mu.Unlock()
	_, err := w.WriteAt(b, off)
	return err
}

func pack(block []byte) formats.Packed {
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, 1)
	if err != nil {
		panic(err)
	}
	_, _ = z.Write(block)
	_ = z.Close()
	return formats.Packed{Codec: formats.Deflate, Bytes: out.Bytes()}
}

// packedImage stores every 64 KiB block packed.
type packedImage struct {
	*memImage
	rotten int64 // offset of a block whose bytes are wrong; -1: none
}

func (m packedImage) ReadPacked(_ context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	if off%(64<<10) != 0 {
		return formats.Packed{}, 0, nil
	}
	n := min(64<<10, m.Size()-off)
	p := pack(m.b[off : off+n])
	if off == m.rotten {
		p.Bytes[len(p.Bytes)/2] ^= 0x55
	}
	p.Bytes = append(buf[:0], p.Bytes...)
	return p, n, nil
}

// chunkStream delivers chunks as they stand.
type chunkStream struct {
	size   int64
	chunks []formats.Chunk
	end    error
}

func (s *chunkStream) Size() int64  { return s.size }
func (s *chunkStream) Close() error { return nil }

func (s *chunkStream) Next(context.Context) (formats.Chunk, error) {
	if len(s.chunks) == 0 {
		return formats.Chunk{}, s.end
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}

// content is a disk of runs: zeros, noise and text, by seed.
func content(seed uint64, size int64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	noise := rand.NewChaCha8([32]byte{byte(seed)})
	text := bytes.Repeat([]byte("all work and no play "), 1<<17)
	b := make([]byte, size)
	for at := int64(0); at < size; {
		n := min(1+r.Int64N(1<<r.IntN(22)), size-at)
		switch r.IntN(3) {
		case 1:
			_, _ = noise.Read(b[at : at+n])
		case 2:
			copy(b[at:at+n], text)
		}
		at += n
	}
	return b
}
