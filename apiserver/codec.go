package apiserver

import (
	"net/http"
	"net/url"
	"strings"
)

// codec serves the payload codec to the Temporal Web UI, which is a page of another origin, and to
// nobody else's page: what it decodes is not for everyone.
func (s *Server) codec(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origin := r.Header.Get("Origin"); origin != "" && !s.originAllowed(r) {
			if !sameSite(origin, s.deps.TemporalUI) {
				writeError(w, newError(http.StatusForbidden, "only the Temporal Web UI may use the codec"))
				return
			}
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Headers", "Content-Type, X-Namespace, Authorization")
			h.Set("Access-Control-Allow-Methods", "POST, OPTIONS")
			h.Set("Vary", "Origin")
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

// sameSite says whether an origin is that of a URL; the names of the loopback interface are one.
func sameSite(origin, page string) bool {
	a, errA := url.Parse(origin)
	b, errB := url.Parse(page)
	if errA != nil || errB != nil || b.Host == "" || a.Scheme != b.Scheme {
		return false
	}
	if strings.EqualFold(a.Host, b.Host) {
		return true
	}
	return isLoopback(a.Hostname()) && isLoopback(b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}
