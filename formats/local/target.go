package local

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// eager is how much is written before it is sent on its way to the disk.
const eager = 4 << 20

// Target is a file that an image is written into. What is written starts on its way to the disk while
// the rest is still being made, so that the Sync at the end has little left to wait for: without that,
// Linux keeps some GiB back.
type Target struct {
	*os.File
	unsafe  bool
	pending atomic.Int64 // written since the last start
	busy    atomic.Bool  // one start at a time
	starts  sync.WaitGroup
}

// NewTarget is a target in f, which stays the caller's to close, after Wait. Where unsafe is true,
// nothing waits for the disk: what is written is lost if the machine fails soon after, though not if
// the program does.
func NewTarget(f *os.File, unsafe bool) *Target { return &Target{File: f, unsafe: unsafe} }

func (t *Target) WriteAt(b []byte, off int64) (int, error) {
	n, err := t.File.WriteAt(b, off)
	if !t.unsafe && t.pending.Add(int64(n)) >= eager && t.busy.CompareAndSwap(false, true) {
		t.pending.Store(0)
		t.starts.Go(t.start)
	}
	return n, err
}

// Truncate is Resize.
func (t *Target) Truncate(size int64) error { return Resize(t.File, size) }

// Resize gives a file a size, where it has another one. A file that is truncated to nothing, though it was
// empty already, is taken by ext4 for one that is being replaced: closing it then waits until all that was
// written is on its way to the disk (auto_da_alloc).
func Resize(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil || st.Size() == size {
		return err
	}
	return f.Truncate(size)
}

// start has the system begin to write. It is a hint: whether all has arrived, Sync says.
func (t *Target) start() {
	defer t.busy.Store(false)
	conn, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.SyncFileRange(int(fd), 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
}

// Sync makes the file durable, unless that is not wanted.
func (t *Target) Sync() error {
	if t.unsafe {
		return nil
	}
	return t.File.Sync()
}

// Wait ends what goes on in the background.
func (t *Target) Wait() { t.starts.Wait() }
