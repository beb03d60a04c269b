package cbt

import (
	"iter"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
)

// bits is a set of bytes, one bool each: what a Set is compared with.
type bits [512]bool

func bitsOf(t *testing.T, s Set) (b bits) {
	t.Helper()
	last := int64(-1)
	for r := range s.All() {
		require.Greater(t, r.Off, last, "ranges ascend and do not touch")
		require.Positive(t, r.Len)
		last = r.End()
		for i := r.Off; i < r.End(); i++ {
			b[i] = true
		}
	}
	return b
}

func TestSetIsASetOfBytes(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 7))
		some := func() (b bits, s Set) {
			var ranges []Range
			for range r.IntN(20) {
				off := r.Int64N(500)
				n := r.Int64N(min(40, 512-off))
				for i := off; i < off+n; i++ {
					b[i] = true
				}
				require.NoError(t, s.Add(off, n))
				ranges = append(ranges, Range{off, n})
			}
			c, err := Collect(slices.Values(ranges))
			require.NoError(t, err)
			require.True(t, c.Equal(s), "added one by one or all at once")
			require.Equal(t, b, bitsOf(t, s))
			return b, s
		}
		a, x := some()
		b, y := some()
		before := x.Clone()
		var both, only, clipped, aligned bits
		off, n, block, size := r.Int64N(512), int64(0), int64(1+r.IntN(30)), 1+r.Int64N(512)
		n = r.Int64N(512 - off)
		var count int64
		for i := range a {
			both[i], only[i] = a[i] || b[i], a[i] && !b[i]
			clipped[i] = a[i] && int64(i) >= off && int64(i) < off+n
			if a[i] {
				count++
				for j := int64(i) / block * block; j < min((int64(i)/block+1)*block, size) && int64(i) < size; j++ {
					aligned[j] = true
				}
			}
		}
		require.Equal(t, both, bitsOf(t, x.Union(y)), "seed %d", seed)
		require.Equal(t, only, bitsOf(t, x.Subtract(y)), "seed %d", seed)
		require.Equal(t, clipped, bitsOf(t, x.Clip(off, n)), "seed %d", seed)
		require.Equal(t, aligned, bitsOf(t, x.Align(block, size)), "seed %d, blocks of %d, size %d", seed, block, size)
		require.Equal(t, count, x.Bytes())
		require.Equal(t, !slices.Contains(a[off:off+n], false), x.Covers(off, n))
		require.Equal(t, slices.Contains(a[off:off+n], true), x.Touches(off, n))
		gap := r.Int64N(20)
		joined := x.Coalesce(gap)
		last := int64(math.MinInt32)
		for r := range joined.All() {
			require.Greater(t, r.Off-last, gap, "what is %d bytes apart is joined", gap)
			last = r.End()
			require.True(t, x.Covers(r.Off, 1) && x.Covers(r.End()-1, 1), "nothing is added at the ends")
		}
		require.Zero(t, x.Subtract(joined).Len(), "nothing is lost")
		require.True(t, x.Equal(before), "nobody changed the set itself")
	}
}

func TestSetRefusesWhatCannotBe(t *testing.T) {
	var s Set
	for _, r := range []Range{{-1, 5}, {0, -1}, {math.MaxInt64, 1}, {5, math.MaxInt64}} {
		require.Error(t, s.Add(r.Off, r.Len), "%v", r)
		_, err := Collect(slices.Values([]Range{r}))
		require.Error(t, err, "%v", r)
	}
	require.NoError(t, s.Add(math.MaxInt64-10, 10))
	require.NoError(t, s.Add(7, 0))
	require.Equal(t, 1, s.Len())
	a := s.Align(1<<20, math.MaxInt64)
	require.EqualValues(t, math.MaxInt64, a.End(), "no overflow at the end of the largest disk")
	require.Zero(t, s.Align(0, 100).Len())
	require.Zero(t, s.Clip(math.MaxInt64-5, 100).Len())
}

// scattered are n ranges of 64 KiB in a disk of 64 GiB, in no order.
func scattered(n int) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		r := rand.New(rand.NewPCG(1, 1))
		for range n {
			if !yield(Range{r.Int64N(64<<30/(64<<10)) * (64 << 10), 64 << 10}) {
				return
			}
		}
	}
}

func TestPlanningAHundredThousandChangesIsCheap(t *testing.T) {
	const size = 64 << 30
	disk := formatstest.NewDisk(1, size)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, err := Collect(scattered(100_000))
	require.NoError(t, err)
	plan := s.Align(64<<10, size)
	view := View(disk, plan)
	var n, absent int64
	for e, err := range view.Extents(t.Context(), 0, size) {
		require.NoError(t, err)
		if e.Kind == formats.Absent {
			absent += e.Len
		}
		n += e.Len
	}
	runtime.ReadMemStats(&after)
	require.EqualValues(t, size, n)
	require.Equal(t, plan.Bytes(), size-absent)
	require.Greater(t, plan.Bytes(), int64(5<<30))
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20), "all that was ever allocated")
}

func BenchmarkPlan(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, err := Collect(scattered(100_000))
		if err != nil {
			b.Fatal(err)
		}
		s.Align(64<<10, 64<<30).Coalesce(256 << 10)
	}
}
