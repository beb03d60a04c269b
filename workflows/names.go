package workflows

// Names are contracts: a history that was recorded under one replays under it for ever, so nothing
// here is renamed, only added.
const (
	// ExportWorkflow is one VM exported; its workflow id is the job's id.
	ExportWorkflow = "export"
	// AdmissionWorkflow decides who may run now. There is one, with the id AdmissionID.
	AdmissionWorkflow = "admission"
	AdmissionID       = "hypersdk-admission"
	// LogWorkflow fetches a page of a job's log from the host that has it.
	LogWorkflow = "fetch-log"

	// Queue is where workflows and short activities run.
	Queue = "hypersdk"
	// PlaceQueue is polled by every worker that can take disks; who answers becomes the job's host.
	PlaceQueue = "hypersdk-place"

	// QueryStatus answers a Snapshot of a job: coarse progress without the bytes in flight.
	QueryStatus = "status"
	// QueryLimits answers a Limits: what the running activities of a job ask every second.
	QueryLimits = "limits"
	// QueryWaiting answers, of the admission workflow, a map of job id to what it waits for.
	QueryWaiting = "waiting"

	// UpdateControl pauses, resumes or limits a job: a Control in, a Limits out.
	UpdateControl = "control"

	// MemoSpec holds the Spec from the start; MemoStatus the last Snapshot, and the whole of it at the
	// end, so that a list needs nothing but visibility.
	MemoSpec   = "spec"
	MemoStatus = "status"
)

// HostQueue is the queue of the host with this id: activities that share its disks run there.
func HostQueue(id string) string { return "disk@" + id }
