package api

import (
	"encoding/json"

	"hypersdk/workflows/job"
)

// Submitted says what became of the jobs of a request.
type Submitted struct {
	JobIDs   []string `json:"job_ids" doc:"Ids of the accepted jobs, in the order of the request"`
	Accepted int      `json:"accepted"`
	Rejected int      `json:"rejected"`
	Errors   []string `json:"errors" doc:"Every fault of every rejected job, in words" example:"[\"job 1: vm_path is required\"]"`
	Faults   []Fault  `json:"faults,omitempty" doc:"The same for programs"`
	// Error is set where no job was accepted.
	Error     string   `json:"error,omitempty" doc:"Why no job was accepted"`
	Timestamp job.Time `json:"timestamp"`
}

// Fault is a fault of one job of a request.
type Fault struct {
	Job     int    `json:"job" doc:"Which job of the request, from 0"`
	Field   string `json:"field" example:"vm_path"`
	Message string `json:"message" example:"is required"`
}

// Submission is a job as it is submitted: what is asked for, its older spellings, and credentials.
type Submission struct {
	job.Spec
	OutputDir   string       `json:"output_dir,omitempty" doc:"Another spelling of output_path"`
	Compression string       `json:"compression,omitempty" doc:"Another spelling of compress"`
	VCenter     *Credentials `json:"vcenter,omitempty" doc:"Where the VM is; a configured connection where absent. Stored encrypted until the job has ended, and never answered"`

	// Spellings of vcenter in older job files; they count where vcenter_url is given.
	VCenterURL string `json:"vcenter_url,omitempty" deprecated:"true" doc:"Another spelling of vcenter.server"`
	Username   string `json:"username,omitempty" deprecated:"true" doc:"With vcenter_url: another spelling of vcenter.username"`
	Password   string `json:"password,omitempty" deprecated:"true" format:"password" writeOnly:"true" doc:"With vcenter_url: another spelling of vcenter.password"`
	Insecure   bool   `json:"insecure,omitempty" deprecated:"true" doc:"With vcenter_url: another spelling of vcenter.insecure"`
}

// States are states of jobs; one may be written without a list around it.
type States []job.State

// Query chooses jobs.
type Query struct {
	JobIDs []string `json:"job_ids,omitempty" doc:"These jobs; those that do not exist are left out" maxItems:"1000" example:"[\"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11\"]"`
	Status States   `json:"status,omitempty" doc:"Jobs in this state, or in one of these" example:"[\"running\",\"failed\"]"`
	All    bool     `json:"all,omitempty" doc:"All jobs, at most 10000, where there is no limit"`
	Limit  int      `json:"limit,omitempty" doc:"At most so many, the newest; 0: 100" minimum:"0" maximum:"10000"`
}

// Jobs is a list of jobs.
type Jobs struct {
	Jobs      []job.Job `json:"jobs" doc:"Newest first"`
	Total     int       `json:"total" doc:"How many jobs match, with those beyond the limit"`
	Timestamp job.Time  `json:"timestamp"`
}

// CancelRequest names the jobs to cancel.
type CancelRequest struct {
	JobIDs []string `json:"job_ids" minItems:"1" maxItems:"1000" example:"[\"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11\"]"`
}

// Cancelled says which jobs were told to stop. They clean up before they end.
type Cancelled struct {
	Cancelled []string          `json:"cancelled" doc:"Jobs that stop now"`
	Failed    []string          `json:"failed" doc:"Jobs that do not: there are none of that id, or they have ended"`
	Errors    map[string]string `json:"errors" doc:"Why, by job id"`
	Timestamp job.Time          `json:"timestamp"`
}

// Controlled is what a job keeps to from now on.
type Controlled struct {
	JobID     string   `json:"job_id"`
	Paused    bool     `json:"paused"`
	LimitMBps float64  `json:"limit_mbps" doc:"Bandwidth limit in MB/s (1,000,000 bytes); 0: none"`
	Timestamp job.Time `json:"timestamp"`
}

// LimitRequest sets a bandwidth limit.
type LimitRequest struct {
	LimitMBps float64 `json:"limit_mbps" doc:"MB/s (1,000,000 bytes) of the whole job; 0: none" minimum:"0" maximum:"1000000" example:"50"`
}

// FlatProgress is the progress of a job without levels.
type FlatProgress struct {
	JobID      string    `json:"job_id"`
	Status     job.State `json:"status" enum:"pending,running,completed,failed,cancelled"`
	Percentage float64   `json:"percentage" doc:"As percent_complete"`
	job.Progress
	Error       string    `json:"error,omitempty" doc:"Why the job failed"`
	StartedAt   *job.Time `json:"started_at,omitempty"`
	CompletedAt *job.Time `json:"completed_at,omitempty"`
	UpdatedAt   job.Time  `json:"updated_at"`
	Timestamp   job.Time  `json:"timestamp"`
}

// ETA is when a job is expected to end.
type ETA struct {
	JobID              string    `json:"job_id"`
	Status             job.State `json:"status" enum:"pending,running,completed,failed,cancelled"`
	EstimatedRemaining string    `json:"estimated_remaining" doc:"Duration of what is left of the phase; \"unknown\" while nothing moves" example:"2m30s"`
	ETA                string    `json:"eta" doc:"The moment, or that of its end for a job that has ended; \"unknown\" while nothing moves" example:"2026-03-01T12:00:00.000Z"`
	Timestamp          job.Time  `json:"timestamp"`
}

// Frame is a message on a web socket: first a snapshot with all running jobs and the newest others,
// then every job that changed, as it is then.
type Frame struct {
	Type      string     `json:"type" enum:"snapshot,job"`
	Job       *job.Job   `json:"job,omitempty" doc:"In a job frame"`
	Jobs      *[]job.Job `json:"jobs,omitempty" doc:"In a snapshot frame, newest first"`
	Timestamp job.Time   `json:"timestamp"`
}

// UnmarshalJSON takes a state or a list of them.
func (s *States) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*s = make(States, 1)
		return json.Unmarshal(b, &(*s)[0])
	}
	return json.Unmarshal(b, (*[]job.State)(s))
}

// String keeps passwords out of sight.
func (s Submission) String() string { return "job for " + s.VMPath }

// GoString is String.
func (s Submission) GoString() string { return s.String() }

// String keeps the password out of sight.
func (r VMListRequest) String() string { return "VMs of " + r.Server }

// GoString is String.
func (r VMListRequest) GoString() string { return r.String() }

// Started is a job that was accepted.
type Started struct {
	JobID     string    `json:"job_id"`
	Status    job.State `json:"status" enum:"pending,running,completed,failed,cancelled"`
	Timestamp job.Time  `json:"timestamp"`
}
