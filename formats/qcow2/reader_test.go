package qcow2_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
)

// beside opens files of a folder by their names.
func beside(dir string) func(string) (formats.Opened, error) {
	return func(name string) (formats.Opened, error) {
		f, err := os.Open(filepath.Join(dir, filepath.Base(name)))
		if err != nil {
			return formats.Opened{}, err
		}
		st, err := f.Stat()
		return formats.Opened{ReaderAt: f, Closer: f, Size: st.Size(), Name: f.Name(), Beside: beside(dir)}, err
	}
}

func open(t *testing.T, path string, o formats.OpenOptions) (*qcow2.Image, error) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	img, err := qcow2.Open(t.Context(), f, formatstest.FileSize(t, f), o)
	if err == nil {
		t.Cleanup(func() { require.NoError(t, img.Close()) })
	}
	return img, err
}

func mustOpen(t *testing.T, path string, o formats.OpenOptions) *qcow2.Image {
	t.Helper()
	img, err := open(t, path, o)
	require.NoError(t, err)
	return img
}

// qemuIO runs commands of qemu-io on an image.
func qemuIO(t *testing.T, path string, commands ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-io is not installed: no way to make this image (package qemu-utils)")
	}
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "failed")
}

// equalsQemu has qemu-img turn what it sees in an image into a raw file, and compares.
func equalsQemu(t *testing.T, img formats.Image, path string, options ...string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "qemu.raw")
	formatstest.QemuConvert(t, "qcow2", path, "raw", out, options...)
	want, err := os.Open(out)
	require.NoError(t, err)
	defer want.Close()
	// A snapshot may be of a time when the disk was smaller: qemu-img fills it up.
	require.GreaterOrEqual(t, formatstest.FileSize(t, want), img.Size())
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < img.Size(); off += int64(len(a)) {
		n, err := want.ReadAt(a[:min(int64(len(a)), img.Size()-off)], off)
		if !errors.Is(err, io.EOF) {
			require.NoError(t, err)
		}
		m, err := img.ReadAt(b[:n], off)
		if !errors.Is(err, io.EOF) {
			require.NoError(t, err)
		}
		require.Equal(t, n, m)
		require.Equal(t, a[:n], b[:m], "from %d on", off)
	}
	// What it calls zeros are zeros, in pieces of any size.
	for _, e := range formatstest.Map(t, img, 0, img.Size()) {
		if e.Kind == formats.Data {
			continue
		}
		b := make([]byte, min(e.Len, 1<<20))
		_, err := want.ReadAt(b, e.Off)
		require.NoError(t, err)
		require.Equal(t, make([]byte, len(b)), b, "%d: zeros", e.Off)
	}
}

func TestSnapshots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	d := formatstest.NewDisk(1, 20<<20)
	formatstest.QemuConvert(t, "raw", d.Save(t), "qcow2", path, "-c")
	formatstest.Qemu(t, "snapshot", "-c", "first", path)
	qemuIO(t, path, "write -P 1 1M 300k", "write -z 5M 2M", "discard 9M 1M", "write -P 7 19M 1M")
	formatstest.Qemu(t, "snapshot", "-c", "2nd, of \"two\"", path)
	formatstest.Qemu(t, "resize", path, "30M")
	qemuIO(t, path, "write -P 9 0 20M", "write -P 8 28M 2M")

	img := mustOpen(t, path, formats.OpenOptions{})
	equalsQemu(t, img, path)
	all, err := img.Snapshots()
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "first", all[0].Name)
	require.Equal(t, "1", all[0].ID)
	require.EqualValues(t, 20<<20, all[1].DiskSize)
	require.Positive(t, all[1].Time.Unix())
	for name, id := range map[string]string{"first": "1", "2nd, of \"two\"": "2"} {
		equalsQemu(t, mustOpen(t, path, formats.OpenOptions{Snapshot: name}), path, "-l", "snapshot.id="+id)
		equalsQemu(t, mustOpen(t, path, formats.OpenOptions{Snapshot: id}), path, "-l", "snapshot.id="+id)
	}
	formatstest.CheckImage(t, mustOpen(t, path, formats.OpenOptions{Snapshot: "first"}), d, false)
	_, err = open(t, path, formats.OpenOptions{Snapshot: "third"})
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "third")
	checkClean(t, img)
}

func TestBitmaps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	formatstest.Qemu(t, "create", "-f", "qcow2", path, "1G")
	formatstest.Qemu(t, "bitmap", "--add", "-g", "32k", path, "fine")
	formatstest.Qemu(t, "bitmap", "--add", "-g", "1M", path, "coarse")
	formatstest.Qemu(t, "bitmap", "--add", "--disable", path, "off")
	qemuIO(t, path, "write 100k 1", "write 3M 200k", "write -z 512M 32M", "write 1073741312 512")

	img := mustOpen(t, path, formats.OpenOptions{})
	info, err := img.Info()
	require.NoError(t, err)
	require.Len(t, info.Bitmaps, 3)
	ranges := func(b qcow2.Bitmap) (all []string) {
		for e, err := range img.BitmapRanges(t.Context(), b) {
			require.NoError(t, err)
			require.Equal(t, formats.Data, e.Kind)
			all = append(all, fmt.Sprintf("%dk+%dk", e.Off>>10, e.Len>>10))
		}
		return all
	}
	fine, coarse, off := info.Bitmaps[0], info.Bitmaps[1], info.Bitmaps[2]
	require.Equal(t, "fine", fine.Name)
	require.EqualValues(t, 32<<10, fine.Granularity)
	require.True(t, fine.Enabled)
	require.False(t, off.Enabled)
	require.Equal(t, []string{"96k+32k", "3072k+224k", "524288k+32768k", "1048544k+32k"}, ranges(fine))
	require.Equal(t, []string{"0k+1024k", "3072k+1024k", "524288k+32768k", "1047552k+1024k"}, ranges(coarse))
	require.Empty(t, ranges(off))
	checkClean(t, img)
}

// Subclusters: 32 in a cluster, each stored, zero, or the backing file's.
func TestExtendedL2(t *testing.T) {
	dir := t.TempDir()
	d := formatstest.NewDisk(3, 3<<20+512)
	base, path := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	formatstest.QemuConvert(t, "raw", d.Save(t), "qcow2", base, "-c")
	formatstest.Qemu(t, "create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-b", base, "-F", "qcow2", path, "4M")
	qemuIO(t, path, "write -P 1 2k 2k", "write -P 2 10k 6k", "write -z 20k 4k", "discard 24k 2k", "write -z 64k 64k",
		"write -P 3 130k 1", "write -P 4 1M 64k", "write -z 1060k 4k", "write -P 5 3M 64k", "write -P 6 4193792 512")
	img := mustOpen(t, path, formats.OpenOptions{Beside: beside(dir)})
	equalsQemu(t, img, path)
	checkClean(t, img)
	layer := mustOpen(t, path, formats.OpenOptions{Layer: true})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 2 << 10, Kind: formats.Absent},
		{Off: 2 << 10, Len: 2 << 10, Kind: formats.Data},
		{Off: 4 << 10, Len: 6 << 10, Kind: formats.Absent},
		{Off: 10 << 10, Len: 6 << 10, Kind: formats.Data},
	}, formatstest.Map(t, layer, 0, 16<<10))
}

// chain makes base.raw ← mid.qcow2 ← top.qcow2, each larger or smaller than the one below.
func chain(t *testing.T, sizes [3]string) (dir, top string) {
	dir = t.TempDir()
	base, mid := filepath.Join(dir, "base.raw"), filepath.Join(dir, "mid.qcow2")
	top = filepath.Join(dir, "top.qcow2")
	formatstest.Qemu(t, "convert", "-f", "raw", "-O", "raw", formatstest.NewDisk(4, 8<<20).Save(t), base)
	formatstest.Qemu(t, "resize", "-f", "raw", "--shrink", base, sizes[0])
	formatstest.Qemu(t, "create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", mid, sizes[1])
	formatstest.Qemu(t, "create", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", top, sizes[2])
	qemuIO(t, mid, "write -P 1 1M 100k", "write -z 2M 1M")
	qemuIO(t, top, "write -P 2 1100k 100k", "write -z 4M 300k")
	return dir, top
}

func TestBackingFiles(t *testing.T) {
	for _, sizes := range [][3]string{{"8M", "8M", "8M"}, {"5M", "8M", "12M"}, {"8M", "6M", "5M"}, {"8M", "3M", "9M"}, {"5000704", "8M", "8M"}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			dir, top := chain(t, sizes)
			img := mustOpen(t, top, formats.OpenOptions{Beside: beside(dir)})
			equalsQemu(t, img, top)

			layer := mustOpen(t, top, formats.OpenOptions{Layer: true})
			require.Equal(t, formats.Absent, formatstest.Map(t, layer, 0, 65536)[0].Kind)
			_, err := layer.ReadAt(make([]byte, 512), 0)
			require.ErrorIs(t, err, formats.ErrAbsent)
			info, err := layer.Info()
			require.NoError(t, err)
			require.Equal(t, "mid.qcow2", info.Backing)
			require.Equal(t, "qcow2", info.BackingFormat)

			_, err = open(t, top, formats.OpenOptions{})
			require.ErrorIs(t, err, formats.ErrFormat)
			require.ErrorContains(t, err, "mid.qcow2")
			require.NoError(t, os.Remove(filepath.Join(dir, "base.raw")))
			_, err = open(t, top, formats.OpenOptions{Beside: beside(dir)})
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

// overlay writes an empty overlay of 1 MiB without asking whether its backing file exists.
func overlay(t *testing.T, path, backing, backingFmt string) {
	t.Helper()
	f := formatstest.NewMemFile()
	w, err := qcow2.Create(t.Context(), f, 1<<20, formats.CreateOptions{Backing: backing, BackingFmt: backingFmt}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	f.Save(t, path)
}

func TestBackingFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(at("disk.raw"), make([]byte, 1<<20), 0o600))

	overlay(t, at("a.qcow2"), "b.qcow2", "qcow2")
	overlay(t, at("b.qcow2"), "a.qcow2", "qcow2")
	_, err := open(t, at("a.qcow2"), formats.OpenOptions{Beside: beside(dir)})
	require.ErrorIs(t, err, formats.ErrCorrupt, "a loop")
	require.ErrorContains(t, err, "behind itself")

	nameless := func(string) (formats.Opened, error) {
		o, err := beside(dir)("a.qcow2")
		o.Name = ""
		return o, err
	}
	var deep func(name string) (formats.Opened, error)
	deep = func(name string) (formats.Opened, error) {
		o, err := nameless(name)
		o.Beside = deep
		return o, err
	}
	_, err = open(t, at("a.qcow2"), formats.OpenOptions{Beside: deep})
	require.ErrorIs(t, err, formats.ErrCorrupt, "files without names, without end")

	for name, text := range map[string]string{
		`json:{"driver":"file","filename":"/etc/passwd"}`: "only names of files",
		"nbd://host/disk":   "only names of files",
		"https://host/disk": "only names of files",
	} {
		overlay(t, at("c.qcow2"), name, "raw")
		_, err := open(t, at("c.qcow2"), formats.OpenOptions{Beside: beside(dir)})
		require.ErrorIs(t, err, formats.ErrFormat, name)
		require.ErrorContains(t, err, text)
	}

	overlay(t, at("c.qcow2"), "disk.raw", "vmdk")
	_, err = open(t, at("c.qcow2"), formats.OpenOptions{Beside: beside(dir)})
	require.ErrorContains(t, err, `backing format "vmdk"`)

	// An image that does not name the format of its backing file must not make a raw disk of it.
	overlay(t, at("c.qcow2"), "disk.raw", "raw")
	patch(t, at("c.qcow2"), 112, 0)
	_, err = open(t, at("c.qcow2"), formats.OpenOptions{Beside: beside(dir)})
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "no qcow2 image")
}

// patch puts 32 bits into a file.
func patch(t *testing.T, path string, off int64, v uint32) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(binary.BigEndian.AppendUint32(nil, v), off)
	require.NoError(t, err)
}

func checkClean(t *testing.T, img *qcow2.Image) qcow2.CheckResult {
	t.Helper()
	r, err := img.Check(t.Context())
	require.NoError(t, err)
	require.Zero(t, r.Corruptions, "%q", r.Problems)
	require.Zero(t, r.Leaks, "%q", r.Problems)
	return r
}

func TestCheck(t *testing.T) {
	d := formatstest.NewDisk(5, 9<<20)
	src := d.Save(t)
	for _, bits := range []string{"1", "2", "4", "8", "16", "32", "64"} {
		t.Run("refcounts of "+bits+" bits", func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			formatstest.QemuConvert(t, "raw", src, "qcow2", path, "-o", "cluster_size=4k,refcount_bits="+bits)
			img := mustOpen(t, path, formats.OpenOptions{})
			r := checkClean(t, img)
			require.Positive(t, r.Allocated)
			require.Zero(t, r.Compressed)
			info, err := img.Info()
			require.NoError(t, err)
			require.Equal(t, bits, fmt.Sprint(info.RefcountBits))

			// The refcount block of cluster 0 follows the header and the table in an image of qemu-img.
			patch(t, path, 8192, 0)
			patch(t, path, 8196, 0)
			img = mustOpen(t, path, formats.OpenOptions{})
			r, err = img.Check(t.Context())
			require.NoError(t, err)
			require.Positive(t, r.Corruptions, "counted less than used")
			require.NotEmpty(t, r.Problems)
		})
	}
	t.Run("leak", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a.qcow2")
		formatstest.QemuConvert(t, "raw", src, "qcow2", path, "-c")
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(path, (st.Size()+65535)/65536*65536+3*65536))
		n := uint32((st.Size() + 65535) / 65536)
		patch(t, path, 2*65536+int64(n)*2, 0x00010001)
		img := mustOpen(t, path, formats.OpenOptions{})
		r, err := img.Check(t.Context())
		require.NoError(t, err)
		require.Zero(t, r.Corruptions, "%q", r.Problems)
		require.EqualValues(t, 2, r.Leaks)
		require.Positive(t, r.Compressed)
		require.EqualValues(t, int64(n)*65536, r.End)
	})
	t.Run("cancelled", func(t *testing.T) {
		f := formatstest.Harness{Format: qcow2.Format()}.CreateDisk(t, d)
		img, err := qcow2.Open(t.Context(), f, formatstest.FileSize(t, f), formats.OpenOptions{})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = img.Check(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// The copy loop and the formats together: every codec to every other and back, the digest staying.
func TestCopies(t *testing.T) {
	d := formatstest.NewDisk(6, 40<<20+512)
	digest := func(img formats.Image) formats.Digest {
		sums, err := formats.CreateDigests(formatstest.NewMemFile(), img.Size())
		require.NoError(t, err)
		got, err := formats.DigestOf(t.Context(), img, sums, formats.VerifyOptions{})
		require.NoError(t, err)
		return got
	}
	want := digest(d)
	variants := map[string]formats.CreateOptions{
		"plain": {}, "zlib": {Compression: "zlib"}, "zstd": {Compression: "zstd"},
		"small": {ClusterSize: 4096, Compression: "zlib"}, "large": {ClusterSize: 2 << 20, Compression: "zstd"},
	}
	copied := func(src formats.Image, o formats.CreateOptions) formats.Image {
		f := formatstest.NewMemFile()
		w, err := qcow2.Create(t.Context(), f, src.Size(), o, formats.Checkpoint{})
		require.NoError(t, err)
		defer w.Close()
		_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{Durable: func(formats.Checkpoint) error { return nil }})
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		img, err := qcow2.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		checkClean(t, img)
		return img
	}
	for a, first := range variants {
		img := copied(d, first)
		require.Equal(t, want, digest(img), a)
		for b, second := range variants {
			require.Equal(t, want, digest(copied(img, second)), "%s to %s", a, b)
		}
		f := formatstest.NewMemFile()
		w, err := raw.Create(t.Context(), f, d.Size(), formats.CreateOptions{}, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = formats.Copy(t.Context(), w, img, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		back, err := raw.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		require.Equal(t, want, digest(back), "%s to raw", a)
	}
}
