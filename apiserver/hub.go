package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// hub looks at the running jobs, once for all sockets, and tells the sockets what changed. It rests
// while there are none.
type hub struct {
	s      *Server
	ctx    context.Context // of all that goes on for long: polling, sockets, followed logs; ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	sockets map[*socket]struct{}
	polling bool
}

func newHub(s *Server) *hub {
	h := &hub{s: s, sockets: map[*socket]struct{}{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

func (h *hub) close() {
	h.mu.Lock() // nobody joins in between
	h.cancel()
	h.mu.Unlock()
	h.wg.Wait()
}

// join adds a socket; false where the server closes or has too many.
func (h *hub) join(k *socket) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil || len(h.sockets) >= maxSockets {
		return false
	}
	h.sockets[k] = struct{}{}
	h.wg.Add(1)
	if !h.polling {
		h.polling = true
		h.wg.Go(h.poll)
	}
	return true
}

func (h *hub) leave(k *socket) {
	h.mu.Lock()
	delete(h.sockets, k)
	h.mu.Unlock()
	h.wg.Done()
}

// idle ends the polling where nobody listens.
func (h *hub) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.polling = len(h.sockets) > 0 && h.ctx.Err() == nil
	return !h.polling
}

func (h *hub) poll() {
	known := map[string][]byte{}
	since := time.Now()
	for {
		begun := time.Now()
		if jobs, err := h.open(since.Add(-closedOverlap)); err == nil {
			h.tell(known, jobs)
			since = begun
		} else if h.ctx.Err() == nil {
			h.s.log.Warn("jobs could not be listed for web sockets", "error", err)
		}
		// Thousands of jobs take a while to list: looking takes a fifth of the time at most.
		rest := time.NewTimer(max(h.s.cfg.PollInterval, 4*time.Since(begun)))
		select {
		case <-h.ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
		if h.idle() {
			return
		}
	}
}

// open are the jobs that run, and those that ended since.
func (h *hub) open(since time.Time) ([]job.Job, error) {
	ctx, cancel := context.WithTimeout(h.ctx, quickTimeout)
	defer cancel()
	open, err := h.s.scan(ctx, openQuery, pageSize, nil)
	if err != nil {
		return nil, err
	}
	ended, err := h.s.scan(ctx, "CloseTime > '"+since.UTC().Format(time.RFC3339Nano)+"'", pageSize, nil)
	if err != nil {
		return nil, err
	}
	return h.s.listed(ctx, h.s.recent.missing(ctx, h.s, append(open, ended...))), ctx.Err()
}

// tell sends the jobs that differ from what was sent before, and remembers those that still run.
func (h *hub) tell(known map[string][]byte, jobs []job.Job) {
	seen := make(map[string]bool, len(jobs))
	for _, j := range jobs {
		seen[j.ID] = true
		now, err := json.Marshal(j)
		if err != nil || bytes.Equal(known[j.ID], now) {
			continue
		}
		known[j.ID] = now
		h.send(j.ID, api.Frame{Type: "job", Job: &j, Timestamp: job.Now()})
	}
	for id := range known {
		if !seen[id] {
			delete(known, id)
		}
	}
}

func (h *hub) send(id string, f api.Frame) {
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.sockets {
		k.offer(id, b)
	}
}
