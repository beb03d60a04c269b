package apiserver_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/providers"
)

// Whatever goes wrong before an operation is reached is told in the same form.
func TestRouterErrors(t *testing.T) {
	b := start(t)
	require.Contains(t, b.get("/nothing/here").refused(http.StatusNotFound), "/nothing/here")
	require.Contains(t, b.send(http.MethodDelete, "/jobs/submit", "").refused(http.StatusMethodNotAllowed), "POST")
	require.Contains(t, b.send(http.MethodPatch, "/jobs/j", "").refused(http.StatusMethodNotAllowed), "GET")
	require.Contains(t, b.send(http.MethodPost, "/jobs/query", "<jobs/>", "Content-Type", "application/xml").refused(http.StatusUnsupportedMediaType), "application/xml")
	require.Contains(t, b.post("/jobs/cancel", "").refused(http.StatusBadRequest), "body is required")
	require.Contains(t, b.post("/jobs/cancel", `{"job_ids": []}`).refused(http.StatusUnprocessableEntity), "job_ids")
	require.Contains(t, b.post("/jobs/cancel", `{"job_ids": [7]}`).refused(http.StatusUnprocessableEntity), "job_ids[0] must be string")
	require.Contains(t, b.get("/jobs/"+strings.Repeat("x", 300)).refused(http.StatusUnprocessableEntity), "id")
}

func TestHeaders(t *testing.T) {
	b := start(t)
	a := b.send(http.MethodGet, "/health", "", "X-Request-Id", "abc-1")
	require.Equal(t, "abc-1", a.header.Get("X-Request-Id"))
	require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"))
	require.Equal(t, "no-store", a.header.Get("Cache-Control"))
	require.Contains(t, a.header.Get("Content-Security-Policy"), "default-src 'none'")
	require.Empty(t, a.header.Get("Access-Control-Allow-Origin"))
	require.NotEqual(t, "a b", b.send(http.MethodGet, "/health", "", "X-Request-Id", "a b").header.Get("X-Request-Id"))
	require.Contains(t, b.log.String(), "request=abc-1 method=GET path=/health status=200")
}

// A page that resolves its own name to the loopback address is found out by the name.
func TestForeignHostNames(t *testing.T) {
	b := start(t, func(c *apiserver.Config, _ *apiserver.Deps) { c.AllowedHosts = []string{"vms.example.org"} })
	_, port, err := net.SplitHostPort(b.Listener.Addr().String())
	require.NoError(t, err)
	for host, ok := range map[string]bool{
		"127.0.0.1:" + port: true, "localhost:" + port: true, "[::1]:" + port: true, "LOCALHOST": true, "vms.example.org": true, "vms.example.org:443": true,
		"evil.example.org:" + port: false, "127.0.0.1.evil.example.org": false, "localhost.evil.example.org": false, "10.0.0.1": false,
	} {
		a := b.send(http.MethodGet, "/health", "", "Host", host)
		if ok {
			require.Equal(t, http.StatusOK, a.status, host)
		} else {
			require.Contains(t, a.refused(http.StatusMisdirectedRequest), "not known as", host)
		}
	}
}

// On other addresses than loopback any name may lead here, unless names are configured.
func TestHostNamesBeyondLoopback(t *testing.T) {
	for _, c := range []struct {
		allowed []string
		status  int
	}{{nil, http.StatusOK}, {[]string{"vms.example.org"}, http.StatusMisdirectedRequest}} {
		s, err := apiserver.New(apiserver.Config{AllowedHosts: c.allowed}, apiserver.Deps{
			Temporal: apiservertest.NewTemporal(), Connections: &apiservertest.Connections{},
		})
		require.NoError(t, err)
		local := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 8080}
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, local), http.MethodGet, "http://backup.lan/health", nil)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		require.Equal(t, c.status, w.Code)
		s.Close()
	}
}

// Pages of others can make a browser send, but nothing is done for them.
func TestForeignOrigins(t *testing.T) {
	b := start(t, func(c *apiserver.Config, _ *apiserver.Deps) {
		c.AllowedOrigins = []string{"https://console.example.org"}
	})
	for _, c := range []struct {
		header []string
		ok     bool
	}{
		{nil, true},
		{[]string{"Origin", b.URL}, true},
		{[]string{"Sec-Fetch-Site", "same-origin"}, true},
		{[]string{"Origin", "https://console.example.org", "Sec-Fetch-Site", "cross-site"}, true},
		{[]string{"Origin", "https://evil.example.org"}, false},
		{[]string{"Origin", "null"}, false},
		{[]string{"Sec-Fetch-Site", "cross-site"}, false},
		{[]string{"Sec-Fetch-Site", "same-site", "Origin", "http://127.0.0.1:9999"}, false},
	} {
		before := len(b.temporal.IDs())
		a := b.send(http.MethodPost, "/jobs/submit", web, append([]string{"Content-Type", "text/plain"}, c.header...)...)
		if c.ok {
			require.Equal(t, http.StatusOK, a.status, c.header)
			continue
		}
		require.Contains(t, a.refused(http.StatusForbidden), "another origin", c.header)
		require.Len(t, b.temporal.IDs(), before)
	}
}

type panicking struct{ apiserver.Connections }

func (panicking) Open(context.Context, string) (providers.Provider, error) {
	panic("secret detail")
}

func TestPanics(t *testing.T) {
	b := start(t, func(_ *apiserver.Config, d *apiserver.Deps) { d.Connections = panicking{} })
	a := b.get("/vms/list")
	require.NotContains(t, a.refused(http.StatusInternalServerError), "secret detail")
	require.Contains(t, b.log.String(), "secret detail")
	require.Contains(t, b.log.String(), a.header.Get("X-Request-Id"))
	b.get("/health").ok()
}

// The payload codec is for the Temporal Web UI.
func TestCodec(t *testing.T) {
	b := start(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Codec = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "codec ", r.URL.Path) })
	})
	post := func(header ...string) answer { return b.send(http.MethodPost, "/codec/decode", "{}", header...) }
	require.Equal(t, "codec /decode", post().body)
	a := post("Origin", "http://127.0.0.1:8233", "Sec-Fetch-Site", "same-site")
	require.Equal(t, "codec /decode", a.body)
	require.Equal(t, "http://127.0.0.1:8233", a.header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "codec /decode", post("Origin", "http://localhost:8233").body, "the same page by another name")
	a = b.send(http.MethodOptions, "/codec/decode", "", "Origin", "http://127.0.0.1:8233", "Access-Control-Request-Method", "POST")
	require.Equal(t, http.StatusNoContent, a.status)
	require.Contains(t, a.header.Get("Access-Control-Allow-Headers"), "X-Namespace")
	for _, origin := range []string{"http://evil.example.org:8233", "http://127.0.0.1:9000", "null"} {
		a := post("Origin", origin)
		a.refused(http.StatusForbidden)
		require.Empty(t, a.header.Get("Access-Control-Allow-Origin"))
	}
	start(t).get("/codec/decode").refused(http.StatusNotFound)
}

// Trouble with a platform is told with its own words, which hold no secrets, and a fitting status.
func TestPlatformErrors(t *testing.T) {
	b := start(t)
	for reason, status := range map[providers.Reason]int{
		providers.Auth: http.StatusForbidden, providers.Denied: http.StatusForbidden, providers.NotFound: http.StatusNotFound,
		providers.Invalid: http.StatusUnprocessableEntity, providers.Unavailable: http.StatusBadGateway, providers.Throttled: http.StatusServiceUnavailable,
		providers.Precondition: http.StatusConflict,
	} {
		b.connections.Default.Err = &providers.Error{Op: "vsphere: list VMs", Reason: reason, Msg: "it is so"}
		require.Equal(t, "vsphere: list VMs: it is so", b.get("/vms/list").refused(status))
	}
	b.connections.Default.Err = nil
	b.post("/vms/info", `{"vm_path": "nobody"}`).refused(http.StatusNotFound)
	b.get("/vms/list?connection=nobody").refused(http.StatusNotFound)
	b.post("/vms/list", `{"server": "vc", "username": "u", "password": "wrong"}`).refused(http.StatusForbidden)
	require.Len(t, b.get("/vms/list?name=WEB&power=poweredOn&folder=/dc").ok()["vms"], 1)

	for body, field := range map[string]string{
		`{}`: "vm_path", `{"vm_path": ""}`: "vm_path", `{"vm_path": "v", "timeout": -1}`: "timeout", `{"vm_path": "v", "vm": "w"}`: "vm",
		`{"vm_path": "v", "connection": "job-1"}`:                                                            "connection",
		`{"vm_path": "v", "vcenter": {"server": "vc", "username": "u"}}`:                                     "vcenter.password",
		`{"vm_path": "v", "vcenter": {"server": "vc", "username": "u", "password": ""}}`:                     "vcenter.password",
		`{"vm_path": "v", "vcenter": {"server": "vc", "username": "u", "password": "p", "pw": "s3cr3t-pw"}}`: "vcenter.pw",
		`{"vm_path": "v", "vcenter": {"server": "vc", "username": "u", "password": {"is": "s3cr3t-pw"}}}`:    "vcenter.password",
	} {
		a := b.post("/vms/info", body)
		a.refused(http.StatusUnprocessableEntity)
		require.Equal(t, field, a.json()["errors"].([]any)[0].(map[string]any)["field"], body)
		require.NotContains(t, a.body, "s3cr3t", "what was sent is not answered")
	}
	a := b.post("/vms/list", `{"server": "vc", "password": "s3cr3t-pw"}`)
	require.Contains(t, a.refused(http.StatusUnprocessableEntity), "username is required")
	require.NotContains(t, b.log.String(), "s3cr3t")
}

// The server stops when it is told to, also with web sockets and followers of logs connected.
func TestServeStops(t *testing.T) {
	temporal := apiservertest.NewTemporal()
	temporal.Add(running("j"))
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{
		Temporal: temporal, Connections: &apiservertest.Connections{},
		Logs: func(context.Context, string, int64) ([]byte, int64, error) { return nil, 0, nil },
	})
	require.NoError(t, err)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	socket := dial(t, "ws://"+l.Addr().String()+"/ws")
	socket.frame()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/jobs/logs/j?follow=true", nil)
	require.NoError(t, err)
	follow, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(t, err)
	defer follow.Body.Close()

	stop()
	select {
	case err := <-served:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		t.Fatal("the server did not stop")
	}
	_, err = io.ReadAll(follow.Body)
	require.NoError(t, err)
	s.Close()
	http.DefaultClient.CloseIdleConnections()
}

func TestNewRefuses(t *testing.T) {
	deps := apiserver.Deps{Temporal: apiservertest.NewTemporal(), Connections: &apiservertest.Connections{}, Formats: []string{"raw"}}
	for _, c := range []struct {
		cfg  apiserver.Config
		deps apiserver.Deps
		says string
	}{
		{apiserver.Config{}, apiserver.Deps{}, "Temporal"},
		{apiserver.Config{DefaultFormat: "ova"}, deps, `"ova"`},
		{apiserver.Config{AllowedOrigins: []string{"console.example.org"}}, deps, "console.example.org"},
	} {
		_, err := apiserver.New(c.cfg, c.deps)
		require.ErrorContains(t, err, c.says)
	}
}
