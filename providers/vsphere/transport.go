package vsphere

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// maxAnswer bounds what one SOAP answer may be; a page of 500 VMs takes about 1 MiB.
	maxAnswer = 256 << 20
	// maxPatience bounds what a server may ask for in Retry-After.
	maxPatience = time.Hour
)

// newTransport makes the one pool of connections that SOAP calls and reads of disks share.
func newTransport(c Config, e endpoint) (*http.Transport, error) {
	conf, err := c.tls(e)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: conn, limit: time.Duration(c.StallTimeout)}, nil
		},
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 30 * time.Second,
		// HTTP/1.1 only, as ESXi speaks it: one range, one connection. Multiplexing ranges over one
		// connection would make the slowest of them everyone's pace.
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost:    c.Connections + 4,
		IdleConnTimeout:        90 * time.Second,
		ReadBufferSize:         64 << 10,
		MaxResponseHeaderBytes: 256 << 10,
	}, nil
}

// watchedConn fails reads and writes when nothing moves for limit: a peer that died without a word
// is noticed after that long, not after hours. A write restarts the clock of a read that waits on an
// idle connection for the next answer.
type watchedConn struct {
	net.Conn
	limit time.Duration
}

func (c *watchedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *watchedConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// tls decides which certificate is trusted. A thumbprint decides alone, whoever signed it.
func (c Config) tls(e endpoint) (*tls.Config, error) {
	pin, err := c.pin(e.host())
	if err != nil {
		return nil, err
	}
	roots, err := c.authorities()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, InsecureSkipVerify: c.Insecure} //nolint:gosec // the operator asked for it, by name
	if pin != nil {
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server has no certificate")
			}
			leaf := s.PeerCertificates[0]
			sha1sum, sha256sum := sha1.Sum(leaf.Raw), sha256.Sum256(leaf.Raw) //nolint:gosec // vSphere shows thumbprints in SHA-1
			if !bytes.Equal(pin, sha1sum[:]) && !bytes.Equal(pin, sha256sum[:]) {
				return &thumbprintError{got: thumbprint(leaf)}
			}
			return nil
		}
	}
	return conf, nil
}

// thumbprintError is a server that is not the one that was pinned.
type thumbprintError struct{ got string }

func (e *thumbprintError) Error() string {
	return "the server's certificate has the SHA-256 thumbprint " + e.got + ", not the one that is configured"
}

// thumbprint is SHA-256 as vSphere writes it: "AB:CD:…".
func thumbprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// statusError is an answer of HTTP that was not the one hoped for.
type statusError struct {
	code  int
	retry time.Duration
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
}

// newStatusError closes the answer.
func newStatusError(res *http.Response) *statusError {
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that the connection can be used again
	res.Body.Close()
	return &statusError{code: res.StatusCode, retry: retryAfter(res.Header.Get("Retry-After"), time.Now())}
}

// retryAfter reads the header of that name, in either of its forms (RFC 9110, 10.2.3).
func retryAfter(h string, now time.Time) time.Duration {
	var d time.Duration
	if s, err := strconv.ParseInt(h, 10, 32); err == nil {
		d = time.Duration(s) * time.Second
	} else if t, err := http.ParseTime(h); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), maxPatience)
}

// soapTransport turns answers that are not SOAP into errors that keep what they said, which the SOAP
// client loses, and bounds those that are.
type soapTransport struct{ next http.RoundTripper }

func (t soapTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusInternalServerError {
		return nil, newStatusError(res)
	}
	res.Body = http.MaxBytesReader(nil, res.Body, maxAnswer)
	return res, nil
}
