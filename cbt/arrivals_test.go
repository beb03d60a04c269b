package cbt

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

func TestArrivals(t *testing.T) {
	const block = formats.BlockSize
	data := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	for _, c := range []struct {
		name string
		come func(a *arrivals)
		want bool
	}{
		{"all of it", func(a *arrivals) { a.put(block+8, data(4)); a.put(block, data(4)) }, true},
		{"before anybody waits, and in any order", func(a *arrivals) { a.put(3*block, data(4)); a.put(block, data(8)) }, true},
		{"not all, and it ended", func(a *arrivals) { a.put(block, data(4)); a.end() }, false},
		{"not all, and the copy is far ahead", func(a *arrivals) { a.put(block, data(4)); a.put(2*block+passed, data(4)) }, false},
		{"a piece twice", func(a *arrivals) { a.put(block, data(4)); a.put(block, data(4)) }, false},
		{"no room", func(a *arrivals) {
			for i := range int64(maxArrived / block) {
				a.put((2+i)*block, data(block))
			}
			a.put(block, data(8))
		}, false},
	} {
		for _, late := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, buf, done := newArrivals(), make([]byte, block), make(chan bool)
					if !late {
						c.come(a)
					}
					go func() { done <- a.take(t.Context(), 1, 8, buf) }()
					synctest.Wait()
					if late {
						c.come(a)
					}
					require.Equal(t, c.want, <-done)
					require.Equal(t, c.want, bytes.Count(buf, []byte{7}) == 8)
					a.put(block, data(4))
					require.Empty(t, a.blocks[1].pieces, "nobody waits for it any more")
				})
			})
		}
	}
}

func TestArrivalsOfACopyThatIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a, done := newArrivals(), make(chan bool)
		go func() { done <- a.take(ctx, 1, 8, make([]byte, formats.BlockSize)) }()
		synctest.Wait()
		cancel()
		require.False(t, <-done)
	})
}

// Room that was taken is free again.
func TestArrivalsHoldLittle(t *testing.T) {
	a, piece := newArrivals(), make([]byte, formats.BlockSize)
	for i := range int64(3 * maxArrived / formats.BlockSize) {
		a.put(i*formats.BlockSize, piece)
		require.True(t, a.take(t.Context(), i, formats.BlockSize, piece))
	}
	require.Zero(t, a.held)
}
