package formats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// window is what one worker reads at a time: long enough that a request over a network is mostly
	// payload, short enough that a few of them fit in memory for each of many disks.
	window = 2 << 20
	// distance is how far two checkpoints are apart where nobody says. One may be on its way to the disk
	// while the next is being written, and some windows are read ahead, so a kill costs less than 64 MiB
	// of reading.
	distance = 24 << 20
	// grain is the finest run of zeros that is looked for where the target's own blocks are finer.
	grain = 16 << 10
	// readAhead is how many windows more than workers are under way: one being written, one waiting.
	readAhead = 2
)

// ErrStopped is the answer of Copy when it was asked to stop: what it did is durable.
var ErrStopped = errors.New("stopped on request")

// CopyOptions say how a disk is copied. The zero value is right.
type CopyOptions struct {
	// From is where an earlier copy stood; dst must have been opened with it. Only an Image can be
	// resumed.
	From Checkpoint
	// Workers is how many windows are read, checked and packed at once; 0: one a core.
	Workers int
	// Buffers bounds the memory of many copies together; nil: this one has its own.
	Buffers *Buffers
	// Digests receives the sum of every block that is copied whole; nil: nothing is digested.
	Digests *Digests
	// Durable is told a checkpoint after everything up to it is durable, digests included, in order;
	// nil: no checkpoints are taken.
	Durable func(Checkpoint) error
	// Distance is how many bytes are moved between two checkpoints; 0: 24 MiB. A checkpoint makes the
	// target durable, which costs time, and what was done since the last one is lost by a kill. What is
	// zeros, or not there, costs nothing to do again, and does not count.
	Distance int64
	// Progress is told how far the copy has come, often, and from one goroutine at a time.
	Progress func(Progress)
	// Pace is asked before n bytes are read, from many goroutines; it waits as long as it wants.
	Pace func(ctx context.Context, n int64) error
	// Stop, once closed, ends the copy at the next window: what is under way is written and made
	// durable, and Copy answers ErrStopped.
	Stop <-chan struct{}
	// Trust moves packed blocks without unpacking them to see whether they are whole. Blocks that are
	// moved so are not digested.
	Trust bool
}

// Progress is how far a copy has come, in bytes.
type Progress struct {
	Done    int64 // of the disk: all before it is dealt with
	Read    int64 // from the source, by this copy
	Written int64 // handed to the target as data, by this copy; what is packed counts packed
}

// Result is what a copy did.
type Result struct {
	Progress
	// Digest is the content digest, where Digests was given and every block of the disk is known.
	Digest Digest
	// Late is what a stream delivered after its place had been passed, in whole blocks: its sums in
	// Digests are missing and have to be taken from the target. See [Redigest].
	Late []Extent
}

// Copy reads a disk and writes it: extents of zeros and runs of zeros become WriteZeroes, absent ones
// are left as they are, blocks that both sides can speak packed are moved so. Reading, digesting and
// packing go on in parallel; an ordered target is written in the order of the disk by one goroutine,
// so that the same source gives the same bytes.
//
// Copy does not Commit: the caller does, once it believes in the result.
func Copy(ctx context.Context, dst Writer, src Source, opt CopyOptions) (Result, error) {
	c, err := newCopier(dst, src, opt)
	if err != nil {
		return Result{}, err
	}
	return c.run(ctx)
}

type copier struct {
	dst    Writer
	packed PackedWriter // nil: dst stores plain
	src    Source
	// unpacked is src where its blocks are packed and could be moved; nil: it is read plain
	unpacked PackedReader
	opt      CopyOptions
	size     int64
	block    int64 // of dst
	window   int64
	grain    int64 // of zero runs
	direct   bool  // dst is Unordered: workers write
	read     atomic.Int64
	wrote    atomic.Int64
	absent   atomic.Bool // something was not in the source, so there is no digest of the whole
	late     []Extent    // the planner's
}

func newCopier(dst Writer, src Source, opt CopyOptions) (*copier, error) {
	c := &copier{dst: dst, src: src, opt: opt, size: src.Size(), block: dst.BlockSize()}
	if c.block <= 0 || c.block&(c.block-1) != 0 {
		return nil, fmt.Errorf("copy: the target's block size %d is not a power of two", c.block)
	}
	c.window = max(window, c.block)
	c.grain = max(grain, c.block)
	c.packed, _ = dst.(PackedWriter)
	if c.packed != nil {
		c.grain = c.block
		c.unpacked, _ = src.(PackedReader)
	}
	workers := runtime.GOMAXPROCS(0)
	if opt.Workers > 0 {
		workers = opt.Workers
	}
	if u, ok := dst.(Unordered); ok && c.packed == nil && u.Parallelism() > 1 {
		c.direct, workers = true, min(workers, u.Parallelism())
	}
	c.opt.Workers = workers
	if off := opt.From.Off; off < 0 || off > c.size || off != c.size && off%c.window != 0 {
		return nil, fmt.Errorf("copy: cannot go on at %d of %d", off, c.size)
	}
	if opt.Distance <= 0 {
		c.opt.Distance = distance
	}
	if opt.Digests != nil && opt.Digests.Size() != c.size {
		return nil, fmt.Errorf("copy: digests of %d bytes for a disk of %d", opt.Digests.Size(), c.size)
	}
	if opt.Buffers == nil {
		c.opt.Buffers = NewBuffers(int64(c.opt.Workers+readAhead) * c.footprint())
	}
	return c, nil
}

// footprint is the memory that one window under way takes.
func (c *copier) footprint() int64 {
	n := c.window
	if c.packed != nil {
		n += c.window
	}
	if _, ok := c.src.(Stream); ok || c.unpacked != nil {
		n += c.window
	}
	return n
}

func (c *copier) run(ctx context.Context) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.opt.Buffers.enter()
	defer c.opt.Buffers.leave()

	// order holds the pieces under way in the order of the disk (or of the stream); work hands the
	// same pieces to the workers. Its length bounds how far reading runs ahead of writing.
	order := make(chan *piece, c.opt.Workers+readAhead)
	work := make(chan *piece, c.opt.Workers+readAhead)
	var wg sync.WaitGroup
	var planErr error
	wg.Go(func() {
		defer close(order)
		defer close(work)
		planErr = c.plan(ctx, func(p *piece) error {
			p.done = make(chan struct{})
			select {
			case order <- p:
			case <-ctx.Done():
				c.opt.Buffers.put(p)
				return context.Cause(ctx)
			}
			work <- p // as long as order: never blocks for long
			return nil
		})
	})
	for range c.opt.Workers {
		wg.Go(func() {
			w := worker{copier: c}
			defer w.unpack.close()
			for p := range work {
				if p.err = context.Cause(ctx); p.err == nil {
					p.err = w.do(ctx, p)
				}
				if p.err != nil {
					cancel(p.err)
				}
				close(p.done)
			}
		})
	}
	done, err := c.commit(ctx, order, cancel)
	wg.Wait()
	if err == nil {
		err = planErr
	}
	res := Result{Progress: Progress{Done: done, Read: c.read.Load(), Written: c.wrote.Load()}, Late: c.late}
	if err != nil {
		return res, err
	}
	if c.opt.Digests != nil && !c.absent.Load() && len(c.late) == 0 && !c.opt.Trust {
		res.Digest, err = c.opt.Digests.Root()
		if c.opt.From.Off > 0 && errors.Is(err, ErrAbsent) {
			err = nil // an earlier copy passed over what is not in the source, before this one began
		}
	}
	return res, err
}

// plan cuts the source into pieces and passes them on in order.
func (c *copier) plan(ctx context.Context, emit func(*piece) error) error {
	switch src := c.src.(type) {
	case Image:
		return c.planImage(ctx, src, emit)
	case Stream:
		if c.opt.From.Off != 0 {
			return errors.New("copy: a stream cannot be resumed")
		}
		return c.planStream(ctx, src, emit)
	}
	return fmt.Errorf("copy: %T is neither an image nor a stream", c.src)
}

func (c *copier) stopped() bool {
	select {
	case <-c.opt.Stop:
		return true
	default:
		return false
	}
}

// commit takes the pieces in order: it writes them (unless the workers do), notes their sums, reports,
// and takes checkpoints. It always drains order, so that nobody is left waiting.
func (c *copier) commit(ctx context.Context, order <-chan *piece, cancel context.CancelCauseFunc) (int64, error) {
	done, moved := c.opt.From.Off, int64(0) // moved since the last checkpoint
	s := syncer{copier: c}
	var err error
	for p := range order {
		<-p.done
		if err == nil {
			err = p.err
		}
		if err == nil {
			err = c.finish(p)
		}
		end, bytes := p.off+p.n, p.bytes()
		c.opt.Buffers.put(p)
		if err != nil {
			cancel(err)
			continue
		}
		done, moved = max(done, end), moved+bytes
		if c.opt.Progress != nil {
			c.opt.Progress(Progress{Done: done, Read: c.read.Load(), Written: c.wrote.Load()})
		}
		if c.opt.Durable != nil && moved >= c.opt.Distance && done < c.size {
			moved = 0
			if err = s.begin(ctx, done); err != nil {
				cancel(err)
			}
		}
	}
	if serr := s.wait(); err == nil {
		err = serr
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && c.opt.Durable != nil && done > c.opt.From.Off {
		if err = s.begin(ctx, done); err == nil {
			err = s.wait()
		}
	}
	if err == nil && done < c.size && c.stopped() {
		err = ErrStopped
	}
	return done, err
}

func (c *copier) finish(p *piece) error {
	if !c.direct {
		if err := p.write(c); err != nil {
			return err
		}
	}
	if c.opt.Digests == nil {
		return nil
	}
	first := p.off / BlockSize
	if p.zero {
		for i := first; i*BlockSize < p.off+p.n; i++ {
			if err := c.opt.Digests.Put(i, sumOfZeros(c.opt.Digests.BlockLen(i))); err != nil {
				return err
			}
		}
		return nil
	}
	for i, s := range p.sums {
		if s == (Sum{}) {
			// Not known. What was noted before stands, unless a late chunk has just written over it.
			at := (first + int64(i)) * BlockSize
			if touched, _ := p.has(at, c.opt.Digests.BlockLen(first+int64(i))); !p.late || !touched {
				continue
			}
		}
		if err := c.opt.Digests.Put(first+int64(i), s); err != nil {
			return err
		}
	}
	return nil
}

// syncer makes one checkpoint durable at a time while the copy goes on.
type syncer struct {
	*copier
	pending chan error
}

func (s *syncer) begin(ctx context.Context, off int64) error {
	if err := s.wait(); err != nil {
		return err
	}
	cp, err := s.dst.Checkpoint(off)
	if err != nil {
		return err
	}
	s.pending = make(chan error, 1)
	go func() {
		err := s.dst.Sync(ctx)
		if err == nil && s.opt.Digests != nil {
			err = s.opt.Digests.Sync()
		}
		if err == nil {
			err = s.opt.Durable(cp)
		}
		s.pending <- err
	}()
	return nil
}

func (s *syncer) wait() error {
	if s.pending == nil {
		return nil
	}
	err := <-s.pending
	s.pending = nil
	return err
}

// Buffers bounds the memory that copies take for what they have under way.
type Buffers struct {
	limit int64
	mu    sync.Mutex
	used  int64
	users int           // copies that run
	freed chan struct{} // closed and replaced when something comes back
	free  []*piece
}

// enter and leave frame a copy: when none runs, the memory is given back.
func (b *Buffers) enter() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users++
}

func (b *Buffers) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users--; b.users == 0 {
		b.free = nil
	}
}

// NewBuffers bounds copies to about that many bytes together. One window of each copy is always let
// through when nothing else is under way, so a small limit is slow but never stuck.
func NewBuffers(limit int64) *Buffers {
	return &Buffers{limit: limit, freed: make(chan struct{})}
}

// get waits for room and answers an empty piece that may grow to n bytes.
func (b *Buffers) get(ctx context.Context, n int64) (*piece, error) {
	for {
		b.mu.Lock()
		if b.used == 0 || b.used+n <= b.limit {
			b.used += n
			p := &piece{}
			if l := len(b.free); l > 0 {
				p, b.free = b.free[l-1], b.free[:l-1]
			}
			b.mu.Unlock()
			p.reset(n)
			return p, nil
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (b *Buffers) put(p *piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= p.cost
	b.free = append(b.free, p)
	close(b.freed)
	b.freed = make(chan struct{})
}

// readFull fills p from off on. An image that ends early is corrupt, whatever it says.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("read of %d bytes at %d gave %d: %w", len(p), off, n, ErrCorrupt)
	}
	return err
}
