package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/sdk/client"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// syncSpace is the name space of the ids of warm copies with an idempotency key.
var syncSpace = uuid.MustParse("e7a2c1f4-6d0b-4a3e-9b58-2c4f9d1e7a60")

func (s *Server) syncOperations(h huma.API) {
	starting(h, "/sync/submit", "submit-sync", "sync", "Start a warm copy",
		"Starts a durable job that copies the disks of a VM while it runs, and then, in rounds, what changed of them, into files "+
			"that are written in place, until the cutover: when it is asked for, or by itself where cutover is auto. The job is found "+
			"at /jobs/{id}, with the history of its rounds and a forecast of the downtime in sync, and is steered as every job.",
		s.startSync)
	huma.Register(h, operation(http.MethodPost, "/sync/cutover", "cut-over", "sync", "Ask a warm copy for its cutover",
		"The round that is under way is finished; then the guest is shut down, where that was asked for, and one last round is "+
			"copied, verified, and given its name. Asking again changes nothing.",
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable, http.StatusGatewayTimeout),
		func(ctx context.Context, in *struct{ Body api.CutoverRequest }) (*struct{ Body api.CutoverAsked }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			now, err := s.cutover(ctx, in.Body.JobID)
			if err != nil {
				return nil, fail(ctx, err)
			}
			return &struct{ Body api.CutoverAsked }{api.CutoverAsked{JobID: in.Body.JobID, Sync: now, Timestamp: job.Now()}}, nil
		})
}

// startSync starts the workflow of a warm copy, or finds the one that was started under the same key.
func (s *Server) startSync(ctx context.Context, key string, r api.SyncRequest) (id string, err error) {
	spec := r.SyncSpec
	spec.Format = strings.ToLower(spec.Format)
	faults := append(spec.Validate(s.caps), checkConnection(spec.Connection, r.VCenter != nil)...)
	switch {
	case r.VCenter == nil:
	case !s.deps.CanStoreCredentials:
		faults = append(faults, job.FieldError{Field: "vcenter", Message: cannotStore})
	default:
		faults = append(faults, missing(r.VCenter, "vcenter.")...)
	}
	if len(faults) > 0 {
		return "", invalid(http.StatusUnprocessableEntity, faults)
	}
	b := newJob{
		what: "warm copy", workflow: workflows.SyncWorkflow, memo: workflows.MemoSync, definition: spec.Definition(), title: spec.Title(),
		key: key, space: syncSpace,
	}
	b.id = b.newID()
	if r.VCenter != nil {
		spec.Connection = jobConnection + b.id
		b.definition.Connection = spec.Connection
		if err := s.storeOnce(ctx, b, spec.Connection, r.VCenter); err != nil {
			return "", err
		}
	}
	b.spec = spec
	if id, err = s.startJob(ctx, b); err == nil || r.VCenter == nil {
		return id, err
	}
	// The answer may have been lost, not the job: then it forgets them itself.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickTimeout)
	defer cancel()
	var none *serviceerror.NotFound
	if _, gone := s.temporal.DescribeWorkflowExecution(again, b.id, ""); errors.As(gone, &none) {
		err = errors.Join(err, s.deps.Connections.Forget(again, spec.Connection))
	}
	return "", err
}

// storeOnce keeps the credentials that came with a job, unless it was started before: then they were stored,
// and perhaps forgotten since.
func (s *Server) storeOnce(ctx context.Context, b newJob, name string, c *api.Credentials) error {
	if b.key != "" {
		if _, err := s.describe(ctx, b.id); err == nil {
			return nil
		}
	}
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := s.deps.Connections.Put(ctx, name, vcenterKind, config); err != nil {
		return fmt.Errorf("store credentials: %w", err)
	}
	return nil
}

// cutover asks a warm copy for its cutover.
func (s *Server) cutover(ctx context.Context, id string) (now job.SyncStatus, err error) {
	d, err := s.describe(ctx, id)
	if err != nil {
		return now, err
	}
	switch j := s.view(d.GetWorkflowExecutionInfo()); {
	case j.Kind != job.Sync:
		return now, newError(http.StatusConflict, "the job is no warm copy, and has no cutover")
	case j.Status.Ended():
		return now, newError(http.StatusConflict, "the job has ended: it is %s", j.Status)
	}
	h, err := s.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: workflows.UpdateCutover, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, &now)
	}
	var notFound *serviceerror.NotFound
	switch {
	case errors.As(err, &notFound):
		return now, newError(http.StatusConflict, "the job has ended")
	case err != nil && ctx.Err() != nil:
		note(ctx, err)
		return now, newError(http.StatusGatewayTimeout, "no worker answers for the job, so that it cannot be steered now; it can be cancelled")
	case err != nil:
		return now, updateError(err)
	}
	return now, nil
}

// viewSync fills in what was asked for of a warm copy.
func (s *Server) viewSync(j *job.Job, info *workflowpb.WorkflowExecutionInfo) {
	v := job.SyncView{SyncStatus: job.SyncStatus{Submitted: j.CreatedAt, Rounds: []job.SyncRound{}}}
	if !s.memo(info.GetMemo(), workflows.MemoSync, &v.Spec) {
		return
	}
	if v.Spec.Connection == jobConnection+j.ID {
		v.Spec.Connection = ""
	}
	j.Sync = &v
}

// applySync takes over how far a warm copy is. Its workflow begins anew every now and then; the job does not.
func applySync(j *job.Job, now *job.SyncStatus) {
	if j.Sync == nil || now == nil {
		return
	}
	j.Sync.SyncStatus = *now
	j.Sync.Rounds = orEmpty(now.Rounds)
	if !now.Submitted.IsZero() {
		j.CreatedAt = now.Submitted
	}
}

// syncExamples adds a request and the answers of warm copies to the examples.
func syncExamples(asked, good map[string]any) {
	now := job.Time{Time: time.Date(2026, 3, 1, 12, 10, 0, 0, time.UTC)}
	asked["submit-sync"] = map[string]any{
		"vm_path": "/datacenter/vm/web-01", "output_path": "/exports", "format": "qcow2", "interval": "5m", "max_downtime": "2m", "shutdown": true,
	}
	asked["cut-over"] = api.CutoverRequest{JobID: exampleID}
	good["submit-sync"] = api.Started{JobID: exampleID, Status: job.Pending, Timestamp: now}
	good["cut-over"] = api.CutoverAsked{JobID: exampleID, Timestamp: now, Sync: job.SyncStatus{
		Submitted: now, Round: 7, Holds: 7, CutoverAsked: true, Rounds: []job.SyncRound{{
			Round: 7, Began: now, Point: now, Snapshot: 2e9, Asked: 1e9, Copied: 4e9, Took: 7e9, Changed: 402653184, Read: 402653184,
		}},
		Forecast: &job.SyncForecast{Downtime: 39e9, Changed: 49807360, ChangeRate: 1.34, TransferRate: 100.66, Overhead: 3e9, Shutdown: 30e9},
	}}
}
