package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"hypersdk/formats"
)

// Image is a disk stored in a qcow2 file and the files behind it. It is a formats.Image and a
// formats.PackedReader.
type Image struct {
	mapping
	ctx     context.Context
	size    int64 // of the disk
	layer   bool  // what the backing file holds is absent
	backing formats.Image
	closer  io.Closer // of the backing file
	shared  *shared
}

// shared is what the files of a chain have in common.
type shared struct {
	tables *tables
	unpack unpacker
	recent recent
	names  []string // of the files opened beside, to find loops
}

// Size is the size of the disk.
func (m *Image) Size() int64 { return m.size }

// Close closes the backing files, which were opened by Open. The file itself stays its owner's.
func (m *Image) Close() error {
	var errs []error
	if m.backing != nil {
		errs = append(errs, m.backing.Close())
		m.backing = nil
	}
	if m.closer != nil {
		errs = append(errs, m.closer.Close())
		m.closer = nil
	}
	return errors.Join(errs...)
}

// ReadAt reads the disk.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	b := p[:min(int64(len(p)), m.size-off)]
	n := 0
	for n < len(b) {
		if err := context.Cause(m.ctx); err != nil {
			return n, err
		}
		got, err := m.readRun(b[n:], off+int64(n))
		n += got
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readRun reads some of b, as far as one run goes.
func (m *Image) readRun(b []byte, off int64) (int, error) {
	r, err := m.find(off, int64(len(b)))
	if err != nil {
		return 0, err
	}
	b = b[:r.n]
	switch r.state {
	case zero:
		clear(b)
		return len(b), nil
	case plain:
		n, err := m.file.r.ReadAt(b, r.host)
		if n < len(b) {
			return n, fmt.Errorf("qcow2: read of %d bytes at %d, stored at %d: %w", len(b), off, r.host, unexpected(err))
		}
		return n, nil
	case packed:
		return m.readPackedRun(b, off, r)
	}
	return m.readBacking(b, off)
}

func (m *Image) readBacking(b []byte, off int64) (int, error) {
	if m.layer && m.header.backing != "" {
		return 0, fmt.Errorf("qcow2: read at %d: %w", off, formats.ErrAbsent)
	}
	n := int64(0)
	if m.backing != nil {
		n = min(max(m.backing.Size()-off, 0), int64(len(b)))
		if got, err := m.backing.ReadAt(b[:n], off); int64(got) < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = unexpected(err)
			}
			return got, fmt.Errorf("qcow2: backing file %q: %w", m.header.backing, err)
		}
	}
	clear(b[n:])
	return len(b), nil
}

// readPackedRun unpacks a cluster: straight into b where all of it is wanted.
func (m *Image) readPackedRun(b []byte, off int64, r run) (int, error) {
	in := off & (m.clusterSize() - 1)
	if int64(len(b)) == m.clusterSize() {
		return m.unpackInto(b, off, r)
	}
	key := pageKey{m.file.id, r.host}
	if n := m.shared.recent.read(b, key, in); n > 0 {
		return n, nil
	}
	whole := make([]byte, m.clusterSize())
	if _, err := m.unpackInto(whole, off-in, r); err != nil {
		return 0, err
	}
	m.shared.recent.put(key, whole)
	return copy(b, whole[in:]), nil
}

func (m *Image) unpackInto(b []byte, off int64, r run) (int, error) {
	src := m.shared.unpack.buffer(r.size)
	defer m.shared.unpack.buffers.Put(src)
	stored, err := m.readStored(*src, off, r)
	if err != nil {
		return 0, err
	}
	if err := m.shared.unpack.unpack(m.codec(), b, stored); err != nil {
		return 0, fmt.Errorf("qcow2: packed cluster at %d, stored at %d: %w", off, r.host, err)
	}
	return len(b), nil
}

// readStored reads the bytes of a packed cluster; the last one may end before its sector does.
func (m *Image) readStored(b []byte, off int64, r run) ([]byte, error) {
	b = b[:min(r.size, max(m.file.size-r.host, 0))]
	if len(b) == 0 {
		return nil, corrupt("packed cluster at %d, stored at %d in a file of %d", off, r.host, m.file.size)
	}
	if n, err := m.file.r.ReadAt(b, r.host); n < len(b) {
		return nil, fmt.Errorf("qcow2: packed cluster at %d, stored at %d: %w", off, r.host, unexpected(err))
	}
	return b, nil
}

// ReadPacked answers a compressed cluster as it is stored; it covers one cluster. The length of a
// deflate stream is only known in sectors, so up to 511 bytes of rubbish may follow it in Bytes; zstd
// frames are exact. The cluster that the end of the disk cuts is never answered packed.
func (m *Image) ReadPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	for _, c := range []context.Context{ctx, m.ctx} {
		if err := context.Cause(c); err != nil {
			return formats.Packed{}, 0, err
		}
	}
	if off < 0 || off%m.clusterSize() != 0 || off > m.size-m.clusterSize() {
		return formats.Packed{}, 0, nil
	}
	r, err := m.find(off, m.clusterSize())
	if err != nil {
		return formats.Packed{}, 0, err
	}
	switch {
	case r.state == unallocated && r.n == m.clusterSize():
		return m.backingPacked(ctx, off, buf)
	case r.state != packed:
		return formats.Packed{}, 0, nil
	}
	if int64(cap(buf)) < r.size {
		buf = make([]byte, r.size)
	}
	b, err := m.readStored(buf[:r.size], off, r)
	if err != nil {
		return formats.Packed{}, 0, err
	}
	if m.codec() == formats.Zstd {
		b = b[:framesLen(b)]
	}
	return formats.Packed{Codec: m.codec(), Bytes: b}, m.clusterSize(), nil
}

// backingPacked passes on a block of the backing file where it is exactly a cluster here.
func (m *Image) backingPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	if b, ok := m.backing.(*Image); ok && b.clusterSize() == m.clusterSize() {
		return b.ReadPacked(ctx, off, buf)
	}
	return formats.Packed{}, 0, nil
}

// Extents maps the disk.
func (m *Image) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if off < 0 || n < 0 || off > m.size-n {
		return func(yield func(formats.Extent, error) bool) {
			yield(formats.Extent{}, fmt.Errorf("qcow2: map of [%d, %d) of %d bytes", off, off+n, m.size))
		}
	}
	return formats.Merged(m.runs(ctx, off, n))
}

func (m *Image) runs(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		var seen walked
		for end := off + n; off < end; {
			err := context.Cause(ctx)
			if err == nil {
				err = context.Cause(m.ctx)
			}
			var r run
			if err == nil {
				r, err = m.find(off, end-off)
			}
			if err == nil {
				err = seen.add(m, r)
			}
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			e := formats.Extent{Off: off, Len: r.n, Kind: formats.Data}
			switch {
			case r.state == zero:
				e.Kind = formats.Zero
			case r.state == unallocated:
				if !m.behind(ctx, e, yield) {
					return
				}
				off = e.End()
				continue
			}
			if !yield(e, nil) {
				return
			}
			off = e.End()
		}
	}
}

// walked is what a walk over the disk has seen. Tables and clusters that are used again and again would
// make a disk without end of a small file.
type walked struct{ mapped, plain int64 }

func (w *walked) add(m *Image, r run) error {
	if r.mapped {
		w.mapped += r.n
	}
	if r.state == plain {
		w.plain += r.n
	}
	if w.plain > m.file.size || w.mapped>>m.clusterBits<<m.l2EntryBits() > m.file.size {
		return corrupt("the disk has more clusters than a file of %d bytes can hold: some are used twice", m.file.size)
	}
	return nil
}

// behind yields what lies behind an unallocated stretch, and answers false where that is to be all.
func (m *Image) behind(ctx context.Context, e formats.Extent, yield func(formats.Extent, error) bool) bool {
	e.Kind = formats.Zero
	if m.layer && m.header.backing != "" {
		e.Kind = formats.Absent
	}
	if m.backing == nil || e.Off >= m.backing.Size() {
		return yield(e, nil)
	}
	n := min(e.Len, m.backing.Size()-e.Off)
	for b, err := range m.backing.Extents(ctx, e.Off, n) {
		if !yield(b, err) || err != nil {
			return false
		}
	}
	if n < e.Len {
		return yield(formats.Extent{Off: e.Off + n, Len: e.Len - n, Kind: formats.Zero}, nil)
	}
	return true
}

// recent keeps the clusters unpacked last, for readers that take less than a cluster at a time.
type recent struct {
	mu   sync.Mutex
	all  [8]recentCluster
	next int
}

type recentCluster struct {
	key  pageKey
	data []byte
}

func (r *recent) read(b []byte, key pageKey, in int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.all {
		if c.key == key && c.data != nil {
			return copy(b, c.data[in:])
		}
	}
	return 0
}

func (r *recent) put(key pageKey, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[r.next] = recentCluster{key, data}
	r.next = (r.next + 1) % len(r.all)
}
