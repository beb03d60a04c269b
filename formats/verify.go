package formats

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// VerifyOptions say how a disk is read again. The zero value is right.
type VerifyOptions struct {
	Workers  int // blocks read at once; 0: one a core
	Progress func(Progress)
	Pace     func(ctx context.Context, n int64) error
}

// Verify reads all of img and compares every block with its sum in d. It answers the content digest
// of what it read. A difference wraps ErrCorrupt and names the first stretch that differs.
func Verify(ctx context.Context, img Image, d *Digests, opt VerifyOptions) (Digest, error) {
	if img.Size() != d.Size() {
		return Digest{}, fmt.Errorf("the disk has %d bytes instead of %d: %w", img.Size(), d.Size(), ErrCorrupt)
	}
	var (
		mu     sync.Mutex
		differ = make(map[int64]bool)
	)
	err := eachBlock(ctx, img, opt, nil, func(i int64, got Sum, _ int64) error {
		want, ok, err := d.Sum(i)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("block %d was never digested: %w", i, ErrAbsent)
		}
		if got != want {
			mu.Lock()
			differ[i] = true
			mu.Unlock()
			return errDiffer
		}
		return nil
	})
	if len(differ) > 0 {
		return Digest{}, firstDifference(differ, d)
	}
	if err != nil {
		return Digest{}, err
	}
	return d.Root()
}

// Redigest reads the blocks of img that extents touch and notes their sums in d.
func Redigest(ctx context.Context, img Image, d *Digests, extents []Extent) error {
	buf := make([]byte, BlockSize)
	for _, e := range extents {
		for i := e.Off / BlockSize; i*BlockSize < e.End(); i++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			s, _, err := sumOf(ctx, img, i, buf)
			if err != nil {
				return err
			}
			if err := d.Put(i, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// DigestOf reads all of img and notes the sum of every block in d, which must be new.
func DigestOf(ctx context.Context, img Image, d *Digests, opt VerifyOptions) (Digest, error) {
	err := eachBlock(ctx, img, opt, nil, func(i int64, s Sum, _ int64) error { return d.Put(i, s) })
	if err != nil {
		return Digest{}, err
	}
	return d.Root()
}

// ResumeDigest is DigestOf that survives a kill: blocks whose sum d has already are not read again, and
// what is added to d is made durable every 24 MiB that are read, and at the end, however it ends. It does
// not matter which sums d has.
func ResumeDigest(ctx context.Context, img Image, d *Digests, opt VerifyOptions) (Digest, error) {
	if img.Size() != d.Size() {
		return Digest{}, fmt.Errorf("digests of %d bytes for a disk of %d", d.Size(), img.Size())
	}
	known := func(i int64) (bool, error) {
		_, ok, err := d.Sum(i)
		return ok, err
	}
	s := saver{d: d}
	err := eachBlock(ctx, img, opt, known, func(i int64, sum Sum, read int64) error {
		if err := d.Put(i, sum); err != nil {
			return err
		}
		return s.count(read)
	})
	if serr := s.finish(); err == nil {
		err = serr
	}
	if err != nil {
		return Digest{}, err
	}
	return d.Root()
}

// saver makes digests durable now and then while they are being filled.
type saver struct {
	d *Digests

	mu      sync.Mutex
	unsaved int64      // bytes read since the last save was begun
	saving  chan error // nil: none was begun
}

// count notes that n bytes were read. Where it is time, it begins a save, which goes on beside the reading
// unless the one before has not ended yet.
func (s *saver) count(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved += n; s.unsaved < distance {
		return nil
	}
	if err := s.wait(); err != nil {
		return err
	}
	s.unsaved, s.saving = 0, make(chan error, 1)
	go func(done chan<- error) { done <- s.d.Sync() }(s.saving)
	return nil
}

// wait waits for the save that is going on; s.mu is held.
func (s *saver) wait() error {
	if s.saving == nil {
		return nil
	}
	err := <-s.saving
	s.saving = nil
	return err
}

// finish saves what is left.
func (s *saver) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.wait(); err != nil {
		return err
	}
	return s.d.Sync()
}

var errDiffer = errors.New("a block differs")

func firstDifference(differ map[int64]bool, d *Digests) error {
	first := int64(-1)
	for i := range differ {
		if first < 0 || i < first {
			first = i
		}
	}
	end := first + 1
	for differ[end] {
		end++
	}
	return fmt.Errorf("bytes [%d, %d) are not what was received: %w", first*BlockSize, (end-1)*BlockSize+d.BlockLen(end-1), ErrCorrupt)
}

// eachBlock sums the blocks of img on several goroutines, but for those that are known already (nil: none
// is), and says how many bytes it read for each. After the first error no new block is begun, but those
// before it are finished.
func eachBlock(ctx context.Context, img Image, opt VerifyOptions, known func(int64) (bool, error), fn func(i int64, s Sum, read int64) error) error {
	if opt.Workers <= 0 {
		opt.Workers = runtime.GOMAXPROCS(0)
	}
	blocks := (img.Size() + BlockSize - 1) / BlockSize
	var (
		next, done, read atomic.Int64
		failed           atomic.Bool
		once, report     sync.Mutex
		first            error
		wg               sync.WaitGroup
	)
	r := blockReader{img, opt.Pace, known, fn}
	for range opt.Workers {
		wg.Go(func() {
			buf := make([]byte, BlockSize)
			for !failed.Load() {
				i := next.Add(1) - 1
				if i >= blocks {
					return
				}
				n := min(BlockSize, img.Size()-i*BlockSize)
				got, err := r.block(ctx, i, buf[:n])
				if err != nil {
					failed.Store(true)
					once.Lock()
					if first == nil || errors.Is(first, errDiffer) {
						first = err
					}
					once.Unlock()
					return
				}
				if p := (Progress{Done: done.Add(n), Read: read.Add(got)}); opt.Progress != nil {
					report.Lock()
					opt.Progress(p)
					report.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

type blockReader struct {
	img   Image
	pace  func(ctx context.Context, n int64) error
	known func(int64) (bool, error)
	fn    func(i int64, s Sum, read int64) error
}

// block deals with block i, which fits into buf exactly, and answers how many bytes it read.
func (r *blockReader) block(ctx context.Context, i int64, buf []byte) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if r.known != nil {
		if is, err := r.known(i); err != nil || is {
			return 0, err
		}
	}
	if r.pace != nil {
		if err := r.pace(ctx, int64(len(buf))); err != nil {
			return 0, err
		}
	}
	s, read, err := sumOf(ctx, r.img, i, buf)
	if err != nil {
		return 0, err
	}
	return read, r.fn(i, s, read)
}

// sumOf reads and sums block i; zeros that the image knows of are not read.
func sumOf(ctx context.Context, img Image, i int64, buf []byte) (Sum, int64, error) {
	off := i * BlockSize
	b := buf[:min(BlockSize, img.Size()-off)]
	var read int64
	for e, err := range Merged(tiled(ctx, img, off, int64(len(b)))) {
		if err != nil {
			return Sum{}, 0, err
		}
		at := b[e.Off-off:][:e.Len]
		switch e.Kind {
		case Absent:
			return Sum{}, 0, fmt.Errorf("bytes [%d, %d): %w", e.Off, e.End(), ErrAbsent)
		case Zero:
			clear(at)
		case Data:
			if err := readFull(img, at, e.Off); err != nil {
				return Sum{}, 0, err
			}
			read += e.Len
		}
	}
	if zeroes(b) {
		return sumOfZeros(int64(len(b))), read, nil
	}
	return sha256.Sum256(b), read, nil
}
