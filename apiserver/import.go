package apiserver

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
)

// importSpace is the name space of the ids of imports with an idempotency key.
var importSpace = uuid.MustParse("5b0d5c44-1a0e-4a0a-8f43-3d1f9a2b7c60")

func (s *Server) importOperation(h huma.API) {
	starting(h, "/vms/import", "import-vm", "vms", "Import a VM",
		"Starts a durable job that makes a VM of an OVF or OVA which lies on a worker's host, and uploads its disks. The job is "+
			"found at /jobs/{id}, and is steered as every job. A VM that is not whole does not stay.",
		func(ctx context.Context, key string, r api.ImportRequest) (string, error) {
			spec := r.ImportSpec
			if faults := append(spec.Validate(), checkConnection(spec.Connection, false)...); len(faults) > 0 {
				return "", invalid(http.StatusUnprocessableEntity, faults)
			}
			return s.startJob(ctx, newJob{
				what: "import", workflow: workflows.ImportWorkflow, spec: spec, memo: workflows.MemoImport,
				definition: spec.Definition(), title: spec.Title(), key: key, space: importSpace,
			})
		})
}
