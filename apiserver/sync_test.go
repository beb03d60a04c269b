package apiserver_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"

	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

const warm = `{"vm_path": "/dc/vm/web-01", "output_path": "/exports", "interval": 90, "threshold_bytes": 1000, "shutdown": true, "limit_mbps": 5}`

func TestSync(t *testing.T) {
	b := start(t)
	a := b.post("/sync/submit", warm)
	require.Equal(t, http.StatusAccepted, a.status)
	v := a.json()
	require.ElementsMatch(t, []string{"job_id", "status", "timestamp"}, keys(v))
	id := v["job_id"].(string)
	require.Equal(t, "/jobs/"+id, a.header.Get("Location"))

	j := b.get("/jobs/" + id).ok()
	require.Equal(t, "sync", j["kind"])
	s := j["sync"].(map[string]any)
	require.Equal(t, map[string]any{
		"vm_path": "/dc/vm/web-01", "output_path": "/exports", "interval": "1m30s", "threshold_bytes": 1000.0, "shutdown": true, "limit_mbps": 5.0,
	}, s["spec"])
	require.Equal(t, []any{}, s["rounds"], "never null")
	d := j["definition"].(map[string]any)
	require.Equal(t, "qcow2", d["format"])
	require.Equal(t, "never", d["options"].(map[string]any)["power_on"])
	require.Len(t, b.get("/jobs/query").ok()["jobs"], 1)
	require.Equal(t, []any{id}, b.post("/jobs/cancel", `{"job_ids": ["`+id+`"]}`).ok()["cancelled"])

	key := func(body string) answer { return b.send(http.MethodPost, "/sync/submit", body, "Idempotency-Key", "k") }
	first := key(warm).json()["job_id"]
	require.Equal(t, first, key(warm).json()["job_id"])
	key(`{"vm_path": "/dc/vm/web-02", "output_path": "/exports"}`).refused(http.StatusConflict)
}

func TestSyncFaults(t *testing.T) {
	b := start(t)
	for body, fields := range map[string][]string{
		`{}`: {"vm_path", "output_path"},
		`{"vm_path": "a", "output_path": "/b", "format": "vmdk"}`:                              {"format"},
		`{"vm_path": "a", "output_path": "/b", "interval": "1ms"}`:                             {"interval"},
		`{"vm_path": "a", "output_path": "/b", "cutover": "auto"}`:                             {"cutover"},
		`{"vm_path": "a", "output_path": "b", "parallel": 1000}`:                               {"parallel"},
		`{"vm_path": "a", "output_path": "b/../c", "max_downtime": -1, "shutdown_timeout": 9}`: {"output_path", "shutdown_timeout", "max_downtime"},
		`{"vm_path": "a", "output_path": "/b", "vcenter": {"server": ""}}`:                     {"vcenter.server", "vcenter.username", "vcenter.password"},
	} {
		a := b.post("/sync/submit", body)
		a.refused(http.StatusUnprocessableEntity)
		for _, f := range a.json()["errors"].([]any) {
			require.Contains(t, fields, f.(map[string]any)["field"], "%s", body)
		}
	}
	require.Equal(t, "no such job: nobody", b.post("/sync/cutover", `{"job_id": "nobody"}`).refused(http.StatusNotFound))
	export := b.submit(web)[0]
	require.Contains(t, b.post("/sync/cutover", `{"job_id": "`+export+`"}`).refused(http.StatusConflict), "no warm copy")
}

// Credentials that came with the job are kept for it alone, and never told.
func TestSyncWithCredentials(t *testing.T) {
	b := start(t)
	id := b.post("/sync/submit", `{"vm_path": "a", "output_path": "/b", "vcenter": {"server": "vc", "username": "u", "password": "s3cret", "insecure": true}}`).json()["job_id"].(string)
	r, ok := b.temporal.Run(id)
	require.True(t, ok)
	require.NotContains(t, r.Memo[workflows.MemoSync].(job.SyncSpec).Connection, "s3cret")
	require.NotEmpty(t, r.Memo[workflows.MemoSync].(job.SyncSpec).Connection)
	j := b.get("/jobs/" + id)
	require.NotContains(t, j.body, "s3cret")
	require.NotContains(t, j.json()["sync"].(map[string]any)["spec"], "connection")
}

// The job was submitted when its first run was, however often its workflow has begun anew since.
func TestSyncInALaterRun(t *testing.T) {
	b := start(t)
	at := func(day int) job.Time { return job.Time{Time: time.Date(2026, 3, day, 12, 0, 0, 0, time.UTC)} }
	spec := job.SyncSpec{VMPath: "web-01", OutputPath: "/exports"}
	snap := job.Snapshot{Status: job.Running, UpdatedAt: at(20), Progress: job.Progress{Phase: job.Wait}, Sync: &job.SyncStatus{
		Submitted: at(1), Round: 400, Holds: 400, Rounds: []job.SyncRound{{Round: 400, Changed: 7}}, Ready: "it is time",
	}}
	b.temporal.Add(apiservertest.Run{ID: "s1", Type: workflows.SyncWorkflow, Started: at(19).Time, Snapshot: snap, Memo: map[string]any{
		workflows.MemoSpec: spec.Definition(), workflows.MemoSync: spec, workflows.MemoStatus: snap,
	}})
	j := b.get("/jobs/s1").ok()
	require.Equal(t, "2026-03-01T12:00:00.000Z", j["created_at"])
	s := j["sync"].(map[string]any)
	require.EqualValues(t, 400, s["round"])
	require.Equal(t, "it is time", s["ready"])
	require.EqualValues(t, 7, s["rounds"].([]any)[0].(map[string]any)["changed"])

	snap.Status = job.Completed
	b.temporal.Change("s1", func(r *apiservertest.Run) {
		r.Status, r.Memo[workflows.MemoStatus] = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED, snap
	})
	require.Contains(t, b.post("/sync/cutover", `{"job_id": "s1"}`).refused(http.StatusConflict), "the job has ended")
}
