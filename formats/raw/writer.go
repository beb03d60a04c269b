package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

// parallelism is how many goroutines write to a device at once: enough to keep a queue of requests there.
const parallelism = 8

// zeros are what is written where no hole can be punched.
var zeros [256 << 10]byte

// Create lays a disk out in f, sparsely: what is behind the checkpoint becomes a hole, and writing
// zeros there costs nothing. Prealloc "full" reserves the space of the whole disk instead.
//
// f may be a block device of at least size bytes.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if size < 0 || from.Off < 0 || from.Off > size || from.Token != "" {
		return nil, fmt.Errorf("raw: a disk of %d bytes, checkpoint at %d, %q: %w", size, from.Off, from.Token, formats.ErrFormat)
	}
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	w := &writer{f: f, size: size, full: o.Prealloc == "full"}
	w.file, _ = f.(descriptor)
	device, err := w.device()
	if err != nil {
		return nil, err
	}
	if device {
		w.written.add(0, size) // what it held before is still there
		return w, nil
	}
	if err := w.reaches(from.Off); err != nil {
		return nil, err
	}
	w.written.add(0, from.Off)
	for _, n := range []int64{from.Off, size} {
		if err := f.Truncate(n); err != nil {
			return nil, fmt.Errorf("raw: set the file's size to %d: %w", n, err)
		}
	}
	if w.full {
		if err := w.reserve(from.Off); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func checkOptions(o formats.CreateOptions) error {
	for _, opt := range []struct{ name, value string }{
		{"subformat", o.Subformat}, {"compression", o.Compression}, {"backing file", o.Backing},
	} {
		if opt.value != "" {
			return fmt.Errorf("raw: %s %q: a raw disk has none: %w", opt.name, opt.value, formats.ErrFormat)
		}
	}
	if p := o.Prealloc; p != "" && p != "off" && p != "full" {
		return fmt.Errorf("raw: preallocation %q: off and full are known: %w", p, formats.ErrFormat)
	}
	return nil
}

type writer struct {
	f       formats.File
	file    descriptor // f, if it is one
	size    int64
	full    bool
	blocks  bool // f is a block device
	mu      sync.Mutex
	written spans // what may be something else than a hole
	err     error // the first failure of the file, or fs.ErrClosed: a disk that lacks a write is never committed
}

// device says whether the target is a block device, and refuses one that is too small.
func (w *writer) device() (bool, error) {
	if w.file == nil {
		return false, nil
	}
	st, err := w.file.Stat()
	if err != nil {
		return false, fmt.Errorf("raw: %w", err)
	}
	if st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return false, nil
	}
	n, err := w.file.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("raw: size of block device %s: %w", w.file.Name(), err)
	}
	if n < w.size {
		return false, fmt.Errorf("raw: block device %s has %d bytes, the disk %d: %w", w.file.Name(), n, w.size, unix.ENOSPC)
	}
	w.blocks = true
	return true, nil
}

// reaches refuses to go on in a file that lost what the checkpoint covers: it would become zeros.
func (w *writer) reaches(off int64) error {
	if off == 0 {
		return nil
	}
	var last [1]byte
	_, err := w.f.ReadAt(last[:], off-1)
	if errors.Is(err, io.EOF) {
		err = formats.ErrCorrupt
	}
	if err != nil {
		return fmt.Errorf("raw: go on at %d, where the file does not reach: %w", off, err)
	}
	return nil
}

// reserve takes the space of [off, size), so that no later write can find the disk full.
func (w *writer) reserve(off int64) error {
	if off == w.size {
		return nil
	}
	err := w.fallocate(0, off, w.size-off)
	if errors.Is(err, errors.ErrUnsupported) {
		err = w.fill(off, w.size-off)
	}
	if err != nil {
		return fmt.Errorf("raw: reserve %d bytes: %w", w.size-off, err)
	}
	return nil
}

// fallocate is fallocate(2), retried where a signal came between. ErrUnsupported: not here.
func (w *writer) fallocate(mode uint32, off, n int64) error {
	if w.file == nil {
		return errors.ErrUnsupported
	}
	for {
		conn, err := w.file.SyscallConn()
		if err != nil {
			return err
		}
		if cerr := conn.Control(func(fd uintptr) { err = unix.Fallocate(int(fd), mode, off, n) }); cerr != nil {
			return cerr
		}
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV):
			return errors.ErrUnsupported
		case err == nil:
			return nil
		}
		return &os.PathError{Op: "fallocate", Path: w.file.Name(), Err: err}
	}
}

// fill writes zeros.
func (w *writer) fill(off, n int64) error {
	for n > 0 {
		b := zeros[:min(n, int64(len(zeros)))]
		if _, err := w.f.WriteAt(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// BlockSize is 1: nothing is rounded, so a write never touches its neighbours.
func (w *writer) BlockSize() int64 { return 1 }

// Parallelism lets blocks come in any order. A regular file is written by one goroutine at a time: its
// file system would let the others in one after the other, and have them spin while they wait.
func (w *writer) Parallelism() int {
	if w.file != nil && !w.blocks {
		return 1
	}
	return parallelism
}

func (w *writer) fits(off, n int64) error {
	if off < 0 || n < 0 || off > w.size-n {
		return fmt.Errorf("raw: write of %d bytes at %d of %d", n, off, w.size)
	}
	if w.err != nil {
		return fmt.Errorf("raw: write at %d: %w", off, w.err)
	}
	return nil
}

// fail keeps an error of the file.
func (w *writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

func (w *writer) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	err := w.fits(off, int64(len(p)))
	if err == nil {
		w.written.add(off, off+int64(len(p)))
	}
	w.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := w.f.WriteAt(p, off)
	if err != nil {
		return n, w.fail(err)
	}
	return n, nil
}

// WriteZeroes does nothing where the file is known to have a hole. Elsewhere it punches one, or writes
// zeros where that cannot be done or the space is to stay reserved.
func (w *writer) WriteZeroes(off, n int64) error {
	w.mu.Lock()
	err := w.fits(off, n)
	known := err == nil && !w.written.touch(off, off+n)
	w.mu.Unlock()
	if err != nil || known || n == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if w.full || w.blocks {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err = w.fallocate(mode, off, n)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL) { // a device wants whole sectors
		err = w.fill(off, n)
	}
	if err != nil {
		return w.fail(fmt.Errorf("raw: zeros at %d: %w", off, err))
	}
	return nil
}

// Checkpoint needs no token: the file says all.
func (w *writer) Checkpoint(off int64) (formats.Checkpoint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return formats.Checkpoint{}, w.err
	}
	return formats.Checkpoint{Off: off}, nil
}

func (w *writer) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// What a failed sync has lost, a later one does not notice.
	if err := w.f.Sync(); err != nil {
		return w.fail(err)
	}
	return nil
}

// Commit makes the disk durable; it is complete as it stands.
func (w *writer) Commit(ctx context.Context) error {
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if err == nil {
		err = w.Sync(ctx)
	}
	if err != nil {
		return fmt.Errorf("raw: commit: %w", err)
	}
	return w.Close()
}

func (w *writer) Close() error {
	_ = w.fail(fs.ErrClosed)
	return nil
}
