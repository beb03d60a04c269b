package api

import "hypersdk/workflows/job"

// SyncRequest asks for a warm copy.
type SyncRequest struct {
	job.SyncSpec
	VCenter *Credentials `json:"vcenter,omitempty" doc:"The VM is here instead of at a configured connection. Stored encrypted until the job has ended, and never answered"`
}

// CutoverRequest asks a warm copy for its cutover.
type CutoverRequest struct {
	JobID string `json:"job_id" doc:"Id of the warm copy" minLength:"1" maxLength:"200" example:"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"`
}

// CutoverAsked says that the cutover will begin as soon as the round under way is copied.
type CutoverAsked struct {
	JobID     string         `json:"job_id"`
	Sync      job.SyncStatus `json:"sync"`
	Timestamp job.Time       `json:"timestamp"`
}
