package connections_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/connections"
)

func TestASessionIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		p.takes = time.Second
		o := options(t, p)
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
		o.Static["same"] = connections.Config{Kind: "fake", Config: config("vc")}
		o.Static["other"] = connections.Config{Kind: "fake", Config: config("elsewhere")}
		conns := open(t, o)
		require.NoError(t, conns.Put(t.Context(), "job-1", "fake", []byte(`{ "password":"`+password+`", "server":"vc" }`)))

		var wg sync.WaitGroup
		got := make([]providers.Provider, 30)
		for i := range got {
			wg.Go(func() {
				got[i], _ = conns.Open(t.Context(), []string{"a", "same", "job-1"}[i%3])
			})
		}
		wg.Wait()
		for _, g := range got {
			require.Same(t, got[0], g)
		}
		require.EqualValues(t, 1, p.opened.Load(), "all that came at once waited for one login")

		other, err := conns.Open(t.Context(), "other")
		require.NoError(t, err)
		require.NotSame(t, got[0], other)
	})
}

func TestASessionLivesWhileItIsLentAndAWhileLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		o := options(t, p)
		o.Idle = time.Minute
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
		conns := open(t, o)

		long, endLong := context.WithCancel(t.Context())
		short, endShort := context.WithCancel(t.Context())
		for _, ctx := range []context.Context{long, short, long} {
			_, err := conns.Open(ctx, "a")
			require.NoError(t, err)
		}
		endShort()
		pass(48 * time.Hour)
		require.Zero(t, p.closed.Load(), "somebody still uses it")

		endLong()
		pass(59 * time.Second)
		again, endAgain := context.WithCancel(t.Context())
		_, err := conns.Open(again, "a")
		require.NoError(t, err)
		pass(time.Hour)
		require.EqualValues(t, 1, p.opened.Load())
		endAgain()
		pass(61 * time.Second)
		require.EqualValues(t, 1, p.closed.Load())

		_, err = conns.Open(t.Context(), "a")
		require.NoError(t, err)
		require.EqualValues(t, 2, p.opened.Load(), "after that it is opened anew")
	})
}

func TestForgetEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		conns := open(t, options(t, p))
		require.NoError(t, conns.Put(t.Context(), "job-1", "fake", config("vc")))
		ctx, end := context.WithCancel(t.Context())
		_, err := conns.Open(ctx, "job-1")
		require.NoError(t, err)

		require.NoError(t, conns.Forget(t.Context(), "job-1"))
		synctest.Wait()
		require.Zero(t, p.closed.Load(), "it is still lent")
		end()
		synctest.Wait()
		require.EqualValues(t, 1, p.closed.Load(), "given back, it ends without an idle time")
	})
}

func TestAFailedLoginIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		o := options(t, p)
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
		conns := open(t, o)
		p.fail(&providers.Error{Op: "fake: open", Reason: providers.Unavailable, Msg: "down"})
		_, err := conns.Open(t.Context(), "a")
		require.ErrorIs(t, err, providers.Unavailable)
		p.fail(nil)
		_, err = conns.Open(t.Context(), "a")
		require.NoError(t, err)
	})
}

func TestARefusedPasswordIsNotRepeatedUntilTheAccountIsLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		conns := open(t, options(t, p))
		for _, name := range []string{"job-1", "job-2", "job-3"} {
			require.NoError(t, conns.Put(t.Context(), name, "fake", config("vc")))
		}
		p.fail(&providers.Error{Op: "fake: open", Reason: providers.Auth})
		for range 3 {
			for _, name := range []string{"job-1", "job-2", "job-3"} {
				_, err := conns.Open(t.Context(), name)
				require.ErrorIs(t, err, providers.Auth)
			}
		}
		require.EqualValues(t, 1, p.opened.Load())

		require.NoError(t, conns.Put(t.Context(), "job-2", "fake", []byte(`{"server":"vc","password":"another"}`)))
		p.fail(nil)
		_, err := conns.Open(t.Context(), "job-2")
		require.NoError(t, err, "another password is tried at once")
		_, err = conns.Open(t.Context(), "job-1")
		require.ErrorIs(t, err, providers.Auth)
		pass(31 * time.Second)
		_, err = conns.Open(t.Context(), "job-1")
		require.NoError(t, err, "and the same one after a while")
	})
}

func TestWhoGivesUpWaitingDoesNotHinderOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		p.takes = 10 * time.Second
		o := options(t, p)
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
		conns := open(t, o)

		hasty, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		var first, second error
		wg.Go(func() { _, first = conns.Open(hasty, "a") })
		synctest.Wait()
		wg.Go(func() { _, second = conns.Open(t.Context(), "a") })
		wg.Wait()
		require.ErrorIs(t, first, context.DeadlineExceeded)
		require.NoError(t, second)
		require.EqualValues(t, 1, p.opened.Load())
	})
}

func TestASessionThatNobodyWaitedForEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		p.takes = 10 * time.Second
		o := options(t, p)
		o.Idle = time.Second // less than the login takes
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
		conns := open(t, o)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := conns.Open(ctx, "a")
		require.Error(t, err)
		pass(time.Minute)
		require.EqualValues(t, 1, p.opened.Load())
		require.EqualValues(t, 1, p.closed.Load())
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		o := options(t, p)
		o.Static["a"] = connections.Config{Kind: "fake", Config: config("a")}
		o.Static["slow"] = connections.Config{Kind: "fake", Config: config("slow")}
		conns := connections.New(o)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := conns.Open(ctx, "a")
		require.NoError(t, err)
		p.takes = time.Hour
		var connecting error
		var wg sync.WaitGroup
		wg.Go(func() { _, connecting = conns.Open(t.Context(), "slow") })
		synctest.Wait()

		require.NoError(t, conns.Close())
		require.EqualValues(t, 1, p.closed.Load(), "also what is lent")
		wg.Wait()
		require.Error(t, connecting, "and what connects")
		cancel()
		synctest.Wait()
		require.EqualValues(t, 1, p.closed.Load(), "once")
		_, err = conns.Open(t.Context(), "a")
		require.ErrorIs(t, err, providers.Canceled)
		require.NoError(t, conns.Close())
	})
}

func TestOpenOnceIsTheCallersOwn(t *testing.T) {
	p := newPlatform()
	o := options(t, p)
	o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
	conns := open(t, o)
	shared, err := conns.Open(t.Context(), "a")
	require.NoError(t, err)
	own, err := conns.OpenOnce(t.Context(), "fake", config("vc"))
	require.NoError(t, err)
	require.NotSame(t, shared, own)
	require.NoError(t, own.Close())
	_, err = conns.OpenOnce(t.Context(), "fake", []byte(`{"server":"","password":"`+password+`"}`))
	require.ErrorIs(t, err, providers.Invalid)
	require.NotContains(t, err.Error(), password)
}

// pass lets time go by, and everything happen that is due then.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// platform is a kind of provider that counts.
type platform struct {
	opened, closed atomic.Int32
	takes, leaves  time.Duration // a login, a logout

	mu        sync.Mutex
	err       error
	unplugged bool // a logout does not come through
	next      int
	sessions  map[string]bool // that live
}

type provider struct {
	platform *platform
	server   string
	memory   providers.Memory
	session  string
	once     atomic.Bool
}

type fakeConfig struct {
	Server   string           `json:"server"`
	Region   string           `json:"region"`
	Password providers.Secret `json:"password"`
}

func (c fakeConfig) Validate() error {
	if c.Server == "" && c.Region == "" {
		return errors.New("server: is missing")
	}
	return nil
}

func newPlatform() *platform { return &platform{sessions: map[string]bool{}} }

func (p *platform) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *platform) drivers() providers.Set {
	return providers.Set{providers.NewDriver("fake", "Fake", fakeConfig{}, func(ctx context.Context, c fakeConfig, env providers.Env) (providers.Provider, error) {
		p.opened.Add(1)
		select {
		case <-time.After(p.takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.err != nil {
			return nil, p.err
		}
		return p.enter(c.Server, env.Memory)
	})}
}

// enter takes up the session in the memory, if it lives, or makes one.
func (p *platform) enter(server string, m providers.Memory) (*provider, error) {
	one := &provider{platform: p, server: server, memory: m}
	if m != nil {
		kept, err := m.Load()
		if err != nil {
			return nil, err
		}
		one.session = string(kept)
	}
	if !p.sessions[one.session] {
		p.next++
		one.session = fmt.Sprint("session-", p.next)
		p.sessions[one.session] = true
		if m != nil {
			return one, m.Save([]byte(one.session))
		}
	}
	return one, nil
}

func (*provider) Kind() string               { return "fake" }
func (*provider) Ping(context.Context) error { return nil }

func (p *provider) Close() error {
	if p.once.Swap(true) {
		panic("closed twice")
	}
	p.platform.closed.Add(1)
	<-time.After(p.platform.leaves)
	p.platform.mu.Lock()
	defer p.platform.mu.Unlock()
	if p.platform.unplugged {
		return errors.New("the server does not answer")
	}
	delete(p.platform.sessions, p.session)
	if p.memory != nil {
		return p.memory.Save(nil)
	}
	return nil
}
