package formatstest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// Qemu runs qemu-img and answers its output; a failure fails the test. Without qemu-img the test is
// skipped.
func Qemu(t testing.TB, args ...string) string {
	t.Helper()
	out, err := qemu(t, args...)
	require.NoError(t, err, "qemu-img %q: %s", args, out)
	return out
}

func qemu(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed: nothing to compare with (package qemu-utils)")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// QemuCheck has qemu-img find no error and no leak in the image at path.
func QemuCheck(t testing.TB, format, path string) {
	t.Helper()
	out, err := qemu(t, "check", "-f", format, path)
	if err != nil && bytes.Contains([]byte(out), []byte("does not support checks")) {
		return
	}
	require.NoError(t, err, "qemu-img check of %s: %s", path, out)
	require.NotContains(t, out, "eaked")
}

// QemuCompare has qemu-img find the disks in two images equal.
func QemuCompare(t testing.TB, formatA, a, formatB, b string) {
	t.Helper()
	Qemu(t, "compare", "-f", formatA, "-F", formatB, a, b)
}

// QemuConvert has qemu-img write dst in a format, with options, from src.
func QemuConvert(t testing.TB, srcFormat, src, dstFormat, dst string, options ...string) {
	t.Helper()
	args := append([]string{"convert", "-f", srcFormat, "-O", dstFormat}, options...)
	Qemu(t, append(args, src, dst)...)
}

// Save writes a disk as a raw file, sparsely, and answers its path.
func (d *Disk) Save(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	require.NoError(t, out.Truncate(d.size))
	buf := make([]byte, 1<<20)
	for e, err := range d.Extents(t.Context(), 0, d.size) {
		require.NoError(t, err)
		for at := e.Off; e.Kind == formats.Data && at < e.End(); {
			b := buf[:min(int64(len(buf)), e.End()-at)]
			_, err := d.ReadAt(b, at)
			require.NoError(t, err)
			_, err = out.WriteAt(b, at)
			require.NoError(t, err)
			at += int64(len(b))
		}
	}
	return path
}

// qemuSizes are the sizes of the disks that qemu-img takes part in.
func (h Harness) qemuSizes() []int64 {
	var all []int64
	for _, size := range []int64{512, 64<<10 + 512, 9<<20 + 3*512, 300<<20 + 512} {
		if size = min(size, h.maxSize()); size%h.unit() == 0 {
			all = append(all, size)
		}
	}
	return all
}

// qemu lets qemu-img read what the format writes, and the format what qemu-img writes.
func (h Harness) qemu(t *testing.T) {
	if h.Format.Create != nil {
		for _, size := range h.qemuSizes() {
			d := NewDisk(uint64(size)+2, size)
			f := NewMemFile()
			h.createIn(t, f, d)
			h.qemuAgrees(t, f, d)
		}
	}
	ReadsQemu(t, h)
}

// ReadsQemu lets the format read what qemu-img writes with h.QemuOptions.
func ReadsQemu(t *testing.T, h Harness) {
	t.Helper()
	for _, size := range h.qemuSizes() {
		d := NewDisk(uint64(size)+2, size)
		path := filepath.Join(t.TempDir(), "theirs"+h.Format.Ext)
		QemuConvert(t, "raw", d.Save(t), h.Qemu, path, h.QemuOptions...)
		theirs, err := os.Open(path)
		require.NoError(t, err)
		CheckImage(t, h.OpenDisk(t, theirs), d, false)
		require.NoError(t, theirs.Close())
	}
}

// qemuAgrees has qemu-img check a file and find in it what d holds.
func (h Harness) qemuAgrees(t *testing.T, f *MemFile, d *Disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ours"+h.Format.Ext)
	f.Save(t, path)
	QemuCheck(t, h.Qemu, path)
	QemuCompare(t, "raw", d.Save(t), h.Qemu, path)
}
