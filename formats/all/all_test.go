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

// A guest that writes the beginning of another format into its first sector, or the end of another
// into its last, does not choose how its disk is read: nobody guesses.
func TestProbeRefusesTwoFaces(t *testing.T) {
	heads := map[string][]byte{
		"qcow2": []byte("QFI\xfb\x00\x00\x00\x03"),
		"vmdk":  []byte("KDMV\x01\x00\x00\x00"),
		"text":  []byte("# Disk DescriptorFile\nversion=1\n"),
		"vhdx":  []byte("vhdxfile"),
		"vdi":   append(make([]byte, 64), 0x7f, 0x10, 0xda, 0xbe),
	}
	for name, head := range heads {
		t.Run(name, func(t *testing.T) {
			b := make([]byte, 1<<20+512)
			copy(b, head)
			f, err := all.Probe(bytes.NewReader(b[:1<<20]), 1<<20)
			require.NoError(t, err, "without the footer it is what its head says")
			copy(b[1<<20:], "conectix")
			got, err := all.Probe(bytes.NewReader(b), int64(len(b)))
			require.ErrorIs(t, err, formats.ErrFormat)
			require.ErrorContains(t, err, "like "+f.Name+" and like vhd, name the format with -f")
			require.Empty(t, got.Name)
		})
	}
}

// Every format says how a disk is stored, and finds nothing wrong with what it writes.
func TestInfoAndCheck(t *testing.T) {
	d := formatstest.NewDisk(1, 2<<20)
	for _, f := range all.Formats() {
		t.Run(f.Name, func(t *testing.T) {
			file := formatstest.Harness{Format: f}.CreateDisk(t, d).(*formatstest.MemFile)
			i, err := f.Info(t.Context(), file, file.Size(), formats.OpenOptions{})
			require.NoError(t, err)
			require.Equal(t, f.Name, i.Format)
			require.EqualValues(t, 2<<20, i.VirtualSize)
			if f.Check == nil {
				require.Equal(t, "raw", f.Name, "only raw has nothing to check")
				return
			}
			rep, err := f.Check(t.Context(), file, file.Size(), formats.OpenOptions{})
			require.NoError(t, err)
			require.Empty(t, rep.Problems)
			require.Zero(t, rep.Corruptions)
			require.Zero(t, rep.Leaks)
			require.Positive(t, rep.Allocated+rep.Blocks)
		})
	}
}
