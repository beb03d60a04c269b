package cbt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"iter"
	"sync"

	"hypersdk/formats"
)

// below is the disk that a delta builds upon. What is taken from it unchanged is compared with its sum
// first: damage is to be found, not digested. The zero value is that of a full copy: nothing is below.
type below struct {
	links  []link
	disk   formats.Image // nil: nothing is below
	index  *formats.Digests
	ranges Set   // that changed since
	size   int64 // of the disk now

	closeIndex func() error
}

// below opens what a new file of a disk builds upon.
func (a *Append) below(ctx context.Context, n *newDisk) (b below, err error) {
	if n.before == nil {
		return b, nil
	}
	b.ranges, b.size = n.ranges, n.Size
	number := n.before.point.Number
	if b.links, err = a.c.m.links(number, n.Disk); err != nil {
		return b, err
	}
	if b.disk, err = a.c.Open(ctx, number, n.Disk); err != nil {
		return b, err
	}
	if b.index, b.closeIndex, err = a.c.openIndex(*n.before); err != nil {
		return b, errors.Join(err, b.disk.Close())
	}
	return b, nil
}

func (b *below) close() {
	if b.disk != nil {
		_, _ = b.disk.Close(), b.closeIndex()
	}
}

// keeps says whether anything of a block is still that of the disk below.
func (b *below) keeps(i int64) bool {
	off := i * formats.BlockSize
	return b.disk != nil && i < b.index.Blocks() && !b.ranges.Covers(off, min(formats.BlockSize, b.size-off))
}

// kept is how many bytes a block begins with that did not change.
func (b *below) kept(i int64) int64 {
	off, n := i*formats.BlockSize, b.index.BlockLen(i)
	for r := range b.ranges.within(off, off+n) {
		return r.Off - off
	}
	return n
}

// changed is how many bytes of a block changed.
func (b *below) changed(i int64) (n int64) {
	off := i * formats.BlockSize
	for r := range b.ranges.within(off, off+b.index.BlockLen(i)) {
		n += r.Len
	}
	return n
}

// prove reads a block of the disk below into buf and compares it with its sum. It answers the sum of what the
// block begins with unchanged, which whoever sums the new block goes on with.
func (b *below) prove(ctx context.Context, i int64, buf []byte) (hash.Hash, error) {
	buf = buf[:b.index.BlockLen(i)]
	want, ok, err := b.index.Sum(i)
	if err != nil {
		return nil, err
	}
	off := i * formats.BlockSize
	read, err := load(ctx, b.disk, off, buf)
	if err != nil {
		return nil, err
	}
	h, kept := sha256.New(), b.kept(i)
	h.Write(buf[:kept])
	begun, err := h.(hash.Cloner).Clone()
	if err != nil {
		return nil, err
	}
	sum := zeroSum()
	if read > 0 || len(buf) < formats.BlockSize {
		h.Write(buf[kept:])
		sum = formats.Sum(h.Sum(nil))
	}
	if !ok || sum != want {
		return nil, fmt.Errorf("what the delta builds upon is damaged (a check of the chain names the link): bytes [%d, %d) of the disk are not what was copied: %w",
			off, off+int64(len(buf)), formats.ErrCorrupt)
	}
	return begun, nil
}

// redigest sums the blocks of a new file that its index lacks.
type redigest struct {
	now     *formats.Digests
	workers int // 0: one a core
	pace    func(ctx context.Context, n int64) error

	below // of a delta

	coming *arrivals     // while it is copied; nil: what is copied is not seen
	img    formats.Image // when it is copied

	mu    sync.Mutex
	begun map[int64]hash.Hash // of blocks that were proved during the copy, and not summed
}

// maxBegun is how many blocks are worked on during a copy: 16 MiB of sums that were begun.
const maxBegun = 1 << 16

// during proves what the new file builds upon, and sums its blocks, while copy waits for its source. Damage
// ends the copy.
func (r *redigest) during(ctx context.Context, copy func(context.Context) error) error {
	if r.disk == nil {
		return copy(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.begun = make(map[int64]hash.Hash)
	var proof error
	var wg sync.WaitGroup
	wg.Go(func() {
		if proof = eachBlock(ctx, r.workers, r.partly(), r.beside); proof != nil {
			cancel(proof)
		}
	})
	err := copy(ctx)
	if err != nil {
		cancel(err)
	}
	if r.coming != nil {
		r.coming.end()
	}
	wg.Wait()
	if proof != nil {
		return proof // or what ended the copy: that ended the proof, too
	}
	return err
}

// beside proves a block during the copy, and sums it once its changes have come. Where they are not seen, or
// not kept, it notes how far it is.
func (r *redigest) beside(ctx context.Context, i int64, buf []byte) error {
	if err := r.wait(ctx, i); err != nil {
		return err
	}
	h, err := r.prove(ctx, i, buf)
	if err != nil {
		return err
	}
	n := r.now.BlockLen(i)
	if r.coming != nil && r.index.BlockLen(i) == n && r.coming.take(ctx, i, r.changed(i), buf) {
		h.Write(buf[r.kept(i):n])
		return r.now.Put(i, formats.Sum(h.Sum(nil)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun[i] = h
	return nil
}

// arrive hands over what the copy has read, a piece of a block.
func (r *redigest) arrive(off int64, data []byte) {
	i := off / formats.BlockSize
	if !r.keeps(i) {
		return
	}
	if _, known, err := r.now.Sum(i); err == nil && !known {
		r.coming.put(off, data)
	}
}

// partly yields the blocks that have no sum and of which something is kept, as many as are worked on during a
// copy.
func (r *redigest) partly() iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		left := maxBegun
		for i, err := range r.missing() {
			if err == nil && !r.keeps(i) {
				continue
			}
			if left == 0 || !yield(i, err) {
				return
			}
			left--
		}
	}
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

func (r *redigest) wait(ctx context.Context, i int64) error {
	if r.pace == nil {
		return nil
	}
	return r.pace(ctx, r.now.BlockLen(i))
}

// run sums what is missing.
func (r *redigest) run(ctx context.Context) error {
	return eachBlock(ctx, r.workers, r.missing(), r.block)
}

func (r *redigest) block(ctx context.Context, i int64, buf []byte) (err error) {
	off, n := i*formats.BlockSize, r.now.BlockLen(i)
	if err := r.wait(ctx, i); err != nil {
		return err
	}
	h := r.take(i)
	if h == nil && r.keeps(i) {
		if h, err = r.prove(ctx, i, buf); err != nil {
			return err
		}
	}
	if h == nil || r.index.BlockLen(i) != n { // nothing is kept, or the disk was resized within it
		s, _, err := sumOf(ctx, r.img, off, buf[:n])
		if err != nil {
			return err
		}
		return r.now.Put(i, s)
	}
	rest := buf[r.kept(i):n]
	if err := readFull(r.img, rest, off+n-int64(len(rest))); err != nil {
		return err
	}
	h.Write(rest)
	return r.now.Put(i, formats.Sum(h.Sum(nil)))
}

// take answers what is begun of a block, nil for nothing.
func (r *redigest) take(i int64) hash.Hash {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.begun[i]
	delete(r.begun, i)
	return h
}
