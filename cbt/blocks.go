package cbt

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
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

var zeroSum = sync.OnceValue(func() formats.Sum { return sha256.Sum256(make([]byte, formats.BlockSize)) })

// sumOf reads and sums n bytes at off, and says how many it read: what is known to be zeros is not.
func sumOf(ctx context.Context, img formats.Image, off int64, b []byte) (s formats.Sum, read int64, err error) {
	for e, err := range formats.Merged(img.Extents(ctx, off, int64(len(b)))) {
		if err != nil {
			return s, 0, err
		}
		if e.Kind == formats.Zero {
			clear(b[e.Off-off:][:e.Len])
			continue
		}
		if err := readFull(img, b[e.Off-off:][:e.Len], e.Off); err != nil {
			return s, 0, err
		}
		read += e.Len
	}
	if read == 0 && len(b) == formats.BlockSize {
		return zeroSum(), 0, nil
	}
	return sha256.Sum256(b), read, nil
}

// redigest sums the blocks that an index lacks, from an image.
type redigest struct {
	img     formats.Image
	now     *formats.Digests
	workers int // 0: one a core
	pace    func(ctx context.Context, n int64) error

	// Of a delta: the point before, and what changed since. What is taken from it unchanged is compared
	// with its sum first: damage is to be found, not digested.
	old    formats.Image
	before *formats.Digests
	ranges Set
}

func (r *redigest) run(ctx context.Context) error {
	return eachBlock(ctx, r.workers, r.missing(), r.block)
}

// missing yields the blocks that have no sum.
func (r *redigest) missing() iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		for i := range r.now.Blocks() {
			if _, ok, err := r.now.Sum(i); (err != nil || !ok) && !yield(i, err) {
				return
			}
		}
	}
}

func (r *redigest) block(ctx context.Context, i int64, buf []byte) error {
	off, n := i*formats.BlockSize, r.now.BlockLen(i)
	if r.pace != nil {
		if err := r.pace(ctx, n); err != nil {
			return err
		}
	}
	if err := r.prove(ctx, i, buf); err != nil {
		return err
	}
	s, _, err := sumOf(ctx, r.img, off, buf[:n])
	if err != nil {
		return err
	}
	return r.now.Put(i, s)
}

// prove compares a block of the point before with its sum, unless nothing of it is left.
func (r *redigest) prove(ctx context.Context, i int64, buf []byte) error {
	if r.old == nil || i >= r.before.Blocks() || r.ranges.Covers(i*formats.BlockSize, r.now.BlockLen(i)) {
		return nil
	}
	b := blockCheck{img: r.old, index: r.before}
	if err := b.block(ctx, i, buf); err != nil {
		return fmt.Errorf("what the delta builds upon is damaged (a check of the chain names the link): %w", err)
	}
	return nil
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
// the first that was seen to. each is called now and then, from one goroutine.
func (b blockCheck) run(ctx context.Context, set Set, each func()) error {
	return eachBlock(ctx, b.workers, func(yield func(int64, error) bool) {
		for r := range set.Align(formats.BlockSize, b.img.Size()).All() {
			for i := r.Off / formats.BlockSize; i*formats.BlockSize < r.End(); i++ {
				if !yield(i, nil) {
					return
				}
				each()
			}
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
