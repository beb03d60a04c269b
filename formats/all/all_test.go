package all_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/formatstest"
)

func TestNames(t *testing.T) {
	seen := make(map[string]string)
	for _, f := range all.Formats() {
		require.NotNil(t, f.Open, f.Name)
		require.True(t, strings.HasPrefix(f.Ext, "."), f.Name)
		for _, n := range append([]string{f.Name}, f.Alias...) {
			require.Empty(t, seen[n], "%q is %s and %s", n, seen[n], f.Name)
			seen[n] = f.Name
			got, err := all.ByName(strings.ToUpper(n))
			require.NoError(t, err)
			require.Equal(t, f.Name, got.Name)
		}
	}
	_, err := all.ByName("iso")
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "qcow2")
}

// What a format writes is recognised as that format, and opened.
func TestProbe(t *testing.T) {
	d := formatstest.NewDisk(1, 2<<20)
	for _, f := range all.Formats() {
		if f.Probe == nil || f.Create == nil {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			file := formatstest.Harness{Format: f}.CreateDisk(t, d).(*formatstest.MemFile)
			got, err := all.Probe(file, file.Size())
			require.NoError(t, err)
			require.Equal(t, f.Name, got.Name)
			img, err := all.Open(t.Context(), file, file.Size(), formats.OpenOptions{})
			require.NoError(t, err)
			defer img.Close()
			formatstest.CheckImage(t, img, d, false)
		})
	}
}

func TestRawIsNeverProbed(t *testing.T) {
	for _, b := range [][]byte{{}, {'Q'}, make([]byte, 4096), bytes.Repeat([]byte("plain text\n"), 100)} {
		_, err := all.Probe(bytes.NewReader(b), int64(len(b)))
		require.ErrorIs(t, err, formats.ErrFormat)
		_, err = all.Open(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
		require.ErrorIs(t, err, formats.ErrFormat)
	}
	_, err := all.Probe(bytes.NewReader(nil), 4096)
	require.ErrorIs(t, err, formats.ErrCorrupt)
}
