package vmdk

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"

	"hypersdk/formats"
	"hypersdk/formats/inflate"
)

// Stream reads a streamOptimized disk front to back. There are three kinds of them in the wild, and
// each proves in its own way that it is whole:
//
//   - ESXi's has its tables at the end: a footer must come, name the place where the grain directory
//     went by and repeat the header, and the end-of-stream marker must follow it;
//   - qemu's has its tables at the front and just ends behind its last grain: every grain that the
//     tables name must have come where they say, and no other;
//   - open-vmdk's is like qemu's and adds the end-of-stream marker, which proves nothing as it is all
//     zeros.
//
// Nothing behind the end of the disk is asked of r, but it is read in blocks and may have been read
// further.
func Stream(ctx context.Context, r io.Reader) (formats.Stream, error) {
	s := &stream{in: source{r: bufio.NewReaderSize(r, streamBuffer)}}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("vmdk: %w", err)
	}
	return s, nil
}

const (
	streamBuffer = 512 << 10
	// frontTables bounds the memory for the grain directory at the front of a stream: 4 million
	// entries, 128 TiB in grains of 64 KiB.
	frontTables = 4 << 20
)

// source is what a stream comes from; it knows how far it was read.
type source struct {
	r    *bufio.Reader
	done int64 // bytes
}

// next answers the next n bytes, which stay as they are until the next call.
func (s *source) next(n int) ([]byte, error) {
	b, err := s.r.Peek(n)
	if err != nil {
		if len(b) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return b, err
	}
	s.done += int64(n)
	_, err = s.r.Discard(n)
	return b, err
}

// skip leaves n bytes out.
func (s *source) skip(ctx context.Context, n int64) error {
	for n > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		got, err := s.r.Discard(int(min(n, streamBuffer)))
		s.done += int64(got)
		n -= int64(got)
		if err != nil {
			return cut(err)
		}
	}
	return nil
}

// cut makes the end of the input what it is in the middle of something.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the stream ends early: %w", formats.ErrCorrupt)
	}
	return err
}

type stream struct {
	in     source
	header header
	proof  proof
	// directory is the sector behind the marker of the grain directory, foot what the footer says.
	directory uint64
	foot      *header
	decoder   inflate.Decoder
	plain     []byte // the grain that the end of the disk cuts
	ended     error
}

func (s *stream) Size() int64 { return s.header.size() }

// Close releases nothing: the reader below is the caller's.
func (s *stream) Close() error { return nil }

// open reads all that comes before the grains.
func (s *stream) open(ctx context.Context) error {
	b, err := s.in.next(sector)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("header: the stream ends after %d bytes: %w", len(b), formats.ErrFormat)
		}
		return err
	}
	if beginsDescriptor(b) {
		return fmt.Errorf("a descriptor whose disk is in other files cannot be read from a stream: %w", formats.ErrFormat)
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	switch {
	case !h.compressed() || !h.markers():
		return fmt.Errorf("only streamOptimized disks can be read from a stream, this one needs a file: %w", formats.ErrFormat)
	case h.capacity == 0:
		return fmt.Errorf("header: capacity of 0 sectors: %w", formats.ErrCorrupt)
	case h.overhead == 0:
		return fmt.Errorf("header: overhead of 0 sectors: %w", formats.ErrCorrupt)
	}
	s.header = h
	if need := int(up(h.largest()+grainHead, sector)); need > streamBuffer {
		s.in.r = bufio.NewReaderSize(s.in.r, need)
	}
	if err := s.front(ctx); err != nil {
		return err
	}
	return s.in.skip(ctx, int64(h.overhead)*sector-s.in.done)
}

// front reads the tables before the grains, if they are there and in their natural order: the
// directory, then the tables that it names.
func (s *stream) front(ctx context.Context) error {
	h := s.header
	end := int64(h.overhead) * sector
	n := h.tables()
	if h.gd == gdAtEnd || int64(h.gd)*sector < s.in.done || int64(h.gd)*sector+n*4 > end {
		return nil
	}
	if n > frontTables {
		return fmt.Errorf("header: %d grain tables: %w", n, formats.ErrFormat)
	}
	if err := s.in.skip(ctx, int64(h.gd)*sector-s.in.done); err != nil {
		return fmt.Errorf("grain directory: %w", err)
	}
	directory := make([]uint32, n)
	for i := range directory {
		b, err := s.in.next(4)
		if err != nil {
			return fmt.Errorf("grain directory: %w", cut(err))
		}
		directory[i] = binary.LittleEndian.Uint32(b)
	}
	s.proof = newProof()
	for i, at := range directory {
		if at == 0 {
			continue
		}
		off, size := int64(at)*sector, int64(h.entries)*4
		if off < s.in.done || off+size > end {
			return fmt.Errorf("grain table %d at sector %d, which is not behind the directory and before the grains: %w", i, at, formats.ErrCorrupt)
		}
		if err := s.in.skip(ctx, off-s.in.done); err != nil {
			return fmt.Errorf("grain table %d: %w", i, err)
		}
		if err := s.table(int64(i) * int64(h.entries)); err != nil {
			return fmt.Errorf("grain table %d: %w", i, cut(err))
		}
	}
	return nil
}

// table notes the grains that a table names; first is the number of its first grain.
func (s *stream) table(first int64) error {
	for left := int64(s.header.entries); left > 0; {
		n := min(left, sector/4)
		b, err := s.in.next(int(n) * 4)
		if err != nil {
			return err
		}
		for j := range n {
			v := binary.LittleEndian.Uint32(b[4*j:])
			if v != 0 && (v != 1 || s.header.flags&flagZeroGrain == 0) {
				s.proof.name(first+j, int64(v))
			}
		}
		first, left = first+n, left-n
	}
	return nil
}

// Next answers the next grain.
func (s *stream) Next(ctx context.Context) (formats.Chunk, error) {
	if s.ended != nil {
		return formats.Chunk{}, s.ended
	}
	c, err := s.next(ctx)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		err = fmt.Errorf("vmdk: at byte %d of the stream: %w", s.in.done, err)
	}
	s.ended = err
	return c, err
}

func (s *stream) next(ctx context.Context) (formats.Chunk, error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return formats.Chunk{}, err
		}
		if over := s.in.done % sector; over != 0 {
			// The padding behind a grain; a file may end before it.
			if _, err := s.in.next(int(sector - over)); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return formats.Chunk{}, err
			} else if err != nil {
				return formats.Chunk{}, s.end(false)
			}
		}
		at := s.in.done / sector
		b, err := s.in.next(grainHead)
		if errors.Is(err, io.EOF) {
			return formats.Chunk{}, s.end(false)
		}
		if err != nil {
			return formats.Chunk{}, cut(err)
		}
		m := marker{value: binary.LittleEndian.Uint64(b), size: binary.LittleEndian.Uint32(b[8:])}
		if m.size != 0 {
			return s.grain(m, at)
		}
		if b, err = s.in.next(sector - grainHead); err != nil {
			return formats.Chunk{}, cut(err)
		}
		if m.kind = binary.LittleEndian.Uint32(b); m.kind == markEnd {
			return formats.Chunk{}, s.end(true)
		}
		if err := s.special(ctx, m); err != nil {
			return formats.Chunk{}, err
		}
	}
}

// special reads what a marker announces that is not a grain.
func (s *stream) special(ctx context.Context, m marker) error {
	if s.foot != nil {
		return fmt.Errorf("a marker of type %d behind the footer: %w", m.kind, formats.ErrCorrupt)
	}
	switch m.kind {
	case markTable:
	case markDirectory:
		s.directory = uint64(s.in.done / sector)
	case markFooter:
		if m.value != 1 {
			return fmt.Errorf("a footer of %d sectors: %w", m.value, formats.ErrCorrupt)
		}
		b, err := s.in.next(sector)
		if err != nil {
			return fmt.Errorf("footer: %w", cut(err))
		}
		f, err := parseHeader(b)
		if err != nil {
			return fmt.Errorf("footer: %w", err)
		}
		s.foot = &f
		return nil
	default:
		return fmt.Errorf("a marker of type %d: %w", m.kind, formats.ErrCorrupt)
	}
	if m.value > maxSectors {
		return fmt.Errorf("a marker of type %d for %d sectors: %w", m.kind, m.value, formats.ErrCorrupt)
	}
	return s.in.skip(ctx, int64(m.value)*sector)
}

// grain reads the grain whose marker stood at that sector of the stream.
func (s *stream) grain(m marker, at int64) (formats.Chunk, error) {
	h := s.header
	if s.foot != nil {
		return formats.Chunk{}, fmt.Errorf("a grain behind the footer: %w", formats.ErrCorrupt)
	}
	if m.value >= h.capacity || m.value%h.grain != 0 {
		return formats.Chunk{}, fmt.Errorf("a grain for sector %d of %d, in grains of %d: %w", m.value, h.capacity, h.grain, formats.ErrCorrupt)
	}
	if int64(m.size) > h.largest() {
		return formats.Chunk{}, fmt.Errorf("a grain of %d packed bytes: %w", m.size, formats.ErrCorrupt)
	}
	b, err := s.in.next(int(m.size))
	if err != nil {
		return formats.Chunk{}, fmt.Errorf("grain for sector %d: %w", m.value, cut(err))
	}
	s.proof.came(int64(m.value/h.grain), at)
	c := formats.Chunk{Off: int64(m.value) * sector}
	c.Len = min(h.grainBytes(), h.size()-c.Off)
	if c.Packed, err = unwrap(b); err != nil {
		return formats.Chunk{}, fmt.Errorf("grain for sector %d: %w", m.value, err)
	}
	if c.Len < h.grainBytes() {
		// The last grain may be packed whole or only as far as the disk goes: it is handed on plain.
		s.plain = sized(s.plain, h.grainBytes())
		if c.Data, err = unpack(&s.decoder, s.plain, b, c.Len); err != nil {
			return formats.Chunk{}, fmt.Errorf("grain for sector %d: %w", m.value, err)
		}
		c.Packed = formats.Packed{}
	}
	return c, nil
}

// end decides whether the stream that ended is whole; marked: the end-of-stream marker was there.
func (s *stream) end(marked bool) error {
	h, f := s.header, s.foot
	switch {
	case h.gd == gdAtEnd:
		switch {
		case !marked || f == nil:
			return fmt.Errorf("the stream ends without its footer: %w", formats.ErrCorrupt)
		case f.capacity != h.capacity || f.grain != h.grain || f.entries != h.entries:
			return fmt.Errorf("the footer is not that of the header: %w", formats.ErrCorrupt)
		case f.gd != s.directory || s.directory == 0:
			return fmt.Errorf("the footer has the grain directory at sector %d, it went by at %d: %w", f.gd, s.directory, formats.ErrCorrupt)
		}
		return io.EOF
	case s.proof.on:
		if !s.proof.holds() {
			return fmt.Errorf("the stream ends, and its grains are not those of its grain tables: %w", formats.ErrCorrupt)
		}
		return io.EOF
	case marked && s.directory != 0 && s.directory == h.gd:
		return io.EOF
	}
	return fmt.Errorf("the stream ends, and nothing in it tells that it is whole: %w", formats.ErrCorrupt)
}

// proof compares two sets of grains, each a number and a place, in no memory: by the sum of a hash of
// their members, under a key that nobody who makes an image can know.
type proof struct {
	on          bool
	seed        maphash.Seed
	named, seen uint64
}

func newProof() proof { return proof{on: true, seed: maphash.MakeSeed()} }

func (p *proof) name(grain, at int64) { p.named += maphash.Comparable(p.seed, [2]int64{grain, at}) }

func (p *proof) came(grain, at int64) {
	if p.on {
		p.seen += maphash.Comparable(p.seed, [2]int64{grain, at})
	}
}

func (p *proof) holds() bool { return p.named == p.seen }

// unpack unpacks the zlib stream in b, as much as a grain may hold, into buf, and answers the first n
// bytes, all of which must be there.
func unpack(d *inflate.Decoder, buf, b []byte, n int64) ([]byte, error) {
	got, _, err := d.Zlib(buf, b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", formats.ErrCorrupt, err)
	}
	if int64(got) < n {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", got, n, formats.ErrCorrupt)
	}
	return buf[:n], nil
}

// sized is a buffer of n bytes, b if it is one.
func sized(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}
