package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// operateTimeout is how long a request waits for its operation to end.
const operateTimeout = 100 * time.Second

// durationText is the schema of job.Duration.
type durationText struct{}

func (durationText) Schema(huma.Registry) *huma.Schema {
	zero := 0.0
	return &huma.Schema{AnyOf: []*huma.Schema{{Type: huma.TypeNumber, Minimum: &zero}, {Type: huma.TypeString}}, Examples: []any{90, "5m"}}
}

type operateOutput struct {
	Status   int
	Location string `header:"Location" doc:"With 202: where to ask"`
	Body     api.Operation
}

// operating registers the endpoint of an action.
func operating[In any](s *Server, h huma.API, path, id, summary, description string, read func(In) (api.Target, job.Operation, job.Duration)) {
	op := operation(http.MethodPost, path, id, "vms", summary, description,
		http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout)
	huma.Register(h, op, func(ctx context.Context, in *struct{ Body In }) (*operateOutput, error) {
		target, o, timeout := read(in.Body)
		return s.operate(ctx, target, o, timeout)
	})
	doc := h.OpenAPI().Paths[path].Post
	ok := *doc.Responses["200"]
	ok.Description = "It goes on; the header Location says where to ask how it ends"
	doc.Responses["202"] = &ok
}

func (s *Server) operateOperations(h huma.API) {
	simple := func(action job.Action) func(api.VMRequest) (api.Target, job.Operation, job.Duration) {
		return func(r api.VMRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: action}, r.Timeout
		}
	}
	operating(s, h, "/vms/poweron", "power-on-vm", "Power on a VM", "One that is suspended goes on; one that is on stays so.", simple(job.PowerOn))
	operating(s, h, "/vms/poweroff", "power-off-vm", "Take the power of a VM away",
		"As pulling the plug would: what the guest has not written is lost.", simple(job.PowerOff))
	operating(s, h, "/vms/shutdown", "shut-down-vm", "Shut down the guest of a VM",
		"Asks the guest's tools. Where it does not shut down in time, or cannot be asked, the operation fails, or its power is taken away.",
		func(r api.ShutdownRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: job.ShutDown, Timeout: r.Timeout, Then: r.Then}, 0
		})
	operating(s, h, "/vms/remove-cdrom", "remove-cdrom", "Take CD and DVD drives out of a VM",
		"Those of a VM that runs cannot be taken out: they are emptied and disconnected.", simple(job.RemoveCDROM))
	operating(s, h, "/vms/snapshots/create", "create-snapshot", "Take a snapshot of a VM",
		"Where the guest's file systems cannot be brought to rest the snapshot is taken without, and its quiesced is false.",
		func(r api.SnapshotCreateRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: job.TakeSnapshot, Snapshot: &r.SnapshotRequest}, r.Timeout
		})
	operating(s, h, "/vms/snapshots/delete", "delete-snapshot", "Delete a snapshot of a VM",
		"The snapshots taken upon it stay. One that a running job reads from is refused.",
		func(r api.SnapshotDeleteRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: job.DeleteSnapshot, Snapshot: &job.SnapshotRequest{Name: r.Snapshot}}, r.Timeout
		})
	operating(s, h, "/vms/clone", "clone-vm", "Clone a VM or a template", "Something else of that name in the folder is never replaced.",
		func(r api.CloneRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: job.Clone, Clone: &r.CloneRequest}, r.Timeout
		})
	operating(s, h, "/vms/template", "set-template", "Make a template of a VM, or a VM of a template", "",
		func(r api.TemplateRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: job.Template, Template: r.Template == nil || *r.Template}, r.Timeout
		})
	trackingOperations(s, h)
	s.operationOperations(h)
}

func (s *Server) operationOperations(h huma.API) {
	huma.Register(h, operation(http.MethodPost, "/vms/snapshots", "list-snapshots", "vms", "List the snapshots of a VM", "",
		http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout),
		func(ctx context.Context, in *struct{ Body api.VMInfoRequest }) (*struct{ Body api.Snapshots }, error) {
			out, err := s.vmInfo(ctx, in)
			if err != nil {
				return nil, err
			}
			vm := out.Body
			return &struct{ Body api.Snapshots }{api.Snapshots{
				Snapshots: orEmpty(vm.Snapshots), Total: len(vm.Snapshots), VMName: vm.Name, Timestamp: job.Now(),
			}}, nil
		})
	huma.Register(h, operation(http.MethodGet, "/vms/operations/{id}", "get-operation", "vms", "An operation on a VM", "",
		http.StatusNotFound, http.StatusServiceUnavailable),
		func(ctx context.Context, in *struct {
			ID string `path:"id" doc:"Id of the operation" maxLength:"200"`
		}) (*struct{ Body api.Operation }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			out, err := s.operation(ctx, in.ID)
			return &struct{ Body api.Operation }{out}, fail(ctx, err)
		})
}

// operate starts an operation and waits for its end, for a while.
func (s *Server) operate(ctx context.Context, t api.Target, o job.Operation, timeout job.Duration) (*operateOutput, error) {
	if faults := s.checkOperation(t, o, timeout); len(faults) > 0 {
		return nil, invalid(http.StatusUnprocessableEntity, faults)
	}
	ctx, cancel := context.WithTimeout(ctx, quickTimeout+operateTimeout)
	defer cancel()
	id := jobID("", 0)
	o.VMPath, o.Connection = t.VMPath, t.Connection
	run, err := s.begin(ctx, id, t, o)
	if err != nil {
		return nil, fail(ctx, err)
	}
	waiting, stop := context.WithTimeout(ctx, min(timeout.Or(operateTimeout), operateTimeout))
	defer stop()
	var done job.Operated
	err = run.Get(waiting, &done)
	out := api.Operation{OperationID: id, Action: o.Action, VMPath: o.VMPath, Timestamp: job.Now()}
	switch {
	case err == nil:
		told(&out, job.OperationStatus{Status: job.Completed, Result: &done})
		return &operateOutput{Status: http.StatusOK, Body: out}, nil
	case ctx.Err() == nil && (waiting.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.As(err, new(*serviceerror.DeadlineExceeded))):
		told(&out, job.OperationStatus{Status: job.Running})
		return &operateOutput{Status: http.StatusAccepted, Location: "/vms/operations/" + id, Body: out}, nil
	}
	return nil, fail(ctx, operationError(err))
}

// operationError is what an operation failed with, in the words of its workflow.
func operationError(err error) error {
	var app *temporal.ApplicationError
	var cancelled *temporal.CanceledError
	var ended *temporal.TerminatedError
	switch {
	case errors.As(err, &app):
		status, known := reasonStatus[providers.Reason(app.Type())]
		if !known {
			status = http.StatusInternalServerError
		}
		return newError(status, "%s", app.Message())
	case errors.As(err, &cancelled), errors.As(err, &ended):
		return newError(http.StatusConflict, "the operation was cancelled from outside")
	}
	return err
}

// checkOperation finds what is wrong with a request.
func (s *Server) checkOperation(t api.Target, o job.Operation, timeout job.Duration) (faults []job.FieldError) {
	add := func(field, message string) { faults = append(faults, job.FieldError{Field: field, Message: message}) }
	faults = append(faults, checkConnection(t.Connection, t.VCenter != nil)...)
	switch {
	case t.VCenter == nil:
	case !s.deps.CanStoreCredentials:
		add("vcenter", cannotStore)
	default:
		faults = append(faults, missing(t.VCenter, "vcenter.")...)
	}
	if timeout < 0 {
		add("timeout", "must not be negative")
	}
	if e := job.CheckShutdownTimeout(o.Timeout); e != "" {
		add("timeout", e)
	}
	if o.Snapshot != nil && o.Snapshot.Memory && o.Snapshot.Quiesce {
		add("quiesce", "must not be given together with memory: a guest whose memory is kept need not be at rest")
	}
	if o.Clone != nil && o.Clone.Template && o.Clone.PowerOn {
		add("power_on", "must not be given together with template: a template does not run")
	}
	return faults
}

// begin stores the credentials of an operation and starts its workflow.
func (s *Server) begin(ctx context.Context, id string, t api.Target, o job.Operation) (client.WorkflowRun, error) {
	if t.VCenter != nil {
		config, err := json.Marshal(t.VCenter)
		if err != nil {
			return nil, err
		}
		o.Connection = jobConnection + id
		if err := s.deps.Connections.Put(ctx, o.Connection, vcenterKind, config); err != nil {
			return nil, fmt.Errorf("store credentials: %w", err)
		}
	}
	starting, stop := context.WithTimeout(ctx, quickTimeout)
	defer stop()
	run, err := s.temporal.ExecuteWorkflow(starting, client.StartWorkflowOptions{
		ID: id, TaskQueue: workflows.Queue,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		Memo:                  map[string]any{workflows.MemoOperation: o},
		StaticSummary:         job.Shorten(string(o.Action)+" "+o.VMPath, 100),
	}, workflows.OperateWorkflow, o)
	if err == nil {
		return run, nil
	}
	err = fmt.Errorf("start operation: %w", err)
	if t.VCenter == nil {
		return nil, err
	}
	// The answer may have been lost, not the operation: then it forgets them itself.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickTimeout)
	defer cancel()
	var none *serviceerror.NotFound
	if _, gone := s.temporal.DescribeWorkflowExecution(ctx, id, ""); errors.As(gone, &none) {
		err = errors.Join(err, s.deps.Connections.Forget(ctx, o.Connection))
	}
	return nil, err
}

// operation is an operation as its workflow's memo tells it.
func (s *Server) operation(ctx context.Context, id string) (api.Operation, error) {
	absent := newError(http.StatusNotFound, "no such operation: %s", job.Shorten(id, 80))
	if id == "" || len(id) > maxJobID {
		return api.Operation{}, absent
	}
	d, err := s.temporal.DescribeWorkflowExecution(ctx, id, "")
	var none *serviceerror.NotFound
	info := d.GetWorkflowExecutionInfo()
	if errors.As(err, &none) || err == nil && info.GetType().GetName() != workflows.OperateWorkflow {
		return api.Operation{}, absent
	}
	if err != nil {
		return api.Operation{}, err
	}
	var o job.Operation
	s.memo(info.GetMemo(), workflows.MemoOperation, &o)
	out := api.Operation{OperationID: id, Action: o.Action, VMPath: o.VMPath, TemporalURL: s.runURL(info.GetExecution()), Timestamp: job.Now()}
	told(&out, s.operationStatus(info))
	return out, nil
}

func (s *Server) operationStatus(info *workflowpb.WorkflowExecutionInfo) job.OperationStatus {
	var st job.OperationStatus
	if info.GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return job.OperationStatus{Status: job.Running}
	}
	if s.memo(info.GetMemo(), workflows.MemoStatus, &st) && st.Status.Ended() {
		return st
	}
	return job.OperationStatus{Status: job.Failed, Error: "the operation was ended from outside, or it took too long; its run in the Temporal Web UI says more"}
}

// told fills in how an operation goes, or went.
func told(out *api.Operation, st job.OperationStatus) {
	out.Status, out.Success, out.Error, out.Reason = st.Status, st.Status == job.Completed, st.Error, st.Reason
	switch r := st.Result; {
	case r != nil:
		out.Message, out.VMName, out.PowerState, out.Forced = r.Message, r.VM.Name, r.Power, r.Forced
		out.CDROMs, out.Snapshot, out.Clone, out.Tracking, out.Analysis = r.Drives, r.Snapshot, r.Clone, r.Tracking, r.Analysis
	case st.Status == job.Running:
		out.Message = "it goes on"
	default:
		out.Message = st.Error
	}
}
