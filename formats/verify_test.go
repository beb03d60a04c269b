package formats_test

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// A kill costs what was read since the sums were made durable.
func TestResumeDigest(t *testing.T) {
	const size = 120<<20 + 100
	src := content(12, size)
	cut := errors.New("cut")
	file := &memFile{}
	d, err := formats.CreateDigests(file, size)
	require.NoError(t, err)
	require.NoError(t, d.Sync())
	var crashed *memFile
	var read atomic.Int64
	img := wholeImage{&memImage{b: src, reads: func(_ int64, n int) error {
		if read.Add(int64(n)) > 100<<20 {
			return cut
		}
		return nil
	}}}
	_, err = formats.ResumeDigest(t.Context(), img, d, formats.VerifyOptions{Workers: 1, Progress: func(p formats.Progress) {
		if p.Read >= 90<<20 && crashed == nil {
			crashed = file.crash() // without the sync at the end
		}
	}})
	require.ErrorIs(t, err, cut)
	for name, f := range map[string]*memFile{"killed": crashed, "failed": file.crash()} {
		d, err := formats.OpenDigests(f)
		require.NoError(t, err)
		var again atomic.Int64
		done := int64(0)
		whole := wholeImage{&memImage{b: src, reads: func(_ int64, n int) error { again.Add(int64(n)); return nil }}}
		got, err := formats.ResumeDigest(t.Context(), whole, d, formats.VerifyOptions{Progress: func(p formats.Progress) { done = max(done, p.Done) }})
		require.NoError(t, err)
		require.Equal(t, truth(t, src), got)
		require.EqualValues(t, size, done)
		most := int64(size - 90<<20 + 48<<20)
		if name == "failed" {
			most = size - 99<<20
		}
		require.LessOrEqual(t, again.Load(), most, name)
		again.Store(0)
		got, err = formats.ResumeDigest(t.Context(), whole, d, formats.VerifyOptions{})
		require.NoError(t, err)
		require.Equal(t, truth(t, src), got)
		require.Zero(t, again.Load(), "all is known")
	}
	_, err = formats.ResumeDigest(t.Context(), img, digests(t, size+1), formats.VerifyOptions{})
	require.Error(t, err)
	full := file.crash()
	full.fail = cut
	d, err = formats.OpenDigests(full)
	require.NoError(t, err)
	_, err = formats.ResumeDigest(t.Context(), wholeImage{&memImage{b: src}}, d, formats.VerifyOptions{})
	require.ErrorIs(t, err, cut, "what cannot be made durable is an error")
}

func TestVerifyNamesTheFirstDifference(t *testing.T) {
	const size = 30<<20 + 100
	src := content(10, size)
	d := digests(t, size)
	want, err := formats.DigestOf(t.Context(), &memImage{b: src}, d, formats.VerifyOptions{Workers: 3})
	require.NoError(t, err)
	got, err := formats.Verify(t.Context(), &memImage{b: src}, d, formats.VerifyOptions{})
	require.NoError(t, err)
	require.Equal(t, want, got)

	bad := bytes.Clone(src)
	bad[7<<20] ^= 1
	bad[8<<20+5] ^= 1
	bad[20<<20] ^= 1
	_, err = formats.Verify(t.Context(), &memImage{b: bad}, d, formats.VerifyOptions{Workers: 1})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "[7340032, ")

	_, err = formats.Verify(t.Context(), &memImage{b: src[:size-1]}, d, formats.VerifyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
}
