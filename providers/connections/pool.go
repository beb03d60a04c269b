package connections

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"maps"
	"sync"
	"time"

	"hypersdk/providers"
)

const (
	connectTimeout = time.Minute
	// refusedFor is how long credentials that were refused are not tried again. Platforms lock an
	// account after a few wrong passwords, and a list of jobs brings the same one many times.
	refusedFor = 30 * time.Second
)

type sessionID = [sha256.Size]byte

// pool is the live sessions: one for each configuration, however many names it has.
type pool struct {
	drivers providers.Set
	idle    time.Duration
	log     *slog.Logger
	life    context.Context // of the pool; ends what is connecting
	stop    context.CancelFunc
	work    sync.WaitGroup // connecting and closing

	mu       sync.Mutex
	sessions map[sessionID]*session
	refused  map[sessionID]refusal
	closed   bool
}

// session is one provider, connected or about to be. ready guards provider and err; the mutex of the
// pool guards the rest.
type session struct {
	id       sessionID
	ready    chan struct{}
	provider providers.Provider
	err      error

	lent    int
	dropped bool // close it as soon as it is not lent
	ended   bool // it is no longer in the pool, and closed, about to be, or not connected yet
	idle    *time.Timer
}

type refusal struct {
	err   error
	until time.Time
}

func newPool(drivers providers.Set, idle time.Duration, log *slog.Logger) *pool {
	life, stop := context.WithCancel(context.Background())
	return &pool{drivers: drivers, idle: idle, log: log, life: life, stop: stop,
		sessions: map[sessionID]*session{}, refused: map[sessionID]refusal{}}
}

// open lends the session of c until ctx ends, and connects first where there is none. Those who come
// meanwhile wait for the same attempt.
func (p *pool) open(ctx context.Context, c Config) (providers.Provider, error) {
	s, err := p.borrow(c)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		p.giveBack(s)
		err := context.Cause(ctx)
		return nil, &providers.Error{Op: "connections: open", Reason: providers.ReasonOf(err), Err: err}
	}
	if s.err != nil {
		return nil, s.err
	}
	context.AfterFunc(ctx, func() { p.giveBack(s) })
	return s.provider, nil
}

func (p *pool) borrow(c Config) (*session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, &providers.Error{Op: "connections: open", Reason: providers.Canceled, Msg: "the program is about to stop"}
	}
	id := c.sessionID()
	if r, ok := p.refused[id]; ok {
		if time.Now().Before(r.until) {
			return nil, r.err
		}
		delete(p.refused, id)
	}
	s := p.sessions[id]
	if s == nil {
		s = &session{id: id, ready: make(chan struct{})}
		s.idle = time.AfterFunc(p.idle, func() { p.expire(s) })
		p.sessions[id] = s
		p.work.Go(func() { p.fill(s, c) })
	}
	s.idle.Stop()
	s.lent++
	return s, nil
}

// fill connects a session. Its context is not that of who came first: others may wait for it too.
func (p *pool) fill(s *session, c Config) {
	ctx, cancel := context.WithTimeout(p.life, connectTimeout)
	defer cancel()
	s.provider, s.err = p.connect(ctx, c)

	p.mu.Lock()
	if s.err != nil {
		p.remove(s)
		if providers.ReasonOf(s.err) == providers.Auth {
			p.refuse(s)
		}
	}
	close(s.ready)
	unwanted := s.ended && s.err == nil // removed while it was connecting
	p.mu.Unlock()
	if unwanted {
		p.logout(s)
	}
}

func (p *pool) refuse(s *session) {
	now := time.Now()
	maps.DeleteFunc(p.refused, func(_ sessionID, r refusal) bool { return now.After(r.until) })
	p.refused[s.id] = refusal{err: s.err, until: now.Add(refusedFor)}
}

func (p *pool) connect(ctx context.Context, c Config) (providers.Provider, error) {
	d, err := p.drivers.Driver(c.Kind)
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, c.Config, providers.Env{Log: p.log})
}

func (p *pool) giveBack(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.lent--
	switch {
	case s.lent > 0 || s.ended:
	case s.dropped:
		p.end(s)
	default:
		s.idle.Reset(p.idle)
	}
}

// expire ends a session that nobody has used for a while.
func (p *pool) expire(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.lent == 0 {
		p.end(s)
	}
}

// drop ends the session of c once it is no longer lent.
func (p *pool) drop(c Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sessions[c.sessionID()]; s != nil {
		s.dropped = true
		if s.lent == 0 {
			p.end(s)
		}
	}
}

// close ends all sessions, lent or not, and waits for that.
func (p *pool) close() {
	p.mu.Lock()
	for _, s := range p.sessions {
		p.end(s)
	}
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.work.Wait()
}

// end removes a session and closes it in the background, for closing asks the platform. The lock is
// held.
func (p *pool) end(s *session) {
	if p.remove(s) {
		p.work.Go(func() { p.logout(s) })
	}
}

// remove takes a session out of the pool, with the lock held. It is true where the caller must close
// it: one that still connects is closed by who connects it.
func (p *pool) remove(s *session) bool {
	if s.ended {
		return false
	}
	s.ended = true
	s.idle.Stop()
	delete(p.sessions, s.id)
	select {
	case <-s.ready:
		return s.err == nil
	default:
		return false
	}
}

func (p *pool) logout(s *session) {
	if err := s.provider.Close(); err != nil {
		p.log.Warn("a session could not be ended", "provider", s.provider.Kind(), "error", err)
	}
}
