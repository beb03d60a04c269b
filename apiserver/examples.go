package apiserver

import (
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// finish completes the document: every answer has an example, and says nothing of fields that it may
// come to have.
func finish(doc *huma.OpenAPI) {
	for name, s := range doc.Components.Schemas.Map() {
		if !strings.HasSuffix(name, "Request") && name != "Query" && name != "Credentials" {
			s.AdditionalProperties = nil
		}
	}
	good := exampleAnswers()
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Delete} {
			if op == nil {
				continue
			}
			if m := mediaOf(op.RequestBody); m != nil && exampleRequests[op.OperationID] != nil {
				m.Example = exampleRequests[op.OperationID]
			}
			for status, r := range op.Responses {
				m := r.Content["application/json"]
				switch {
				case m == nil:
				case m.Schema.Ref == "#/components/schemas/Error":
					m.Example = exampleError(status)
				case status == "200" || status == "101":
					m.Example = good[op.OperationID]
				}
			}
		}
	}
}

func mediaOf(b *huma.RequestBody) *huma.MediaType {
	if b == nil {
		return nil
	}
	return b.Content["application/json"]
}

const exampleID = "0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"

var exampleRequests = map[string]any{
	"query-jobs":  map[string]any{"status": []job.State{job.Running, job.Failed}, "limit": 20},
	"cancel-jobs": api.CancelRequest{JobIDs: []string{exampleID}},
	"limit-job":   api.LimitRequest{LimitMBps: 50},
	"list-vms-of": map[string]any{"server": "vcenter.example.org", "username": "backup@vsphere.local", "password": "…", "insecure": false},
	"vm-info":     map[string]any{"vm_path": "/datacenter/vm/web-01"},
}

// exampleAnswers are built of the types that are answered, so that they cannot be of another shape.
func exampleAnswers() map[string]any {
	at := func(minutes int) job.Time {
		return job.Time{Time: time.Date(2026, 3, 1, 12, minutes, 0, 0, time.UTC)}
	}
	now, started := at(10), at(1)
	disk := job.DiskProgress{
		Disk: "2000", File: "web-01-disk-0.qcow2", Phase: job.Transfer, Done: 21474836480, Total: 42949672960,
		Read: 12884901888, Written: 6442450944, RateMBps: 410.5, Attempt: 1,
	}
	running := job.Job{
		ID: exampleID, Status: job.Running, CreatedAt: at(0), StartedAt: &started, UpdatedAt: now, Host: "esx-backup-1",
		Definition: job.Spec{VMPath: "/datacenter/vm/web-01", OutputPath: "/exports", Format: "qcow2", Compress: true},
		Progress: &job.Progress{
			Phase: job.Transfer, PercentComplete: 50, CurrentFile: disk.File, CurrentStep: "copying the disks",
			BytesTransferred: disk.Done, TotalBytes: disk.Total, TransferRateMBps: 410.5, EstimatedRemaining: "52s",
			Transport: "datastore", Disks: []job.DiskProgress{disk},
		},
	}
	vm := providers.VM{
		ID: "vm-42", Name: "web-01", Path: "/datacenter/vm/web-01", PowerState: providers.PowerOn,
		GuestOS: "Debian GNU/Linux 12 (64-bit)", MemoryMB: 4096, NumCPU: 2, StorageBytes: 21474836480,
	}
	full := vm
	full.Disks = []providers.Disk{{
		ID: "2000", Label: "Hard disk 1", Size: 42949672960, Thin: true, Path: "[datastore1] web-01/web-01.vmdk",
		Datastore: "datastore1", DatastoreType: "VMFS", Controller: "pvscsi", Mode: "persistent",
	}}
	jobs := []job.Job{running}
	kinds := []api.ProviderKind{{Kind: "vsphere", Title: "VMware vSphere", Capabilities: []string{"disk-source", "inventory", "snapshot"}, Transports: []string{"datastore"}}}
	return map[string]any{
		"health": api.Health{Status: "healthy", Timestamp: now},
		"status": api.Status{Version: "1.0.0", Uptime: "3h25m10s", TotalJobs: 12, PendingJobs: 1, RunningJobs: 4, CompletedJobs: 6,
			FailedJobs: 1, TemporalURL: "http://127.0.0.1:8233", Timestamp: now},
		"capabilities": api.Capabilities{Version: "1.0.0", Providers: kinds, Formats: []string{"qcow2", "raw"}, DefaultFormat: "qcow2",
			Transports: []string{"datastore"}, Features: []string{}, JobVCenter: true, Timestamp: now},
		"submit-jobs":  api.Submitted{JobIDs: []string{exampleID}, Accepted: 1, Errors: []string{}, Timestamp: now},
		"query-jobs":   api.Jobs{Jobs: jobs, Total: 1, Timestamp: now},
		"list-jobs":    api.Jobs{Jobs: jobs, Total: 1, Timestamp: now},
		"get-job":      running,
		"job-progress": flat(running, now),
		"job-eta":      eta(running, now.Time),
		"cancel-jobs":  api.Cancelled{Cancelled: []string{exampleID}, Failed: []string{}, Errors: map[string]string{}, Timestamp: now},
		"pause-job":    api.Controlled{JobID: exampleID, Paused: true, Timestamp: now},
		"resume-job":   api.Controlled{JobID: exampleID, Timestamp: now},
		"limit-job":    api.Controlled{JobID: exampleID, LimitMBps: 50, Timestamp: now},
		"list-vms":     api.VMs{VMs: []providers.VM{vm}, Total: 1, Timestamp: now},
		"list-vms-of":  []providers.VM{vm},
		"vm-info":      full,
		"watch-jobs":   api.Frame{Type: "job", Job: &running, Timestamp: now},
	}
}

func exampleRejection() api.Submitted {
	return api.Submitted{
		JobIDs: []string{}, Rejected: 1, Errors: []string{"job 0: vm_path is required"},
		Faults: []api.Fault{{Job: 0, Field: "vm_path", Message: "is required"}},
		Error:  "no job was accepted: job 0: vm_path is required", Timestamp: job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)},
	}
}

var exampleErrors = map[string]string{
	"400": "the request is not valid: body cannot be read: unexpected end of JSON input",
	"403": "vsphere: connect vcenter.example.org: the user name or the password is wrong",
	"404": "no such job: " + exampleID,
	"409": "the job has ended: it is completed",
	"413": "the body is too large: it may have 10485760 bytes",
	"422": "the request is not valid: limit_mbps must be number >= 0",
	"502": "vsphere: connect vcenter.example.org: connection refused",
	"503": "the workflow engine does not answer; try again in a moment",
	"504": "the answer took too long; try again in a moment",
}

func exampleError(status string) api.Error {
	e := api.Error{Message: exampleErrors[status], Timestamp: job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}
	switch status {
	case "400":
		e.Errors = []job.FieldError{{Field: "body", Message: "cannot be read: unexpected end of JSON input"}}
	case "422":
		e.Errors = []job.FieldError{{Field: "limit_mbps", Message: "must be number >= 0"}}
	}
	if e.Message == "" {
		e.Message = serverFailed
	}
	return e
}
