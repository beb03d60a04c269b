package vmdk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/flate"

	"hypersdk/formats"
	"hypersdk/formats/inflate"
)

// defaultLevel is the level of klauspost's deflate that comes within 5 % of the size that zlib's
// default level gives, three times as fast.
const defaultLevel = 6

// Where the parts of a new streamOptimized disk are, in sectors: as VMware writes them.
const (
	descriptorAt      = 1
	descriptorSectors = 20
	streamStart       = 128
)

// Encode writes a streamOptimized disk front to back, as ESXi and ovftool do: header, descriptor,
// grains with a grain table behind each 32 MiB of the disk that hold any, grain directory, footer,
// end-of-stream marker. Nothing is written before the first grain is: its sum goes into the content
// id, so that the same disk gives the same bytes and another disk another id.
func Encode(ctx context.Context, w io.Writer, size int64, o formats.CreateOptions) (formats.Writer, error) {
	if o.Subformat == "" {
		o.Subformat = StreamOptimized
	}
	sub, err := choose(o)
	if err != nil {
		return nil, err
	}
	if sub != StreamOptimized {
		return nil, fmt.Errorf("vmdk: subformat %q cannot be written front to back, only %q: %w", sub, StreamOptimized, formats.ErrFormat)
	}
	return newEncoder(ctx, pipe{w}, size, o)
}

// output is where a stream is written to, from its beginning.
type output interface {
	append(b []byte, at int64) error
	sync() error
}

type pipe struct{ w io.Writer }

func (p pipe) append(b []byte, _ int64) error {
	_, err := p.w.Write(b)
	return err
}

func (p pipe) sync() error { return nil }

type fileOutput struct{ f formats.File }

func (o fileOutput) append(b []byte, at int64) error {
	_, err := o.f.WriteAt(b, at)
	return err
}

func (o fileOutput) sync() error { return o.f.Sync() }

// flushSize is how much is gathered before it is written.
const flushSize = 1 << 20

// encoder writes a streamOptimized disk. Its blocks are grains, each once and in ascending order.
type encoder struct {
	packer
	ctx     context.Context
	out     output
	size    int64
	adapter string

	next  int64  // of the disk: what comes before it was written, or is zeros
	buf   []byte // not written yet
	start int64  // in the stream: where buf goes
	gd    []uint32
	table []uint32 // of the 32 MiB that are being written
	group int64    // their number
	used  bool     // table has an entry
	last  uint32   // sector of the last table that was written, 0: none

	mu      sync.Mutex
	decoder inflate.Decoder
	plain   []byte
	state   error // why nothing can be written any more
}

var (
	errCommitted = errors.New("it is committed")
	errClosed    = errors.New("it is closed")
)

func newEncoder(ctx context.Context, out output, size int64, o formats.CreateOptions) (*encoder, error) {
	if err := fits(size); err != nil {
		return nil, err
	}
	if _, err := describe(StreamOptimized, Extent{}, 0, o.Adapter); err != nil {
		return nil, err
	}
	p, err := newPacker(o.Level)
	if err != nil {
		return nil, err
	}
	groups := (size + tableEntries*grainSize - 1) / (tableEntries * grainSize)
	return &encoder{packer: p, ctx: ctx, out: out, size: size, adapter: o.Adapter,
		gd: make([]uint32, groups), table: make([]uint32, tableEntries)}, nil
}

func (e *encoder) BlockSize() int64 { return grainSize }

// header is the head of the stream, or with the place of its directory the foot.
func (e *encoder) header(gd uint64) header {
	return header{
		version: 3, flags: flagNewLines | flagCompressed | flagMarkers,
		capacity: uint64(up(e.size, sector) / sector), grain: grainSectors,
		descriptor: descriptorAt, descriptorSz: descriptorSectors,
		entries: tableEntries, gd: gd, overhead: streamStart, algorithm: deflateAlgorithm,
	}
}

// begin writes all that comes before the grains. identity is the sum of the first grain.
func (e *encoder) begin(off int64, sum uint32) error {
	key := fmt.Sprintf("%s %d %d %08x", StreamOptimized, e.size, off, sum)
	h := e.header(gdAtEnd)
	d, err := describe(StreamOptimized, Extent{Access: "RW", Sectors: int64(h.capacity), Type: "SPARSE", Name: "disk.vmdk"},
		contentID([]byte(key)), e.adapter)
	if err != nil {
		return err
	}
	e.buf = append(e.buf, h.encode()...)
	e.buf = append(e.buf, d.text()...)
	e.buf = append(e.buf, make([]byte, streamStart*sector-len(e.buf))...)
	return nil
}

// contentID makes a content id of what it identifies. The two highest mean "no disk" and "no content".
func contentID(key []byte) uint32 {
	sum := sha256.Sum256(key)
	id := binary.BigEndian.Uint32(sum[:])
	if id >= noParent-1 {
		id = 1
	}
	return id
}

// admit checks a write of n bytes at off and turns to its part of the disk.
func (e *encoder) admit(off, n int64) error {
	if e.state != nil {
		return fmt.Errorf("vmdk: write at %d: %w", off, e.state)
	}
	if err := context.Cause(e.ctx); err != nil {
		return err
	}
	switch {
	case off < 0 || n < 0 || off > e.size || n > e.size-off:
		return fmt.Errorf("vmdk: write of %d bytes at %d of a disk of %d", n, off, e.size)
	case off%grainSize != 0 || n%grainSize != 0 && off+n != e.size:
		return fmt.Errorf("vmdk: write of %d bytes at %d: %w", n, off, formats.ErrAlign)
	case off < e.next:
		return fmt.Errorf("vmdk: write at %d after one up to %d: a streamOptimized disk is written front to back: %w", off, e.next, formats.ErrFormat)
	}
	return nil
}

// WriteAt packs and stores blocks that are not all zeros.
func (e *encoder) WriteAt(p []byte, off int64) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.admit(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		block := p[done:min(len(p), done+grainSize)]
		if !zeros(block) {
			pk := e.pack(e.plain[:0], block, up(int64(len(block)), sector))
			e.plain = pk.Bytes
			if err := e.store(off+int64(done), pk); err != nil {
				return done, err
			}
		}
		done += len(block)
		e.next = off + int64(done)
	}
	return len(p), nil
}

// WriteZeroes stores nothing.
func (e *encoder) WriteZeroes(off, n int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.admit(off, n); err != nil {
		return err
	}
	e.next = off + n
	return nil
}

// Accepts says whether a packed block can be moved: readers take up to twice a grain, and whole
// sectors.
func (e *encoder) Accepts(p formats.Packed, n int64) bool {
	return p.Codec == formats.Deflate && n <= grainSize && n%sector == 0 && len(p.Bytes) < 2*grainSize-sector
}

// WritePacked stores a packed block; where its sum is not known it is inflated to learn it.
func (e *encoder) WritePacked(off, n int64, p formats.Packed) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.admit(off, n); err != nil {
		return err
	}
	if n != min(grainSize, e.size-off) || !e.Accepts(p, n) {
		return fmt.Errorf("vmdk: a packed block of %d bytes (codec %d, %d packed) at %d: %w", n, p.Codec, len(p.Bytes), off, formats.ErrAlign)
	}
	if !p.HasSum {
		e.plain = sized(e.plain, grainSize)
		got, used, err := e.decoder.Inflate(e.plain[:n], p.Bytes)
		if err != nil || int64(got) != n {
			return fmt.Errorf("vmdk: packed block at %d: %w", off, errors.Join(err, formats.ErrCorrupt))
		}
		p.Bytes, p.Sum = p.Bytes[:used], inflate.Adler32(e.plain[:n])
	}
	if err := e.store(off, p); err != nil {
		return err
	}
	e.next = off + n
	return nil
}

// store appends a grain.
func (e *encoder) store(off int64, p formats.Packed) error {
	if e.start == 0 && len(e.buf) == 0 {
		if err := e.begin(off, p.Sum); err != nil {
			return e.fail(err)
		}
	}
	grain := off / grainSize
	if group := grain / tableEntries; group != e.group {
		if err := e.endTable(); err != nil {
			return err
		}
		e.group = group
	}
	at, err := e.sector()
	if err != nil {
		return err
	}
	e.table[grain%tableEntries], e.used = at, true
	e.buf = binary.LittleEndian.AppendUint64(e.buf, uint64(off/sector))
	e.buf = binary.LittleEndian.AppendUint32(e.buf, uint32(len(zlibHead)+len(p.Bytes)+4))
	e.buf = append(e.buf, zlibHead...)
	e.buf = append(e.buf, p.Bytes...)
	e.buf = binary.BigEndian.AppendUint32(e.buf, p.Sum)
	e.buf = append(e.buf, make([]byte, -len(e.buf)&(sector-1))...)
	if len(e.buf) >= flushSize {
		return e.flush()
	}
	return nil
}

// sector is the one that is written next.
func (e *encoder) sector() (uint32, error) {
	at := (e.start + int64(len(e.buf))) / sector
	if at > 1<<32-1-tableSectors {
		return 0, e.fail(fmt.Errorf("vmdk: the file would grow beyond the 2 TiB that its tables can address: %w", formats.ErrFormat))
	}
	return uint32(at), nil
}

// endTable writes the table of the part of the disk that is complete, if it has grains.
func (e *encoder) endTable() error {
	if !e.used {
		return nil
	}
	e.buf = appendMarker(e.buf, markTable, tableSectors)
	at, err := e.sector()
	if err != nil {
		return err
	}
	e.gd[e.group], e.last = at, at
	e.buf = appendTable(e.buf, e.table)
	clear(e.table)
	e.used = false
	return nil
}

func appendTable(b []byte, t []uint32) []byte {
	b = slices.Grow(b, 4*len(t))
	for _, v := range t {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func (e *encoder) flush() error {
	if len(e.buf) == 0 {
		return nil
	}
	if err := e.out.append(e.buf, e.start); err != nil {
		return e.fail(fmt.Errorf("vmdk: %d bytes at %d of the file: %w", len(e.buf), e.start, err))
	}
	e.start += int64(len(e.buf))
	e.buf = e.buf[:0]
	return nil
}

// fail keeps a stream that has a hole from being completed.
func (e *encoder) fail(err error) error {
	e.state = err
	return err
}

// Checkpoint is refused: what went into a pipe cannot be gone back to. In a file it can; see resumable.
func (e *encoder) Checkpoint(int64) (formats.Checkpoint, error) {
	return formats.Checkpoint{}, fmt.Errorf("vmdk: a stream has no checkpoints: %w", formats.ErrFormat)
}

func (e *encoder) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := e.out.sync(); err != nil {
		return fmt.Errorf("vmdk: sync: %w", err)
	}
	return nil
}

// Commit writes the tables and the footer.
func (e *encoder) Commit(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state != nil {
		return fmt.Errorf("vmdk: commit: %w", e.state)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if e.start == 0 && len(e.buf) == 0 {
		if err := e.begin(e.size, 1); err != nil {
			return e.fail(err)
		}
	}
	if err := e.endTable(); err != nil {
		return err
	}
	sectors := up(int64(len(e.gd))*4, sector) / sector
	e.buf = appendMarker(e.buf, markDirectory, uint64(sectors))
	at, err := e.sector()
	if err != nil {
		return err
	}
	e.buf = appendTable(e.buf, e.gd)
	e.buf = append(e.buf, make([]byte, -len(e.buf)&(sector-1))...)
	e.buf = appendMarker(e.buf, markFooter, 1)
	e.buf = append(e.buf, e.header(uint64(at)).encode()...)
	e.buf = appendMarker(e.buf, markEnd, 0)
	if err := e.flush(); err != nil {
		return err
	}
	if err := e.Sync(ctx); err != nil {
		return e.fail(err)
	}
	e.state = errCommitted
	return nil
}

func (e *encoder) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == nil {
		e.state = errClosed
	}
	return nil
}

// packer deflates blocks, from many goroutines.
type packer struct{ pool *sync.Pool }

type deflater struct {
	w   *flate.Writer
	out bytes.Buffer
}

func newPacker(level int) (packer, error) {
	if level == 0 {
		level = defaultLevel
	}
	if level < 1 || level > 9 {
		return packer{}, fmt.Errorf("vmdk: compression level %d, which is not from 1 to 9: %w", level, formats.ErrFormat)
	}
	return packer{&sync.Pool{New: func() any {
		w, err := flate.NewWriter(nil, level)
		if err != nil {
			panic(err) // only for a level that does not exist
		}
		return &deflater{w: w}
	}}}, nil
}

// Pack deflates a block. What does not become smaller is packed all the same, in stored blocks: a
// streamOptimized disk has no other way to hold it. Only the end of a disk that ends within a sector
// is left to WriteAt, which fills the sector.
func (p packer) Pack(buf, block []byte) (formats.Packed, bool) {
	if len(block)%sector != 0 {
		return formats.Packed{}, false
	}
	return p.pack(buf, block, int64(len(block))), true
}

// pack deflates a block and zeros up to n bytes.
func (p packer) pack(buf, block []byte, n int64) formats.Packed {
	d := p.pool.Get().(*deflater)
	defer p.pool.Put(d)
	if int64(len(block)) < n {
		block = append(make([]byte, 0, n), block...)[:n]
	}
	d.out = *bytes.NewBuffer(buf[:0])
	d.w.Reset(&d.out)
	_, _ = d.w.Write(block) // into memory: cannot fail
	_ = d.w.Close()
	out := d.out.Bytes()
	d.out = bytes.Buffer{}
	return formats.Packed{Codec: formats.Deflate, Bytes: out, Sum: inflate.Adler32(block), HasSum: true}
}

var zeroGrain [grainSize]byte

func zeros(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroGrain))
		if !bytes.Equal(b[:n], zeroGrain[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
