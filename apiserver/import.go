package apiserver

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// ImportInput is a request for an import. It is exported for huma, which looks no further else.
type ImportInput struct {
	Key  string `header:"Idempotency-Key" maxLength:"200" doc:"Sending the same request again under the same key starts nothing and answers the same id" example:"restore-web-01"`
	Body api.ImportRequest
}

type importOutput struct {
	Location string `header:"Location" doc:"Where to ask how it goes"`
	Body     api.ImportStarted
}

// importSpace is the name space of the ids of imports with an idempotency key.
var importSpace = uuid.MustParse("5b0d5c44-1a0e-4a0a-8f43-3d1f9a2b7c60")

func (s *Server) importOperation(h huma.API) {
	op := operation(http.MethodPost, "/vms/import", "import-vm", "vms", "Import a VM",
		"Starts a durable job that makes a VM of an OVF or OVA which lies on a worker's host, and uploads its disks. The job is "+
			"found at /jobs/{id}, and is steered as every job. A VM that is not whole does not stay.",
		http.StatusBadRequest, http.StatusConflict, http.StatusServiceUnavailable)
	op.DefaultStatus = http.StatusAccepted
	huma.Register(h, op, func(ctx context.Context, in *ImportInput) (*importOutput, error) {
		ctx, cancel := context.WithTimeout(ctx, quickTimeout)
		defer cancel()
		spec := in.Body.ImportSpec
		if faults := append(spec.Validate(), checkConnection(spec.Connection, false)...); len(faults) > 0 {
			return nil, fail(ctx, invalid(http.StatusUnprocessableEntity, faults))
		}
		id, err := s.startJob(ctx, newJob{
			what: "import", workflow: workflows.ImportWorkflow, spec: spec, memo: workflows.MemoImport,
			definition: spec.Definition(), title: spec.Title(), key: in.Key, space: importSpace,
		})
		if err != nil {
			return nil, fail(ctx, err)
		}
		return &importOutput{"/jobs/" + id, api.ImportStarted{JobID: id, Status: job.Pending, Timestamp: job.Now()}}, nil
	})
}
