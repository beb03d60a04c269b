package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
	"hypersdk/apiserver/api"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows/job"
)

type listener struct {
	t    *testing.T
	conn *websocket.Conn
}

func dial(t *testing.T, url string) *listener {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), url, nil)
	require.NoError(t, err)
	_ = resp.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	return &listener{t, conn}
}

func (b *bench) socket(query string) *listener {
	b.t.Helper()
	return dial(b.t, "ws"+strings.TrimPrefix(b.URL, "http")+"/ws"+query)
}

func (l *listener) frame() api.Frame {
	l.t.Helper()
	require.NoError(l.t, l.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, raw, err := l.conn.ReadMessage()
	require.NoError(l.t, err)
	var f api.Frame
	require.NoError(l.t, json.Unmarshal(raw, &f))
	return f
}

// until reads frames of a job until one is as wanted.
func (l *listener) until(id string, want func(j job.Job) bool) job.Job {
	l.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		f := l.frame()
		require.Equal(l.t, "job", f.Type)
		if f.Job.ID == id && want(*f.Job) {
			return *f.Job
		}
	}
	l.t.Fatal("no such frame")
	return job.Job{}
}

// First what there is, then what changes.
func TestWebSocket(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j1"))
	old := running("old")
	old.Started = time.Now().Add(-48 * time.Hour)
	b.temporal.Add(old)
	b.temporal.Change("old", func(r *apiservertest.Run) { r.End(job.Failed, nil, "x"); r.Closed = time.Now().Add(-47 * time.Hour) })
	l := b.socket("")
	f := l.frame()
	require.Equal(t, "snapshot", f.Type)
	require.Len(t, *f.Jobs, 2)

	b.temporal.Change("j1", func(r *apiservertest.Run) {
		r.Activities = []apiservertest.Activity{{Beat: &job.DiskProgress{Disk: "2000", Phase: job.Transfer, Done: 900, Total: 1000}}}
	})
	l.until("j1", func(j job.Job) bool { return j.Progress.BytesTransferred == 900 })
	id := b.submit(web)[0]
	l.until(id, func(j job.Job) bool { return j.Status == job.Pending && j.Definition.VMPath == "/dc/vm/web-01" })
	b.temporal.Change("j1", func(r *apiservertest.Run) { r.End(job.Completed, &job.Result{VMName: "web-01", Success: true}, "") })
	j := l.until("j1", func(j job.Job) bool { return j.Status == job.Completed })
	require.Equal(t, "web-01", j.Result.VMName)
}

// A job that does not change is not sent again; one that ends between two looks is.
func TestWebSocketSendsChangesOnly(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("still"))
	l := b.socket("")
	l.frame()
	l.until("still", func(job.Job) bool { return true }) // the first look may tell it once more
	looks := b.temporal.Calls("ListWorkflow")
	require.Eventually(t, func() bool { return b.temporal.Calls("ListWorkflow") > looks+3 }, 5*time.Second, time.Millisecond)
	b.temporal.Add(running("short"))
	b.temporal.Change("short", func(r *apiservertest.Run) { r.End(job.Cancelled, nil, "") })
	require.Equal(t, "short", l.frame().Job.ID)
}

func TestWebSocketOfOneJob(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("a"))
	b.temporal.Add(running("b"))
	l := b.socket("?job_id=a")
	f := l.frame()
	require.Len(t, *f.Jobs, 1)
	for _, id := range []string{"b", "a"} {
		b.temporal.Change(id, func(r *apiservertest.Run) { r.End(job.Failed, nil, "x") })
	}
	require.Equal(t, "a", l.until("a", func(j job.Job) bool { return j.Status == job.Failed }).ID)
}

// However many listen, one looks; when nobody listens nobody looks.
func TestWebSocketsShareOneLook(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	listeners := make([]*listener, 5)
	for i := range listeners {
		listeners[i] = b.socket("")
		listeners[i].frame()
	}
	b.temporal.Change("j", func(r *apiservertest.Run) { r.Snapshot.Progress.CurrentStep = "changed"; r.Publish() })
	for _, l := range listeners {
		l.until("j", func(j job.Job) bool { return j.Progress.CurrentStep == "changed" })
	}
	for _, l := range listeners {
		require.NoError(t, l.conn.Close())
	}
	rests := func() bool {
		before := b.temporal.Calls("ListWorkflow")
		time.Sleep(100 * time.Millisecond) // five looks' time
		return b.temporal.Calls("ListWorkflow") == before
	}
	require.Eventually(t, rests, 10*time.Second, time.Millisecond)
}

func TestWebSocketOrigins(t *testing.T) {
	b := start(t, func(c *apiserver.Config, _ *apiserver.Deps) {
		c.AllowedOrigins = []string{"https://console.example.org"}
	})
	for origin, ok := range map[string]bool{"": true, b.URL: true, "https://console.example.org": true, "https://evil.example.org": false, "null": false} {
		h := http.Header{}
		if origin != "" {
			h.Set("Origin", origin)
		}
		conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(b.URL, "http")+"/ws", h)
		if resp != nil {
			_ = resp.Body.Close()
		}
		if ok {
			require.NoError(t, err, origin)
			_ = conn.Close()
			continue
		}
		require.Error(t, err, origin)
		require.Equal(t, http.StatusForbidden, resp.StatusCode)
	}
	b.get("/ws").refused(http.StatusBadRequest)
}

// A listener that answers no more is hung up on when the server stops, and does not hold it up.
func TestWebSocketOfAListenerThatSleeps(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	b.socket("") // never read
	deadline := time.Now().Add(5 * time.Second)
	for n := 0; b.temporal.Calls("ListWorkflow") < 20 && time.Now().Before(deadline); n++ {
		b.temporal.Change("j", func(r *apiservertest.Run) { r.Snapshot.Progress.CurrentStep = strings.Repeat("x", 1000+n); r.Publish() })
		time.Sleep(time.Millisecond)
	}
	b.get("/health").ok()
}
