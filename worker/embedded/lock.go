package embedded

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lock keeps a second process off the data folder. The kernel lets go of it when the process ends,
// however it ends.
type lock struct{ f *os.File }

func acquire(path string) (*lock, error) {
	dir := filepath.Dir(path)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder %s is not writable: %w", dir, plainly(err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data folder %s is in use by %s", dir, owner(f))
		}
		return nil, fmt.Errorf("data folder %s cannot be locked: %w", dir, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data folder %s is not writable: %w", dir, plainly(err))
	}
	return &lock{f}, nil
}

func owner(f *os.File) string {
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}

// release lets go of the lock. The file stays: to remove it would let two processes lock two files of
// one name.
func (l *lock) release() error {
	if l == nil {
		return nil
	}
	return l.f.Close()
}
