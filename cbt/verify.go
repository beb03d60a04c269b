package cbt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"hypersdk/formats"
	"hypersdk/formats/local"
)

// Verify reads back what the new point holds of a disk that was copied, from where it is stored and not
// from memory, and compares it with its sums: of a delta the blocks of 1 MiB that it touches, through the
// files below where they lie there partly, and of a full copy all. A difference is a [LinkError] that
// wraps formats.ErrCorrupt and names the file and where on the disk it begins; then the disk counts as not
// copied, and the next Copy begins anew. Progress says how far on the disk it has come, and what it read.
func (a *Append) Verify(ctx context.Context, disk string, opt formats.VerifyOptions) error {
	n, err := a.take(disk)
	if err == nil {
		if err = a.verify(ctx, n, opt); errors.Is(err, formats.ErrCorrupt) {
			err = errors.Join(err, a.forget(n))
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if n.busy = false; errors.Is(err, formats.ErrCorrupt) {
			n.ready = nil
		}
	}
	if err != nil {
		return fmt.Errorf("verify point %d: disk %q: %w", a.state.Number, disk, err)
	}
	return nil
}

func (a *Append) verify(ctx context.Context, n *newDisk, opt formats.VerifyOptions) error {
	if n.ready == nil {
		return errors.New("it has not been copied")
	}
	own := func(name string, err error) error {
		return &LinkError{Point: a.state.Number, Disk: n.Disk, File: name, Err: err}
	}
	top, err := a.stored(partName(n.file(a)))
	if err != nil {
		return own(partName(n.file(a)), err)
	}
	defer top.Close()
	sums, err := a.stored(partName(n.index(a)))
	if err != nil {
		return own(partName(n.index(a)), err)
	}
	defer sums.Close()
	index, err := formats.OpenDigests(readOnlyFile{sums})
	if err == nil {
		if d, _ := index.Sealed(); d.String() != n.ready.Digest || index.Size() != n.Size {
			err = fmt.Errorf("it is not the index that was written: %w", formats.ErrCorrupt)
		}
	}
	if err != nil {
		return own(partName(n.index(a)), err)
	}
	b, err := a.below(ctx, n)
	if err != nil {
		return err
	}
	defer b.close()
	img, err := a.c.stack(ctx, b.links, top)
	if err != nil {
		return own(partName(n.file(a)), err)
	}
	defer img.Close()
	var read atomic.Int64
	check := blockCheck{img: img, index: index, pace: opt.Pace, read: func(n int64) { read.Add(n) }}
	told := func(done int64) {
		if opt.Progress != nil {
			opt.Progress(formats.Progress{Done: done, Read: read.Load()})
		}
	}
	pieces, received := n.got.proof()
	err = pieceCheck(ctx, img, pieces, opt, told, func(n int64) { read.Add(n) })
	if errors.Is(err, formats.ErrCorrupt) && !errors.As(err, new(*LinkError)) {
		err = own(partName(n.file(a)), err)
	}
	if err != nil {
		return err
	}
	err = firstDamage(ctx, opt.Workers, func(yield func(int64) bool) {
		for i := range blocksOf(n.touched().Subtract(received), n.Size) {
			told(i * formats.BlockSize)
			if !yield(i) {
				return
			}
		}
	}, func(ctx context.Context, i int64, buf []byte) error {
		err := check.block(ctx, i, buf)
		if !errors.Is(err, formats.ErrCorrupt) || errors.As(err, new(*LinkError)) {
			return err
		}
		if b.keeps(i) {
			if _, below := b.prove(ctx, i, buf); below != nil {
				return below
			}
		}
		return own(partName(n.file(a)), err)
	})
	if err == nil {
		told(n.Size)
	}
	return err
}

// touched is what a new file holds, and what has another sum than at the point before.
func (n *newDisk) touched() Set {
	if n.before != nil && n.before.disk.Size > n.Size {
		// The last block is not as long as it was.
		return n.ranges.Union(Whole(n.Size).Clip(n.Size-n.Size%formats.BlockSize, formats.BlockSize))
	}
	return n.ranges
}

// stored opens a file such that what is read of it comes from where it is stored.
func (a *Append) stored(name string) (*os.File, error) {
	f, _, err := a.c.d.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it is missing: %w", formats.ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	if err := local.DropCached(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// forget has the next copy of a disk begin anew: what is written is not trusted again.
func (a *Append) forget(n *newDisk) error {
	p := a.part(n)
	defer p.close()
	if _, err := p.open(new(Disk)); err != nil {
		return err
	}
	return p.restart()
}
