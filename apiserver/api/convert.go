package api

import "hypersdk/workflows/job"

// ConvertRequest asks for disk images on a worker's host to be converted: one, by the fields source_path
// and output_path, or several, in disks.
type ConvertRequest struct {
	SourcePath   string `json:"source_path,omitempty" doc:"Image on the worker's host, where there is one to convert" example:"/images/web-01.vmdk" maxLength:"4000"`
	SourceFormat string `json:"source_format,omitempty" doc:"Format of source_path; recognised by content where absent, which a raw image never is" example:"vmdk" maxLength:"40"`
	OutputPath   string `json:"output_path,omitempty" doc:"File to make of it, in a folder that exists on the same host" example:"/images/web-01.qcow2" maxLength:"4000"`
	job.Conversion
}

// ConvertStarted is a conversion that was accepted.
type ConvertStarted struct {
	ConversionID string    `json:"conversion_id" doc:"Id of the conversion"`
	JobID        string    `json:"job_id" doc:"The same: a conversion is a job"`
	Status       job.State `json:"status" enum:"pending,running,completed,failed,cancelled"`
	Timestamp    job.Time  `json:"timestamp"`
}

// ConvertStatus is where a conversion stands.
type ConvertStatus struct {
	ConversionID string         `json:"conversion_id"`
	JobID        string         `json:"job_id"`
	Status       job.State      `json:"status" enum:"pending,running,completed,failed,cancelled"`
	SourcePath   string         `json:"source_path" doc:"Of the first image"`
	OutputPath   string         `json:"output_path" doc:"Of the first image"`
	TargetFormat string         `json:"target_format"`
	Percentage   float64        `json:"percentage" doc:"As progress.percent_complete"`
	Conversion   job.Conversion `json:"conversion" doc:"What was asked for"`
	Progress     *job.Progress  `json:"progress,omitempty"`
	Result       *job.Result    `json:"result,omitempty"`
	Error        string         `json:"error,omitempty" doc:"Why the conversion failed"`
	CreatedAt    job.Time       `json:"created_at"`
	StartedAt    *job.Time      `json:"started_at,omitempty"`
	CompletedAt  *job.Time      `json:"completed_at,omitempty"`
	UpdatedAt    job.Time       `json:"updated_at"`
	Timestamp    job.Time       `json:"timestamp"`
}
