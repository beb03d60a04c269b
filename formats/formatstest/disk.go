package formatstest

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sort"

	"hypersdk/formats"
)

// Disk is a disk of known content, computed from a seed when it is read: text, noise, runs of one
// byte, sectors among zeros, and holes. It is a formats.Image of any size that takes no memory.
type Disk struct {
	size  int64
	parts []part // tile the disk
}

type style uint8

const (
	hole style = iota
	text
	noise
	runs
	sectors // some sectors of noise, the others zeros
	absent
	styles
)

type part struct {
	off, end int64
	style    style
	seed     uint64
}

func (p part) kind() formats.Kind {
	switch p.style {
	case hole:
		return formats.Zero
	case absent:
		return formats.Absent
	}
	return formats.Data
}

// NewDisk is a disk of size bytes. Its parts begin and end on multiples of 512; a large disk is
// nearly all holes, with data at its beginning, at its end, and around powers of two.
func NewDisk(seed uint64, size int64) *Disk { return newDisk(seed, size, 512, false) }

// NewDelta is a disk of which some is absent. Absent parts begin and end on multiples of align.
func NewDelta(seed uint64, size, align int64) *Disk { return newDisk(seed, size, align, true) }

func newDisk(seed uint64, size, align int64, delta bool) *Disk {
	d := &Disk{size: size}
	r := rand.New(rand.NewPCG(seed, 0x6469736b))
	last := styles
	add := func(end int64, s style) {
		off := d.end()
		end = min(end, size)
		if end <= off {
			return
		}
		d.parts = append(d.parts, part{off: off, end: end, style: s, seed: r.Uint64()})
		last = s
	}
	some := func(until int64) {
		for d.end() < min(until, size) {
			s := style(r.IntN(int(absent)))
			if delta && r.IntN(3) == 0 {
				s = absent
			}
			if s == last {
				continue
			}
			n := (1 + r.Int64N(1<<r.IntN(10))) * 512
			n = (n + align - 1) / align * align
			add(d.end()+n, s)
		}
	}
	gap := hole
	if delta {
		gap = absent
	}
	const dense = 16 << 20
	if size <= dense {
		some(size)
		return d
	}
	some(1 << 20)
	for at := int64(dense); at < size-2<<20; at *= 4 {
		add(at/align*align-64*align, gap)
		some(at/align*align + 256<<10)
	}
	add((size-1<<20)/align*align, gap)
	some(size - 512)
	add(size, noise)
	return d
}

func (d *Disk) end() int64 {
	if len(d.parts) == 0 {
		return 0
	}
	return d.parts[len(d.parts)-1].end
}

// Size is the size of the disk.
func (d *Disk) Size() int64 { return d.size }

// Close does nothing.
func (d *Disk) Close() error { return nil }

// Bounds are the offsets where the content changes, ascending.
func (d *Disk) Bounds() []int64 {
	var all []int64
	for _, p := range d.parts {
		all = append(all, p.off)
	}
	return append(all, d.size)
}

func (d *Disk) find(off int64) int {
	return sort.Search(len(d.parts), func(i int) bool { return d.parts[i].end > off })
}

// Extents yields the parts of the disk.
func (d *Disk) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if off < 0 || n < 0 || off > d.size-n {
			yield(formats.Extent{}, fmt.Errorf("extents [%d, %d) of a disk of %d bytes", off, off+n, d.size))
			return
		}
		for i := d.find(off); i < len(d.parts) && d.parts[i].off < off+n; i++ {
			if err := ctx.Err(); err != nil {
				yield(formats.Extent{}, err)
				return
			}
			p := d.parts[i]
			e := formats.Extent{Off: p.off, Len: p.end - p.off, Kind: p.kind()}.Clip(off, n)
			if e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// ReadAt reads the disk; what is absent is an error.
func (d *Disk) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	n := 0
	for n < len(b) {
		at := off + int64(n)
		if at >= d.size {
			return n, io.EOF
		}
		p := d.parts[d.find(at)]
		if p.style == absent {
			return n, fmt.Errorf("read at %d: %w", at, formats.ErrAbsent)
		}
		to := b[n:min(len(b), n+int(min(p.end-at, int64(len(b)))))]
		p.read(to, at)
		n += len(to)
	}
	return n, nil
}

const page = 4096

// read fills b, which lies within the part, from off on.
func (p part) read(b []byte, off int64) {
	if p.style == hole {
		clear(b)
		return
	}
	var buf [page]byte
	for len(b) > 0 {
		at := off % page
		p.page(&buf, off/page)
		n := copy(b, buf[at:])
		b, off = b[n:], off+int64(n)
	}
}

var words = [...]string{"the", "disk", "of", "a", "machine", "is", "read", "in", "blocks", "and", "every",
	"block", "was", "written", "by", "someone", "who", "meant", "it", "to", "stay\n", "0123456789", "/usr/share/doc", "\x00\x00\x00\x00"}

// page computes one page of the disk.
func (p part) page(b *[page]byte, index int64) {
	r := splitmix(p.seed)
	at := splitmix(^uint64(index))
	r = splitmix(r.next() ^ at.next())
	switch p.style {
	case text:
		for n := 0; n < page; {
			n += copy(b[n:], words[r.next()%uint64(len(words))])
			if n < page {
				b[n] = ' '
				n++
			}
		}
	case noise:
		r.fill(b[:])
	case runs:
		for n := 0; n < page; {
			v := r.next()
			end := min(n+16+int(v>>8%1024), page)
			for ; n < end; n++ {
				b[n] = byte(v)
			}
		}
	case sectors:
		clear(b[:])
		for n := 0; n < page; n += 512 {
			if r.next()%8 == 0 {
				r.fill(b[n : n+512])
			}
		}
	}
}

// splitmix is the SplitMix64 generator.
type splitmix uint64

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (s *splitmix) fill(b []byte) {
	for len(b) >= 8 {
		v := s.next()
		b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
		b[4], b[5], b[6], b[7] = byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56)
		b = b[8:]
	}
	v := s.next()
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}
