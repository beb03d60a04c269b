package activities

import (
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// A scratch file reads as a file would, whatever was done to it.
func TestScratch(t *testing.T) {
	const size = 3*scratchPage + 100
	r := rand.New(rand.NewPCG(1, 2))
	s, want := newScratch(), []byte{}
	for range 500 {
		off, n := r.Int64N(size), r.IntN(2*scratchPage)
		if r.IntN(5) == 0 {
			require.NoError(t, s.Truncate(off))
			want = append(want, make([]byte, max(0, off-int64(len(want))))...)[:off]
			continue
		}
		b := make([]byte, n)
		if r.IntN(3) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		got, err := s.WriteAt(b, off)
		require.NoError(t, err)
		require.Equal(t, n, got)
		if end := off + int64(n); n > 0 && end > int64(len(want)) {
			want = append(want, make([]byte, end-int64(len(want)))...)
		}
		copy(want[min(off, int64(len(want))):], b)
		all := make([]byte, len(want)+1)
		got, err = s.ReadAt(all, 0)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, want, all[:got])
	}
}

func TestScratchIsBounded(t *testing.T) {
	s := newScratch()
	zeros, ones := make([]byte, 1<<20), make([]byte, 1<<20)
	for i := range ones {
		ones[i] = 1
	}
	require.NoError(t, s.Truncate(1<<50))
	for i := range int64(200) {
		_, err := s.WriteAt(zeros, i<<20)
		require.NoError(t, err, "zeros take no memory")
	}
	var err error
	for i := int64(0); err == nil; i++ {
		require.LessOrEqual(t, i<<20, int64(maxScratch))
		_, err = s.WriteAt(ones, i<<20)
	}
	require.ErrorIs(t, err, errScratch)
}
