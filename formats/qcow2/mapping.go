package qcow2

import (
	"encoding/binary"
	"fmt"
)

const (
	flagCopied = 1 << 63
	flagPacked = 1 << 62 // L2 entries only
	flagZero   = 1 << 0  // L2 entries only, from version 3 on

	offsetMask = 0x00fffffffffffe00

	subclusters = 32
)

// state says what a stretch of the disk is in this file.
type state uint8

const (
	unallocated state = iota // the backing file's, or zeros
	zero
	plain
	packed
)

// run is a stretch of the disk of one state.
type run struct {
	state state
	n     int64 // bytes of the disk
	host  int64 // plain and packed: where it begins in the file
	size  int64 // packed: bytes in the file, up to 511 of which may belong to another

	mapped bool // by an L2 table
}

// mapping finds the clusters of one disk: the active one or a snapshot's.
type mapping struct {
	*header
	file      *file
	tables    *tables
	l1        int64 // offset of the L1 table
	l1Entries int64
	l1Kept    []byte // all of the L1 table; nil: it is read in pages
}

// keepL1 reads the L1 table where it is small. One that reaches beyond the end of the file is left to be
// found when it is used.
func (m *mapping) keepL1() error {
	n := m.l1Entries * 8
	if n > keptL1 || m.l1 > m.file.size-n {
		return nil
	}
	b := make([]byte, n)
	if got, err := m.file.r.ReadAt(b, m.l1); got < len(b) {
		return fmt.Errorf("qcow2: read the L1 table at %d: %w", m.l1, unexpected(err))
	}
	m.l1Kept = b
	return nil
}

// l1At answers the entries of the L1 table from index on, as far as they are at hand.
func (m *mapping) l1At(index int64) ([]byte, error) {
	if m.l1Kept != nil {
		return m.l1Kept[index*8:], nil
	}
	entries, err := m.tables.at(m.file, m.l1+index*8)
	if err != nil {
		return nil, err
	}
	return entries[:min(int64(len(entries)), (m.l1Entries-index)*8)], nil
}

// find answers what lies at off, as a stretch of at most limit bytes. It ends at the latest where the
// page of the table ends.
func (m *mapping) find(off, limit int64) (run, error) {
	l2, n, err := m.findL2(off)
	if err != nil {
		return run{}, err
	}
	if l2 == 0 {
		return run{state: unallocated, n: min(n, limit)}, nil
	}
	index := off >> m.clusterBits & (m.l2Entries() - 1)
	entries, err := m.tables.at(m.file, l2+index<<m.l2EntryBits())
	if err != nil {
		return run{}, err
	}
	size := int64(1) << m.l2EntryBits()
	entries = entries[:min(int64(len(entries)), (m.l2Entries()-index)*size)]
	if int64(len(entries)) < size {
		return run{}, corrupt("an L2 table at %d reaches beyond the end of the file", l2)
	}
	var r run
	for at := off; int64(len(entries)) >= size && r.n < limit; entries = entries[size:] {
		more, err := m.cluster(entries, at)
		if err != nil {
			return run{}, err
		}
		if !r.join(more) {
			break
		}
		at += more.n
		if at%m.clusterSize() != 0 {
			break // the rest of the cluster is something else
		}
		// Most of an overlay is nothing: it is passed over quickly.
		for r.state == unallocated && size == 8 && len(entries) >= 16 && binary.BigEndian.Uint64(entries[8:]) == 0 && r.n < limit {
			r.n, at, entries = r.n+m.clusterSize(), at+m.clusterSize(), entries[8:]
		}
	}
	r.n, r.mapped = min(r.n, limit), true
	return r, nil
}

// join appends what follows, if it is more of the same.
func (r *run) join(next run) bool {
	switch {
	case r.n == 0:
		*r = next
		return true
	case r.state != next.state, r.state == packed, r.state == plain && r.host+r.n != next.host:
		return false
	}
	r.n += next.n
	return true
}

// findL2 answers the offset of the L2 table that maps off. Where there is none it is 0, and n is how
// far there is none.
func (m *mapping) findL2(off int64) (l2, n int64, err error) {
	cover := m.l2Cover()
	index := off / cover
	if index >= m.l1Entries {
		return 0, 0, corrupt("the L1 table has %d entries, offset %d has index %d", m.l1Entries, off, index)
	}
	entries, err := m.l1At(index)
	if err != nil {
		return 0, 0, err
	}
	for ; len(entries) >= 8; entries = entries[8:] {
		e := binary.BigEndian.Uint64(entries)
		if e == 0 {
			n += cover
			continue
		}
		if n > 0 {
			break
		}
		l2, err := m.l2Offset(e)
		return l2, cover, err
	}
	if n == 0 {
		return 0, 0, corrupt("the L1 table at %d reaches beyond the end of the file", m.l1)
	}
	return 0, n - off%cover, nil
}

// l2Offset takes the offset of an L2 table from an L1 entry.
func (m *mapping) l2Offset(e uint64) (int64, error) {
	off := int64(e & offsetMask)
	if e&^(offsetMask|flagCopied) != 0 || off%m.clusterSize() != 0 {
		return 0, corrupt("L1 entry %#x", e)
	}
	return off, nil
}

// cluster answers what lies from off to the end of its cluster, or of a run of its subclusters.
func (m *mapping) cluster(entry []byte, off int64) (run, error) {
	e := binary.BigEndian.Uint64(entry)
	in := off & (m.clusterSize() - 1)
	rest := m.clusterSize() - in
	if e&flagPacked != 0 {
		host, size := m.packedAt(e)
		return run{state: packed, n: rest, host: host, size: size}, nil
	}
	host := int64(e & offsetMask)
	if host%m.clusterSize() != 0 || e&^(offsetMask|flagCopied|flagZero) != 0 {
		return run{}, corrupt("L2 entry %#x of the cluster at %d", e, off-in)
	}
	if e&flagZero != 0 && (m.version < 3 || m.extendedL2()) {
		return run{}, corrupt("L2 entry %#x of the cluster at %d: zero flag", e, off-in)
	}
	if m.extendedL2() {
		return m.subcluster(host, binary.BigEndian.Uint64(entry[8:]), off)
	}
	switch {
	case e&flagZero != 0:
		return run{state: zero, n: rest}, nil
	case host == 0:
		return run{state: unallocated, n: rest}, nil
	}
	return run{state: plain, n: rest, host: host + in}, nil
}

// packedAt splits a compressed cluster descriptor.
func (m *mapping) packedAt(e uint64) (host, size int64) {
	x := 62 - (m.clusterBits - 8)
	host = int64(e & (1<<x - 1))
	sectors := int64(e>>x&(1<<(m.clusterBits-8)-1)) + 1
	return host, sectors*512 - host%512
}

// subcluster answers the run of equal subclusters at off. bitmap says for each subcluster whether it
// is allocated (low half) and whether it reads as zeros (high half).
func (m *mapping) subcluster(host int64, bitmap uint64, off int64) (run, error) {
	if bitmap>>32&bitmap&0xffffffff != 0 {
		return run{}, corrupt("subcluster bitmap %#x of the cluster at %d", bitmap, off&^(m.clusterSize()-1))
	}
	if uint32(bitmap) != 0 && host == 0 {
		return run{}, corrupt("subclusters of the cluster at %d are allocated nowhere", off&^(m.clusterSize()-1))
	}
	bits := m.clusterBits - 5
	in := off & (m.clusterSize() - 1)
	first := in >> bits
	kind := subclusterState(bitmap, first)
	end := first + 1
	for end < subclusters && subclusterState(bitmap, end) == kind {
		end++
	}
	r := run{state: kind, n: end<<bits - in}
	if kind == plain {
		r.host = host + in
	}
	return r, nil
}

func subclusterState(bitmap uint64, i int64) state {
	switch {
	case bitmap>>i&1 != 0:
		return plain
	case bitmap>>(32+i)&1 != 0:
		return zero
	}
	return unallocated
}
