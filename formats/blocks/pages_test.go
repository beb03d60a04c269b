package blocks_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

func fileOf(b []byte) blocks.File {
	return blocks.File{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

func TestReadFull(t *testing.T) {
	fault := errors.New("fault")
	for name, c := range map[string]struct {
		f    blocks.File
		off  int64
		want error
	}{
		"all there":             {fileOf(make([]byte, 10)), 6, nil},
		"across the end":        {fileOf(make([]byte, 10)), 7, formats.ErrCorrupt},
		"behind the end":        {fileOf(make([]byte, 10)), 1 << 62, formats.ErrCorrupt},
		"before the beginning":  {fileOf(make([]byte, 10)), -1, formats.ErrCorrupt},
		"shorter than it said":  {blocks.File{ReaderAt: bytes.NewReader(make([]byte, 8)), Size: 10}, 6, formats.ErrCorrupt},
		"an error from beneath": {blocks.File{ReaderAt: readerFunc(func([]byte, int64) (int, error) { return 0, fault }), Size: 10}, 6, fault},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.f.ReadFull(make([]byte, 4), c.off)
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
		})
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestTableFindsRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, width := range []int{4, 8} {
		const n, off = 5000, 37
		want := make([]uint64, n)
		b := make([]byte, off+n*width)
		for i := range want {
			if want[i] = uint64(0xffffffff); i > 0 && r.IntN(100) > 0 {
				want[i] = want[i-1]
			} else {
				want[i] = r.Uint64N(3)
			}
		}
		require.NoError(t, blocks.WriteTable(writer{b}, off, n, width, binary.BigEndian, func(i int64) uint64 { return want[i] }))
		table := blocks.NewTable(fileOf(b), off, n, width, binary.BigEndian)
		require.EqualValues(t, n, table.Len())
		for i := int64(0); i < n; {
			limit := 1 + r.Int64N(200)
			v, run, err := table.Run(i, limit)
			require.NoError(t, err)
			require.Positive(t, run)
			require.LessOrEqual(t, run, limit)
			for ; run > 0; run, i = run-1, i+1 {
				require.Equal(t, want[i], v, "entry %d", i)
			}
		}
		_, _, err := table.Run(n, 1)
		require.ErrorIs(t, err, formats.ErrCorrupt)
		_, _, err = table.Run(-1, 1)
		require.ErrorIs(t, err, formats.ErrCorrupt)
	}
}

type writer struct{ b []byte }

func (w writer) WriteAt(p []byte, off int64) (int, error) { return copy(w.b[off:], p), nil }

func TestBitmapFindsRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, highFirst := range []bool{true, false} {
		const n, off = 80000, 13
		b := make([]byte, off+n/8)
		want := make([]bool, n)
		for i := range want {
			want[i] = i > 0 && want[i-1]
			if r.IntN(1+1<<(i*12/n)) == 0 {
				want[i] = !want[i]
			}
			bit := byte(1) << (i % 8)
			if highFirst {
				bit = 0x80 >> (i % 8)
			}
			if want[i] {
				b[off+i/8] |= bit
			}
		}
		m := blocks.Bitmap{Pages: blocks.NewPages(fileOf(b), 0, int64(len(b))), Off: off, HighFirst: highFirst}
		for i := int64(0); i < n; {
			limit := min(1+r.Int64N(3000), n-i)
			set, run, err := m.Run(i, limit)
			require.NoError(t, err)
			require.Positive(t, run)
			require.LessOrEqual(t, run, limit)
			for ; run > 0; run, i = run-1, i+1 {
				require.Equal(t, want[i], set, "bit %d", i)
			}
		}
	}
}

// Pages that are read again come from memory, up to a bound; pages that failed are tried again.
func TestPagesAreKeptAndErrorsAreNot(t *testing.T) {
	var reads, broken atomic.Int64
	f := blocks.File{Size: 1 << 20, ReaderAt: readerFunc(func(p []byte, off int64) (int, error) {
		reads.Add(1)
		if broken.Load() > 0 {
			return 0, io.ErrClosedPipe
		}
		clear(p)
		binary.BigEndian.PutUint32(p, uint32(off))
		return len(p), nil
	})}
	table := blocks.NewTable(f, 0, 1<<18, 4, binary.BigEndian)
	broken.Store(1)
	_, _, err := table.Run(0, 1)
	require.ErrorIs(t, err, io.ErrClosedPipe)
	broken.Store(0)
	for range 3 {
		for page := range int64(64) {
			v, _, err := table.Run(page*1024, 1)
			require.NoError(t, err)
			require.EqualValues(t, page*4096, v)
		}
	}
	require.EqualValues(t, 65, reads.Load())
	_, _, err = table.Run(100*1024, 1) // the 65th page puts the first one out
	require.NoError(t, err)
	_, _, err = table.Run(0, 1)
	require.NoError(t, err)
	require.EqualValues(t, 67, reads.Load())
}

func TestPagesServeManyAtOnce(t *testing.T) {
	b := make([]byte, 1<<20)
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], uint32(i/4))
	}
	table := blocks.NewTable(fileOf(b), 0, 1<<18, 4, binary.BigEndian)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 5000 {
				i := r.Int64N(1 << 18)
				if v, _, err := table.Run(i, 1); err != nil || v != uint64(i) {
					t.Errorf("entry %d is %d: %v", i, v, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
