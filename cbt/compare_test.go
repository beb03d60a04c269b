package cbt

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// counted counts what is read of a disk, and fails where more is than there may be.
type counted struct {
	memory
	read *atomic.Int64
	most int64 // 0: no limit
}

var errCut = errors.New("cut")

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	if c.most > 0 && c.read.Load() >= c.most {
		return 0, errCut
	}
	c.read.Add(int64(len(p)))
	return c.memory.ReadAt(p, off)
}

// dense is a disk without zeros.
func dense(size int) memory {
	m := make(memory, size)
	for off := 0; off < len(m); off += len(noise) {
		copy(m[off:], noise)
	}
	return m
}

func next(key string, disks ...NewDisk) NewPoint { return NewPoint{Key: key, Disks: disks} }

func TestCompareWithTheNewestPoint(t *testing.T) {
	const mib = formats.BlockSize
	c, dir, states := three(t, Options{})
	now := slices.Clone(states[2])
	now[mib+7]++
	p := next("k", NewDisk{Disk: "d", Size: now.Size(), ChangeID: "z"})
	changes, err := c.Compare(t.Context(), p, "d", now, formats.VerifyOptions{})
	require.NoError(t, err)
	require.True(t, changes.Ranges.Equal(Set{[]Range{{mib, mib}}}), "%v", changes.Ranges)
	changes.Ranges = Set{}
	require.Equal(t, Changes{From: "c", To: "z", By: Compared, Since: 3}, changes)

	p.Disks[0].Changes = &Changes{By: Compared, Since: 3, Ranges: Set{[]Range{{mib, mib}}}}
	a, err := c.Begin(t.Context(), p)
	require.NoError(t, err)
	require.Contains(t, names(t, dir), ".disk0-000004.compared.part", "it is kept for an attempt with the same key")
	require.False(t, a.Plans()[0].Full)
	_, err = a.Copy(t.Context(), "d", now, formats.CopyOptions{})
	require.NoError(t, err)
	require.NoError(t, a.Commit(t.Context()))
	requireDisk(t, c, 4, "d", now)
	for _, name := range names(t, dir) {
		require.NotContains(t, name, "compared", "nothing is left of it")
	}

	p.Key = "l"
	plans, err := c.Plan(t.Context(), p)
	require.NoError(t, err)
	require.Equal(t, "the changes are those since point 3, the newest point is 4", plans[0].Reason)
}

// A comparison that was killed goes on; the sums that it knew are not read again.
func TestAComparisonGoesOnWhereItStopped(t *testing.T) {
	const size = 200 << 20
	old := dense(size)
	for name, x := range map[string]struct {
		key   string // of the second attempt
		spoil func(t *testing.T, dir string)
		goes  bool
	}{
		"the same key":   {"k", nil, true},
		"another key":    {"l", nil, false},
		"damaged pages":  {"k", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, ".disk0-000002.compared.part"), 4096+100) }, false},
		"a damaged head": {"k", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, ".disk0-000002.compared.part"), 20) }, false},
		"cleaned up": {"k", func(t *testing.T, dir string) {
			c, err := Open(t.Context(), dir, Options{})
			require.NoError(t, err)
			require.NoError(t, c.Clean(t.Context()))
			require.NoError(t, c.Close())
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := newChain(t, Options{})
			add(t, c, "d", old, "a", nil)
			now := slices.Clone(old)
			now[0]++
			now[size-1]++
			disk := NewDisk{Disk: "d", Size: size, ChangeID: "b"}
			cut := counted{now, new(atomic.Int64), 150 << 20}
			_, err := c.Compare(t.Context(), next("k", disk), "d", cut, formats.VerifyOptions{})
			require.ErrorIs(t, err, errCut)
			require.NoError(t, c.Close())
			if x.spoil != nil {
				x.spoil(t, dir)
			}
			c, err = Open(t.Context(), dir, Options{})
			require.NoError(t, err)
			defer c.Close()
			again := counted{now, new(atomic.Int64), 0}
			var told int64
			changes, err := c.Compare(t.Context(), next(x.key, disk), "d", again, formats.VerifyOptions{Progress: func(p formats.Progress) { told = max(told, p.Done) }})
			require.NoError(t, err)
			require.True(t, changes.Ranges.Equal(Set{[]Range{{0, 1 << 20}, {size - 1<<20, 1 << 20}}}), "%v", changes.Ranges)
			require.EqualValues(t, size, told)
			if x.goes {
				require.LessOrEqual(t, again.read.Load(), int64(60<<20))
			} else {
				require.EqualValues(t, size, again.read.Load())
			}
			done := counted{now, new(atomic.Int64), 0}
			_, err = c.Compare(t.Context(), next(x.key, disk), "d", done, formats.VerifyOptions{})
			require.NoError(t, err)
			require.Zero(t, done.read.Load(), "it is done already")
			_, err = c.Compare(t.Context(), next("", disk), "d", done, formats.VerifyOptions{})
			require.NoError(t, err)
			require.EqualValues(t, size, done.read.Load(), "the empty key is nobody's")
		})
	}
}

func TestWhatCannotBeCompared(t *testing.T) {
	d := NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z"}
	empty, _ := newChain(t, Options{})
	c, dir, states := three(t, Options{})
	compare := func(c *Chain, p NewPoint, disk string) error {
		_, err := c.Compare(t.Context(), p, disk, states[2], formats.VerifyOptions{})
		return err
	}
	var full *FullError
	require.ErrorAs(t, compare(empty, next("k", d), "d"), &full)
	require.Equal(t, "first point of the chain", full.Reason)
	require.ErrorAs(t, compare(c, next("k", NewDisk{Disk: "e", Size: d.Size}), "e"), &full)
	require.Equal(t, "the disk was not there at point 3", full.Reason)
	_, _, err := c.Audit(t.Context(), next("k", d), "d", Changes{From: "b", To: "z", By: Tracked}, states[2], formats.VerifyOptions{})
	require.ErrorAs(t, err, &full)
	require.Contains(t, full.Reason, `since "b", the newest point is "c"`)

	require.ErrorIs(t, compare(c, next("k", d), "e"), ErrNotFound)
	require.ErrorIs(t, compare(c, next("c", d), "d"), ErrExists)
	d.Size++
	require.ErrorContains(t, compare(c, next("k", d), "d"), "5242880 bytes instead of 5242881")
	d.Size--

	flip(t, filepath.Join(dir, "disk0-000003.digests"), 9)
	require.ErrorAs(t, compare(c, next("k", d), "d"), &full)
	require.Contains(t, full.Reason, "damage: point 3")
	require.NoError(t, c.Close())
	c, err = Open(t.Context(), dir, Options{ReadOnly: true})
	require.NoError(t, err)
	defer c.Close()
	require.ErrorIs(t, compare(c, next("k", d), "d"), ErrReadOnly)
}

// held is a disk that waits until it may be read.
type held struct {
	memory
	begun, free chan struct{}
}

func (h held) ReadAt(p []byte, off int64) (int, error) {
	select {
	case h.begun <- struct{}{}:
	default:
	}
	<-h.free
	return h.memory.ReadAt(p, off)
}

func TestDisksAreComparedBesideOneAnother(t *testing.T) {
	c, _ := newChain(t, Options{})
	old := dense(2 << 20)
	p := next("1", NewDisk{Disk: "d", Size: old.Size()}, NewDisk{Disk: "e", Size: old.Size()})
	a, err := c.Begin(t.Context(), p)
	require.NoError(t, err)
	for _, d := range p.Disks {
		_, err := a.Copy(t.Context(), d.Disk, old, formats.CopyOptions{})
		require.NoError(t, err)
	}
	_, err = c.Compare(t.Context(), p, "d", old, formats.VerifyOptions{})
	require.ErrorIs(t, err, ErrInUse, "a point is being written")
	require.NoError(t, a.Commit(t.Context()))

	p.Key = "2"
	slow := held{old, make(chan struct{}, 1), make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		_, err := c.Compare(context.WithoutCancel(t.Context()), p, "d", slow, formats.VerifyOptions{})
		first <- err
	}()
	<-slow.begun
	_, err = c.Compare(t.Context(), p, "e", old, formats.VerifyOptions{})
	require.NoError(t, err)
	_, err = c.Compare(t.Context(), p, "d", old, formats.VerifyOptions{})
	require.ErrorIs(t, err, ErrInUse, "each once")
	require.ErrorIs(t, c.DeleteNewest(t.Context()), ErrInUse, "what is compared with stays")
	requireDisk(t, c, 1, "d", old)
	close(slow.free)
	require.NoError(t, <-first)
	require.NoError(t, c.DeleteNewest(t.Context()))
}

// An audit answers what a tracker left out, and what can be copied instead.
func TestAuditOfAnAppend(t *testing.T) {
	const grain = auditGrain
	c, _, states := three(t, Options{})
	now := slices.Clone(states[2])
	now[2<<20+5*grain]++
	now[2<<20+9*grain]++
	p := next("k", NewDisk{Disk: "d", Size: now.Size(), ChangeID: "z"})
	claim := Changes{From: "c", To: "z", By: Tracked, Ranges: Set{[]Range{{2<<20 + 9*grain, grain}, {4 << 20, grain}}}}
	missed, truth, err := c.Audit(t.Context(), p, "d", claim, now, formats.VerifyOptions{})
	require.NoError(t, err)
	require.True(t, missed.Equal(Set{[]Range{{2<<20 + 5*grain, grain}}}), "%v", missed)
	require.True(t, truth.Ranges.Equal(Set{[]Range{{2 << 20, 1 << 20}}}))
	require.Equal(t, Compared, truth.By)

	claim.Ranges = claim.Ranges.Union(missed)
	again := counted{now, new(atomic.Int64), 0}
	missed, _, err = c.Audit(t.Context(), p, "d", claim, again, formats.VerifyOptions{})
	require.NoError(t, err)
	require.Zero(t, missed.Len(), "what was not claimed did not change, whatever else of its block did")
	require.LessOrEqual(t, again.read.Load(), int64(1<<20), "the comparison was made before")
}
