package cbt

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// What a chain is made of can be told while somebody works on it.
func TestReadManifest(t *testing.T) {
	dir := t.TempDir()
	c, err := Create(t.Context(), dir, VM{ID: "vm-1", Name: "web-01"}, Options{})
	require.NoError(t, err)
	defer c.Close() // it is held alone
	m, err := ReadManifest(t.Context(), dir, Options{})
	require.NoError(t, err)
	require.Equal(t, c.Manifest(), m)
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close()
	again, err := ReadManifest(t.Context(), dir, Options{Root: root})
	require.NoError(t, err)
	require.Equal(t, m.ID, again.ID)

	_, err = ReadManifest(t.Context(), t.TempDir(), Options{})
	require.ErrorIs(t, err, ErrNotFound)
	_, err = ReadManifest(t.Context(), filepath.Join(dir, "none"), Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, manifestName), []byte("no JSON"), 0o600))
	_, err = ReadManifest(t.Context(), dir, Options{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
}
