package apiserver_test

import (
	"encoding/json"
	"fmt"
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

// patience is for machines with a lot to do.
const patience = 60 * time.Second

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
	require.NoError(l.t, l.conn.SetReadDeadline(time.Now().Add(patience)))
	_, raw, err := l.conn.ReadMessage()
	require.NoError(l.t, err)
	var f api.Frame
	require.NoError(l.t, json.Unmarshal(raw, &f))
	return f
}

// until reads frames of a job until one is as wanted.
func (l *listener) until(id string, want func(j job.Job) bool) job.Job {
	l.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
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
	require.Eventually(t, func() bool { return b.temporal.Calls("ListWorkflow") > looks+3 }, patience, time.Millisecond)
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
	before, same := -1, 0
	rests := func() bool { // ten times in a row, which is ten looks' time
		now := b.temporal.Calls("ListWorkflow")
		if same++; now != before {
			before, same = now, 0
		}
		return same >= 10
	}
	require.Eventually(t, rests, patience, 20*time.Millisecond)
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

// A listener that takes nothing does not hold up the others, nor the end of the server.
func TestWebSocketOfAListenerThatSleeps(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	b.socket("") // never read
	awake := b.socket("")
	awake.frame()
	for i := range 8 {
		step := strings.Repeat("x", 50_000) + fmt.Sprint(i)
		b.temporal.Change("j", func(r *apiservertest.Run) { r.Snapshot.Progress.CurrentStep = step; r.Publish() })
		awake.until("j", func(j job.Job) bool { return j.Progress.CurrentStep == step })
	}
}
