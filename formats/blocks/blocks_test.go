package blocks_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

func TestGUIDsAreMixedEndian(t *testing.T) {
	const text = "00112233-4455-6677-8899-aabbccddeeff"
	id, err := blocks.ParseID("{00112233-4455-6677-8899-AABBCCDDEEFF}")
	require.NoError(t, err)
	require.Equal(t, text, id.String())
	b := make([]byte, 16)
	blocks.PutGUID(b, id)
	require.Equal(t, []byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, b)
	require.Equal(t, id, blocks.GUID(b))
	for _, bad := range []string{"", "{}", text[1:], text + "00", "x" + text[1:]} {
		_, err := blocks.ParseID(bad)
		require.Error(t, err, bad)
	}
}

// Blocks overlap wherever in the file they are, also where one pass over the table ends.
func TestDisjoint(t *testing.T) {
	const size, cells = 10, 1 << 18
	const file = 3 * cells * size
	for name, c := range map[string]struct {
		offs []int64
		want []string
	}{
		"side by side":           {[]int64{20, 0, 10, file - 10}, nil},
		"the same place":         {[]int64{20, 0, 20}, []string{"blocks 0 and 2 are stored in the same bytes of the file (20 and 20)"}},
		"the last byte":          {[]int64{20, 11}, []string{"blocks 1 and 0 are stored in the same bytes of the file (11 and 20)"}},
		"across a pass":          {[]int64{cells*size - 1, cells*size + 5}, []string{"blocks 0 and 1 are stored in the same bytes of the file (2621439 and 2621445)"}},
		"before a pass":          {[]int64{cells*size - 5, cells*size - 3}, []string{"blocks 0 and 1 are stored in the same bytes of the file (2621435 and 2621437)"}},
		"in another pass":        {[]int64{2*cells*size + 1, 2 * cells * size}, []string{"blocks 1 and 0 are stored in the same bytes of the file (5242880 and 5242881)"}},
		"beside one another two": {[]int64{cells*size - 10, cells * size}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var r blocks.Report
			require.NoError(t, blocks.Disjoint(t.Context(), &r, file, size, func(yield func(block, off int64) bool) error {
				for i, off := range c.offs {
					if !yield(int64(i), off) {
						break
					}
				}
				return nil
			}))
			require.Equal(t, c.want, r.Errors)
		})
	}
	t.Run("all in one place", func(t *testing.T) {
		var r blocks.Report
		n := int64(0)
		require.NoError(t, blocks.Disjoint(t.Context(), &r, file, size, func(yield func(block, off int64) bool) error {
			for i := range int64(100 * cells) {
				n++
				if !yield(i, 0) {
					break
				}
			}
			return nil
		}))
		require.True(t, r.Full())
		require.Len(t, r.Errors, 101, "a hundred, and that there are more")
		require.Less(t, n, int64(cells+10), "what is known to overlap is not looked at further")
	})
}

func TestChoose(t *testing.T) {
	sub, block, err := blocks.Choose("x", formats.CreateOptions{}, []string{"a", "b"}, []int64{2, 1})
	require.NoError(t, err)
	require.Equal(t, "a", sub)
	require.EqualValues(t, 2, block)
	sub, block, err = blocks.Choose("x", formats.CreateOptions{Subformat: "b", ClusterSize: 1, Prealloc: "off", Adapter: "ide"}, []string{"a", "b"}, []int64{2, 1})
	require.NoError(t, err)
	require.Equal(t, "b", sub)
	require.EqualValues(t, 1, block)
}
