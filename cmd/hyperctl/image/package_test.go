package image_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats/ovf"
)

// pack makes a package of two disks, in a folder or an archive, and answers its path and the raw disks.
func pack(t *testing.T, archive bool, content ...func(*testing.T, int64) string) (path string, disks []string) {
	t.Helper()
	content = append(content, writeDisk)
	dir := t.TempDir()
	e := ovf.Envelope{Systems: []ovf.System{{
		Name: "web-01", OS: ovf.OS{ID: 94, Type: "ubuntu64Guest", Description: "Ubuntu"}, HardwareVersion: "vmx-19", CPUs: 2, Memory: 2 << 30, Firmware: ovf.EFI,
		Controllers: []ovf.Controller{{ID: "3", Bus: ovf.SCSI}}, NICs: []ovf.NIC{{Network: "prod", Model: "VmxNet3"}},
	}}}
	for i, name := range []string{"web-01-disk-1.vmdk", "web-01-disk-2.vmdk"} {
		disk := content[0](t, int64(20+i)*mib)
		disks = append(disks, disk)
		ok(t, "convert", "-f", "raw", "-O", "vmdk", "-c", disk, filepath.Join(dir, name))
		st, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		id := strings.TrimSuffix(name, ".vmdk")
		e.Files = append(e.Files, ovf.File{ID: "f" + id, Href: name, Size: st.Size()})
		e.Disks = append(e.Disks, ovf.Disk{ID: id, File: "f" + id, Capacity: int64(20+i) * mib})
		e.Systems[0].Drives = append(e.Systems[0].Drives, ovf.Drive{Kind: ovf.HardDisk, Disk: id, Controller: "3", Unit: i})
	}
	var b bytes.Buffer
	if archive {
		require.NoError(t, ovf.WriteOnce(t.Context(), &b, ovf.Content{Name: "web-01", Envelope: e, Write: func(_ context.Context, f ovf.File, w io.Writer) error {
			content, err := os.ReadFile(filepath.Join(dir, f.Href))
			if err == nil {
				_, err = w.Write(content)
			}
			return err
		}}))
		path = filepath.Join(t.TempDir(), "web-01.ova")
	} else {
		_, err := e.WriteTo(&b)
		require.NoError(t, err)
		path = filepath.Join(dir, "web-01.ovf")
	}
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
	return path, disks
}

func TestPackages(t *testing.T) {
	for _, archive := range []bool{true, false} {
		path, disks := pack(t, archive)
		out := ok(t, "info", path)
		for _, want := range []string{"virtual machine: web-01", "vmx-19, 2 processors, 2 GiB of memory, efi", "network: prod (VmxNet3)",
			"disk 1: web-01-disk-1.vmdk, vmdk streamOptimized of 20 MiB", "disk 2: web-01-disk-2.vmdk"} {
			require.Contains(t, out, want)
		}
		var info struct {
			Format   string
			Manifest bool
			Disks    []struct{ File string }
		}
		require.NoError(t, json.Unmarshal([]byte(ok(t, "info", "--json", path)), &info))
		require.Len(t, info.Disks, 2)
		require.Equal(t, archive, info.Manifest)
		require.Contains(t, ok(t, "info", "--disk", "2", path), "virtual size: 21 MiB")

		require.Contains(t, ok(t, "check", path), "No errors were found")
		var digests []string
		for i, d := range disks {
			want := strings.Fields(ok(t, "digest", "-f", "raw", d))[0]
			digests = append(digests, want)
			require.Equal(t, want, strings.Fields(ok(t, "digest", "--disk", []string{"1", "web-01-disk-2.vmdk"}[i], path))[0])
		}
		all := strings.Fields(ok(t, "digest", path))
		require.Equal(t, digests, []string{all[0], all[2]})
		require.Equal(t, path+":web-01-disk-2.vmdk", all[3])

		dst := filepath.Join(t.TempDir(), "two.qcow2")
		ok(t, "convert", "--disk", "2", "-O", "qcow2", "-c", path, dst)
		ok(t, "compare", "-F", "raw", dst, disks[1])
		ok(t, "compare", "--disk", "2", path, dst)

		r := call(t, nil, "convert", "-O", "qcow2", path, filepath.Join(t.TempDir(), "x"))
		require.Equal(t, 1, r.code)
		require.Contains(t, r.message, "choose one with --disk: 1 (web-01-disk-1.vmdk), 2 (web-01-disk-2.vmdk)")
		r = call(t, nil, "digest", "--disk", "3", path)
		require.Contains(t, r.message, `no disk "3"`)
	}
	r := call(t, nil, "info", "-f", "raw", "--disk", "1", writeDisk(t, mib))
	require.Contains(t, r.message, "neither an OVA nor an OVF")
}

// What is compressed already is compressed again where a level is asked for, and else moved.
func TestRepackAtAnotherLevel(t *testing.T) {
	path, _ := pack(t, true, words)
	size := func(options ...string) int64 {
		dst := filepath.Join(t.TempDir(), "level.ova")
		ok(t, append(append([]string{"convert", "-O", "ova"}, options...), path, dst)...)
		st, err := os.Stat(dst)
		require.NoError(t, err)
		return st.Size()
	}
	require.Greater(t, size("-o", "compression_level=1"), size())
	require.Greater(t, size(), size("-o", "compression_level=9"))
}

// words is a disk of words in no order.
func words(t *testing.T, size int64) string {
	t.Helper()
	all := strings.Fields("the quick brown fox jumps over the lazy dog again and once more while nobody looks at what it does there all day long")
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for int64(b.Len()) < size {
		b.WriteString(all[r.IntN(len(all))])
		b.WriteByte(byte('a' + r.IntN(26)))
	}
	path := filepath.Join(t.TempDir(), "words.raw")
	require.NoError(t, os.WriteFile(path, b.Bytes()[:size], 0o600))
	return path
}

func TestRepack(t *testing.T) {
	for _, archive := range []bool{true, false} {
		path, _ := pack(t, archive)
		want := digestsOf(t, path)
		for name, options := range map[string][]string{
			"as it is": nil, "smaller": {"-o", "compression_level=9"}, "vmdk": {"-o", "disk_format=vmdk"},
		} {
			dst := filepath.Join(t.TempDir(), "new.ova")
			ok(t, append(append([]string{"convert", "-O", "ova"}, options...), path, dst)...)
			require.Equal(t, want, digestsOf(t, dst), name)
			require.Contains(t, ok(t, "check", dst), "No errors were found", name)
			tar, err := exec.CommandContext(t.Context(), "tar", "tf", dst).Output()
			require.NoError(t, err)
			require.Equal(t, "new.ovf\nnew.mf\nweb-01-disk-1.vmdk\nweb-01-disk-2.vmdk\n", string(tar))
			require.Contains(t, ok(t, "info", dst), "virtual machine: web-01")
			require.Equal(t, []string{"new.ova"}, names(t, filepath.Dir(dst)), "nothing is left beside it")
		}
		raw := filepath.Join(t.TempDir(), "raw.ova")
		ok(t, "convert", "-O", "ova", "-o", "disk_format=raw", path, raw)
		for i, d := range []string{"1", "2"} {
			require.Equal(t, want[i], strings.Fields(ok(t, "digest", "-f", "raw", "--disk", d, raw))[0])
		}
		for _, options := range [][]string{nil, {"-o", "disk_format=raw"}} {
			r := call(t, nil, append(append([]string{"convert", "-O", "ova"}, options...), path, "-")...)
			require.Zero(t, r.code, r.message)
			piped := filepath.Join(t.TempDir(), "piped.ova")
			require.NoError(t, os.WriteFile(piped, []byte(r.out), 0o600))
			if options == nil {
				require.Equal(t, want, digestsOf(t, piped))
			}
			require.Contains(t, ok(t, "check", piped), "No errors were found")
		}
		r := call(t, nil, "convert", "-O", "ova", path, raw)
		require.Contains(t, r.message, "exists already")
	}
	for _, args := range [][]string{
		{"-O", "ova", "-o", "cluster_size=64k"}, {"-O", "ova", "--disk", "1"}, {"-O", "ova", "-o", "disk_format=raw", "-o", "compression_level=3"}, {"-O", "ova", "-o", "compression_level=x"},
	} {
		r := call(t, nil, append(append([]string{"convert"}, args...), "a", "b")...)
		require.Equal(t, 2, r.code, "%q: %s", args, r.message)
	}
	r := call(t, nil, "convert", "-f", "raw", "-O", "ova", writeDisk(t, mib), filepath.Join(t.TempDir(), "x.ova"))
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, "only a package says what that is")
}

// digestsOf are those of the disks of a package.
func digestsOf(t *testing.T, path string) []string {
	t.Helper()
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(ok(t, "digest", path)), "\n") {
		out = append(out, strings.Fields(line)[0])
	}
	return out
}

func TestRottenPackage(t *testing.T) {
	path, _ := pack(t, true)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	r := call(t, nil, "check", path)
	require.Equal(t, 2, r.code)
	require.Contains(t, r.out, "the manifest has")
	require.NoError(t, os.WriteFile(path, b[:len(b)/2], 0o600))
	r = call(t, nil, "check", path)
	require.Equal(t, 1, r.code)
	require.NotEmpty(t, r.message)
}

// A package leads nowhere but to its own files.
func TestPackageDoesNotLeadOut(t *testing.T) {
	path, _ := pack(t, false)
	disk := filepath.Join(filepath.Dir(path), "web-01-disk-1.vmdk")
	outside := filepath.Join(t.TempDir(), "outside.vmdk")
	require.NoError(t, os.Rename(disk, outside))
	require.NoError(t, os.Symlink(outside, disk))
	r := call(t, nil, "digest", "--disk", "1", path)
	require.Equal(t, 1, r.code)
	require.NotEmpty(t, r.message)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytes.ReplaceAll(b, []byte("web-01-disk-1.vmdk"), []byte("../outside.vmdk")), 0o600))
	r = call(t, nil, "info", path)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, "is not the name of a file in the package")
}

func TestCompressedDiskOfAPackage(t *testing.T) {
	path, disks := pack(t, false)
	dir := filepath.Dir(path)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	content, err := os.ReadFile(filepath.Join(dir, "web-01-disk-1.vmdk"))
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "web-01-disk-1.vmdk"), z.Bytes(), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	e, err := ovf.ReadEnvelope(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	e.Files[0].Gzip, e.Files[0].Size = true, int64(z.Len())
	var b bytes.Buffer
	_, err = e.WriteTo(&b)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
	dst := filepath.Join(t.TempDir(), "one.qcow2")
	ok(t, "convert", "--disk", "1", "-O", "qcow2", path, dst)
	ok(t, "compare", "-F", "raw", dst, disks[0])
	require.Contains(t, ok(t, "info", path), "disk 1: web-01-disk-1.vmdk, compressed with gzip")
}
