package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"hypersdk/formats"
)

const (
	// sector is the block of an export whose server takes any length.
	sector = 512
	// maxZero is how much is zeroed by one request, which carries no data.
	maxZero = 64 << 20
)

// writer is an export being written. What it holds besides what is written stays.
type writer struct{ *Disk }

var _ interface {
	formats.Writer
	formats.Unordered
} = writer{}

// Writer writes to the export, which keeps what is not written. Closing it closes the disk. It fails
// with syscall.EROFS where the server refuses writes.
func (d *Disk) Writer() (formats.Writer, error) {
	if d.ReadOnly() {
		return nil, fmt.Errorf("nbd: the export is read-only: %w", syscall.EROFS)
	}
	return writer{d}, nil
}

func (w writer) BlockSize() int64 { return max(sector, w.export.min) }

func (w writer) Parallelism() int { return defaultConnections * len(w.conns) }

func (w writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.fits(off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := w.all(cmdWrite, off, int64(len(p)), w.export.max, p); err != nil {
		return 0, fmt.Errorf("nbd: write %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

func (w writer) WriteZeroes(off, n int64) error {
	if err := w.fits(off, n); err != nil {
		return err
	}
	err := error(syscall.ENOTSUP)
	if w.export.has(flagWriteZeroes) {
		err = w.all(cmdWriteZeroes, off, n, maxZero, nil)
	}
	if errors.Is(err, syscall.ENOTSUP) {
		zeros := make([]byte, min(n, 1<<20))
		for at := int64(0); at < n && (at == 0 || err == nil); at += int64(len(zeros)) {
			zeros = zeros[:min(int64(len(zeros)), n-at)]
			err = w.all(cmdWrite, off+at, int64(len(zeros)), w.export.max, zeros)
		}
	}
	if err != nil {
		return fmt.Errorf("nbd: zero %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// fits checks a write before it is sent.
func (w writer) fits(off, n int64) error {
	block := w.BlockSize()
	switch {
	case off < 0 || n < 0 || off > w.Size()-n:
		return fmt.Errorf("nbd: write of %d bytes at %d to a disk of %d", n, off, w.Size())
	case off%block != 0 || n%block != 0 && off+n != w.Size():
		return fmt.Errorf("nbd: write of %d bytes at %d: %w of %d", n, off, formats.ErrAlign, block)
	}
	return nil
}

// Checkpoint needs nothing but the offset: what is written lies where it belongs.
func (w writer) Checkpoint(off int64) (formats.Checkpoint, error) {
	return formats.Checkpoint{Off: off}, nil
}

// Sync makes durable what was written before ("NBD_CMD_FLUSH"), on all connections: a server that
// allows several promises that.
func (w writer) Sync(context.Context) error {
	if !w.export.has(flagFlush) {
		return nil // it has nothing to flush: a reply means that the write is done
	}
	r := &request{cmd: cmdFlush}
	w.pick().start(r)
	if err := r.wait(); err != nil {
		return fmt.Errorf("nbd: flush: %w", err)
	}
	return nil
}

func (w writer) Commit(ctx context.Context) error { return w.Sync(ctx) }
