package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
	"hypersdk/formats/inflate"
)

// locate finds where the bytes [off, off+n) of the disk begin to come from. What nobody holds is
// zeros where there is no parent.
func (m *image) locate(e *extent, off, n int64) (piece, error) {
	if err := context.Cause(m.ctx); err != nil {
		return piece{}, err
	}
	n = min(n, e.end-off)
	if e.grains == nil {
		return piece{Piece: blocks.Piece{Len: n, Origin: blocks.Zero}}, nil
	}
	p, err := e.grains.locate(off-e.off, n)
	if err != nil {
		return p, m.name(e, err)
	}
	if p.Origin == blocks.Below && !m.delta {
		p.Origin = blocks.Zero
	}
	p.Len = min(p.Len, n)
	return p, nil
}

func (m *image) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vmdk: read at %d", off)
	}
	done := 0
	for done < len(b) && off < m.size {
		e := m.at(off)
		part := b[done:][:min(int64(len(b)-done), e.end-off)]
		n, err := m.readPart(e, part, off)
		if err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

// readPart reads the beginning of b, at least a byte of it, from an extent.
func (m *image) readPart(e *extent, b []byte, off int64) (int, error) {
	if e.flat != nil {
		n, err := e.flat.ReadAt(b, e.flatAt+off-e.off)
		if n == len(b) {
			return n, nil
		}
		return 0, m.name(e, err)
	}
	p, err := m.locate(e, off, int64(len(b)))
	if err != nil {
		return 0, err
	}
	b = b[:p.Len]
	switch {
	case p.Origin == blocks.Zero:
		clear(b)
	case p.Origin == blocks.Below:
		err = m.readBelow(b, off)
	case p.packed:
		if err = m.readPacked(e.grains, p, b); err != nil {
			err = m.name(e, err)
		}
	default:
		if err = e.grains.file.ReadFull(b, p.Off); err != nil {
			err = m.name(e, err)
		}
	}
	return len(b), err
}

// readBelow reads what the parent holds, and zeros where it is shorter.
func (m *image) readBelow(b []byte, off int64) error {
	if m.parent == nil {
		return fmt.Errorf("vmdk: bytes [%d, %d) are the parent's: %w", off, off+int64(len(b)), formats.ErrAbsent)
	}
	n := int(max(0, min(int64(len(b)), m.parent.Size()-off)))
	clear(b[n:])
	if n == 0 {
		return nil
	}
	got, err := m.parent.ReadAt(b[:n], off)
	if got == n {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("ends at %d: %w", off+int64(got), formats.ErrCorrupt)
	}
	return fmt.Errorf("vmdk: parent %s: %w", m.parent.Name, err)
}

// unpacker reads and unpacks one grain at a time, and remembers the last one of which a part was asked
// for: small reads come in a row.
type unpacker struct {
	decoder    inflate.Decoder
	raw, plain []byte
	of         *grains // whose grain plain is; nil: nobody's
	no         int64
}

// readPacked unpacks the grain of p and answers the part of it that p is.
func (m *image) readPacked(g *grains, p piece, b []byte) error {
	u, _ := m.unpackers.Get().(*unpacker)
	if u == nil {
		u = new(unpacker)
	}
	defer m.unpackers.Put(u)
	if u.of == g && u.no == p.no {
		copy(b, u.plain[p.skip:])
		return nil
	}
	z, err := g.load(p, &u.raw)
	if err != nil {
		return err
	}
	if p.skip == 0 && int64(len(b)) == g.grain {
		_, err = unpack(&u.decoder, b, z, g.grain)
	} else {
		u.of, u.plain = nil, sized(u.plain, g.grain)
		if _, err = unpack(&u.decoder, u.plain, z, p.full); err == nil {
			u.of, u.no = g, p.no
			copy(b, u.plain[p.skip:p.full])
		}
	}
	if err != nil {
		return fmt.Errorf("grain %d at byte %d of the file: %w", p.no, p.Off, err)
	}
	return nil
}

// load reads the zlib stream of a packed grain into buf, which grows where it must. Without a marker
// bytes may follow that are not its own.
func (g *grains) load(p piece, buf *[]byte) ([]byte, error) {
	*buf = sized(*buf, p.hint)
	b := *buf
	if err := g.file.ReadFull(b, p.Off); err != nil {
		return nil, fmt.Errorf("grain %d: %w", p.no, err)
	}
	if !g.marked {
		n := min(g.largest, g.file.Size-p.Off)
		return b, g.more(p, buf, &b, n)
	}
	if len(b) < grainHead {
		return nil, fmt.Errorf("grain %d: the file ends in its marker: %w", p.no, formats.ErrCorrupt)
	}
	lba, size := int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint32(b[8:]))
	if lba != p.no*(g.grain/sector) || size == 0 || size > g.largest {
		return nil, fmt.Errorf("grain %d: the marker at byte %d is of %d bytes for sector %d: %w", p.no, p.Off, size, lba, formats.ErrCorrupt)
	}
	if err := g.more(p, buf, &b, grainHead+size); err != nil {
		return nil, err
	}
	return b[grainHead : grainHead+size], nil
}

// more makes sure that b, the beginning of a grain, has n bytes.
func (g *grains) more(p piece, buf, b *[]byte, n int64) error {
	have := int64(len(*b))
	if have >= n {
		return nil
	}
	if int64(cap(*buf)) < n {
		*buf = append(make([]byte, 0, n), *b...)
	}
	*b = (*buf)[:n]
	if err := g.file.ReadFull((*b)[have:], p.Off+have); err != nil {
		return fmt.Errorf("grain %d: %w", p.no, err)
	}
	return nil
}

// packedImage is an image that has packed grains.
type packedImage struct{ *image }

// ReadPacked reads a grain as it is stored. The grain that the end of the disk cuts is not one: it may
// hold more than belongs to the disk.
func (m packedImage) ReadPacked(_ context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	if off < 0 || off >= m.size {
		return formats.Packed{}, 0, nil
	}
	e := m.at(off)
	if e.grains == nil || !e.grains.packed {
		return formats.Packed{}, 0, nil
	}
	g := e.grains
	p, err := m.locate(e, off, g.grain)
	if err != nil || !p.packed || p.skip != 0 || p.Len != g.grain {
		return formats.Packed{}, 0, err
	}
	z, err := g.load(p, &buf)
	if err != nil {
		return formats.Packed{}, 0, m.name(e, err)
	}
	if !g.marked {
		if z, err = m.trim(z, g.grain); err != nil {
			return formats.Packed{}, 0, m.name(e, fmt.Errorf("grain %d: %w", p.no, err))
		}
	}
	pk, err := unwrap(z)
	if err != nil {
		return formats.Packed{}, 0, m.name(e, fmt.Errorf("grain %d at byte %d of the file: %w", p.no, p.Off, err))
	}
	return pk, g.grain, nil
}

// trim finds the end of a zlib stream of a grain by unpacking it.
func (m *image) trim(z []byte, grain int64) ([]byte, error) {
	u, _ := m.unpackers.Get().(*unpacker)
	if u == nil {
		u = new(unpacker)
	}
	defer m.unpackers.Put(u)
	u.of, u.plain = nil, sized(u.plain, grain)
	n, used, err := u.decoder.Zlib(u.plain, z)
	if err != nil || int64(n) != grain {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", n, grain, errors.Join(formats.ErrCorrupt, err))
	}
	return z[:used], nil
}

func (m *image) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if off < 0 || n < 0 || off > m.size || n > m.size-off {
		return func(yield func(formats.Extent, error) bool) {
			yield(formats.Extent{}, fmt.Errorf("vmdk: extents of %d bytes at %d of %d", n, off, m.size))
		}
	}
	return formats.Merged(func(yield func(formats.Extent, error) bool) {
		for end := off + n; off < end; {
			if err := context.Cause(ctx); err != nil {
				yield(formats.Extent{}, err)
				return
			}
			e := m.at(off)
			part := formats.Extent{Off: off, Len: min(end, e.end) - off}
			if e.flat != nil {
				if !m.flatExtents(ctx, e, part, yield) {
					return
				}
				off = part.End()
				continue
			}
			p, err := m.locate(e, off, part.Len)
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			part.Len = p.Len
			if !m.extentsOf(ctx, p, part, yield) {
				return
			}
			off += p.Len
		}
	})
}

// flatExtents yields the extents of a stretch of a flat extent.
func (m *image) flatExtents(ctx context.Context, e *extent, part formats.Extent, yield func(formats.Extent, error) bool) bool {
	shift := e.off - e.flatAt
	for x, err := range e.flat.Extents(ctx, part.Off-shift, part.Len) {
		if err != nil {
			yield(formats.Extent{}, m.name(e, err))
			return false
		}
		x.Off += shift
		if !yield(x, nil) {
			return false
		}
	}
	return true
}

// extentsOf yields the extents of one piece; false ends the walk.
func (m *image) extentsOf(ctx context.Context, p piece, x formats.Extent, yield func(formats.Extent, error) bool) bool {
	switch {
	case p.Origin == blocks.Here:
		x.Kind = formats.Data
	case p.Origin == blocks.Zero:
		x.Kind = formats.Zero
	case m.parent == nil:
		x.Kind = formats.Absent
	default:
		return m.extentsBelow(ctx, x, yield)
	}
	return yield(x, nil)
}

func (m *image) extentsBelow(ctx context.Context, x formats.Extent, yield func(formats.Extent, error) bool) bool {
	n := max(0, min(x.Len, m.parent.Size()-x.Off))
	if n > 0 {
		for below, err := range m.parent.Extents(ctx, x.Off, n) {
			if err != nil {
				err = fmt.Errorf("vmdk: parent %s: %w", m.parent.Name, err)
			}
			if !yield(below, err) || err != nil {
				return false
			}
		}
	}
	if n == x.Len {
		return true
	}
	return yield(formats.Extent{Off: x.Off + n, Len: x.Len - n, Kind: formats.Zero}, nil)
}
