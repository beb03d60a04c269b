package apiserver

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	workflowpb "go.temporal.io/api/workflow/v1"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	snapshotJobs = 100
	maxSockets   = 1000
	pingPace     = 20 * time.Second
	pongPatience = 60 * time.Second
	sendPatience = 10 * time.Second
	// closedOverlap is how far the hub looks back for jobs that ended: visibility lags behind.
	closedOverlap = 10 * time.Second
)

// socket is one listener. Of a job only the newest state waits to be sent, so that a slow listener
// misses what is old and costs nothing; one that takes nothing any more is hung up on.
type socket struct {
	conn *websocket.Conn
	only string // job; empty: all
	wake chan struct{}

	mu     sync.Mutex
	queue  []string
	frames map[string][]byte
}

func (k *socket) offer(id string, frame []byte) {
	if k.only != "" && k.only != id {
		return
	}
	k.mu.Lock()
	if _, waits := k.frames[id]; !waits {
		k.queue = append(k.queue, id)
	}
	k.frames[id] = frame
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *socket) next() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		return nil
	}
	id := k.queue[0]
	k.queue = k.queue[1:]
	f := k.frames[id]
	delete(k.frames, id)
	return f
}

// webSocket is GET /ws.
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request) {
	only := r.URL.Query().Get("job_id")
	first, err := s.snapshot(r.Context(), only)
	if err != nil {
		writeError(w, answerOf(r.Context(), err))
		return
	}
	k := &socket{only: only, wake: make(chan struct{}, 1), frames: map[string][]byte{}}
	if !s.hub.join(k) {
		writeError(w, newError(http.StatusServiceUnavailable, "the server has too many web sockets, or is about to stop"))
		return
	}
	defer s.hub.leave(k)
	up := websocket.Upgrader{
		HandshakeTimeout: sendPatience, CheckOrigin: s.originAllowed,
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			writeError(w, newError(status, "no web socket: %s", reason))
		},
	}
	if k.conn, err = up.Upgrade(w, r, nil); err != nil {
		return // answered by Error above
	}
	k.serve(s.hub.ctx, first)
}

// snapshot is the first frame.
func (s *Server) snapshot(ctx context.Context, only string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	jobs := []job.Job{}
	if only != "" {
		j, err := s.job(ctx, only)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	} else {
		infos, err := s.watched(ctx)
		if err != nil {
			return nil, err
		}
		jobs = s.listed(ctx, infos)
	}
	return json.Marshal(api.Frame{Type: "snapshot", Jobs: &jobs, Timestamp: job.Now()})
}

// watched are all executions that are open, and the newest of the others.
func (s *Server) watched(ctx context.Context) ([]*workflowpb.WorkflowExecutionInfo, error) {
	open, err := s.scan(ctx, openQuery, pageSize, nil)
	if err != nil {
		return nil, err
	}
	ended, _, err := s.newest(ctx, []job.State{job.Completed, job.Failed, job.Cancelled}, snapshotJobs)
	if err != nil {
		return nil, err
	}
	return s.recent.missing(ctx, s, append(open, ended...)), nil
}

// serve sends until the listener goes or ctx ends.
func (k *socket) serve(ctx context.Context, first []byte) {
	gone := make(chan struct{})
	var reader sync.WaitGroup
	defer reader.Wait()
	defer func() { _ = k.conn.Close() }() // whatever there was to say has been said
	reader.Go(func() { defer close(gone); k.listen() })

	ping := time.NewTicker(pingPace)
	defer ping.Stop()
	if k.write(websocket.TextMessage, first) != nil {
		return
	}
	for {
		for f := k.next(); f != nil; f = k.next() {
			if k.write(websocket.TextMessage, f) != nil {
				return
			}
		}
		select {
		case <-k.wake:
		case <-gone:
			return
		case <-ping.C:
			if k.write(websocket.PingMessage, nil) != nil {
				return
			}
		case <-ctx.Done():
			_ = k.write(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "the server stops"))
			return
		}
	}
}

func (k *socket) write(kind int, b []byte) error {
	if err := k.conn.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return err
	}
	return k.conn.WriteMessage(kind, b)
}

// listen takes pongs; a listener has nothing else to say.
func (k *socket) listen() {
	k.conn.SetReadLimit(4 << 10)
	alive := func(string) error { return k.conn.SetReadDeadline(time.Now().Add(pongPatience)) }
	k.conn.SetPongHandler(alive)
	if alive("") != nil {
		return
	}
	for {
		if _, _, err := k.conn.NextReader(); err != nil {
			return
		}
	}
}
