package blocks_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		relative, absolute, want []string
	}{
		{nil, nil, nil},
		{[]string{""}, []string{""}, nil},
		{[]string{`.\base.vhd`}, nil, []string{"base.vhd"}},
		{[]string{`..\disks\.\base.vhd`}, nil, []string{"../disks/base.vhd", "base.vhd"}},
		{[]string{"", "base.vhd"}, []string{`C:\disks\base.vhd`}, []string{"base.vhd"}},
		{[]string{`C:\disks\base.vhd`}, []string{`\\server\share\old name.vhd`}, []string{"base.vhd", "old name.vhd"}},
		{[]string{`\disks\base.vhd`}, nil, []string{"base.vhd"}},
		{nil, []string{`\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\base.vhdx`}, []string{"base.vhdx"}},
		{[]string{"/etc/passwd"}, nil, []string{"passwd"}},
		{[]string{`..`, `.`, `\`}, []string{"/"}, []string{}},
	} {
		require.ElementsMatch(t, c.want, blocks.Names(c.relative, c.absolute), "%q %q", c.relative, c.absolute)
	}
}

// opened counts what is open.
type opened struct{ n int }

func (o *opened) beside(name string) (formats.Opened, error) {
	if name == "missing" {
		return formats.Opened{}, fs.ErrNotExist
	}
	o.n++
	return formats.Opened{Closer: o, Name: name}, nil
}

func (o *opened) Close() error { o.n--; return nil }

func TestNothingStaysOpenButTheParent(t *testing.T) {
	bad := errors.New("bad")
	o := &opened{}
	search := blocks.Search{Format: "vhd", Names: []string{"missing", "stranger", "bad", "good"}, What: "id 1",
		Open: func(f formats.Opened, _ formats.OpenOptions, above []string) (formats.Image, error) {
			require.Equal(t, []string{"top", f.Name}, above)
			switch f.Name {
			case "stranger":
				return nil, fmt.Errorf("its id is 2: %w", blocks.ErrStranger)
			case "bad":
				return nil, bad
			}
			return blocks.NewImage(t.Context(), blocks.Disk{}), nil
		}}
	p, err := blocks.FindParent(search, formats.OpenOptions{Beside: o.beside}, []string{"top"})
	require.NoError(t, err)
	require.Equal(t, "good", p.Name)
	require.Equal(t, 1, o.n)
	require.NoError(t, p.Close())
	require.Zero(t, o.n)

	search.Names = []string{"missing", "bad", "stranger"}
	_, err = blocks.FindParent(search, formats.OpenOptions{Beside: o.beside}, []string{"top"})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.EqualError(t, err, `vhd: parent (id 1): "stranger": its id is 2: it is not the parent: corrupt`)
	require.Zero(t, o.n)

	search.Names = nil
	_, err = blocks.FindParent(search, formats.OpenOptions{Beside: o.beside}, nil)
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "its name is not stored")
}
