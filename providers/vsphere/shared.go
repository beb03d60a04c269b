package vsphere

import (
	"context"
	"sync"
	"time"
)

// shared lets those who want the same answer at the same time share one, so that the server is asked
// once and not once each. Nobody gets an answer that is older than his question: who comes while the
// server is being asked waits for the next round, with all others who do.
type shared[T any] struct {
	ask func(context.Context) (T, error)

	mu   sync.Mutex
	busy bool
	next *round[T] // what those who come now will share; nil where nobody came yet
	last *round[T] // the last that had an answer
}

// round is one question to the server.
type round[T any] struct {
	ctx     context.Context // over when all who wait have gone
	cancel  context.CancelFunc
	waiting int
	done    chan struct{}
	asked   time.Time
	answer  T
	err     error
}

func newShared[T any](ask func(context.Context) (T, error)) *shared[T] { return &shared[T]{ask: ask} }

// do answers. The answer belongs to others too: it is not to be changed.
func (s *shared[T]) do(ctx context.Context) (T, error) {
	r := s.join(ctx)
	select {
	case <-r.done:
		return r.answer, r.err
	case <-ctx.Done():
		s.leave(r)
		var none T
		return none, context.Cause(ctx)
	}
}

func (s *shared[T]) join(ctx context.Context) *round[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &round[T]{done: make(chan struct{})}
		s.next.ctx, s.next.cancel = context.WithCancel(context.WithoutCancel(ctx))
	}
	s.next.waiting++
	if !s.busy {
		s.busy = true
		go s.serve()
	}
	return s.next
}

func (s *shared[T]) leave(r *round[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.waiting--; r.waiting > 0 {
		return
	}
	r.cancel()
	if s.next == r {
		s.next = nil
	}
}

// serve asks round after round, for as long as there is anyone who wants to know.
func (s *shared[T]) serve() {
	for r := s.take(); r != nil; r = s.take() {
		r.asked = time.Now()
		r.answer, r.err = s.ask(r.ctx)
		r.cancel()
		close(r.done)
		if r.err == nil {
			s.mu.Lock()
			s.last = r
			s.mu.Unlock()
		}
	}
}

// recent is the last answer, where it is not older than age. Whoever takes it checks what he makes of it.
func (s *shared[T]) recent(age time.Duration) (answer T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || time.Since(s.last.asked) > age {
		s.last = nil // it is not kept for nobody
		return answer, false
	}
	return s.last.answer, true
}

func (s *shared[T]) take() *round[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.next
	s.next, s.busy = nil, r != nil
	return r
}
