package qcow2_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

// What others made is overwritten too, or refused before anything was touched.
func TestUpdateOfWhatQemuMade(t *testing.T) {
	const size = 5<<20 + 512
	for name, c := range map[string]struct {
		options []string
		after   []string // qemu-img's command for the image, its path behind it
		refused string
	}{
		"plain":                {},
		"version 2":            {options: []string{"-o", "compat=0.10"}},
		"small clusters":       {options: []string{"-o", "cluster_size=512"}},
		"preallocated":         {options: []string{"-o", "preallocation=full"}},
		"lazy refcounts":       {options: []string{"-o", "lazy_refcounts=on"}},
		"compressed":           {options: []string{"-c"}, refused: "compressed clusters"},
		"extended L2":          {options: []string{"-o", "extended_l2=on"}, refused: "extended L2 entries"},
		"refcounts of 1 bit":   {options: []string{"-o", "refcount_bits=1"}, refused: "refcounts of other than 16 bits"},
		"an internal snapshot": {after: []string{"snapshot", "-c", "one"}, refused: "internal snapshots"},
		"a bitmap":             {after: []string{"bitmap", "--add"}, refused: "bitmaps"},
	} {
		t.Run(name, func(t *testing.T) {
			d := formatstest.NewDisk(9, size)
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "disk.qcow2"), d.Save(t)
			formatstest.QemuConvert(t, "raw", raw, "qcow2", path, c.options...)
			if len(c.after) > 0 {
				args := append(c.after, path)
				if name == "a bitmap" {
					args = append(args, "b")
				}
				formatstest.Qemu(t, args...)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			w, err := qcow2.Update(t.Context(), f, formatstest.FileSize(t, f))
			if c.refused != "" {
				require.ErrorIs(t, err, formats.ErrFormat)
				require.ErrorContains(t, err, c.refused)
				formatstest.QemuCompare(t, "raw", raw, "qcow2", path)
				return
			}
			require.NoError(t, err)
			next := formatstest.NewDisk(10, size)
			_, err = formats.Copy(t.Context(), w, next, formats.CopyOptions{})
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			formatstest.QemuCheck(t, "qcow2", path)
			formatstest.QemuCompare(t, "raw", next.Save(t), "qcow2", path)
		})
	}
}

func TestUpdateRefuses(t *testing.T) {
	plain := func(o formats.CreateOptions) *formatstest.MemFile {
		f := formatstest.NewMemFile()
		w, err := qcow2.Create(t.Context(), f, 1<<20, o, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, formatstest.Fill(w, formatstest.NewDisk(3, 1<<20), 0, 1<<20))
		require.NoError(t, w.Commit(t.Context()))
		return f
	}
	for name, c := range map[string]struct {
		f    *formatstest.MemFile
		off  int64 // of the byte that is changed
		to   byte
		kind error
		want string
	}{
		"a backing file": {plain(formats.CreateOptions{Backing: "base.raw", BackingFmt: "raw"}), 0, 'Q', formats.ErrFormat, "backing file"},
		"dirty":          {plain(formats.CreateOptions{}), 79, 1, formats.ErrFormat, "not closed by whoever wrote it last"},
		"corrupt":        {plain(formats.CreateOptions{}), 79, 2, formats.ErrFormat, "marked as corrupt"},
		"wrong counts":   {plain(formats.CreateOptions{}), 2<<16 + 9, 0, formats.ErrCorrupt, "contradictions"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.f.WriteAt([]byte{c.to}, c.off)
			require.NoError(t, err)
			before := c.f.Clone()
			_, err = qcow2.Update(t.Context(), c.f, c.f.Size())
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.want)
			formatstest.RequireEqual(t, before, c.f)
		})
	}
}

// A file does not grow for blocks that are given back and written again, round after round.
func TestUpdateTakesClustersAgain(t *testing.T) {
	f := formatstest.NewMemFile()
	w, err := qcow2.Create(t.Context(), f, 4<<20, formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i*7 + 1)
	}
	var size int64
	for round := range 5 {
		w, err := qcow2.Update(t.Context(), f, f.Size())
		require.NoError(t, err)
		require.NoError(t, w.WriteZeroes(0, 4<<20))
		require.NoError(t, w.Sync(t.Context()))
		_, err = w.WriteAt(noise, 1<<20)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		if round == 0 {
			size = f.Size()
		}
		require.Equal(t, size, f.Size())
	}
}

// An image whose refcount table has no room for more gets a larger one.
func TestUpdateEnlargesTheRefcountTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	const size = 40 << 20
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "40M")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	w, err := qcow2.Update(t.Context(), f, formatstest.FileSize(t, f))
	require.NoError(t, err)
	d := formatstest.NewDisk(5, 15<<20)
	noise := make([]byte, 12<<20)
	_, err = d.ReadAt(noise, 0)
	require.NoError(t, err)
	for i := range noise {
		noise[i] |= 1
	}
	_, err = w.WriteAt(noise, 0)
	require.NoError(t, err)
	require.NoError(t, w.Sync(t.Context()))
	_, err = w.WriteAt(noise, size-int64(len(noise)))
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	formatstest.QemuCheck(t, "qcow2", path)
}

// Whatever the tables of an image say, it is refused, or overwritten so that what was written is read again.
func FuzzUpdate(f *testing.F) {
	const size = 96 << 10
	file := formatstest.NewMemFile()
	w, err := qcow2.Create(f.Context(), file, size, formats.CreateOptions{ClusterSize: 512}, formats.Checkpoint{})
	require.NoError(f, err)
	require.NoError(f, formatstest.Fill(w, formatstest.NewDisk(3, size), 0, size))
	require.NoError(f, w.Commit(f.Context()))
	whole := make([]byte, file.Size())
	_, err = file.ReadAt(whole, 0)
	require.NoError(f, err)
	f.Add(int64(0), byte(0), int64(0), byte(0), int64(0))
	f.Add(int64(512), byte(0x80), int64(2048), byte(3), int64(700))
	f.Add(int64(79), byte(0), file.Size()-512, byte(0), int64(9000))
	f.Fuzz(func(t *testing.T, a int64, x byte, b int64, y byte, cut int64) {
		img := append([]byte(nil), whole...)
		for at, v := range map[int64]byte{a: x, b: y} {
			if at >= 0 && at < int64(len(img)) {
				img[at] = v
			}
		}
		if cut > 0 && cut < int64(len(img)) {
			img = img[:int64(len(img))-cut]
		}
		f := formatstest.MemFileOf(img)
		w, err := qcow2.Update(t.Context(), f, f.Size())
		if err != nil {
			return
		}
		defer w.Close()
		data := make([]byte, 8<<10)
		for i := range data {
			data[i] = byte(i) | 1
		}
		if _, err := w.WriteAt(data, 40<<10); err != nil || w.WriteZeroes(0, 4<<10) != nil || w.Commit(t.Context()) != nil {
			return
		}
		back, err := qcow2.Open(t.Context(), f, f.Size(), formats.OpenOptions{Layer: true})
		require.NoError(t, err)
		defer back.Close()
		if back.Size() < 48<<10 {
			return
		}
		got := make([]byte, len(data))
		_, err = back.ReadAt(got, 40<<10)
		require.NoError(t, err)
		require.Equal(t, data, got)
		res, err := back.Check(t.Context())
		require.NoError(t, err)
		require.Zero(t, res.Corruptions, "%q", res.Problems)
	})
}
