package vsphere

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSharedAnswersManyWithOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, free := 0, make(chan struct{})
		s := newShared(func(context.Context) (int, error) {
			asked++
			n := asked
			<-free
			return n, nil
		})
		var (
			mu      sync.Mutex
			answers []int
			all     sync.WaitGroup
		)
		ask := func() {
			n, err := s.do(t.Context())
			require.NoError(t, err)
			mu.Lock()
			answers = append(answers, n)
			mu.Unlock()
		}
		all.Go(ask)
		synctest.Wait() // the first question is with the server
		for range 100 {
			all.Go(ask)
		}
		synctest.Wait()
		free <- struct{}{}
		synctest.Wait()
		require.Equal(t, []int{1}, answers, "who came after the question was put must not get its answer")
		free <- struct{}{}
		all.Wait()
		require.Len(t, answers, 101)
		require.Equal(t, 2, asked)

		n, ok := s.recent(time.Second)
		require.True(t, ok)
		require.Equal(t, 2, n)
		<-time.After(time.Second + 1) // in the bubble: no time passes
		_, ok = s.recent(time.Second)
		require.False(t, ok)

		// And when all is quiet again, a new caller is a new question.
		all.Go(ask)
		free <- struct{}{}
		all.Wait()
		require.Equal(t, 3, asked)
	})
}

func TestSharedStopsAskingWhenAllHaveGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := newShared(func(ctx context.Context) (int, error) {
			asked++
			<-ctx.Done()
			return 0, ctx.Err()
		})
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		third, leaveThird := context.WithCancelCause(t.Context())
		results := make(chan error, 3)
		ask := func(ctx context.Context) { _, err := s.do(ctx); results <- err }
		go ask(first)
		synctest.Wait()
		go ask(second) // waits for a round that is not begun
		go ask(third)
		synctest.Wait()

		gone := errors.New("gone")
		leaveThird(gone)
		require.ErrorIs(t, <-results, gone)
		leaveSecond()
		require.ErrorIs(t, <-results, context.Canceled)
		synctest.Wait()
		leaveFirst()
		require.ErrorIs(t, <-results, context.Canceled)
		synctest.Wait()
		require.Equal(t, 1, asked, "nobody was left to ask the second time for")
		require.False(t, s.busy)
	})
}
