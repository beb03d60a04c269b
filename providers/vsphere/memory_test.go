package vsphere_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/vim25/mo"
	"golang.org/x/sync/errgroup"

	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// memory is what outlives a program.
type memory struct {
	mu         sync.Mutex
	kept       []byte
	load, save error
}

func (m *memory) Load() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.kept), m.load
}

func (m *memory) Save(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.save == nil {
		m.kept = bytes.Clone(b)
	}
	return m.save
}

// program is a run of a program with a memory, and what it logs.
type program struct {
	*vsphere.Provider
	t      *testing.T
	server *vspheretest.Server
	log    *bytes.Buffer
}

// run opens a connection with a memory.
func run(t *testing.T, s *vspheretest.Server, m *memory, change ...func(*vsphere.Config)) *program {
	t.Helper()
	p, err := tryRun(t, s, m, change...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func tryRun(t *testing.T, s *vspheretest.Server, m *memory, change ...func(*vsphere.Config)) (*program, error) {
	c := config(s)
	for _, f := range change {
		f(&c)
	}
	p := &program{t: t, server: s, log: new(bytes.Buffer)}
	var err error
	p.Provider, err = vsphere.Open(t.Context(), c, providers.Env{Log: slog.New(slog.NewJSONHandler(p.log, nil)), Memory: m})
	return p, err
}

// kill ends the program without a logout: to the server it is as if it had been killed.
func (p *program) kill() {
	p.t.Helper()
	in := inject(p.t, p.server, vspheretest.Fault{Call: "Logout", Status: http.StatusBadGateway})
	defer in.Remove()
	require.Error(p.t, p.Close())
}

// ends closes the connection and makes sure that nothing is left of it.
func (p *program) ends(m *memory) {
	p.t.Helper()
	require.NoError(p.t, p.Close())
	require.Empty(p.t, p.server.Sessions(), "no session is left over")
	require.Empty(p.t, m.kept, "and nothing is kept of it")
}

func TestASessionIsTakenUpAgain(t *testing.T) {
	for name, tls := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{TLS: tls, VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{disk(1, mib)}}}})
			m := &memory{}
			run(t, s, m).kill()
			before := s.Sessions()
			require.Len(t, before, 1)
			for range 3 {
				p := run(t, s, m)
				require.NoError(t, p.Ping(t.Context()))
				require.Contains(t, p.log.String(), "took up the session")
				require.NotContains(t, p.log.String(), before[0].Key, "the cookie is not logged")
				p.kill()
			}
			p := run(t, s, m)
			vm, err := p.VM(t.Context(), "web-01")
			require.NoError(t, err)
			snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "job/1"})
			require.NoError(t, err)
			im, err := p.OpenDisk(t.Context(), providers.DiskRef{VM: vm.ID, Snapshot: snap.ID, Disk: snap.Disks[0].ID})
			require.NoError(t, err)
			defer im.Close()
			got, err := readAll(im)
			require.NoError(t, err, "disks are read in it too")
			require.True(t, bytes.Equal(content(t, s, "web-01", 0, string(snap.ID)), got))
			require.Equal(t, 1, s.Calls()["Login"])
			require.Equal(t, before[0].Key, s.Sessions()[0].Key)
			p.ends(m)
		})
	}
}

func TestAClosedConnectionKeepsNothing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Password: "right"})
	m := &memory{}
	p := run(t, s, m)
	require.NotEmpty(t, m.kept)
	p.ends(m)

	_, err := tryRun(t, s, m, func(c *vsphere.Config) { c.Password = "wrong" })
	require.ErrorIs(t, err, providers.Auth)
	require.Empty(t, m.kept, "nor does one that was refused")

	p = run(t, s, m)
	s.ExpireSessions()
	p.ends(m)
}

func TestASessionThatCannotBeTakenUpIsReplaced(t *testing.T) {
	const stays = true // the session of before is not known to be ours
	for name, c := range map[string]struct {
		change func(*vspheretest.Server, map[string]any)
		stays  bool
	}{
		"it has expired":            {func(s *vspheretest.Server, _ map[string]any) { s.ExpireSessions() }, false},
		"it is another user's":      {func(_ *vspheretest.Server, k map[string]any) { part(k)["user"] = "somebody" }, false},
		"it has another key":        {func(_ *vspheretest.Server, k map[string]any) { part(k)["key"] = "another" }, false},
		"the cookie is unknown":     {func(_ *vspheretest.Server, k map[string]any) { cookie(k)["value"] = "unknown" }, false},
		"the cookie is damaged":     {func(_ *vspheretest.Server, k map[string]any) { cookie(k)["value"] = "a;b\r\nX: y\x00" }, false},
		"there is no cookie":        {func(_ *vspheretest.Server, k map[string]any) { delete(part(k), "cookies") }, false},
		"it was only about to be":   {func(_ *vspheretest.Server, k map[string]any) { delete(k, "session") }, false},
		"another user's connection": {func(_ *vspheretest.Server, k map[string]any) { k["user"] = "somebody" }, stays},
		"another server":            {func(_ *vspheretest.Server, k map[string]any) { k["server"] = "https://vc.example.com/sdk" }, stays},
		"another port":              {func(_ *vspheretest.Server, k map[string]any) { k["server"] = "http://127.0.0.1:1/sdk" }, stays},
		"the mark is no mark":       {func(_ *vspheretest.Server, k map[string]any) { k["mark"] = "a\r\nb: c" }, stays},
		"there is no mark":          {func(_ *vspheretest.Server, k map[string]any) { delete(k, "mark") }, stays},
		"it is something else":      {func(_ *vspheretest.Server, k map[string]any) { clear(k) }, stays},
		"parts are something else":  {func(_ *vspheretest.Server, k map[string]any) { k["session"] = []int{1} }, stays},
	} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{})
			m := &memory{}
			run(t, s, m).kill()
			old := s.Sessions()[0].Key
			k := map[string]any{}
			require.NoError(t, json.Unmarshal(m.kept, &k))
			c.change(s, k)
			m.kept, _ = json.Marshal(k)

			p := run(t, s, m)
			require.NoError(t, p.Ping(t.Context()))
			require.Equal(t, 2, s.Calls()["Login"])
			require.Equal(t, c.stays, lives(s, old))
			p.kill()
			run(t, s, m)
			require.Equal(t, 2, s.Calls()["Login"], "the new one is kept instead")
		})
	}
}

func part(k map[string]any) map[string]any { return k["session"].(map[string]any) }
func cookie(k map[string]any) map[string]any {
	return part(k)["cookies"].([]any)[0].(map[string]any)
}

func lives(s *vspheretest.Server, key string) bool {
	for _, one := range s.Sessions() {
		if one.Key == key {
			return true
		}
	}
	return false
}

func TestWhatCannotBeReadIsIgnored(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	for _, kept := range []string{"", "\x00\xff", "null", "[]", `"text"`, "{", "{}", strings.Repeat("[", 10_000)} {
		m := &memory{kept: []byte(kept)}
		run(t, s, m).ends(m)
	}
	m := &memory{load: errors.New("the file is damaged")}
	p := run(t, s, m)
	require.Contains(t, p.log.String(), "the file is damaged")
	p.ends(m)
}

func TestAMemoryThatKeepsNothingDoesNotHinder(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{save: errors.New("no space")}
	p := run(t, s, m)
	require.NoError(t, p.Ping(t.Context()))
	require.Contains(t, p.log.String(), "no space")
	require.NotContains(t, p.log.String(), s.Sessions()[0].Key)
	p.ends(m)
}

func TestTheCookieGoesToItsServerOnly(t *testing.T) {
	a, b := vspheretest.Start(t, vspheretest.Options{}), vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	run(t, a, m).kill()
	calls := a.Calls()
	p := run(t, b, m)
	require.Equal(t, 1, b.Calls()["Login"])
	require.Equal(t, calls, a.Calls())
	require.Zero(t, b.Calls()["RetrievePropertiesEx"], "the other server is not even asked")
	p.ends(m)
}

// A login may be carried out without anybody learning of it.
func TestALoginThatWasCutOffLeavesNothing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	cut := vspheretest.Fault{Call: "Login", After: true, Drop: true, Times: 1}
	inject(t, s, cut)
	_, err := tryRun(t, s, m)
	require.ErrorIs(t, err, providers.Unavailable)
	require.Len(t, s.Sessions(), 1, "nobody knows of it")

	p := run(t, s, m)
	require.Len(t, s.Sessions(), 1, "but it is known by its name")
	s.ExpireSessions()
	inject(t, s, cut)
	require.Error(t, p.Ping(t.Context()), "the same when a session is renewed")
	require.Len(t, s.Sessions(), 1)
	require.NoError(t, p.Ping(t.Context()))
	require.Len(t, s.Sessions(), 1, "whoever logs in again ends it")

	s.ExpireSessions()
	inject(t, s, cut)
	require.Error(t, p.Ping(t.Context()))
	require.NoError(t, p.Close())
	require.Len(t, s.Sessions(), 1, "and so does, if that was the last of one program,")
	p = run(t, s, m)
	require.Len(t, s.Sessions(), 1, "the next one")
	p.kill()

	stranger, err := govmomi.NewClient(t.Context(), s.LoginURL(), true)
	require.NoError(t, err)
	own := connectOnce(t, s)
	p = run(t, s, m)
	require.Len(t, s.Sessions(), 3, "the sessions of others are left alone")
	require.NoError(t, own.Close())
	require.NoError(t, stranger.Logout(t.Context()))
	p.ends(m)
}

// connectOnce opens a provider that the test closes.
func connectOnce(t *testing.T, s *vspheretest.Server) *vsphere.Provider {
	t.Helper()
	p, err := open(t.Context(), s, func(*vsphere.Config) {})
	require.NoError(t, err)
	return p
}

func TestSessionsGoByTheirMark(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	plain := connectOnce(t, s)
	defer plain.Close()
	one, two := run(t, s, &memory{}), run(t, s, &memory{})
	defer one.Close()
	defer two.Close()
	c, err := govmomi.NewClient(t.Context(), s.LoginURL(), true)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Logout(context.WithoutCancel(t.Context()))) }()
	var all mo.SessionManager
	require.NoError(t, c.RetrieveOne(t.Context(), *c.ServiceContent.SessionManager, []string{"sessionList"}, &all))
	agents := map[string]int{}
	for _, u := range all.SessionList {
		if agent, _, marked := strings.Cut(u.UserAgent, "/"); agent == "hypersdk" {
			agents[u.UserAgent]++
			require.Equal(t, u.UserAgent != "hypersdk", marked)
		}
	}
	require.Len(t, agents, 3, "%v", agents)
}

func TestWhileItIsNotKnownWhetherASessionLivesNoneIsMade(t *testing.T) {
	for name, f := range map[string]vspheretest.Fault{
		"busy":    {Status: http.StatusServiceUnavailable},
		"gateway": {Status: http.StatusBadGateway},
		"cut":     {Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{})
			m := &memory{}
			run(t, s, m).kill()
			f.Call, f.Times = "RetrievePropertiesEx", 1
			inject(t, s, f)
			_, err := tryRun(t, s, m)
			require.Error(t, err)
			p := run(t, s, m)
			require.Equal(t, 1, s.Calls()["Login"])
			p.ends(m)
		})
	}
}

func TestACookieIsNotInTheWayForEver(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	run(t, s, m).kill()
	stumbles := func(times int) {
		t.Helper()
		in := inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Status: http.StatusServiceUnavailable})
		defer in.Remove()
		for range times {
			_, err := tryRun(t, s, m)
			require.ErrorIs(t, err, providers.Throttled)
		}
		require.Equal(t, times, in.Struck())
	}
	stumbles(4)
	run(t, s, m).kill()
	stumbles(5)
	require.Equal(t, 1, s.Calls()["Login"])

	inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Status: http.StatusServiceUnavailable, Times: 1})
	p := run(t, s, m)
	require.Equal(t, 2, s.Calls()["Login"])
	require.Len(t, s.Sessions(), 1, "the old one is ended by its mark")
	p.ends(m)
}

func TestASessionThatTheServerDoesNotSpeakOfIsReplaced(t *testing.T) {
	for name, f := range map[string]vspheretest.Fault{
		"forbidden": {Status: http.StatusForbidden},
		"denied":    {Fault: "NoPermission"},
		"fault":     {Fault: "SystemError"},
	} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{})
			m := &memory{}
			run(t, s, m).kill()
			f.Call, f.Times = "RetrievePropertiesEx", 1
			inject(t, s, f)
			p := run(t, s, m)
			require.Equal(t, 2, s.Calls()["Login"])
			require.Len(t, s.Sessions(), 1, "it is ended")
			p.ends(m)
		})
	}
}

// Few users may look at the sessions of a vCenter, or end them.
func TestWithoutTheRightToEndSessions(t *testing.T) {
	for _, call := range []string{"RetrievePropertiesEx", "TerminateSession"} {
		t.Run(call, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{})
			m := &memory{}
			inject(t, s, vspheretest.Fault{Call: "Login", After: true, Drop: true, Times: 1})
			_, err := tryRun(t, s, m)
			require.Error(t, err)
			in := inject(t, s, vspheretest.Fault{Call: call, Fault: "NoPermission"})
			p := run(t, s, m)
			in.Remove()
			require.Equal(t, 1, in.Struck())
			require.NoError(t, p.Ping(t.Context()))
			require.Contains(t, p.log.String(), "may stay")
			require.Len(t, s.Sessions(), 2)
		})
	}
}

// What fails on the way is tried again by whoever connects next.
func TestASessionIsEndedLater(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	inject(t, s, vspheretest.Fault{Call: "Login", After: true, Drop: true, Times: 1})
	_, err := tryRun(t, s, m)
	require.Error(t, err)
	inject(t, s, vspheretest.Fault{Call: "TerminateSession", Drop: true, Times: 1})
	require.NoError(t, run(t, s, m).Close())
	require.Len(t, s.Sessions(), 1)
	p := run(t, s, m)
	require.Len(t, s.Sessions(), 1)
	p.ends(m)
}

// vCenter puts the value of the cookie in quotes, and wants it back so.
func TestTheCookieIsKeptAsItCame(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(s.URL())
			r.Out.URL.Path = r.In.URL.Path
			r.Out.Header.Del("Cookie")
			for _, c := range r.In.Cookies() {
				if c.Quoted {
					r.Out.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
				}
			}
		},
		ModifyResponse: func(res *http.Response) error {
			given := res.Cookies()
			res.Header.Del("Set-Cookie")
			for _, c := range given {
				c.Quoted = true
				res.Header.Add("Set-Cookie", c.String())
			}
			return nil
		},
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	behind := func(c *vsphere.Config) { c.Server = front.URL + "/sdk" }
	m := &memory{}
	run(t, s, m, behind).kill()
	p := run(t, s, m, behind)
	require.NoError(t, p.Ping(t.Context()))
	require.Equal(t, 1, s.Calls()["Login"])
	p.ends(m)
}

func TestASessionThatWasTakenUpIsRenewedOnceForAll(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	run(t, s, m).kill()
	p := run(t, s, m)
	for round := range 3 {
		s.ExpireSessions()
		var g errgroup.Group
		for range 16 {
			g.Go(func() error { return p.Ping(t.Context()) })
		}
		require.NoError(t, g.Wait())
		require.Equal(t, 2+round, s.Calls()["Login"])
		require.Len(t, s.Sessions(), 1)
	}
	p.kill()
	p = run(t, s, m)
	require.NoError(t, p.Ping(t.Context()))
	require.Equal(t, 4, s.Calls()["Login"], "what is kept is the last one")
	p.ends(m)
}

func TestGivingUpWhileASessionIsTakenUp(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	m := &memory{}
	run(t, s, m).kill()
	in := inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Delay: vspheretest.Duration(time.Minute)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := vsphere.Open(ctx, config(s), providers.Env{Log: slog.New(slog.DiscardHandler), Memory: m})
		ended <- err
	}()
	require.True(t, eventually(t, func() bool { return in.Struck() == 1 }))
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	in.Remove()
	p := run(t, s, m)
	require.Equal(t, 1, s.Calls()["Login"], "it is still kept")
	p.ends(m)
}
