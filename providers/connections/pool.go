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
	drivers  providers.Set
	memories *memories
	idle     time.Duration
	log      *slog.Logger
	life     context.Context // of the pool; ends what is connecting
	stop     context.CancelFunc
	work     sync.WaitGroup // connecting and closing

	mu       sync.Mutex
	sessions map[sessionID]*session // the latest of each configuration, until it is over
	refused  map[sessionID]refusal
	closed   bool
}

// session is one provider, connected or about to be. ready guards provider and err; the mutex of the
// pool guards the rest.
type session struct {
	id       sessionID
	before   *session // of the same configuration, which may not be over yet
	ready    chan struct{}
	over     chan struct{} // it was closed, or never connected
	provider providers.Provider
	err      error

	lent    int
	dropped bool // close it as soon as it is not lent
	ended   bool // nobody gets it any more: it is closed, about to be, or not connected yet
	idle    *time.Timer
}

type refusal struct {
	err   error
	until time.Time
}

func newPool(drivers providers.Set, m *memories, idle time.Duration, log *slog.Logger) *pool {
	life, stop := context.WithCancel(context.Background())
	return &pool{drivers: drivers, memories: m, idle: idle, log: log, life: life, stop: stop,
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
	if s == nil || s.ended {
		s = p.begin(id, c)
	}
	s.idle.Stop()
	s.lent++
	return s, nil
}

// begin has a session connected. The lock is held.
func (p *pool) begin(id sessionID, c Config) *session {
	s := &session{id: id, before: p.sessions[id], ready: make(chan struct{}), over: make(chan struct{})}
	s.idle = time.AfterFunc(p.idle, func() { p.expire(s) })
	p.sessions[id] = s
	p.work.Go(func() { p.fill(s, c) })
	return s
}

// resume takes up what a killed process has left of these, and deletes what it has left of others.
func (p *pool) resume(all []Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.memories.mine() {
		return
	}
	known := map[sessionID]bool{}
	for id := range p.sessions {
		known[id] = true
	}
	for _, c := range all {
		id := c.sessionID()
		if known[id] = true; p.sessions[id] == nil && p.memories.has(id) {
			p.begin(id, c)
		}
	}
	if err := p.memories.keepOnly(known); err != nil {
		p.log.Warn("what was kept of sessions could not be deleted", "error", err)
	}
}

// fill connects a session, when that before it is over: two providers would have its memory else. The
// context is not that of who came first: others may wait for it too.
func (p *pool) fill(s *session, c Config) {
	if s.before != nil {
		<-s.before.over
		s.before = nil
	}
	ctx, cancel := context.WithTimeout(p.life, connectTimeout)
	defer cancel()
	memory, err := p.memories.of(s.id)
	if err != nil {
		p.log.Warn("should this program be killed, a session stays until it has been idle for too long", "error", err)
	}
	s.provider, s.err = p.connect(ctx, c, memory)

	p.mu.Lock()
	if s.err != nil {
		s.ended = true
		s.idle.Stop()
		if providers.ReasonOf(s.err) == providers.Auth {
			p.refuse(s)
		}
	}
	close(s.ready)
	ended := s.ended // meanwhile, or because it could not connect
	p.mu.Unlock()
	if ended {
		p.finish(s)
	}
}

func (p *pool) refuse(s *session) {
	now := time.Now()
	maps.DeleteFunc(p.refused, func(_ sessionID, r refusal) bool { return now.After(r.until) })
	p.refused[s.id] = refusal{err: s.err, until: now.Add(refusedFor)}
}

func (p *pool) connect(ctx context.Context, c Config, memory providers.Memory) (providers.Provider, error) {
	d, err := p.drivers.Driver(c.Kind)
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, c.Config, providers.Env{Log: p.log, Memory: memory})
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

// drop ends the session of c once it is no longer lent, also one that a killed process has left.
// Nothing is kept of it.
func (p *pool) drop(c Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := c.sessionID()
	s := p.sessions[id]
	if s == nil && !p.closed && p.memories.has(id) {
		s = p.begin(id, c)
	}
	if s != nil {
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
	p.memories.release()
}

// end takes a session away from who may want it, and closes it in the background, for closing asks the
// platform. One that still connects is closed by who connects it. The lock is held.
func (p *pool) end(s *session) {
	if s.ended {
		return
	}
	s.ended = true
	s.idle.Stop()
	select {
	case <-s.ready:
		p.work.Go(func() { p.finish(s) })
	default:
	}
}

// finish closes a session, if it was connected, and is the last that happens to it.
func (p *pool) finish(s *session) {
	if s.err == nil {
		if err := s.provider.Close(); err != nil {
			p.log.Warn("a session could not be ended", "provider", s.provider.Kind(), "error", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.dropped {
		p.forget(s.id)
	}
	if p.sessions[s.id] == s {
		delete(p.sessions, s.id)
	}
	close(s.over)
}

// forget deletes what is kept of a session.
func (p *pool) forget(id sessionID) {
	memory, err := p.memories.of(id)
	if memory == nil || err != nil {
		return // nothing is
	}
	if err := memory.Save(nil); err != nil {
		p.log.Warn("what was kept of a session could not be deleted", "error", err)
	}
}
