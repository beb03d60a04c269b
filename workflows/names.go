package workflows

// Names are contracts: a history that was recorded under one replays under it for ever, so nothing
// here is renamed, only added.
const (
	// ExportWorkflow is one VM exported: a job.Spec in, a job.Result out. Its workflow id is the job's id.
	ExportWorkflow = "export"
	// ConvertWorkflow is disk images converted: a job.Conversion in, a job.Result out. Its workflow id is the
	// job's id.
	ConvertWorkflow = "convert"
	// AdmissionWorkflow decides who may run now. There is one, with the id AdmissionID.
	AdmissionWorkflow = "admission"
	AdmissionID       = "hypersdk-admission"
	// ImportWorkflow is a VM made of a package: a job.ImportSpec in, a job.Result out. Its workflow id is the
	// job's id.
	ImportWorkflow = "import"
	// OperateWorkflow is one operation on one VM: a job.Operation in, a job.Operated out. Its MemoStatus is a
	// job.OperationStatus, once it has ended.
	OperateWorkflow = "operate"
	// ChainWorkflow is work on a chain: a job.ChainWork in, a job.Result out. Its workflow id is the job's id.
	ChainWorkflow = "chain"
	// ListChainWorkflow tells what a chain is made of: a job.ChainQuery in, a job.ChainView out.
	ListChainWorkflow = "list-chain"
	// SyncWorkflow is the disks of a VM kept in sync until the cutover: a SyncRun in, which is a job.SyncSpec
	// at first, a job.Result out. Its workflow id is the job's id.
	SyncWorkflow = "sync"
	// LogWorkflow fetches a page of a job's log from the host that has it: a job.LogRequest in, a
	// job.LogPage out.
	LogWorkflow = "fetch-log"

	// Queue is where workflows and short activities run.
	Queue = "hypersdk"
	// PlaceQueue is polled by every worker that can take disks; who answers becomes the job's host.
	PlaceQueue = "hypersdk-place"

	// QueryStatus answers a job.Snapshot: coarse progress without the bytes in flight.
	QueryStatus = "status"
	// QueryLimits answers a job.Limits: what the running activities of a job ask every second.
	QueryLimits = "limits"
	// QueryWaiting answers, of the admission workflow, a map of job id to what it waits for: of the jobs
	// whose ids are its argument, a list, or where there is none of the first MaxWaiting in the queue.
	QueryWaiting = "waiting"

	// UpdateControl pauses, resumes or limits a job: a job.Control in, a job.Limits out.
	UpdateControl = "control"
	// UpdateCutover asks a warm copy for its cutover: nothing in, a job.SyncStatus out.
	UpdateCutover = "cutover"

	// MemoSpec holds the Spec from the start; MemoStatus the last job.Snapshot, and the whole of it at the
	// end, so that a list needs nothing but visibility.
	// MemoConversion holds the Conversion of a job that is one, from the start; its MemoSpec is what a Spec can
	// say of that.
	MemoSpec       = "spec"
	MemoConversion = "conversion"
	MemoStatus     = "status"
	// MemoImport holds the Import of a job that is one, likewise.
	MemoImport = "import"
	// MemoChain holds the ChainWork of a job that is one, likewise.
	MemoChain = "chain"
	// MemoSync holds the SyncSpec of a job that is one, likewise.
	MemoSync = "sync"
	// MemoOperation holds the Operation of an operation, from the start.
	MemoOperation = "operation"
)

// HostQueue is the queue of the host with this id: activities that share its disks run there.
func HostQueue(id string) string { return "disk@" + id }

// Signals.
const (
	// SignalAsk asks admission for a turn: an activities.Ticket.
	SignalAsk = "ask"
	// SignalRelease gives a turn back, or leaves the queue: a job id.
	SignalRelease = "release"
	// SignalLimit changes how many jobs admission lets run at once: a number.
	SignalLimit = "limit"
	// SignalAdmitted tells a job that it is its turn.
	SignalAdmitted = "admitted"
)
