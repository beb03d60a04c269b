package qcow2

import (
	"encoding/binary"
	"math"
)

// l1Part is how many entries of the L1 table are read or written at once.
const l1Part = 32 << 10

// refcount answers how often a cluster of the file is used.
func (w *writer) refcount(cluster int64) (uint16, error) {
	t, err := w.refs.get(w.slot(cluster/w.perBlock) << w.clusterBits)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(t.data[cluster%w.perBlock*2:]), nil
}

// count changes how often a cluster of the file is used.
func (w *writer) count(cluster int64, delta int) error {
	t, err := w.refs.get(w.slot(cluster/w.perBlock) << w.clusterBits)
	if err != nil {
		return err
	}
	at := t.data[cluster%w.perBlock*2:]
	n := int(binary.BigEndian.Uint16(at)) + delta
	if n < 0 || n > math.MaxUint16 {
		return corrupt("the refcount of cluster %d would be %d", cluster, n)
	}
	binary.BigEndian.PutUint16(at, uint16(n))
	t.dirty = true
	return nil
}

// passSlot allocates the refcount block of a region that begins at the next cluster.
func (w *writer) passSlot() error {
	if !w.isSlot(w.next) {
		return nil
	}
	if _, err := w.refs.fresh(w.next << w.clusterBits); err != nil {
		return err
	}
	w.next++
	return w.count(w.next-1, 1)
}

// take allocates the next cluster of the file and answers its offset.
func (w *writer) take() (int64, error) {
	if err := w.passSlot(); err != nil {
		return 0, err
	}
	w.next++
	return (w.next - 1) << w.clusterBits, w.count(w.next-1, 1)
}

// takePacked allocates n bytes, less than a cluster, behind the last packed ones: in the rest of their
// cluster, reaching into the next one if that is free too, or else at the beginning of a new one.
func (w *writer) takePacked(n int64) (int64, error) {
	free := -w.pack & (w.cluster() - 1)
	open := w.pack >> w.clusterBits
	if free > 0 {
		users, err := w.refcount(open)
		if err != nil {
			return 0, err
		}
		adjacent := w.next == open+1 && !w.isSlot(w.next)
		if users < math.MaxUint16 && (n <= free || adjacent) {
			if err := w.count(open, 1); err != nil {
				return 0, err
			}
			host := w.pack
			if n > free {
				if _, err := w.take(); err != nil {
					return 0, err
				}
			}
			w.pack += n
			return host, nil
		}
	}
	host, err := w.take()
	if err != nil {
		return 0, err
	}
	w.pack = host + n
	return host, nil
}

// release gives back what an L2 entry refers to.
func (w *writer) release(e uint64) error {
	if e&flagPacked == 0 {
		if host := int64(e & offsetMask); host != 0 {
			return w.count(host>>w.clusterBits, -1)
		}
		return nil
	}
	host, size := w.packedAt(e)
	for c := host >> w.clusterBits; c <= (host+size-1)>>w.clusterBits; c++ {
		if err := w.count(c, -1); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) packedAt(e uint64) (host, size int64) {
	m := mapping{header: &header{clusterBits: w.clusterBits}}
	return m.packedAt(e)
}

// packedEntry is the L2 entry of n packed bytes at host.
func (w *writer) packedEntry(host, n int64) (uint64, error) {
	x := 62 - (w.clusterBits - 8)
	if host >= 1<<x {
		return 0, unsupported("packed clusters behind %d bytes", int64(1)<<x)
	}
	sectors := (host%512 + n + 511) / 512
	return uint64(host) | uint64(sectors-1)<<x | flagPacked, nil
}

// l2 answers the table that maps off and the index of its entry; where there is none and make is
// false, nil.
func (w *writer) l2(off int64, create bool) (*table, int64, error) {
	index := off >> w.clusterBits & (w.l2Entries() - 1)
	i := off / w.cover()
	if e := w.l1[i]; e != 0 {
		t, err := w.l2s.get(int64(e & offsetMask))
		return t, index, err
	}
	if !create {
		return nil, index, nil
	}
	host, err := w.take()
	if err != nil {
		return nil, 0, err
	}
	w.setL1(i, uint64(host)|flagCopied)
	t, err := w.l2s.fresh(host)
	return t, index, err
}

func (w *writer) setL1(i int64, e uint64) {
	w.l1[i] = e
	w.l1Lo, w.l1Hi = min(w.l1Lo, i), max(w.l1Hi, i+1)
}

// flushTables writes all tables that changed.
func (w *writer) flushTables() error {
	if err := w.l2s.flush(); err != nil {
		return err
	}
	if err := w.refs.flush(); err != nil {
		return err
	}
	for w.l1Lo < w.l1Hi {
		part := w.l1[w.l1Lo:min(w.l1Hi, w.l1Lo+l1Part)]
		b := make([]byte, 0, len(part)*8)
		for _, e := range part {
			b = binary.BigEndian.AppendUint64(b, e)
		}
		if err := w.write(b, w.cluster()+w.l1Lo*8); err != nil {
			return err
		}
		w.l1Lo += int64(len(part))
	}
	w.l1Lo, w.l1Hi = w.l1Entries, 0
	return nil
}

// finishTables allocates and writes the refcount table, and the refcount blocks of the regions that it
// reaches into. It answers where the table lies.
func (w *writer) finishTables() (start, clusters int64, err error) {
	if err := w.passSlot(); err != nil {
		return 0, 0, err
	}
	start = w.next
	// More regions make a longer table, which may reach into one more region.
	var regions, extra int64
	for end := start + 1; ; {
		regions = max((end-1)/w.perBlock+1, w.first)
		clusters = w.clusters(regions * 8)
		extra = regions - max((start-1)/w.perBlock+1, w.first)
		if next := start + clusters + extra; next != end {
			end = next
			continue
		}
		break
	}
	table := make([]byte, clusters<<w.clusterBits)
	for r := range regions - extra {
		binary.BigEndian.PutUint64(table[r*8:], uint64(w.slot(r))<<w.clusterBits)
	}
	blocks := make(map[int64][]byte) // of the regions that begin inside
	for i := range extra {
		r := regions - extra + i
		at := start + clusters + i
		blocks[r] = make([]byte, w.cluster())
		binary.BigEndian.PutUint64(table[r*8:], uint64(at)<<w.clusterBits)
	}
	w.next = start + clusters + extra
	for c := start; c < w.next; c++ {
		if b := blocks[c/w.perBlock]; b != nil {
			binary.BigEndian.PutUint16(b[c%w.perBlock*2:], 1)
		} else if err := w.count(c, 1); err != nil {
			return 0, 0, err
		}
	}
	for r, b := range blocks {
		if err := w.write(b, int64(binary.BigEndian.Uint64(table[r*8:]))); err != nil {
			return 0, 0, err
		}
	}
	return start, clusters, w.write(table, start<<w.clusterBits)
}
