package apiserver

import (
	"context"
	"sync"
	"time"

	"hypersdk/workflows"
)

// queries asks workflows, and stops asking for a while when no worker answers: a page must not hang
// because of it.
type queries struct {
	temporal Temporal
	mu       sync.Mutex
	until    time.Time
}

func (q *queries) ask(ctx context.Context, id, name string, into any, args ...any) bool {
	q.mu.Lock()
	quiet := time.Now().Before(q.until)
	q.mu.Unlock()
	if quiet {
		return false
	}
	asked, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	v, err := q.temporal.QueryWorkflow(asked, id, "", name, args...)
	if err == nil {
		return v.Get(into) == nil
	}
	if asked.Err() != nil && ctx.Err() == nil {
		q.mu.Lock()
		q.until = time.Now().Add(queryPause)
		q.mu.Unlock()
	}
	return false
}

// waits is what pending jobs wait for, by the admission workflow: of these jobs, or of the first in its
// queue.
func (q *queries) waits(ctx context.Context, ids ...string) map[string]string {
	var why map[string]string
	if len(ids) == 0 {
		q.ask(ctx, workflows.AdmissionID, workflows.QueryWaiting, &why)
	} else {
		q.ask(ctx, workflows.AdmissionID, workflows.QueryWaiting, &why, ids)
	}
	return why
}
