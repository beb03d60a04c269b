package formatstest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// crash stops a writer somewhere behind a durable checkpoint, in each of the ways a machine can stop,
// and lets another one go on: the file must be byte-equal to one written in a single run.
func (h Harness) crash(t *testing.T) {
	d := NewDisk(91, h.examSize())
	want := NewMemFile()
	h.createIn(t, want, d)
	for _, cut := range h.cuts(t, d) {
		f := NewMemFile()
		w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, formats.Checkpoint{})
		require.NoError(t, err)
		require.NoError(t, Fill(w, d, 0, cut))
		cp, err := w.Checkpoint(cut)
		require.NoError(t, err)
		require.LessOrEqual(t, cp.Off, cut, "a checkpoint claims no more than was written")
		require.NoError(t, w.Sync(t.Context()))
		ends := map[string]*MemFile{"exactly there": f.Synced()}
		// It goes on for a while, with another checkpoint that does not become durable.
		beyond := min(cut+h.step(w, d), d.Size())
		require.NoError(t, Fill(w, d, cut, beyond))
		_, err = w.Checkpoint(beyond)
		require.NoError(t, err)
		ends["power lost"] = f.Synced()
		for seed := range uint64(4) {
			ends[fmt.Sprintf("power lost, some pages written (%d)", seed)] = f.Crash(seed)
		}
		require.NoError(t, Fill(w, d, beyond, d.Size()))
		ends["killed at the end"] = f.Clone()
		require.NoError(t, w.Close())
		ends["closed"] = f.Clone()
		for how, left := range ends {
			t.Run(fmt.Sprintf("at %d, %s", cut, how), func(t *testing.T) {
				h.goOn(t, left, d, cp)
				RequireEqual(t, want, left)
			})
		}
	}
}

// cuts are block offsets to stop at.
func (h Harness) cuts(t *testing.T, d *Disk) []int64 {
	block := max(h.blockSize(t), page)
	var all []int64
	for _, at := range []int64{block, d.Size() / 3, d.Size() / 2, d.Size() - block} {
		if at = at / block * block; at > 0 && at < d.Size() {
			all = append(all, at)
		}
	}
	return append(all, d.Size())
}

// goOn writes the rest of d from cp on.
func (h Harness) goOn(t *testing.T, f formats.File, d *Disk, cp formats.Checkpoint) {
	t.Helper()
	w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, cp)
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, Fill(w, d, cp.Off, d.Size()))
	require.NoError(t, w.Commit(t.Context()))
}

// resumeAnywhere writes one disk by many writers, each dying a few blocks after the one before.
func (h Harness) resumeAnywhere(t *testing.T) {
	d := NewDisk(101, h.examSize())
	want := NewMemFile()
	h.createIn(t, want, d)
	f := NewMemFile()
	var cp formats.Checkpoint
	block := max(h.blockSize(t), 64<<10)
	for i := int64(0); cp.Off < d.Size() && i < 30; i++ {
		w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, cp)
		require.NoError(t, err)
		end := min(cp.Off+(1+i%5)*block, d.Size())
		require.NoError(t, Fill(w, d, cp.Off, end))
		next, err := w.Checkpoint(end)
		require.NoError(t, err)
		require.NoError(t, w.Sync(t.Context()))
		require.NoError(t, Fill(w, d, end, min(end+2*block, d.Size())))
		require.NoError(t, w.Close())
		if next.Off < end {
			t.Logf("this writer can go on from %d, not from %d", next.Off, end)
		}
		cp = next
	}
	h.goOn(t, f, d, cp)
	RequireEqual(t, want, f)
}
