package cbt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"hypersdk/formats"
)

// maxReceived is how many pieces are kept: 12 MiB of sums. A delta of more is read back in whole blocks.
const maxReceived = 1 << 18

// received is the view of a delta that sums what it hands out, so that what was stored of it can be read
// back by itself: a change of 64 KiB does not have the megabyte around it read once more.
type received struct {
	formats.Image
	told func(off int64, data []byte) // of what is handed out, in pieces of one block

	mu     sync.Mutex
	pieces []piece
	lost   bool // more came than is kept
}

// piece is a stretch of a disk that lies in one block.
type piece struct {
	off, n int64
	sum    formats.Sum
}

func (r *received) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Image.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	for at, end := off, off+int64(n); at < end; {
		next := min((at/formats.BlockSize+1)*formats.BlockSize, end)
		r.told(at, p[at-off:next-off])
		r.keep(piece{at, next - at, sha256.Sum256(p[at-off : next-off])})
		at = next
	}
	return n, err
}

func (r *received) keep(p piece) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pieces) == maxReceived {
		r.pieces, r.lost = nil, true
	}
	if !r.lost {
		r.pieces = append(r.pieces, p)
	}
}

// proof is what was received of a disk, ascending, and where: nothing where that is not known for sure, as
// when something was read twice.
func (r *received) proof() ([]piece, Set) {
	if r == nil {
		return nil, Set{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.pieces, func(a, b piece) int { return cmp.Compare(a.off, b.off) })
	var set Set
	for i, p := range r.pieces {
		if i > 0 && p.off < r.pieces[i-1].off+r.pieces[i-1].n || set.Add(p.off, p.n) != nil {
			return nil, Set{}
		}
	}
	return r.pieces, set
}

// pieceCheck compares pieces of an image with their sums. each is called before one is begun, from one
// goroutine.
func pieceCheck(ctx context.Context, img formats.Image, pieces []piece, opt formats.VerifyOptions, each func(off int64), read func(n int64)) error {
	return firstDamage(ctx, opt.Workers, func(yield func(int64) bool) {
		for i, p := range pieces {
			if each(p.off); !yield(int64(i)) {
				return
			}
		}
	}, func(ctx context.Context, i int64, buf []byte) error {
		p := pieces[i]
		if opt.Pace != nil {
			if err := opt.Pace(ctx, p.n); err != nil {
				return err
			}
		}
		got, n, err := sumOf(ctx, img, p.off, buf[:p.n])
		if err != nil {
			return err
		}
		read(n)
		if got == p.sum {
			return nil
		}
		return fmt.Errorf("bytes [%d, %d) of the disk are not what was copied: %w", p.off, p.off+p.n, formats.ErrCorrupt)
	})
}
