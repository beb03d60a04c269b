package formats_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
)

// BenchmarkCopy copies a raw file of 512 MiB, a third of it zeros, in the page cache.
func BenchmarkCopy(b *testing.B) {
	const size = 512 << 20
	dir := b.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	require.NoError(b, err)
	defer src.Close()
	for off := int64(0); off < size; off += 64 << 20 {
		_, err := src.WriteAt(content(uint64(off), 64<<20), off)
		require.NoError(b, err)
	}
	for _, c := range []struct {
		name   string
		format formats.Format
		opt    formats.CreateOptions
		digest bool
	}{
		{"raw", raw.Format(), formats.CreateOptions{}, false},
		{"raw digested", raw.Format(), formats.CreateOptions{}, true},
		{"qcow2 digested", qcow2.Format(), formats.CreateOptions{}, true},
		{"qcow2 zlib digested", qcow2.Format(), formats.CreateOptions{Compression: "zlib"}, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				img, err := raw.Open(b.Context(), src, size, formats.OpenOptions{})
				require.NoError(b, err)
				f, err := os.Create(filepath.Join(dir, "dst"))
				require.NoError(b, err)
				w, err := c.format.Create(b.Context(), f, size, c.opt, formats.Checkpoint{})
				require.NoError(b, err)
				opt := formats.CopyOptions{Workers: 4, Durable: func(formats.Checkpoint) error { return nil }}
				if c.digest {
					opt.Digests, err = formats.CreateDigests(&memFile{}, size)
					require.NoError(b, err)
				}
				_, err = formats.Copy(b.Context(), w, img, opt)
				require.NoError(b, err)
				require.NoError(b, w.Commit(b.Context()))
				require.NoError(b, f.Close())
			}
		})
	}
}
