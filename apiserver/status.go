package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func (s *Server) statusOperations(h huma.API) {
	huma.Register(h, operation(http.MethodGet, "/health", "health", "server", "Whether the server answers",
		"Says nothing about platforms or workers."), s.health)
	huma.Register(h, operation(http.MethodGet, "/status", "status", "server", "The server and its jobs in numbers", "",
		http.StatusServiceUnavailable), s.status)
	huma.Register(h, operation(http.MethodGet, "/capabilities", "capabilities", "server", "What this build can do", ""), s.capabilities)
}

func (s *Server) health(context.Context, *struct{}) (*struct{ Body api.Health }, error) {
	return &struct{ Body api.Health }{api.Health{Status: "healthy", Timestamp: job.Now()}}, nil
}

func (s *Server) status(ctx context.Context, _ *struct{}) (*struct{ Body api.Status }, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	count, err := s.temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{
		Query: jobQuery(nil) + " GROUP BY ExecutionStatus",
	})
	if err != nil {
		return nil, fail(ctx, fmt.Errorf("count jobs: %w", err))
	}
	st := api.Status{Version: s.deps.Version, Uptime: time.Since(s.begun).Round(time.Second).String(),
		TemporalURL: s.deps.TemporalUI, Timestamp: job.Now()}
	open := 0
	for _, g := range count.GetGroups() {
		if len(g.GetGroupValues()) == 0 {
			continue
		}
		var state string
		if converter.GetDefaultDataConverter().FromPayload(g.GetGroupValues()[0], &state) != nil {
			continue
		}
		n := int(g.GetCount())
		switch state {
		case "Running":
			open = n
		case "Completed":
			st.CompletedJobs = n
		case "Canceled":
			st.CancelledJobs = n
		case "Failed", "Terminated", "TimedOut":
			st.FailedJobs += n
		default: // continued as new: counted by the run that goes on
			continue
		}
		st.TotalJobs += n
	}
	if st.PendingJobs, err = s.pendingJobs(ctx, open); err != nil {
		return nil, fail(ctx, err)
	}
	st.RunningJobs = open - st.PendingJobs
	return &struct{ Body api.Status }{st}, nil
}

// pendingJobs is how many of the open jobs have not been admitted: by the admission workflow, or, where
// it does not answer or more wait than it tells of, by their memos.
func (s *Server) pendingJobs(ctx context.Context, open int) (int, error) {
	if open == 0 {
		return 0, nil
	}
	if n := len(s.queries.waits(ctx)); n > 0 && n < workflows.MaxWaiting {
		return min(n, open), nil
	}
	found, err := s.scan(ctx, openQuery, pageSize, nil)
	n := 0
	for _, x := range found {
		if s.view(x).Status == job.Pending {
			n++
		}
	}
	return min(n, open), err
}

func (s *Server) capabilities(context.Context, *struct{}) (*struct{ Body api.Capabilities }, error) {
	return &struct{ Body api.Capabilities }{api.Capabilities{
		Version: s.deps.Version, Providers: orEmpty(s.deps.Providers), Formats: orEmpty(s.deps.Formats),
		DefaultFormat: s.cfg.DefaultFormat, Transports: orEmpty(s.caps.Transports), Features: orEmpty(s.deps.Features),
		JobVCenter: s.deps.CanStoreCredentials, Timestamp: job.Now(),
	}}, nil
}

// orEmpty makes sure that a list is answered as [] and never as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
