package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"

	"hypersdk/apiserver"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// One job, a list, or an object with a list; JSON or YAML, by its type or by its looks.
func TestSubmitTakesEveryForm(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		name, contentType, body string
		jobs                    int
	}{
		{"one", "application/json", web, 1},
		{"list", "application/json; charset=utf-8", "[" + web + "," + web + "]", 2},
		{"object", "application/json", `{"jobs": [` + web + `]}`, 1},
		{"json without type", "", web, 1},
		{"json from curl -d", "application/x-www-form-urlencoded", web, 1},
		{"json as text", "text/plain", web, 1},
		{"byte order mark", "application/json", "\xef\xbb\xbf" + web, 1},
		{"yaml", "application/yaml", "vm_path: /dc/vm/web-01\noutput_path: /exports\n", 1},
		{"yaml list", "application/x-yaml", "- vm_path: /dc/vm/web-01\n  output_path: /exports\n- vm_path: db-01\n  output_path: /exports\n", 2},
		{"yaml object", "text/yaml", "jobs:\n  - {vm_path: web-01, output_path: /exports}\n", 1},
		{"yaml without type", "", "# nightly\nvm_path: web-01\noutput_path: /exports\n", 1},
		{"json as yaml", "application/yaml", web, 1},
		{"yaml with an anchor", "application/yaml", "jobs:\n  - &a {vm_path: web-01, output_path: /exports}\n  - {<<: *a, vm_path: db-01}\n", 2},
		{"nulls", "application/json", `{"vm_path": "web-01", "output_path": "/exports", "format": null, "options": null, "metadata": null, "vcenter": null}`, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.send(http.MethodPost, "/jobs/submit", c.body, "Content-Type", c.contentType).ok()
			require.Len(t, a["job_ids"], c.jobs)
			require.EqualValues(t, c.jobs, a["accepted"])
			require.EqualValues(t, 0, a["rejected"])
			require.Empty(t, a["errors"])
		})
	}
}

// What is asked for reaches the workflow, in one spelling.
func TestSubmitSpellings(t *testing.T) {
	b := start(t)
	yes, no := true, false
	for _, c := range []struct {
		name, body string
		want       job.Spec
	}{
		{"defaults", web, spec},
		{"all", `{"name": "n", "vm_path": "v", "output_path": "/o", "format": "raw", "compress": true, "thin": true,
			"connection": "lab", "metadata": {"ticket": 7}, "options": {"parallel_downloads": 4, "overwrite": true, "transport": "datastore",
			"quiesce": true, "limit_mbps": 1.5, "priority": 9, "no_verify": true}}`,
			job.Spec{Name: "n", VMPath: "v", OutputPath: "/o", Format: "raw", Compress: true, Thin: &yes, Connection: "lab",
				Metadata: map[string]any{"ticket": 7.0}, Options: job.Options{ParallelDownloads: 4, Overwrite: true,
					Transport: "datastore", Quiesce: true, LimitMBps: 1.5, Priority: 9, NoVerify: true}}},
		{"output_dir", `{"vm_path": "v", "output_dir": "/o", "thin": false}`, job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2", Thin: &no}},
		{"both folders alike", `{"vm_path": "v", "output_dir": "/o", "output_path": "/o"}`, job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2"}},
		{"slashes", `{"vm_path": "v", "output_path": "/o//p/"}`, job.Spec{VMPath: "v", OutputPath: "/o/p", Format: "qcow2"}},
		{"compression", `{"vm_path": "v", "output_path": "/o", "compression": "gzip"}`, job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2", Compress: true}},
		{"compression off", `{"vm_path": "v", "output_path": "/o", "compression": "none"}`, job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2"}},
		{"compress by name", `{"vm_path": "v", "output_path": "/o", "compress": "ZLIB"}`, job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2", Compress: true}},
		{"older client", `{"id": "x", "vm_path": "v", "output_dir": "/o", "created_at": "2024-01-01T00:00:00Z", "datacenter": "dc",
			"export_method": "", "method": "govc", "compress": false, "insecure": false, "username": "u",
			"options": {"parallel_downloads": 4, "remove_cdrom": false, "show_individual_progress": true, "enable_pipeline": false,
			"compress_level": 6, "hyper2kvm_path": "", "libvirt_uri": "qemu:///system"}}`,
			job.Spec{VMPath: "v", OutputPath: "/o", Format: "qcow2", Options: job.Options{ParallelDownloads: 4}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run, ok := b.temporal.Run(b.submit(c.body)[0])
			require.True(t, ok)
			require.Equal(t, c.want, run.Memo[workflows.MemoSpec])
		})
	}
}

// Every fault is found at once and named by its field; a good job beside it is accepted.
func TestSubmitFaults(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		name, body string
		want       []string // "field: part of the message"
	}{
		{"nothing", `{}`, []string{"vm_path: is required", "output_path: is required"}},
		{"blank", `{"vm_path": "  ", "output_path": ""}`, []string{"vm_path: is required", "output_path: is required"}},
		{"types", `{"vm_path": 7, "output_path": ["/x"], "compress": 3, "thin": "yes", "options": [], "metadata": "m", "name": {}}`,
			[]string{"vm_path: must be a string", "output_path: must be a string", "compress: must be true, false", "thin: must be true or false",
				"options: must be an object", "metadata: must be an object", "name: must be a string"}},
		{"options", `{"vm_path": "v", "output_path": "/o", "options": {"parallel_downloads": 65, "priority": -1, "limit_mbps": -5, "transport": "magic"}}`,
			[]string{"options.parallel_downloads: between 0 and 64", "options.priority: between 0 and 100", "options.limit_mbps: must not be negative",
				`options.transport: it has: datastore`}},
		{"option types", `{"vm_path": "v", "output_path": "/o", "options": {"parallel_downloads": 1.5, "limit_mbps": "fast"}}`,
			[]string{"options.parallel_downloads: must be a whole number", "options.limit_mbps: must be a number"}},
		{"near miss", `{"vm_path": "v", "output_path": "/o", "fromat": "raw", "VM_Path": "x", "options": {"overwrit": true}, "nonsense": 1}`,
			[]string{`fromat: did you mean "format"?`, `VM_Path: did you mean "vm_path"?`, `options.overwrit: did you mean "overwrite"?`, "nonsense: is not known"}},
		{"format", `{"vm_path": "v", "output_path": "/o", "format": "ova"}`, []string{`format: "ova" is not a disk format that this build has; it has: qcow2, raw`}},
		{"features", `{"vm_path": "v", "output_path": "/o", "incremental": true, "options": {"remove_cdrom": true}}`,
			[]string{"incremental: is not available in this build", "options.remove_cdrom: is not available in this build"}},
		{"relative", `{"vm_path": "v", "output_path": "exports"}`, []string{"output_path: must be an absolute path"}},
		{"up", `{"vm_path": "v", "output_path": "/exports/../etc"}`, []string{`output_path: must not contain ".."`}},
		{"nul", `{"vm_path": "a\u0000b", "output_path": "/a\nb"}`, []string{"vm_path: control characters", "output_path: control characters"}},
		{"long", fmt.Sprintf(`{"vm_path": %q, "output_path": %q}`, strings.Repeat("v", 3000), "/"+strings.Repeat("o", 5000)),
			[]string{"vm_path: is too long", "output_path: is too long"}},
		{"two folders", `{"vm_path": "v", "output_path": "/o", "output_dir": "/p"}`, []string{"output_dir: must not differ"}},
		{"contradiction", `{"vm_path": "v", "output_path": "/o", "compress": true, "thin": false}`, []string{"thin: must not be false together with compress"}},
		{"metadata", fmt.Sprintf(`{"vm_path": "v", "output_path": "/o", "metadata": {"m": %q}}`, strings.Repeat("x", 20000)), []string{"metadata: is too large"}},
		{"credentials", `{"vm_path": "v", "output_path": "/o", "vcenter": {"server": "vc", "pasword": "p"}}`,
			[]string{`vcenter.pasword: did you mean "password"?`, "vcenter.username: is required", "vcenter.password: is required"}},
		{"credentials and connection", `{"vm_path": "v", "output_path": "/o", "connection": "lab", "vcenter": {"server": "vc", "username": "u", "password": "p"}}`,
			[]string{"connection: must not be given together with credentials"}},
		{"somebody else's credentials", `{"vm_path": "v", "output_path": "/o", "connection": "job-1"}`, []string{"connection: must not begin with"}},
		{"no object", `"web-01"`, []string{": must be an object"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(b.temporal.IDs())
			for _, form := range []struct {
				body   string
				status int
				at     float64
			}{
				{"[" + c.body + "]", http.StatusUnprocessableEntity, 0},
				{"[" + web + "," + c.body + "]", http.StatusOK, 1},
			} {
				a := b.post("/jobs/submit", form.body)
				require.Equal(t, form.status, a.status, a.body)
				v := a.json()
				require.EqualValues(t, 1, v["rejected"])
				require.Len(t, v["faults"], len(c.want), a.body)
				require.Len(t, v["errors"], len(c.want))
				var said []string
				for i, f := range v["faults"].([]any) {
					f := f.(map[string]any)
					require.Equal(t, form.at, f["job"])
					said = append(said, fmt.Sprintf("%s: %s", f["field"], f["message"]))
					require.Contains(t, v["errors"].([]any)[i], fmt.Sprintf("job %v: ", form.at))
				}
				for _, w := range c.want {
					field, message, _ := strings.Cut(w, ": ")
					require.Condition(t, func() bool {
						for _, s := range said {
							if strings.HasPrefix(s, field+": ") && strings.Contains(s, message) {
								return true
							}
						}
						return false
					}, "%q is not in %q", w, said)
				}
				if form.status != http.StatusOK {
					require.Contains(t, a.refused(form.status), "no job was accepted: job 0: ")
					require.Empty(t, v["job_ids"])
				}
			}
			require.Len(t, b.temporal.IDs(), before+1, "only the good job was started")
		})
	}
}

// A body that holds no jobs at all.
func TestSubmitBodies(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		name, contentType, body string
		status                  int
		says                    string
	}{
		{"empty", "application/json", " \n", http.StatusBadRequest, "empty"},
		{"nothing", "application/json", "", http.StatusBadRequest, "body"},
		{"broken json", "application/json", `{"vm_path": `, http.StatusBadRequest, "not valid JSON"},
		{"broken json of no type", "", `{"vm_path": `, http.StatusBadRequest, "not valid JSON"},
		{"two values", "application/json", web + web, http.StatusBadRequest, "not valid JSON"},
		{"broken yaml", "application/yaml", "a: [", http.StatusBadRequest, "not valid YAML"},
		{"two documents", "application/yaml", "vm_path: a\n---\nvm_path: b\n", http.StatusBadRequest, "more than one YAML document"},
		{"yaml with odd keys", "application/yaml", "1: a\n", http.StatusBadRequest, "JSON does not know"},
		{"yaml with infinity", "application/yaml", "vm_path: .inf\n", http.StatusBadRequest, "JSON does not know"},
		{"yaml bomb", "application/yaml", bomb(), http.StatusBadRequest, "not valid YAML"},
		{"large yaml", "application/yaml", "a: " + strings.Repeat("b", 1<<20), http.StatusRequestEntityTooLarge, "too large"},
		{"word", "application/json", `"web-01"`, http.StatusBadRequest, "should be a job"},
		{"number", "", `7`, http.StatusBadRequest, "should be a job"},
		{"no jobs", "application/json", `[]`, http.StatusUnprocessableEntity, "jobs must not be empty"},
		{"no jobs either", "application/json", `{"jobs": []}`, http.StatusUnprocessableEntity, "jobs must not be empty"},
		{"jobs of another kind", "application/json", `{"jobs": {}}`, http.StatusUnprocessableEntity, "jobs must be a list"},
		{"beside jobs", "application/json", `{"jobs": [` + web + `], "format": "raw"}`, http.StatusUnprocessableEntity, `format is not known beside "jobs"`},
		{"too many", "application/json", "[" + strings.Repeat(web+",", 1000) + web + "]", http.StatusUnprocessableEntity, "too many"},
		{"deep", "application/json", strings.Repeat("[", 20000), http.StatusBadRequest, "not valid JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.send(http.MethodPost, "/jobs/submit", c.body, "Content-Type", c.contentType)
			require.Contains(t, a.refused(c.status), c.says)
		})
	}
	require.Empty(t, b.temporal.IDs())
}

// bomb is a few lines that are 10^9 words.
func bomb() string {
	var s strings.Builder
	s.WriteString("a0: &a0 [x]\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&s, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return s.String()
}

func TestSubmitTooLarge(t *testing.T) {
	b := start(t)
	const limit = 10 << 20
	pad := func(n int) string {
		body := `{"vm_path": "v", "output_path": "/o", "name": ""}`
		return body + strings.Repeat(" ", n-len(body))
	}
	require.Equal(t, http.StatusOK, b.post("/jobs/submit", pad(limit)).status)
	require.Contains(t, b.post("/jobs/submit", pad(limit+1)).refused(http.StatusRequestEntityTooLarge), "10485760")
	require.Contains(t, b.post("/jobs/query", pad(limit+1)).refused(http.StatusRequestEntityTooLarge), "10485760")
}

// The same request under the same key is one request; another one is refused.
func TestIdempotencyKey(t *testing.T) {
	b := start(t)
	const bad = `{"output_path": "/exports"}`
	post := func(key, body string) answer {
		return b.send(http.MethodPost, "/jobs/submit", body, "Idempotency-Key", key)
	}
	first := post("k", "["+bad+","+web+","+web+"]").ok()
	require.Len(t, ids(first), 2)
	require.EqualValues(t, 1, first["rejected"])

	again := post("k", " [ "+bad+", "+web+","+web+"]").ok()
	require.Equal(t, ids(first), ids(again), "however it is written")
	require.Len(t, b.temporal.IDs(), 2)

	for _, other := range []string{"[" + web + "]", "[" + bad + "," + web + "]", `{"vm_path": "db-01", "output_path": "/exports"}`} {
		require.Contains(t, post("k", other).refused(http.StatusConflict), "idempotency key")
	}
	require.NotEqual(t, ids(first), ids(post("other", "["+bad+","+web+","+web+"]").ok()))
	require.NotEqual(t, b.submit(web), b.submit(web), "no key: two jobs")
	post(strings.Repeat("k", 201), web).refused(http.StatusUnprocessableEntity)

	t.Run("a crash in between", func(t *testing.T) {
		b.temporal.Fail("ExecuteWorkflow", serviceerror.NewUnavailable("away"))
		require.Contains(t, post("crash", "["+web+","+web+"]").refused(http.StatusServiceUnavailable), "workflow engine")
		b.temporal.Fail("ExecuteWorkflow", nil)
		require.Len(t, ids(post("crash", "["+web+","+web+"]").ok()), 2)
	})
	t.Run("at once", func(t *testing.T) {
		var wg sync.WaitGroup
		got := make([][]string, 8)
		for i := range got {
			wg.Go(func() { got[i] = ids(post("race", web).ok()) })
		}
		wg.Wait()
		for _, g := range got {
			require.Equal(t, got[0], g)
		}
	})
}

// Credentials go into the store, under the job's name, and nowhere else.
func TestSubmitCredentials(t *testing.T) {
	b := start(t)
	const secret = "s3cr3t-pa55"
	body := `{"vm_path": "web-01", "output_path": "/exports", "vcenter": {"server": "vc.example.org", "username": "u", "password": "` + secret + `", "insecure": true}}`
	id := b.submit(body)[0]
	require.JSONEq(t, `{"server": "vc.example.org", "username": "u", "password": "`+secret+`", "insecure": true}`, b.connections.Stored("job-"+id))
	run, _ := b.temporal.Run(id)
	require.Equal(t, "job-"+id, run.Memo[workflows.MemoSpec].(job.Spec).Connection, "that is all that the workflow sees")
	history, err := json.Marshal(run.Memo)
	require.NoError(t, err)
	require.NotContains(t, string(history), secret)

	for _, path := range []string{"/jobs/" + id, "/jobs/query?all=true", "/jobs/progress/" + id} {
		a := b.get(path)
		require.Equal(t, http.StatusOK, a.status)
		for _, hidden := range []string{secret, "vc.example.org", "vcenter", "job-" + id} {
			require.NotContains(t, a.body, hidden, path)
		}
	}

	t.Run("older spelling", func(t *testing.T) {
		id := b.submit(`{"vm_path": "v", "output_path": "/o", "vcenter_url": "https://vc/sdk", "username": "u", "password": "p", "insecure": true}`)[0]
		require.JSONEq(t, `{"server": "https://vc/sdk", "username": "u", "password": "p", "insecure": true}`, b.connections.Stored("job-"+id))
	})
	t.Run("repeated", func(t *testing.T) {
		key := []string{"Idempotency-Key", "with-credentials"}
		id := ids(b.send(http.MethodPost, "/jobs/submit", body, key...).ok())[0]
		require.NoError(t, b.connections.Forget(t.Context(), "job-"+id)) // the job has ended
		require.Equal(t, id, ids(b.send(http.MethodPost, "/jobs/submit", body, key...).ok())[0])
		require.Empty(t, b.connections.Stored("job-"+id), "credentials of a job that ended do not come back")
	})
	t.Run("not started", func(t *testing.T) {
		before := b.connections.Names()
		b.temporal.Fail("ExecuteWorkflow", serviceerror.NewUnavailable("away"))
		b.post("/jobs/submit", body).refused(http.StatusServiceUnavailable)
		b.temporal.Fail("ExecuteWorkflow", nil)
		require.Equal(t, before, b.connections.Names())
	})
	t.Run("refused by the driver", func(t *testing.T) {
		b.connections.PutErr = &providers.Error{Op: "vsphere: connection", Reason: providers.Invalid, Msg: "server: is neither a host name nor a URL"}
		require.Contains(t, b.post("/jobs/submit", body).refused(http.StatusUnprocessableEntity), "neither a host name nor a URL")
		b.connections.PutErr = nil
	})
	require.NotContains(t, b.log.String(), secret)
}

func TestSubmitCredentialsInSplitMode(t *testing.T) {
	b := start(t, func(_ *apiserver.Config, d *apiserver.Deps) { d.CanStoreCredentials = false })
	a := b.post("/jobs/submit", `{"vm_path": "web-01", "output_path": "/exports", "vcenter": {"server": "vc", "username": "u", "password": "p"}}`)
	require.Contains(t, a.refused(http.StatusUnprocessableEntity), "name a configured connection")
	require.Equal(t, "vcenter", a.json()["faults"].([]any)[0].(map[string]any)["field"])
}

// An answer of Temporal that was lost is not a job that was lost.
func TestSubmitWhenTheAnswerIsLost(t *testing.T) {
	b := start(t)
	b.temporal.Fail("ExecuteWorkflow", context.DeadlineExceeded)
	require.NotEmpty(t, b.post("/jobs/submit", web).refused(http.StatusGatewayTimeout))
	b.temporal.Fail("DescribeWorkflowExecution", serviceerror.NewUnavailable("away"))
	b.post("/jobs/submit", `{"vm_path": "v", "output_path": "/o", "vcenter": {"server": "vc", "username": "u", "password": "p"}}`).refused(http.StatusGatewayTimeout)
	require.Equal(t, 1, b.connections.Names(), "the job may run: it needs its credentials")
}
