package formats

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"hypersdk/formats/inflate"
)

// piece is a stretch of the disk under way: what is known of it when it is planned, what a worker
// made of it, and what is left to be written. It lies within one window, unless it is all zeros.
type piece struct {
	off, n int64
	zero   bool // all zeros: nothing to read, nothing to digest
	absent bool // (partly) not there: skip
	late   bool // of a stream: its window was passed before

	extents []Extent // of an image: what to read, tiling the piece
	chunks  []Chunk  // of a stream: what came for it; their bytes lie in raw

	data []byte // the piece itself, filled by a worker
	raw  []byte // packed bytes as they came
	out  []byte // packed bytes to write
	ops  []op
	sums []Sum // of the blocks; zero where a block is partly absent

	err  error
	done chan struct{}
	cost int64
}

// bytes is how much of the piece is data.
func (p *piece) bytes() (n int64) {
	if len(p.extents) == 0 {
		for _, c := range p.chunks {
			n += c.Len
		}
	}
	for _, e := range p.extents {
		if e.Kind == Data {
			n += e.Len
		}
	}
	return n
}

// op is one write.
type op struct {
	off, n int64
	kind   Kind
	data   []byte // Kind Data
	packed Packed // instead of data, where it has a codec
}

func (p *piece) reset(cost int64) {
	*p = piece{cost: cost, extents: p.extents[:0], chunks: p.chunks[:0], data: p.data[:0], raw: p.raw[:0],
		out: p.out[:0], ops: p.ops[:0], sums: p.sums[:0]}
}

// stored is the bytes of a chunk as they came.
func (ch *Chunk) stored() []byte {
	if ch.Packed.Codec != NoCodec {
		return ch.Packed.Bytes
	}
	return ch.Data
}

// maxChunks is how many chunks a piece keeps: a window in sectors. Hostile ones may be of two bytes.
const maxChunks = window / 512

// fits says whether a chunk can be kept without more memory. An empty piece keeps any.
func (p *piece) fits(ch Chunk) bool {
	return len(p.chunks) == 0 || len(p.chunks) < maxChunks && len(ch.stored()) <= cap(p.raw)-len(p.raw)
}

// keep copies a chunk, whose buffers are the stream's, into the piece.
func (p *piece) keep(ch Chunk) {
	b := ch.stored()
	// Slices into raw stay right when it grows: they keep the old array.
	at := len(p.raw)
	p.raw = append(p.raw, b...)
	b = p.raw[at:len(p.raw):len(p.raw)]
	if ch.Packed.Codec != NoCodec {
		ch.Data, ch.Packed.Bytes = nil, b
	} else {
		ch.Data = b
	}
	p.chunks = append(p.chunks, ch)
}

// worker reads, checks and packs pieces.
type worker struct {
	*copier
	unpack unpacker
}

func (w *worker) do(ctx context.Context, p *piece) error {
	switch {
	case p.absent:
		w.absent.Store(true)
		return nil
	case p.zero:
		p.ops = append(p.ops, op{off: p.off, n: p.n, kind: Zero})
	default:
		p.data = slices.Grow(p.data[:0], int(p.n))[:p.n]
		if w.packed != nil {
			p.out = slices.Grow(p.out[:0], int(w.window))
		}
		if w.unpacked != nil {
			p.raw = slices.Grow(p.raw[:0], int(w.window))
		}
		fill := w.fromImage
		if len(p.chunks) > 0 {
			fill = w.fromStream
		}
		if err := fill(ctx, p); err != nil {
			return err
		}
	}
	if w.direct {
		return p.write(w.copier)
	}
	return nil
}

func (w *worker) pace(ctx context.Context, n int64) error {
	if w.opt.Pace == nil || n == 0 {
		return nil
	}
	return w.opt.Pace(ctx, n)
}

// fromImage fills a piece from an image, and makes writes and sums of it.
func (w *worker) fromImage(ctx context.Context, p *piece) error {
	img := w.src.(Image)
	packed := w.unpacked
	for _, e := range p.extents {
		at := p.data[e.Off-p.off:][:e.Len]
		switch e.Kind {
		case Absent:
			w.absent.Store(true)
			clear(at)
		case Zero:
			clear(at)
		case Data:
			if packed != nil {
				if err := w.readPacked(ctx, p, packed, e); err != nil {
					return err
				}
				continue
			}
			if err := w.pace(ctx, e.Len); err != nil {
				return err
			}
			if err := readFull(img, at, e.Off); err != nil {
				return err
			}
			w.read.Add(e.Len)
		}
	}
	return w.store(p)
}

// readPacked reads an extent block by block: packed where the source has it so, plain elsewhere.
func (w *worker) readPacked(ctx context.Context, p *piece, src PackedReader, e Extent) error {
	img := w.src.(Image)
	for off := e.Off; off < e.End(); {
		n := min(w.block-off%w.block, e.End()-off)
		if off%w.block == 0 {
			if err := w.pace(ctx, n); err != nil {
				return err
			}
			pk, got, err := src.ReadPacked(ctx, off, p.raw[len(p.raw):cap(p.raw)])
			if err != nil {
				return err
			}
			if got == n {
				at := len(p.raw)
				p.raw = append(p.raw, pk.Bytes...)
				pk.Bytes = p.raw[at:len(p.raw):len(p.raw)]
				p.chunks = append(p.chunks, Chunk{Off: off, Len: n, Packed: pk})
				w.read.Add(int64(len(pk.Bytes)))
				if err := w.unpackInto(p, &p.chunks[len(p.chunks)-1]); err != nil {
					return err
				}
				off += n
				continue
			}
		}
		if err := readFull(img, p.data[off-p.off:][:n], off); err != nil {
			return err
		}
		w.read.Add(n)
		off += n
	}
	return nil
}

// fromStream fills a piece from the chunks that came for it.
func (w *worker) fromStream(ctx context.Context, p *piece) error {
	clear(p.data)
	n := int64(0)
	for _, ch := range p.chunks {
		n += ch.Len
	}
	if err := w.pace(ctx, n); err != nil {
		return err
	}
	for i := range p.chunks {
		if ch := &p.chunks[i]; ch.Packed.Codec == NoCodec {
			copy(p.data[ch.Off-p.off:][:ch.Len], ch.Data)
		} else if err := w.unpackInto(p, ch); err != nil {
			return err
		}
	}
	if p.late {
		p.keepOnly()
	}
	return w.store(p)
}

// keepOnly limits a late piece to what came: the rest of its window was written before.
func (p *piece) keepOnly() {
	p.extents = p.extents[:0]
	for _, ch := range p.chunks {
		p.extents = append(p.extents, Extent{Off: ch.Off, Len: ch.Len, Kind: Data})
	}
	slices.SortFunc(p.extents, func(a, b Extent) int { return int(a.Off - b.Off) })
	tiles := make([]Extent, 0, 2*len(p.extents)+1)
	at := p.off
	for _, e := range p.extents {
		if e.Off > at {
			tiles = append(tiles, Extent{Off: at, Len: e.Off - at, Kind: Absent})
		}
		if e.End() > at {
			tiles = append(tiles, Extent{Off: max(at, e.Off), Len: e.End() - max(at, e.Off), Kind: Data})
			at = e.End()
		}
	}
	if end := p.off + p.n; at < end {
		tiles = append(tiles, Extent{Off: at, Len: end - at, Kind: Absent})
	}
	p.extents = tiles
}

// unpackInto puts the bytes of a packed chunk where they belong, and learns its sum on the way.
func (w *worker) unpackInto(p *piece, ch *Chunk) error {
	if w.opt.Trust && w.movable(*ch) {
		return nil
	}
	b := p.data[ch.Off-p.off:][:ch.Len]
	if err := w.unpack.unpack(b, &ch.Packed); err != nil {
		return fmt.Errorf("block at %d: %w", ch.Off, err)
	}
	if w.packed != nil && !ch.Packed.HasSum {
		ch.Packed.Sum, ch.Packed.HasSum = inflate.Adler32(b), true
	}
	return nil
}

// movable says whether a packed chunk is a block of the target that it takes as it is.
func (c *copier) movable(ch Chunk) bool {
	return c.packed != nil && ch.Packed.Codec != NoCodec && ch.Off%c.block == 0 &&
		(ch.Len == c.block || ch.Off+ch.Len == c.size && ch.Len < c.block) && c.packed.Accepts(ch.Packed, ch.Len)
}

// store makes writes and sums of a filled piece.
func (w *worker) store(p *piece) error {
	if w.opt.Digests != nil {
		w.digest(p)
	}
	for off := p.off; off < p.off+p.n; {
		n := min(w.grain-off%w.grain, p.off+p.n-off)
		if err := w.storeBlock(p, off, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (w *worker) storeBlock(p *piece, off, n int64) error {
	some, all := p.has(off, n)
	if !some {
		return nil
	}
	if !all {
		return w.storePartly(p, off, n)
	}
	if w.packed != nil {
		if ch, ok := p.chunkAt(off, n); ok && w.movable(ch) {
			if w.opt.Trust || !zeroes(p.data[off-p.off:][:n]) {
				p.ops = append(p.ops, op{off: off, n: n, kind: Data, packed: ch.Packed})
				return nil
			}
		}
	}
	b := p.data[off-p.off:][:n]
	if zeroes(b) {
		p.add(op{off: off, n: n, kind: Zero})
		return nil
	}
	if w.packed != nil {
		at := len(p.out)
		if pk, ok := w.packed.Pack(p.out[at:at:cap(p.out)], b); ok {
			if cap(p.out)-at >= len(pk.Bytes) && len(pk.Bytes) > 0 && &p.out[:at+1][at] == &pk.Bytes[0] {
				p.out = p.out[:at+len(pk.Bytes)]
			}
			p.ops = append(p.ops, op{off: off, n: n, kind: Data, packed: pk})
			return nil
		}
	}
	p.add(op{off: off, n: n, kind: Data, data: b})
	return nil
}

// storePartly writes the parts of a grain that are there; the target's own blocks must be fine enough.
func (w *worker) storePartly(p *piece, off, n int64) error {
	for _, e := range p.extents {
		e = e.Clip(off, n)
		if e.Len == 0 || e.Kind == Absent {
			continue
		}
		if e.Off%w.block != 0 || e.End()%w.block != 0 && e.End() != w.size {
			return fmt.Errorf("the part [%d, %d) of a block of %d: %w", e.Off, e.End(), w.block, ErrAlign)
		}
		b := p.data[e.Off-p.off:][:e.Len]
		if zeroes(b) {
			p.add(op{off: e.Off, n: e.Len, kind: Zero})
		} else {
			p.add(op{off: e.Off, n: e.Len, kind: Data, data: b})
		}
	}
	return nil
}

// has says whether some of [off, off+n) is in the source, and whether all of it is. A piece without a
// map is whole.
func (p *piece) has(off, n int64) (some, all bool) {
	all = true
	if len(p.extents) == 0 {
		return true, true
	}
	for _, e := range p.extents {
		if e.Clip(off, n).Len == 0 {
			continue
		}
		if e.Kind == Absent {
			all = false
		} else {
			some = true
		}
	}
	return some, all
}

// chunkAt finds the chunk that is exactly [off, off+n), if no other chunk touches that stretch after it.
func (p *piece) chunkAt(off, n int64) (Chunk, bool) {
	for _, ch := range slices.Backward(p.chunks) {
		if ch.Off < off+n && off < ch.Off+ch.Len {
			return ch, ch.Off == off && ch.Len == n
		}
	}
	return Chunk{}, false
}

// add joins plain writes that follow one another.
func (p *piece) add(o op) {
	if l := len(p.ops); l > 0 {
		if last := &p.ops[l-1]; last.kind == o.kind && last.packed.Codec == NoCodec && last.off+last.n == o.off {
			last.n += o.n
			if o.kind == Data {
				last.data = p.data[last.off-p.off:][:last.n]
			}
			return
		}
	}
	p.ops = append(p.ops, o)
}

func (w *worker) digest(p *piece) {
	for at := int64(0); at < p.n; at += BlockSize {
		n := min(BlockSize, p.n-at)
		_, all := p.has(p.off+at, n)
		switch b := p.data[at:][:n]; {
		case !all || w.opt.Trust && len(p.chunks) > 0:
			p.sums = append(p.sums, Sum{})
		case zeroes(b):
			p.sums = append(p.sums, sumOfZeros(n))
		default:
			p.sums = append(p.sums, sha256.Sum256(b))
		}
	}
}

func (p *piece) write(c *copier) error {
	for _, o := range p.ops {
		var err error
		switch {
		case o.kind == Zero:
			err = c.dst.WriteZeroes(o.off, o.n)
		case o.packed.Codec != NoCodec:
			err = c.packed.WritePacked(o.off, o.n, o.packed)
			c.wrote.Add(int64(len(o.packed.Bytes)))
		default:
			_, err = c.dst.WriteAt(o.data, o.off)
			c.wrote.Add(o.n)
		}
		if err != nil {
			return fmt.Errorf("write of %d bytes at %d: %w", o.n, o.off, err)
		}
	}
	return nil
}

// zeroes says whether b is nothing but zeros. bytes.Equal runs at the speed of memory.
func zeroes(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
