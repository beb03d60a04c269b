//go:build unix

package vspheretest

import (
	"io/fs"
	"syscall"
)

// allocated is the space that a file takes, which is less than its length where it has holes.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
