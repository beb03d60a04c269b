package apiserver

import (
	"context"

	"go.temporal.io/sdk/client"
)

// promise is Temporal whose answers hold: what it was told is on the disk when a call returns.
type promise struct {
	Temporal
	durable func(context.Context) error
}

func (d Deps) durable(ctx context.Context) error {
	if d.Durable == nil {
		return nil
	}
	return d.Durable(ctx)
}

func promising(d Deps) Temporal {
	if d.Durable == nil {
		return d.Temporal
	}
	return promise{d.Temporal, d.Durable}
}

func (p promise) ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error) {
	run, err := p.Temporal.ExecuteWorkflow(ctx, o, workflow, args...)
	if err == nil {
		err = p.durable(ctx)
	}
	return run, err
}

func (p promise) UpdateWorkflow(ctx context.Context, o client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error) {
	h, err := p.Temporal.UpdateWorkflow(ctx, o)
	if err == nil {
		err = p.durable(ctx)
	}
	return h, err
}

func (p promise) CancelWorkflow(ctx context.Context, workflowID, runID string) error {
	err := p.Temporal.CancelWorkflow(ctx, workflowID, runID)
	if err == nil {
		err = p.durable(ctx)
	}
	return err
}
