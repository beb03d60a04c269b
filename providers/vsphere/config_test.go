package vsphere

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
)

func TestServerIsUnderstoodInEverySpelling(t *testing.T) {
	for server, want := range map[string]string{
		"vc.example.com":                           "https://vc.example.com/sdk",
		"vc.example.com/":                          "https://vc.example.com/sdk",
		"vc.example.com:8443":                      "https://vc.example.com:8443/sdk",
		"https://vc.example.com":                   "https://vc.example.com/sdk",
		"https://vc.example.com/sdk":               "https://vc.example.com/sdk",
		"https://vc.example.com/sdk/":              "https://vc.example.com/sdk",
		"http://127.0.0.1:8989/sdk":                "http://127.0.0.1:8989/sdk",
		"https://[::1]:8989/sdk":                   "https://[::1]:8989/sdk",
		"[::1]:8989":                               "https://[::1]:8989/sdk",
		"  vc.example.com  ":                       "https://vc.example.com/sdk",
		"https://vc.example.com/proxy/sdk":         "https://vc.example.com/proxy/sdk",
		"https://root:p%40ss@vc.example.com":       "https://vc.example.com/sdk",
		"root@vsphere.local:secret@vc.example.com": "https://vc.example.com/sdk",
	} {
		e, err := Config{Server: server}.endpoint()
		require.NoError(t, err, server)
		require.Equal(t, want, e.url.String(), server)
		require.Nil(t, e.url.User, server)
	}
}

func TestUserInTheURLYieldsToTheFields(t *testing.T) {
	e, err := Config{Server: "https://root:p%40ss%2F@vc"}.endpoint()
	require.NoError(t, err)
	require.Equal(t, "root", e.user)
	require.Equal(t, "p@ss/", e.password)

	e, err = Config{Server: "https://root:one@vc", Username: "admin", Password: "two"}.endpoint()
	require.NoError(t, err)
	require.Equal(t, "admin", e.user)
	require.Equal(t, "two", e.password)
}

func TestValidateNamesEveryField(t *testing.T) {
	good := Default()
	good.Server, good.Username, good.Password = "vc.example.com", "root", "secret"
	require.NoError(t, good.Validate())

	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Server = "" }, "server: is missing"},
		{func(c *Config) { c.Server = "ftp://vc" }, "server: is a URL that begins with neither https nor http"},
		{func(c *Config) { c.Server = "https://" }, "server: is neither"},
		{func(c *Config) { c.Server = "https://vc/sdk?x=1" }, "server: has something behind its path"},
		{func(c *Config) { c.Server = "https://user:p:ass/word@@[vc" }, "server: is neither"},
		{func(c *Config) { c.Username = "" }, "username: is missing"},
		{func(c *Config) { c.Password = "" }, "password: is missing"},
		{func(c *Config) { c.Thumbprint = "AB:CD" }, "thumbprint: is neither SHA-1 nor SHA-256"},
		{func(c *Config) { c.CAPEM = "no certificate" }, "ca_pem: holds no certificate"},
		{func(c *Config) { c.Connections = 0 }, "connections: must be"},
		{func(c *Config) { c.Connections = 1000 }, "connections: must be"},
		{func(c *Config) { c.KeepAlive = 0 }, "keep_alive: must be"},
		{func(c *Config) { c.StallTimeout = -1 }, "stall_timeout: must be"},
	} {
		bad := good
		c.change(&bad)
		err := bad.Validate()
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "ass/word")
	}

	err := Config{}.Validate()
	for _, field := range []string{"server", "connections", "keep_alive", "stall_timeout"} {
		require.ErrorContains(t, err, field+": ")
	}
}

func TestDriverReadsJSON(t *testing.T) {
	d := Driver()
	require.Equal(t, "vsphere", d.Kind)
	require.NoError(t, d.Check(json.RawMessage(`{"server":"vc","username":"root","password":"secret","insecure":true,
		"thumbprint":"","connections":8,"keep_alive":"90s","stall_timeout":"2m"}`)))
	for config, want := range map[string]string{
		`{"server":"vc","username":"root","password":"secret","stall_timeout":"soon"}`: `"soon" is not a duration`,
		`{"server":"vc","username":"root","password":"secret","paswd":"x"}`:            `unknown field "paswd"`,
		`{"username":"root","password":"secret"}`:                                      "server: is missing",
	} {
		err := d.Check(json.RawMessage(config))
		require.ErrorIs(t, err, providers.Invalid)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestConfigHidesThePassword(t *testing.T) {
	c := Config{Server: "vc", Username: "root", Password: "secret"}
	for _, text := range []string{
		fmt.Sprintf("%v %+v %#v %s", c, c, c, c.Password),
		slog.AnyValue(c.Password).Resolve().String(),
	} {
		require.NotContains(t, text, "secret")
	}
	j, err := json.Marshal(c)
	require.NoError(t, err)
	require.NotContains(t, string(j), "secret")
}

func TestFromEnv(t *testing.T) {
	from := func(env map[string]string) (Config, bool) {
		raw, set := FromEnv(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		if !set {
			require.Nil(t, raw)
			return Config{}, false
		}
		c := Default()
		require.NoError(t, json.Unmarshal(raw, &c))
		require.NoError(t, Driver().Check(raw))
		return c, true
	}
	_, set := from(map[string]string{"GOVC_USERNAME": "root"})
	require.False(t, set, "without GOVC_URL there is no connection")

	c, set := from(map[string]string{
		"GOVC_URL": "vc.example.com", "GOVC_USERNAME": "root", "GOVC_PASSWORD": "secret", "GOVC_INSECURE": "1",
		"GOVC_TLS_CA_CERTS": "/a.pem:/b.pem", "GOVC_TLS_KNOWN_HOSTS": "/known",
	})
	require.True(t, set)
	require.Equal(t, Config{
		Server: "vc.example.com", Username: "root", Password: "secret", Insecure: true, CAFile: "/a.pem:/b.pem", KnownHosts: "/known",
		Connections: 32, KeepAlive: Duration(5 * time.Minute), StallTimeout: Duration(time.Minute), LeaseReady: Duration(5 * time.Minute),
		VDDK: VDDKConfig{NBDKit: "nbdkit", Transports: "nbdssl", Disks: 8, Ready: Duration(2 * time.Minute)},
	}, c)

	for value, want := range map[string]bool{"": false, "0": false, "false": false, "yes please": false, "true": true, "TRUE": true} {
		c, _ := from(map[string]string{"GOVC_URL": "https://u:p@vc", "GOVC_INSECURE": value})
		require.Equal(t, want, c.Insecure, value)
	}
}

const (
	sha1Print   = "0A:1B:2C:3D:4E:5F:60:71:82:93:A4:B5:C6:D7:E8:F9:0A:1B:2C:3D"
	sha256Print = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
)

func TestKnownHosts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known")
	require.NoError(t, os.WriteFile(file, []byte("\nvc.example.com "+sha1Print+"\nvc.example.com:8443 "+sha256Print+"\n[::1] "+sha1Print+"\nbad nothex\n"), 0o600))
	for host, length := range map[string]int{
		"vc.example.com:443": 20, "vc.example.com:8443": 32, "[::1]:443": 20, "other.example.com:443": 0,
	} {
		pin, err := Config{KnownHosts: file}.pin(host)
		require.NoError(t, err)
		require.Len(t, pin, length, host)
	}
	_, err := Config{KnownHosts: file}.pin("bad:443")
	require.ErrorContains(t, err, "known_hosts")
	_, err = Config{KnownHosts: file + ".absent"}.pin("vc.example.com:443")
	require.ErrorContains(t, err, "known_hosts")
	pin, err := Config{KnownHosts: file, Thumbprint: sha256Print}.pin("vc.example.com:443")
	require.NoError(t, err)
	require.Len(t, pin, 32, "the thumbprint goes before the file")
}

func TestAuthorities(t *testing.T) {
	pool, err := Config{}.authorities()
	require.NoError(t, err)
	require.Nil(t, pool, "the authorities of the host")

	file := filepath.Join(t.TempDir(), "ca.pem")
	_, err = Config{CAFile: file}.authorities()
	require.ErrorContains(t, err, "ca_file")
	require.NoError(t, os.WriteFile(file, []byte("text"), 0o600))
	_, err = Config{CAFile: file}.authorities()
	require.ErrorContains(t, err, "holds no certificate")
}
