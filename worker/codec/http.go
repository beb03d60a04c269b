package codec

import (
	"net/http"
	"net/netip"
	"strings"

	"go.temporal.io/sdk/converter"
)

// Handler decodes payloads for the Temporal Web UI in a browser on this host: `POST …/decode` with the
// payloads as JSON. It answers only callers that came over loopback, and it does not encode: nobody
// could then put payloads of his own making into a workflow. Which pages may read the answers is the
// business of who mounts it.
func (c *Codec) Handler() http.Handler {
	decode := converter.NewPayloadCodecHTTPHandler(c)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		switch {
		case err != nil || !peer.Addr().Unmap().IsLoopback():
			http.Error(w, "payloads are decoded for callers on this host only", http.StatusForbidden)
		case !strings.HasSuffix(r.URL.Path, "/decode"):
			http.NotFound(w, r)
		default:
			decode.ServeHTTP(w, r)
		}
	})
}
