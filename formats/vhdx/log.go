package vhdx

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// The log, [MS-VHDX] 2.3: a ring of entries, each of whole sectors of 4 KiB. An entry begins with its
// header and descriptors, then comes one sector of data for each data descriptor.
const (
	logSector       = 4 * kib
	entrySignature  = "loge"
	descSignature   = "desc"
	zeroSignature   = "zero"
	dataSignature   = "data"
	entryHeaderSize = 64
	descriptorSize  = 32
	// maxLog and maxWrites bound what a log may hold: Hyper-V's have 1 MiB.
	maxLog    = 256 * mib
	maxWrites = 1 << 18
)

// entry is a valid log entry, [MS-VHDX] 2.3.1.1.
type entry struct {
	at          int64 // in the log, in sectors
	sectors     int64
	tail        int64 // in sectors: the oldest entry that was needed when this one was written
	sequence    uint64
	descriptors int64
	flushed     int64 // the file had at least this length on the disk
	last        int64 // and is to have this one
}

// next is where the entry behind e begins.
func (e entry) next(l *log) int64 { return (e.at + e.sectors) % l.sectors }

// log reads a log.
type log struct {
	file    blocks.File
	off     int64
	sectors int64
	id      blocks.ID
	buf     []byte // what was read last, from the sector first on
	first   int64
}

// readAhead is how many sectors are read at once.
const readAhead = 64

// replay answers r as it is once its log has been written to where it belongs, without writing: what
// the log holds lies over the file. n is the number of entries replayed.
func replay(ctx context.Context, r blocks.File, h header) (_ blocks.File, n int, err error) {
	if h.log == (blocks.ID{}) {
		return r, 0, nil
	}
	if h.logLen > maxLog {
		return r, 0, fmt.Errorf("log: %d bytes, at most %d are read: %w", h.logLen, maxLog, formats.ErrFormat)
	}
	if !r.Holds(h.logOff, h.logLen) {
		return r, 0, fmt.Errorf("log: %d bytes at %d, the file ends at %d: %w", h.logLen, h.logOff, r.Size, formats.ErrCorrupt)
	}
	l := &log{file: r, off: h.logOff, sectors: h.logLen / logSector, id: h.log}
	entries, err := l.active(ctx)
	if err != nil {
		return r, 0, fmt.Errorf("log: %w", err)
	}
	size := r.Size
	for _, e := range entries {
		if e.flushed > r.Size {
			return r, 0, fmt.Errorf("log: the file had %d bytes when it was written and has %d now: it was cut short: %w", e.flushed, r.Size, formats.ErrCorrupt)
		}
		size = max(size, e.last)
	}
	over, err := l.overlay(entries, size)
	if err != nil {
		return r, 0, fmt.Errorf("log: %w", err)
	}
	return blocks.File{ReaderAt: over, Size: size}, len(entries), nil
}

// active finds the active sequence, [MS-VHDX] 2.3.2: of all runs of valid entries with consecutive
// numbers that reach back to their own tail, the one with the highest number. It answers the entries
// from the tail on. What is torn or old is no part of it.
func (l *log) active(ctx context.Context) ([]entry, error) {
	valid := make(map[int64]entry)
	var order []int64
	for at := int64(0); at < l.sectors; at++ {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		e, ok, err := l.entry(at)
		if err != nil {
			return nil, err
		}
		if ok {
			valid[at] = e
			order = append(order, at)
		}
	}
	// No two valid entries share a sector, so each has at most one before it and one behind it.
	behind := func(e entry) (entry, bool) {
		n, ok := valid[e.next(l)]
		return n, ok && n.sequence == e.sequence+1
	}
	follows := make(map[int64]bool)
	for _, at := range order {
		if n, ok := behind(valid[at]); ok {
			follows[n.at] = true
		}
	}
	var best []entry
	for _, at := range order {
		if follows[at] {
			continue
		}
		run := []entry{valid[at]}
		for n, ok := behind(run[0]); ok; n, ok = behind(n) {
			run = append(run, n)
		}
		head := run[len(run)-1]
		if best != nil && head.sequence <= best[len(best)-1].sequence {
			continue
		}
		for i := range run {
			if run[i].at == head.tail {
				best = run[i:]
				break
			}
		}
	}
	if best == nil {
		return nil, fmt.Errorf("it is in use and holds no valid sequence of entries: %w", formats.ErrCorrupt)
	}
	return best, nil
}

// sector answers a sector of the log, until the next call.
func (l *log) sector(i int64) ([]byte, error) {
	if l.buf == nil || i < l.first || (i-l.first+1)*logSector > int64(len(l.buf)) {
		l.first = i
		l.buf = append(l.buf[:0], make([]byte, min(readAhead, l.sectors-i)*logSector)...)
		if err := l.file.ReadFull(l.buf, l.off+i*logSector); err != nil {
			l.buf = nil
			return nil, err
		}
	}
	return l.buf[(i-l.first)*logSector:][:logSector], nil
}

// entry reads the entry that begins at a sector; ok is false where there is none that is whole. It
// stops at the first sector that cannot belong to it, so that all calls together read the log twice.
func (l *log) entry(at int64) (e entry, ok bool, err error) {
	le := binary.LittleEndian
	b, err := l.sector(at)
	if err != nil || string(b[:4]) != entrySignature {
		return e, false, err
	}
	length, tail := int64(le.Uint32(b[8:])), int64(le.Uint32(b[12:]))
	want := le.Uint32(b[4:])
	e = entry{
		at:          at,
		sectors:     length / logSector,
		tail:        tail / logSector,
		sequence:    le.Uint64(b[16:]),
		descriptors: int64(le.Uint32(b[24:])),
		flushed:     int64(le.Uint64(b[48:])),
		last:        int64(le.Uint64(b[56:])),
	}
	heads := e.heads()
	if length%logSector != 0 || tail%logSector != 0 || e.tail >= l.sectors || e.sectors > l.sectors || heads > e.sectors ||
		e.sequence == 0 || blocks.GUID(b[32:]) != l.id || uint64(e.flushed) > maxOffset || uint64(e.last) > maxOffset {
		return e, false, nil
	}
	data := int64(0)
	sum := uint32(0)
	for i := range e.sectors {
		if b, err = l.sector((at + i) % l.sectors); err != nil {
			return e, false, err
		}
		switch {
		case i < heads:
			n, ok := e.scan(b, i)
			if !ok {
				return e, false, nil
			}
			data += n
		case string(b[:4]) != dataSignature || le.Uint32(b[4:]) != uint32(e.sequence>>32) || le.Uint32(b[logSector-4:]) != uint32(e.sequence):
			return e, false, nil
		}
		if i == 0 {
			sum = crc32.Update(0, castagnoli, b[:4])
			sum = crc32.Update(sum, castagnoli, make([]byte, 4))
			b = b[8:]
		}
		sum = crc32.Update(sum, castagnoli, b)
	}
	return e, sum == want && heads+data == e.sectors, nil
}

// heads is how many sectors hold the header and the descriptors.
func (e entry) heads() int64 {
	return (entryHeaderSize + e.descriptors*descriptorSize + logSector - 1) / logSector
}

// scan checks the descriptors in the i-th sector of the entry, and counts those of data.
func (e entry) scan(b []byte, i int64) (data int64, ok bool) {
	le := binary.LittleEndian
	for d := range e.in(b, i) {
		if le.Uint64(d[24:]) != e.sequence {
			return 0, false
		}
		switch string(d[:4]) {
		case descSignature:
			data++
		case zeroSignature:
		default:
			return 0, false
		}
	}
	return data, true
}

// in yields the descriptors in the i-th sector of the entry.
func (e entry) in(b []byte, i int64) func(yield func([]byte) bool) {
	first, skip := i*(logSector/descriptorSize)-entryHeaderSize/descriptorSize, int64(0)
	if i == 0 {
		first, skip = 0, entryHeaderSize
	}
	return func(yield func([]byte) bool) {
		for at := skip; at < logSector && first < e.descriptors; at, first = at+descriptorSize, first+1 {
			if !yield(b[at:][:descriptorSize]) {
				return
			}
		}
	}
}
