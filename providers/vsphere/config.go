package vsphere

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hypersdk/providers"
)

// Config is a connection to a vCenter or to a single ESXi host.
type Config struct {
	// Server is a host name ("vc.example.com", "vc.example.com:8443") or the URL of the SDK
	// ("https://vc.example.com/sdk"). Both may hold a user name and a password, which Username and
	// Password override.
	Server   string           `json:"server"`
	Username string           `json:"username,omitempty"`
	Password providers.Secret `json:"password,omitempty"`

	// Insecure trusts any certificate. Thumbprint trusts the one certificate that has it, whoever
	// signed it, and no other: SHA-256 or SHA-1 in hexadecimal, with or without colons.
	Insecure   bool   `json:"insecure,omitempty"`
	Thumbprint string `json:"thumbprint,omitempty"`
	// KnownHosts is a file with lines of "host[:port] thumbprint"; a line for Server is used where
	// Thumbprint is empty.
	KnownHosts string `json:"known_hosts,omitempty"`
	// CAFile is one or more files in PEM (separated as in PATH) and CAPEM is such text; where either
	// is given the authorities in them are trusted instead of those of the host.
	CAFile string `json:"ca_file,omitempty"`
	CAPEM  string `json:"ca_pem,omitempty"`

	// Connections is how many reads of disks are on the wire at once; more of them wait.
	Connections int `json:"connections,omitempty"`
	// KeepAlive is how often an idle session is used so that it lives. vCenter ends one after 30
	// idle minutes.
	KeepAlive Duration `json:"keep_alive,omitempty"`
	// StallTimeout is how long a connection may be silent while an answer is due.
	StallTimeout Duration `json:"stall_timeout,omitempty"`
	// LeaseReady is how long an export lease may take to become ready.
	LeaseReady Duration `json:"lease_ready,omitempty"`

	VDDK VDDKConfig `json:"vddk,omitzero"`
}

// Default is the configuration that a connection starts from.
func Default() Config {
	return Config{
		Connections: 32, KeepAlive: Duration(5 * time.Minute), StallTimeout: Duration(time.Minute), LeaseReady: Duration(5 * time.Minute),
		VDDK: defaultVDDK(),
	}
}

// Validate names every field that cannot be right.
func (c Config) Validate() error {
	var bad []string
	say := func(field, msg string) { bad = append(bad, field+": "+msg) }
	e, err := c.endpoint()
	switch {
	case err != nil:
		say("server", err.Error())
	case e.user == "":
		say("username", "is missing")
	case e.password == "":
		say("password", "is missing")
	}
	if _, err := parseThumbprint(c.Thumbprint); c.Thumbprint != "" && err != nil {
		say("thumbprint", err.Error())
	}
	if c.CAPEM != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CAPEM)) {
		say("ca_pem", "holds no certificate in PEM")
	}
	if c.Connections < 1 || c.Connections > 256 {
		say("connections", "must be 1 to 256")
	}
	if c.KeepAlive < Duration(10*time.Millisecond) {
		say("keep_alive", "must be at least 10ms")
	}
	if c.StallTimeout < Duration(10*time.Millisecond) {
		say("stall_timeout", "must be at least 10ms")
	}
	if c.LeaseReady < Duration(10*time.Millisecond) {
		say("lease_ready", "must be at least 10ms")
	}
	c.VDDK.validate(say)
	if bad != nil {
		return errors.New(strings.Join(bad, "; "))
	}
	return nil
}

// endpoint is where to connect and as whom.
type endpoint struct {
	url            *url.URL // without user info
	user, password string
}

// host is the host and port, the port always given.
func (e endpoint) host() string {
	port := e.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[e.url.Scheme]
	}
	return net.JoinHostPort(e.url.Hostname(), port)
}

// endpoint never quotes what it was given in an error: there may be a password in it.
func (c Config) endpoint() (endpoint, error) {
	s := strings.TrimSpace(c.Server)
	if s == "" {
		return endpoint{}, errors.New("is missing")
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || strings.ContainsAny(u.Hostname(), " /\\") {
		return endpoint{}, errors.New(`is neither a host name nor a URL such as "https://vc.example.com/sdk"`)
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return endpoint{}, errors.New("is a URL that begins with neither https nor http")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return endpoint{}, errors.New("has something behind its path")
	}
	e := endpoint{user: c.Username, password: c.Password.Reveal()}
	if e.user == "" {
		e.user = u.User.Username()
	}
	if p, ok := u.User.Password(); ok && e.password == "" {
		e.password = p
	}
	u.User = nil
	if u.Path = strings.TrimRight(u.Path, "/"); u.Path == "" {
		u.Path = "/sdk"
	}
	e.url = u
	return e, nil
}

// pin is the thumbprint that the server must have; nil: none is known.
func (c Config) pin(host string) ([]byte, error) {
	if c.Thumbprint != "" {
		return parseThumbprint(c.Thumbprint)
	}
	if c.KnownHosts == "" {
		return nil, nil
	}
	data, err := os.ReadFile(filepath.Clean(c.KnownHosts))
	if err != nil {
		return nil, fmt.Errorf("known_hosts: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 2 || (f[0] != host && net.JoinHostPort(strings.Trim(f[0], "[]"), "443") != host) {
			continue
		}
		p, err := parseThumbprint(f[1])
		if err != nil {
			return nil, fmt.Errorf("known_hosts: the line for %s: %w", f[0], err)
		}
		return p, nil
	}
	return nil, nil
}

// authorities is who may sign the server's certificate; nil: whoever this host trusts.
func (c Config) authorities() (*x509.CertPool, error) {
	if c.CAFile == "" && c.CAPEM == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if c.CAPEM != "" && !pool.AppendCertsFromPEM([]byte(c.CAPEM)) {
		return nil, errors.New("ca_pem: holds no certificate in PEM")
	}
	for _, name := range filepath.SplitList(c.CAFile) {
		pem, err := os.ReadFile(filepath.Clean(name))
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate in PEM", name)
		}
	}
	return pool, nil
}

// parseThumbprint reads 20 bytes of SHA-1 or 32 of SHA-256.
func parseThumbprint(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || (len(b) != 20 && len(b) != 32) {
		return nil, errors.New("is neither SHA-1 nor SHA-256 in hexadecimal")
	}
	return b, nil
}

// FromEnv reads the variables that govc reads (GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD, GOVC_INSECURE,
// GOVC_TLS_CA_CERTS, GOVC_TLS_KNOWN_HOSTS) and answers the connection as JSON for [Driver]; false where
// GOVC_URL is not set. The JSON holds the password.
func FromEnv(lookup func(name string) (value string, set bool)) (config json.RawMessage, set bool) {
	get := func(name string) string { v, _ := lookup(name); return v }
	server := get("GOVC_URL")
	if server == "" {
		return nil, false
	}
	insecure, _ := strconv.ParseBool(get("GOVC_INSECURE")) // what is no boolean does not switch checks off
	config, err := json.Marshal(struct {
		Server     string `json:"server"`
		Username   string `json:"username,omitempty"`
		Password   string `json:"password,omitempty"`
		Insecure   bool   `json:"insecure,omitempty"`
		CAFile     string `json:"ca_file,omitempty"`
		KnownHosts string `json:"known_hosts,omitempty"`
	}{server, get("GOVC_USERNAME"), get("GOVC_PASSWORD"), insecure, get("GOVC_TLS_CA_CERTS"), get("GOVC_TLS_KNOWN_HOSTS")})
	return config, err == nil
}

// Duration is a time.Duration that is written "90s" or "5m" in JSON.
type Duration time.Duration

func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90s", text)
	}
	*d = Duration(v)
	return nil
}
