package activities

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/formatstest"
)

func set(t *testing.T, ranges ...int64) (s cbt.Set) {
	t.Helper()
	for i := 0; i < len(ranges); i += 2 {
		require.NoError(t, s.Add(ranges[i]<<10, ranges[i+1]<<10))
	}
	return s
}

// Gaps are read over as far as all of them stay within a twelfth of what changed.
func TestMergedRanges(t *testing.T) {
	for _, c := range []struct {
		name         string
		wanted, want cbt.Set
	}{
		{"nothing", cbt.Set{}, cbt.Set{}},
		{"alone", set(t, 64, 64), set(t, 64, 64)},
		{"a gap too dear", set(t, 0, 64, 128, 64), set(t, 0, 64, 128, 64)},
		{"a small gap", set(t, 0, 1024, 1088, 1024), set(t, 0, 2112)},
		{"wide and small gaps", set(t, 0, 1024, 1088, 1024, 2368, 256), set(t, 0, 2112, 2368, 256)},
		{"all gaps", set(t, 0, 4096, 4352, 4096), set(t, 0, 8448)},
		{"gaps that are wider than any that is read over", set(t, 0, 8192, 8512, 8192), set(t, 0, 8192, 8512, 8192)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := merged(c.wanted)
			require.True(t, c.want.Equal(got), "%v", got)
			require.LessOrEqual(t, got.Bytes(), c.wanted.Bytes()+c.wanted.Bytes()/10)
		})
	}
}

// counted is a disk that counts the reads of it.
type counted struct {
	formats.Image
	mu    sync.Mutex
	reads []cbt.Range
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.reads = append(c.reads, cbt.Range{Off: off, Len: int64(len(p))})
	c.mu.Unlock()
	return c.Image.ReadAt(p, off)
}

func TestGatheredReads(t *testing.T) {
	const size = 64 * mib
	disk := formatstest.NewDisk(3, size)
	var wanted cbt.Set
	for off := int64(0); off < size; off += 640 << 10 { // gaps of 64 KiB in 576 KiB
		require.NoError(t, wanted.Add(off, min(576<<10, size-off)))
	}
	wanted = wanted.Subtract(set(t, 8<<10, 4<<10)) // and one of 4 MiB
	src := &counted{Image: disk}
	got := newScratch()
	_, err := formats.Copy(t.Context(), sink{got}, cbt.View(gather(src, wanted), wanted), formats.CopyOptions{Workers: 4})
	require.NoError(t, err)
	var read int64
	for _, r := range src.reads {
		read += r.Len
		require.Equal(t, r.Off/mergeWithin, (r.Off+r.Len-1)/mergeWithin, "a read lies within one window")
	}
	require.LessOrEqual(t, len(src.reads), int(size/mergeWithin)+2, "a window is read at once")
	require.LessOrEqual(t, read, wanted.Bytes()+wanted.Bytes()/10)
	for r := range wanted.All() {
		want, is := make([]byte, r.Len), make([]byte, r.Len)
		_, err := disk.ReadAt(want, r.Off)
		require.True(t, err == nil || errors.Is(err, io.EOF))
		_, _ = got.ReadAt(is, r.Off)
		require.Equal(t, want, is)
	}
}

// sink keeps what is written to it, in blocks of a cluster.
type sink struct{ *scratch }

func (sink) BlockSize() int64                             { return 64 << 10 }
func (sink) Close() error                                 { return nil }
func (sink) Commit(context.Context) error                 { return nil }
func (sink) Sync(context.Context) error                   { return nil }
func (sink) Checkpoint(int64) (formats.Checkpoint, error) { return formats.Checkpoint{}, nil }
func (s sink) WriteZeroes(off, n int64) error             { _, err := s.WriteAt(make([]byte, n), off); return err }

// A disk is read in full but for what nobody has written to.
func TestMappedDisk(t *testing.T) {
	m := mapped{formatstest.NewDisk(1, mib), set(t, 64, 64, 512, 256)}
	var got []formats.Extent
	for e, err := range m.Extents(t.Context(), 32<<10, 600<<10) {
		require.NoError(t, err)
		got = append(got, formats.Extent{Off: e.Off >> 10, Len: e.Len >> 10, Kind: e.Kind})
	}
	require.Equal(t, []formats.Extent{
		{Off: 32, Len: 32, Kind: formats.Zero}, {Off: 64, Len: 64, Kind: formats.Data}, {Off: 128, Len: 384, Kind: formats.Zero}, {Off: 512, Len: 120, Kind: formats.Data},
	}, got)
	for _, err := range m.Extents(t.Context(), mib, 1) {
		require.Error(t, err)
	}
}
