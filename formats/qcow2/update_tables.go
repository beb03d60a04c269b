package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"hypersdk/formats"
)

// take allocates a cluster: one that was lost, or the next one at the end of the file.
func (u *updater) take() (int64, error) {
	if n := len(u.spare); n > 0 {
		c := u.spare[n-1]
		u.spare = u.spare[:n-1]
		return c << u.clusterBits, nil // it is counted
	}
	if err := u.countable(); err != nil {
		return 0, err
	}
	u.next++
	return (u.next - 1) << u.clusterBits, u.count(u.next-1, 1)
}

// countable makes sure that the next cluster has a refcount block. A new one is the first cluster of those
// that it counts.
func (u *updater) countable() error {
	for {
		r := u.next / u.perBlock()
		switch {
		case r >= int64(len(u.reftable)):
			if err := u.enlarge(); err != nil {
				return err
			}
		case u.reftable[r] != 0:
			return nil
		default:
			if err := u.addBlock(r); err != nil {
				return err
			}
		}
	}
}

// addBlock makes the next cluster the refcount block of region r, which is its own or a later one.
func (u *updater) addBlock(r int64) error {
	u.reftable[r] = uint64(u.next) << u.clusterBits
	u.refDirty.add(int(r))
	u.refs.fresh(u.next << u.clusterBits)
	u.next++
	return u.count(u.next-1, 1)
}

// enlarge moves the refcount table to where there is room for all that the disk could ever take.
func (u *updater) enlarge() error {
	most := u.next + u.clusters(u.size) + int64(len(u.l1))
	entries := (most+most/u.perBlock())/u.perBlock() + 8
	n := u.clusters(entries * 8)
	entries = (most+n+most/u.perBlock())/u.perBlock() + 8
	n = u.clusters(entries * 8)
	if n<<u.clusterBits > maxReftableBytes {
		return unsupported("overwriting a disk of %d bytes in clusters of %d", u.size, u.cluster())
	}
	old := u.reftableOff >> u.clusterBits
	for c := range u.clusters(int64(len(u.reftable)) * 8) {
		u.freed = append(u.freed, old+c)
	}
	table := make([]uint64, n<<u.clusterBits/8)
	copy(table, u.reftable)
	u.reftable = table
	for r := u.next / u.perBlock(); r <= (u.next+n)/u.perBlock()+1; r++ {
		if u.reftable[r] == 0 {
			if err := u.addBlock(r); err != nil {
				return err
			}
		}
	}
	u.reftableOff, u.moved = u.next<<u.clusterBits, true
	for range n {
		u.next++
		if err := u.count(u.next-1, 1); err != nil {
			return err
		}
	}
	return nil
}

// count notes how often a cluster is used: once, or not at all. What a block said of clusters behind the
// end of the file, a crash may have left there.
func (u *updater) count(cluster int64, times uint16) error {
	block := int64(u.reftable[cluster/u.perBlock()])
	t, err := u.refs.get(block)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint16(t.data[cluster%u.perBlock()*2:], times)
	t.dirty = true
	return nil
}

// flush makes all durable, in an order in which the file is sound at every moment: first the data, and
// what counts and what nothing refers to yet; then the refcount table; then what refers to new clusters.
func (u *updater) flush() error {
	if end := u.next << u.clusterBits; u.end < end {
		if err := u.f.Truncate(end); err != nil {
			return fmt.Errorf("qcow2: set the file's size to %d: %w", end, err)
		}
		u.end = end
	}
	if u.refs.dirty() || u.l2s.dirty() || u.l1Dirty != (span{}) || u.refDirty != (span{}) {
		if err := u.refs.write(func(*liveTable) bool { return true }); err != nil {
			return err
		}
		if err := u.l2s.write(func(t *liveTable) bool { return t.fresh }); err != nil {
			return err
		}
		if u.moved {
			if err := u.writeEntries(u.reftableOff, u.reftable, span{0, len(u.reftable)}); err != nil {
				return err
			}
		}
		if err := u.sync(); err != nil {
			return err
		}
	}
	if err := u.flushReftable(); err != nil {
		return err
	}
	if err := u.l2s.write(func(*liveTable) bool { return true }); err != nil {
		return err
	}
	if err := u.writeEntries(u.l1Off, u.l1, u.l1Dirty); err != nil {
		return err
	}
	if err := u.sync(); err != nil {
		return err
	}
	u.l1Dirty = span{}
	return u.free()
}

// flushReftable makes the new refcount blocks known.
func (u *updater) flushReftable() error {
	if u.refDirty == (span{}) && !u.moved {
		return nil
	}
	if u.moved {
		var b [12]byte
		binary.BigEndian.PutUint64(b[:], uint64(u.reftableOff))
		binary.BigEndian.PutUint32(b[8:], uint32(len(u.reftable)*8>>u.clusterBits))
		if err := u.write(b[:], 48); err != nil { // refcount_table_offset and refcount_table_clusters
			return err
		}
	} else if err := u.writeEntries(u.reftableOff, u.reftable, u.refDirty); err != nil {
		return err
	}
	if err := u.sync(); err != nil {
		return err
	}
	u.refDirty, u.moved = span{}, false
	return nil
}

// free stops counting what nothing refers to any more. It is written with the next flush.
func (u *updater) free() error {
	for _, c := range u.freed {
		if err := u.count(c, 0); err != nil {
			return err
		}
	}
	u.freed = nil
	return nil
}

func (u *updater) sync() error {
	// What a failed sync has lost, a later one does not notice: whoever calls this keeps the error.
	if err := u.f.Sync(); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	return nil
}

// writeEntries writes some entries of a table at off.
func (u *updater) writeEntries(off int64, all []uint64, s span) error {
	for s.lo < s.hi {
		part := all[s.lo:min(s.hi, s.lo+l1Part)]
		b := make([]byte, 0, len(part)*8)
		for _, e := range part {
			b = binary.BigEndian.AppendUint64(b, e)
		}
		if err := u.write(b, off+int64(s.lo)*8); err != nil {
			return err
		}
		s.lo += len(part)
	}
	return nil
}

// liveStore keeps tables of a file that is in use until they are written. It never writes by itself: in
// what order that is done matters.
type liveStore struct {
	f    formats.File
	size int64 // of a table
	all  map[int64]*liveTable
}

type liveTable struct {
	table
	fresh bool // nothing that is durable refers to it
}

func (s *liveStore) bytes() int64 { return int64(len(s.all)) * s.size }

func (s *liveStore) get(off int64) (*table, error) {
	if t := s.all[off]; t != nil {
		return &t.table, nil
	}
	t := s.put(off)
	if n, err := s.f.ReadAt(t.data, off); n < len(t.data) {
		delete(s.all, off)
		return nil, fmt.Errorf("qcow2: read a table at %d: %w", off, unexpected(err))
	}
	return &t.table, nil
}

// fresh is a new, empty table.
func (s *liveStore) fresh(off int64) *table {
	t := s.put(off)
	t.dirty, t.fresh = true, true
	return &t.table
}

func (s *liveStore) put(off int64) *liveTable {
	if s.all == nil {
		s.all = make(map[int64]*liveTable)
	}
	t := &liveTable{table: table{off: off, data: make([]byte, s.size)}}
	s.all[off] = t
	return t
}

func (s *liveStore) dirty() bool {
	for _, t := range s.all {
		if t.dirty {
			return true
		}
	}
	return false
}

// write writes the tables that changed, as far as they are wanted, in the order of the file.
func (s *liveStore) write(wanted func(*liveTable) bool) error {
	for _, off := range slices.Sorted(maps.Keys(s.all)) {
		t := s.all[off]
		if !t.dirty || !wanted(t) {
			continue
		}
		if _, err := s.f.WriteAt(t.data, t.off); err != nil {
			return fmt.Errorf("qcow2: write a table at %d: %w", t.off, err)
		}
		t.dirty, t.fresh = false, false
	}
	return nil
}

// drop forgets the tables that are written.
func (s *liveStore) drop() {
	maps.DeleteFunc(s.all, func(_ int64, t *liveTable) bool { return !t.dirty })
}
