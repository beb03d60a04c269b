package worker

import (
	"context"
	"errors"
	"sync"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"hypersdk/activities"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// engine answers what activities ask of workflows.
type engine struct {
	client client.Client
	limit  int // of jobs at once; 0: not ours to say
	// namespace is the client's, which does not tell.
	namespace string

	mu   sync.Mutex
	home string
}

func (e *engine) Ask(ctx context.Context, t activities.Ticket) error {
	return e.admission(ctx, workflows.SignalAsk, t)
}

// announce says how many jobs may run at once.
func (e *engine) announce(ctx context.Context) error {
	return e.admission(ctx, workflows.SignalLimit, e.limit)
}

// admission signals it, and starts it where it does not run.
func (e *engine) admission(ctx context.Context, signal string, arg any) error {
	_, err := e.client.SignalWithStartWorkflow(ctx, workflows.AdmissionID, signal, arg, client.StartWorkflowOptions{
		ID: workflows.AdmissionID, TaskQueue: workflows.Queue,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
	}, workflows.AdmissionWorkflow, workflows.Turns{Limit: e.limit})
	return err
}

func (e *engine) Limits(ctx context.Context, id string) (job.Limits, error) {
	var l job.Limits
	v, err := e.client.QueryWorkflow(ctx, id, "", workflows.QueryLimits)
	if err != nil {
		return l, err
	}
	return l, v.Get(&l)
}

func (e *engine) Ended(ctx context.Context, id string) (bool, error) {
	d, err := e.client.DescribeWorkflowExecution(ctx, id, "")
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return true, nil
	}
	return d.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, err
}

func (e *engine) Where(ctx context.Context, id string) (string, error) {
	var s job.Snapshot
	v, err := e.client.QueryWorkflow(ctx, id, "", workflows.QueryStatus)
	if err != nil {
		return "", err
	}
	err = v.Get(&s)
	return s.Host, err
}

// Hosts are those that were heard of lately: a worker polls the common queue in the name of its host.
func (e *engine) Hosts(ctx context.Context) ([]string, error) {
	d, err := e.client.DescribeTaskQueue(ctx, workflows.Queue, enumspb.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, p := range d.GetPollers() {
		ids = append(ids, p.GetIdentity())
	}
	return ids, nil
}

func (e *engine) Home(ctx context.Context) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.home == "" {
		info, err := e.client.WorkflowService().GetClusterInfo(ctx, &workflowservice.GetClusterInfoRequest{})
		if err != nil {
			return "", err
		}
		e.home = info.GetClusterId() + "/" + e.namespace
	}
	return e.home, nil
}
