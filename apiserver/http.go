package apiserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	drainTimeout  = 5 * time.Second
)

// patience is what a server has with slow callers.
type patience struct {
	read  time.Duration // of a request
	write time.Duration // of an answer; longer than callTimeout, so that a large inventory is listed within it
}

func defaultPatience() patience { return patience{read: time.Minute, write: 3 * time.Minute} }

// Serve answers on l until ctx ends; then it lets running requests finish, for a few seconds, and
// returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, ReadTimeout: s.patience.read, WriteTimeout: s.patience.write,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	defer s.Close()
	srv.RegisterOnShutdown(s.Close) // what would never end by itself must not hold the rest up
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("api: serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return srv.Close()
	}
	return nil
}

// request is what the boundary knows about a request while it runs.
type request struct {
	id    string
	cause error // why it was answered with an error, for the log
}

type requestKey struct{}

// note keeps the reason of an error answer for the log.
func note(ctx context.Context, err error) {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		r.cause = err
	}
}

// boundary is the outermost handler: it names the request, survives panics, and logs once.
func (s *Server) boundary(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := &request{id: requestID(r)}
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		w.Header().Set("X-Request-Id", req.id)
		defer func() {
			if p := recover(); p != nil {
				req.cause = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				if rec.status == 0 {
					writeError(rec, newError(http.StatusInternalServerError, serverFailed))
				}
			}
			s.logRequest(r, rec, req, time.Since(start))
		}()
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
		next.ServeHTTP(rec, r)
	})
}

func (s *Server) logRequest(r *http.Request, rec *recorder, req *request, took time.Duration) {
	level, attrs := slog.LevelDebug, []slog.Attr{
		slog.String("request", req.id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes), slog.Duration("took", took),
	}
	if req.cause != nil {
		attrs = append(attrs, slog.Any("error", req.cause))
	}
	if rec.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

var goodRequestID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)

func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); goodRequestID.MatchString(id) {
		return id
	}
	return rand.Text()
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// headers sets what keeps a browser from doing more with an answer than show it.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// knownHost refuses requests for names that this server does not have. A page of anybody's can make a
// browser resolve its own name to 127.0.0.1 and would then talk to us as the same origin; the Host
// header is what gives it away.
func (s *Server) knownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.hostAllowed(r) {
			writeError(w, newError(http.StatusMisdirectedRequest,
				"this server is not known as %q; add the name to the allowed hosts if it should be", job.Shorten(r.Host, 40)))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) hostAllowed(r *http.Request) bool {
	name := hostname(r.Host)
	if slices.Contains(s.cfg.AllowedHosts, name) {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if ok && !isLoopback(hostname(local.String())) && len(s.cfg.AllowedHosts) == 0 {
		return true
	}
	return isLoopback(name)
}

func hostname(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		hostport = h
	}
	return strings.ToLower(strings.Trim(hostport, "[]"))
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// sameOrigin refuses requests that change something, and come from a page of somebody else's.
func (s *Server) sameOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.origins.Check(r); err != nil {
			writeError(w, newError(http.StatusForbidden, "a page of another origin may not do that; add it to the allowed origins if it should be able to"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// originAllowed is for web sockets, which browsers open to anywhere.
func (s *Server) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(s.cfg.AllowedOrigins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// jsonByDefault reads bodies of no type, or of the type that curl and forms give them, as JSON.
func jsonByDefault(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ct := mediaType(r.Header.Get("Content-Type")); ct == "application/x-www-form-urlencoded" || ct == "text/plain" {
			r.Header.Del("Content-Type")
		}
		next.ServeHTTP(w, r)
	})
}

func mediaType(contentType string) string {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(t))
}

func writeError(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e) // the caller has gone if this fails
}
