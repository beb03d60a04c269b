package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"hypersdk/formats"
)

const (
	// maxSpare is how many lost clusters are found again; a crash loses some hundred at most.
	maxSpare = 1 << 20
	// liveTables is about how many bytes of tables are kept until they are written.
	liveTables = 8 << 20
)

// Update opens the image in f, which holds size bytes, so that its disk is overwritten in place: clusters
// that it has are written where they are, others are allocated at the end of the file. Zeros are marked in
// the tables, and what had been allocated for them stays so, to be written to again.
//
// Refused are images with a backing file, internal snapshots, bitmaps, compressed clusters, extended L2
// entries or refcounts of other than 16 bits, those marked as dirty or corrupt, and those whose refcounts
// are not right: all tables are read first. A cluster that is used twice is refused when it is written to.
//
// It writes in an order in which the file is sound at every moment: what counts a cluster before what
// refers to it, and that after the data. A crash loses clusters that are counted already, which the next
// Update finds and uses; it never leaves one that is used and not counted.
func Update(ctx context.Context, f formats.File, size int64) (formats.Writer, error) {
	m, err := Open(ctx, f, size, formats.OpenOptions{Layer: true})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.updatable(); err != nil {
		return nil, err
	}
	u := &updater{
		f: f, clusterBits: m.clusterBits, version: m.version, size: m.size,
		l1Off: m.header.l1Off, reftableOff: m.reftableOff, end: size,
		l2s: liveStore{f: f, size: m.clusterSize()}, refs: liveStore{f: f, size: m.clusterSize()},
	}
	u.next = u.clusters(size)
	res, err := m.examine(ctx, func(cluster int64) {
		if len(u.spare) < maxSpare {
			u.spare = append(u.spare, cluster)
		}
	})
	switch {
	case err != nil:
		return nil, err
	case res.Corruptions > 0:
		return nil, corrupt("%d contradictions, the first: %s", res.Corruptions, res.Problems[0])
	case res.Compressed > 0:
		return nil, unsupported("overwriting an image with compressed clusters")
	}
	slices.Reverse(u.spare) // the first ones first
	if u.l1, err = readEntries(f, m.header.l1Off, m.header.l1Entries); err != nil {
		return nil, err
	}
	u.reftable, err = readEntries(f, m.reftableOff, m.reftableBytes/8)
	return u, err
}

// updatable refuses what stands in the way of being overwritten, as far as the header tells.
func (m *Image) updatable() error {
	for _, c := range []struct {
		is   bool
		what string
	}{
		{m.header.backing != "", "with a backing file"},
		{m.snapshots > 0, "with internal snapshots"},
		{m.autoclear != 0 || m.bitmaps.count > 0, "with bitmaps"},
		{m.extendedL2(), "with extended L2 entries"},
		{m.incompat&incompatDirty != 0, "that was not closed by whoever wrote it last"},
		{m.incompat&incompatCorrupt != 0, "that is marked as corrupt"},
		{m.refcountOrder != 4, "with refcounts of other than 16 bits"},
	} {
		if c.is {
			return unsupported("overwriting an image %s", c.what)
		}
	}
	return nil
}

func readEntries(f formats.File, off, n int64) ([]uint64, error) {
	b := make([]byte, n*8)
	if got, err := f.ReadAt(b, off); got < len(b) {
		return nil, fmt.Errorf("qcow2: read a table at %d: %w", off, unexpected(err))
	}
	entries := make([]uint64, n)
	for i := range entries {
		entries[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return entries, nil
}

// updater overwrites a disk in place.
type updater struct {
	f           formats.File
	clusterBits uint
	version     uint32
	size        int64 // of the disk
	l1Off       int64
	reftableOff int64

	mu       sync.Mutex // Sync runs beside writes
	err      error      // the first failure, or fs.ErrClosed
	l1       []uint64
	l1Dirty  span
	reftable []uint64
	refDirty span
	moved    bool    // the refcount table has a new place, which the header does not name yet
	freed    []int64 // clusters that nothing refers to once the header does
	l2s      liveStore
	refs     liveStore
	next     int64   // the first cluster of the file that was never allocated
	end      int64   // of the file
	spare    []int64 // clusters that are counted and not used
}

// span is the entries of a table that changed.
type span struct{ lo, hi int }

func (s *span) add(i int) {
	if s.lo == s.hi {
		s.lo, s.hi = i, i+1
	}
	s.lo, s.hi = min(s.lo, i), max(s.hi, i+1)
}

func (u *updater) cluster() int64         { return 1 << u.clusterBits }
func (u *updater) clusters(n int64) int64 { return (n + u.cluster() - 1) >> u.clusterBits }
func (u *updater) cover() int64           { return u.cluster() / 8 << u.clusterBits }
func (u *updater) perBlock() int64        { return u.cluster() / 2 }

// BlockSize is the size of a cluster.
func (u *updater) BlockSize() int64 { return u.cluster() }

// fits examines a write before it changes anything.
func (u *updater) fits(off, n int64) error {
	if off < 0 || n < 0 || off > u.size-n {
		return fmt.Errorf("qcow2: write of %d bytes at %d of %d", n, off, u.size)
	}
	if off%u.cluster() != 0 || n%u.cluster() != 0 && off+n != u.size {
		return fmt.Errorf("qcow2: write of %d bytes at %d in clusters of %d: %w", n, off, u.cluster(), formats.ErrAlign)
	}
	if u.err != nil {
		return fmt.Errorf("qcow2: write at %d: %w", off, u.err)
	}
	return nil
}

// fail keeps the first error: a disk that lacks a write is never committed.
func (u *updater) fail(err error) error {
	if u.err == nil {
		u.err = err
	}
	return err
}

func (u *updater) WriteAt(p []byte, off int64) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.fits(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n, err := 0, u.room()
		if err == nil {
			n, err = u.writeRun(p[done:], off+int64(done))
		}
		if err != nil {
			return done, u.fail(err)
		}
		done += n
	}
	return done, nil
}

// writeRun writes as many clusters of p as lie together in the file.
func (u *updater) writeRun(p []byte, off int64) (int, error) {
	start, err := u.hostOf(off)
	if err != nil {
		return 0, err
	}
	n := min(u.cluster(), int64(len(p)))
	for n < int64(len(p)) {
		host, err := u.hostOf(off + n)
		if err != nil {
			return 0, err
		}
		if host != start+n { // it is met again in the next run, and has its place by then
			break
		}
		n += min(u.cluster(), int64(len(p))-n)
	}
	return int(n), u.write(p[:n], start)
}

func (u *updater) write(b []byte, off int64) error {
	if _, err := u.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("qcow2: write at %d of the file: %w", off, err)
	}
	u.end = max(u.end, off+int64(len(b)))
	return nil
}

// hostOf answers where the cluster at off is in the file, and allocates it where it is not.
func (u *updater) hostOf(off int64) (int64, error) {
	t, i, err := u.l2(off, true)
	if err != nil {
		return 0, err
	}
	e := t.entry(i)
	host := int64(e & offsetMask)
	switch {
	case e&flagPacked != 0, host != 0 && e&flagCopied == 0:
		return 0, unsupported("overwriting the cluster at %d, which is shared", off)
	case host == 0:
		if host, err = u.take(); err != nil {
			return 0, err
		}
	case e&flagZero == 0:
		return host, nil
	}
	t.setEntry(i, uint64(host)|flagCopied)
	return host, nil
}

// WriteZeroes marks whole clusters as zeros.
func (u *updater) WriteZeroes(off, n int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.fits(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		if u.l1[off/u.cover()] == 0 {
			off = (off/u.cover() + 1) * u.cover()
			continue
		}
		err := u.room()
		if err == nil {
			err = u.zeroCluster(off)
		}
		if err != nil {
			return u.fail(err)
		}
		off += u.cluster()
	}
	return nil
}

func (u *updater) zeroCluster(off int64) error {
	t, i, err := u.l2(off, false)
	if err != nil {
		return err
	}
	e := t.entry(i)
	host := int64(e & offsetMask)
	switch {
	case e&flagPacked != 0, host != 0 && e&flagCopied == 0:
		return unsupported("overwriting the cluster at %d, which is shared", off)
	case host == 0 || e&flagZero != 0:
		return nil
	case u.version < 3: // has no such mark
		return u.write(make([]byte, u.cluster()), host)
	}
	t.setEntry(i, e|flagZero)
	return nil
}

// room writes the tables where there are many. Nothing may be on its way then: what a table says must have
// been written before.
func (u *updater) room() error {
	if u.l2s.bytes()+u.refs.bytes() <= liveTables {
		return nil
	}
	if err := u.flush(); err != nil {
		return err
	}
	u.l2s.drop()
	u.refs.drop()
	return nil
}

// l2 answers the table that maps off and the index of its entry; where there is none and create is not
// set, nil.
func (u *updater) l2(off int64, create bool) (*table, int64, error) {
	index := off >> u.clusterBits & (u.cluster()/8 - 1)
	i := off / u.cover()
	switch e := u.l1[i]; {
	case e == 0 && !create:
		return nil, 0, nil
	case e == 0:
		host, err := u.take()
		if err != nil {
			return nil, 0, err
		}
		u.l1[i] = uint64(host) | flagCopied
		u.l1Dirty.add(int(i))
		return u.l2s.fresh(host), index, nil
	case e&flagCopied == 0:
		return nil, 0, unsupported("overwriting at %d, whose L2 table is shared", off)
	default:
		t, err := u.l2s.get(int64(e & offsetMask))
		return t, index, err
	}
}

// Checkpoint needs no token: the image says all.
func (u *updater) Checkpoint(off int64) (formats.Checkpoint, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return formats.Checkpoint{Off: off}, u.err
}

// Sync makes the disk durable as it is written.
func (u *updater) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return fmt.Errorf("qcow2: sync: %w", u.err)
	}
	if err := u.flush(); err != nil {
		return u.fail(err)
	}
	return nil
}

// Commit makes the disk durable, and gives back the clusters that a crash had lost.
func (u *updater) Commit(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return fmt.Errorf("qcow2: commit: %w", u.err)
	}
	u.freed = append(u.freed, u.spare...)
	u.spare = nil
	err := u.flush()
	if err == nil && u.refs.dirty() { // what the first one freed
		err = u.flush()
	}
	if err != nil {
		return u.fail(err)
	}
	u.err = fs.ErrClosed
	return nil
}

// Close releases the writer.
func (u *updater) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.fail(fs.ErrClosed)
	return nil
}
