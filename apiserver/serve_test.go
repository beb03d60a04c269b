package apiserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/apiservertest"
)

// Who sends a body slowly is hung up on; who has sent it may wait for the answer for longer than that.
func TestSlowCallersAndSlowAnswers(t *testing.T) {
	s, err := New(Config{}, Deps{
		Temporal: apiservertest.NewTemporal(), Connections: &apiservertest.Connections{},
		Codec: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				w.WriteHeader(http.StatusRequestTimeout)
				return
			}
			select {
			case <-time.After(500 * time.Millisecond):
				_, _ = io.WriteString(w, "done")
			case <-r.Context().Done():
			}
		}),
	})
	require.NoError(t, err)
	s.patience.read = 100 * time.Millisecond
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	defer func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		require.NoError(t, <-served)
	}()

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+l.Addr().String()+"/codec/x", strings.NewReader("{}"))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "done", string(answer))

	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /codec/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	answer, err = io.ReadAll(conn)
	require.NoError(t, err, "the connection is closed")
	require.Contains(t, string(answer), "408")
}
