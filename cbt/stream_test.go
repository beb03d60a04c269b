package cbt

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// lease is a disk that comes as a stream, in an order of its own, some of it twice; broken, it ends
// early.
type lease struct {
	memory
	order  []int64 // of chunks
	broken bool
}

func (l *lease) Next(context.Context) (formats.Chunk, error) {
	if len(l.order) == 0 {
		if l.broken {
			return formats.Chunk{}, formats.ErrCorrupt
		}
		return formats.Chunk{}, io.EOF
	}
	off := l.order[0] * trackGrain
	l.order = l.order[1:]
	n := min(trackGrain, l.Size()-off)
	return formats.Chunk{Off: off, Len: n, Data: l.memory[off : off+n]}, nil
}

// onlyStream hides that the disk in memory can be read at random.
type onlyStream struct{ formats.Stream }

func TestAStreamIsAFullCopy(t *testing.T) {
	c, _ := newChain(t, Options{Compression: "zlib"})
	data := make(memory, 6<<20)
	order := []int64{0, 1, 40, 41, 90, 2, 40} // 2 and 40 come when their windows have passed
	for _, i := range order {
		copy(data[i*trackGrain:(i+1)*trackGrain], noise[i*7:])
	}
	p := NewPoint{Key: "lease", Disks: []NewDisk{{Disk: "d", Size: data.Size(), ChangeID: "a"}}}
	for _, broken := range []bool{true, false} {
		a, err := c.Begin(t.Context(), p)
		require.NoError(t, err)
		_, err = a.Copy(t.Context(), "d", onlyStream{&lease{data, order, broken}}, formats.CopyOptions{})
		require.Equal(t, broken, errors.Is(err, formats.ErrCorrupt), "%v", err)
		require.Equal(t, broken, a.Commit(t.Context()) != nil)
		require.NoError(t, a.Close())
	}
	truth{1: {"d": data}}.require(t, c)
	report, err := c.Check(t.Context(), CheckOptions{Depth: CheckData})
	require.NoError(t, err)
	require.NoError(t, report.Err())

	p.Key, p.Disks[0].Changes = "delta", &Changes{From: "a", To: "a", By: Tracked}
	plans, err := c.Plan(t.Context(), p)
	require.NoError(t, err)
	require.False(t, plans[0].Full)
	a, err := c.Begin(t.Context(), p)
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Copy(t.Context(), "d", onlyStream{&lease{data, order, false}}, formats.CopyOptions{})
	require.ErrorContains(t, err, "not from a stream")
}
