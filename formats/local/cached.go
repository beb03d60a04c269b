package local

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DropCached has the next read of a file come from where the file is stored: what is in memory was never
// wrong. What was written is made durable first, since what is not cannot be dropped.
func DropCached(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop cached pages of %s: %w", f.Name(), err)
	}
	return nil
}
