package api

import "hypersdk/workflows/job"

// Health says that the server answers.
type Health struct {
	Status    string   `json:"status" enum:"healthy" example:"healthy"`
	Timestamp job.Time `json:"timestamp"`
}

// Status is the server and its jobs in numbers.
type Status struct {
	Version       string   `json:"version" example:"1.0.0"`
	Uptime        string   `json:"uptime" doc:"Duration since the server started" example:"3h25m10s"`
	TotalJobs     int      `json:"total_jobs" doc:"Jobs that are known; those that ended are kept for the retention time"`
	PendingJobs   int      `json:"pending_jobs" doc:"Jobs that wait for their turn"`
	RunningJobs   int      `json:"running_jobs" doc:"Jobs that have been admitted"`
	CompletedJobs int      `json:"completed_jobs"`
	FailedJobs    int      `json:"failed_jobs"`
	CancelledJobs int      `json:"cancelled_jobs"`
	TemporalURL   string   `json:"temporal_url,omitempty" doc:"The Temporal Web UI"`
	Timestamp     job.Time `json:"timestamp"`
}

// Capabilities is what this build can do.
type Capabilities struct {
	Version       string         `json:"version" example:"1.0.0"`
	Providers     []ProviderKind `json:"providers"`
	Formats       []string       `json:"formats" doc:"Disk formats that a job may name" example:"[\"qcow2\",\"raw\"]"`
	DefaultFormat string         `json:"default_format,omitempty" example:"qcow2"`
	Transports    []string       `json:"transports" doc:"Ways to read disks that a job may name" example:"[\"datastore\",\"vddk\",\"nfc\"]"`
	Features      []string       `json:"features" doc:"Fields of a job that not every build honours, and this one does" example:"[]"`
	JobVCenter    bool           `json:"job_vcenter" doc:"Whether a job may bring credentials"`
	Timestamp     job.Time       `json:"timestamp"`
}

// ProviderKind is a kind of platform and what it can do.
type ProviderKind struct {
	Kind         string   `json:"kind" example:"vsphere"`
	Title        string   `json:"title" example:"VMware vSphere"`
	Capabilities []string `json:"capabilities" doc:"What it can do, sorted" example:"[\"disk-source\",\"inventory\",\"snapshot\"]"`
	Transports   []string `json:"transports" doc:"Ways to read disks, best first" example:"[\"datastore\",\"vddk\",\"nfc\"]"`
}
