package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/cmd/hyperctl/image"
)

// result is what a call of the command line left behind.
type result struct {
	code     int
	out, err string
	message  string // of the error
}

// call runs `image` in this process.
func call(t *testing.T, in io.Reader, args ...string) result {
	t.Helper()
	c := image.Command()
	var out, errs bytes.Buffer
	c.SetIn(in)
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	r := result{out: out.String(), err: errs.String()}
	if err != nil {
		var exit *image.ExitError
		require.ErrorAs(t, err, &exit, "every error has an exit code")
		r.code, r.message = exit.Code, err.Error()
		require.NotContains(t, r.message, "\n", "an error is one sentence")
	}
	return r
}

func ok(t *testing.T, args ...string) string {
	t.Helper()
	r := call(t, nil, args...)
	require.Zero(t, r.code, "%q: %s", args, r.message)
	return r.out
}

const mib = 1 << 20

// writeDisk writes a raw disk with holes, text that packs well, random bytes and runs of zeros, and
// something in its first and last sectors.
func writeDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(size))
	put := func(b []byte, off int64) {
		if off < size {
			_, err := f.WriteAt(b[:min(int64(len(b)), size-off)], off)
			require.NoError(t, err)
		}
	}
	random := make([]byte, 4*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, again and again\n"), 6*mib/61)
	for off := int64(0); off < size; off += 16 * mib {
		put(random, off+mib)
		put(text, off+7*mib+12345)
	}
	put(make([]byte, mib), 3*mib)
	put([]byte("boot"), 0)
	put([]byte("last"), size-4)
	return path
}

func kinds(t *testing.T, out string) map[string]int64 {
	t.Helper()
	var all []struct {
		Start, Length int64
		Kind          string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &all))
	sum, at := map[string]int64{}, int64(0)
	for _, e := range all {
		require.Equal(t, at, e.Start, "the map has no gaps")
		at += e.Length
		sum[e.Kind] += e.Length
	}
	return sum
}

func TestUsage(t *testing.T) {
	file := writeDisk(t, mib)
	for _, c := range []struct {
		args    []string
		code    int
		message string
	}{
		{[]string{"frobnicate"}, 2, "takes no"},
		{[]string{"info"}, 2, "takes FILE"},
		{[]string{"info", "a", "b"}, 2, "takes FILE"},
		{[]string{"info", "-f", "floppy", file}, 2, "qcow2"},
		{[]string{"info", "--what", file}, 2, "unknown flag"},
		{[]string{"info", file}, 1, "a raw disk has to be named so"},
		{[]string{"info", "-f", "raw", file + ".not"}, 1, "no such file"},
		{[]string{"info", "-f", "raw", filepath.Dir(file)}, 1, "is not a file"},
		{[]string{"check"}, 1, "takes FILE"},
		{[]string{"check", "--what", file}, 1, "unknown flag"},
		{[]string{"check", "-f", "floppy", file}, 1, "qcow2"},
		{[]string{"check", file}, 1, "a raw disk has to be named so"},
		{[]string{"check", "-f", "raw", file}, 63, "nothing to check"},
		{[]string{"compare", file}, 2, "takes FILE1 FILE2"},
		{[]string{"compare", "-f", "raw", file, file}, 2, "a raw disk has to be named so"},
		{[]string{"digest"}, 2, "takes FILE..."},
		{[]string{"convert", file, "x"}, 2, "-O names"},
		{[]string{"convert", "-O", "floppy", file, "x"}, 2, "qcow2"},
		{[]string{"convert", "-O", "qcow2", "-m", "-1", file, "x"}, 2, "-m -1"},
		{[]string{"convert", "-O", "qcow2", "-o", "compat=1.1", file, "x"}, 2, "-o compat: known are subformat"},
		{[]string{"convert", "-O", "qcow2", "-o", "cluster_size", file, "x"}, 2, "name=value"},
		{[]string{"convert", "-O", "qcow2", "-o", "cluster_size=big", file, "x"}, 2, "is not a number"},
		{[]string{"convert", "-O", "qcow2", "-o", "compression_type=zstd", file, "x"}, 2, "needs -c"},
		{[]string{"convert", "-f", "raw", "-O", "vhd", "-c", file, file + ".vhd"}, 1, "compression"},
		{[]string{"convert", "-f", "raw", "-O", "qcow2", file, "-"}, 2, "cannot be written front to back"},
		{[]string{"convert", "-O", "qcow2", "-", "x"}, 2, "-f vmdk"},
		{[]string{"convert", "-f", "qcow2", "-O", "raw", "-", "x"}, 2, "cannot be read front to back"},
	} {
		t.Run(strings.Join(c.args[:min(len(c.args), 4)], " "), func(t *testing.T) {
			r := call(t, strings.NewReader(""), c.args...)
			require.Equal(t, c.code, r.code, r.message)
			require.Contains(t, r.message, c.message)
		})
	}
	left, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, left, 1, "what was refused leaves nothing behind")
}

func TestInfo(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	dst := filepath.Join(t.TempDir(), "d.qcow2")
	ok(t, "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd,cluster_size=128k", raw, dst)
	text := ok(t, "info", dst)
	require.Contains(t, text, "file format: qcow2\nvirtual size: 20 MiB (20971520 bytes)\n")
	require.Contains(t, text, "cluster size: 131072\ncompression type: zstd\n")
	var i struct {
		Format      string `json:"format"`
		VirtualSize int64  `json:"virtual_size"`
		ClusterSize int64  `json:"cluster_size"`
		ActualSize  int64  `json:"actual_size"`
	}
	require.NoError(t, json.Unmarshal([]byte(ok(t, "info", "--json", dst)), &i))
	require.Equal(t, "qcow2", i.Format)
	require.EqualValues(t, 20*mib, i.VirtualSize)
	require.EqualValues(t, 128<<10, i.ClusterSize)
	require.Positive(t, i.ActualSize)
	require.Less(t, i.ActualSize, int64(10*mib))
}

func TestMap(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	dst := filepath.Join(t.TempDir(), "d.qcow2")
	ok(t, "convert", "-f", "raw", "-O", "qcow2", raw, dst)
	require.Regexp(t, `(?m)^Start +Length +Kind\n0 +65536 +data\n65536 +983040 +zero$`, ok(t, "map", dst))
	sum := kinds(t, ok(t, "map", "--json", dst))
	require.EqualValues(t, 20*mib, sum["data"]+sum["zero"])
	require.Greater(t, sum["zero"], int64(7*mib))
}

func TestCompare(t *testing.T) {
	a := writeDisk(t, 20*mib)
	content, err := os.ReadFile(a)
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name string, change func(b []byte) []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, change(bytes.Clone(content)), 0o600))
		return path
	}
	same := file("same", func(b []byte) []byte { return b })
	twice := file("twice", func(b []byte) []byte { b[19*mib] ^= 1; b[5*mib+77] ^= 1; return b })
	longer := file("longer", func(b []byte) []byte { return append(b, make([]byte, mib)...) })
	tail := file("tail", func(b []byte) []byte { return append(append(b, make([]byte, mib)...), 1) })
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"same", []string{a, same}, 0, "Images are identical."},
		{"first of two", []string{a, twice}, 1, "Content mismatch at offset 5242957!"},
		{"zeros behind", []string{a, longer}, 0, "Images are identical."},
		{"zeros before", []string{longer, a}, 0, "Images are identical."},
		{"strict", []string{"-s", a, longer}, 1, "20971520 and 22020096 bytes"},
		{"strict, same", []string{"-s", a, same}, 0, "identical"},
		{"data behind", []string{a, tail}, 1, "Content mismatch at offset 22020096!"},
		{"quiet", []string{"-q", a, twice}, 1, ""},
		{"json", []string{"--json", a, twice}, 1, `"offset": 5242957`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := call(t, nil, append([]string{"compare", "-f", "raw", "-F", "raw"}, c.args...)...)
			require.Equal(t, c.code, r.code, r.message)
			require.Contains(t, r.out, c.out)
			require.Empty(t, r.message)
			if c.out == "" {
				require.Empty(t, r.out)
			}
		})
	}
	r := call(t, nil, "compare", "-f", "raw", a, filepath.Join(dir, "absent"))
	require.Equal(t, 2, r.code)
}

// Of a disk that is corrupt check says 2, of one that lost space 3.
func TestCheck(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	path := filepath.Join(t.TempDir(), "d.qcow2")
	ok(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	require.Contains(t, ok(t, "check", path), "No errors were found")
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	be16 := func(b []byte, v uint16) { b[0], b[1] = byte(v>>8), byte(v) }
	// The first refcount block is the first cluster behind the L1 table; the last entry in use counts a
	// cluster at the end of the file.
	for _, c := range []struct {
		name   string
		change func(counts []byte)
		code   int
		out    string
	}{
		{"a cluster that nothing uses", func(c []byte) { be16(c[2*1000:], 1) }, 3, "1 leaked clusters"},
		{"a cluster that is not counted", func(c []byte) { be16(c[2*5:], 0) }, 2, "cannot be trusted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			if c.code == 3 {
				b = append(b, make([]byte, 1001*65536-len(b))...)
			}
			c.change(b[2*65536 : 3*65536])
			bad := filepath.Join(t.TempDir(), "bad.qcow2")
			f, err := os.Create(bad)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, f.Truncate(int64(len(b))))
			_, err = f.WriteAt(b[:len(good)], 0)
			require.NoError(t, err)
			r := call(t, nil, "check", bad)
			require.Equal(t, c.code, r.code, r.out+r.message)
			require.Contains(t, r.out, c.out)
			require.Contains(t, r.out, "problem: ")
		})
	}
	require.NoError(t, os.WriteFile(path, good[:70000], 0o600))
	r := call(t, nil, "check", path)
	require.Equal(t, 1, r.code)
}

// A lie in an image is one sentence and exit code 1, soon, and no target.
func TestHostile(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	dir := t.TempDir()
	for _, format := range []string{"qcow2", "vmdk", "vhd", "vhdx", "vdi"} {
		good := filepath.Join(dir, "good."+format)
		ok(t, "convert", "-f", "raw", "-O", format, raw, good)
		b, err := os.ReadFile(good)
		require.NoError(t, err)
		for name, bad := range map[string][]byte{
			"half":      b[:len(b)/2],
			"head":      b[:512],
			"scribbled": append(bytes.Clone(b[:512]), bytes.Repeat([]byte{0x7e}, len(b)-512)...),
			"mirrored":  bytes.Repeat(b[:512], 200),
		} {
			t.Run(format+" "+name, func(t *testing.T) {
				src, dst := filepath.Join(t.TempDir(), "bad"), filepath.Join(t.TempDir(), "dst")
				require.NoError(t, os.WriteFile(src, bad, 0o600))
				began := time.Now()
				r := call(t, nil, "convert", "-f", format, "-O", "raw", src, dst)
				require.Equal(t, 1, r.code)
				require.Contains(t, r.message, src+": "+format+": ")
				require.Less(t, time.Since(began), time.Minute)
				left, err := os.ReadDir(filepath.Dir(dst))
				require.NoError(t, err)
				require.Empty(t, left)
			})
		}
	}
}

// A fixed VHD whose guest writes the beginning of a qcow2 into its first sector is not read as one.
func TestGuestDoesNotChooseTheFormat(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "disk.raw")
	evil := filepath.Join(t.TempDir(), "evil.qcow2")
	ok(t, "convert", "-f", "raw", "-O", "qcow2", writeDisk(t, mib), evil)
	b, err := os.ReadFile(evil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(secret, append(b, make([]byte, 4*mib-len(b)%mib)...), 0o600))
	fixed := filepath.Join(t.TempDir(), "fixed.vhd")
	ok(t, "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed", secret, fixed)
	for _, args := range [][]string{{"info", fixed}, {"map", fixed}, {"digest", fixed}, {"convert", "-O", "raw", fixed, fixed + ".raw"}} {
		r := call(t, nil, args...)
		require.Equal(t, 1, r.code)
		require.Contains(t, r.message, "name the format with -f")
	}
	require.Contains(t, ok(t, "info", "-f", "vpc", fixed), "variant: fixed")
	require.Contains(t, ok(t, "compare", "-f", "raw", "-F", "vpc", secret, fixed), "identical")
}

// The package runs where nobody has heard of a daemon, and the program links neither the workflow
// engine nor a platform's SDK.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "hypersdk/cmd/hyperctl").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		require.NoError(t, err, string(exit.Stderr))
	}
	require.NoError(t, err)
	require.Contains(t, string(out), "hypersdk/cmd/hyperctl/image\n")
	require.NotContains(t, string(out), "go.temporal.io/")
	require.NotContains(t, string(out), "github.com/vmware/")
}
