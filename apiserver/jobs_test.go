package apiserver_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func TestUnknownJob(t *testing.T) {
	b := start(t)
	b.temporal.Add(apiservertest.Run{ID: workflows.AdmissionID, Type: workflows.AdmissionWorkflow})
	for _, id := range []string{"nobody", workflows.AdmissionID} {
		for _, path := range []string{"/jobs/%s", "/jobs/progress/%s", "/jobs/eta/%s", "/jobs/logs/%s", "/ws?job_id=%s"} {
			require.Contains(t, b.get(fmt.Sprintf(path, id)).refused(http.StatusNotFound), "no such job: "+id)
		}
		for _, path := range []string{"/jobs/%s/pause", "/jobs/%s/resume"} {
			b.post(fmt.Sprintf(path, id), "").refused(http.StatusNotFound)
		}
		b.send(http.MethodPut, fmt.Sprintf("/jobs/%s/limit", id), `{"limit_mbps": 1}`).refused(http.StatusNotFound)
	}
}

// Newest first, whatever order visibility has, and as many as were asked for.
func TestQueryOrderAndLimit(t *testing.T) {
	b := start(t)
	base := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	const n = 1200 // three pages of visibility
	for i := range n {
		r := apiservertest.Run{ID: fmt.Sprintf("j%04d", i), Started: base.Add(time.Duration(i) * time.Minute), Memo: map[string]any{workflows.MemoSpec: spec}}
		if i%10 != 0 { // the others run
			r.Status = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
			r.Closed = base.Add(time.Duration(n+(i*7)%n) * time.Minute)
		}
		b.temporal.Add(r)
	}
	first := func(v map[string]any) (ids []string) {
		for _, j := range v["jobs"].([]any) {
			ids = append(ids, j.(map[string]any)["id"].(string))
		}
		return ids
	}
	v := b.get("/jobs/query?limit=3").ok()
	require.Equal(t, []string{"j1199", "j1198", "j1197"}, first(v))
	require.EqualValues(t, n, v["total"], "with those beyond the limit")
	require.Len(t, b.get("/jobs/query").ok()["jobs"], 100)
	all := first(b.post("/jobs/query", `{"all": true}`).ok())
	require.Len(t, all, n)
	require.IsDecreasing(t, all)
	v = b.post("/jobs/query", `{"status": "pending", "limit": 2}`).ok()
	require.Equal(t, []string{"j1190", "j1180"}, first(v))
	require.EqualValues(t, n/10, v["total"])
	require.Equal(t, []string{"j0007", "j0003"}, first(b.post("/jobs/query", `{"job_ids": ["j0007", "nobody", "j0003"]}`).ok()), "in the order of the ids")
}

// A scan ends as soon as nothing newer can follow: a long history does not make short lists slow.
func TestQueryDoesNotReadTheWholeHistory(t *testing.T) {
	b := start(t)
	base := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for i := range 3000 {
		at := base.Add(time.Duration(i) * time.Minute)
		b.temporal.Add(apiservertest.Run{ID: fmt.Sprintf("j%04d", i), Started: at, Closed: at.Add(time.Second), Status: enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED})
	}
	b.get("/jobs/query?limit=10").ok()
	require.Equal(t, 2, b.temporal.Calls("ListWorkflow"), "a page of those that are open, and one of those that are not")
}

func TestQueryByState(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("run"))
	b.temporal.Add(apiservertest.Run{ID: "wait", Memo: map[string]any{workflows.MemoSpec: spec}})
	for id, state := range map[string]job.State{"done": job.Completed, "bad": job.Failed, "stopped": job.Cancelled} {
		b.temporal.Add(running(id))
		b.temporal.Change(id, func(r *apiservertest.Run) { r.End(state, nil, "it broke") })
	}
	for query, want := range map[string][]string{
		`{"status": ["running"]}`: {"run"}, `{"status": "pending"}`: {"wait"}, `{"status": ["completed"]}`: {"done"},
		`{"status": ["failed", "cancelled"]}`: {"bad", "stopped"}, `{"status": ["failed"], "job_ids": ["bad", "run"]}`: {"bad"},
	} {
		v := b.post("/jobs/query", query).ok()
		var got []string
		for _, j := range v["jobs"].([]any) {
			got = append(got, j.(map[string]any)["id"].(string))
		}
		require.ElementsMatch(t, want, got, query)
		require.EqualValues(t, len(want), v["total"], query)
	}
	require.Len(t, b.get("/jobs/query?status=failed,cancelled&limit=1").ok()["jobs"], 1)
	b.get("/jobs/query?status=dead").refused(http.StatusUnprocessableEntity)
	b.get("/jobs/query?limit=-1").refused(http.StatusUnprocessableEntity)
	require.Contains(t, b.get("/jobs/query?state=failed").refused(http.StatusUnprocessableEntity), "state")
}

// A job that was submitted is in the next list, although visibility may not know it yet.
func TestListAfterSubmit(t *testing.T) {
	b := start(t)
	id := b.submit(web)[0]
	run, _ := b.temporal.Run(id)
	b.temporal.Change(id, func(r *apiservertest.Run) { r.Type = "not listed yet" })
	require.Empty(t, b.get("/jobs/query").ok()["jobs"])
	b.temporal.Change(id, func(r *apiservertest.Run) {
		r.Type = run.Type
		r.Status = enumspb.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED
	})
	require.Len(t, b.get("/jobs/query?status=pending").ok()["jobs"], 1, "although its status is in no list")
}

// What a workflow could not say itself is said for it.
func TestJobsThatWereEndedFromOutside(t *testing.T) {
	b := start(t)
	for status, want := range map[enumspb.WorkflowExecutionStatus]struct{ state, says string }{
		enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED: {"failed", "terminated from outside"},
		enumspb.WORKFLOW_EXECUTION_STATUS_TIMED_OUT:  {"failed", "ran out of time"},
		enumspb.WORKFLOW_EXECUTION_STATUS_FAILED:     {"failed", "workflow failed"},
		enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED:   {"cancelled", "cancelled"},
	} {
		r := running("j" + status.String())
		r.Status, r.Closed = status, time.Now()
		b.temporal.Add(r)
		v := b.get("/jobs/" + r.ID).ok()
		require.Equal(t, want.state, v["status"])
		require.Contains(t, v["error"], want.says)
		require.NotEmpty(t, v["completed_at"])
		require.NotContains(t, v["progress"], "waiting_for")
		require.NotContains(t, v, "result")
	}
}

func TestJobsThatSayHowTheyEnded(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("bad"))
	b.temporal.Change("bad", func(r *apiservertest.Run) { r.End(job.Failed, nil, "vsphere: snapshot vm-1: denied") })
	v := b.get("/jobs/bad").ok()
	require.Equal(t, "failed", v["status"])
	require.Equal(t, "vsphere: snapshot vm-1: denied", v["error"])
}

// A memo that cannot be read does not take the list with it.
func TestUnreadableMemo(t *testing.T) {
	b := start(t)
	b.temporal.Add(apiservertest.Run{ID: "old", Memo: map[string]any{workflows.MemoSpec: "another shape", workflows.MemoStatus: 7}})
	b.temporal.Add(running("new"))
	v := b.get("/jobs/query").ok()
	require.Len(t, v["jobs"], 2)
	require.Contains(t, b.get("/jobs/old").ok()["error"], "cannot be read")
}

// Why a job does not get on, in words.
func TestWaitingFor(t *testing.T) {
	b := start(t)
	now := time.Now()
	beat := job.DiskProgress{Disk: "2000", Phase: job.Transfer, Done: 400, RateMBps: 9}
	full := temporal.NewApplicationError("finish /exports: no space left on device", "exhausted")
	for _, c := range []struct {
		name string
		do   apiservertest.Activity
		want string
	}{
		{"nothing", apiservertest.Activity{Beat: &beat, Scheduled: now}, ""},
		{"the activity says so", apiservertest.Activity{Beat: &job.DiskProgress{Disk: "2000", Waiting: "a copy to end: 8 at once"}}, "a copy to end: 8 at once"},
		{"no room", apiservertest.Activity{Beat: &beat, Failure: full, Attempt: 3, Next: now.Add(40 * time.Second)},
			"room: finish /exports: no space left on device (attempt 3, next in 40s)"},
		{"network", apiservertest.Activity{Type: "inspect", Failure: temporal.NewApplicationError("vsphere: find: connection refused", "unavailable"), Attempt: 2},
			"vsphere: find: connection refused (attempt 2)"},
		{"anything", apiservertest.Activity{Type: "inspect", Failure: errors.New("odd"), Attempt: 2}, "odd (attempt 2)"},
		{"no worker", apiservertest.Activity{Type: "place", Waiting: true, Scheduled: now.Add(-time.Minute)}, "a worker that is free to go on with it"},
		{"a moment", apiservertest.Activity{Type: "place", Waiting: true, Scheduled: now}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := strings.ReplaceAll(c.name, " ", "-")
			r := running(id)
			r.Activities = []apiservertest.Activity{c.do}
			b.temporal.Add(r)
			p := b.get("/jobs/" + id).ok()["progress"].(map[string]any)
			got, _ := p["waiting_for"].(string)
			if strings.Contains(c.want, "next in") { // the clock goes on
				require.Regexp(t, `^`+strings.NewReplacer("(", `\(`, ")", `\)`, "40s", `(39|40)s`).Replace(c.want)+`$`, got)
			} else {
				require.Equal(t, c.want, got)
			}
			if c.do.Failure != nil && c.do.Beat != nil {
				require.Zero(t, p["transfer_rate_mbps"], "nothing moves")
				require.EqualValues(t, 400, p["bytes_transferred"], "what was done is not forgotten")
			}
		})
	}
}

func TestPendingJobsSayWhatTheyWaitFor(t *testing.T) {
	b := start(t)
	for _, id := range []string{"p1", "p2"} {
		b.temporal.Add(apiservertest.Run{ID: id, Snapshot: job.Snapshot{Status: job.Pending, Progress: job.Progress{Phase: job.Admit}},
			Memo: map[string]any{workflows.MemoSpec: spec}})
	}
	b.temporal.Wait("p1", "vm web-01 is being exported by job j0")
	v := b.get("/jobs/p1").ok()
	require.Equal(t, "pending", v["status"])
	require.Equal(t, "admit", v["progress"].(map[string]any)["phase"])
	require.Equal(t, "vm web-01 is being exported by job j0", v["progress"].(map[string]any)["waiting_for"])

	calls := b.temporal.Calls("QueryWorkflow")
	for _, j := range b.get("/jobs/query").ok()["jobs"].([]any) {
		j := j.(map[string]any)
		want := map[any]string{"p1": "vm web-01 is being exported by job j0", "p2": "its turn"}[j["id"]]
		require.Equal(t, want, j["progress"].(map[string]any)["waiting_for"])
	}
	require.Equal(t, calls+1, b.temporal.Calls("QueryWorkflow"), "one question for all of a list")
}

// Without a worker a job is what its memo and its heartbeats say, and answers come all the same.
func TestNoWorkerAnswers(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	b.temporal.Deaf(true)
	for range 5 {
		require.Equal(t, "running", b.get("/jobs/j").ok()["status"])
	}
	require.Equal(t, 1, b.temporal.Calls("QueryWorkflow"), "only the first waited")
}

// Phases count their own bytes; what comes behind the last copy is all of them.
func TestProgressOfPhases(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		phase   job.Phase
		disks   []job.DiskProgress
		percent float64
	}{
		{job.Inspect, nil, 0},
		{job.Transfer, []job.DiskProgress{{Disk: "1", Phase: job.Transfer, Done: 10, Total: 100}, {Disk: "2", Phase: job.Transfer, Done: 100, Total: 100}}, 55},
		{job.Verify, []job.DiskProgress{{Disk: "1", Phase: job.Verify, Done: 50, Total: 100}, {Disk: "2", Phase: job.Verify, Total: 100}}, 25},
		{job.Manifest, []job.DiskProgress{{Disk: "1", Phase: job.Verify, Done: 100, Total: 100}, {Disk: "2", Phase: job.Verify, Done: 100, Total: 100}}, 100},
		{job.Transfer, []job.DiskProgress{{Disk: "1", Phase: job.Transfer, Done: 99_999, Total: 100_000}}, 99.9},
		{job.Transfer, []job.DiskProgress{{Disk: "1", Phase: job.Transfer}}, 0},
	} {
		r := running("j")
		r.Snapshot.Progress.Phase, r.Snapshot.Progress.Disks = c.phase, c.disks
		b.temporal.Add(r)
		p := b.get("/jobs/j").ok()["progress"].(map[string]any)
		require.Equal(t, c.percent, p["percent_complete"], c.phase)
	}
}

func TestControl(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	v := b.post("/jobs/j/pause", "").ok()
	require.Equal(t, "j", v["job_id"])
	require.Equal(t, true, v["paused"])
	require.Equal(t, true, b.get("/jobs/j").ok()["progress"].(map[string]any)["paused"])
	v = b.send(http.MethodPut, "/jobs/j/limit", `{"limit_mbps": 12.5}`).ok()
	require.Equal(t, 12.5, v["limit_mbps"])
	require.Equal(t, true, v["paused"])
	v = b.post("/jobs/j/resume", "").ok()
	require.Equal(t, false, v["paused"])
	require.Equal(t, 12.5, v["limit_mbps"])

	for body, want := range map[string]string{
		`{}`: "limit_mbps is required", `{"limit_mbps": -1}`: "limit_mbps must be number >= 0", `{"limit_mbps": "fast"}`: "limit_mbps must be number",
		`{"limit_mbps": 1, "limit": 2}`: "limit is not known", `{"limit_mbps": 2000000}`: "limit_mbps must be number <= 1",
	} {
		a := b.send(http.MethodPut, "/jobs/j/limit", body)
		require.Contains(t, a.refused(http.StatusUnprocessableEntity), want)
		require.NotEmpty(t, a.json()["errors"].([]any)[0].(map[string]any)["field"])
	}
	b.send(http.MethodPut, "/jobs/j/limit", `{"limit_mbps":`).refused(http.StatusBadRequest)

	b.temporal.Refuse("the job is ending; nothing is left to pause or limit")
	require.Contains(t, b.post("/jobs/j/pause", "").refused(http.StatusConflict), "nothing is left to pause")
	b.temporal.Change("j", func(r *apiservertest.Run) { r.End(job.Cancelled, nil, "cancelled on request") })
	require.Contains(t, b.post("/jobs/j/pause", "").refused(http.StatusConflict), "it is cancelled")
}

// Trouble with Temporal is told as such, without its own words.
func TestTemporalAway(t *testing.T) {
	b := start(t)
	for err, status := range map[error]int{
		serviceerror.NewUnavailable("dial tcp 10.0.0.7: refused"): http.StatusServiceUnavailable,
		serviceerror.NewDeadlineExceeded("no answer of 10.0.0.7"): http.StatusGatewayTimeout,
		serviceerror.NewResourceExhausted(0, "rps of 10.0.0.7"):   http.StatusServiceUnavailable,
		errors.New("panic at 10.0.0.7 with token=secret"):         http.StatusInternalServerError,
	} {
		for _, m := range []string{"DescribeWorkflowExecution", "ListWorkflow", "CountWorkflow"} {
			b.temporal.Fail(m, err)
		}
		for _, path := range []string{"/jobs/j", "/jobs/query", "/status"} {
			a := b.get(path)
			require.NotContains(t, a.refused(status), "10.0.0.7")
			require.Contains(t, b.log.String(), a.header.Get("X-Request-Id"))
		}
		require.Contains(t, b.log.String(), "10.0.0.7", "the log has it")
	}
}
