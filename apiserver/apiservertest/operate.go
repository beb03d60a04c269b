package apiservertest

import (
	"context"
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// Operate says what comes of operations; nil for both is that they go on.
func (t *Temporal) Operate(f func(job.Operation) (*job.Operated, error)) {
	t.set(func() { t.operated = f })
}

// operationRun is an operation that has ended, or goes on where both are nil.
type operationRun struct {
	client.WorkflowRun
	out *job.Operated
	err error
}

func (r operationRun) Get(ctx context.Context, into any) error {
	switch {
	case r.err != nil:
		return r.err
	case r.out == nil:
		<-ctx.Done()
		return ctx.Err()
	}
	*into.(*job.Operated) = *r.out
	return nil
}

// operate runs an operation. The lock is held.
func (t *Temporal) operate(o client.StartWorkflowOptions, in job.Operation) client.WorkflowRun {
	var run operationRun
	if t.operated != nil {
		run.out, run.err = t.operated(in)
	}
	r := &Run{
		ID: o.ID, Type: workflows.OperateWorkflow, RunID: "run-" + o.ID, Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
		Started: time.Now(), Memo: o.Memo,
	}
	t.runs[o.ID] = r
	st := job.OperationStatus{Status: job.Completed, Result: run.out}
	switch {
	case run.err != nil:
		st = job.OperationStatus{Status: job.Failed, Error: run.err.Error()}
		var app *temporal.ApplicationError
		if errors.As(run.err, &app) {
			st.Error, st.Reason = app.Message(), app.Type()
		}
		r.Status, r.Closed = enumspb.WORKFLOW_EXECUTION_STATUS_FAILED, time.Now()
	case run.out != nil:
		r.Status, r.Closed = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, time.Now()
	default:
		return run
	}
	r.Memo[workflows.MemoStatus] = st
	return run
}
