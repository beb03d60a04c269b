package image_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/cmd/hyperctl/image"
	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
)

// writeChain makes a chain of three points of two disks, of which the second is the same at all of them,
// and answers its folder and for each point a raw file of the first.
func writeChain(t *testing.T, size int64) (dir string, points []string) {
	t.Helper()
	dir = t.TempDir()
	c, err := cbt.Create(t.Context(), dir, cbt.VM{ID: "vm-42", Name: "web-01"}, cbt.Options{Compression: "zstd"})
	require.NoError(t, err)
	defer c.Close()
	disk, data := writeDisk(t, size), writeDisk(t, 4*mib)
	for n := range 3 {
		id := cbt.Point(fmt.Sprint(n))
		changes := cbt.Changes{From: cbt.Point(fmt.Sprint(n - 1)), To: id, By: cbt.Tracked}
		if n > 0 {
			off := int64(n) * 5 * mib
			f, err := os.OpenFile(disk, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte(strings.Repeat(fmt.Sprint("changed at ", n, " "), 3000)), off)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, changes.Ranges.Add(off, 64<<10))
		}
		p := cbt.NewPoint{Key: fmt.Sprint("key ", n), Time: time.Unix(1_790_000_000+int64(n)*86400, 0), Disks: []cbt.NewDisk{
			{Disk: "scsi0:0", Size: size, ChangeID: id, Changes: &changes}, {Disk: "scsi0:1", Size: 4 * mib, ChangeID: id, Changes: &cbt.Changes{From: changes.From, To: id, By: cbt.Tracked}}}}
		a, err := c.Begin(t.Context(), p)
		require.NoError(t, err)
		for i, path := range []string{disk, data} {
			f, err := os.Open(path)
			require.NoError(t, err)
			img, err := raw.Open(t.Context(), f, p.Disks[i].Size, formats.OpenOptions{})
			require.NoError(t, err)
			_, err = a.Copy(t.Context(), p.Disks[i].Disk, img, formats.CopyOptions{})
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
		require.NoError(t, a.Commit(t.Context()))
		b, err := os.ReadFile(disk)
		require.NoError(t, err)
		points = append(points, filepath.Join(t.TempDir(), "disk.raw"))
		require.NoError(t, os.WriteFile(points[n], b, 0o600))
	}
	return dir, points
}

// numbers are the points of a chain.
func numbers(t *testing.T, dir string) (all []int64) {
	t.Helper()
	var m cbt.Manifest
	require.NoError(t, json.Unmarshal([]byte(ok(t, "chain", "list", "--json", dir)), &m))
	for _, p := range m.Points {
		all = append(all, p.Number)
	}
	return all
}

func TestChainList(t *testing.T) {
	dir, _ := writeChain(t, 20*mib)
	out := ok(t, "chain", "list", dir)
	require.Regexp(t, `(?m)^POINT +TIME +DISK +SIZE +STORED +CHANGED +HOW$`, out)
	require.Regexp(t, `(?m)^1 +2026-09-21T14:13:20Z +scsi0:0 +20 MiB +\S+ MiB +20 MiB +full: first point of the chain$`, out)
	require.Regexp(t, `(?m)^3 +2026-09-23T14:13:20Z +scsi0:0 +20 MiB +\S+ KiB +64 KiB +tracking$`, out)
	require.Contains(t, out, ": 3 points of web-01 in ")
	require.Equal(t, []int64{1, 2, 3}, numbers(t, dir))
}

func TestChainCheck(t *testing.T) {
	base, delta := "disk0-000001.qcow2", "disk0-000002.qcow2"
	for name, x := range map[string]struct {
		do   func(t *testing.T, dir string)
		args []string
		code int
		says string
	}{
		"whole":  {code: 0, says: "No errors were found in the chain: 3 points in 6 files, "},
		"links":  {args: []string{"--depth", "links"}, code: 0, says: "0 B of disks read"},
		"tables": {args: []string{"--depth", "tables", "--progress"}, code: 0, says: "No errors"},
		"missing base": {do: func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, base))) },
			args: []string{"--depth", "links"}, code: 2, says: "problem: point 1, disk scsi0:0, " + base + ": it is missing"},
		"damaged data": {do: func(t *testing.T, dir string) { scribble(t, filepath.Join(dir, base), mib) },
			code: 2, says: "problem: point 1, disk scsi0:0, " + base + ": bytes [1048576, 2097152) of the disk are not what was copied"},
		"damaged tables": {do: func(t *testing.T, dir string) { scribble(t, filepath.Join(dir, delta), 0x10000+3) },
			args: []string{"--depth", "tables"}, code: 2, says: "problem: point 2, disk scsi0:0, " + delta + ": "},
		"left over": {do: func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".disk0-000004.qcow2.part"), []byte("part"), 0o600))
		}, code: 3, says: "left over: .disk0-000004.qcow2.part"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := writeChain(t, 20*mib)
			if x.do != nil {
				x.do(t, dir)
			}
			r := call(t, nil, append([]string{"chain", "check", dir}, x.args...)...)
			require.Equal(t, x.code, r.code, r.out+r.message)
			require.Contains(t, r.out, x.says)
			require.Empty(t, r.message)
			r = call(t, nil, append([]string{"chain", "check", "--json", dir}, x.args...)...)
			require.Equal(t, x.code, r.code)
			var report cbt.CheckReport
			require.NoError(t, json.Unmarshal([]byte(r.out), &report))
			require.Equal(t, x.code == 2, report.Err() != nil)
			if x.code == 3 {
				ok(t, "chain", "clean", dir)
				ok(t, "chain", "check", dir)
			}
		})
	}
	dir, _ := writeChain(t, 20*mib)
	scribble(t, filepath.Join(dir, "chain.json"), 100)
	r := call(t, nil, "chain", "check", dir)
	require.Equal(t, 2, r.code)
	require.Contains(t, r.message, "manifest: ")
}

// scribble changes bytes of a file.
func scribble(t *testing.T, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := range b[off : off+4] {
		b[off+int64(i)] ^= 0x55
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// Each point comes out as it was in every layout, and qemu-img agrees.
func TestChainFlatten(t *testing.T) {
	dir, points := writeChain(t, 20*mib)
	for i, to := range layouts() {
		t.Run(to.name, func(t *testing.T) {
			n := i%3 + 1
			dst := filepath.Join(t.TempDir(), "out")
			args := append([]string{"chain", "flatten", "-p", fmt.Sprint(n), "-d", "scsi0:0", "-O", to.format}, to.flags...)
			ok(t, append(args, dir, dst)...)
			formatstest.QemuCompare(t, "raw", points[n-1], to.qemu, dst)
			require.Equal(t, []string{"out"}, names(t, filepath.Dir(dst)))
			r := call(t, nil, append(args, dir, dst)...)
			require.Equal(t, 1, r.code)
			require.Contains(t, r.message, "exists already")
			var res struct {
				Point        int64
				Disk, Digest string
			}
			require.NoError(t, json.Unmarshal([]byte(ok(t, append(args, "--force", "--json", dir, dst)...)), &res))
			require.EqualValues(t, n, res.Point)
			require.Equal(t, "scsi0:0", res.Disk)
			require.Equal(t, digestOf(t, "raw", points[n-1]), res.Digest)
		})
	}
	t.Run("the newest", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "out")
		ok(t, "chain", "flatten", "-d", "disk0", "-O", "raw", dir, dst)
		requireSame(t, points[2], dst)
	})
	t.Run("damaged", func(t *testing.T) {
		dir, _ := writeChain(t, 20*mib)
		scribble(t, filepath.Join(dir, "disk0-000001.qcow2"), mib)
		dst := filepath.Join(t.TempDir(), "out")
		r := call(t, nil, "chain", "flatten", "-p", "1", "-d", "disk0", "-O", "raw", dir, dst)
		require.Equal(t, 1, r.code)
		require.Contains(t, r.message, "corrupt")
		require.Empty(t, names(t, filepath.Dir(dst)), "nothing is left of it")
	})
	t.Run("interrupted", func(t *testing.T) {
		dir, points := writeChain(t, 400*mib)
		dst := filepath.Join(t.TempDir(), "out")
		args := []string{"chain", "flatten", "-d", "disk0", "-O", "qcow2", "-m", "1", dir, dst}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := image.Command()
		c.SetErr(&watcher{line: regexp.MustCompile(`[4-7]\d\.\d %`), seen: cancel})
		c.SetOut(io.Discard)
		c.SetArgs(append(args, "--progress"))
		var exit *image.ExitError
		require.ErrorAs(t, c.ExecuteContext(ctx), &exit)
		require.Equal(t, 130, exit.Code)
		require.NotContains(t, names(t, filepath.Dir(dst)), "out")
		r := call(t, nil, args...)
		require.Zero(t, r.code, r.message)
		require.Contains(t, r.err, "going on at ")
		require.Equal(t, []string{"out"}, names(t, filepath.Dir(dst)))
		formatstest.QemuCompare(t, "raw", points[2], "qcow2", dst)
	})
}

func TestChainMergeAndDelete(t *testing.T) {
	dir, points := writeChain(t, 20*mib)
	r := call(t, nil, "chain", "delete", "-p", "2", dir)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, `delete point 2: point 3 reads disk "scsi0:0" through it, merge up to that point instead`)
	r = call(t, nil, "chain", "merge", "--up-to", "2", "--progress", dir)
	require.Zero(t, r.code, r.message)
	require.Contains(t, r.err, "100.0 %")
	require.Equal(t, []int64{2, 3}, numbers(t, dir))
	for n, want := range map[int]string{2: points[1], 3: points[2]} {
		dst := filepath.Join(t.TempDir(), "out")
		ok(t, "chain", "flatten", "-p", fmt.Sprint(n), "-d", "scsi0:0", "-O", "raw", dir, dst)
		requireSame(t, want, dst)
	}
	var m cbt.Manifest
	require.NoError(t, json.Unmarshal([]byte(ok(t, "chain", "delete", "--json", dir)), &m))
	require.Len(t, m.Points, 1, "the newest is gone")
	require.Equal(t, []int64{2}, numbers(t, dir))
	ok(t, "chain", "check", dir)
	ok(t, "chain", "delete", "-p", "2", dir)
	r = call(t, nil, "chain", "delete", dir)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, "there is none")

	c, err := cbt.Open(t.Context(), dir, cbt.Options{})
	require.NoError(t, err)
	defer c.Close()
	require.Contains(t, ok(t, "chain", "list", dir), "0 points of web-01")
	for _, args := range [][]string{{"check"}, {"merge", "--up-to", "2"}, {"delete"}, {"clean"}, {"flatten", "-O", "raw", filepath.Join(t.TempDir(), "out")}} {
		r := call(t, nil, append([]string{"chain", args[0], dir}, args[1:]...)...)
		require.Equal(t, 1, r.code, args)
		require.Contains(t, r.message, "another process works on the chain")
	}
}

func TestChainUsage(t *testing.T) {
	dir, _ := writeChain(t, 20*mib)
	before := names(t, dir)
	out := filepath.Join(t.TempDir(), "out")
	for _, c := range []struct {
		args    []string
		code    int
		message string
	}{
		{[]string{"frobnicate"}, 2, "takes no"},
		{[]string{"list"}, 2, "takes DIR"},
		{[]string{"list", filepath.Join(dir, "nowhere")}, 1, "no such file"},
		{[]string{"list", t.TempDir()}, 1, "there is no chain.json"},
		{[]string{"list", "--allow-dir", "/", dir}, 2, "no file outside of the folder"},
		{[]string{"check", "--disk", "disk0", dir}, 2, "all disks are meant"},
		{[]string{"check"}, 1, "takes DIR"},
		{[]string{"check", "--what", dir}, 1, "unknown flag"},
		{[]string{"check", "--depth", "deep", dir}, 1, "links, tables and data"},
		{[]string{"merge", dir}, 2, "--up-to names"},
		{[]string{"merge", "--up-to", "9", dir}, 1, "not found"},
		{[]string{"delete", "-p", "0", dir}, 2, "numbered from 1"},
		{[]string{"delete", "-p", "9", dir}, 1, "not found"},
		{[]string{"flatten", dir}, 2, "takes DIR OUT"},
		{[]string{"flatten", dir, out}, 2, "-O names"},
		{[]string{"flatten", "-O", "floppy", dir, out}, 2, "qcow2"},
		{[]string{"flatten", "-O", "ova", dir, out}, 2, "-O ova"},
		{[]string{"flatten", "-O", "raw", dir, "-"}, 2, "OUT is a file"},
		{[]string{"flatten", "-O", "raw", dir, out}, 2, "has 2 disks, name one of them with -d: scsi0:0, scsi0:1"},
		{[]string{"flatten", "-O", "raw", "-d", "ide", dir, out}, 1, `no disk "ide"`},
		{[]string{"flatten", "-O", "raw", "-d", "disk0", "-p", "9", dir, out}, 1, "there is no point 9"},
		{[]string{"flatten", "-O", "raw", "-d", "disk0", "--force", dir, filepath.Join(dir, "disk0-000001.qcow2")}, 1, "lies in the folder of the chain"},
	} {
		t.Run(strings.Join(c.args[:min(len(c.args), 4)], " "), func(t *testing.T) {
			r := call(t, nil, append([]string{"chain"}, c.args...)...)
			require.Equal(t, c.code, r.code, r.message)
			require.Contains(t, r.message, c.message)
		})
	}
	require.Equal(t, before, names(t, dir), "what was refused changes nothing")
	require.Empty(t, names(t, filepath.Dir(out)))
	require.Contains(t, ok(t, "chain", "--help"), "hyperctl image chain list")
	for _, flag := range []string{"allow-dir", "--disk"} {
		require.NotContains(t, ok(t, "chain", "list", "--help"), flag)
	}
	require.Contains(t, ok(t, "chain", "flatten", "--help"), "--disk")
}
