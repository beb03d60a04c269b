package qcow2

import (
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
)

const defaultClusterSize = 64 << 10

// layout is where things lie in a file that we write, in clusters:
//
//	0                  header, written last
//	1 …                L1 table
//	… start            refcount blocks of the regions that begin before start
//	start …            data, packed clusters and L2 tables, in the order in which they are needed
//	region × perBlock  refcount block of each region that begins at start or later
//	at the end         refcount table
//
// A region is what one refcount block counts. That all of this follows from the size of the disk and
// of the clusters is what makes going on after a crash need no list of blocks.
type layout struct {
	clusterBits uint
	size        int64 // of the disk
	l1Entries   int64
	perBlock    int64 // clusters in a region
	first       int64 // the first region whose block lies at its own beginning
	start       int64 // the first cluster behind the tables at the front
}

func newLayout(size, clusterSize int64) (layout, error) {
	if clusterSize == 0 {
		clusterSize = defaultClusterSize
	}
	l := layout{size: size}
	for l.clusterBits = minClusterBits; l.clusterBits < maxClusterBits && int64(1)<<l.clusterBits < clusterSize; l.clusterBits++ {
	}
	if clusterSize != l.cluster() {
		return l, unsupported("clusters of %d bytes: powers of two from %d to %d are", clusterSize, 1<<minClusterBits, 1<<maxClusterBits)
	}
	if size < 0 || size > maxDiskSize || size%512 != 0 {
		return l, unsupported("a disk of %d bytes: multiples of 512 are", size)
	}
	cover := l.cover()
	l.l1Entries = (size + cover - 1) / cover
	l.perBlock = l.cluster() / 2
	front := 1 + l.clusters(l.l1Entries*8)
	for l.first = 1; l.first*l.perBlock < front+l.first; l.first++ {
	}
	l.start = front + l.first
	// Were every cluster of the disk stored, the refcount table would have this size.
	most := l.start + l.clusters(size) + l.l1Entries
	table := (most/l.perBlock + 2) * 8
	if l.l1Entries*8 > maxL1Bytes || table > maxReftableBytes {
		return l, unsupported("a disk of %d bytes in clusters of %d: larger clusters are", size, l.cluster())
	}
	return l, nil
}

func (l *layout) cluster() int64            { return 1 << l.clusterBits }
func (l *layout) l2Entries() int64          { return l.cluster() / 8 }
func (l *layout) cover() int64              { return l.l2Entries() << l.clusterBits }
func (l *layout) clusters(n int64) int64    { return (n + l.cluster() - 1) >> l.clusterBits }
func (l *layout) isSlot(cluster int64) bool { return cluster >= l.start && cluster%l.perBlock == 0 }

// slot is the cluster of a region's refcount block.
func (l *layout) slot(region int64) int64 {
	if region < l.first {
		return l.start - l.first + region
	}
	return region * l.perBlock
}

// header is the first cluster of a finished file.
func (w *writer) header(table, tableClusters int64) []byte {
	be := binary.BigEndian
	b := make([]byte, w.cluster())
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], uint32(w.clusterBits))
	be.PutUint64(b[24:], uint64(w.size))
	be.PutUint32(b[36:], uint32(w.l1Entries))
	be.PutUint64(b[40:], uint64(w.cluster()))
	be.PutUint64(b[48:], uint64(table)<<w.clusterBits)
	be.PutUint32(b[56:], uint32(tableClusters))
	be.PutUint32(b[96:], 4) // refcounts of 16 bits
	be.PutUint32(b[100:], headerLen)
	if w.codec == formats.Zstd {
		be.PutUint64(b[72:], incompatCompression)
		b[104] = compressionZstd
	}
	if w.opt.Backing == "" {
		return b
	}
	at := headerLen
	be.PutUint32(b[at:], extBackingFmt)
	be.PutUint32(b[at+4:], uint32(len(w.opt.BackingFmt)))
	copy(b[at+8:], w.opt.BackingFmt)
	at += 8 + (len(w.opt.BackingFmt)+7)&^7
	at += 8 // end of the extensions
	be.PutUint64(b[8:], uint64(at))
	be.PutUint32(b[16:], uint32(len(w.opt.Backing)))
	copy(b[at:], w.opt.Backing)
	return b
}

func (l *layout) checkBacking(o formats.CreateOptions) error {
	if o.Backing == "" {
		if o.BackingFmt != "" {
			return unsupported("a backing format without a backing file")
		}
		return nil
	}
	if o.BackingFmt == "" {
		return unsupported("a backing file without its format")
	}
	if len(o.BackingFmt) > 64 || len(o.Backing) > maxBackingName || int64(headerLen+24+len(o.BackingFmt)+len(o.Backing)) > l.cluster() {
		return fmt.Errorf("qcow2: a backing file name of %d bytes does not fit into the first cluster: %w", len(o.Backing), formats.ErrFormat)
	}
	return nil
}
