package apiserver

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const unknown = "unknown"

func (s *Server) progressOperations(h huma.API) {
	huma.Register(h, operation(http.MethodGet, "/jobs/progress/{id}", "job-progress", "jobs", "The progress of a job", "",
		http.StatusNotFound, http.StatusServiceUnavailable),
		func(ctx context.Context, in *JobPath) (*struct{ Body api.FlatProgress }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			j, err := s.job(ctx, in.ID)
			return &struct{ Body api.FlatProgress }{flat(j, job.Now())}, fail(ctx, err)
		})
	huma.Register(h, operation(http.MethodGet, "/jobs/eta/{id}", "job-eta", "jobs", "When a job is expected to end", "",
		http.StatusNotFound, http.StatusServiceUnavailable),
		func(ctx context.Context, in *JobPath) (*struct{ Body api.ETA }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			j, err := s.job(ctx, in.ID)
			return &struct{ Body api.ETA }{eta(j, time.Now())}, fail(ctx, err)
		})
}

func flat(j job.Job, now job.Time) api.FlatProgress {
	f := api.FlatProgress{
		JobID: j.ID, Status: j.Status, Progress: job.Progress{Phase: job.Admit}, Error: j.Error,
		StartedAt: j.StartedAt, CompletedAt: j.CompletedAt, UpdatedAt: j.UpdatedAt, Timestamp: now,
	}
	if j.Progress != nil {
		f.Progress = *j.Progress
	}
	f.Percentage = f.PercentComplete
	return f
}

func eta(j job.Job, now time.Time) api.ETA {
	e := api.ETA{JobID: j.ID, Status: j.Status, EstimatedRemaining: unknown, ETA: unknown, Timestamp: job.Time{Time: now.UTC()}}
	switch {
	case j.Status.Ended():
		e.EstimatedRemaining = "0s"
		if j.CompletedAt != nil {
			e.ETA = text(*j.CompletedAt)
		}
	case j.Progress != nil && j.Progress.EstimatedRemaining != "":
		if left, err := time.ParseDuration(j.Progress.EstimatedRemaining); err == nil {
			e.EstimatedRemaining, e.ETA = j.Progress.EstimatedRemaining, text(job.Time{Time: now.Add(left)})
		}
	}
	return e
}

func text(t job.Time) string {
	b, _ := t.MarshalText() // never fails
	return string(b)
}
