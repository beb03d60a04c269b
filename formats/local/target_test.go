package local_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats/local"
)

// What is written through a target is in the file, whether anything waits for the disk or not.
func TestTarget(t *testing.T) {
	for _, unsafe := range []bool{false, true} {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		require.NoError(t, err)
		w := local.NewTarget(f, unsafe)
		piece := bytes.Repeat([]byte{7}, 10<<20)
		for i := range int64(8) {
			_, err := w.WriteAt(piece, i*int64(len(piece)))
			require.NoError(t, err)
		}
		require.NoError(t, w.Sync())
		w.Wait()
		require.NoError(t, w.Close())
		if !unsafe {
			require.ErrorIs(t, w.Sync(), os.ErrClosed, "a sync that did not happen is no sync")
		}
		got, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		require.True(t, bytes.Equal(bytes.Repeat(piece, 8), got))
	}
}

// What was dropped from memory is read from the disk, and is the same.
func TestDropCached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("content"), 100_000), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, local.DropCached(f))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(bytes.Repeat([]byte("content"), 100_000), got))
	require.NoError(t, f.Close())
	require.ErrorIs(t, local.DropCached(f), os.ErrClosed)
}
