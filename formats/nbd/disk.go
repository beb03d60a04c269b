package nbd

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"

	"hypersdk/formats"
)

// maxMap is how much of a disk is asked for in one request for its map.
const maxMap = 1 << 30

// Flags of base:allocation ("base:allocation metadata context"), and of a bitmap of qemu.
const (
	stateZero  = 1 << 1
	stateDirty = 1 << 0
)

// covers says whether pieces are [0, n) without a gap or an overlap.
func covers(pieces []piece, n int64) bool {
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.off, b.off) })
	at := int64(0)
	for _, p := range pieces {
		if p.off != at {
			return false
		}
		at = p.end
	}
	return at == n
}

// ReadAt reads from the export; a long read is several requests, all on their way at once.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("nbd: read at %d", off)
	}
	if off >= d.Size() {
		return 0, io.EOF
	}
	n := min(int64(len(p)), d.Size()-off)
	if err := d.read(p[:n], off); err != nil {
		return 0, fmt.Errorf("nbd: read %d bytes at %d: %w", n, off, err)
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// read reads within the export. A server that takes whole blocks only is asked for those.
func (d *Disk) read(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	block := d.export.min
	from, to := off-off%block, off+int64(len(p))
	to += (block - to%block) % block
	if from == off && to == off+int64(len(p)) {
		return d.all(cmdRead, off, int64(len(p)), d.export.max, p)
	}
	// Read past both ends, piece by piece, so that a read that is long needs no buffer as long.
	step := max(block, 1<<20)
	buf := make([]byte, min(step, to-from))
	for ; from < to; from += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), to-from)]
		if err := d.all(cmdRead, from, int64(len(buf)), d.export.max, buf); err != nil {
			return err
		}
		if from < off {
			copy(p, buf[off-from:])
		} else {
			copy(p[from-off:], buf)
		}
	}
	return nil
}

// all makes the requests that a long one takes, and waits for all of them.
func (d *Disk) all(cmd uint16, off, n, most int64, data []byte) error {
	var sent []*request
	for at := int64(0); at < n; {
		r := &request{cmd: cmd, off: off + at, n: min(n-at, most)}
		if data != nil {
			r.data = data[at:][:r.n]
		}
		d.pick().start(r)
		sent = append(sent, r)
		at += r.n
	}
	var first error
	for _, r := range sent {
		if err := r.wait(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Extents is the map of [off, off+n) as the server has it: what it says reads as zeros is Zero. Where
// it has no map, all is Data.
func (d *Disk) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	id, ok := d.export.contexts[allocation]
	return d.extents(ctx, off, n, ok, id, func(flags uint32) formats.Kind {
		if flags&stateZero != 0 {
			return formats.Zero
		}
		return formats.Data
	})
}

// Marked tells what of [off, off+n) the bitmap marks that the disk was opened with (Options.Context):
// that is Data, the rest is Absent.
func (d *Disk) Marked(ctx context.Context, context string, off, n int64) iter.Seq2[formats.Extent, error] {
	id, ok := d.export.contexts[context]
	if !ok {
		return func(yield func(formats.Extent, error) bool) {
			yield(formats.Extent{}, fmt.Errorf("nbd: the disk was not opened with the metadata context %q", context))
		}
	}
	return d.extents(ctx, off, n, true, id, func(flags uint32) formats.Kind {
		if flags&stateDirty != 0 {
			return formats.Data
		}
		return formats.Absent
	})
}

func (d *Disk) extents(ctx context.Context, off, n int64, known bool, id uint32, kind func(uint32) formats.Kind) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if off < 0 || n < 0 || off > d.Size()-n {
			yield(formats.Extent{}, fmt.Errorf("nbd: a map of %d bytes at %d of a disk of %d", n, off, d.Size()))
			return
		}
		if !known {
			if n > 0 {
				yield(formats.Extent{Off: off, Len: n, Kind: formats.Data}, nil)
			}
			return
		}
		var open formats.Extent // neighbours of one kind are one extent
		for at, end := off, off+n; at < end; {
			if err := ctx.Err(); err != nil {
				yield(formats.Extent{}, context.Cause(ctx))
				return
			}
			b, err := d.ask(id, at, end)
			if err != nil {
				yield(formats.Extent{}, fmt.Errorf("nbd: map at %d: %w", at, err))
				return
			}
			for ; len(b) > 0 && at < end; b = b[8:] {
				e := formats.Extent{Off: at, Len: min(int64(binary.BigEndian.Uint32(b)), end-at), Kind: kind(binary.BigEndian.Uint32(b[4:]))}
				if e.Len == 0 {
					yield(formats.Extent{}, fmt.Errorf("nbd: map at %d: %w: an extent of no bytes", at, ErrProtocol))
					return
				}
				at = e.End()
				if open.Len > 0 && open.Kind == e.Kind {
					open.Len += e.Len
					continue
				}
				if open.Len > 0 && !yield(open, nil) {
					return
				}
				open = e
			}
		}
		if open.Len > 0 {
			yield(open, nil)
		}
	}
}

// ask asks for the map from at on. What is answered may be less, or more, than was asked for, but
// begins there; the first extent begins on a block at or before at.
func (d *Disk) ask(id uint32, at, end int64) ([]byte, error) {
	block := d.export.min
	from := at - at%block
	to := min(end+(block-end%block)%block, from+maxMap)
	r := &request{cmd: cmdStatus, off: from, n: to - from, of: id}
	d.pick().start(r)
	if err := r.wait(); err != nil {
		return nil, err
	}
	b := r.status
	for skip := at - from; skip > 0 && len(b) > 0; {
		n := int64(binary.BigEndian.Uint32(b))
		if n > skip {
			binary.BigEndian.PutUint32(b, uint32(n-skip))
			break
		}
		skip -= n
		b = b[8:]
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: a map that ends before it begins", ErrProtocol)
	}
	return b, nil
}
