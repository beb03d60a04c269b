package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"hypersdk/formats"
)

const (
	// checkWindow is how many clusters are counted at once, and l2Window among how many L2 tables are
	// looked for, so that memory does not grow with the file: a larger one is walked several times.
	checkWindow = 12 << 20
	l2Window    = 2 << 20
	// maxProblems is how many problems are described; all are counted.
	maxProblems = 100
)

// CheckResult says whether what the refcounts of a file count is what its tables refer to.
type CheckResult struct {
	// Corruptions are clusters used more often than counted, and entries that lead nowhere: writing
	// to the image may destroy data.
	Corruptions int64 `json:"corruptions"`
	// Leaks are clusters counted more often than used: space is lost, nothing else.
	Leaks      int64    `json:"leaks"`
	Allocated  int64    `json:"allocated_clusters"`  // of the disk, as it is now
	Compressed int64    `json:"compressed_clusters"` // of them
	End        int64    `json:"image_end_offset"`    // of the last cluster in use, bytes of the file
	Problems   []string `json:"problems,omitempty"`  // the first ones, described
}

// Check compares the refcounts of the file with the references in its tables, the internal snapshots'
// and the bitmaps' included. It reads the tables and no data, and only this file, not those behind it.
func (m *Image) Check(ctx context.Context) (CheckResult, error) { return m.examine(ctx, nil) }

func (m *Image) examine(ctx context.Context, leaked func(cluster int64)) (CheckResult, error) {
	c := checker{Image: m, clusters: (m.file.size + m.clusterSize() - 1) >> m.clusterBits, leaked: leaked}
	if err := c.collect(); err != nil {
		return c.res, err
	}
	for c.lo = 0; c.lo < max(c.clusters, 1); c.lo += checkWindow {
		c.counts = sized(c.counts, min(checkWindow, c.clusters-c.lo))
		if err := c.count(ctx); err != nil {
			return c.res, err
		}
		if err := c.compare(ctx); err != nil {
			return c.res, err
		}
	}
	return c.res, nil
}

func sized(b []uint16, n int64) []uint16 {
	if int64(cap(b)) < n {
		return make([]uint16, n)
	}
	b = b[:n]
	clear(b)
	return b
}

type checker struct {
	*Image
	res      CheckResult
	clusters int64     // in the file
	l1s      []l1Table // the active one first
	bitmaps  []Bitmap
	snapEnd  int64 // of the snapshot table

	lo     int64    // the first cluster of the window
	counts []uint16 // references to each of its clusters; stays at its maximum
	l2s    []uint16 // references to each cluster of another window as an L2 table; activeL2 set: by the active L1
	buf    []byte   // an L2 table

	block     int64 // index of the refcount block that was read last
	blockBuf  []byte
	blockData []byte // of it; nil: there is none

	// leaked is told every cluster that is counted once and not used; nil: nobody wants to know.
	leaked func(cluster int64)
}

type l1Table struct{ off, entries int64 }

const activeL2 = 1 << 15

// first says whether problems are to be noted: each is met once in every window.
func (c *checker) first() bool { return c.lo == 0 }

func (c *checker) corrupt(format string, args ...any) {
	c.res.Corruptions++
	c.note(format, args...)
}

func (c *checker) note(format string, args ...any) {
	if len(c.res.Problems) < maxProblems {
		c.res.Problems = append(c.res.Problems, fmt.Sprintf(format, args...))
	}
}

// collect finds the tables that do not depend on windows. Together they are no longer than the file,
// unless they overlap; without that bound a small file could ask for endless work.
func (c *checker) collect() error {
	c.l1s = []l1Table{{c.header.l1Off, c.header.l1Entries}}
	total := c.header.l1Entries * 8
	c.snapEnd = c.snapshotsOff
	for s, err := range c.eachSnapshot() {
		if err != nil {
			return err
		}
		c.l1s = append(c.l1s, l1Table{s.l1, s.l1Entries})
		total += s.l1Entries * 8
		c.snapEnd = s.end
	}
	var err error
	if c.bitmaps, err = c.Bitmaps(); err != nil {
		return err
	}
	for _, b := range c.bitmaps {
		total += b.entries * 8
	}
	if total > c.file.size {
		return corrupt("tables of %d bytes in a file of %d overlap", total, c.file.size)
	}
	c.buf, c.blockBuf, c.block = make([]byte, c.clusterSize()), make([]byte, c.clusterSize()), -1
	return nil
}

// ref counts references to the clusters that [off, off+n) of the file touches.
func (c *checker) ref(off, n int64, times uint16) {
	if n <= 0 {
		return
	}
	first, last := off>>c.clusterBits, (off+n-1)>>c.clusterBits
	for i := max(first, c.lo); i <= min(last, c.lo+int64(len(c.counts))-1); i++ {
		c.counts[i-c.lo] = uint16(min(uint32(c.counts[i-c.lo])+uint32(times), math.MaxUint16))
	}
}

// count counts all references into the window.
func (c *checker) count(ctx context.Context) error {
	c.ref(0, c.clusterSize(), 1)
	if c.snapshots > 0 {
		c.ref(c.snapshotsOff, c.snapEnd-c.snapshotsOff, 1)
	}
	c.ref(c.reftableOff, c.reftableBytes, 1)
	if err := c.countBlocks(); err != nil {
		return err
	}
	if err := c.countBitmaps(ctx); err != nil {
		return err
	}
	for _, t := range c.l1s {
		c.ref(t.off, t.entries*8, 1)
	}
	for lo := int64(0); lo < c.clusters; lo += l2Window {
		c.l2s = sized(c.l2s, min(l2Window, c.clusters-lo))
		for i, t := range c.l1s {
			if err := c.countL1(ctx, t, i == 0, lo); err != nil {
				return err
			}
		}
		for i, n := range c.l2s {
			if n == 0 {
				continue
			}
			if i%64 == 0 {
				if err := context.Cause(ctx); err != nil {
					return err
				}
			}
			if err := c.countL2((lo+int64(i))<<c.clusterBits, n&^activeL2, n&activeL2 != 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// entries yields the entries of a table of n bytes.
func (c *checker) entries(ctx context.Context, off, n int64, yield func(i int64, e uint64)) error {
	for at := int64(0); at < n; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		b, err := c.tables.at(c.file, off+at)
		if err != nil {
			return err
		}
		b = b[:min(int64(len(b)), n-at)&^7]
		if len(b) == 0 {
			return corrupt("a table at %d reaches beyond the end of the file", off)
		}
		for i := 0; i < len(b); i += 8 {
			if e := binary.BigEndian.Uint64(b[i:]); e != 0 {
				yield((at+int64(i))/8, e)
			}
		}
		at += int64(len(b))
	}
	return nil
}

// inside says whether a cluster that an entry leads to begins in the file, on a boundary.
func (c *checker) inside(off int64) bool {
	return off%c.clusterSize() == 0 && off>>c.clusterBits < c.clusters
}

func (c *checker) countBlocks() error {
	return c.entries(c.ctx, c.reftableOff, c.reftableBytes, func(i int64, e uint64) {
		off := int64(e)
		if e&511 != 0 || off < 0 || !c.inside(off) {
			if c.first() {
				c.corrupt("refcount table entry %d is %#x", i, e)
			}
			return
		}
		c.ref(off, c.clusterSize(), 1)
	})
}

func (c *checker) countBitmaps(ctx context.Context) error {
	if len(c.bitmaps) == 0 {
		return nil
	}
	c.ref(c.header.bitmaps.off, c.header.bitmaps.size, 1)
	for _, b := range c.bitmaps {
		c.ref(b.table, b.entries*8, 1)
		err := c.entries(ctx, b.table, b.entries*8, func(i int64, e uint64) {
			switch off := int64(e & offsetMask); {
			case e&^(offsetMask|1) != 0 || off != 0 && (e&1 != 0 || !c.inside(off)):
				if c.first() {
					c.corrupt("bitmap %q: table entry %d is %#x", b.Name, i, e)
				}
			case off != 0:
				c.ref(off, c.clusterSize(), 1)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countL1 notes the L2 tables of an L1 table that lie in the window of L2 tables from lo on.
func (c *checker) countL1(ctx context.Context, t l1Table, active bool, lo int64) error {
	var failed error
	err := c.entries(ctx, t.off, t.entries*8, func(i int64, e uint64) {
		off, err := c.l2Offset(e)
		if err != nil || !c.inside(off) || off == 0 {
			if c.first() && lo == 0 {
				c.corrupt("L1 entry %d of the table at %d is %#x", i, t.off, e)
			}
			return
		}
		cluster := off >> c.clusterBits
		if cluster < lo || cluster >= lo+int64(len(c.l2s)) {
			return
		}
		n := &c.l2s[cluster-lo]
		if *n&^activeL2 < activeL2-1 {
			*n++
		}
		c.ref(off, c.clusterSize(), 1)
		if active {
			*n |= activeL2
			if failed == nil && c.first() {
				failed = c.checkCopied("L1", i, off, e)
			}
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

// countL2 counts what an L2 table that is used so many times refers to.
func (c *checker) countL2(table int64, times uint16, active bool) error {
	if got, err := c.file.r.ReadAt(c.buf, table); got < len(c.buf) {
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("qcow2: L2 table at %d: %w", table, err)
		}
		if c.first() {
			c.corrupt("the L2 table at %d reaches beyond the end of the file", table)
		}
		return nil
	}
	size := int64(1) << c.l2EntryBits()
	for at := int64(0); at < c.clusterSize(); at += size {
		e := binary.BigEndian.Uint64(c.buf[at:])
		if size == 8 && e == 0 {
			continue
		}
		off, n, err := c.refers(c.buf[at : at+size])
		if err != nil {
			if c.first() {
				c.corrupt("entry %d of the L2 table at %d is %#x", at/size, table, e)
			}
			continue
		}
		if n == 0 {
			continue
		}
		c.ref(off, n, times)
		if !active || !c.first() {
			continue
		}
		c.res.Allocated++
		if e&flagPacked != 0 {
			c.res.Compressed++
		} else if err := c.checkCopied("L2", at/size, off, e); err != nil {
			return err
		}
	}
	return nil
}

// refers answers the bytes of the file that an L2 entry refers to; n is 0 where there are none.
func (c *checker) refers(entry []byte) (off, n int64, err error) {
	e := binary.BigEndian.Uint64(entry)
	if e&(flagPacked|flagZero) == 0 && len(entry) == 8 {
		off, n = int64(e&offsetMask), c.clusterSize()
		if e&^(offsetMask|flagCopied) != 0 || !c.inside(off) {
			return 0, 0, formats.ErrCorrupt
		}
	} else {
		r, err := c.cluster(entry, 0)
		if err != nil {
			return 0, 0, err
		}
		if off, n = int64(e&offsetMask), c.clusterSize(); e&flagPacked != 0 {
			off, n = r.host, r.size
		}
		if off>>c.clusterBits >= c.clusters {
			return 0, 0, formats.ErrCorrupt
		}
	}
	if off == 0 {
		return 0, 0, nil
	}
	return off, n, nil
}

// checkCopied compares an entry's flag, which says that a cluster may be written in place, with the
// refcount.
func (c *checker) checkCopied(kind string, i, host int64, e uint64) error {
	n, err := c.refcount(host >> c.clusterBits)
	if err != nil {
		return err
	}
	if (n == 1) != (e&flagCopied != 0) {
		c.corrupt("%s entry %d is %#x, but cluster %d has refcount %d", kind, i, e, host>>c.clusterBits, n)
	}
	return nil
}

// compare compares the references into the window with the refcounts.
func (c *checker) compare(ctx context.Context) error {
	for i, used := range c.counts {
		cluster := c.lo + int64(i)
		if i%65536 == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		n, err := c.refcount(cluster)
		if err != nil {
			return err
		}
		if used > 0 {
			c.res.End = (cluster + 1) << c.clusterBits
		}
		switch counted := uint16(min(n, math.MaxUint16)); {
		case counted < used:
			c.corrupt("cluster %d has refcount %d, but is used %d times", cluster, n, used)
		case counted > used:
			c.res.Leaks++
			if c.leaked != nil && used == 0 && n == 1 {
				c.leaked(cluster)
			}
			c.note("cluster %d has refcount %d, but is used %d times", cluster, n, used)
		}
	}
	return nil
}

// refcount is how often a cluster of the file is counted. What an entry of the refcount table that
// leads nowhere counts is zero; the entry itself was noted.
func (c *checker) refcount(cluster int64) (uint64, error) {
	perBlock := c.clusterSize() * 8 >> c.refcountOrder
	i, in := cluster/perBlock, cluster%perBlock
	if i != c.block {
		if err := c.readBlock(i); err != nil {
			return 0, err
		}
		c.block = i
	}
	if c.blockData == nil {
		return 0, nil
	}
	bits := in << c.refcountOrder
	b := c.blockData[bits>>3:]
	switch c.refcountOrder {
	case 3:
		return uint64(b[0]), nil
	case 4:
		return uint64(binary.BigEndian.Uint16(b)), nil
	case 5:
		return uint64(binary.BigEndian.Uint32(b)), nil
	case 6:
		return binary.BigEndian.Uint64(b), nil
	}
	return uint64(b[0]>>(bits&7)) & (1<<(1<<c.refcountOrder) - 1), nil
}

// readBlock reads the refcount block with index i, if there is one.
func (c *checker) readBlock(i int64) error {
	c.blockData = nil
	if i*8 >= c.reftableBytes {
		return nil
	}
	b, err := c.tables.at(c.file, c.reftableOff+i*8)
	if err != nil {
		return err
	}
	if len(b) < 8 {
		return corrupt("the refcount table reaches beyond the end of the file")
	}
	off := int64(binary.BigEndian.Uint64(b))
	if off <= 0 || off%c.clusterSize() != 0 || off > c.file.size-c.clusterSize() {
		return nil
	}
	if n, err := c.file.r.ReadAt(c.blockBuf, off); n < len(c.blockBuf) {
		return fmt.Errorf("qcow2: refcount block at %d: %w", off, unexpected(err))
	}
	c.blockData = c.blockBuf
	return nil
}

var _ interface {
	formats.Image
	formats.PackedReader
} = (*Image)(nil)
