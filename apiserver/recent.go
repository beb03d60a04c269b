package apiserver

import (
	"context"
	"slices"
	"sync"
	"time"

	workflowpb "go.temporal.io/api/workflow/v1"
)

// recent remembers the jobs that this server started in the last seconds: visibility lags a moment
// behind, and whoever submits a job and then lists the jobs wants to see it.
type recent struct {
	mu   sync.Mutex
	jobs []started
}

type started struct {
	id string
	at time.Time
}

const (
	recentFor = 2 * time.Second
	recentMax = 2000
)

func (r *recent) note(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trim()
	if len(r.jobs) < recentMax {
		r.jobs = append(r.jobs, started{id, time.Now()})
	}
}

func (r *recent) trim() {
	r.jobs = slices.DeleteFunc(r.jobs, func(s started) bool { return time.Since(s.at) > recentFor })
}

// missing adds the recent jobs that visibility does not know yet to what it found.
func (r *recent) missing(ctx context.Context, s *Server, found []*workflowpb.WorkflowExecutionInfo) []*workflowpb.WorkflowExecutionInfo {
	r.mu.Lock()
	r.trim()
	fresh := slices.Clone(r.jobs)
	r.mu.Unlock()
	known := make(map[string]bool, len(found))
	for _, x := range found {
		known[x.GetExecution().GetWorkflowId()] = true
	}
	fresh = slices.DeleteFunc(fresh, func(f started) bool { return known[f.id] })
	more := make([]*workflowpb.WorkflowExecutionInfo, len(fresh))
	each(ctx, len(fresh), func(i int) {
		if d, err := s.describe(ctx, fresh[i].id); err == nil {
			more[i] = d.GetWorkflowExecutionInfo()
		}
	})
	for _, x := range more {
		if x != nil {
			found = append(found, x)
		}
	}
	slices.SortStableFunc(found, newestFirst)
	return found
}
