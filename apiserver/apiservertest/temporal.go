// Package apiservertest has what the API stands on, in memory: for tests of the API and of its clients.
package apiservertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// Run is an execution of a workflow.
type Run struct {
	ID, Type, RunID string
	Status          enumspb.WorkflowExecutionStatus
	Started, Closed time.Time
	Memo            map[string]any
	// Snapshot answers the status query. Publish puts it into the memo.
	Snapshot   job.Snapshot
	Limits     job.Limits
	Activities []Activity
	Cancelled  int // how often it was told to stop
}

// Publish is what a workflow does with its snapshot at every phase.
func (r *Run) Publish() { r.Memo[workflows.MemoStatus] = r.Snapshot }

// End closes a run that ends by itself.
func (r *Run) End(state job.State, result *job.Result, why string) {
	now := job.Now()
	r.Snapshot.Status, r.Snapshot.Result, r.Snapshot.Error, r.Snapshot.CompletedAt = state, result, why, &now
	r.Snapshot.Progress.Phase = job.Done
	r.Snapshot.UpdatedAt = now
	r.Publish()
	r.Status, r.Closed, r.Activities = map[job.State]enumspb.WorkflowExecutionStatus{
		job.Completed: enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED,
		job.Failed:    enumspb.WORKFLOW_EXECUTION_STATUS_FAILED,
		job.Cancelled: enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED,
	}[state], now.Time, nil
}

// Activity is one that has not ended.
type Activity struct {
	Type      string
	Beat      *job.DiskProgress
	Attempt   int32
	Scheduled time.Time
	Next      time.Time // of the next attempt
	Failure   error     // of the last attempt; with it the activity waits for the next
	Waiting   bool      // in its queue
}

// Temporal is a Temporal service in memory, as far as the API uses one.
type Temporal struct {
	Converter converter.DataConverter
	Failures  converter.FailureConverter

	mu       sync.Mutex
	runs     map[string]*Run
	waiting  map[string]string
	logs     map[string]string
	operated func(job.Operation) (*job.Operated, error)
	chains   func(job.ChainQuery) (*job.ChainView, error)
	calls    map[string]int
	fail     map[string]error
	deaf     bool
	refuse   string
}

// NewTemporal is an empty service.
func NewTemporal() *Temporal {
	return &Temporal{
		Converter: converter.GetDefaultDataConverter(), Failures: temporal.GetDefaultFailureConverter(),
		runs: map[string]*Run{}, waiting: map[string]string{}, logs: map[string]string{}, calls: map[string]int{}, fail: map[string]error{},
	}
}

// Add puts a run there; an export that runs where it does not say otherwise.
func (t *Temporal) Add(r Run) *Run {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Type = cmp.Or(r.Type, workflows.ExportWorkflow)
	r.Status = cmp.Or(r.Status, enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING)
	r.RunID = cmp.Or(r.RunID, "run-"+r.ID)
	if r.Started.IsZero() {
		r.Started = time.Now()
	}
	if r.Memo == nil {
		r.Memo = map[string]any{}
	}
	t.runs[r.ID] = &r
	return &r
}

// Change changes a run.
func (t *Temporal) Change(id string, f func(r *Run)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.runs[id])
}

// Run is a copy of a run; false where there is none.
func (t *Temporal) Run(id string) (Run, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.runs[id]
	if !ok {
		return Run{}, false
	}
	return *r, true
}

// IDs are the ids of all runs, sorted.
func (t *Temporal) IDs() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for id := range t.runs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Wait says what a job waits for, to the admission workflow.
func (t *Temporal) Wait(id, why string) { t.set(func() { t.waiting[id] = why }) }

// Log is what the host of a job has in its log.
func (t *Temporal) Log(id, lines string) { t.set(func() { t.logs[id] = lines }) }

// Fail makes a method fail from now on; nil ends that.
func (t *Temporal) Fail(method string, err error) { t.set(func() { t.fail[method] = err }) }

// Deaf makes all workers silent: queries and updates hang.
func (t *Temporal) Deaf(yes bool) { t.set(func() { t.deaf = yes }) }

// Refuse makes workflows refuse updates with these words.
func (t *Temporal) Refuse(words string) { t.set(func() { t.refuse = words }) }

func (t *Temporal) set(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// Calls is how often a method was called.
func (t *Temporal) Calls(method string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls[method]
}

// enter counts a call and answers what it is to fail with. The lock is held on return.
func (t *Temporal) enter(ctx context.Context, method string) error {
	t.mu.Lock()
	t.calls[method]++
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.fail[method]
}

// ExecuteWorkflow starts a run, or fetches a log.
func (t *Temporal) ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error) {
	err := t.enter(ctx, "ExecuteWorkflow")
	defer t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	kind, _ := workflow.(string)
	if in, ok := args[0].(job.Operation); ok && kind == workflows.OperateWorkflow && o.TaskQueue == workflows.Queue {
		return t.operate(o, in), nil
	}
	if kind == workflows.LogWorkflow {
		return t.readLog(ctx, args[0].(job.LogRequest))
	}
	if in, ok := args[0].(job.ChainQuery); ok && kind == workflows.ListChainWorkflow && o.TaskQueue == workflows.Queue {
		return t.listChain(in), nil
	}
	if _, there := t.runs[o.ID]; there {
		return nil, serviceerror.NewWorkflowExecutionAlreadyStarted("already started", "", "")
	}
	if o.TaskQueue != workflows.Queue || len(args) != 1 {
		return nil, fmt.Errorf("unexpected start of %v on %q", workflow, o.TaskQueue)
	}
	var limit float64
	switch spec := args[0].(type) {
	case job.Spec:
		limit = spec.Options.LimitMBps
	case job.Conversion:
		limit = spec.LimitMBps
	case job.ImportSpec:
		limit = spec.LimitMBps
	case job.ChainWork:
		limit = spec.LimitMBps
	case job.SyncSpec:
		limit = spec.LimitMBps
	default:
		return nil, fmt.Errorf("unexpected start of %v with a %T", workflow, spec)
	}
	t.runs[o.ID] = &Run{
		ID: o.ID, Type: kind, RunID: "run-" + o.ID, Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
		Started: time.Now(), Memo: o.Memo, Limits: job.Limits{MBps: limit},
	}
	return nil, nil
}

type logRun struct {
	client.WorkflowRun
	page job.LogPage
	err  error
}

func (r logRun) Get(_ context.Context, into any) error {
	if r.err == nil {
		*into.(*job.LogPage) = r.page
	}
	return r.err
}

func (t *Temporal) readLog(ctx context.Context, r job.LogRequest) (client.WorkflowRun, error) {
	if t.deaf {
		return logRun{err: temporal.NewApplicationError("the host of the job does not answer", "unavailable")}, ctx.Err()
	}
	all := t.logs[r.Job]
	if r.Host == "" || r.Offset >= int64(len(all)) {
		return logRun{page: job.LogPage{Next: r.Offset}}, nil
	}
	rest := all[r.Offset:]
	if i := strings.IndexByte(rest, '\n'); i >= 0 {
		rest = rest[:i+1] // a line a page: many pages are the harder case
	}
	return logRun{page: job.LogPage{Data: []byte(rest), Next: r.Offset + int64(len(rest))}}, nil
}

// DescribeWorkflowExecution describes a run.
func (t *Temporal) DescribeWorkflowExecution(ctx context.Context, id, _ string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	err := t.enter(ctx, "DescribeWorkflowExecution")
	defer t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	r, ok := t.runs[id]
	if !ok {
		return nil, serviceerror.NewNotFound("workflow not found for ID: " + id)
	}
	info, err := t.info(r)
	if err != nil {
		return nil, err
	}
	out := &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: info}
	for _, a := range r.Activities {
		p, err := t.pending(a)
		if err != nil {
			return nil, err
		}
		out.PendingActivities = append(out.PendingActivities, p)
	}
	return out, nil
}

func (t *Temporal) pending(a Activity) (*workflowpb.PendingActivityInfo, error) {
	p := &workflowpb.PendingActivityInfo{
		ActivityType: &commonpb.ActivityType{Name: a.Type}, Attempt: max(1, a.Attempt),
		State: enumspb.PENDING_ACTIVITY_STATE_STARTED, ScheduledTime: timestamppb.New(a.Scheduled),
	}
	if a.Waiting {
		p.State = enumspb.PENDING_ACTIVITY_STATE_SCHEDULED
	}
	if a.Failure != nil {
		p.State, p.Attempt = enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, max(2, a.Attempt)
		p.LastFailure = t.Failures.ErrorToFailure(a.Failure)
		if !a.Next.IsZero() {
			p.NextAttemptScheduleTime = timestamppb.New(a.Next)
		}
	}
	if a.Beat != nil {
		var err error
		p.LastHeartbeatTime = timestamppb.Now()
		if p.HeartbeatDetails, err = t.Converter.ToPayloads(*a.Beat); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (t *Temporal) info(r *Run) (*workflowpb.WorkflowExecutionInfo, error) {
	info := &workflowpb.WorkflowExecutionInfo{
		Execution: &commonpb.WorkflowExecution{WorkflowId: r.ID, RunId: r.RunID}, Type: &commonpb.WorkflowType{Name: r.Type},
		Status: r.Status, StartTime: timestamppb.New(r.Started), Memo: &commonpb.Memo{Fields: map[string]*commonpb.Payload{}},
	}
	if !r.Closed.IsZero() {
		info.CloseTime = timestamppb.New(r.Closed)
	}
	for k, v := range r.Memo {
		p, err := t.Converter.ToPayload(v)
		if err != nil {
			return nil, err
		}
		info.Memo.Fields[k] = p
	}
	return info, nil
}

var (
	typeIn   = regexp.MustCompile(`^WorkflowType IN \(([^)]*)\)`)
	statusIn = regexp.MustCompile(`ExecutionStatus (?:IN \(([^)]*)\)|= ('\w+'))`)
	closedBy = regexp.MustCompile(`CloseTime > '([^']*)'`)
)

// QueryWorkflow answers the status of a run, and what jobs wait for.
func (t *Temporal) QueryWorkflow(ctx context.Context, id, _, query string, args ...any) (converter.EncodedValue, error) {
	if err := t.listen(ctx, "QueryWorkflow"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	var answer any
	r, ok := t.runs[id]
	switch {
	case id == workflows.AdmissionID && query == workflows.QueryWaiting:
		why := map[string]string{}
		for id, w := range t.waiting {
			if len(args) == 0 || slices.Contains(args[0].([]string), id) {
				why[id] = w
			}
		}
		answer = why
	case !ok:
		return nil, serviceerror.NewNotFound("workflow not found")
	case query == workflows.QueryStatus:
		s := r.Snapshot
		s.Progress.Paused, s.Progress.LimitMBps = r.Limits.Paused, r.Limits.MBps
		answer = s
	default:
		return nil, fmt.Errorf("unknown query %q", query)
	}
	p, err := t.Converter.ToPayloads(answer)
	if err != nil {
		return nil, err
	}
	return client.NewValue(p), nil
}

// listen hangs where the workers are deaf. The lock is held on a nil return.
func (t *Temporal) listen(ctx context.Context, method string) error {
	err := t.enter(ctx, method)
	if err == nil && !t.deaf {
		return nil
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
	<-ctx.Done()
	return serviceerror.NewDeadlineExceeded("no worker answered")
}

type updated struct {
	client.WorkflowUpdateHandle
	limits job.Limits
	err    error
}

func (u updated) Get(_ context.Context, into any) error {
	if u.err == nil {
		*into.(*job.Limits) = u.limits
	}
	return u.err
}

// UpdateWorkflow changes the limits of a run.
func (t *Temporal) UpdateWorkflow(ctx context.Context, o client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error) {
	if err := t.listen(ctx, "UpdateWorkflow"); err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	r, ok := t.runs[o.WorkflowID]
	switch {
	case !ok || r.Status != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING:
		return nil, serviceerror.NewNotFound("workflow execution already completed")
	case o.UpdateName != workflows.UpdateControl || o.WaitForStage != client.WorkflowUpdateStageCompleted:
		return nil, errors.New("unexpected update")
	case t.refuse != "":
		return updated{err: temporal.NewApplicationError(t.refuse, "")}, nil
	}
	c := o.Args[0].(job.Control)
	if err := c.Validate(); err != nil {
		return updated{err: temporal.NewApplicationError(err.Error(), "")}, nil
	}
	r.Limits = c.Apply(r.Limits)
	return updated{limits: r.Limits}, nil
}

// CancelWorkflow tells a run to stop, which it does by itself.
func (t *Temporal) CancelWorkflow(ctx context.Context, id, _ string) error {
	err := t.enter(ctx, "CancelWorkflow")
	defer t.mu.Unlock()
	if err != nil {
		return err
	}
	r, ok := t.runs[id]
	if !ok || r.Status != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return serviceerror.NewNotFound("workflow execution already completed")
	}
	r.Cancelled++
	return nil
}
