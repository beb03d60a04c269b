package formatstest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Readers of disk images that were written independently of this one and of qemu, as modules of Python,
// by the package of Debian that has them.
const (
	Libvmdk = "vmdk"
	Libvhdi = "vhdi"
	Libqcow = "qcow"
)

// libyalScript reads an image, and its parents if there are any, and prints the size and the SHA-256 of
// the disk.
const libyalScript = `
import hashlib, importlib, sys
module = importlib.import_module(sys.argv[1])
def opened(path):
    f = module.handle() if sys.argv[1] == "pyvmdk" else module.file()
    f.open(path)
    if sys.argv[1] == "pyvmdk": f.open_extent_data_files()
    return f
chain = [opened(path) for path in sys.argv[2:]]
for top, below in zip(chain, chain[1:]): top.set_parent(below)
h, size = hashlib.sha256(), chain[0].get_media_size()
left = size
while left:
    b = chain[0].read_buffer(min(left, 1 << 20)); h.update(b); left -= len(b)
print(size, h.hexdigest())
`

// Libyal has the library read the image at path, with its parents at those of parents, and wants of it
// the disk that d reads. Without the library the test is skipped.
func Libyal(t testing.TB, library string, d io.ReaderAt, size int64, path string, parents ...string) {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's modules are of Debian's
	module := "py" + library
	if err := exec.CommandContext(t.Context(), python, "-c", "import "+module).Run(); err != nil {
		t.Skipf("lib%s is not installed: nothing to compare with (package python3-lib%s)", library, library)
	}
	args := append([]string{"-c", libyalScript, module, path}, parents...)
	out, err := exec.CommandContext(t.Context(), python, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	h := sha256.New()
	_, err = io.Copy(h, io.NewSectionReader(d, 0, size))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%d %x", size, h.Sum(nil)), strings.TrimSpace(string(out)), "size and SHA-256 as lib%s reads %s", library, path)
}
