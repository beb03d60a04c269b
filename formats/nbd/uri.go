package nbd

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// defaultPort is NBD's.
const defaultPort = "10809"

// ParseURI understands the URIs of NBD (doc/uri.md of the project): nbd://HOST[:PORT]/EXPORT, nbds:// for TLS, and
// nbd+unix:///EXPORT?socket=PATH, nbds+unix:// likewise.
func ParseURI(s string) (Options, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Options{}, fmt.Errorf("nbd: %w", err)
	}
	var o Options
	scheme, unix := strings.CutSuffix(u.Scheme, "+unix")
	switch scheme {
	case "nbd":
	case "nbds":
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	default:
		return o, fmt.Errorf("nbd: %q is not the scheme of an NBD URI; use nbd, nbds, nbd+unix or nbds+unix", u.Scheme)
	}
	o.Export = strings.TrimPrefix(u.Path, "/")
	if unix {
		o.Network, o.Address = "unix", u.Query().Get("socket")
		if o.Address == "" {
			return o, fmt.Errorf("nbd: a URI of a Unix socket needs ?socket=PATH")
		}
		if u.Host != "" {
			return o, fmt.Errorf("nbd: a URI of a Unix socket names no host; write %s:///EXPORT?socket=PATH", u.Scheme)
		}
		return o, nil
	}
	if u.Hostname() == "" {
		return o, fmt.Errorf("nbd: the URI names no host")
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	o.Network, o.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	return o, nil
}
