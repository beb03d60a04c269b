package apiserver

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
	workflowpb "go.temporal.io/api/workflow/v1"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// maxLookedBack is how many jobs that were completed an analysis looks at for earlier exports of its VM.
const maxLookedBack = 2000

type analyzeOutput struct {
	Status   int
	Location string `header:"Location" doc:"With 202: where to ask"`
	Body     api.Analyzed
}

func (s *Server) analyzeOperation(h huma.API) {
	const path = "/incremental/analyze"
	op := operation(http.MethodPost, path, "analyze-incremental", "incremental", "Tell what the next incremental export of a VM would do",
		"Finds the chain of the VM and asks the platform what changed since its newest point, up to a snapshot that is taken for "+
			"this and removed. Where the changes of the VM are not tracked no snapshot is taken.",
		http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout)
	huma.Register(h, op, func(ctx context.Context, in *struct{ Body api.AnalyzeRequest }) (*analyzeOutput, error) {
		out, err := s.analyze(ctx, in.Body)
		return out, fail(ctx, err)
	})
	doc := h.OpenAPI().Paths[path].Post
	ok := *doc.Responses["200"]
	ok.Description = "It goes on; the header Location says where to ask what it finds"
	doc.Responses["202"] = &ok
}

// analyze starts an analysis and waits for its end, for a while.
func (s *Server) analyze(ctx context.Context, r api.AnalyzeRequest) (*analyzeOutput, error) {
	o := job.Operation{Action: job.Analyze, Analyze: &job.AnalyzeRequest{Output: r.OutputPath, LimitMBps: r.LimitMBps}}
	faults := s.checkOperation(r.Target, o, r.Timeout)
	if r.OutputPath != "" {
		faults = append(faults, job.CheckFolder("output_path", r.OutputPath)...)
	}
	if len(faults) > 0 {
		return nil, invalid(http.StatusUnprocessableEntity, faults)
	}
	vm, err := s.findVM(ctx, r.VMPath, r.Connection, r.VCenter)
	if err != nil {
		return nil, err
	}
	if err := s.earlier(ctx, vm, o.Analyze); err != nil {
		return nil, err
	}
	done, err := s.operate(ctx, r.Target, o, r.Timeout)
	if err != nil {
		return nil, err
	}
	out := &analyzeOutput{Status: done.Status, Location: done.Location, Body: api.Analyzed{
		OperationID: done.Body.OperationID, Status: done.Body.Status, Timestamp: done.Body.Timestamp,
	}}
	if a := done.Body.Analysis; a != nil {
		out.Body.Analysis = *a
	}
	out.Body.Disks = orEmpty(out.Body.Disks)
	return out, nil
}

// earlier fills in what earlier exports of a VM tell: where its chain is, unless that was said, and how fast
// the one was that read the most.
func (s *Server) earlier(ctx context.Context, vm providers.VM, r *job.AnalyzeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	var most int64
	looked := 0
	said := r.Output != ""
	look := func(got []*workflowpb.WorkflowExecutionInfo) (enough bool) {
		for _, info := range got[looked:] {
			j := s.view(info)
			if j.Kind != job.Export || j.Result == nil || !exportOf(j, vm) {
				continue
			}
			if j.Definition.Incremental && (r.Output == "" || said && r.Host == "" && j.Definition.OutputPath == r.Output) {
				r.Output, r.Host = j.Definition.OutputPath, j.Result.Host
			}
			if read, mbps := rateOf(j.Result); read > most {
				most, r.RateMBps = read, mbps
			}
		}
		looked = len(got)
		return looked >= maxLookedBack
	}
	_, closed := split([]job.State{job.Completed})
	found, err := s.scan(ctx, closed, maxLookedBack, look) // the last to end comes first
	if err == nil {
		look(found)
	}
	return err
}

// exportOf says whether a job was an export of a VM.
func exportOf(j job.Job, vm providers.VM) bool {
	return j.Result.VMName == vm.Name && slices.Contains([]string{vm.Path, vm.Name, string(vm.ID)}, j.Definition.VMPath)
}

// rateOf is how many bytes a job has read, and how many MB/s that was, all in all.
func rateOf(r *job.Result) (read int64, mbps float64) {
	for _, d := range r.Disks {
		read += d.Read
	}
	if r.Duration <= 0 {
		return 0, 0
	}
	return read, float64(read) / 1e6 / r.Duration.Seconds()
}
