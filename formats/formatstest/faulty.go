package formatstest

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"

	"hypersdk/formats"
)

// Op is what is done to a file.
type Op uint8

const (
	Read Op = iota
	Write
	Truncate
	Sync
)

// ErrInjected is the error of a fault.
var ErrInjected = errors.New("injected fault")

// ErrShort makes Faulty read half of what was asked for, as a file does that ends there.
var ErrShort = errors.New("short read")

// Fault is asked before something is done to n bytes at off of a file; its error is what happens
// instead. For Truncate off is the new size.
type Fault func(op Op, off, n int64) error

// Faulty is a file that fails as told. Without faults it is its File.
type Faulty struct {
	formats.File
	Fault Fault
}

// Size is the size of the file below.
func (f *Faulty) Size() int64 { return f.File.(interface{ Size() int64 }).Size() }

// ReadAt reads, or fails.
func (f *Faulty) ReadAt(b []byte, off int64) (int, error) {
	err := f.Fault(Read, off, int64(len(b)))
	if errors.Is(err, ErrShort) {
		n, err := f.File.ReadAt(b[:len(b)/2], off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	if err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

// WriteAt writes, or fails; half of the bytes may be written then.
func (f *Faulty) WriteAt(b []byte, off int64) (int, error) {
	if err := f.Fault(Write, off, int64(len(b))); err != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, err
	}
	return f.File.WriteAt(b, off)
}

// Truncate truncates, or fails.
func (f *Faulty) Truncate(size int64) error {
	if err := f.Fault(Truncate, size, 0); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync syncs, or fails.
func (f *Faulty) Sync() error {
	if err := f.Fault(Sync, 0, 0); err != nil {
		return err
	}
	return f.File.Sync()
}

// At strikes every op that touches byte off of the file.
func At(op Op, off int64, err error) Fault {
	return func(o Op, at, n int64) error {
		if o == op && at <= off && off < at+n {
			return err
		}
		return nil
	}
}

// After lets n ops of a kind pass and strikes all later ones.
func After(op Op, n int64, err error) Fault {
	var seen atomic.Int64
	return func(o Op, _, _ int64) error {
		if o == op && seen.Add(1) > n {
			return err
		}
		return nil
	}
}

// NoSpace lets limit bytes be written, each write counted, and answers ENOSPC from then on.
func NoSpace(limit int64) Fault {
	var wrote atomic.Int64
	return func(o Op, _, n int64) error {
		if o == Write && wrote.Add(n) > limit {
			return syscall.ENOSPC
		}
		return nil
	}
}

// Stall makes ops of a kind that touch byte off wait until ctx ends, and fail then.
func Stall(ctx context.Context, op Op, off int64) Fault {
	return func(o Op, at, n int64) error {
		if o == op && at <= off && off < at+n {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}
}
