package endtoend

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	api "hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// Exit codes that hyperctl promises to scripts.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitJobFailed   = 4
	exitCancelled   = 5
	exitUnreachable = 6
	exitInterrupted = 130
)

// says runs hyperctl, which must end with code, and answers its standard output.
func (l *lab) says(code int, args ...string) string {
	l.t.Helper()
	out, errs, got := l.hyperctl(args...)
	require.Equal(l.t, code, got, "hyperctl %s\n%s%s", strings.Join(args, " "), out, errs)
	if code != 0 {
		require.NotContains(l.t, errs, "panic")
	}
	return out
}

// saysJSON is says with --json, read into a value.
func (l *lab) saysJSON(into any, args ...string) {
	l.t.Helper()
	out := l.says(0, append(args, "--json")...)
	require.NoError(l.t, json.Unmarshal([]byte(out), into), "%s", out)
}

// follow starts a hyperctl that goes on by itself.
func (l *lab) follow(args ...string) *process {
	l.t.Helper()
	return start(l.t, []string{"HYPERSDK_SERVER=" + l.server()}, "hyperctl", args...)
}

func TestHyperctl(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 64*mib), vm("web-02", 4*mib), vm("db-01", 4*mib)}})
	require.Empty(t, l.says(exitUnreachable, "query"), "nothing listens yet")
	l.up()
	const web = "/DC0/vm/web-01"

	t.Run("vms", func(t *testing.T) {
		require.Regexp(t, `(?m)^web-01 +on .*/DC0/vm/web-01$`, l.says(0, "vms", "list"))
		var vms []providers.VM
		l.saysJSON(&vms, "vms", "list", "--name", "WEB")
		require.Len(t, vms, 2)
		l.saysJSON(&vms, "vms", "list", "--power", "suspended")
		require.Empty(t, vms)
		var info providers.VM
		l.saysJSON(&info, "vms", "info", "web-01")
		require.Equal(t, web, info.Path)
		require.Len(t, info.Disks, 1)
		require.EqualValues(t, 64*mib, info.Disks[0].Size)
		require.Contains(t, l.says(0, "vms", "info", web), "64 MiB")
		l.says(exitNotFound, "vms", "info", "nobody")
		l.says(exitUsage, "vms", "list", "--power", "half")
	})

	t.Run("a job from its beginning to its end", func(t *testing.T) {
		id := strings.TrimSpace(l.says(0, "submit", web, "--output", l.exports, "--format", "qcow2", "--compress",
			"--name", "nightly", "--metadata", "ticket=4711", "--limit", "4"))
		l.moved(id, mib)
		watch, logs, interrupted := l.follow("watch", id), l.follow("logs", "-f", id), l.follow("watch", id, "--json")

		require.Regexp(t, id+` +nightly +running +transfer`, l.says(0, "query"))
		var jobs api.Jobs
		l.saysJSON(&jobs, "query", "--status", "running")
		require.Len(t, jobs.Jobs, 1)
		require.Equal(t, map[string]any{"ticket": "4711"}, jobs.Jobs[0].Definition.Metadata)
		l.saysJSON(&jobs, "query", "--status", "failed,cancelled")
		require.Empty(t, jobs.Jobs)
		require.Contains(t, l.says(0, "status", id), "nightly")
		require.Regexp(t, `1 running`, l.says(0, "status"))

		require.Contains(t, l.says(0, "pause", id), "is paused")
		l.until(id, 10*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused })
		require.Contains(t, l.says(0, "query"), "paused")
		require.Contains(t, l.says(0, "resume", id), "goes on")
		var now api.Controlled
		l.saysJSON(&now, "limit", id, "3.5")
		require.InDelta(t, 3.5, now.LimitMBps, 0)

		l.eventually(10*time.Second, "the watch has shown something", func() bool { return interrupted.output() != "" })
		require.NoError(t, interrupted.cmd.Process.Signal(os.Interrupt))
		require.Equal(t, exitInterrupted, interrupted.wait(10*time.Second))
		require.Contains(t, l.says(0, "limit", id, "0"), "without a limit")
		require.Zero(t, watch.wait(time.Minute), watch.output())
		require.Regexp(t, `\d\d:\d\d:\d\d nightly  transfer  \d`, watch.output(), "plain lines where there is no terminal")
		require.Contains(t, watch.output(), "completed")
		require.NotContains(t, watch.output(), "\x1b", "nothing for terminals where there is none")
		require.Zero(t, logs.wait(time.Minute), logs.output())
		require.Contains(t, logs.output(), "job completed")

		var done job.Job
		l.saysJSON(&done, "status", id)
		require.Equal(t, job.Completed, done.Status)
		l.same(done, "web-01")
		require.Contains(t, l.says(0, "status", id), done.Result.Disks[0].Digest)
		require.Len(t, strings.Split(strings.TrimSpace(l.says(0, "logs", "-n", "2", id)), "\n"), 2)
		for line := range strings.Lines(l.says(0, "logs", "--json", id)) {
			require.True(t, json.Valid([]byte(line)), "%s", line)
		}
		require.Zero(t, l.follow("watch", id).wait(time.Minute), "what has ended well is watched to a good end")
		l.says(exitFailure, "pause", id)
		l.says(exitFailure, "cancel", id)
	})

	t.Run("many jobs in a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "jobs.yaml")
		write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
		write(fmt.Sprintf("jobs:\n  - {vm_path: web-02, output_path: %q, format: raw}\n  - {vm_path: db-01, output_path: %[1]q}\n", l.exports))
		key := []string{"submit", "-f", file, "--key", "both"}
		ids := strings.Fields(l.says(0, key...))
		require.Len(t, ids, 2)
		require.Equal(t, ids, strings.Fields(l.says(0, key...)), "under the same key nothing is started again")
		require.Zero(t, l.follow(append([]string{"watch"}, ids...)...).wait(time.Minute))
		l.completed(ids[0], "web-02", time.Minute)
		l.completed(ids[1], "db-01", time.Minute)

		write(fmt.Sprintf("jobs:\n  - {vm_path: web-02, output_path: %q, options: {overwrite: true}}\n  - {vm_path: db-01, output_path: relative}\n", l.exports))
		out, errs, code := l.hyperctl("submit", "-f", file)
		require.Equal(t, exitFailure, code)
		require.Len(t, strings.Fields(out), 1, "what is right is started")
		require.Contains(t, errs, "output_path")
		l.completed(strings.TrimSpace(out), "web-02", time.Minute)
		l.says(exitUsage, "submit", "-f", file, "--format", "raw")
		l.says(exitFailure, "submit", "-f", file+".absent")
	})

	t.Run("jobs that end badly", func(t *testing.T) {
		require.Contains(t, l.says(exitJobFailed, "submit", "nobody", "--output", l.exports, "--watch"), "nobody")
		id := strings.TrimSpace(l.says(0, "submit", web, "-o", l.exports, "--overwrite", "--limit", "2"))
		l.moved(id, mib/2)
		require.Equal(t, id, strings.TrimSpace(l.says(0, "cancel", id)))
		require.Equal(t, exitCancelled, l.follow("watch", id).wait(time.Minute))
		require.Equal(t, job.Cancelled, l.job(id).Status)
		require.Empty(t, l.hidden())
	})

	t.Run("what is not there, or not understood", func(t *testing.T) {
		for _, args := range [][]string{{"status"}, {"query"}, {"logs"}, {"cancel"}, {"pause"}, {"resume"}, {"watch"}} {
			l.says(exitNotFound, append(args, "no-such-job")...)
		}
		l.says(exitNotFound, "limit", "no-such-job", "1")
		for _, args := range [][]string{{"sumbit"}, {"submit"}, {"submit", "web-01"}, {"status", "--colour"}, {"cancel"}, {"limit", "x", "fast"}, {"query", "--status", "gone"}} {
			l.says(exitUsage, args...)
		}
	})

	t.Run("completion", func(t *testing.T) {
		for _, shell := range []string{"bash", "zsh", "fish"} {
			require.Contains(t, l.says(0, "completion", shell), "hyperctl", shell)
		}
		require.Contains(t, l.says(0, "__complete", "submit", "/DC0"), web)
		require.Contains(t, l.says(0, "__complete", "status", ""), "nightly")
	})
}
