package inflate_test

import (
	"bytes"
	"compress/flate"
	"hash/adler32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	kflate "github.com/klauspost/compress/flate"
	"github.com/stretchr/testify/require"

	"hypersdk/formats/inflate"
)

const grain = 64 << 10

// corpus is up to n grains of a disk: of the raw image that INFLATE_IMAGE names, else of the files of
// the Go distribution, programs and sources in turn.
func corpus(tb testing.TB, n int) [][]byte {
	var blocks [][]byte
	take := func(path string, stride int64) {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		for off := int64(0); len(blocks) < n; off += stride {
			b := make([]byte, grain)
			if _, err := f.ReadAt(b, off); err != nil {
				return
			}
			if len(bytes.Trim(b, "\x00")) > 0 {
				blocks = append(blocks, b)
			}
		}
	}
	if image := os.Getenv("INFLATE_IMAGE"); image != "" {
		st, err := os.Stat(image)
		require.NoError(tb, err)
		take(image, max(st.Size()/int64(2*n)/grain, 1)*grain)
		return blocks
	}
	root, err := exec.CommandContext(tb.Context(), "go", "env", "GOROOT").Output()
	require.NoError(tb, err)
	_ = filepath.WalkDir(strings.TrimSpace(string(root)), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && len(blocks) < n {
			take(path, 8*grain)
		}
		return nil
	})
	return blocks
}

func deflated(tb testing.TB, blocks [][]byte, level int) [][]byte {
	packed := make([][]byte, len(blocks))
	w, err := flate.NewWriter(nil, level)
	require.NoError(tb, err)
	for i, b := range blocks {
		var out bytes.Buffer
		w.Reset(&out)
		_, err := w.Write(b)
		require.NoError(tb, err)
		require.NoError(tb, w.Close())
		packed[i] = out.Bytes()
	}
	return packed
}

// cpu is the time that this process had a core: on a busy machine the time on the wall says nothing.
func cpu(tb testing.TB) time.Duration {
	var u syscall.Rusage
	require.NoError(tb, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkInflate measures the plain bytes a second of one core.
func BenchmarkInflate(b *testing.B) {
	blocks := corpus(b, 512)
	packed := deflated(b, blocks, 6)
	out := make([]byte, grain)
	run := func(name string, f func(src []byte) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			began, i := cpu(b), 0
			for ; b.Loop(); i++ {
				if err := f(packed[i%len(packed)]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(i)*grain/1e6/(cpu(b)-began).Seconds(), "MB/cpu-s")
		})
	}
	var d inflate.Decoder
	run("inflate", func(src []byte) error {
		_, _, err := d.Inflate(out, src)
		return err
	})
	in := bytes.NewReader(nil)
	k := kflate.NewReader(in)
	run("klauspost", func(src []byte) error {
		in.Reset(src)
		_ = k.(kflate.Resetter).Reset(in, nil)
		_, err := io.ReadFull(k, out)
		return err
	})
	g := flate.NewReader(in)
	run("stdlib", func(src []byte) error {
		in.Reset(src)
		_ = g.(flate.Resetter).Reset(in, nil)
		_, err := io.ReadFull(g, out)
		return err
	})
}

func BenchmarkAdler32(b *testing.B) {
	block := bytes.Repeat([]byte("sixteen bytes... "), grain/16)[:grain]
	for name, f := range map[string]func([]byte) uint32{"inflate": inflate.Adler32, "stdlib": adler32.Checksum} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(grain)
			for b.Loop() {
				f(block)
			}
		})
	}
}
