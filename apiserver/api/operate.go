package api

import (
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Target names the VM that is to be changed, and where it is.
type Target struct {
	VMPath     string       `json:"vm_path" doc:"Inventory path, id or unambiguous name" example:"/datacenter/vm/web-01" minLength:"1" maxLength:"2048"`
	Connection string       `json:"connection,omitempty" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	VCenter    *Credentials `json:"vcenter,omitempty" doc:"The VM is here instead. Stored encrypted until the operation has ended, and never answered"`
}

// VMRequest asks for something to be done to a VM.
type VMRequest struct {
	Target
	Timeout job.Duration `json:"timeout,omitempty" doc:"How long to wait for the end, in seconds or as a duration, at most 100 seconds, which is also the default; what takes longer goes on, and the answer is 202"`
}

// ShutdownRequest asks for a guest to be shut down.
type ShutdownRequest struct {
	Target
	Timeout job.Duration `json:"timeout,omitempty" doc:"What the guest has to shut down, in seconds or as a duration, at most a day; 5 minutes where absent. The answer is 202 where that takes more than 100 seconds"`
	Then    job.Then     `json:"then,omitempty" enum:"fail,poweroff" doc:"What follows where the guest does not shut down in time, or cannot be asked: fail where absent"`
}

// SnapshotCreateRequest asks for a snapshot.
type SnapshotCreateRequest struct {
	VMRequest
	job.SnapshotRequest
}

// SnapshotDeleteRequest asks for a snapshot to be deleted. The snapshots taken upon it stay.
type SnapshotDeleteRequest struct {
	VMRequest
	Snapshot string `json:"snapshot" doc:"Id, or name where only one has it" example:"snapshot-7" minLength:"1" maxLength:"200"`
}

// CloneRequest asks for a clone.
type CloneRequest struct {
	VMRequest
	job.CloneRequest
}

// TemplateRequest asks for a template, or a VM.
type TemplateRequest struct {
	VMRequest
	Template *bool `json:"template,omitempty" doc:"true, or absent: make a template of the VM, which has to be off; false: make a VM of the template"`
}

// Snapshots are those of a VM.
type Snapshots struct {
	Snapshots []providers.Snapshot `json:"snapshots" doc:"Parents before children"`
	Total     int                  `json:"total"`
	VMName    string               `json:"vm_name"`
	Timestamp job.Time             `json:"timestamp"`
}

// Operation is what is, or was, done to a VM.
type Operation struct {
	OperationID string                    `json:"operation_id" doc:"GET /vms/operations/{id} tells how it goes on" example:"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"`
	Action      job.Action                `json:"action" enum:"poweron,poweroff,shutdown,remove-cdrom,create-snapshot,delete-snapshot,clone,template,enable-cbt,disable-cbt,report-cbt,analyze"`
	Status      job.State                 `json:"status" enum:"running,completed,failed,cancelled"`
	Success     bool                      `json:"success"`
	Message     string                    `json:"message" doc:"What came of it, in one sentence"`
	Error       string                    `json:"error,omitempty"`
	Reason      string                    `json:"reason,omitempty" doc:"Kind of the error, for programs" example:"precondition"`
	VMPath      string                    `json:"vm_path" doc:"As it was asked for"`
	VMName      string                    `json:"vm_name,omitempty"`
	PowerState  providers.Power           `json:"power_state,omitempty" enum:"poweredOn,poweredOff,suspended,unknown" doc:"After the operation"`
	Forced      bool                      `json:"forced,omitempty" doc:"The guest did not shut down, and its power was taken away"`
	CDROMs      []providers.CDROM         `json:"cdroms,omitempty" doc:"Drives that were removed"`
	Snapshot    *providers.Snapshot       `json:"snapshot,omitempty" doc:"The snapshot that was taken"`
	Clone       *providers.VM             `json:"clone,omitempty" doc:"The VM that was made"`
	Tracking    *providers.TrackingStatus `json:"tracking,omitempty" doc:"How far the changes of its disks are tracked, after the operation"`
	Analysis    *job.Analysis             `json:"analysis,omitempty" doc:"What the next incremental export would do"`
	TemporalURL string                    `json:"temporal_url,omitempty" doc:"The run in the Temporal Web UI"`
	Timestamp   job.Time                  `json:"timestamp"`
}
