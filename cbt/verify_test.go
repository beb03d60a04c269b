package cbt

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// What the hidden file of a new point holds is read back before it is committed.
func TestVerifyCatchesWhatWasNotStored(t *testing.T) {
	const mib = formats.BlockSize
	for _, compression := range []string{"", "zlib", "zstd"} {
		for _, full := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q, full %t", compression, full), func(t *testing.T) {
				c, dir, states := three(t, Options{Compression: compression})
				now := slices.Clone(states[2])
				copy(now[4*mib+trackGrain:], noise[500:500+trackGrain])
				d := NewDisk{Disk: "d", Size: now.Size(), ChangeID: "z",
					Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: Set{[]Range{{4*mib + trackGrain, trackGrain}}}}}
				if full {
					d.Changes = nil
				}
				a, err := c.Begin(t.Context(), next("k", d))
				require.NoError(t, err)
				defer a.Close()
				require.ErrorContains(t, a.Verify(t.Context(), "d", formats.VerifyOptions{}), "not been copied")
				require.ErrorIs(t, a.Verify(t.Context(), "e", formats.VerifyOptions{}), ErrNotFound)
				_, err = a.Copy(t.Context(), "d", now, formats.CopyOptions{})
				require.NoError(t, err)
				var last formats.Progress
				require.NoError(t, a.Verify(t.Context(), "d", formats.VerifyOptions{Progress: func(p formats.Progress) { last = p }}))
				require.EqualValues(t, now.Size(), last.Done)
				if !full {
					require.Positive(t, last.Read)
					require.LessOrEqual(t, last.Read, int64(mib), "of a delta the blocks that it touches")
				}

				part := ".disk0-000004.qcow2.part"
				last4 := stored(t, a.c, part, 4*mib+trackGrain)
				flip(t, filepath.Join(dir, part), last4)
				err = a.Verify(t.Context(), "d", formats.VerifyOptions{})
				require.ErrorIs(t, err, formats.ErrCorrupt)
				var named *LinkError
				require.ErrorAs(t, err, &named)
				require.Equal(t, part, named.File)
				if compression == "" {
					require.ErrorContains(t, err, fmt.Sprintf("bytes [%d, %d)", 4*mib, 5*mib))
				}
				require.ErrorContains(t, a.Commit(t.Context()), "has not been copied")

				res, err := a.Copy(t.Context(), "d", now, formats.CopyOptions{})
				require.NoError(t, err)
				require.Positive(t, res.Read, "it is copied again, from its beginning")
				require.NoError(t, a.Verify(t.Context(), "d", formats.VerifyOptions{}))
				require.NoError(t, a.Commit(t.Context()))
				requireDisk(t, c, 4, "d", now)
			})
		}
	}
}

// stored is where a file holds what begins at off of its disk.
func stored(t *testing.T, c *Chain, file string, off int64) int {
	t.Helper()
	f, info, err := c.d.open(file)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, info.Size())
	require.NoError(t, readFull(f, b, 0))
	// The L1 table has one entry here, and so has the disk one L2 table.
	be := func(at int64) int64 {
		n := int64(0)
		for _, x := range b[at : at+8] {
			n = n<<8 | int64(x)
		}
		return n
	}
	entry := be(be(be(40))&0xfffffffffffe00 + off/(64<<10)*8)
	require.NotZero(t, entry)
	if entry>>62&1 == 1 {
		return int(entry&(1<<54-1)) + 20
	}
	return int(entry & 0xfffffffffffe00)
}

// Of several blocks that differ, the first on the disk is named; what lies below is told from the file.
func TestVerifyNamesTheFirst(t *testing.T) {
	const mib = formats.BlockSize
	c, dir, states := three(t, Options{})
	now := slices.Clone(states[2])
	var s Set
	for i := range int64(5) {
		copy(now[i*mib:], noise[900:900+trackGrain])
		require.NoError(t, s.Add(i*mib, trackGrain))
	}
	d := NewDisk{Disk: "d", Size: now.Size(), ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: s}}
	a, err := c.Begin(t.Context(), next("k", d))
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Copy(t.Context(), "d", now, formats.CopyOptions{})
	require.NoError(t, err)
	part := ".disk0-000004.qcow2.part"
	for _, off := range []int64{4 * mib, 2 * mib, 3 * mib} {
		flip(t, filepath.Join(dir, part), stored(t, c, part, off))
	}
	err = a.Verify(t.Context(), "d", formats.VerifyOptions{Workers: 4})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, fmt.Sprintf("bytes [%d, %d)", 2*mib, 3*mib))

	_, err = a.Copy(t.Context(), "d", now, formats.CopyOptions{})
	require.NoError(t, err)
	flip(t, filepath.Join(dir, "disk0-000001.qcow2"), stored(t, c, "disk0-000001.qcow2", 3*trackGrain))
	err = a.Verify(t.Context(), "d", formats.VerifyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "builds upon is damaged")
}
