package qcow2

import (
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
)

// store keeps the few tables of a file that are being changed, by their offset.
type store struct {
	f     formats.File
	size  int64 // of a table
	limit int
	all   map[int64]*table
	last  *table
	clock uint64
}

type table struct {
	off   int64
	data  []byte
	dirty bool
	used  uint64
}

// newStore keeps as many tables as take some 4 MiB.
func newStore(f formats.File, size int64) store {
	return store{f: f, size: size, limit: int(min(max(4<<20/size, 2), 64)), all: make(map[int64]*table)}
}

// get answers the table at off, reading it if need be.
func (s *store) get(off int64) (*table, error) {
	if s.last != nil && s.last.off == off {
		return s.last, nil
	}
	t := s.all[off]
	if t == nil {
		var err error
		if t, err = s.room(off); err != nil {
			return nil, err
		}
		if n, err := s.f.ReadAt(t.data, off); n < len(t.data) {
			delete(s.all, off)
			return nil, fmt.Errorf("qcow2: read a table at %d: %w", off, unexpected(err))
		}
	}
	return s.use(t), nil
}

// fresh answers a new, empty table at off.
func (s *store) fresh(off int64) (*table, error) {
	t, err := s.room(off)
	if err != nil {
		return nil, err
	}
	clear(t.data)
	t.dirty = true
	return s.use(t), nil
}

func (s *store) use(t *table) *table {
	s.clock++
	t.used = s.clock
	s.last = t
	return t
}

// room makes room for a table at off, if need be by writing the one that was not used for longest.
func (s *store) room(off int64) (*table, error) {
	t := &table{off: off}
	if len(s.all) < s.limit {
		t.data = make([]byte, s.size)
	} else {
		var oldest *table
		for _, o := range s.all {
			if oldest == nil || o.used < oldest.used {
				oldest = o
			}
		}
		if err := s.write(oldest); err != nil {
			return nil, err
		}
		delete(s.all, oldest.off)
		t.data = oldest.data
	}
	s.all[off] = t
	s.last = nil
	return t, nil
}

func (s *store) write(t *table) error {
	if !t.dirty {
		return nil
	}
	if _, err := s.f.WriteAt(t.data, t.off); err != nil {
		return fmt.Errorf("qcow2: write a table at %d: %w", t.off, err)
	}
	t.dirty = false
	return nil
}

// flush writes every table that changed.
func (s *store) flush() error {
	for _, t := range s.all {
		if err := s.write(t); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) entry(i int64) uint64 { return binary.BigEndian.Uint64(t.data[i*8:]) }

func (t *table) setEntry(i int64, v uint64) {
	binary.BigEndian.PutUint64(t.data[i*8:], v)
	t.dirty = true
}
