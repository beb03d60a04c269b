package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/cmd/hyperctl/image"
	"hypersdk/formats/formatstest"
)

// layout is a way to store a disk.
type layout struct {
	name, format, qemu string // qemu: what qemu-img calls the format
	flags              []string
	streams            bool // it can be written front to back
}

func layouts() []layout {
	return []layout{
		{name: "raw", format: "raw", qemu: "raw", streams: true},
		{name: "qcow2", format: "qcow2", qemu: "qcow2"},
		{name: "qcow2-zlib", format: "qcow2", qemu: "qcow2", flags: []string{"-c", "-o", "compression_level=1"}},
		{name: "qcow2-zstd", format: "qcow2", qemu: "qcow2", flags: []string{"-c", "-o", "compression_type=zstd"}},
		{name: "qcow2-metadata", format: "qcow2", qemu: "qcow2", flags: []string{"-o", "preallocation=metadata,cluster_size=4k"}},
		{name: "vmdk-sparse", format: "vmdk", qemu: "vmdk", flags: []string{"-o", "adapter_type=lsilogic"}},
		{name: "vmdk-stream", format: "vmdk", qemu: "vmdk", flags: []string{"-o", "subformat=streamOptimized", "-o", "compression_level=1"}, streams: true},
		{name: "vhd-dynamic", format: "vpc", qemu: "vpc"},
		{name: "vhd-fixed", format: "vhd", qemu: "vpc", flags: []string{"-o", "subformat=fixed"}},
		{name: "vhdx-dynamic", format: "vhdx", qemu: "vhdx", flags: []string{"-o", "cluster_size=1M"}},
		{name: "vhdx-fixed", format: "vhdx", qemu: "vhdx", flags: []string{"-o", "subformat=fixed"}},
		{name: "vdi-dynamic", format: "vdi", qemu: "vdi"},
		{name: "vdi-static", format: "vdi", qemu: "vdi", flags: []string{"-o", "subformat=static"}},
	}
}

func (l layout) convert(src, srcFormat, dst string, more ...string) []string {
	args := append([]string{"convert", "-f", srcFormat, "-O", l.format}, l.flags...)
	return append(append(args, more...), src, dst)
}

func digestOf(t *testing.T, format, path string) string {
	t.Helper()
	sum, _, _ := strings.Cut(ok(t, "digest", "-f", format, path), " ")
	return sum
}

// Whatever is read and whatever is written, the disk stays the same, and qemu-img agrees.
func TestEveryPair(t *testing.T) {
	raw := writeDisk(t, 24*mib)
	want := digestOf(t, "raw", raw)
	dir := t.TempDir()
	for _, from := range layouts() {
		src := filepath.Join(dir, from.name)
		ok(t, from.convert(raw, "raw", src)...)
		for _, to := range layouts() {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				t.Parallel()
				dst := filepath.Join(t.TempDir(), "dst")
				var res struct {
					Digest string `json:"digest"`
				}
				require.NoError(t, json.Unmarshal([]byte(ok(t, to.convert(src, from.format, dst, "--json")...)), &res))
				require.Equal(t, want, res.Digest, "as it is copied")
				require.Equal(t, want, digestOf(t, to.format, dst), "as it is read again")
				if to.format != "raw" {
					ok(t, "check", "-f", to.format, dst)
				}
				formatstest.QemuCheck(t, to.qemu, dst)
				formatstest.QemuCompare(t, "raw", raw, to.qemu, dst)
				left, err := os.ReadDir(filepath.Dir(dst))
				require.NoError(t, err)
				require.Len(t, left, 1, "nothing but the target is left")
			})
		}
	}
}

// A disk that goes through every layout comes back as it was, byte for byte.
func TestRoundTrip(t *testing.T) {
	raw := writeDisk(t, 24*mib)
	dir := t.TempDir()
	var files []string
	for round := range 2 {
		src, format := raw, "raw"
		for _, l := range layouts() {
			dst := filepath.Join(dir, l.name+strings.Repeat("'", round))
			ok(t, l.convert(src, format, dst)...)
			files, src, format = append(files, dst), dst, l.format
		}
		back := filepath.Join(dir, "back"+strings.Repeat("'", round))
		ok(t, "convert", "-f", format, "-O", "raw", src, back)
		requireSame(t, raw, back)
	}
	for i, n := 0, len(files)/2; i < n; i++ {
		requireSame(t, files[i], files[n+i])
	}
}

func requireSame(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x, y), "%s and %s are not the same bytes", a, b)
}

// What qemu-img writes is read as qemu-img reads it.
func TestReadsQemu(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	for name, args := range map[string][]string{
		"qcow2": {"qcow2"}, "qcow2 zlib": {"qcow2", "-c"}, "qcow2 zstd": {"qcow2", "-c", "-o", "compression_type=zstd"},
		"vmdk": {"vmdk"}, "vmdk stream": {"vmdk", "-o", "subformat=streamOptimized"},
		"vpc": {"vpc", "-o", "force_size=on"}, "vhdx": {"vhdx"}, "vdi": {"vdi"},
	} {
		t.Run(name, func(t *testing.T) {
			src := filepath.Join(t.TempDir(), "src")
			formatstest.QemuConvert(t, "raw", raw, args[0], src, args[1:]...)
			require.Contains(t, ok(t, "compare", "-F", "raw", src, raw), "identical")
			ok(t, "check", src)
			dst := filepath.Join(t.TempDir(), "dst")
			ok(t, "convert", "-O", "raw", src, dst)
			requireSame(t, raw, dst)
		})
	}
}

// A stream is read from a pipe and written into one.
func TestPipes(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	content, err := os.ReadFile(raw)
	require.NoError(t, err)
	for _, l := range layouts() {
		if !l.streams {
			continue
		}
		r := call(t, nil, l.convert(raw, "raw", "-")...)
		require.Zero(t, r.code, r.message)
		if l.format == "raw" {
			require.True(t, bytes.Equal(content, []byte(r.out)))
			continue
		}
		for _, to := range layouts() {
			t.Run(l.name+" to "+to.name, func(t *testing.T) {
				dst := filepath.Join(t.TempDir(), "dst")
				got := call(t, strings.NewReader(r.out), to.convert("-", l.format, dst)...)
				require.Zero(t, got.code, got.message)
				require.Contains(t, ok(t, "compare", "-s", "-f", "raw", "-F", to.format, raw, dst), "identical")
			})
		}
		t.Run(l.name+" cut short", func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "dst")
			got := call(t, strings.NewReader(r.out[:len(r.out)-1024]), "convert", "-f", "vmdk", "-O", "raw", "-", dst)
			require.Equal(t, 1, got.code)
			left, err := os.ReadDir(filepath.Dir(dst))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// A disk that is no whole number of sectors gets zeros up to the next one where the target counts in them.
func TestOddSizes(t *testing.T) {
	for _, size := range []int64{1, 511, 513, 65537, mib + 3, 3*mib - 1} {
		raw := writeDisk(t, max(size, 4))
		require.NoError(t, os.Truncate(raw, size))
		for _, l := range layouts() {
			dst := filepath.Join(t.TempDir(), l.name)
			ok(t, l.convert(raw, "raw", dst)...)
			require.Contains(t, ok(t, "compare", "-f", "raw", "-F", l.format, raw, dst), "identical", l.name)
			back := filepath.Join(t.TempDir(), "back")
			ok(t, "convert", "-f", l.format, "-O", "raw", dst, back)
			st, err := os.Stat(back)
			require.NoError(t, err)
			want := size
			if l.format != "raw" {
				want = (size + 511) / 512 * 512
			}
			require.Equal(t, want, st.Size(), "%s of %d bytes", l.name, size)
		}
	}
}

// Nothing is replaced unasked, and what is replaced stays until the new one is whole.
func TestForce(t *testing.T) {
	raw := writeDisk(t, 2*mib)
	dst := filepath.Join(t.TempDir(), "dst")
	require.NoError(t, os.WriteFile(dst, []byte("precious"), 0o600))
	r := call(t, nil, "convert", "-f", "raw", "-O", "qcow2", raw, dst)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, "--force")
	b, err := os.ReadFile(dst)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
	require.Equal(t, 1, call(t, nil, "convert", "--force", "-O", "raw", dst, dst+"2").code)
	ok(t, "convert", "--force", "-f", "raw", "-O", "qcow2", raw, dst)
	require.Contains(t, ok(t, "compare", "-F", "raw", dst, raw), "identical")
	r = call(t, nil, "convert", "--force", "-f", "raw", "-O", "qcow2", raw, raw)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, "the source itself")
}

// An overlay and its backing file are the disk again, where the folder is allowed; elsewhere nothing
// beside the image is opened.
func TestBeside(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "in"), 0o700))
	at := func(name string) string { return filepath.Join(dir, name) }
	ok(t, "convert", "-f", "raw", "-O", "qcow2", raw, at("in/base.qcow2"))
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", at("in/top.qcow2"))
	b := bytes.Repeat([]byte{7}, mib)
	require.NoError(t, os.WriteFile(at("piece"), b, 0o600))
	require.NoError(t, os.WriteFile(at("secret"), b, 0o600))
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-u", "-b", "../secret", "-F", "raw", at("in/up.qcow2"), "1M")
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-u", "-b", at("secret"), "-F", "raw", at("in/absolute.qcow2"), "1M")
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-u", "-b", "link", "-F", "raw", at("in/linked.qcow2"), "1M")
	require.NoError(t, os.Symlink("../secret", at("in/link")))
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", "-u", "-b", "loop.qcow2", "-F", "qcow2", at("in/loop.qcow2"), "1M")

	require.Contains(t, ok(t, "compare", "-F", "raw", "--allow-dir", at("in"), at("in/top.qcow2"), raw), "identical")
	for _, c := range []struct {
		image, allow, message string
	}{
		{"top", "", "not allowed"},
		{"up", at("in"), "outside of the folder allowed"},
		{"absolute", at("in"), "outside of the folder allowed"},
		{"linked", at("in"), "outside of the folder allowed"},
		{"loop", at("in"), "behind itself"},
	} {
		t.Run(c.image, func(t *testing.T) {
			args := []string{"convert", "-O", "raw", at("in/" + c.image + ".qcow2"), filepath.Join(t.TempDir(), "dst")}
			if c.allow != "" {
				args = append(args, "--allow-dir", c.allow)
			}
			r := call(t, nil, args...)
			require.Equal(t, 1, r.code)
			require.Contains(t, r.message, c.message)
		})
	}
	for _, name := range []string{"up", "absolute", "linked"} { // with the folder above allowed they are read
		require.Contains(t, ok(t, "compare", "-F", "raw", "--allow-dir", dir, at("in/"+name+".qcow2"), at("secret")), "identical")
	}
	// What an overlay holds itself goes into another overlay; with its base it is the whole disk.
	ok(t, "convert", "-O", "qcow2", "-c", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", at("in/top.qcow2"), at("in/top2.qcow2"))
	st, err := os.Stat(at("in/top2.qcow2"))
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(mib))
	require.Contains(t, ok(t, "compare", "-F", "raw", "--allow-dir", at("in"), at("in/top2.qcow2"), raw), "identical")
	formatstest.QemuCheck(t, "qcow2", at("in/top2.qcow2"))
}

// A rotten block that is moved fails, unless it was asked not to be looked at.
func TestNoVerify(t *testing.T) {
	raw := writeDisk(t, 20*mib)
	src := filepath.Join(t.TempDir(), "src.vmdk")
	ok(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, src)
	b, err := os.ReadFile(src)
	require.NoError(t, err)
	b[len(b)/2] ^= 0xff // within a grain
	require.NoError(t, os.WriteFile(src, b, 0o600))
	dst := filepath.Join(t.TempDir(), "dst")
	r := call(t, nil, "convert", "-O", "qcow2", "-c", src, dst)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.message, src)
	require.NoFileExists(t, dst)
	ok(t, "convert", "--no-verify", "-O", "qcow2", "-c", src, dst)
}

// An interrupted conversion keeps what it has, says where it stopped, and goes on there; the bytes
// are those of one that was never interrupted.
func TestInterrupt(t *testing.T) {
	raw := writeDisk(t, 128*mib)
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			whole, dst := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "dst")
			ok(t, l.convert(raw, "raw", whole)...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := image.Command()
			said := &watcher{line: regexp.MustCompile(`[3-6]\d\.\d %`), seen: cancel}
			c.SetErr(said)
			c.SetOut(io.Discard)
			c.SetArgs(l.convert(raw, "raw", dst, "-p"))
			err := c.ExecuteContext(ctx)
			var exit *image.ExitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 130, exit.Code)
			require.Contains(t, said.String(), "interrupted at ")
			require.NoFileExists(t, dst)

			r := call(t, nil, l.convert(raw, "raw", dst)...)
			require.Zero(t, r.code, r.message)
			require.Contains(t, r.err, "going on at ")
			requireSame(t, whole, dst)
		})
	}
}

// watcher calls seen when a line matches.
type watcher struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	line *regexp.Regexp
	seen func()
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.line.Match(p) {
		w.seen()
	}
	return w.buf.Write(p)
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// Killed in the middle, the built program leaves no file under the final name, goes on where it was
// when it is started again, and the result is that of one run. With another source it starts anew.
func TestKill(t *testing.T) {
	raw := writeDisk(t, 256*mib)
	bin := filepath.Join(t.TempDir(), "hyperctl")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "hypersdk/cmd/hyperctl").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, l := range layouts() {
		if l.name != "qcow2-zlib" && l.name != "vmdk-stream" {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			whole, dst := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "dst")
			ok(t, l.convert(raw, "raw", whole)...)
			kill := func() {
				cmd := exec.CommandContext(t.Context(), bin, append([]string{"image"}, l.convert(raw, "raw", dst, "-m", "1")...)...)
				require.NoError(t, cmd.Start())
				waitForCheckpoint(t, dst)
				require.NoError(t, cmd.Process.Kill())
				require.ErrorContains(t, cmd.Wait(), "killed", "it was over before it was killed")
				require.NoFileExists(t, dst)
			}
			kill()
			resumed, err := exec.CommandContext(t.Context(), bin, append([]string{"image"}, l.convert(raw, "raw", dst)...)...).CombinedOutput()
			require.NoError(t, err, string(resumed))
			require.Regexp(t, `^\S+/dst: going on at \d+ MiB\n$`, string(resumed))
			requireSame(t, whole, dst)

			require.NoError(t, os.Remove(dst))
			kill()
			later := time.Now().Add(time.Minute)
			require.NoError(t, os.Chtimes(raw, later, later))
			r := call(t, nil, l.convert(raw, "raw", dst)...)
			require.Zero(t, r.code, r.message)
			require.Contains(t, r.err, "starting anew")
			requireSame(t, whole, dst)
		})
	}
}

// waitForCheckpoint waits until something of a target is durable.
func waitForCheckpoint(t *testing.T, dst string) {
	t.Helper()
	journal := filepath.Join(filepath.Dir(dst), "."+filepath.Base(dst)+".part.journal")
	durable := regexp.MustCompile(`"off":[1-9]`)
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(journal)
		return err == nil && durable.Match(b)
	}, time.Minute, 2*time.Millisecond)
}

// Two conversions into one target do not mix.
func TestLock(t *testing.T) {
	raw := writeDisk(t, 64*mib)
	dst := filepath.Join(t.TempDir(), "dst")
	args := []string{"convert", "-f", "raw", "-O", "qcow2", "-c", "-p", raw, dst}
	c := image.Command()
	var once sync.Once
	var second result
	c.SetErr(&watcher{line: regexp.MustCompile(`%`), seen: func() { once.Do(func() { second = call(t, nil, args...) }) }})
	c.SetOut(io.Discard)
	c.SetArgs(args)
	require.NoError(t, c.ExecuteContext(t.Context()))
	require.Equal(t, 1, second.code)
	require.Contains(t, second.message, "another conversion is writing it")
	require.Contains(t, ok(t, "compare", "-F", "raw", dst, raw), "identical")
}
