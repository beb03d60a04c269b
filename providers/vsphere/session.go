package vsphere

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"reflect"
	"sync"
	"time"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

const (
	loginTimeout  = time.Minute // a login outlives the call that needed it
	logoutTimeout = 5 * time.Second
)

// login is the session with the server that SOAP calls and reads of disks share. It is a
// soap.RoundTripper: a call that finds the session ended logs in again, once, together with all the
// others that found the same, and is repeated.
type login struct {
	server   endpoint
	pool     *http.Transport
	log      *slog.Logger
	plain    *vim25.Client // calls without renewal
	cookies  *cookies
	memory   memory          // of the renewal in flight, and of close after the last one
	life     context.Context // ends with Close
	end      context.CancelFunc
	watchers sync.WaitGroup

	mu      sync.Mutex
	count   int      // logins that succeeded so far
	renewal *renewal // one in flight
	refused error    // the server said no to the credentials: it is not asked again
	closed  bool
}

type renewal struct {
	done chan struct{}
	err  error
}

// newLogin makes a client of the server, which answers who it is, and does not log in yet.
func newLogin(ctx context.Context, e endpoint, pool *http.Transport, env providers.Env) (*login, error) {
	l := &login{server: e, pool: pool, log: env.Log, cookies: &cookies{host: e.url.Host}, memory: memory{Memory: env.Memory}}
	l.recall()
	c, err := vim25.NewClient(ctx, l.newSOAP(l.cookies))
	if err != nil {
		return nil, err
	}
	l.plain = c
	l.life, l.end = context.WithCancel(context.Background())
	return l, nil
}

func (l *login) newSOAP(jar http.CookieJar) *soap.Client {
	c := soap.NewClient(l.server.url, false)
	c.UserAgent = l.agent()
	c.Namespace, c.Version = "urn:"+vim25.Namespace, vim25.Version
	c.Transport = soapTransport{l.pool} // ours, with its own idea of trust
	c.Jar = jar
	c.CheckRedirect = noRedirect
	return c
}

// noRedirect keeps the session's cookie from wandering to another host.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// client is a SOAP client whose calls renew the session.
func (l *login) client() *vim25.Client {
	return &vim25.Client{Client: l.plain.Client, ServiceContent: l.plain.ServiceContent, RoundTripper: l}
}

// RoundTrip makes one call. A call that failed for want of a session was not carried out, so that
// repeating it is safe whatever it does.
func (l *login) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	was := l.logins()
	err := l.plain.RoundTrip(ctx, req, res)
	if unauthenticated(err, res) {
		if err := l.renew(ctx, was); err != nil {
			return err
		}
		reflect.ValueOf(res).Elem().SetZero() // else the first answer's fault would stay in it
		if err = l.plain.RoundTrip(ctx, req, res); err == nil && unauthenticated(nil, res) {
			err = soap.WrapVimFault(&types.NotAuthenticated{})
		}
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // whatever the cancelled call says of it
	}
	return err
}

// unauthenticated says whether a call found no session. Properties that it asked for are missing then,
// each with that fault, and the call itself has none.
func unauthenticated(err error, res soap.HasFault) bool {
	if err != nil {
		return isFault[*types.NotAuthenticated](err)
	}
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return false
	}
	for _, o := range body.Res.Returnval.Objects {
		for _, m := range o.MissingSet {
			if _, ok := m.Fault.Fault.(*types.NotAuthenticated); ok {
				return true
			}
		}
	}
	return false
}

// logins is how many logins there were: what renew is to be told.
func (l *login) logins() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// renew makes sure that there is a session: was is how many logins there had been when it was found
// missing. It logs in once for all who ask at the same time.
func (l *login) renew(ctx context.Context, was int) error {
	l.mu.Lock()
	if l.refused != nil || l.closed || l.count != was {
		defer l.mu.Unlock()
		if l.closed {
			return errClosed
		}
		return l.refused
	}
	r := l.renewal
	if r == nil {
		r = &renewal{done: make(chan struct{})}
		l.renewal = r
		// On its own: a caller that gives up in the middle must not leave a session behind that nobody knows.
		l.watchers.Go(func() { l.run(r) })
	}
	l.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *login) run(r *renewal) {
	ctx, cancel := context.WithTimeout(l.life, loginTimeout)
	defer cancel()
	fresh, err := l.enter(ctx)
	l.mu.Lock()
	if fresh != nil {
		l.cookies.set(fresh)
		l.count++
	}
	if reason(err) == providers.Auth {
		l.refused = err // asking again and again would lock the account
	}
	l.renewal, r.err = nil, err
	again := l.count > 1 && fresh != nil
	l.mu.Unlock()
	close(r.done)
	if again {
		l.log.Info("logged in again", "provider", Kind, "op", "login")
	}
}

// enter takes up the session that was kept, or logs in, and answers the cookies of the session; none
// where that which there was lives after all.
func (l *login) enter(ctx context.Context) ([]*http.Cookie, error) {
	if l.logins() > 0 {
		if s, err := session.NewManager(l.plain).UserSession(ctx); s != nil || err != nil {
			return nil, err
		}
	} else if held, err := l.adopt(ctx); held != nil || err != nil {
		return held, err
	}
	return l.logIn(ctx)
}

// logIn makes a session and keeps it. A program that is killed between the two leaves the session
// behind, so that nothing else may come there.
func (l *login) logIn(ctx context.Context) ([]*http.Cookie, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	if !l.memory.saved {
		l.save()
	}
	c := l.newSOAP(jar)
	res, err := methods.Login(ctx, c, &types.Login{
		This:     *l.plain.ServiceContent.SessionManager,
		UserName: l.server.user, Password: l.server.password, Locale: "en_US",
	})
	if err != nil {
		switch {
		case reason(err) == providers.Auth:
			l.forget()
		case !answered(err):
			l.memory.left = true // perhaps it was carried out
		}
		return nil, err
	}
	held := jar.Cookies(l.server.url)
	l.keep(res.Returnval, held)
	if err := l.endLeft(ctx, c, res.Returnval.Key); err != nil {
		l.log.Info("a session that was cut off may stay until it has been idle for too long",
			"provider", Kind, "op", "login", "error", strip(err))
	}
	return held, nil
}

// keepAlive uses the session now and then, so that it lives while nothing else does.
func (l *login) keepAlive(every time.Duration) {
	l.watchers.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-l.life.Done():
				return
			case <-tick.C:
				was := l.logins()
				// What fails here is found again, and told, by the next call that matters.
				if s, err := session.NewManager(l.plain).UserSession(l.life); s == nil && err == nil {
					_ = l.renew(l.life, was)
				}
			}
		}
	})
}

// close logs out. It waits a moment for a login in flight, which would leave a session behind else.
// What is kept stays, for whoever connects next, where a session may be left.
func (l *login) close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	r := l.renewal
	l.mu.Unlock()
	if r != nil {
		select {
		case <-r.done:
		case <-time.After(brief):
		}
	}
	l.end()
	l.watchers.Wait()
	defer l.pool.CloseIdleConnections()
	if l.logins() == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), logoutTimeout)
	defer cancel()
	err := session.NewManager(l.plain).Logout(ctx)
	if isFault[*types.NotAuthenticated](err) {
		err = nil
	}
	if err == nil && !l.memory.left {
		l.forget()
	}
	return err
}

var errClosed = errors.New("the connection is closed")

// cookies is a jar that holds what one login was given. What other answers set is ignored: an answer
// to a request with an ended session sets a new and empty one, which must not replace the one that a
// renewal has just got.
type cookies struct {
	host string

	mu   sync.RWMutex
	held []*http.Cookie
}

func (c *cookies) set(held []*http.Cookie) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = held
}

func (c *cookies) Cookies(u *url.URL) []*http.Cookie {
	if u.Host != c.host {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.held
}

func (*cookies) SetCookies(*url.URL, []*http.Cookie) {}
