package apiserver_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/apiservertest"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func TestWorkOnChains(t *testing.T) {
	for _, c := range []struct {
		path, body, name string
		want             map[string]any
	}{
		{"check", `{"path":"/b/web-01"}`, "check web-01", map[string]any{}},
		{"check", `{"path":"/b/web-01","depth":"data","limit_mbps":5,"priority":7}`, "check web-01", map[string]any{"depth": "data", "limit_mbps": 5.0, "priority": 7.0}},
		{"merge", `{"path":"/b/web-01","up_to":3}`, "merge web-01 up to point 3", map[string]any{"up_to": 3.0}},
		{"flatten", `{"path":"/b/web-01","target_format":"QCOW2","output_path":"/r"}`, "flatten web-01 at its newest point",
			map[string]any{"target_format": "qcow2", "output_path": "/r"}},
		{"flatten", `{"path":"/b/web-01","target_format":"raw","output_path":"/r/a.img","point":2,"disk":"2000","compress":true,"overwrite":true,"name":"mine"}`, "mine",
			map[string]any{"target_format": "raw", "output_path": "/r/a.img", "point": 2.0, "disk": "2000", "compress": true, "overwrite": true, "name": "mine"}},
		{"delete", `{"path":"/b/web-01","point":4}`, "delete web-01 at point 4", map[string]any{"point": 4.0}},
	} {
		t.Run(c.path+" "+c.body, func(t *testing.T) {
			b := start(t)
			a := b.post("/incremental/"+c.path, c.body)
			require.Equal(t, http.StatusAccepted, a.status, a.body)
			v := a.json()
			require.ElementsMatch(t, []string{"job_id", "status", "timestamp"}, keys(v))
			id := v["job_id"].(string)
			require.Equal(t, "/jobs/"+id, a.header.Get("Location"))
			j := b.get("/jobs/" + id).ok()
			require.Equal(t, "chain", j["kind"])
			c.want["action"], c.want["path"] = c.path, "/b/web-01"
			require.Equal(t, c.want, j["chain"])
			require.Equal(t, c.name, j["definition"].(map[string]any)["name"])
			list := b.get("/jobs/query").ok()["jobs"].([]any)
			require.Len(t, list, 1)
			require.Equal(t, []any{id}, b.post("/jobs/cancel", `{"job_ids": ["`+id+`"]}`).ok()["cancelled"])
		})
	}
}

func TestWorkOnChainsIsRefused(t *testing.T) {
	for _, c := range []struct{ path, body, says string }{
		{"check", `{}`, "path is required"},
		{"check", `{"path":"b"}`, "path must be an absolute path"},
		{"check", `{"path":"/b/../c"}`, `must not contain ".."`},
		{"check", `{"path":"/b/","depth":"data"}`, `must be written as "/b"`},
		{"check", `{"path":"/b","depth":"deep"}`, "depth"},
		{"check", `{"path":"/b","up_to":1}`, "up_to is not known"},
		{"merge", `{"path":"/b"}`, "up_to is required"},
		{"merge", `{"path":"/b","up_to":0}`, "up_to"},
		{"merge", `{"path":"/b","up_to":1,"limit_mbps":-1}`, "limit_mbps"},
		{"flatten", `{"path":"/b"}`, "target_format is required"},
		{"flatten", `{"path":"/b","target_format":"floppy","output_path":"/r"}`, "is not a disk format"},
		{"flatten", `{"path":"/b","target_format":"raw","output_path":"r"}`, "output_path must be an absolute path"},
		{"flatten", `{"path":"/b","target_format":"raw","output_path":"/b"}`, "must not be the folder of the chain"},
		{"flatten", `{"path":"/b","target_format":"raw","output_path":"/","disk":"2000"}`, "must be the path of a file"},
		{"delete", `{"path":"/b","point":-1}`, "point"},
	} {
		b := start(t)
		require.Contains(t, b.post("/incremental/"+c.path, c.body).refused(http.StatusUnprocessableEntity), c.says, c.body)
		require.Empty(t, b.temporal.IDs(), "nothing was started")
	}
}

func TestWorkOnChainsOnce(t *testing.T) {
	b := start(t)
	key := func(path, body string) answer {
		return b.send(http.MethodPost, "/incremental/"+path, body, "Idempotency-Key", "k")
	}
	first := key("merge", `{"path":"/b","up_to":3}`).json()["job_id"]
	require.Equal(t, first, key("merge", `{"path":"/b","up_to":3}`).json()["job_id"])
	key("merge", `{"path":"/b","up_to":4}`).refused(http.StatusConflict)
	key("check", `{"path":"/b"}`).refused(http.StatusConflict)
}

// A check that found damage has failed, and has a result all the same.
func TestAFailedCheckHasAResult(t *testing.T) {
	b := start(t)
	w := job.ChainWork{Action: job.CheckChain, Path: "/b/web-01"}
	b.temporal.Add(apiservertest.Run{ID: "c1", Type: workflows.ChainWorkflow, Memo: map[string]any{
		workflows.MemoSpec: w.Definition(), workflows.MemoChain: w,
	}})
	b.temporal.Change("c1", func(r *apiservertest.Run) {
		r.Snapshot.Reason = string(providers.Corrupt)
		r.End(job.Failed, &job.Result{OutputDir: "/b/web-01", Chain: &job.ChainResult{Action: job.CheckChain, Check: &job.ChainCheck{
			Depth: "links", Damage: 1, Problems: []cbt.Problem{{Point: 2, Disk: "2000", File: "disk0-000002.qcow2", What: "it is missing"}},
		}}}, "1 problems, the first: point 2")
	})
	j := b.get("/jobs/c1").ok()
	require.Equal(t, "failed", j["status"])
	require.Equal(t, "corrupt", j["reason"])
	check := j["result"].(map[string]any)["chain"].(map[string]any)["check"].(map[string]any)
	require.Equal(t, []any{map[string]any{"point": 2.0, "disk": "2000", "file": "disk0-000002.qcow2", "what": "it is missing"}}, check["problems"])
}

func TestListChain(t *testing.T) {
	b := start(t)
	var got job.ChainQuery
	b.temporal.Chains(func(q job.ChainQuery) (*job.ChainView, error) {
		got = q
		return &job.ChainView{ID: "c1", Path: "/b/web-01", Host: "h1", Total: 1, VM: job.ChainVM{ID: "vm-2", Name: "web-01"}, Points: []job.ChainPoint{
			{Number: 1, Disks: []job.ChainDisk{{Disk: "2000", Size: 9, Full: true}}},
		}}, nil
	})
	v := b.post("/incremental/list", `{"path":"/b/web-01"}`).ok()
	require.Equal(t, job.ChainQuery{Path: "/b/web-01"}, got)
	require.Equal(t, "web-01", v["vm"].(map[string]any)["name"])
	require.Len(t, v["points"], 1)
	b.post("/incremental/list", `{"output_path":"/b","vm_path":"vm-2","host":"h1"}`).ok()
	require.Equal(t, job.ChainQuery{Output: "/b", VM: "web-01", Host: "h1"}, got, "the VM by its name")
	require.Empty(t, b.temporal.IDs(), "a list is no job")

	for body, says := range map[string]string{
		`{}`:                                 "path is required",
		`{"path":"b"}`:                       "absolute",
		`{"path":"/b","vm_path":"x"}`:        "must not be given together",
		`{"vm_path":"x"}`:                    "output_path is required",
		`{"output_path":"/b"}`:               "vm_path is required",
		`{"output_path":"b","vm_path":"x"}`:  "absolute",
		`{"path":"/b","connection":"other"}`: "means nothing without vm_path",
	} {
		require.Contains(t, b.post("/incremental/list", body).refused(http.StatusUnprocessableEntity), says, body)
	}
	b.post("/incremental/list", `{"output_path":"/b","vm_path":"nobody"}`).refused(http.StatusNotFound)
	for reason, status := range map[providers.Reason]int{providers.NotFound: 404, providers.Precondition: 409, providers.Corrupt: 502, providers.Denied: 403} {
		b.temporal.Chains(func(job.ChainQuery) (*job.ChainView, error) {
			return nil, temporal.NewNonRetryableApplicationError("chain: no", string(reason), nil)
		})
		require.Equal(t, "chain: no", b.post("/incremental/list", `{"path":"/b"}`).refused(status))
	}
}

// exported adds an export that was completed.
func (b *bench) exported(id string, d job.Spec, ended time.Time, read int64, took time.Duration) {
	snap := job.Snapshot{Status: job.Completed, Result: &job.Result{VMName: "web-01", Host: "host-" + id, Duration: took, Disks: []job.DiskResult{{Read: read}}}}
	b.temporal.Add(apiservertest.Run{ID: id, Status: 2, Started: ended.Add(-took), Closed: ended, Snapshot: snap, Memo: map[string]any{
		workflows.MemoSpec: d, workflows.MemoStatus: snap,
	}})
}

func TestAnalyzeIncremental(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name, body string
		want       job.AnalyzeRequest
	}{
		{"where the last one went", `{"vm_path":"/dc/vm/web-01"}`, job.AnalyzeRequest{Output: "/new", Host: "host-new", RateMBps: 50}},
		{"by another name", `{"vm_path":"vm-2","limit_mbps":20}`, job.AnalyzeRequest{Output: "/new", Host: "host-new", RateMBps: 50, LimitMBps: 20}},
		{"where it was said", `{"vm_path":"web-01","output_path":"/old"}`, job.AnalyzeRequest{Output: "/old", Host: "host-old", RateMBps: 50}},
		{"where nobody went", `{"vm_path":"web-01","output_path":"/other"}`, job.AnalyzeRequest{Output: "/other", RateMBps: 50}},
		{"a VM that was not exported", `{"vm_path":"db-01"}`, job.AnalyzeRequest{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t)
			b.exported("old", job.Spec{VMPath: "web-01", OutputPath: "/old", Incremental: true}, now.Add(-3*time.Hour), 1e6, time.Second)
			b.exported("new", job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/new", Incremental: true}, now.Add(-2*time.Hour), 1e6, time.Second)
			b.exported("full", job.Spec{VMPath: "vm-2", OutputPath: "/full"}, now.Add(-time.Hour), 500e6, 10*time.Second)
			var got job.Operation
			b.temporal.Operate(func(o job.Operation) (*job.Operated, error) {
				got = o
				return &job.Operated{VM: providers.VM{Name: "web-01"}, Message: "yes", Analysis: &job.Analysis{
					CanIncremental: true, Reason: "yes", EstimatedSavingsBytes: 77, VMName: "web-01",
				}}, nil
			})
			v := b.post("/incremental/analyze", c.body).ok()
			require.Equal(t, job.Analyze, got.Action)
			require.Equal(t, c.want, *got.Analyze)
			require.Equal(t, true, v["can_incremental"])
			require.Equal(t, "yes", v["reason"])
			require.EqualValues(t, 77, v["estimated_savings_bytes"])
			require.Equal(t, []any{}, v["disks"])
			require.Equal(t, "completed", v["status"])
			again := b.get("/vms/operations/" + v["operation_id"].(string)).ok()
			require.EqualValues(t, 77, again["analysis"].(map[string]any)["estimated_savings_bytes"])
		})
	}
}

func TestAnalyzeIncrementalIsRefused(t *testing.T) {
	for body, status := range map[string]int{
		`{}`: 422, `{"vm_path":"web-01","output_path":"b"}`: 422, `{"vm_path":"web-01","limit_mbps":-1}`: 422, `{"vm_path":"nobody"}`: 404,
		`{"vm_path":"web-01","connection":"nowhere"}`: 404,
	} {
		b := start(t)
		b.post("/incremental/analyze", body).refused(status)
		require.Empty(t, b.temporal.IDs(), "nothing was started")
	}
	b := start(t)
	b.temporal.Operate(func(job.Operation) (*job.Operated, error) {
		return nil, temporal.NewNonRetryableApplicationError("the chain is in use", string(providers.Precondition), nil)
	})
	require.Equal(t, "the chain is in use", b.post("/incremental/analyze", `{"vm_path":"web-01"}`).refused(http.StatusConflict))
	b.temporal.Operate(nil)
	a := b.post("/incremental/analyze", `{"vm_path":"web-01","timeout":"50ms"}`)
	require.Equal(t, http.StatusAccepted, a.status)
	require.Equal(t, "running", a.json()["status"])
	require.Equal(t, "/vms/operations/"+a.json()["operation_id"].(string), a.header.Get("Location"))
}
