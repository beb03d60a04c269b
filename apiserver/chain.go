package apiserver

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"go.temporal.io/sdk/client"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// chainSpace is the name space of the ids of jobs on chains with an idempotency key.
var chainSpace = uuid.MustParse("8f5c2b1a-2d5e-4a57-9d0c-64f2f7a8c3e1")

// working registers the endpoint of an action on a chain.
func working[Body any](s *Server, h huma.API, action job.ChainAction, summary, description string, read func(Body) job.ChainWork) {
	starting(h, "/incremental/"+string(action), string(action)+"-chain", "incremental", summary, description,
		func(ctx context.Context, key string, r Body) (string, error) {
			work := read(r)
			work.Action, work.TargetFormat = action, s.formatName(work.TargetFormat)
			if faults := work.Validate(s.caps); len(faults) > 0 {
				return "", invalid(http.StatusUnprocessableEntity, faults)
			}
			return s.startJob(ctx, newJob{
				what: "job on a chain", workflow: workflows.ChainWorkflow, spec: work, memo: workflows.MemoChain,
				definition: work.Definition(), title: work.Title(), key: key, space: chainSpace,
			})
		})
}

func (s *Server) chainOperations(h huma.API) {
	const steered = " The job is found at /jobs/{id}, and is steered as every job; one job works on a chain at a time."
	working(s, h, job.CheckChain, "Check a chain", "Starts a durable job that examines a chain. What it found is in its result, which a "+
		"job that found damage has, too: it has failed, with the reason corrupt."+steered,
		func(r api.ChainCheckRequest) job.ChainWork {
			return job.ChainWork{Path: r.Path, Name: r.Name, Priority: r.Priority, Depth: r.Depth, LimitMBps: r.LimitMBps}
		})
	working(s, h, job.MergeChain, "Merge old points of a chain", "Starts a durable job that makes a point the oldest of its chain. The chain is whole "+
		"before, during and after, and the job goes on where it was after a kill."+steered,
		func(r api.ChainMergeRequest) job.ChainWork {
			return job.ChainWork{Path: r.Path, Name: r.Name, Priority: r.Priority, UpTo: r.UpTo, LimitMBps: r.LimitMBps}
		})
	working(s, h, job.FlattenChain, "Write disks at a point as images", "Starts a durable job that makes images, in any format, of one disk or all disks "+
		"at a point. Nothing has its final name before it is whole and proved by the digest of the point."+steered,
		func(r api.ChainFlattenRequest) job.ChainWork {
			return job.ChainWork{
				Path: r.Path, Name: r.Name, Priority: r.Priority, Point: r.Point, Disk: r.Disk, TargetFormat: r.TargetFormat,
				OutputPath: r.OutputPath, Compress: r.Compress, Overwrite: r.Overwrite, LimitMBps: r.LimitMBps,
			}
		})
	working(s, h, job.DeletePoint, "Delete a point of a chain", "Starts a durable job that gives up a point which no other builds upon. Others are "+
		"refused: the job fails, and says what needs the point."+steered,
		func(r api.ChainDeleteRequest) job.ChainWork {
			return job.ChainWork{Path: r.Path, Name: r.Name, Priority: r.Priority, Point: r.Point}
		})
	huma.Register(h, operation(http.MethodPost, "/incremental/list", "list-chain", "incremental", "Tell what a chain is made of",
		"By its folder, or by a VM and the folder that its exports go to. It is told also while a job works on the chain.",
		http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout),
		func(ctx context.Context, in *struct{ Body api.ChainListRequest }) (*struct{ Body api.Chain }, error) {
			view, err := s.listChain(ctx, in.Body)
			if err != nil {
				return nil, fail(ctx, err)
			}
			return &struct{ Body api.Chain }{api.Chain{ChainView: view, Timestamp: job.Now()}}, nil
		})
	s.analyzeOperation(h)
}

// listChain has a short workflow look at a chain on the host that has it.
func (s *Server) listChain(ctx context.Context, r api.ChainListRequest) (job.ChainView, error) {
	if faults := checkList(r); len(faults) > 0 {
		return job.ChainView{}, invalid(http.StatusUnprocessableEntity, faults)
	}
	q := job.ChainQuery{Path: r.Path, Output: r.OutputPath, Host: r.Host}
	if r.VMPath != "" {
		vm, err := s.findVM(ctx, r.VMPath, r.Connection, r.VCenter)
		if err != nil {
			return job.ChainView{}, err
		}
		q.VM = vm.Name
	}
	ctx, cancel := context.WithTimeout(ctx, 2*quickTimeout)
	defer cancel()
	var view job.ChainView
	run, err := s.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		TaskQueue: workflows.Queue, WorkflowExecutionTimeout: 2 * quickTimeout,
	}, workflows.ListChainWorkflow, q)
	if err == nil {
		err = run.Get(ctx, &view)
	}
	return view, operationError(err)
}

// checkList finds what is wrong with a request for a list.
func checkList(r api.ChainListRequest) []job.FieldError {
	one := func(field, message string) []job.FieldError {
		return []job.FieldError{{Field: field, Message: message}}
	}
	switch {
	case r.Path == "" && r.OutputPath == "" && r.VMPath == "":
		return one("path", "is required, or output_path and vm_path are")
	case r.Path != "" && (r.OutputPath != "" || r.VMPath != ""):
		return one("path", "must not be given together with output_path or vm_path")
	case r.Path == "" && r.OutputPath == "":
		return one("output_path", "is required with vm_path")
	case r.Path == "" && r.VMPath == "":
		return one("vm_path", "is required with output_path")
	case r.Path != "" && (r.Connection != "" || r.VCenter != nil):
		return one("connection", "means nothing without vm_path")
	}
	field, folder := "path", r.Path
	if r.Path == "" {
		field, folder = "output_path", r.OutputPath
	}
	return job.CheckFolder(field, folder)
}

// findVM looks a VM up.
func (s *Server) findVM(ctx context.Context, ref, connection string, c *api.Credentials) (vm providers.VM, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = s.inventory(ctx, connection, c, "vcenter.", func(inv providers.Inventory) (err error) {
		vm, err = inv.VM(ctx, ref)
		return err
	})
	return vm, err
}
