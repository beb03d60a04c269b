//go:build !unix

package vspheretest

import "io/fs"

// allocated is the space that a file takes, as far as this system says.
func allocated(fi fs.FileInfo) int64 { return fi.Size() }
