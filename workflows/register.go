package workflows

import (
	"go.temporal.io/sdk/workflow"
)

// Registry is what workflows are registered with: a worker, or a replay.
type Registry interface {
	RegisterWorkflowWithOptions(w any, options workflow.RegisterOptions)
}

// Names lists the names of all workflows.
func Names() []string {
	return []string{ExportWorkflow, ConvertWorkflow, ImportWorkflow, ChainWorkflow, ListChainWorkflow, SyncWorkflow, OperateWorkflow, AdmissionWorkflow, LogWorkflow}
}

// Register registers all workflows under their names.
func Register(r Registry) {
	r.RegisterWorkflowWithOptions(Export, workflow.RegisterOptions{Name: ExportWorkflow})
	r.RegisterWorkflowWithOptions(ConvertDisk, workflow.RegisterOptions{Name: ConvertWorkflow})
	r.RegisterWorkflowWithOptions(Import, workflow.RegisterOptions{Name: ImportWorkflow})
	r.RegisterWorkflowWithOptions(Chain, workflow.RegisterOptions{Name: ChainWorkflow})
	r.RegisterWorkflowWithOptions(ListChain, workflow.RegisterOptions{Name: ListChainWorkflow})
	r.RegisterWorkflowWithOptions(SyncDisks, workflow.RegisterOptions{Name: SyncWorkflow})
	r.RegisterWorkflowWithOptions(Operate, workflow.RegisterOptions{Name: OperateWorkflow})
	r.RegisterWorkflowWithOptions(Admission, workflow.RegisterOptions{Name: AdmissionWorkflow})
	r.RegisterWorkflowWithOptions(Log, workflow.RegisterOptions{Name: LogWorkflow})
}
