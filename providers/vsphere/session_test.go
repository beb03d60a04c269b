package vsphere_test

import (
	"context"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// open tries to connect with a changed configuration.
func open(ctx context.Context, s *vspheretest.Server, change func(*vsphere.Config)) (*vsphere.Provider, error) {
	c := config(s)
	change(&c)
	return vsphere.Open(ctx, c, providers.Env{Log: slog.New(slog.DiscardHandler)})
}

func inject(t *testing.T, s *vspheretest.Server, f vspheretest.Fault) *vspheretest.Injection {
	t.Helper()
	in, err := s.Inject(f)
	require.NoError(t, err)
	return in
}

func TestAWrongPasswordIsTriedOnce(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Password: "right-secret"})
	_, err := open(t.Context(), s, func(c *vsphere.Config) { c.Password = "wrong-secret" })
	require.ErrorIs(t, err, providers.Auth)
	require.NotContains(t, err.Error(), "secret")
	require.Equal(t, 1, s.Calls()["Login"])
	require.Empty(t, s.Sessions())
}

func TestAPasswordThatIsChangedMeanwhileIsTriedOnce(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	p := connect(t, s)
	s.ExpireSessions()
	inject(t, s, vspheretest.Fault{Call: "Login", Fault: "InvalidLogin"})
	for range 3 {
		require.ErrorIs(t, p.Ping(t.Context()), providers.Auth)
	}
	require.Equal(t, 2, s.Calls()["Login"], "an account is not locked by asking again and again")
}

func TestAnEndedSessionIsRenewedOnceForAll(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(5)})
	p := connect(t, s)
	for round := range 3 {
		s.ExpireSessions()
		var g errgroup.Group
		for range 16 {
			g.Go(func() error {
				n := 0
				for _, err := range p.VMs(t.Context(), providers.Filter{}) {
					if err != nil {
						return err
					}
					n++
				}
				if n != 5 {
					return io.ErrShortWrite
				}
				return nil
			})
		}
		require.NoError(t, g.Wait())
		require.Equal(t, 2+round, s.Calls()["Login"])
		require.Len(t, s.Sessions(), 1)
	}
}

func TestAFaultThatOnlySaysSoCostsNoSession(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	p := connect(t, s)
	inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Fault: "NotAuthenticated", Times: 1})
	require.NoError(t, p.Ping(t.Context()))
	require.Equal(t, 1, s.Calls()["Login"])
	require.Len(t, s.Sessions(), 1)
}

func TestASessionThatEndsAgainAndAgainIsTheServersTrouble(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(1)})
	p := connect(t, s)
	inject(t, s, vspheretest.Fault{Call: "CreateContainerView", Fault: "NotAuthenticated"})
	for _, err := range p.VMs(t.Context(), providers.Filter{}) {
		require.ErrorIs(t, err, providers.Unavailable)
	}
	require.Equal(t, 2, s.Calls()["CreateContainerView"], "it is repeated once, not for ever")
}

func TestAnIdleSessionIsKeptAlive(t *testing.T) {
	const timeout = 3 * time.Second
	s := vspheretest.Start(t, vspheretest.Options{SessionTimeout: timeout})
	connect(t, s, func(c *vsphere.Config) { c.KeepAlive = vsphere.Duration(timeout / 60) })
	start := time.Now()
	require.Eventually(t, func() bool { return time.Since(start) > 3*timeout/2 }, time.Minute, timeout/4)
	require.Len(t, s.Sessions(), 1)
	require.Equal(t, 1, s.Calls()["Login"])
}

func TestASessionThatEndedWhileIdleIsBackBeforeItIsNeeded(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	connect(t, s, func(c *vsphere.Config) { c.KeepAlive = vsphere.Duration(20 * time.Millisecond) })
	s.ExpireSessions()
	require.Eventually(t, func() bool { return len(s.Sessions()) == 1 }, time.Minute, 5*time.Millisecond)
}

func TestGivingUpALoginLeavesNoSession(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	inject(t, s, vspheretest.Fault{Call: "Login", Delay: vspheretest.Duration(200 * time.Millisecond)})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		eventually(t, func() bool { return s.Calls()["Login"] > 0 })
		cancel()
	}()
	_, err := open(ctx, s, func(*vsphere.Config) {})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, s.Sessions())
}

func TestTrust(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TLS: true})
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
		return name
	}
	other := strings.Replace(s.ThumbprintSHA256(), s.ThumbprintSHA256()[:2], map[bool]string{true: "11", false: "00"}[s.ThumbprintSHA256()[:2] == "00"], 1)
	for name, c := range map[string]struct {
		change func(*vsphere.Config)
		says   string // "": trusted
	}{
		"SHA-256":                 {func(c *vsphere.Config) { c.Thumbprint = s.ThumbprintSHA256() }, ""},
		"SHA-1":                   {func(c *vsphere.Config) { c.Thumbprint = s.Thumbprint() }, ""},
		"plain lower case":        {func(c *vsphere.Config) { c.Thumbprint = strings.ToLower(strings.ReplaceAll(s.Thumbprint(), ":", "")) }, ""},
		"wrong thumbprint":        {func(c *vsphere.Config) { c.Thumbprint = other }, "has the SHA-256 thumbprint " + s.ThumbprintSHA256()},
		"wrong although insecure": {func(c *vsphere.Config) { c.Thumbprint, c.Insecure = other, true }, "not the one that is configured"},
		"wrong although signed":   {func(c *vsphere.Config) { c.Thumbprint, c.CAPEM = other, string(s.CertificatePEM()) }, "not the one that is configured"},
		"known host":              {func(c *vsphere.Config) { c.Thumbprint, c.KnownHosts = "", file(s.URL().Host+" "+s.Thumbprint()+"\n") }, ""},
		"authority":               {func(c *vsphere.Config) { c.Thumbprint, c.CAPEM = "", string(s.CertificatePEM()) }, ""},
		"file of authorities":     {func(c *vsphere.Config) { c.Thumbprint, c.CAFile = "", file(string(s.CertificatePEM())) }, ""},
		"insecure":                {func(c *vsphere.Config) { c.Thumbprint, c.Insecure = "", true }, ""},
		"nothing":                 {func(c *vsphere.Config) { c.Thumbprint = "" }, "thumbprint to " + s.ThumbprintSHA256()},
		"file that is not there":  {func(c *vsphere.Config) { c.CAFile = "/no/such/file" }, "ca_file"},
		"http to https":           {func(c *vsphere.Config) { c.Server = strings.Replace(c.Server, "https", "http", 1) }, "begins with https://"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := open(t.Context(), s, c.change)
			if c.says == "" {
				require.NoError(t, err)
				require.NoError(t, p.Ping(t.Context()))
				require.NoError(t, p.Close())
				return
			}
			require.ErrorContains(t, err, c.says)
			if name != "http to https" {
				require.ErrorIs(t, err, providers.Invalid)
			}
		})
	}
	plain := vspheretest.Start(t, vspheretest.Options{})
	_, err := open(t.Context(), plain, func(c *vsphere.Config) { c.Server = strings.Replace(c.Server, "http", "https", 1) })
	require.ErrorIs(t, err, providers.Invalid)
	require.ErrorContains(t, err, "begins with http://")
}

func TestAServerThatIsNotThere(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	for server, want := range map[string]string{
		"https://127.0.0.1:1":               "connection refused",
		"https://no-such-host.invalid/":     "no-such-host.invalid",
		"http://user:pass-word@127.0.0.1:1": "connection refused",
	} {
		_, err := open(t.Context(), s, func(c *vsphere.Config) { c.Server = server })
		require.ErrorIs(t, err, providers.Unavailable, server)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "pass-word")
	}
}

func TestTroublesOfCallsHaveTheirReason(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(1)})
	p := connect(t, s)
	for name, c := range map[string]struct {
		fault vspheretest.Fault
		want  providers.Reason
		wait  time.Duration
	}{
		"busy":        {vspheretest.Fault{Status: 503, RetryAfter: vspheretest.Duration(7 * time.Second)}, providers.Throttled, 7 * time.Second},
		"too much":    {vspheretest.Fault{Status: 429}, providers.Throttled, 0},
		"bad gateway": {vspheretest.Fault{Status: 502}, providers.Unavailable, 0},
		"dropped":     {vspheretest.Fault{Drop: true}, providers.Unavailable, 0},
		"denied":      {vspheretest.Fault{Fault: "NoPermission"}, providers.Denied, 0},
		"host away":   {vspheretest.Fault{Fault: "HostCommunication"}, providers.Unavailable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c.fault.Call, c.fault.Times = "RetrievePropertiesEx", 1
			in := inject(t, s, c.fault)
			defer in.Remove()
			_, err := p.VM(t.Context(), "vm-00000")
			require.Equal(t, c.want, providers.ReasonOf(err), "%v", err)
			require.Equal(t, c.wait, providers.RetryAfter(err))
			_, err = p.VM(t.Context(), "vm-00000")
			require.NoError(t, err, "the next call works")
		})
	}
}

func TestUserInfoInTheURL(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Username: "DOM\\user@vsphere.local", Password: "p@ss:w/rd?#% ü"})
	u := s.URL()
	u.User = url.UserPassword(s.Username(), s.Password())
	p, err := open(t.Context(), s, func(c *vsphere.Config) { c.Server, c.Username, c.Password = u.String(), "", "" })
	require.NoError(t, err)
	require.NoError(t, p.Ping(t.Context()))
	require.NoError(t, p.Close())
	require.NoError(t, p.Close(), "closing twice is fine")
	require.Error(t, p.Ping(t.Context()), "a closed connection does not log in again")
	require.Empty(t, s.Sessions())
}
