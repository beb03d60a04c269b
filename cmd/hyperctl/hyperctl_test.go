package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/apiserver"
	"hypersdk/apiserver/api"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a daemon's API on a backend in memory, and a terminal to talk to it from.
type lab struct {
	t           *testing.T
	server      *httptest.Server
	temporal    *apiservertest.Temporal
	connections *apiservertest.Connections
	down        atomic.Bool // the daemon hangs up on everybody
	log         output

	env      map[string]string
	in       string
	ask      func(string) (string, error)
	terminal [2]int // its size; 0: the output is none
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, temporal: apiservertest.NewTemporal(), env: map[string]string{}}
	l.connections = &apiservertest.Connections{Default: &apiservertest.Platform{List: []providers.VM{
		{ID: "vm-1", Name: "db-01", Path: "/dc/vm/db-01", PowerState: providers.PowerOff, MemoryMB: 2048, NumCPU: 1},
		{ID: "vm-2", Name: "日本語-ウェブ", Path: "/dc/vm/日本語-ウェブ", PowerState: providers.PowerOn, GuestOS: "Debian GNU/Linux 12 (64-bit)", MemoryMB: 4096, NumCPU: 16, StorageBytes: 123 << 30,
			Firmware: "efi", Hostname: "web", Addresses: []string{"10.0.0.7", "fe80::1"}, Host: "esx-1",
			Disks:     []providers.Disk{{ID: "2000", Label: "Hard disk 1", Size: 40 << 30, Used: 7 << 30, Thin: true, Mode: "persistent", Path: "[ds1] web/web.vmdk"}},
			NICs:      []providers.NIC{{Label: "Network adapter 1", Model: "vmxnet3", MAC: "00:50:56:00:00:01", Network: "VM Network"}},
			Snapshots: []providers.Snapshot{{Name: "before", Created: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}},
		{ID: "vm-3", Name: "evil\x1b[31m\nvm", Path: "/dc/vm/evil\x1b[31m", PowerState: providers.PowerSuspended, NumCPU: 1},
	}}}
	s, err := apiserver.New(apiserver.Config{DefaultFormat: "qcow2", PollInterval: 10 * time.Millisecond}, apiserver.Deps{
		Temporal: l.temporal, Connections: l.connections, CanStoreCredentials: true, Version: "1.2.3", Formats: []string{"qcow2", "raw"},
		TemporalUI: "http://127.0.0.1:8233",
		Logs: func(_ context.Context, _ string, offset int64) ([]byte, int64, error) {
			log := l.log.String()
			return []byte(log[offset:]), int64(len(log)), nil
		},
	})
	require.NoError(t, err)
	l.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.down.Load() {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { s.Close(); l.server.Close() })
	return l
}

// output may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// run is a call of the program.
func (l *lab) run(args ...string) (code int, stdout, stderr string) {
	l.t.Helper()
	var out, errs output
	code = l.call(l.t.Context(), &out, &errs, args...)
	return code, out.String(), errs.String()
}

func (l *lab) call(ctx context.Context, out, errs *output, args ...string) int {
	return run(ctx, args, terminal.Streams{
		In: strings.NewReader(l.in), Out: out, Err: errs, Ask: l.ask,
		Env: func(name string) string {
			if v, ok := l.env[name]; ok || name != "HYPERSDK_SERVER" {
				return v
			}
			return l.server.URL
		},
		Size: func() (int, int, bool) { return l.terminal[0], l.terminal[1], l.terminal[0] > 0 },
	})
}

// ok is a call that succeeds and has nothing to complain of.
func (l *lab) ok(args ...string) string {
	l.t.Helper()
	code, out, errs := l.run(args...)
	require.Zero(l.t, code, "%v: %s", args, errs)
	require.Empty(l.t, errs)
	return out
}

// job adds a job that copies two disks.
func (l *lab) job(id string, change ...func(*apiservertest.Run)) {
	started := job.Time{Time: time.Now().Add(-3*time.Hour - time.Minute)}
	snap := job.Snapshot{Status: job.Running, StartedAt: &started, UpdatedAt: started, Host: "host-1", Progress: job.Progress{
		Phase: job.Transfer, CurrentStep: "copying the disks", Transport: "datastore", Disks: []job.DiskProgress{
			{Disk: "2000", File: "web-01-disk-0.qcow2", Phase: job.Transfer, Total: 40 << 30},
			{Disk: "2001", File: "web-01-disk-1.qcow2", Phase: job.Transfer, Total: 10 << 30},
		}}}
	r := apiservertest.Run{ID: id, Started: started.Time, Snapshot: snap, Memo: map[string]any{
		workflows.MemoSpec:   job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/exports", Format: "qcow2"},
		workflows.MemoStatus: snap,
	}, Activities: []apiservertest.Activity{
		{Beat: &job.DiskProgress{Disk: "2000", Phase: job.Transfer, Done: 10 << 30, Total: 40 << 30, RateMBps: 400}},
		{Beat: &job.DiskProgress{Disk: "2001", Phase: job.Transfer, Done: 10 << 29, Total: 10 << 30, RateMBps: 10}},
	}}
	for _, f := range change {
		f(&r)
	}
	l.temporal.Add(r)
}

func (l *lab) end(id string, state job.State) {
	l.temporal.Change(id, func(r *apiservertest.Run) {
		switch state {
		case job.Completed:
			r.End(state, &job.Result{VMName: "web-01", OutputDir: "/exports/web-01", Files: []string{"/exports/web-01/web-01-disk-0.qcow2", "/exports/web-01/manifest.json"},
				TotalSize: 5 << 30, Duration: 83 * time.Second, Success: true,
				Disks: []job.DiskResult{{File: "web-01-disk-0.qcow2", Format: "qcow2", Size: 40 << 30, Stored: 5 << 30, Digest: "sha256-1m:00ff"}}}, "")
		default:
			r.End(state, nil, "vsphere: snapshot vm-1: denied")
		}
	})
}

var volatile = regexp.MustCompile(`127\.0\.0\.1:\d{4,5}|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+Z)?|Up for +\S+|"uptime": "[^"]*"`)

// golden compares with a file; what differs from run to run is left out.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = volatile.ReplaceAllStringFunc(got, func(s string) string { return strings.Repeat("~", min(len(s), 9)) })
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// What people see.
func TestGolden(t *testing.T) {
	l := newLab(t)
	l.job("job-run")
	l.job("job-wait", func(r *apiservertest.Run) {
		r.Snapshot, r.Activities = job.Snapshot{}, nil
		r.Memo = map[string]any{workflows.MemoSpec: job.Spec{Name: "nightly", VMPath: "db-01", OutputPath: "/exports", Format: "raw"}}
		r.Started = r.Started.Add(-time.Hour)
	})
	l.temporal.Wait("job-wait", "2 jobs ahead; the limit is 4 jobs at once")
	for id, state := range map[string]job.State{"job-done": job.Completed, "job-bad": job.Failed} {
		l.job(id, func(r *apiservertest.Run) { r.Started = r.Started.Add(-time.Duration(len(id)) * 24 * time.Hour) })
		l.end(id, state)
	}
	for name, args := range map[string][]string{
		"query": {"query"}, "query-limit": {"query", "-n", "1"}, "query-status": {"query", "--status", "failed,completed"},
		"status": {"status"}, "status-running": {"status", "job-run"}, "status-waiting": {"status", "job-wait"},
		"status-completed": {"status", "job-done"}, "status-failed": {"status", "job-bad"},
		"vms-list": {"vms", "list"}, "vms-info": {"vms", "info", "vm-2"},
		"json-query": {"query", "--json", "job-bad"}, "json-status": {"status", "--json"}, "json-vms": {"vms", "list", "--json", "--power", "off"},
		"help": {"help"}, "help-submit": {"submit", "--help"},
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, l.ok(args...)) })
	}
	l.terminal = [2]int{60, 20}
	l.env["NO_COLOR"] = "1"
	golden(t, "query-narrow", l.ok("query"))
	delete(l.env, "NO_COLOR")
	require.Contains(t, l.ok("query"), "\x1b[1mJOB")
}

func TestNothingToShow(t *testing.T) {
	l := newLab(t)
	l.connections.Default = &apiservertest.Platform{}
	require.Equal(t, "No jobs.\n", l.ok("query"))
	require.Equal(t, "No VMs.\n", l.ok("vms", "list"))
	require.Equal(t, "[]\n", l.ok("vms", "list", "--json"))
	code, out, errs := l.run("watch")
	require.Zero(t, code)
	require.Empty(t, out)
	require.Contains(t, errs, "no job runs or waits")
}

// Every way to go wrong has its exit code and says what to do.
func TestExitCodes(t *testing.T) {
	l := newLab(t)
	l.job("run")
	l.job("done")
	l.end("done", job.Completed)
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"frobnicate"}, 2, "frobnicate"},
		{[]string{"querry"}, 2, `did you mean "query"?`},
		{[]string{"query", "--frob"}, 2, "--frob"},
		{[]string{"query", "--status", "dead"}, 2, "dead"},
		{[]string{"query", "--limit", "many"}, 2, "many"},
		{[]string{"logs"}, 2, "needs the id of a job"},
		{[]string{"logs", "a", "b"}, 2, "needs the id of a job"},
		{[]string{"cancel"}, 2, "needs the id of a job"},
		{[]string{"limit", "run"}, 2, "needs the id of a job and a number"},
		{[]string{"limit", "run", "fast"}, 2, "no bandwidth limit"},
		{[]string{"limit", "run", "-5"}, 2, "-5"},
		{[]string{"vms", "lst"}, 2, `did you mean "list"?`},
		{[]string{"vms", "list", "--power", "up"}, 2, "up"},
		{[]string{"vms", "list", "--username", "u"}, 2, "belong to --vcenter"},
		{[]string{"submit"}, 2, "name a VM"},
		{[]string{"submit", "web-01"}, 2, "--output"},
		{[]string{"submit", "web-01", "-f", "jobs.yaml"}, 2, "not both"},
		{[]string{"submit", "-f", "-", "--compress"}, 2, "write it into the file"},
		{[]string{"submit", "v", "-o", "/o", "--metadata", "x"}, 2, "key=value"},
		{[]string{"submit", "v", "-o", "/o", "--password", "p"}, 2, "--password"},
		{[]string{"watch", "--interval", "1ms"}, 2, "--interval"},
		{[]string{"--server", "ftp://x", "query"}, 2, "is not a URL"},
		{[]string{"submit", "-f", "/nowhere/jobs.yaml"}, 1, "no such file"},
		{[]string{"pause", "done"}, 1, "the job has ended"},
		{[]string{"cancel", "done"}, 1, "it is completed"},
		{[]string{"cancel", "nobody", "done"}, 1, "no such job: nobody"},
		{[]string{"submit", "v", "-o", "relative"}, 1, "output_path must be an absolute path"},
		{[]string{"cancel", "nobody"}, 3, "no such job: nobody"},
		{[]string{"status", "nobody"}, 3, "no such job: nobody"},
		{[]string{"status", ".."}, 3, "no such job"},
		{[]string{"query", "nobody"}, 3, "no such job: nobody"},
		{[]string{"logs", "nobody"}, 3, "no such job: nobody"},
		{[]string{"watch", "run", "nobody"}, 3, "no such job: nobody"},
		{[]string{"vms", "info", "nobody"}, 3, "no such VM"},
		{[]string{"vms", "list", "--connection", "nobody"}, 3, "no such connection"},
		{[]string{"--server", dead.URL, "query"}, 6, `Start one with "hypervisord"`},
		{[]string{"--server", dead.URL, "watch", "run"}, 6, "connection refused"},
	} {
		code, _, errs := l.run(c.args...)
		require.Equal(t, c.code, code, "%v: %s", c.args, errs)
		require.Contains(t, errs, c.says, "%v", c.args)
		require.NotContains(t, errs, "Usage:")
	}
}

// Something that is no daemon is not mistaken for one.
func TestOtherServers(t *testing.T) {
	l := newLab(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusBadGateway)
		}
		_, _ = w.Write([]byte("<html>\x1b[31mhello"))
	}))
	defer other.Close()
	for _, args := range [][]string{{"status"}, {"query"}} {
		code, _, errs := l.run(append(args, "--server", other.URL)...)
		require.Equal(t, 1, code)
		require.Contains(t, errs, "not that of a HyperSDK daemon")
		require.NotContains(t, errs, "\x1b")
	}
}

func TestServerFromFlagOverEnvironment(t *testing.T) {
	l := newLab(t)
	l.env["HYPERSDK_SERVER"] = "http://127.0.0.1:1"
	require.NotEmpty(t, l.ok("status", "--server", l.server.URL))
	require.NotEmpty(t, l.ok("status", "-s", strings.TrimPrefix(l.server.URL, "http://")), "a host and a port do")
}

// memo is what a job was submitted with.
func (l *lab) memo(id string) job.Spec {
	l.t.Helper()
	r, ok := l.temporal.Run(id)
	require.True(l.t, ok)
	return r.Memo[workflows.MemoSpec].(job.Spec)
}

func TestSubmitFlags(t *testing.T) {
	l := newLab(t)
	out := l.ok("submit", "/dc/vm/web-01", "--vm", "db-01", "-o", "/exports", "--format", "raw", "--thick", "--name", "n", "--metadata", "ticket=7",
		"--metadata", "a=b=c", "--overwrite", "--quiesce", "--limit", "2.5", "--priority", "9", "--parallel", "4", "--no-verify", "--connection", "lab")
	ids := strings.Fields(out)
	require.Len(t, ids, 2)
	thin := false
	want := job.Spec{Name: "n", VMPath: "db-01", OutputPath: "/exports", Format: "raw", Thin: &thin, Connection: "lab", Metadata: map[string]any{"ticket": "7", "a": "b=c"},
		Options: job.Options{Overwrite: true, Quiesce: true, LimitMBps: 2.5, Priority: 9, ParallelDownloads: 4, NoVerify: true}}
	require.Equal(t, want, l.memo(ids[0]))
	want.VMPath = "/dc/vm/web-01"
	require.Equal(t, want, l.memo(ids[1]))
	id := strings.TrimSpace(l.ok("submit", "--vm", "web-01", "-o", "/exports", "--compress"))
	require.True(t, l.memo(id).Compress)

	var v api.Submitted
	require.NoError(t, json.Unmarshal([]byte(l.ok("submit", "web-01", "-o", "/exports", "--json")), &v))
	require.Equal(t, 1, v.Accepted)
	require.Equal(t, l.ok("submit", "web-01", "-o", "/e", "--key", "k"), l.ok("submit", "web-01", "-o", "/e", "--key", "k"))
}

func TestSubmitFile(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	const yaml, jsonText = "- {vm_path: a, output_path: /o}\n- {vm_path: b, output_path: /o}\n", `{"jobs": [{"vm_path": "a", "output_path": "/o"}]}`
	require.Len(t, strings.Fields(l.ok("submit", "-f", file("jobs.yaml", yaml))), 2)
	require.Len(t, strings.Fields(l.ok("submit", "--file", file("jobs.json", jsonText))), 1)
	require.Len(t, strings.Fields(l.ok("submit", "--file", file("jobs", jsonText))), 1)
	l.in = yaml
	require.Len(t, strings.Fields(l.ok("submit", "-f", "-")), 2)

	l.in = "- {vm_path: a, output_path: /o}\n- {vm_pth: b, output_path: /o}\n"
	code, out, errs := l.run("submit", "-f", "-")
	require.Equal(t, 1, code)
	require.Len(t, strings.Fields(out), 1, "the good one is submitted")
	require.Contains(t, errs, `hyperctl: job 1: vm_pth is not known; did you mean "vm_path"?`)
	l.in = "{{{"
	code, out, errs = l.run("submit", "-f", "-")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Contains(t, errs, "not valid")
	l.in = strings.Repeat(" ", 11<<20)
	code, _, errs = l.run("submit", "-f", "-")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "larger than 10 MiB")
}

// A password comes from everywhere but the command line.
func TestPasswords(t *testing.T) {
	l := newLab(t)
	l.connections.Once = &apiservertest.Platform{}
	path := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(path, []byte("from file\n"), 0o600))
	submit := []string{"submit", "web-01", "-o", "/o", "--vcenter", "vc", "--username", "u"}
	stored := func(args ...string) string {
		t.Helper()
		id := strings.TrimSpace(l.ok(append(submit, args...)...))
		var c api.Credentials
		require.NoError(t, json.Unmarshal([]byte(l.connections.Stored("job-"+id)), &c))
		require.Equal(t, "vc", c.Server)
		return c.Password
	}
	code, _, errs := l.run(submit...)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "GOVC_PASSWORD")
	l.ask = func(prompt string) (string, error) {
		require.Equal(t, "Password for u at vc: ", prompt)
		return "asked for", nil
	}
	require.Equal(t, "asked for", stored())
	l.env["GOVC_PASSWORD"] = "from environment"
	require.Equal(t, "from environment", stored())
	require.Equal(t, "from file", stored("--password-file", path))
	l.in = "from standard input\n"
	require.Equal(t, "from standard input", stored("--password-file", "-"))
	l.env["GOVC_USERNAME"] = "u"
	submit = submit[:len(submit)-2]
	require.Equal(t, "from environment", stored())
	require.Equal(t, "No VMs.\n", l.ok("vms", "list", "--vcenter", "vc"))

	l.ask, l.env["GOVC_PASSWORD"] = func(string) (string, error) { return "", errors.New("no terminal") }, ""
	code, _, errs = l.run(submit...)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "no terminal")
}

func TestSteer(t *testing.T) {
	l := newLab(t)
	l.job("j1")
	require.Equal(t, "j1 is paused, without a limit\n", l.ok("pause", "j1"))
	require.Equal(t, "j1 is paused, limited to 50 MB/s\n", l.ok("limit", "j1", "50"))
	require.Equal(t, "j1 goes on, limited to 50 MB/s\n", l.ok("resume", "j1"))
	require.Equal(t, "j1 goes on, without a limit\n", l.ok("limit", "j1", "0"))
	require.JSONEq(t, `true`, regexp.MustCompile(`"paused": (\w+)`).FindStringSubmatch(l.ok("pause", "j1", "--json"))[1])
	require.Equal(t, "j1\n", l.ok("cancel", "j1"))
	r, _ := l.temporal.Run("j1")
	require.Equal(t, 1, r.Cancelled)
}

func TestCompletion(t *testing.T) {
	l := newLab(t)
	l.job("j1")
	l.job("j2")
	l.end("j2", job.Failed)
	complete := func(args ...string) string {
		_, out, _ := l.run(append([]string{"__complete"}, args...)...)
		return out
	}
	require.Contains(t, complete("logs", ""), "j1\tweb-01, running\n")
	require.Contains(t, complete("logs", ""), "j2\tweb-01, failed\n")
	require.NotContains(t, complete("logs", "j1", ""), "j2", "one job has a log")
	require.NotContains(t, complete("cancel", ""), "j2", "it has ended")
	require.NotContains(t, complete("pause", "j1", ""), "j1", "it is named already")
	require.Contains(t, complete("vms", "info", ""), "/dc/vm/db-01")
	require.NotContains(t, complete("vms", "info", ""), "\x1b")
	require.Contains(t, complete("query", "--status", ""), "running\n")
	l.down.Store(true)
	require.NotContains(t, complete("logs", ""), "j1")
	for shell, word := range map[string]string{"bash": "complete -o default", "zsh": "#compdef hyperctl", "fish": "complete -c hyperctl"} {
		require.Contains(t, l.ok("completion", shell), word)
	}
}

func TestVersion(t *testing.T) {
	l := newLab(t)
	require.Regexp(t, `^hyperctl \S+\n$`, l.ok("version"))
	require.Regexp(t, `^hyperctl \S+\n$`, l.ok("--version"))
	require.Contains(t, l.ok("version", "--json"), `"version"`)
}

// The digest of a disk does not depend on how it is stored.
func TestImageDigest(t *testing.T) {
	l := newLab(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("disk"), 1<<19), 0o600))
	out := l.ok("image", "digest", "-f", "raw", path)
	require.Regexp(t, `^sha256-1m:[0-9a-f]{64}  `, out)
	require.Equal(t, out, l.ok("image", "digest", "-f", "raw", path))
	require.Contains(t, l.ok("image", "digest", "-f", "raw", "--json", path), `"size": 2097152`)
	code, _, errs := l.run("image", "digest", path)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "a raw disk has to be named so")
	code, _, _ = l.run("image", "digest", "-f", "floppy", path)
	require.Equal(t, 2, code)
	code, _, _ = l.run("image", "digest", t.TempDir())
	require.Equal(t, 1, code)
}
