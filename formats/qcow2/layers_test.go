package qcow2_test

import (
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

// countedReads counts the reads of all files of a chain.
type countedReads struct {
	io.ReaderAt
	n *atomic.Int64
}

func (c countedReads) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(1)
	return c.ReaderAt.ReadAt(p, off)
}

// The tables of as many files as a chain may have stay in memory while a stretch of the disk is read: who
// turns from file to file finds them there.
func TestALongChainKeepsItsTables(t *testing.T) {
	const size, stretch, files = 1 << 40, 64 << 20, 150
	var (
		layers qcow2.Layers
		images []*qcow2.Image
		reads  atomic.Int64
	)
	for i := range int64(files) {
		f := formatstest.NewMemFile()
		w := create(t, f, size, formats.CreateOptions{Backing: "base.qcow2", BackingFmt: "qcow2"}, formats.Checkpoint{})
		_, err := w.WriteAt(make([]byte, 64<<10), i*(64<<10))
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		img, err := layers.Open(t.Context(), countedReads{f, &reads}, f.Size())
		require.NoError(t, err)
		images = append(images, img)
	}
	walk := func() int64 {
		before := reads.Load()
		for _, img := range images {
			var held int64
			for e, err := range img.Extents(t.Context(), 0, stretch) {
				require.NoError(t, err)
				if e.Kind != formats.Absent {
					held += e.Len
				}
			}
			require.EqualValues(t, 64<<10, held)
		}
		return reads.Load() - before
	}
	require.EqualValues(t, files, walk(), "a page of each")
	require.Zero(t, walk(), "all of them are kept")
}
