package formats

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"sync"
)

// BlockSize is the size of the blocks that a disk is digested by: 1 MiB, the last one as long as the
// disk is. It is part of the content digest and never changes.
const BlockSize = 1 << 20

// Sum is the SHA-256 of a block.
type Sum = [sha256.Size]byte

// Digest is the content digest of a disk. It depends on the bytes and the size of the virtual disk
// only, so the same disk has the same digest in every format.
//
// It is the SHA-256 of "hypersdk disk\x00", the size as 8 big-endian bytes, and the top of a binary
// tree whose leaves are the SHA-256 of each 1 MiB block in order and whose inner nodes are the
// SHA-256 of 0x01, left and right; a node without a neighbour rises as it is. The top of an empty
// disk is 32 zero bytes.
type Digest [sha256.Size]byte

const digestPrefix = "sha256-1m:"

func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// ParseDigest reads what String wrote.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	h, ok := strings.CutPrefix(s, digestPrefix)
	if ok && len(h) == 2*len(d) {
		if _, err := hex.Decode(d[:], []byte(h)); err == nil {
			return d, nil
		}
	}
	return Digest{}, fmt.Errorf("%q is not a content digest (%s and %d hex digits)", s, digestPrefix, 2*len(d))
}

// tree folds leaves into the top of the tree with one node a level in memory.
type tree struct {
	level []Sum
	full  uint64 // bit i: level[i] holds a node
}

func (t *tree) add(s Sum) {
	i := 0
	for ; t.full>>i&1 == 1; i++ {
		s = node(t.level[i], s)
		t.full &^= 1 << i
	}
	if i == len(t.level) {
		t.level = append(t.level, Sum{})
	}
	t.level[i], t.full = s, t.full|1<<i
}

func (t *tree) top() Sum {
	var s Sum
	have := false
	for i, l := range t.level {
		if t.full>>i&1 == 0 {
			continue
		}
		if have {
			s = node(l, s)
		} else {
			s, have = l, true
		}
	}
	return s
}

func node(l, r Sum) Sum {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], l[:])
	copy(b[1+len(l):], r[:])
	return sha256.Sum256(b[:])
}

func root(size int64, top Sum) Digest {
	b := append([]byte("hypersdk disk\x00"), make([]byte, 8)...)
	binary.BigEndian.PutUint64(b[len(b)-8:], uint64(size))
	return sha256.Sum256(append(b, top[:]...))
}

var (
	zeroBlock = make([]byte, BlockSize)
	zeroSum   = sync.OnceValue(func() Sum { return sha256.Sum256(zeroBlock) })
)

// sumOfZeros is the digest of n zero bytes; n is the length of a block.
func sumOfZeros(n int64) Sum {
	if n == BlockSize {
		return zeroSum()
	}
	return sha256.Sum256(zeroBlock[:n])
}

// The sidecar file: a head page and then pages of 4096 bytes, each a CRC-32C of the rest, its own
// number, 20 bytes of zeros, and 127 sums, zero where nothing was put yet. A page that was never
// written is all zeros. All numbers are big-endian.
const (
	pageSize    = 4096
	pageHead    = 32
	sumsPerPage = (pageSize - pageHead) / sha256.Size
	digestMagic = "HSDKDIG1"
	cachedPages = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digests is the sums of all blocks of a disk, in a sidecar file: what a copy fills, a verification
// compares with, and a later round finds changes by. It holds a few pages in memory whatever the
// size of the disk. Its methods may be called from several goroutines.
type Digests struct {
	f      File
	size   int64
	blocks int64

	mu    sync.Mutex
	pages map[int64]*digestPage
	clock int64
	seal  Digest // zero: not sealed
}

type digestPage struct {
	b     [pageSize]byte
	dirty bool
	used  int64
}

// CreateDigests begins a sidecar in f for a disk of size bytes; what f held is lost.
func CreateDigests(f File, size int64) (*Digests, error) {
	d := newDigests(f, size)
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("digests: %w", err)
	}
	return d, d.writeHead()
}

// OpenDigests opens a sidecar. An error wraps ErrCorrupt where it cannot be trusted.
func OpenDigests(f File) (*Digests, error) {
	var b [pageSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("too short: %w", ErrCorrupt)
		}
		return nil, fmt.Errorf("digests: head: %w", err)
	}
	if string(b[4:12]) != digestMagic || binary.BigEndian.Uint32(b[:]) != crc32.Checksum(b[4:], castagnoli) {
		return nil, fmt.Errorf("digests: head: %w", ErrCorrupt)
	}
	size, block := int64(binary.BigEndian.Uint64(b[12:])), binary.BigEndian.Uint32(b[20:])
	if size < 0 || block != BlockSize {
		return nil, fmt.Errorf("digests: of %d bytes in blocks of %d: %w", size, block, ErrFormat)
	}
	d := newDigests(f, size)
	copy(d.seal[:], b[24:])
	return d, nil
}

func newDigests(f File, size int64) *Digests {
	return &Digests{f: f, size: size, blocks: (size + BlockSize - 1) / BlockSize, pages: map[int64]*digestPage{}}
}

func (d *Digests) writeHead() error {
	var b [pageSize]byte
	copy(b[4:], digestMagic)
	binary.BigEndian.PutUint64(b[12:], uint64(d.size))
	binary.BigEndian.PutUint32(b[20:], BlockSize)
	copy(b[24:], d.seal[:])
	binary.BigEndian.PutUint32(b[:], crc32.Checksum(b[4:], castagnoli))
	if _, err := d.f.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("digests: head: %w", err)
	}
	return nil
}

// Size is the size of the disk.
func (d *Digests) Size() int64 { return d.size }

// Blocks is the number of blocks of the disk.
func (d *Digests) Blocks() int64 { return d.blocks }

// BlockLen is the length of block i.
func (d *Digests) BlockLen(i int64) int64 { return min(BlockSize, d.size-i*BlockSize) }

// Put notes the sum of block i.
func (d *Digests) Put(i int64, s Sum) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, at, err := d.page(i)
	if err != nil {
		return err
	}
	copy(p.b[at:], s[:])
	p.dirty = true
	return nil
}

// Sum is the sum of block i; ok is false where none was put.
func (d *Digests) Sum(i int64) (s Sum, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, at, err := d.page(i)
	if err != nil {
		return s, false, err
	}
	copy(s[:], p.b[at:])
	return s, s != Sum{}, nil
}

// page finds the page of block i and the place in it; d.mu is held.
func (d *Digests) page(i int64) (*digestPage, int, error) {
	if i < 0 || i >= d.blocks {
		return nil, 0, fmt.Errorf("digests: block %d of %d", i, d.blocks)
	}
	n, at := i/sumsPerPage, pageHead+int(i%sumsPerPage)*sha256.Size
	d.clock++
	if p := d.pages[n]; p != nil {
		p.used = d.clock
		return p, at, nil
	}
	if len(d.pages) >= cachedPages {
		if err := d.evict(); err != nil {
			return nil, 0, err
		}
	}
	p := &digestPage{used: d.clock}
	got, err := d.f.ReadAt(p.b[:], (n+1)*pageSize)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, 0, fmt.Errorf("digests: page %d: %w", n, err)
	case got < pageSize:
		p.b = [pageSize]byte{} // behind the end of the file: never written
	case bytes.Equal(p.b[:], zeroBlock[:pageSize]):
	case binary.BigEndian.Uint32(p.b[:]) != crc32.Checksum(p.b[4:], castagnoli) || binary.BigEndian.Uint64(p.b[4:]) != uint64(n):
		return nil, 0, fmt.Errorf("digests: page %d: %w", n, ErrCorrupt)
	}
	d.pages[n] = p
	return p, at, nil
}

func (d *Digests) evict() error {
	oldest, used := int64(-1), d.clock+1
	for n, p := range d.pages {
		if p.used < used {
			oldest, used = n, p.used
		}
	}
	if err := d.write(oldest, d.pages[oldest]); err != nil {
		return err
	}
	delete(d.pages, oldest)
	return nil
}

func (d *Digests) write(n int64, p *digestPage) error {
	if !p.dirty {
		return nil
	}
	binary.BigEndian.PutUint64(p.b[4:], uint64(n))
	binary.BigEndian.PutUint32(p.b[:], crc32.Checksum(p.b[4:], castagnoli))
	if _, err := d.f.WriteAt(p.b[:], (n+1)*pageSize); err != nil {
		return fmt.Errorf("digests: page %d: %w", n, err)
	}
	p.dirty = false
	return nil
}

// Flush writes what is in memory to the file.
func (d *Digests) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, p := range d.pages {
		if err := d.write(n, p); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes all sums that were put durable.
func (d *Digests) Sync() error {
	if err := d.Flush(); err != nil {
		return err
	}
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("digests: %w", err)
	}
	return nil
}

// Root computes the content digest. It fails where the sum of a block is missing.
func (d *Digests) Root() (Digest, error) {
	var t tree
	for i := range d.blocks {
		s, ok, err := d.Sum(i)
		if err != nil {
			return Digest{}, err
		}
		if !ok {
			return Digest{}, fmt.Errorf("digests: block %d has none: %w", i, ErrAbsent)
		}
		t.add(s)
	}
	return root(d.size, t.top()), nil
}

// Seal computes the content digest, writes it into the head and makes all durable. A sealed sidecar
// is complete.
func (d *Digests) Seal() (Digest, error) {
	r, err := d.Root()
	if err != nil {
		return Digest{}, err
	}
	d.seal = r
	if err := d.writeHead(); err != nil {
		return Digest{}, err
	}
	return r, d.Sync()
}

// Sealed is the content digest of a sidecar that is complete.
func (d *Digests) Sealed() (Digest, bool) { return d.seal, d.seal != Digest{} }
