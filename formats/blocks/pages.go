// Package blocks is what the disk formats share that find large blocks of a disk through one table:
// VHD, VHDX and VDI. It reads tables and bitmaps through a few pages whatever their size, answers
// reads and extents from a format's own lookup, follows chains of parents, and writes images that
// grow block by block or have every block at a fixed place.
//
// A format says where things are; this package does the rest.
package blocks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"hypersdk/formats"
)

// File is the file that an image is read from, as it was when it was opened.
type File struct {
	io.ReaderAt
	Size int64 // bytes
}

// ReadFull fills p from off on. What lies behind the end of the file is corrupt: the image promised it.
func (f File) ReadFull(p []byte, off int64) error {
	if off < 0 || off > f.Size || int64(len(p)) > f.Size-off {
		return fmt.Errorf("%d bytes at %d of a file of %d: it ends early: %w", len(p), off, f.Size, formats.ErrCorrupt)
	}
	n, err := f.ReaderAt.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read of %d bytes at %d gave %d: the file ends early: %w", len(p), off, n, formats.ErrCorrupt)
	}
	return fmt.Errorf("read of %d bytes at %d: %w", len(p), off, err)
}

// Holds says whether [off, off+n) lies within the file.
func (f File) Holds(off, n int64) bool {
	return off >= 0 && n >= 0 && off <= f.Size && n <= f.Size-off
}

// A page holds 1024 entries of four bytes: 2 GiB of a VHD. 64 of them are a quarter of a MiB an image.
const (
	pageSize  = 4 << 10
	pageCount = 64
)

// Pages is a window on [off, off+n) of a file that keeps the pages used last. Several goroutines may
// use it at once; a page that is being read keeps nobody from another.
type Pages struct {
	file File
	off  int64
	n    int64

	mu    sync.Mutex
	held  map[int64]*page
	clock int64
}

type page struct {
	once sync.Once
	b    []byte
	err  error
	used int64
}

// NewPages reads [off, off+n) of f in pages.
func NewPages(f File, off, n int64) *Pages {
	return &Pages{file: f, off: off, n: n, held: make(map[int64]*page)}
}

// from answers what the page that holds byte at has from there on.
func (p *Pages) from(at int64) ([]byte, error) {
	if at < 0 || at >= p.n {
		return nil, fmt.Errorf("byte %d of %d: %w", at, p.n, formats.ErrCorrupt)
	}
	no := at / pageSize
	pg := p.page(no)
	pg.once.Do(func() {
		b := make([]byte, min(pageSize, p.n-no*pageSize))
		if pg.err = p.file.ReadFull(b, p.off+no*pageSize); pg.err == nil {
			pg.b = b
		}
	})
	if pg.err != nil {
		p.drop(no, pg)
		return nil, pg.err
	}
	return pg.b[at%pageSize:], nil
}

func (p *Pages) page(no int64) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock++
	pg := p.held[no]
	if pg == nil {
		if len(p.held) >= pageCount {
			p.evict()
		}
		pg = &page{}
		p.held[no] = pg
	}
	pg.used = p.clock
	return pg
}

func (p *Pages) evict() {
	oldest, used := int64(0), p.clock+1
	for no, pg := range p.held {
		if pg.used < used {
			oldest, used = no, pg.used
		}
	}
	delete(p.held, oldest)
}

// drop forgets a page that could not be read, so that the next one who needs it tries again.
func (p *Pages) drop(no int64, pg *page) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[no] == pg {
		delete(p.held, no)
	}
}

// Table is an array of numbers in a file.
type Table struct {
	pages *Pages
	width int
	order binary.ByteOrder
	n     int64
}

// NewTable is n numbers of width 4 or 8 bytes that begin at off of f.
func NewTable(f File, off, n int64, width int, order binary.ByteOrder) *Table {
	return &Table{pages: NewPages(f, off, n*int64(width)), width: width, order: order, n: n}
}

// Len is how many numbers the table has.
func (t *Table) Len() int64 { return t.n }

// Run answers number i and how many numbers from i on, at most limit, are the same. It may stop
// short of the last one, but not before the first.
func (t *Table) Run(i, limit int64) (v uint64, n int64, err error) {
	b, err := t.pages.from(i * int64(t.width))
	if err != nil {
		return 0, 0, fmt.Errorf("entry %d: %w", i, err)
	}
	v = t.value(b)
	n = 1
	for limit = min(limit, int64(len(b)/t.width)); n < limit && t.value(b[n*int64(t.width):]) == v; n++ {
	}
	return v, n, nil
}

func (t *Table) value(b []byte) uint64 {
	if t.width == 4 {
		return uint64(t.order.Uint32(b))
	}
	return t.order.Uint64(b)
}

func (t *Table) put(b []byte, v uint64) { putNumber(b, t.width, t.order, v) }

func putNumber(b []byte, width int, order binary.ByteOrder, v uint64) {
	if width == 4 {
		order.PutUint32(b, uint32(v))
	} else {
		order.PutUint64(b, v)
	}
}

// WriteTable writes n numbers of width 4 or 8 bytes at off of f.
func WriteTable(f io.WriterAt, off, n int64, width int, order binary.ByteOrder, number func(i int64) uint64) error {
	buf := make([]byte, 0, min(n*int64(width), int64(len(zeroBuf))))
	for i := int64(0); i < n; i++ {
		buf = buf[:len(buf)+width]
		putNumber(buf[len(buf)-width:], width, order, number(i))
		if len(buf) == cap(buf) || i == n-1 {
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
			off, buf = off+int64(len(buf)), buf[:0]
		}
	}
	return nil
}

// Bitmap is a map of bits in a file.
type Bitmap struct {
	Pages *Pages
	Off   int64 // of its first byte, in Pages
	// HighFirst: the first bit of a byte is its highest (VHD); else its lowest (VHDX).
	HighFirst bool
}

// Run answers bit i and how many bits from i on, at most limit, are the same. It may stop short of
// the last one, but not before the first.
func (m Bitmap) Run(i, limit int64) (set bool, n int64, err error) {
	b, err := m.Pages.from(m.Off + i/8)
	if err != nil {
		return false, 0, fmt.Errorf("bit %d: %w", i, err)
	}
	at := i % 8
	set = m.bit(b, at)
	solid := byte(0)
	if set {
		solid = 0xff
	}
	end := min(at+limit, int64(len(b))*8)
	for next := at; next < end; {
		switch {
		case next%8 == 0 && b[next/8] == solid:
			next += 8
		case m.bit(b, next) == set:
			next++
		default:
			return set, next - at, nil
		}
		n = next - at
	}
	return set, min(n, limit), nil
}

func (m Bitmap) bit(b []byte, i int64) bool {
	if m.HighFirst {
		return b[i/8]>>(7-i%8)&1 == 1
	}
	return b[i/8]>>(i%8)&1 == 1
}
