package apiserver

import (
	"maps"
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
		if !strings.HasSuffix(name, "Request") && name != "Query" && name != "Credentials" && name != "ConversionDisk" {
			s.AdditionalProperties = nil
		}
	}
	good, asked := exampleAnswers(), chainRequests()
	maps.Copy(asked, exampleRequests)
	syncExamples(asked, good)
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Delete} {
			if op == nil {
				continue
			}
			if m := mediaOf(op.RequestBody); m != nil && asked[op.OperationID] != nil {
				m.Example = asked[op.OperationID]
			}
			for status, r := range op.Responses {
				m := r.Content["application/json"]
				switch {
				case m == nil:
				case m.Schema.Ref == "#/components/schemas/Error":
					m.Example = exampleError(status)
				case status == "200" || status == "101" || status == "202":
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
	"convert-format": map[string]any{
		"source_path": "/images/web-01.vmdk", "target_format": "qcow2", "output_path": "/images/web-01.qcow2", "compress": true,
	},
	"import-vm": map[string]any{
		"package_path": "/exports/web-01/web-01.ova", "name": "web-01-restored", "datastore": "datastore1", "networks": map[string]any{"VM Network": "office"},
	},
	"list-vms-of": map[string]any{"server": "vcenter.example.org", "username": "backup@vsphere.local", "password": "…", "insecure": false},
	"vm-info":     map[string]any{"vm_path": "/datacenter/vm/web-01"},

	"power-on-vm":     map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"power-off-vm":    map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"shut-down-vm":    map[string]any{"vm_path": "/datacenter/vm/web-01", "timeout": 120, "then": job.ThenPowerOff},
	"remove-cdrom":    map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"list-snapshots":  map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"create-snapshot": map[string]any{"vm_path": "/datacenter/vm/web-01", "name": "before-upgrade", "quiesce": true},
	"delete-snapshot": map[string]any{"vm_path": "/datacenter/vm/web-01", "snapshot": "before-upgrade"},
	"clone-vm":        map[string]any{"vm_path": "/datacenter/vm/web-01", "name": "web-02", "folder": "/datacenter/vm/test"},
	"set-template":    map[string]any{"vm_path": "/datacenter/vm/web-01", "template": true},
	"enable-cbt":      map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"disable-cbt":     map[string]any{"vm_path": "/datacenter/vm/web-01"},
	"cbt-status":      map[string]any{"vm_path": "/datacenter/vm/web-01"},
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
		ID: exampleID, Kind: job.Export, Status: job.Running, CreatedAt: at(0), StartedAt: &started, UpdatedAt: now, Host: "esx-backup-1",
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
	converting := running
	converting.Kind, converting.Conversion = job.Convert, &job.Conversion{TargetFormat: "qcow2", Compress: true, Disks: []job.ConversionDisk{
		{SourcePath: "/images/web-01.vmdk", OutputPath: "/images/web-01.qcow2"},
	}}
	converting.Definition = converting.Conversion.Definition()
	image := disk
	image.Disk, image.File = "/images/web-01.vmdk", "web-01.qcow2"
	step := *running.Progress
	step.CurrentFile, step.CurrentStep, step.Transport, step.Disks = image.File, "converting the disks", "", []job.DiskProgress{image}
	converting.Progress = &step
	status := convertStatus(converting)
	status.Timestamp = now
	jobs := []job.Job{running}
	kinds := []api.ProviderKind{{Kind: "vsphere", Title: "VMware vSphere", Capabilities: []string{"disk-leaser", "disk-source", "inventory", "snapshot"}, Transports: []string{"datastore", "vddk", "nfc"}}}
	return withInventory(withChains(map[string]any{
		"power-on-vm":     exampleOperation(job.PowerOn, "web-01 is on"),
		"power-off-vm":    exampleOperation(job.PowerOff, "web-01 is off"),
		"shut-down-vm":    exampleOperation(job.ShutDown, "web-01 has shut down"),
		"remove-cdrom":    exampleOperation(job.RemoveCDROM, "web-01 has lost CD/DVD drive 1"),
		"create-snapshot": exampleOperation(job.TakeSnapshot, "web-01 has the snapshot before-upgrade (snapshot-7)"),
		"delete-snapshot": exampleOperation(job.DeleteSnapshot, "web-01 does not have the snapshot before-upgrade any more"),
		"clone-vm":        exampleOperation(job.Clone, "web-01 was cloned to /datacenter/vm/test/web-02"),
		"set-template":    exampleOperation(job.Template, "web-01 is a template"),
		"enable-cbt":      exampleOperation(job.EnableCBT, "the changes of web-01 are tracked"),
		"disable-cbt":     exampleOperation(job.DisableCBT, "the changes of web-01 are not tracked"),
		"cbt-status":      exampleOperation(job.ReportCBT, "the changes of web-01 are tracked"),
		"get-operation":   exampleOperation(job.ShutDown, "web-01 has shut down"),
		"list-snapshots": api.Snapshots{Snapshots: []providers.Snapshot{{ID: "snapshot-7", Name: "before-upgrade", Created: now.Time, Quiesced: true}},
			Total: 1, VMName: "web-01", Timestamp: now},
		"health": api.Health{Status: "healthy", Timestamp: now},
		"status": api.Status{Version: "1.0.0", Uptime: "3h25m10s", TotalJobs: 12, PendingJobs: 1, RunningJobs: 4, CompletedJobs: 6,
			FailedJobs: 1, TemporalURL: "http://127.0.0.1:8233", Timestamp: now},
		"capabilities": api.Capabilities{Version: "1.0.0", Providers: kinds, Formats: []string{"qcow2", "raw"}, DefaultFormat: "qcow2",
			Transports: []string{"datastore", "vddk", "nfc"}, Features: []string{}, JobVCenter: true, Timestamp: now},
		"submit-jobs":    api.Submitted{JobIDs: []string{exampleID}, Accepted: 1, Errors: []string{}, Timestamp: now},
		"query-jobs":     api.Jobs{Jobs: jobs, Total: 1, Timestamp: now},
		"list-jobs":      api.Jobs{Jobs: jobs, Total: 1, Timestamp: now},
		"get-job":        running,
		"convert-format": api.ConvertStarted{ConversionID: exampleID, JobID: exampleID, Status: job.Pending, Timestamp: now},
		"convert-status": status,
		"job-progress":   flat(running, now),
		"job-eta":        eta(running, now.Time),
		"cancel-jobs":    api.Cancelled{Cancelled: []string{exampleID}, Failed: []string{}, Errors: map[string]string{}, Timestamp: now},
		"pause-job":      api.Controlled{JobID: exampleID, Paused: true, Timestamp: now},
		"resume-job":     api.Controlled{JobID: exampleID, Timestamp: now},
		"limit-job":      api.Controlled{JobID: exampleID, LimitMBps: 50, Timestamp: now},
		"list-vms":       api.VMs{VMs: []providers.VM{vm}, Total: 1, Timestamp: now},
		"list-vms-of":    []providers.VM{vm},
		"vm-info":        full,
		"watch-jobs":     api.Frame{Type: "job", Job: &running, Timestamp: now},
	}, now), now)
}

func exampleOperation(action job.Action, message string) api.Operation {
	o := api.Operation{
		OperationID: exampleID, Action: action, VMPath: "/datacenter/vm/web-01",
		Timestamp: job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)},
	}
	told(&o, job.OperationStatus{Status: job.Completed, Result: &job.Operated{
		VM: providers.VM{Name: "web-01"}, Power: providers.PowerOff, Message: message,
	}})
	return o
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
