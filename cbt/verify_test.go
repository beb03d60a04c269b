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
					require.LessOrEqual(t, last.Read, int64(trackGrain), "of a delta what was received")
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
					at := fmt.Sprintf("bytes [%d, %d)", 4*mib+trackGrain, 4*mib+2*trackGrain)
					if full {
						at = fmt.Sprintf("bytes [%d, %d)", 4*mib, 5*mib)
					}
					require.ErrorContains(t, err, at)
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

// Of several that differ, the first on the disk is named. Who has not received what was copied reads whole
// blocks, and tells what lies below from the file.
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
	again := func(a *Append) *Append { // another attempt, which has received nothing itself
		_, err := a.Copy(t.Context(), "d", now, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, a.Close())
		a, err = c.Begin(t.Context(), next("k", d))
		require.NoError(t, err)
		t.Cleanup(func() { _ = a.Close() })
		return a
	}
	err = a.Verify(t.Context(), "d", formats.VerifyOptions{Workers: 4})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, fmt.Sprintf("bytes [%d, %d)", 2*mib, 2*mib+trackGrain))

	a = again(a)
	res, err := a.Copy(t.Context(), "d", now, formats.CopyOptions{})
	require.NoError(t, err)
	require.Zero(t, res.Read, "it is whole")
	var last formats.Progress
	require.NoError(t, a.Verify(t.Context(), "d", formats.VerifyOptions{Progress: func(p formats.Progress) { last = p }}))
	require.Greater(t, last.Read, s.Bytes())
	flip(t, filepath.Join(dir, part), stored(t, c, part, 3*mib))
	require.ErrorIs(t, a.Verify(t.Context(), "d", formats.VerifyOptions{}), formats.ErrCorrupt)

	a = again(a)
	_, err = a.Copy(t.Context(), "d", now, formats.CopyOptions{})
	require.NoError(t, err)
	flip(t, filepath.Join(dir, "disk0-000001.qcow2"), stored(t, c, "disk0-000001.qcow2", 3*trackGrain))
	err = a.Verify(t.Context(), "d", formats.VerifyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "builds upon is damaged")
}

// What was read twice, or is more than is kept, is no proof.
func TestReceivedIsSureOrNothing(t *testing.T) {
	disk := make(memory, 4*formats.BlockSize)
	read := func(ranges ...Range) *received {
		r := &received{Image: disk, told: func(int64, []byte) {}}
		for _, c := range ranges {
			_, err := r.ReadAt(make([]byte, c.Len), c.Off)
			require.NoError(t, err)
		}
		return r
	}
	pieces, set := read(Range{2 << 20, 4096}, Range{1<<20 - 4096, 8192}).proof()
	require.Len(t, pieces, 3, "at most a block each")
	require.EqualValues(t, 3*4096, set.Bytes())
	_, set = read(Range{0, 8192}, Range{4096, 4096}).proof()
	require.Zero(t, set.Bytes())
	r := read(Range{0, 4096})
	for range maxReceived {
		r.keep(piece{off: 4096, n: 1})
	}
	pieces, set = r.proof()
	require.Empty(t, pieces)
	require.Zero(t, set.Bytes())
	pieces, set = (*received)(nil).proof()
	require.Empty(t, pieces)
	require.Zero(t, set.Bytes())
}
