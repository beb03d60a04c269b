package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"hypersdk/formats"
)

const (
	pageSize    = 4 << 10
	pageEntries = pageSize / 4
	// heldPages is how many pages of tables a writer keeps: 8 GiB of the disk.
	heldPages = 128
)

// tablePages is the grain tables of a disk being written, one flat array, a few pages of it in memory.
// Every page is stored twice.
type tablePages struct {
	f    formats.File
	at   [2]int64 // where the tables, and their copies, begin in the file
	held map[int64]*tablePage
}

type tablePage struct {
	b     [pageSize]byte
	dirty bool
}

// tableEntry is the entry of a grain, in its page.
type tableEntry struct {
	page *tablePage
	b    []byte
}

func (t *tablePages) entry(grain int64) (tableEntry, error) {
	p, err := t.page(grain / pageEntries)
	if err != nil {
		return tableEntry{}, err
	}
	return tableEntry{p, p.b[grain%pageEntries*4:][:4]}, nil
}

func (t *tablePages) page(no int64) (*tablePage, error) {
	if p := t.held[no]; p != nil {
		return p, nil
	}
	if len(t.held) >= heldPages {
		if err := t.flush(); err != nil {
			return nil, err
		}
		clear(t.held)
	}
	p := new(tablePage)
	n, err := t.f.ReadAt(p.b[:], t.at[0]+no*pageSize)
	if n < len(p.b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = formats.ErrCorrupt
		}
		return nil, fmt.Errorf("vmdk: grain tables at byte %d of the file: %w", t.at[0]+no*pageSize, err)
	}
	t.held[no] = p
	return p, nil
}

// flush writes the pages that were changed, in order.
func (t *tablePages) flush() error {
	var dirty []int64
	for no, p := range t.held {
		if p.dirty {
			dirty = append(dirty, no)
		}
	}
	slices.Sort(dirty)
	for _, no := range dirty {
		p := t.held[no]
		for _, at := range t.at {
			if _, err := t.f.WriteAt(p.b[:], at+no*pageSize); err != nil {
				return fmt.Errorf("vmdk: grain tables at byte %d of the file: %w", at+no*pageSize, err)
			}
		}
		p.dirty = false
	}
	return nil
}

// kept is what keep found.
type kept struct {
	n   int64 // grains
	end int64 // the number behind the last one's
}

// keep clears all entries but those of the sectors [low, high), for a disk of that many grains.
func (t *tablePages) keep(ctx context.Context, grains int64, low, high uint32) (kept, error) {
	var k kept
	for no := int64(0); no*pageEntries < grains; no++ {
		if err := context.Cause(ctx); err != nil {
			return k, err
		}
		p, err := t.page(no)
		if err != nil {
			return k, err
		}
		if p.b == ([pageSize]byte{}) {
			if err := t.clearCopy(no); err != nil {
				return k, err
			}
			delete(t.held, no)
			continue
		}
		// The copy of a page may be newer or older than the page: both are written again.
		p.dirty = true
		for i := 0; i < pageSize; i += 4 {
			switch v := binary.LittleEndian.Uint32(p.b[i:]); {
			case v == 0:
			case v >= low && v < high && (v-low)%grainSectors == 0:
				k.n, k.end = k.n+1, no*pageEntries+int64(i/4)+1
			default:
				clear(p.b[i : i+4])
			}
		}
	}
	return k, nil
}

// clearCopy clears the copy of a page that is all zeros.
func (t *tablePages) clearCopy(no int64) error {
	var b [pageSize]byte
	at := t.at[1] + no*pageSize
	n, err := t.f.ReadAt(b[:], at)
	if n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = formats.ErrCorrupt
		}
		return fmt.Errorf("copy at byte %d of the file: %w", at, err)
	}
	if b == ([pageSize]byte{}) {
		return nil
	}
	clear(b[:])
	_, err = t.f.WriteAt(b[:], at)
	return err
}
