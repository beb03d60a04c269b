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
	err := eachBlock(ctx, img, opt, func(i int64, got Sum) error {
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
	if err := eachBlock(ctx, img, opt, d.Put); err != nil {
		return Digest{}, err
	}
	return d.Root()
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

// eachBlock sums the blocks of img on several goroutines. After the first error no new block is
// begun, but those before it are finished.
func eachBlock(ctx context.Context, img Image, opt VerifyOptions, fn func(int64, Sum) error) error {
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
	for range opt.Workers {
		wg.Go(func() {
			buf := make([]byte, BlockSize)
			for !failed.Load() {
				i := next.Add(1) - 1
				if i >= blocks {
					return
				}
				n := min(BlockSize, img.Size()-i*BlockSize)
				err := ctx.Err()
				if err == nil && opt.Pace != nil {
					err = opt.Pace(ctx, n)
				}
				var (
					s   Sum
					got int64
				)
				if err == nil {
					s, got, err = sumOf(ctx, img, i, buf)
				}
				if err == nil {
					err = fn(i, s)
				}
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
