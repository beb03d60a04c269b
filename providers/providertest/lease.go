package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
	"hypersdk/providers"
)

func (h Harness) diskLeaser(t *testing.T) {
	p := h.open(t)
	src, snap := capability[providers.DiskLeaser](t, p), capability[providers.Snapshotter](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()

	s, err := snap.Snapshot(ctx, vm.ID, providers.SnapshotOptions{Key: "exam/lease"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, snap.DeleteSnapshot(context.Background(), vm.ID, s.ID)) })
	ref := providers.SnapshotRef{VM: vm.ID, Snapshot: s.ID}

	t.Run("what is not there", func(t *testing.T) {
		for _, ref := range []providers.SnapshotRef{{VM: h.Absent, Snapshot: s.ID}, {VM: vm.ID, Snapshot: "no-such-snapshot"}} {
			_, err := src.Lease(ctx, ref)
			require.ErrorIs(t, err, providers.NotFound, "%+v", ref)
		}
		_, err := src.Lease(cancelled(t), ref)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("all disks at once, twice, and again after one was left in the middle", func(t *testing.T) {
		l := lease(t, src, ref)
		require.Len(t, l.Disks(), len(s.Disks))
		half, err := l.Open(ctx, s.Disks[0].ID, nil)
		require.NoError(t, err)
		_, err = half.Next(ctx)
		require.NoError(t, err)
		require.NoError(t, half.Close())
		var g errgroup.Group
		for range 2 {
			for i, d := range s.Disks {
				truth := h.Truth(t, vm, d)
				require.Equal(t, d.ID, l.Disks()[i].ID)
				require.Equal(t, d.Size, l.Disks()[i].Size)
				require.NotEmpty(t, l.Disks()[i].Format)
				g.Go(func() error { return examineStream(ctx, l, d.ID, truth) })
			}
		}
		require.NoError(t, g.Wait())
		require.NoError(t, l.Err())
		require.NoError(t, l.Commit(ctx))
		require.NoError(t, l.Close(), "a lease that is complete is not aborted")
		require.Error(t, l.Err())
		_, err = l.Open(ctx, s.Disks[0].ID, nil)
		require.Error(t, err, "nothing can be read any more")
	})
	t.Run("one lease at a time", func(t *testing.T) {
		l := lease(t, src, ref)
		_, err := src.Lease(ctx, ref)
		require.ErrorIs(t, err, providers.Precondition)
		require.NoError(t, l.Close())
		again := lease(t, src, ref)
		_, err = again.Open(ctx, "no-such-disk", nil)
		require.ErrorIs(t, err, providers.NotFound)
	})
	t.Run("a tap that fails ends its stream", func(t *testing.T) {
		l := lease(t, src, ref)
		enough := errors.New("enough")
		st, err := l.Open(ctx, s.Disks[0].ID, tap(func([]byte) error { return enough }))
		if err == nil {
			defer st.Close()
			_, err = drain(ctx, st)
		}
		require.ErrorIs(t, err, enough)
		require.NoError(t, examineStream(ctx, l, s.Disks[0].ID, h.Truth(t, vm, s.Disks[0])), "and no other")
	})
	for name, end := range map[string]func(*testing.T, providers.Lease, context.CancelFunc){
		"closed":    func(t *testing.T, l providers.Lease, _ context.CancelFunc) { require.NoError(t, l.Close()) },
		"cancelled": func(_ *testing.T, _ providers.Lease, cancel context.CancelFunc) { cancel() },
	} {
		t.Run("reads end when the lease is "+name, func(t *testing.T) {
			within, cancel := context.WithCancel(ctx)
			defer cancel()
			l, err := src.Lease(within, ref)
			require.NoError(t, err)
			defer l.Close()
			st, err := l.Open(ctx, s.Disks[0].ID, nil)
			require.NoError(t, err)
			defer st.Close()
			end(t, l, cancel)
			done := make(chan error, 1)
			go func() {
				_, err := drain(ctx, st)
				done <- err
			}()
			select {
			case err := <-done:
				require.Equal(t, providers.Canceled, providers.ReasonOf(err), "%v", err)
			case <-time.After(prompt):
				require.Fail(t, "reads go on after the lease has ended")
			}
			require.Error(t, l.Commit(ctx))
		})
	}
}

func lease(t *testing.T, src providers.DiskLeaser, ref providers.SnapshotRef) providers.Lease {
	t.Helper()
	l, err := src.Lease(t.Context(), ref)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

type tap func([]byte) error

func (f tap) Write(p []byte) (int, error) { return len(p), f(p) }

// drain reads a stream to its end and answers how many chunks came. A stream that ends without an error
// before all is read is an error.
func drain(ctx context.Context, st formats.Stream) (n int, err error) {
	for {
		_, err := st.Next(ctx)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
	}
}

// examineStream reads a leased disk to its end and compares it with the truth; and what the tap was
// given with what the lease says that it is.
func examineStream(ctx context.Context, l providers.Lease, disk providers.DiskID, truth []byte) error {
	var stored int64
	st, err := l.Open(ctx, disk, tap(func(p []byte) error { stored += int64(len(p)); return nil }))
	if err != nil {
		return err
	}
	defer st.Close()
	got := formatstest.NewMemFile()
	w, err := raw.Format().Create(ctx, got, st.Size(), formats.CreateOptions{}, formats.Checkpoint{})
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := formats.Copy(ctx, w, st, formats.CopyOptions{}); err != nil {
		return err
	}
	if err := w.Commit(ctx); err != nil {
		return err
	}
	if b := make([]byte, len(truth)); got.Size() != int64(len(b)) {
		return fmt.Errorf("disk %s has %d bytes, not %d", disk, got.Size(), len(b))
	} else if _, err := got.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if !bytes.Equal(truth, b) {
		return fmt.Errorf("disk %s is not what the platform has", disk)
	}
	if stored == 0 {
		return fmt.Errorf("disk %s came without passing the tap", disk)
	}
	return nil
}
