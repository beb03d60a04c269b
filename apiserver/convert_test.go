package apiserver_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

const image = `{"source_path": "/in/a.vmdk", "target_format": "qcow2", "output_path": "/out/a.qcow2"}`

func TestConvertFormat(t *testing.T) {
	b := start(t)
	v := b.post("/convert/format", image).ok()
	require.ElementsMatch(t, []string{"conversion_id", "job_id", "status", "timestamp"}, keys(v))
	id := v["conversion_id"].(string)
	require.Equal(t, id, v["job_id"])

	st := b.get("/convert/status?conversion_id=" + id).ok()
	require.Equal(t, "/in/a.vmdk", st["source_path"])
	require.Equal(t, "/out/a.qcow2", st["output_path"])
	require.Equal(t, "qcow2", st["target_format"])
	require.Equal(t, "pending", st["status"])

	j := b.get("/jobs/" + id).ok()
	require.Equal(t, "convert", j["kind"])
	require.Equal(t, map[string]any{"name": "a.vmdk", "vm_path": "", "output_path": "/out/a.qcow2", "format": "qcow2"}, j["definition"])
	require.Equal(t, map[string]any{
		"target_format": "qcow2", "disks": []any{map[string]any{"source_path": "/in/a.vmdk", "output_path": "/out/a.qcow2"}},
	}, j["conversion"])
	list := b.get("/jobs/query").ok()["jobs"].([]any)
	require.Len(t, list, 1)
	require.Equal(t, id, list[0].(map[string]any)["id"])
	require.EqualValues(t, 1, b.get("/status").ok()["total_jobs"])
	require.Equal(t, "pending", b.get("/jobs/progress/" + id).ok()["status"])
	require.Equal(t, []any{id}, b.post("/jobs/cancel", `{"job_ids": ["`+id+`"]}`).ok()["cancelled"])
}

// Another spelling of a format, and several disks, come to the same.
func TestConvertFormatInOneForm(t *testing.T) {
	b := start(t, withFormats)
	v := b.post("/convert/format", `{"target_format": "VPC", "compress": true, "limit_mbps": 5, "disks": [
		{"source_path": "/in/a.raw", "source_format": "RAW", "output_path": "/out/a.vhd"}, {"source_path": "/in/b.qcow2", "output_path": "/out/b.vhd"}]}`).ok()
	c := b.get("/jobs/" + v["job_id"].(string)).ok()["conversion"].(map[string]any)
	require.Equal(t, "vhd", c["target_format"])
	require.Equal(t, "raw", c["disks"].([]any)[0].(map[string]any)["source_format"])
	require.EqualValues(t, 5, c["limit_mbps"])
}

func TestConvertFormatFaults(t *testing.T) {
	b := start(t)
	for body, fields := range map[string][]string{
		`{}`:                         {"target_format"},
		`{"target_format": "qcow2"}`: {"source_path", "output_path"},
		`{"target_format": "floppy", "source_path": "a", "output_path": "/b"}`:                                      {"target_format", "source_path"},
		`{"target_format": "qcow2", "source_path": "/a", "output_path": "/b", "disks": [{}]}`:                       {"disks[0].source_path", "disks[0].output_path"},
		`{"target_format": "raw", "source_path": "/a", "disks": [{"source_path": "/a", "output_path": "/b"}]}`:      {"disks"},
		`{"target_format": "raw", "disks": [{"source_path": "/a", "output_path": "/b", "colour": 1}]}`:              {"disks[0].colour"},
		`{"target_format": "raw", "disks": [{"source_path": "/a", "output_path": "/a"}]}`:                           {"disks[0].output_path"},
		`{"target_format": "raw", "source_path": "/a", "output_path": "/b", "priority": 101, "preallocation": "x"}`: {"priority", "preallocation"},
	} {
		a := b.post("/convert/format", body)
		a.refused(http.StatusUnprocessableEntity)
		var got []string
		for _, f := range a.json()["errors"].([]any) {
			got = append(got, f.(map[string]any)["field"].(string))
		}
		require.ElementsMatch(t, fields, got, "%s", body)
	}
	b.post("/convert/format", `{`).refused(http.StatusBadRequest)
	b.get("/convert/status").refused(http.StatusUnprocessableEntity)
	require.Equal(t, "no such conversion: nobody", b.get("/convert/status?conversion_id=nobody").refused(http.StatusNotFound))
	export := b.submit(web)[0]
	b.get("/convert/status?conversion_id=" + export).refused(http.StatusNotFound)
}

func TestConvertFormatOnce(t *testing.T) {
	b := start(t)
	key := func(body string) answer {
		return b.send(http.MethodPost, "/convert/format", body, "Idempotency-Key", "k")
	}
	first := key(image).ok()["conversion_id"]
	require.Equal(t, first, key(image).ok()["conversion_id"])
	key(`{"source_path": "/in/b.vmdk", "target_format": "qcow2", "output_path": "/out/a.qcow2"}`).refused(http.StatusConflict)
	require.NotEqual(t, first, b.post("/convert/format", image).ok()["conversion_id"])
	job := b.send(http.MethodPost, "/jobs/submit", web, "Idempotency-Key", "k").ok()
	require.NotEqual(t, first, ids(job)[0], "a key of a job is another one")
}

// withFormats makes a build that writes every format.
func withFormats(_ *apiserver.Config, d *apiserver.Deps) {
	d.Formats = []string{"qcow2", "raw", "vhd", "vmdk"}
}

// A conversion that names its files is complete when they have their names, and before it is not.
func TestConversionProgress(t *testing.T) {
	b := start(t)
	c := job.Conversion{TargetFormat: "qcow2", Disks: []job.ConversionDisk{{SourcePath: "/in/a.vmdk", OutputPath: "/out/a.qcow2"}}}
	at := job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	snap := job.Snapshot{Status: job.Running, StartedAt: &at, UpdatedAt: at, Host: "h1", Progress: job.Progress{
		Phase: job.Name, TotalBytes: 1000, Disks: []job.DiskProgress{{Disk: "/in/a.vmdk", File: "a.qcow2", Phase: job.Verify, Done: 1000, Total: 1000}},
	}}
	b.temporal.Add(apiservertest.Run{ID: "c1", Type: workflows.ConvertWorkflow, Started: at.Time, Snapshot: snap, Memo: map[string]any{
		workflows.MemoSpec: c.Definition(), workflows.MemoConversion: c, workflows.MemoStatus: snap,
	}})
	st := b.get("/convert/status?conversion_id=c1").ok()
	require.EqualValues(t, 100, st["percentage"])
	require.Equal(t, "running", st["status"])
}
