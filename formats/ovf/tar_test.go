package ovf

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHeadersAreUstarUpTo8GiBAndBinaryAbove reads headers as the standard library does.
func TestHeadersAreUstarUpTo8GiBAndBinaryAbove(t *testing.T) {
	when := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	for _, size := range []int64{0, 1, 1<<33 - 1, 1 << 33, 62 << 40} {
		b, err := ustar("disk.vmdk", size, when)
		require.NoError(t, err)
		h, err := tar.NewReader(bytes.NewReader(b)).Next()
		require.NoError(t, err)
		require.Equal(t, "disk.vmdk", h.Name)
		require.Equal(t, size, h.Size)
		require.True(t, when.Equal(h.ModTime))
		require.EqualValues(t, 0o644, h.Mode)
		require.Equal(t, size < octalSize, h.Format == tar.FormatUSTAR, "the standard library has no name for the other")
	}
	b, err := ustar("a", 0, time.Time{})
	require.NoError(t, err)
	h, err := tar.NewReader(bytes.NewReader(b)).Next()
	require.NoError(t, err)
	require.Zero(t, h.ModTime.Unix())
	require.Equal(t, tar.FormatUSTAR, h.Format)
}
