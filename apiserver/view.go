package apiserver

import (
	"context"
	"errors"
	"net/url"
	"slices"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// memoRequest is the memo with the digest of the request that a job came with, to tell a repeated
// request from another one under the same idempotency key.
const memoRequest = "request"

// jobWorkflows are the types of workflow that are jobs to the API.
var jobWorkflows = []string{workflows.ExportWorkflow, workflows.ConvertWorkflow, workflows.ImportWorkflow, workflows.ChainWorkflow, workflows.SyncWorkflow}

// kindOf is what a job of a type of workflow does.
func kindOf(workflow string) job.Kind {
	switch workflow {
	case workflows.ConvertWorkflow:
		return job.Convert
	case workflows.ImportWorkflow:
		return job.Import
	case workflows.ChainWorkflow:
		return job.Chain
	case workflows.SyncWorkflow:
		return job.Sync
	}
	return job.Export
}

// describe finds the workflow of a job. What is no job is not found, whatever it is.
func (s *Server) describe(ctx context.Context, id string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	if id == "" || len(id) > maxJobID {
		return nil, noSuchJob(id)
	}
	d, err := s.temporal.DescribeWorkflowExecution(ctx, id, "")
	var notFound *serviceerror.NotFound
	switch {
	case errors.As(err, &notFound):
		return nil, noSuchJob(id)
	case err != nil:
		return nil, err
	case !slices.Contains(jobWorkflows, d.GetWorkflowExecutionInfo().GetType().GetName()):
		return nil, noSuchJob(id)
	}
	return d, nil
}

// job is a job as it is now.
func (s *Server) job(ctx context.Context, id string) (job.Job, error) {
	d, err := s.describe(ctx, id)
	if err != nil {
		return job.Job{}, err
	}
	return s.alive(ctx, d), nil
}

// view is a job as its start and its memo tell it, which is all of a job that has ended.
func (s *Server) view(info *workflowpb.WorkflowExecutionInfo) job.Job {
	j := job.Job{
		ID:          info.GetExecution().GetWorkflowId(),
		Kind:        kindOf(info.GetType().GetName()),
		CreatedAt:   job.Time{Time: info.GetStartTime().AsTime()},
		Status:      job.Pending,
		TemporalURL: s.runURL(info.GetExecution()),
	}
	j.UpdatedAt = j.CreatedAt
	var snap job.Snapshot
	read := s.memo(info.GetMemo(), workflows.MemoSpec, &j.Definition)
	switch j.Kind {
	case job.Convert:
		var c job.Conversion
		if s.memo(info.GetMemo(), workflows.MemoConversion, &c) {
			j.Conversion = &c
		}
	case job.Import:
		var i job.ImportSpec
		if s.memo(info.GetMemo(), workflows.MemoImport, &i) {
			j.Import = &i
		}
	case job.Chain:
		var w job.ChainWork
		if s.memo(info.GetMemo(), workflows.MemoChain, &w) {
			j.Chain = &w
		}
	case job.Sync:
		s.viewSync(&j, info)
	}
	if j.Definition.Connection == jobConnection+j.ID {
		j.Definition.Connection = "" // its own credentials, which nobody else can use
	}
	if s.memo(info.GetMemo(), workflows.MemoStatus, &snap) && snap.Status != "" {
		apply(&j, snap)
	}
	ended(&j, info)
	if !read && j.Error == "" {
		j.Error = "what was asked for cannot be read: it was encrypted with a key that this server does not have"
	}
	return j
}

// apply takes over what a workflow says of itself.
func apply(j *job.Job, snap job.Snapshot) {
	progress := snap.Progress
	switch r := snap.Result; {
	case !snap.Status.Ended():
		snap.Result, snap.Error, snap.Reason = nil, "", "" // none is whole before the job has cleaned up
	case r != nil:
		r.Files, r.Disks = orEmpty(r.Files), orEmpty(r.Disks)
	}
	j.Status, j.Progress, j.Result, j.Error, j.Reason, j.Host = snap.Status, &progress, snap.Result, snap.Error, snap.Reason, snap.Host
	j.StartedAt, j.CompletedAt = snap.StartedAt, snap.CompletedAt
	applySync(j, snap.Sync)
	if snap.UpdatedAt.After(j.UpdatedAt.Time) {
		j.UpdatedAt = snap.UpdatedAt
	}
}

// ended corrects what the workflow said last by how it ended: one that was terminated, timed out or
// failed has had no chance to say so itself.
func ended(j *job.Job, info *workflowpb.WorkflowExecutionInfo) {
	state, why := job.Failed, ""
	switch info.GetStatus() {
	case enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED:
		state = job.Completed
		if j.Status.Ended() {
			state = j.Status
		}
	case enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:
		state, why = job.Cancelled, "the job was cancelled"
	case enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:
		why = "the job's workflow failed; its run in the Temporal Web UI says why"
	case enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED:
		why = "the job's workflow was terminated from outside, so that it could not clean up after itself"
	case enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:
		why = "the job's workflow ran out of time"
	default:
		if j.Status.Ended() { // it says so itself, and only has to close
			return
		}
		j.CompletedAt = nil
		return
	}
	if j.Status != state {
		j.Status, j.Result = state, nil
		if state != job.Completed {
			j.Error = why
		}
	}
	if j.Error == "" && state != job.Completed {
		j.Error = why
	}
	closed := job.Time{Time: info.GetCloseTime().AsTime()}
	if j.CompletedAt == nil {
		j.CompletedAt = &closed
	}
	if closed.After(j.UpdatedAt.Time) {
		j.UpdatedAt = closed
	}
	if p := j.Progress; p != nil {
		p.WaitingFor, p.EstimatedRemaining, p.Paused, p.TransferRateMBps = "", "", false, 0
		if state == job.Completed {
			p.PercentComplete, p.BytesTransferred = 100, p.TotalBytes
		}
	}
}

// memo decodes a field of a memo; false where it is not there or cannot be read.
func (s *Server) memo(m *commonpb.Memo, name string, into any) bool {
	p, ok := m.GetFields()[name]
	return ok && s.converter.FromPayload(p, into) == nil
}

// runURL is the page of a run in the Temporal Web UI; "" where there is no UI.
func (s *Server) runURL(x *commonpb.WorkflowExecution) string {
	if s.deps.TemporalUI == "" {
		return ""
	}
	u, err := url.JoinPath(s.deps.TemporalUI, "namespaces", url.PathEscape(s.cfg.Namespace), "workflows",
		url.PathEscape(x.GetWorkflowId()), url.PathEscape(x.GetRunId()), "history")
	if err != nil {
		return ""
	}
	return u
}
