// Package client talks to the HTTP API of the daemon.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hypersdk/apiserver/api"
)

const (
	// DefaultServer is where a daemon listens unless it was told otherwise.
	DefaultServer = "http://127.0.0.1:8080"

	maxAnswer   = 256 << 20
	dialTimeout = 5 * time.Second
	// answerTimeout is how long the server may take to begin to answer: more than it gives platforms.
	answerTimeout = 150 * time.Second
)

// Client is a server's API. It may be used from several goroutines.
type Client struct {
	base  *url.URL
	http  *http.Client
	agent string
}

// NewSocket is the API of a server on this host that listens on a Unix socket.
func NewSocket(path, agent string) *Client {
	c, err := New("http://localhost", agent)
	if err != nil {
		panic(err) // a constant that is right
	}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
		},
		ResponseHeaderTimeout: answerTimeout, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	return c
}

// New is the API of a server: its URL, or "host:port". agent names the program to the server.
func New(server, agent string) (*Client, error) {
	if server == "" {
		server = DefaultServer
	}
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf(`server %q is not a URL such as %q`, server, DefaultServer)
	}
	u.Path, u.RawQuery, u.Fragment = strings.TrimRight(u.Path, "/"), "", ""
	return &Client{base: u, agent: agent, http: &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		ResponseHeaderTimeout: answerTimeout,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       time.Minute,
	}}}, nil
}

// Server is the URL that the client talks to.
func (c *Client) Server() string { return c.base.String() }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// UnreachableError is that no server answered, or none to the end.
type UnreachableError struct {
	Server string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the server at %s cannot be reached: %v", e.Server, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// IsNotFound says whether an error is the server's word that there is no such thing.
func IsNotFound(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// call sends a request with an optional body and reads the answer into out. What the server refuses is
// an *api.Error.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	return c.exchange(ctx, method, path, query, http.Header{}, in, out)
}

// start asks for a job to be started. The same request under the same key, if it is not empty, is started
// once.
func (c *Client) start(ctx context.Context, path, key string, in, out any) error {
	header := http.Header{}
	if key != "" {
		header.Set("Idempotency-Key", key)
	}
	return c.exchange(ctx, http.MethodPost, path, nil, header, in, out)
}

func (c *Client) exchange(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		header.Set("Content-Type", "application/json")
	}
	r, err := c.send(ctx, method, path, query, header, body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return decode(r, out)
}

// send sends a request; the answer is a success, and its body the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, header http.Header, body []byte) (*http.Response, error) {
	answer, err := c.do(ctx, method, path, query, header, body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= http.StatusOK && answer.StatusCode < http.StatusMultipleChoices {
		return answer, nil
	}
	defer answer.Body.Close()
	return nil, refusal(answer)
}

// do sends a request, and takes any answer.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, header http.Header, body []byte) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = header
	r.Header.Set("User-Agent", c.agent)
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	answer.Body = &answerBody{ReadCloser: answer.Body, c: c, ctx: ctx}
	return answer, nil
}

// answerBody says of an answer that breaks off that the server has gone.
type answerBody struct {
	io.ReadCloser
	c   *Client
	ctx context.Context //nolint:containedctx // that of the one request
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // the end is never wrapped
		err = b.c.unreachable(b.ctx, fmt.Errorf("its answer broke off: %w", err))
	}
	return n, err
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the URL is said already
	}
	return &UnreachableError{Server: c.Server(), Err: err}
}

// refusal reads the body of an answer that is not a success.
func refusal(r *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("the server answered %s, but not why: %w", r.Status, err)
	}
	e := api.Error{Status: r.StatusCode}
	if json.Unmarshal(raw, &e) != nil || e.Message == "" {
		return notOurs(r)
	}
	return &e
}

func notOurs(r *http.Response) error {
	return fmt.Errorf("the answer to %s was %s, and not that of a HyperSDK daemon", r.Request.URL.Path, r.Status)
}

func decode(r *http.Response, out any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAnswer)).Decode(out); err != nil {
		var away *UnreachableError
		if errors.As(err, &away) || r.Request.Context().Err() != nil {
			return err
		}
		return errors.Join(notOurs(r), err)
	}
	return nil
}

// Health asks whether the server answers.
func (c *Client) Health(ctx context.Context) (out api.Health, err error) {
	return out, c.call(ctx, http.MethodGet, "/health", nil, nil, &out)
}

// Status is the server and its jobs in numbers.
func (c *Client) Status(ctx context.Context) (out api.Status, err error) {
	return out, c.call(ctx, http.MethodGet, "/status", nil, nil, &out)
}

// Capabilities is what the server's build can do.
func (c *Client) Capabilities(ctx context.Context) (out api.Capabilities, err error) {
	return out, c.call(ctx, http.MethodGet, "/capabilities", nil, nil, &out)
}
