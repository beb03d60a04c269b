package connections_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/providers"
	"hypersdk/providers/connections"
	"hypersdk/providers/connections/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const password = "Sup3r-Secret"

func TestNames(t *testing.T) {
	for name, c := range map[string]struct {
		static []string
		stored []string
		open   string
		server string // where it leads; "" is NotFound
		says   []string
	}{
		"by name":                            {static: []string{"a", "b"}, open: "b", server: "b.example"},
		"the default one by no name":         {static: []string{"a", "default"}, open: "", server: "default.example"},
		"the only one by no name":            {static: []string{"a"}, open: "", server: "a.example"},
		"the only stored one by no name":     {stored: []string{"a"}, open: "", server: "a.example"},
		"none is the default of several":     {static: []string{"a"}, stored: []string{"b"}, open: "", says: []string{"default", "a, b"}},
		"a stored one":                       {static: []string{"a"}, stored: []string{"b"}, open: "b", server: "b.example"},
		"the credentials of a job":           {static: []string{"a"}, stored: []string{"job-1"}, open: "job-1", server: "job-1.example"},
		"credentials are nobody's default":   {stored: []string{"job-1"}, open: "", says: []string{"none is configured", "GOVC_URL"}},
		"credentials that are gone":          {static: []string{"a"}, open: "job-1", says: []string{"no longer"}},
		"an unknown name":                    {static: []string{"b", "a"}, open: "c", says: []string{"c", "there are: a, b"}},
		"an unknown name says no job's":      {static: []string{"a"}, stored: []string{"job-9"}, open: "c", says: []string{"there are: a"}},
		"nothing is configured":              {open: "c", says: []string{"none is configured"}},
		"a name that leads out of the store": {stored: []string{"a"}, open: "../connections/a", says: []string{"letters"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform()
			o := options(t, p)
			for _, n := range c.static {
				o.Static[n] = connections.Config{Kind: "fake", Config: config(n + ".example")}
			}
			conns := open(t, o)
			for _, n := range c.stored {
				require.NoError(t, conns.Put(t.Context(), n, "fake", config(n+".example")))
			}
			got, err := conns.Open(t.Context(), c.open)
			if c.server != "" {
				require.NoError(t, err)
				require.Equal(t, c.server, got.(*provider).server)
				return
			}
			require.Error(t, err)
			for _, s := range c.says {
				require.ErrorContains(t, err, s)
			}
			require.NotContains(t, err.Error(), "job-9")
		})
	}
}

func TestProvidersAreNotWrapped(t *testing.T) {
	o := options(t, newPlatform())
	o.Static["a"] = connections.Config{Kind: "fake", Config: config("a")}
	got, err := open(t, o).Open(t.Context(), "a")
	require.NoError(t, err)
	require.IsType(t, &provider{}, got)
}

func TestStoreHoldsNothingInPlainText(t *testing.T) {
	o := options(t, newPlatform())
	conns := open(t, o)
	require.NoError(t, conns.Put(t.Context(), "job-1", "fake", config("vc.example")))

	entries, err := os.ReadDir(o.Dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	file := filepath.Join(o.Dir, "job-1.enc")
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, s := range []string{password, "vc.example", "fake", "password"} {
		require.NotContains(t, string(b), s)
	}
}

func TestStoredFileIsBoundToItsName(t *testing.T) {
	o := options(t, newPlatform())
	conns := open(t, o)
	require.NoError(t, conns.Put(t.Context(), "job-1", "fake", config("a")))
	require.NoError(t, os.Rename(filepath.Join(o.Dir, "job-1.enc"), filepath.Join(o.Dir, "job-2.enc")))
	_, err := conns.Open(t.Context(), "job-2")
	require.ErrorIs(t, err, providers.Corrupt)
}

func TestAnotherKeyIsSaidSo(t *testing.T) {
	o := options(t, newPlatform())
	require.NoError(t, open(t, o).Put(t.Context(), "job-1", "fake", config("a")))
	was := o.Sealer.KeyID()
	o.Sealer = sealer(t)
	_, err := open(t, o).Open(t.Context(), "job-1")
	require.ErrorIs(t, err, providers.Denied)
	require.ErrorContains(t, err, was)
}

func TestProcessesShareTheStore(t *testing.T) {
	o := options(t, newPlatform())
	api, worker := open(t, o), open(t, o)
	_, err := worker.Open(t.Context(), "job-1")
	require.ErrorIs(t, err, providers.NotFound)

	require.NoError(t, api.Put(t.Context(), "job-1", "fake", config("first")))
	got, err := worker.Open(t.Context(), "job-1")
	require.NoError(t, err)
	require.Equal(t, "first", got.(*provider).server)

	require.NoError(t, api.Put(t.Context(), "job-1", "fake", config("second")))
	got, err = worker.Open(t.Context(), "job-1")
	require.NoError(t, err)
	require.Equal(t, "second", got.(*provider).server, "what was replaced is not used again")

	require.NoError(t, worker.Forget(t.Context(), "job-1"))
	_, err = api.Open(t.Context(), "job-1")
	require.ErrorIs(t, err, providers.NotFound)
}

func TestPutRefuses(t *testing.T) {
	o := options(t, newPlatform())
	o.Static["a"] = connections.Config{Kind: "fake", Config: config("a")}
	conns := open(t, o)
	for name, c := range map[string]struct {
		name, kind, config string
		want               providers.Reason
	}{
		"an unknown kind":              {"x", "vax", `{}`, providers.Unsupported},
		"an unknown field":             {"x", "fake", `{"server":"a","pasword":"` + password + `"}`, providers.Invalid},
		"what the driver refuses":      {"x", "fake", `{"server":""}`, providers.Invalid},
		"what is not JSON":             {"x", "fake", `{"server":"a"`, providers.Invalid},
		"what goes on behind the JSON": {"x", "fake", `{"server":"a"} ` + password, providers.Invalid},
		"a path":                       {"../x", "fake", `{"server":"a"}`, providers.Invalid},
		"a hidden name":                {".x", "fake", `{"server":"a"}`, providers.Invalid},
		"an empty name":                {"", "fake", `{"server":"a"}`, providers.Invalid},
		"a long name":                  {strings.Repeat("x", 128), "fake", `{"server":"a"}`, providers.Invalid},
		"the name of a configured one": {"a", "fake", `{"server":"a"}`, providers.Exists},
	} {
		t.Run(name, func(t *testing.T) {
			err := conns.Put(t.Context(), c.name, c.kind, json.RawMessage(c.config))
			require.ErrorIs(t, err, c.want)
			require.NotContains(t, err.Error(), password)
		})
	}
	entries, _ := os.ReadDir(o.Dir)
	require.Empty(t, entries, "nothing was written")
}

func TestWithoutAStore(t *testing.T) {
	conns := open(t, connections.Options{Drivers: newPlatform().drivers()})
	err := conns.Put(t.Context(), "job-1", "fake", config("a"))
	require.ErrorIs(t, err, providers.Unsupported)
	require.ErrorContains(t, err, "name a configured connection")
	require.NoError(t, conns.Forget(t.Context(), "job-1"))
	require.Empty(t, conns.Names())
}

func TestForgetLeavesOthersAlone(t *testing.T) {
	o := options(t, newPlatform())
	o.Static["a"] = connections.Config{Kind: "fake", Config: config("a")}
	conns := open(t, o)
	require.NoError(t, conns.Put(t.Context(), "kept", "fake", config("kept")))
	for _, name := range []string{"", "a", "kept", "absent", "job-absent"} {
		require.NoError(t, conns.Forget(t.Context(), name), "%q", name)
	}
	require.Equal(t, []string{"a", "kept"}, conns.Names())
	require.ErrorIs(t, conns.Forget(t.Context(), "job-/../../kept"), providers.Invalid)
	require.Equal(t, []string{"a", "kept"}, conns.Names())
}

func TestSweepForgetsWhatDeadJobsLeft(t *testing.T) {
	o := options(t, newPlatform())
	conns := open(t, o)
	for _, name := range []string{"job-ended", "job-runs", "job-unknown", "job-new", "kept"} {
		require.NoError(t, conns.Put(t.Context(), name, "fake", config("vc")))
		if name != "job-new" {
			old := time.Now().Add(-2 * time.Hour)
			require.NoError(t, os.Chtimes(filepath.Join(o.Dir, name+".enc"), old, old))
		}
	}
	down := errors.New("who knows")
	err := conns.Sweep(t.Context(), func(_ context.Context, job string) (bool, error) {
		if job == "unknown" {
			return true, down
		}
		return job != "runs", nil
	})
	require.ErrorIs(t, err, down)
	for name, there := range map[string]bool{"job-ended": false, "job-runs": true, "job-unknown": true, "job-new": true, "kept": true} {
		_, err := conns.Open(t.Context(), name)
		require.Equal(t, there, err == nil, name)
	}
}

func TestIdentity(t *testing.T) {
	for configured, want := range map[string]string{
		`{"server":"VC.example.com"}`:                          "fake://vc.example.com",
		`{"server":"https://vc.example.com:443/sdk"}`:          "fake://vc.example.com",
		`{"server":"https://root:pw@vc.example.com:8443/sdk"}`: "fake://vc.example.com:8443",
		`{"server":"http://vc.example.com:80"}`:                "fake://vc.example.com",
		`{"server":"[2001:DB8::1]:8443"}`:                      "fake://[2001:db8::1]:8443",
		`{"region":"eu-west-1"}`:                               "fake:a",
	} {
		o := options(t, newPlatform())
		o.Static["a"] = connections.Config{Kind: "fake", Config: json.RawMessage(configured)}
		got, err := open(t, o).Identity("a")
		require.NoError(t, err)
		require.Equal(t, want, got, configured)
	}
	_, err := open(t, options(t, newPlatform())).Identity("absent")
	require.ErrorIs(t, err, providers.NotFound)
}

func TestConfiguredConnectionsAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		connection, config, want string
	}{
		"right":           {"a", `{"server":"x"}`, ""},
		"a wrong field":   {"prod", `{"sever":"x"}`, "prod"},
		"a job's name":    {"job-a", `{"server":"x"}`, "reserved"},
		"an unusual name": {"a b", `{"server":"x"}`, "letters"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, newPlatform())
			o.Static[c.connection] = connections.Config{Kind: "fake", Config: json.RawMessage(c.config)}
			err := o.Validate()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestConfigIsNeverPrinted(t *testing.T) {
	c := connections.Config{Kind: "fake", Config: config("a")}
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(f, c), password)
	}
}

func options(t *testing.T, p *platform) connections.Options {
	t.Helper()
	return connections.Options{
		Drivers: p.drivers(), Static: map[string]connections.Config{},
		Dir: filepath.Join(t.TempDir(), "connections"), Sealer: sealer(t),
	}
}

func open(t *testing.T, o connections.Options) *connections.Connections {
	t.Helper()
	c := connections.New(o)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func sealer(t *testing.T) *keys.Sealer {
	t.Helper()
	r, err := keys.LoadOrCreate(t.TempDir())
	require.NoError(t, err)
	return r.Sealer(connections.SealLabel)
}

func config(server string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"server":%q,"password":%q}`, server, password))
}

var _ interface {
	Open(ctx context.Context, name string) (providers.Provider, error)
	Forget(ctx context.Context, name string) error
} = (*connections.Connections)(nil)
