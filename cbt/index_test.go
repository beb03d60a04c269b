package cbt

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
)

// indexOf is the index of a disk.
func indexOf(t *testing.T, m memory) *formats.Digests {
	t.Helper()
	d, err := formats.CreateDigests(formatstest.NewMemFile(), m.Size())
	require.NoError(t, err)
	_, err = formats.DigestOf(t.Context(), m, d, formats.VerifyOptions{})
	require.NoError(t, err)
	return d
}

func TestCompareFindsEveryBlockThatDiffers(t *testing.T) {
	const mib = formats.BlockSize
	old := some(1, 5*mib+512)
	for name, x := range map[string]struct {
		now  func(memory) memory
		want []Range
	}{
		"nothing":          {func(m memory) memory { return m }, nil},
		"a byte":           {func(m memory) memory { m[mib+7]++; return m }, []Range{{mib, mib}}},
		"the last byte":    {func(m memory) memory { m[len(m)-1]++; return m }, []Range{{5 * mib, 512}}},
		"neighbours":       {func(m memory) memory { m[mib*3-1]++; m[mib*3]++; return m }, []Range{{2 * mib, 2 * mib}}},
		"grown":            {func(m memory) memory { return append(m, make(memory, 2*mib)...) }, []Range{{5 * mib, 2*mib + 512}}},
		"shrunk":           {func(m memory) memory { return m[:2*mib+512] }, []Range{{2 * mib, 512}}},
		"shrunk to blocks": {func(m memory) memory { return m[:2*mib] }, nil},
		"empty":            {func(memory) memory { return memory{} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			now := x.now(slices.Clone(old))
			fresh, err := formats.CreateDigests(formatstest.NewMemFile(), now.Size())
			require.NoError(t, err)
			got, digest, err := Compare(t.Context(), now, indexOf(t, old), fresh, formats.VerifyOptions{})
			require.NoError(t, err)
			require.Equal(t, Set{x.want}.Len(), got.Len())
			require.True(t, Set{x.want}.Equal(got), "%v", got)
			root, err := indexOf(t, now).Root()
			require.NoError(t, err)
			require.Equal(t, root, digest)
		})
	}
	partly, err := formats.CreateDigests(formatstest.NewMemFile(), old.Size())
	require.NoError(t, err)
	all, err := Differ(t.Context(), partly, indexOf(t, old))
	require.NoError(t, err)
	require.Equal(t, old.Size(), all.Bytes(), "a block that the index does not know has changed")
}

// A tracker that under-reports is caught, however it does; one that over-reports is right.
func TestAuditCatchesATrackerThatLies(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 11))
		d := newDrive("d", 3<<20+512*r.Int64N(99))
		for range 20 {
			d.write(r)
		}
		old, id, _ := d.snapshot("")
		for range 1 + r.IntN(12) {
			d.write(r)
		}
		now, _, changes := d.snapshot(id)
		require.NotNil(t, changes)
		claim := Claim{Ranges: changes.Ranges, Before: indexOf(t, old), Now: indexOf(t, now)}
		exact := claim
		exact.Old, exact.New = old, now
		for _, c := range []Claim{claim, exact} {
			missed, err := Audit(t.Context(), c)
			require.NoError(t, err)
			require.Zero(t, missed.Len(), "an honest tracker, seed %d", seed)
		}
		// It forgets one page that did change.
		lost := Range{Off: -1}
		for off := int64(0); off < now.Size(); off += auditGrain {
			n := min(auditGrain, now.Size()-off)
			if !slices.Equal(old[off:off+n], now[off:off+n]) && (lost.Off < 0 || r.IntN(5) == 0) {
				lost = Range{off, n}
			}
		}
		if lost.Off < 0 {
			continue // what was written was there already
		}
		exact.Ranges = changes.Ranges.Subtract(Set{[]Range{lost}})
		missed, err := Audit(t.Context(), exact)
		require.NoError(t, err)
		require.True(t, missed.Equal(Set{[]Range{lost}}), "seed %d: %v instead of %v", seed, missed, lost)
		// Without the disks, a block of which nothing is claimed is found.
		block := Set{[]Range{lost}}.Align(formats.BlockSize, now.Size())
		claim.Ranges = changes.Ranges.Subtract(block)
		missed, err = Audit(t.Context(), claim)
		require.NoError(t, err)
		require.True(t, missed.Equal(block), "seed %d", seed)
	}
}
