package image_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cmd/hyperctl/image"
	"hypersdk/formats/formatstest"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// A monolithicFlat VMDK is two files, the second of which is the disk as it is.
func TestFlat(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	flat := []string{"convert", "-O", "vmdk", "-o", "subformat=monolithicFlat,adapter_type=lsilogic"}
	for _, from := range layouts() {
		t.Run(from.name, func(t *testing.T) {
			dir := t.TempDir()
			src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(dir, "web.vmdk")
			ok(t, from.convert(raw, "raw", src)...)
			ok(t, append(flat, "-f", from.format, src, dst)...)
			require.Equal(t, []string{"web-flat.vmdk", "web.vmdk"}, names(t, dir))
			requireSame(t, raw, filepath.Join(dir, "web-flat.vmdk"))
			require.Contains(t, ok(t, "compare", "--allow-dir", dir, "-F", "raw", dst, raw), "identical")
			formatstest.QemuCompare(t, "vmdk", dst, "raw", raw)
		})
	}
	t.Run("neither file is replaced unasked", func(t *testing.T) {
		for _, name := range []string{"web.vmdk", "web-flat.vmdk"} {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("precious"), 0o600))
			r := call(t, nil, append(flat, "-f", "raw", raw, filepath.Join(dir, "web.vmdk"))...)
			require.Equal(t, 1, r.code)
			require.Contains(t, r.message, name+" exists already")
			require.Equal(t, []string{name}, names(t, dir))
			ok(t, append(flat, "--force", "-f", "raw", raw, filepath.Join(dir, "web.vmdk"))...)
			formatstest.QemuCompare(t, "vmdk", filepath.Join(dir, "web.vmdk"), "raw", raw)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		raw := writeDisk(t, 128*mib)
		dir := t.TempDir()
		args := append(flat, "-f", "raw", raw, filepath.Join(dir, "web.vmdk"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := image.Command()
		c.SetErr(&watcher{line: regexp.MustCompile(`[3-6]\d\.\d %`), seen: cancel})
		c.SetOut(io.Discard)
		c.SetArgs(append(args, "-p"))
		require.Error(t, c.ExecuteContext(ctx))
		require.NotContains(t, names(t, dir), "web-flat.vmdk")
		r := call(t, nil, args...)
		require.Zero(t, r.code, r.message)
		require.Contains(t, r.err, "going on at ")
		require.Equal(t, []string{"web-flat.vmdk", "web.vmdk"}, names(t, dir))
		formatstest.QemuCompare(t, "vmdk", filepath.Join(dir, "web.vmdk"), "raw", raw)
	})
	t.Run("a pipe holds one file", func(t *testing.T) {
		require.NotZero(t, call(t, nil, append(flat, "-f", "raw", raw, "-")...).code)
	})
}

// An internal snapshot is converted as the disk was then, by name or id.
func TestSnapshot(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	src := filepath.Join(t.TempDir(), "src.qcow2")
	formatstest.QemuConvert(t, "raw", raw, "qcow2", src)
	write := func(command string) {
		out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", command, src).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	formatstest.Qemu(t, "snapshot", "-c", "before", src)
	write("write -P 9 0 3M")
	later := filepath.Join(t.TempDir(), "later.raw")
	formatstest.QemuConvert(t, "qcow2", src, "raw", later)
	formatstest.Qemu(t, "snapshot", "-c", "after", src)
	write("write -P 8 0 20M")
	for name, want := range map[string]string{"before": raw, "1": raw, "after": later, "2": later} {
		for _, to := range layouts() {
			if to.name != "raw" && to.name != "qcow2-zlib" && to.name != "vmdk-stream" {
				continue
			}
			dst := filepath.Join(t.TempDir(), "dst")
			ok(t, append(to.convert(src, "qcow2", dst), "-l", name)...)
			require.Contains(t, ok(t, "compare", "-f", "raw", "-F", to.format, want, dst), "identical", "%s of %s", to.name, name)
		}
	}
	r := call(t, nil, "convert", "-O", "raw", "-l", "never", src, filepath.Join(t.TempDir(), "dst"))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, `"never"`)
	require.NotZero(t, call(t, nil, "convert", "-f", "raw", "-O", "qcow2", "-l", "before", raw, filepath.Join(t.TempDir(), "dst")).code)
}

// What is not waited for is the same file, and goes on where it was as well: what a killed program has
// written is not lost while the machine runs.
func TestUnsafe(t *testing.T) {
	raw := writeDisk(t, 128*mib)
	whole, dst := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "dst")
	args := []string{"convert", "-f", "raw", "-O", "qcow2", "-c", "-t"}
	ok(t, append(args, "writeback", raw, whole)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := image.Command()
	c.SetErr(&watcher{line: regexp.MustCompile(`[3-6]\d\.\d %`), seen: cancel})
	c.SetOut(io.Discard)
	c.SetArgs(append(args, "unsafe", "-p", raw, dst))
	require.Error(t, c.ExecuteContext(ctx))
	r := call(t, nil, append(args, "unsafe", raw, dst)...)
	require.Zero(t, r.code, r.message)
	require.Contains(t, r.err, "going on at ")
	requireSame(t, whole, dst)
	require.Equal(t, 2, call(t, nil, append(args, "none", raw, dst+"2")...).code)
}
