package cbt

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/raw"
)

const benchSize = 256 << 20

// longChain is a chain of a base and n deltas, each of 1 % of the disk in scattered runs of 64 KiB, and
// the disk at its newest point.
func longChain(b testing.TB, n int) (*Chain, memory) {
	c, _ := newChain(b, Options{})
	r := rand.New(rand.NewPCG(3, 3))
	data := make(memory, benchSize)
	for off := 0; off < len(data); off += len(noise) {
		copy(data[off:], noise)
	}
	add(b, c, "d", data, "0", nil)
	for i := range n {
		var s Set
		for range benchSize / 100 / trackGrain {
			off := r.Int64N(benchSize/trackGrain) * trackGrain
			copy(data[off:off+trackGrain], noise[r.IntN(1000):])
			require.NoError(b, s.Add(off, trackGrain))
		}
		add(b, c, "d", data, Point(fmt.Sprint(i+1)), &Changes{From: Point(fmt.Sprint(i)), To: Point(fmt.Sprint(i + 1)), By: Tracked, Ranges: s})
	}
	return c, data
}

// readAll reads a disk as a copy does: the map first, then data in windows.
func readAll(ctx context.Context, img formats.Image, buf []byte) error {
	for e, err := range formats.Merged(img.Extents(ctx, 0, img.Size())) {
		if err != nil {
			return err
		}
		for at := e.Off; at < e.End(); {
			n := min(int64(len(buf))-at%int64(len(buf)), e.End()-at)
			if err := readFull(img, buf[:n], at); err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}

// The newest of 30 deltas, beside a flat file of the same disk and the same disk as a chain of one.
func BenchmarkChain(b *testing.B) {
	c, data := longChain(b, 30)
	name := filepath.Join(quick(b), "flat")
	require.NoError(b, os.WriteFile(name, data, 0o600))
	f, err := os.Open(name)
	require.NoError(b, err)
	defer f.Close()
	flat, err := raw.Open(b.Context(), f, benchSize, formats.OpenOptions{})
	require.NoError(b, err)
	m := c.Manifest()
	newest, err := c.Open(b.Context(), m.Newest().Number, "d")
	require.NoError(b, err)
	defer newest.Close()
	base, err := c.Open(b.Context(), 1, "d")
	require.NoError(b, err)
	defer base.Close()
	for _, x := range []struct {
		name string
		img  formats.Image
	}{{"flat", flat}, {"base", base}, {"30 deltas", newest}} {
		b.Run(x.name, func(b *testing.B) {
			buf := make([]byte, 2<<20)
			b.SetBytes(benchSize)
			for b.Loop() {
				require.NoError(b, readAll(b.Context(), x.img, buf))
			}
		})
	}
}

// zeros is a disk that holds nothing.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }
func (zeros) Close() error  { return nil }

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (zeros) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		yield(formats.Extent{Off: off, Len: n, Kind: formats.Zero}, nil)
	}
}

// A point is begun with 100,000 scattered changes of a sparse disk of 64 GiB.
func BenchmarkBegin(b *testing.B) {
	const size = 64 << 30
	c, _ := newChain(b, Options{})
	add(b, c, "d", zeros(size), "0", nil)
	ranges := slices.Collect(scattered(100_000))
	b.ReportAllocs()
	for b.Loop() {
		s, err := Collect(slices.Values(ranges))
		require.NoError(b, err)
		a, err := c.Begin(b.Context(), NewPoint{Key: "k", Disks: []NewDisk{{Disk: "d", Size: size, ChangeID: "1",
			Changes: &Changes{From: "0", To: "1", By: Tracked, Ranges: s}}}})
		require.NoError(b, err)
		require.False(b, a.Plans()[0].Full)
		require.NoError(b, a.Close())
	}
}
