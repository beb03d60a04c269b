package cbt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"sync"

	"hypersdk/formats"
)

// eachBlock calls fn for the numbers of blocks on several goroutines, with a buffer of a block. It
// answers the first error; no block is begun after it.
func eachBlock(ctx context.Context, workers int, blocks iter.Seq2[int64, error], fn func(ctx context.Context, i int64, buf []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	todo := make(chan int64)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := make([]byte, formats.BlockSize)
			for i := range todo {
				err := context.Cause(ctx)
				if err == nil {
					err = fn(ctx, i, buf)
				}
				if err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for i, err := range blocks {
		if err != nil {
			cancel(err)
			break
		}
		select {
		case todo <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(todo)
	wg.Wait()
	return context.Cause(ctx)
}

// firstDamage is eachBlock for blocks that ascend. Of those that fn finds damaged (its error wraps
// formats.ErrCorrupt) it answers the first on the disk; none behind that is begun.
func firstDamage(ctx context.Context, workers int, blocks iter.Seq[int64], fn func(ctx context.Context, i int64, buf []byte) error) error {
	var (
		mu     sync.Mutex
		first  = int64(math.MaxInt64)
		damage error
	)
	before := func(i int64) bool {
		mu.Lock()
		defer mu.Unlock()
		return i < first
	}
	ascending := func(yield func(int64, error) bool) {
		for i := range blocks {
			if !before(i) || !yield(i, nil) {
				return
			}
		}
	}
	err := eachBlock(ctx, workers, ascending, func(ctx context.Context, i int64, buf []byte) error {
		if !before(i) {
			return nil
		}
		err := fn(ctx, i, buf)
		if !errors.Is(err, formats.ErrCorrupt) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if i < first {
			first, damage = i, err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return damage
}

// blocksOf yields the numbers of the blocks that a set touches, ascending.
func blocksOf(s Set, size int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for r := range s.Align(formats.BlockSize, size).All() {
			for i := r.Off / formats.BlockSize; i*formats.BlockSize < r.End(); i++ {
				if !yield(i) {
					return
				}
			}
		}
	}
}

var zeroSum = sync.OnceValue(func() formats.Sum { return sha256.Sum256(make([]byte, formats.BlockSize)) })

// load fills b with what img has at off, and says how many bytes it read: what is known to be zeros is not.
func load(ctx context.Context, img formats.Image, off int64, b []byte) (read int64, err error) {
	for e, err := range formats.Merged(img.Extents(ctx, off, int64(len(b)))) {
		if err != nil {
			return 0, err
		}
		if e.Kind == formats.Zero {
			clear(b[e.Off-off:][:e.Len])
			continue
		}
		if err := readFull(img, b[e.Off-off:][:e.Len], e.Off); err != nil {
			return 0, err
		}
		read += e.Len
	}
	return read, nil
}

// sumOf loads and sums len(b) bytes at off, and says how many it read.
func sumOf(ctx context.Context, img formats.Image, off int64, b []byte) (s formats.Sum, read int64, err error) {
	if read, err = load(ctx, img, off, b); err != nil {
		return s, 0, err
	}
	if read == 0 && len(b) == formats.BlockSize {
		return zeroSum(), 0, nil
	}
	return sha256.Sum256(b), read, nil
}

// blockCheck compares blocks of an image with their sums.
type blockCheck struct {
	img     formats.Image
	index   *formats.Digests
	workers int
	pace    func(ctx context.Context, n int64) error
	read    func(n int64)
}

// run reads the blocks that set touches. The error wraps formats.ErrCorrupt where one differs, and names
// the first that does. each is called now and then, from one goroutine.
func (b blockCheck) run(ctx context.Context, set Set, each func()) error {
	return firstDamage(ctx, b.workers, func(yield func(int64) bool) {
		for i := range blocksOf(set, b.img.Size()) {
			if !yield(i) {
				return
			}
			each()
		}
	}, b.block)
}

func (b blockCheck) block(ctx context.Context, i int64, buf []byte) error {
	off, n := i*formats.BlockSize, b.index.BlockLen(i)
	if b.pace != nil {
		if err := b.pace(ctx, n); err != nil {
			return err
		}
	}
	want, ok, err := b.index.Sum(i)
	if err != nil {
		return err
	}
	got, read, err := sumOf(ctx, b.img, off, buf[:n])
	if err != nil {
		return err
	}
	if b.read != nil {
		b.read(read)
	}
	if !ok || got != want {
		return fmt.Errorf("bytes [%d, %d) of the disk are not what was copied: %w", off, off+n, formats.ErrCorrupt)
	}
	return nil
}
