package providertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hypersdk/formats"
	"hypersdk/providers"
)

func (h Harness) diskSource(t *testing.T) {
	p := h.open(t)
	src, snap := capability[providers.DiskSource](t, p), capability[providers.Snapshotter](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()

	usable := 0
	transports, err := src.Transports(ctx, vm)
	require.NoError(t, err)
	for _, tr := range transports {
		require.NotEmpty(t, tr.Name)
		if tr.Why == "" {
			usable++
		}
	}
	require.Positive(t, usable, "the VM can be read: %+v", transports)
	_, err = src.Transports(ctx, providers.VM{ID: h.Absent})
	require.ErrorIs(t, err, providers.NotFound)

	s, err := snap.Snapshot(ctx, vm.ID, providers.SnapshotOptions{Key: "exam/disks"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, snap.DeleteSnapshot(context.Background(), vm.ID, s.ID)) })

	t.Run("what is not there", func(t *testing.T) {
		for _, ref := range []providers.DiskRef{
			{VM: h.Absent, Snapshot: s.ID, Disk: s.Disks[0].ID},
			{VM: vm.ID, Snapshot: "no-such-snapshot", Disk: s.Disks[0].ID},
			{VM: vm.ID, Snapshot: s.ID, Disk: "no-such-disk"},
		} {
			_, err := src.OpenDisk(ctx, ref)
			require.ErrorIs(t, err, providers.NotFound, "%+v", ref)
		}
		_, err := src.OpenDisk(ctx, providers.DiskRef{VM: vm.ID, Snapshot: s.ID, Disk: s.Disks[0].ID, Transport: "pigeon"})
		require.ErrorIs(t, err, providers.Unsupported)
	})
	for _, d := range s.Disks {
		ref := providers.DiskRef{VM: vm.ID, Snapshot: s.ID, Disk: d.ID}
		truth := h.Truth(t, vm, d)
		t.Run("disk "+string(d.ID), func(t *testing.T) {
			im, err := src.OpenDisk(ctx, ref)
			require.NoError(t, err)
			defer im.Close()
			require.EqualValues(t, len(truth), d.Size)
			examineImage(t, im, truth)
		})
		t.Run("disk "+string(d.ID)+" cancelled", func(t *testing.T) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			im, err := src.OpenDisk(ctx, ref)
			require.NoError(t, err)
			defer im.Close()
			examineEnd(t, im, cancel)
		})
		t.Run("disk "+string(d.ID)+" closed", func(t *testing.T) {
			im, err := src.OpenDisk(ctx, ref)
			require.NoError(t, err)
			examineEnd(t, im, func() { require.NoError(t, im.Close()) })
		})
		_, err := src.OpenDisk(cancelled(t), ref)
		require.ErrorIs(t, err, context.Canceled)
	}
}

// examineImage compares an image with the truth in every way that it can be read.
func examineImage(t *testing.T, im formats.Image, truth []byte) {
	size := int64(len(truth))
	require.Equal(t, size, im.Size())

	t.Run("whole, by many at once", func(t *testing.T) {
		got := make([]byte, size)
		chunk := max(size/16, 1)
		var g errgroup.Group
		g.SetLimit(8)
		for off := int64(0); off < size; off += chunk {
			part := got[off:min(off+chunk, size)]
			g.Go(func() error {
				n, err := im.ReadAt(part, off)
				if n == len(part) && errors.Is(err, io.EOF) {
					err = nil // allowed at the very end
				}
				return err
			})
		}
		require.NoError(t, g.Wait())
		require.True(t, bytes.Equal(truth, got), "the disk is what the platform has")
	})
	t.Run("pieces of any length anywhere", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for range 40 {
			off := r.Int64N(size)
			p := make([]byte, 1+r.Int64N(min(70_000, size-off)))
			n, err := im.ReadAt(p, off)
			if err != nil {
				require.ErrorIs(t, err, io.EOF)
				require.Equal(t, size, off+int64(n))
			}
			require.Equal(t, len(p), n)
			require.True(t, bytes.Equal(truth[off:off+int64(n)], p), "%d bytes at %d", len(p), off)
		}
	})
	t.Run("at and past the end", func(t *testing.T) {
		p := make([]byte, 100)
		n, err := im.ReadAt(p, size-40)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 40, n)
		require.Equal(t, truth[size-40:], p[:40])
		for _, off := range []int64{size, size + 1, size << 20} {
			n, err = im.ReadAt(p, off)
			require.ErrorIs(t, err, io.EOF)
			require.Zero(t, n)
		}
		n, err = im.ReadAt(nil, 0)
		require.NoError(t, err)
		require.Zero(t, n)
		_, err = im.ReadAt(p, -1)
		require.Error(t, err)
		require.NotErrorIs(t, err, io.EOF)
	})
	t.Run("extents tile", func(t *testing.T) {
		for _, w := range [][2]int64{{0, size}, {0, 1}, {size / 3, size / 3}, {size - 1, 1}, {size, 0}, {0, 0}} {
			tiles(t, im, truth, w[0], w[1])
		}
		for _, w := range [][2]int64{{-1, 10}, {0, size + 1}, {size, 1}, {0, -1}} {
			var last error
			for _, err := range im.Extents(t.Context(), w[0], w[1]) {
				last = err
			}
			require.Error(t, last, "%v lies outside", w)
		}
	})
}

// tiles checks that extents cover [off, off+n) exactly and that what they call zero is.
func tiles(t *testing.T, im formats.Image, truth []byte, off, n int64) {
	at := off
	for e, err := range im.Extents(t.Context(), off, n) {
		require.NoError(t, err)
		require.Equal(t, at, e.Off)
		require.Positive(t, e.Len)
		require.NotEqual(t, formats.Absent, e.Kind, "a whole disk has no absent parts")
		at = e.End()
		require.LessOrEqual(t, at, off+n)
		if e.Kind == formats.Zero {
			require.Equal(t, make([]byte, e.Len), truth[e.Off:e.End()])
		}
	}
	require.Equal(t, off+n, at)
}

// examineEnd ends an image under reads that go on and on, and checks that they notice.
func examineEnd(t *testing.T, im formats.Image, end func()) {
	const readers = 4
	started, done := make(chan struct{}, readers), make(chan error, readers)
	for range readers {
		go func() {
			p := make([]byte, min(1<<20, im.Size()))
			var once bool
			for {
				_, err := im.ReadAt(p, 0)
				if !once {
					once = true
					started <- struct{}{}
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range readers {
		<-started
	}
	end()
	deadline := time.After(prompt)
	for range readers {
		select {
		case err := <-done:
			require.Equal(t, providers.Canceled, providers.ReasonOf(err), "%v", err)
			require.NotErrorIs(t, err, io.EOF)
		case <-deadline:
			require.Fail(t, "reads go on after the image has ended")
		}
	}
	_, err := im.ReadAt(make([]byte, 1), 0)
	require.Error(t, err)
}
