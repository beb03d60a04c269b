package cbt

import (
	"context"
	"slices"
	"sync"

	"hypersdk/formats"
)

const (
	// maxArrived is how many bytes are kept of what was copied for those who sum the blocks that it is part
	// of. What finds no room is read back from the new file.
	maxArrived = 16 << 20
	// passed is how far ahead of a block something is copied when nothing more of the block will come: what
	// is known to be zeros is never read.
	passed = 32 << 20
)

// arrivals hands what a copy reads over to those who sum the blocks that it is part of, so that it need not be
// read back. Whoever waits for a block is answered when all of its changes have come, or will not come.
type arrivals struct {
	mu     sync.Mutex
	some   sync.Cond
	blocks map[int64]*arrived
	held   int64 // bytes
	front  int64 // how far the copy has come
	ended  bool
}

// arrived is what has come of the changes of a block.
type arrived struct {
	pieces []span
	bytes  int64
	lost   bool // not all was kept
}

type span struct {
	off  int64
	data []byte
}

func newArrivals() *arrivals {
	a := &arrivals{blocks: make(map[int64]*arrived)}
	a.some.L = &a.mu
	return a
}

// put keeps a copy of what was read at off, which lies within one block.
func (a *arrivals) put(off int64, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, end := off/formats.BlockSize, off+int64(len(data))
	a.front = max(a.front, end)
	b := a.blocks[i]
	if b == nil {
		if b = new(arrived); len(a.blocks) < maxBegun {
			a.blocks[i] = b
		} else {
			b.lost = true
		}
	}
	again := slices.ContainsFunc(b.pieces, func(s span) bool { return s.off < end && off < s.off+int64(len(s.data)) })
	switch {
	case b.lost:
	case again || a.held+int64(len(data)) > maxArrived:
		a.held -= b.bytes
		*b = arrived{lost: true}
	default:
		b.pieces, b.bytes = append(b.pieces, span{off, slices.Clone(data)}), b.bytes+int64(len(data))
		a.held += int64(len(data))
	}
	a.some.Broadcast()
}

// wake has those who wait look again.
func (a *arrivals) wake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.some.Broadcast()
}

// end says that nothing more will come.
func (a *arrivals) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.some.Broadcast()
}

// take waits for changes of a block, which are want bytes, and puts them in their place in buf, which is the
// block. It answers false where not all have been kept; then buf is of no use any more.
func (a *arrivals) take(ctx context.Context, i, want int64, buf []byte) bool {
	defer context.AfterFunc(ctx, a.wake)()
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		b := a.blocks[i]
		if b != nil && !b.lost && b.bytes == want {
			for _, s := range b.pieces {
				copy(buf[s.off-i*formats.BlockSize:], s.data)
			}
			a.drop(i)
			return true
		}
		if a.ended || ctx.Err() != nil || b != nil && b.lost || a.front > (i+1)*formats.BlockSize+passed {
			a.drop(i)
			return false
		}
		a.some.Wait()
	}
}

// drop forgets a block; what still comes of it is of no use.
func (a *arrivals) drop(i int64) {
	if b := a.blocks[i]; b != nil {
		a.held -= b.bytes
	}
	a.blocks[i] = &arrived{lost: true}
}
