package apiserver_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// The fields that users know, and no others where the whole of an answer is known.

func TestHealthStatusCapabilities(t *testing.T) {
	b := start(t)
	v := b.get("/health").ok()
	require.ElementsMatch(t, keys(v), []string{"status", "timestamp"})
	require.Equal(t, "healthy", v["status"])

	v = b.get("/status").ok()
	require.Subset(t, keys(v), []string{"version", "uptime", "total_jobs", "running_jobs", "completed_jobs", "failed_jobs", "cancelled_jobs", "timestamp"})
	require.Equal(t, "1.2.3", v["version"])
	_, err := time.ParseDuration(v["uptime"].(string))
	require.NoError(t, err)

	v = b.get("/capabilities").ok()
	require.Equal(t, []any{"qcow2", "raw"}, v["formats"])
	require.Equal(t, []any{"datastore"}, v["transports"])
	require.Equal(t, []any{}, v["features"])
	require.Equal(t, "vsphere", v["providers"].([]any)[0].(map[string]any)["kind"])
}

func TestStatusCounts(t *testing.T) {
	b := start(t)
	for _, r := range []apiservertest.Run{running("r1"), running("r2")} {
		b.temporal.Add(r)
	}
	for i, state := range []job.State{job.Completed, job.Completed, job.Failed, job.Cancelled} {
		b.temporal.Add(running("e"+string(rune('0'+i)))).End(state, nil, "")
	}
	terminated := running("t")
	terminated.Status, terminated.Closed = 5, time.Now()
	b.temporal.Add(terminated)
	b.temporal.Add(apiservertest.Run{ID: workflows.AdmissionID, Type: workflows.AdmissionWorkflow})
	for _, id := range []string{"p1", "p2", "p3"} {
		b.temporal.Add(apiservertest.Run{ID: id})
		b.temporal.Wait(id, "3 jobs ahead")
	}
	want := map[string]float64{"total_jobs": 10, "pending_jobs": 3, "running_jobs": 2, "completed_jobs": 2, "failed_jobs": 2, "cancelled_jobs": 1}
	for _, deaf := range []bool{false, true} {
		b.temporal.Deaf(deaf) // then the memos have to do
		v := b.get("/status").ok()
		for k, n := range want {
			require.Equal(t, n, v[k], "%s, deaf: %v", k, deaf)
		}
	}
}

func TestSubmitShape(t *testing.T) {
	b := start(t)
	v := b.post("/jobs/submit", web).ok()
	require.Subset(t, keys(v), []string{"job_ids", "accepted", "rejected", "errors"})
	require.Equal(t, []any{}, v["errors"])
	v = b.post("/jobs/submit", "{}").json()
	require.Subset(t, keys(v), []string{"job_ids", "accepted", "rejected", "errors", "error", "timestamp"})
	require.Equal(t, []any{}, v["job_ids"])
}

func TestQueryShape(t *testing.T) {
	b := start(t)
	for _, a := range []answer{b.get("/jobs/query?all=true"), b.post("/jobs/query", `{"all": true}`), b.post("/jobs/query", `{}`),
		b.post("/jobs/query", `{"job_ids": ["nobody"]}`), b.post("/jobs/query", `{"status": ["running"], "limit": 5}`)} {
		v := a.ok()
		require.ElementsMatch(t, keys(v), []string{"jobs", "total", "timestamp"})
		require.Equal(t, []any{}, v["jobs"], "never null")
		require.EqualValues(t, 0, v["total"])
	}
}

func TestJobShape(t *testing.T) {
	b := start(t)
	r := running("j1")
	r.Snapshot.Progress.LimitMBps = 7
	b.temporal.Add(r)
	b.temporal.Change("j1", func(r *apiservertest.Run) {
		r.Activities = []apiservertest.Activity{
			{Type: "transfer-disk", Beat: &job.DiskProgress{Disk: "2000", File: "a.qcow2", Phase: job.Transfer, Done: 500, Total: 1000, RateMBps: 0.0001}},
			{Type: "transfer-disk", Beat: &job.DiskProgress{Disk: "2001", File: "b.qcow2", Phase: job.Transfer, Done: 1000, Total: 2000, RateMBps: 0.0001}},
		}
	})
	v := b.get("/jobs/j1").ok()
	require.Subset(t, keys(v), []string{"id", "definition", "status", "progress", "started_at", "created_at", "updated_at"})
	require.NotContains(t, v, "result")
	require.NotContains(t, v, "completed_at")
	require.Equal(t, "running", v["status"])
	require.Equal(t, "/dc/vm/web-01", v["definition"].(map[string]any)["vm_path"])
	require.Equal(t, "2026-03-01T12:00:00.000Z", v["started_at"])
	require.Equal(t, "http://127.0.0.1:8233/namespaces/default/workflows/j1/run-j1/history", v["temporal_url"])
	p := v["progress"].(map[string]any)
	require.Subset(t, keys(p), []string{"phase", "percent_complete", "current_file", "current_step", "bytes_transferred", "total_bytes",
		"transfer_rate_mbps", "estimated_remaining"})
	require.Equal(t, map[string]any{"phase": "transfer", "percent": 50.0, "done": 1500.0, "total": 3000.0, "left": "7s", "file": "a.qcow2"},
		map[string]any{"phase": p["phase"], "percent": p["percent_complete"], "done": p["bytes_transferred"], "total": p["total_bytes"],
			"left": p["estimated_remaining"], "file": p["current_file"]})

	flat := b.get("/jobs/progress/j1").ok()
	require.Subset(t, keys(flat), append(keys(p), "job_id", "status", "percentage"))
	require.NotContains(t, flat, "progress")
	require.Equal(t, 50.0, flat["percentage"])
	require.Equal(t, "j1", flat["job_id"])

	eta := b.get("/jobs/eta/j1").ok()
	require.Equal(t, "7s", eta["estimated_remaining"])
	_, err := time.Parse(time.RFC3339, eta["eta"].(string))
	require.NoError(t, err)
}

func TestResultShape(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j1"))
	b.temporal.Change("j1", func(r *apiservertest.Run) {
		r.End(job.Completed, &job.Result{VMName: "web-01", OutputDir: "/exports/web-01", TotalSize: 10, Duration: 3 * time.Second, Success: true}, "")
	})
	v := b.get("/jobs/j1").ok()
	require.Equal(t, "completed", v["status"])
	r := v["result"].(map[string]any)
	require.Subset(t, keys(r), []string{"vm_name", "output_dir", "ovf_path", "files", "total_size", "duration", "success"})
	require.EqualValues(t, 3e9, r["duration"])
	require.Equal(t, []any{}, r["files"])
	require.EqualValues(t, 100, v["progress"].(map[string]any)["percent_complete"])
	require.NotEmpty(t, v["completed_at"])
	eta := b.get("/jobs/eta/j1").ok()
	require.Equal(t, "0s", eta["estimated_remaining"])
	require.Equal(t, v["completed_at"], eta["eta"])
}

func TestCancelShape(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("runs"))
	b.temporal.Add(running("done"))
	b.temporal.Change("done", func(r *apiservertest.Run) { r.End(job.Completed, nil, "") })
	b.temporal.Add(apiservertest.Run{ID: workflows.AdmissionID, Type: workflows.AdmissionWorkflow})
	v := b.post("/jobs/cancel", `{"job_ids": ["runs", "done", "nobody", "`+workflows.AdmissionID+`", "runs"]}`).ok()
	require.ElementsMatch(t, keys(v), []string{"cancelled", "failed", "errors", "timestamp"})
	require.Equal(t, []any{"runs"}, v["cancelled"])
	require.ElementsMatch(t, []any{"done", "nobody", workflows.AdmissionID}, v["failed"])
	why := v["errors"].(map[string]any)
	require.Equal(t, "the job has ended: it is completed", why["done"])
	require.Equal(t, "no such job: nobody", why["nobody"])
	require.Contains(t, why[workflows.AdmissionID], "no such job")
	run, _ := b.temporal.Run("runs")
	require.Equal(t, 1, run.Cancelled)
	run, _ = b.temporal.Run(workflows.AdmissionID)
	require.Zero(t, run.Cancelled, "only jobs can be cancelled")
}

func TestVMShapes(t *testing.T) {
	once := &apiservertest.Platform{List: []providers.VM{{ID: "vm-9", Name: "lab", Path: "/lab/vm/lab", PowerState: providers.PowerOn}}}
	b := start(t)
	b.connections.Once = once
	v := b.get("/vms/list").ok()
	require.ElementsMatch(t, keys(v), []string{"vms", "total", "timestamp"})
	require.EqualValues(t, 2, v["total"])
	require.Subset(t, keys(v["vms"].([]any)[1]), []string{"name", "path", "power_state", "guest_os", "memory_mb", "num_cpu", "storage_bytes"})

	a := b.post("/vms/list", `{"server": "lab", "username": "u", "password": "p", "insecure": true}`)
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, byte('['), a.body[0], "the bare list")
	require.Equal(t, 1, once.Closed())
	require.Equal(t, byte('['), b.post("/vms/list", `{}`).body[0])

	v = b.post("/vms/info", `{"vm_path": "/dc/vm/web-01"}`).ok()
	require.Equal(t, "web-01", v["name"])
	v = b.post("/vms/info", `{"vm_path": "lab", "timeout": 30, "vcenter": {"server": "lab", "username": "u", "password": "p"}}`).ok()
	require.Equal(t, "/lab/vm/lab", v["path"])
	require.Equal(t, 2, once.Closed())
}

func TestEmptyInventory(t *testing.T) {
	b := start(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Connections = &apiservertest.Connections{Default: &apiservertest.Platform{}}
	})
	require.Equal(t, []any{}, b.get("/vms/list").ok()["vms"])
	require.Equal(t, "[]\n", b.post("/vms/list", `{}`).body)
}
