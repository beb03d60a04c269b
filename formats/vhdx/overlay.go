package vhdx

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sort"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// write is a descriptor of the log: what it does to the file.
type write struct {
	off, end int64
	data     int64   // offset of its sector of data in the file; 0: zeros
	lead     [8]byte // what the signature and numbers of that sector stand in place of
	trail    [4]byte
}

// overlay is a file with the writes of a log over it.
type overlay struct {
	file blocks.File
	size int64
	all  []write // ascending, no two share bytes
}

// overlay gathers what the entries write to a file that will have size bytes.
func (l *log) overlay(entries []entry, size int64) (*overlay, error) {
	var all []write // in the order they were logged
	for _, e := range entries {
		data := e.heads()
		for i := range e.heads() {
			b, err := l.sector((e.at + i) % l.sectors)
			if err != nil {
				return nil, err
			}
			for d := range e.in(b, i) {
				w, err := parseWrite(d, size)
				if err != nil {
					return nil, err
				}
				if string(d[:4]) == descSignature {
					w.data = l.off + (e.at+data)%l.sectors*logSector
					data++
				}
				all = append(all, w)
			}
			if len(all) > maxWrites {
				return nil, fmt.Errorf("more than %d writes: %w", maxWrites, formats.ErrFormat)
			}
		}
	}
	return &overlay{file: l.file, size: size, all: flatten(all)}, nil
}

// parseWrite reads a descriptor, [MS-VHDX] 2.3.1.2 and 2.3.1.3.
func parseWrite(d []byte, size int64) (write, error) {
	le := binary.LittleEndian
	off, n := le.Uint64(d[16:]), uint64(logSector)
	w := write{off: int64(off)}
	if string(d[:4]) == zeroSignature {
		n = le.Uint64(d[8:])
	} else {
		copy(w.trail[:], d[4:8])
		copy(w.lead[:], d[8:16])
	}
	if off > maxOffset || n > maxOffset || off%logSector != 0 || n%logSector != 0 || int64(off+n) > blocks.Up(size, logSector) {
		return w, fmt.Errorf("a descriptor of %d bytes at %d of a file of %d: %w", n, off, size, formats.ErrCorrupt)
	}
	w.end = int64(off + n)
	return w, nil
}

// flatten cuts writes, given in the order they were made, to what each of them leaves in the end.
// Writes of data are one sector each, so they are kept whole or lost whole.
func flatten(all []write) []write {
	byOff := make([]int, len(all))
	for i := range byOff {
		byOff[i] = i
	}
	slices.SortFunc(byOff, func(a, b int) int { return cmp.Compare(all[a].off, all[b].off) })
	var (
		out  []write
		live latest // the writes that cover at, and older ones that have ended
		at   int64
	)
	for next := 0; next < len(byOff) || len(live) > 0; {
		for len(live) > 0 && all[live[0]].end <= at {
			heap.Pop(&live)
		}
		if len(live) == 0 {
			if next == len(byOff) {
				break
			}
			at = all[byOff[next]].off
		}
		for next < len(byOff) && all[byOff[next]].off <= at {
			heap.Push(&live, byOff[next])
			next++
		}
		w := all[live[0]]
		if w.end <= at {
			continue
		}
		// The latest write counts up to its end, or to where the next one begins.
		w.off = at
		if next < len(byOff) {
			w.end = min(w.end, all[byOff[next]].off)
		}
		at = w.end
		if n := len(out); n > 0 && w.data == 0 && out[n-1].data == 0 && out[n-1].end == w.off {
			out[n-1].end = w.end
			continue
		}
		out = append(out, w)
	}
	return out
}

// latest is a heap of indexes, the highest first.
type latest []int

func (h latest) Len() int           { return len(h) }
func (h latest) Less(i, j int) bool { return h[i] > h[j] }
func (h latest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *latest) Push(x any)        { *h = append(*h, x.(int)) }
func (h *latest) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// ReadAt reads the file as it will be: what lies behind its present end is zeros.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= o.size {
		return 0, io.EOF
	}
	whole := int64(len(p)) <= o.size-off
	p = p[:min(int64(len(p)), o.size-off)]
	n := max(0, min(int64(len(p)), o.file.Size-off))
	if err := o.file.ReadFull(p[:n], min(off, o.file.Size)); err != nil {
		return 0, err
	}
	clear(p[n:])
	end := off + int64(len(p))
	for i := sort.Search(len(o.all), func(i int) bool { return o.all[i].end > off }); i < len(o.all) && o.all[i].off < end; i++ {
		if err := o.apply(o.all[i], p, off); err != nil {
			return 0, err
		}
	}
	if !whole {
		return len(p), io.EOF
	}
	return len(p), nil
}

// apply lays one write over p, which begins at off of the file.
func (o *overlay) apply(w write, p []byte, off int64) error {
	from, to := max(w.off, off), min(w.end, off+int64(len(p)))
	part := p[from-off : to-off]
	if w.data == 0 {
		clear(part)
		return nil
	}
	var b [logSector]byte
	if err := o.file.ReadFull(b[:], w.data); err != nil {
		return err
	}
	copy(b[:], w.lead[:])
	copy(b[logSector-len(w.trail):], w.trail[:])
	copy(part, b[from-w.off:])
	return nil
}
