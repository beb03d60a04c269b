package apiserver

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func (s *Server) controlOperations(h huma.API) {
	yes, no := true, false
	faults := []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	huma.Register(h, operation(http.MethodPost, "/jobs/{id}/pause", "pause-job", "jobs", "Pause a job",
		"Reading stops within two seconds; sessions and the snapshot are kept.", faults...),
		func(ctx context.Context, in *JobPath) (*struct{ Body api.Controlled }, error) {
			return s.control(ctx, in.ID, job.Control{Paused: &yes})
		})
	huma.Register(h, operation(http.MethodPost, "/jobs/{id}/resume", "resume-job", "jobs", "Resume a paused job", "", faults...),
		func(ctx context.Context, in *JobPath) (*struct{ Body api.Controlled }, error) {
			return s.control(ctx, in.ID, job.Control{Paused: &no})
		})
	huma.Register(h, operation(http.MethodPut, "/jobs/{id}/limit", "limit-job", "jobs", "Limit the bandwidth of a job",
		"Takes effect within two seconds.", append(faults, http.StatusBadRequest)...),
		func(ctx context.Context, in *struct {
			JobPath
			Body api.LimitRequest
		}) (*struct{ Body api.Controlled }, error) {
			return s.control(ctx, in.ID, job.Control{LimitMBps: &in.Body.LimitMBps})
		})
}

func (s *Server) control(ctx context.Context, id string, c job.Control) (*struct{ Body api.Controlled }, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	d, err := s.describe(ctx, id)
	if err != nil {
		return nil, fail(ctx, err)
	}
	if j := s.view(d.GetWorkflowExecutionInfo()); j.Status.Ended() {
		return nil, newError(http.StatusConflict, "the job has ended: it is %s", j.Status)
	}
	var now job.Limits
	h, err := s.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: workflows.UpdateControl, Args: []any{c}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, &now)
	}
	var notFound *serviceerror.NotFound
	switch {
	case errors.As(err, &notFound):
		return nil, newError(http.StatusConflict, "the job has ended")
	case err != nil && ctx.Err() != nil:
		note(ctx, err)
		return nil, newError(http.StatusGatewayTimeout, "no worker answers for the job, so that it cannot be steered now; it can be cancelled")
	case err != nil:
		return nil, fail(ctx, updateError(err))
	}
	return &struct{ Body api.Controlled }{api.Controlled{JobID: id, Paused: now.Paused, LimitMBps: now.MBps, Timestamp: job.Now()}}, nil
}

// updateError is what a workflow answered to an update: that it refuses it, in its own words.
func updateError(err error) error {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return newError(http.StatusConflict, "the job refuses that: %s", app.Message())
	}
	return err
}
