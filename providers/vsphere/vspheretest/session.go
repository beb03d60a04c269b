package vspheretest

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// sessions enforces what the simulator is lax about: that there is a session at all, and that one
// that nobody uses ends.
type sessions struct {
	server *Server

	mu   sync.Mutex
	live map[string]*session // by the value of the cookie
}

type session struct {
	key   string
	used  time.Time
	calls int // under way
	// Set by the first call in the session.
	inner     *simulator.Session
	collector map[types.ManagedObjectReference]*simulator.PropertyCollector // that somebody may wait on
}

// Session is a live session.
type Session struct {
	Key         string  `json:"key"`
	IdleSeconds float64 `json:"idle_seconds"` // since its last call
}

func (s *sessions) init(server *Server) {
	s.server, s.live = server, map[string]*session{}
}

// add takes up a session that a login has made.
func (s *sessions) add(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[key] = &session{key: key, used: time.Now(), collector: map[types.ManagedObjectReference]*simulator.PropertyCollector{}}
}

// note is called by the simulator before each call that it dispatches.
func (s *sessions) note(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if ctx.Session == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.live[ctx.Session.Key]
	if one == nil {
		return nil, nil
	}
	one.inner = ctx.Session
	if m.This.Type == "PropertyCollector" {
		if c, ok := ctx.Session.Get(m.This).(*simulator.PropertyCollector); ok {
			one.collector[m.This] = c
		}
	}
	return nil, nil
}

// of is the live session that a request carries, nil for none.
func (s *sessions) of(r *http.Request) *session {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return nil
	}
	s.expire()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[cookie.Value]
}

// use keeps a session alive until the function that it returns is called, and makes it idle from then
// on. Calls of the API do so, downloads do not.
func (s *sessions) use(one *session) (done func()) {
	count := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		one.used, one.calls = time.Now(), one.calls+n
	}
	count(1)
	return func() { count(-1) }
}

// alive says whether a session has not ended.
func (s *sessions) alive(one *session) bool {
	s.expire()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[one.key] == one
}

// expire ends the sessions that were idle for too long.
func (s *sessions) expire() {
	limit := s.server.opt.SessionTimeout
	if limit <= 0 {
		return
	}
	s.end(func(one *session) bool { return one.calls == 0 && time.Since(one.used) > limit })
}

// end ends the sessions that which picks.
func (s *sessions) end(which func(*session) bool) {
	var ended []*session
	s.mu.Lock()
	for key, one := range s.live {
		if which(one) {
			ended = append(ended, one)
			delete(s.live, key)
		}
	}
	s.mu.Unlock()
	for _, one := range ended {
		inner := one.inner
		if inner == nil { // it was never used
			inner = &simulator.Session{UserSession: types.UserSession{Key: one.key}, Registry: simulator.NewRegistry(), Map: s.server.reg}
		}
		ctx := &simulator.Context{Map: s.server.reg, Context: s.server.ctx, Session: inner}
		s.server.reg.SessionManager().Logout(ctx, &types.Logout{})
	}
}

// terminated takes down the sessions that a client has ended.
func (s *sessions) terminated(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		delete(s.live, key)
	}
}

// release lets a call that waits for changes come back, because nobody waits for it any more.
func (s *sessions) release(one *session, this types.ManagedObjectReference) {
	s.mu.Lock()
	c := one.collector[this]
	s.mu.Unlock()
	if c != nil {
		c.CancelWaitForUpdates(&types.CancelWaitForUpdates{This: this})
	}
}

// Sessions is the live sessions.
func (s *Server) Sessions() []Session {
	s.sessions.expire()
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	out := []Session{}
	for key, one := range s.sessions.live {
		out = append(out, Session{Key: key, IdleSeconds: time.Since(one.used).Seconds()})
	}
	slices.SortFunc(out, func(a, b Session) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// ExpireSessions ends all sessions now, as a restart of the vCenter would.
func (s *Server) ExpireSessions() {
	s.sessions.end(func(*session) bool { return true })
}
