package ovf_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
)

// known is a package whose files have known contents.
func known() (ovf.Content, map[string]string) {
	all := map[string]string{"a.vmdk": "the bytes of a disk", "b.vmdk": string(bytes.Repeat([]byte("b"), 3000)), "c.vmdk": ""}
	c := ovf.Content{Name: "m", Envelope: machine(
		ovf.File{ID: "a", Href: "a.vmdk", Size: int64(len(all["a.vmdk"]))}, ovf.File{ID: "b", Href: "b.vmdk", Size: 3000}, ovf.File{ID: "c", Href: "c.vmdk"})}
	c.Write = func(_ context.Context, f ovf.File, w io.Writer) error {
		_, err := io.WriteString(w, all[f.Href])
		return err
	}
	return c, all
}

func TestLayoutTakesFilesInAnyOrder(t *testing.T) {
	for _, signed := range []bool{false, true} {
		c, all := known()
		if signed {
			c.Sign = signer(t)
		}
		l, err := ovf.NewLayout(c)
		require.NoError(t, err)
		f, err := os.Create(filepath.Join(t.TempDir(), "m.ova"))
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, l.Begin(f))
		places, err := ovf.Places(t.Context(), f, l.Size())
		require.NoError(t, err)
		first := 2
		if signed {
			first = 3
		}
		require.Len(t, places, first+3)
		var sums ovf.Manifest
		for _, file := range c.Envelope.Files {
			sum := sha256.Sum256([]byte(all[file.Href]))
			sums = append(sums, ovf.Sum{Name: file.Href, Hash: crypto.SHA256, Sum: sum[:]})
		}
		for i := len(places) - 1; i >= first; i-- {
			require.EqualValues(t, len(all[places[i].Name]), places[i].Size)
			_, err := f.WriteAt([]byte(all[places[i].Name]), places[i].Off)
			require.NoError(t, err)
		}
		b, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		_, err = drain(t, bytes.NewReader(b))
		require.ErrorIs(t, err, formats.ErrCorrupt, "without its sums it is no package")

		for range 2 { // a seal that was cut off is put on again
			require.NoError(t, ovf.Seal(t.Context(), f, l.Size(), sums, c.Sign))
		}
		b, err = os.ReadFile(f.Name())
		require.NoError(t, err)
		got, err := drain(t, bytes.NewReader(b))
		require.NoError(t, err)
		require.Equal(t, all, got)
		require.ErrorIs(t, ovf.Seal(t.Context(), f, l.Size(), sums[:2], c.Sign), formats.ErrCorrupt)
		require.Error(t, ovf.Seal(t.Context(), f, l.Size(), nil, c.Sign))
	}
}

func TestLayoutRefuses(t *testing.T) {
	c, _ := known()
	c.Envelope.Files[0].Size = -1
	_, err := ovf.NewLayout(c)
	require.Error(t, err)
	c, _ = known()
	c.Envelope.Files[0].Href = string(bytes.Repeat([]byte("n"), 101))
	l, err := ovf.NewLayout(c)
	require.NoError(t, err)
	f, err := os.Create(filepath.Join(t.TempDir(), "m.ova"))
	require.NoError(t, err)
	defer f.Close()
	require.ErrorContains(t, l.Begin(f), "100 bytes")
}

func TestWriteOnce(t *testing.T) {
	for _, signed := range []bool{false, true} {
		c, all := known()
		if signed {
			c.Sign = signer(t)
		}
		written := 0
		write := c.Write
		c.Write = func(ctx context.Context, f ovf.File, w io.Writer) error { written++; return write(ctx, f, w) }
		var b bytes.Buffer
		require.NoError(t, ovf.WriteOnce(t.Context(), &b, c))
		require.Equal(t, 3, written, "every file once")
		got, err := drain(t, bytes.NewReader(b.Bytes()))
		require.NoError(t, err)
		require.Equal(t, all, got)
		got, err = indexed(t, b.Bytes())
		require.NoError(t, err)
		require.Equal(t, all, got)
	}
	c, _ := known()
	c.Envelope.Files[1].Size++
	require.ErrorContains(t, ovf.WriteOnce(t.Context(), io.Discard, c), "3000 bytes, not the 3001")
}
