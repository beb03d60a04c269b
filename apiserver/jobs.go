package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
	"go.temporal.io/api/serviceerror"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	defaultLimit = 100
	maxLimit     = 10_000
	maxIDs       = 1000
)

// JobPath is the part of a path that names a job. It is exported for huma, which looks no further else.
type JobPath struct {
	ID string `path:"id" maxLength:"200" doc:"Id of the job" example:"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"`
}

type queryInput struct {
	JobIDs []string `query:"job_ids" doc:"These jobs, separated by commas" maxItems:"1000"`
	Status []string `query:"status" doc:"Jobs in one of these states, separated by commas" enum:"pending,running,completed,failed,cancelled"`
	All    bool     `query:"all" doc:"All jobs, at most 10000, where there is no limit"`
	Limit  int      `query:"limit" doc:"At most so many, the newest; 0: 100" minimum:"0" maximum:"10000"`
}

func (s *Server) jobOperations(h huma.API) {
	huma.Register(h, operation(http.MethodPost, "/jobs/query", "query-jobs", "jobs", "Find jobs",
		"Without any choice: the newest 100.", http.StatusBadRequest, http.StatusServiceUnavailable),
		func(ctx context.Context, in *struct{ Body api.Query }) (*struct{ Body api.Jobs }, error) {
			return s.query(ctx, in.Body)
		})
	huma.Register(h, operation(http.MethodGet, "/jobs/query", "list-jobs", "jobs", "List jobs",
		"As the POST, with the choice in the URL.", http.StatusServiceUnavailable),
		func(ctx context.Context, in *queryInput) (*struct{ Body api.Jobs }, error) {
			q := api.Query{JobIDs: in.JobIDs, All: in.All, Limit: in.Limit}
			for _, st := range in.Status {
				q.Status = append(q.Status, job.State(st))
			}
			return s.query(ctx, q)
		})
	huma.Register(h, operation(http.MethodGet, "/jobs/{id}", "get-job", "jobs", "A job", "",
		http.StatusNotFound, http.StatusServiceUnavailable),
		func(ctx context.Context, in *JobPath) (*struct{ Body job.Job }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			j, err := s.job(ctx, in.ID)
			return &struct{ Body job.Job }{j}, fail(ctx, err)
		})
	huma.Register(h, operation(http.MethodPost, "/jobs/cancel", "cancel-jobs", "jobs", "Cancel jobs",
		"A job that is cancelled stops within seconds and cleans up: its snapshot and its unfinished files go.",
		http.StatusBadRequest), s.cancel)
}

func (s *Server) query(ctx context.Context, q api.Query) (*struct{ Body api.Jobs }, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	limit := q.Limit
	switch {
	case limit == 0 && (q.All || len(q.JobIDs) > 0):
		limit = maxLimit
	case limit == 0:
		limit = defaultLimit
	}
	var out api.Jobs
	var err error
	if len(q.JobIDs) > 0 {
		out.Jobs, err = s.byID(ctx, q.JobIDs, q.Status)
		out.Total = len(out.Jobs)
		out.Jobs = out.Jobs[:min(limit, len(out.Jobs))]
	} else {
		out.Jobs, out.Total, err = s.list(ctx, q.Status, limit)
	}
	if err != nil {
		return nil, fail(ctx, err)
	}
	out.Jobs, out.Timestamp = orEmpty(out.Jobs), job.Now()
	return &struct{ Body api.Jobs }{out}, nil
}

// byID finds jobs by their ids, in that order; those that do not exist are left out.
func (s *Server) byID(ctx context.Context, ids []string, states []job.State) ([]job.Job, error) {
	found := make([]*job.Job, len(ids))
	errs := make([]error, len(ids))
	each(ctx, len(ids), func(i int) {
		j, err := s.job(ctx, ids[i])
		var answer *api.Error
		switch {
		case err == nil:
			found[i] = &j
		case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		default:
			errs[i] = err
		}
	})
	var jobs []job.Job
	for _, j := range found {
		if j != nil && (len(states) == 0 || slices.Contains(states, j.Status)) {
			jobs = append(jobs, *j)
		}
	}
	return jobs, errors.Join(append(errs, ctx.Err())...)
}

func (s *Server) cancel(ctx context.Context, in *struct{ Body api.CancelRequest }) (*struct{ Body api.Cancelled }, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	ids := slices.Clone(in.Body.JobIDs)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	why := make([]string, len(ids))
	each(ctx, len(ids), func(i int) { why[i] = s.cancelOne(ctx, ids[i]) })

	out := api.Cancelled{Cancelled: []string{}, Failed: []string{}, Errors: map[string]string{}, Timestamp: job.Now()}
	for i, id := range ids {
		if why[i] == "" && ctx.Err() != nil {
			why[i] = "there was no time left to cancel it; try again"
		}
		if why[i] == "" {
			out.Cancelled = append(out.Cancelled, id)
			continue
		}
		out.Failed = append(out.Failed, id)
		out.Errors[id] = why[i]
	}
	return &struct{ Body api.Cancelled }{out}, nil
}

// cancelOne tells a job to stop, or says why that cannot be.
func (s *Server) cancelOne(ctx context.Context, id string) string {
	var notFound *serviceerror.NotFound
	d, err := s.describe(ctx, id)
	if err == nil {
		if j := s.view(d.GetWorkflowExecutionInfo()); j.Status.Ended() {
			return fmt.Sprintf("the job has ended: it is %s", j.Status)
		}
		err = s.temporal.CancelWorkflow(ctx, id, "")
		if errors.As(err, &notFound) {
			return "the job has ended"
		}
	}
	if err = fail(ctx, err); err != nil {
		return err.Error()
	}
	return ""
}
