//go:build unix

package vspheretest_test

import (
	"os"
	"syscall"
)

// blocks is the space that a file takes.
func blocks(fi os.FileInfo) int64 { return fi.Sys().(*syscall.Stat_t).Blocks * 512 }
