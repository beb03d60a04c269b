package vmdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vmdk"
)

// in opens files of one folder by name, and nothing else.
func in(dir string) func(string) (formats.Opened, error) {
	var open func(name string) (formats.Opened, error)
	open = func(name string) (formats.Opened, error) {
		if filepath.Base(name) != name {
			return formats.Opened{}, fmt.Errorf("%q is not in the folder", name)
		}
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return formats.Opened{}, err
		}
		st, err := f.Stat()
		if err != nil {
			return formats.Opened{}, errors.Join(err, f.Close())
		}
		return formats.Opened{ReaderAt: f, Closer: f, Size: st.Size(), Name: name, Beside: open}, nil
	}
	return open
}

// openPath opens a disk with the files of its folder.
func openPath(t testing.TB, path string, o formats.OpenOptions) (formats.Image, error) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	require.NoError(t, err)
	o.Beside = in(filepath.Dir(path))
	img, err := vmdk.Open(t.Context(), f, st.Size(), o)
	if err == nil {
		t.Cleanup(func() { require.NoError(t, img.Close()) })
	}
	return img, err
}

func checkPath(t testing.TB, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	rep, err := vmdk.Check(t.Context(), f, st.Size(), formats.OpenOptions{Beside: in(filepath.Dir(path))})
	require.NoError(t, err)
	require.Empty(t, rep.Warnings)
	return rep.Errors
}

func TestReadsEverySubformatThatQemuWrites(t *testing.T) {
	small := formatstest.NewDisk(1, 70<<20+512)
	large := formatstest.NewDisk(2, 5<<30+512) // three extents of 2 GB
	for _, c := range []struct {
		options string
		disk    *formatstest.Disk
	}{
		{"subformat=monolithicSparse", small},
		{"subformat=monolithicSparse,zeroed_grain=on", small},
		{"subformat=monolithicSparse,compat6,adapter_type=ide", small},
		{"subformat=monolithicSparse", large},
		{"subformat=monolithicFlat", small},
		{"subformat=monolithicFlat", large},
		{"subformat=twoGbMaxExtentSparse", large},
		{"subformat=twoGbMaxExtentFlat", large},
		{"subformat=streamOptimized", large},
	} {
		t.Run(fmt.Sprintf("%s of %d bytes", c.options, c.disk.Size()), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.vmdk")
			formatstest.QemuConvert(t, "raw", c.disk.Save(t), "vmdk", path, "-o", c.options)
			img, err := openPath(t, path, formats.OpenOptions{})
			require.NoError(t, err)
			formatstest.CheckImage(t, img, c.disk, true)
			require.Empty(t, checkPath(t, path))

			f, err := os.Open(path)
			require.NoError(t, err)
			defer f.Close()
			st, err := f.Stat()
			require.NoError(t, err)
			info, err := vmdk.Inspect(t.Context(), f, st.Size())
			require.NoError(t, err)
			require.Equal(t, c.disk.Size(), info.Size)
			require.Contains(t, c.options, info.Subformat)
			_, err = vmdk.Open(t.Context(), f, st.Size(), formats.OpenOptions{})
			if strings.Contains(c.options, "Flat") || strings.Contains(c.options, "twoGb") {
				require.ErrorIs(t, err, formats.ErrFormat, "extents are opened only where the caller allows it")
			} else {
				require.NoError(t, err)
			}
		})
	}
}

func TestExtentsMayBeCutOrMissing(t *testing.T) {
	disk := formatstest.NewDisk(3, 5<<30+512)
	for _, sub := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		path := filepath.Join(t.TempDir(), "disk.vmdk")
		formatstest.QemuConvert(t, "raw", disk.Save(t), "vmdk", path, "-o", "subformat="+sub)
		extents, err := filepath.Glob(filepath.Join(filepath.Dir(path), "disk-?002.vmdk"))
		require.NoError(t, err)
		require.Len(t, extents, 1)
		require.NoError(t, os.Truncate(extents[0], 100000))
		img, err := openPath(t, path, formats.OpenOptions{})
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(img, 0, img.Size()))
		}
		require.ErrorIs(t, err, formats.ErrCorrupt)
		require.NoError(t, os.Remove(extents[0]))
		_, err = openPath(t, path, formats.OpenOptions{})
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestWritesWhatLibvmdkReads(t *testing.T) {
	disk := formatstest.NewDisk(4, 70<<20)
	for _, sub := range []string{vmdk.MonolithicSparse, vmdk.StreamOptimized, vmdk.MonolithicFlat} {
		t.Run(sub, func(t *testing.T) {
			// The extent's name stands in the descriptor: libvmdk opens it by that.
			path := filepath.Join(t.TempDir(), "disk.vmdk")
			o := formats.CreateOptions{Subformat: sub}
			if sub == vmdk.MonolithicFlat {
				createPath(t, filepath.Join(filepath.Dir(path), "disk-flat.vmdk"), disk, o)
				f, err := os.Create(path)
				require.NoError(t, err)
				defer f.Close()
				require.NoError(t, vmdk.WriteDescriptor(f, disk, disk.Size(), "disk-flat.vmdk", o))
			} else {
				createPath(t, path, disk, o)
			}
			formatstest.Libyal(t, formatstest.Libvmdk, disk, disk.Size(), path)
		})
	}
}

func createPath(t testing.TB, path string, d *formatstest.Disk, o formats.CreateOptions) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w, err := vmdk.Create(t.Context(), f, d.Size(), o, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, formatstest.Fill(w, d, 0, d.Size()))
	require.NoError(t, w.Commit(t.Context()))
}

func TestWritesMonolithicFlatWithItsDescriptor(t *testing.T) {
	disk := formatstest.NewDisk(5, 20<<20+512)
	dir := t.TempDir()
	createPath(t, filepath.Join(dir, "disk-flat.vmdk"), disk, formats.CreateOptions{Subformat: vmdk.MonolithicFlat})
	path := filepath.Join(dir, "disk.vmdk")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	o := formats.CreateOptions{Adapter: "ide"}
	require.NoError(t, vmdk.WriteDescriptor(f, disk, disk.Size(), "disk-flat.vmdk", o))
	formatstest.QemuCompare(t, "raw", disk.Save(t), "vmdk", path)
	img, err := openPath(t, path, formats.OpenOptions{})
	require.NoError(t, err)
	formatstest.CheckImage(t, img, disk, false)
	for _, name := range []string{"", "a\nRW 1 ZERO", "a\x00b"} {
		require.ErrorIs(t, vmdk.WriteDescriptor(io.Discard, disk, disk.Size(), name, o), formats.ErrFormat, "%q", name)
	}
}

// overlay lets qemu make a delta upon base, which it fills with what qemu-io's commands write.
func overlay(t *testing.T, dir, base, name string, commands ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	cmd := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", "-b", base, "-F", "vmdk", name)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	args := []string{"-f", "vmdk"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err = exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "failed")
	return path
}

func TestReadsChainsOfDeltas(t *testing.T) {
	formatstest.Qemu(t, "--version")
	dir := t.TempDir()
	disk := formatstest.NewDisk(6, 9<<20)
	base := filepath.Join(dir, "base.vmdk")
	formatstest.QemuConvert(t, "raw", disk.Save(t), "vmdk", base)
	overlay(t, dir, "base.vmdk", "one.vmdk", "write -P 1 1M 128k")
	top := overlay(t, dir, "one.vmdk", "two.vmdk", "write -P 2 2M 64k", "write -z 3M 64k")

	img, err := openPath(t, top, formats.OpenOptions{})
	require.NoError(t, err)
	plain := filepath.Join(dir, "plain.raw")
	formatstest.QemuConvert(t, "vmdk", top, "raw", plain)
	want, err := os.ReadFile(plain)
	require.NoError(t, err)
	got := make([]byte, img.Size())
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, string(want) == string(got), "the chain reads as qemu reads it")
	formatstest.Map(t, img, 0, img.Size())

	layer, err := openPath(t, top, formats.OpenOptions{Layer: true})
	require.NoError(t, err)
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 2 << 20, Kind: formats.Absent},
		{Off: 2 << 20, Len: 64 << 10, Kind: formats.Data},
		{Off: 2<<20 + 64<<10, Len: 1<<20 - 64<<10, Kind: formats.Absent},
		{Off: 3 << 20, Len: 64 << 10, Kind: formats.Zero},
		{Off: 3<<20 + 64<<10, Len: 6<<20 - 64<<10, Kind: formats.Absent},
	}, formatstest.Map(t, layer, 0, layer.Size()))
	_, err = layer.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, formats.ErrAbsent)

	t.Run("a parent that was changed is none", func(t *testing.T) {
		out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "vmdk", "-c", "write -P 9 0 64k", base).CombinedOutput()
		require.NoError(t, err, "%s", out)
		_, err = openPath(t, top, formats.OpenOptions{})
		require.ErrorIs(t, err, formats.ErrCorrupt)
		require.ErrorContains(t, err, "content id")
	})
	t.Run("a parent that is not there is an error, not zeros", func(t *testing.T) {
		require.NoError(t, os.Remove(base))
		_, err = openPath(t, top, formats.OpenOptions{})
		require.ErrorIs(t, err, os.ErrNotExist)
		f, err := os.Open(top)
		require.NoError(t, err)
		defer f.Close()
		st, err := f.Stat()
		require.NoError(t, err)
		_, err = vmdk.Open(context.Background(), f, st.Size(), formats.OpenOptions{})
		require.ErrorIs(t, err, formats.ErrFormat)
	})
}
