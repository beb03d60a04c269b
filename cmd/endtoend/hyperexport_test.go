package endtoend

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// terminalLab is a vCenter and a person with a terminal, without a daemon.
type terminalLab struct {
	*lab
	state string // the private folder
}

func newTerminalLab(t *testing.T, vms ...vspheretest.VM) *terminalLab {
	t.Helper()
	l := &terminalLab{lab: newLab(t, vspheretest.Options{VMs: vms}), state: filepath.Join(t.TempDir(), "state")}
	l.env = append(l.env, "HYPEREXPORT_DATA_DIR="+l.state, "HOME="+t.TempDir(), "XDG_CONFIG_HOME=")
	return l
}

// call runs hyperexport to its end.
func (l *terminalLab) call(args ...string) (stdout, stderr string, code int) {
	l.t.Helper()
	return l.callIn(nil, args...)
}

func (l *terminalLab) callIn(env []string, args ...string) (stdout, stderr string, code int) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "hyperexport"), args...)
	cmd.Env = append(append(clean(os.Environ()), l.env...), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	require.NoError(l.t, ctx.Err(), "it does not end: %s%s", &out, &errs)
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// begin starts an export that is slow enough to be disturbed, and waits until its disk has so much data.
func (l *terminalLab) begin(vm string, data int64, args ...string) *process {
	l.t.Helper()
	p := start(l.t, l.env, "hyperexport", append([]string{vm, "--output", l.exports, "--limit", "40"}, args...)...)
	l.eventually(time.Minute, "data is copied", func() bool {
		require.False(l.t, p.ended(), "it has ended")
		return l.written() >= data
	})
	return p
}

// written is what the hidden files below the exports take.
func (l *terminalLab) written() (sum int64) {
	for _, name := range l.hidden() {
		var st syscall.Stat_t
		if strings.HasSuffix(name, ".part") && syscall.Stat(name, &st) == nil {
			sum += st.Blocks * 512
		}
	}
	return sum
}

// sent is how many bytes of the first disk of a VM have left the vCenter.
func (l *terminalLab) sent(vm string) int64 {
	l.t.Helper()
	c, err := l.sim.ServedDisk(vm, 0)
	require.NoError(l.t, err)
	return c.Sent()
}

// exported checks the export of a VM, and that nothing is left of it.
func (l *terminalLab) exported(vm string) job.Job {
	l.t.Helper()
	out, errs, code := l.call("history", "--json", "--vm", vm, "--limit", "1")
	require.Zero(l.t, code, errs)
	var h struct {
		ID     string
		Status job.State
		Folder string `json:"output_dir"`
		Disks  int
	}
	require.NoError(l.t, json.Unmarshal([]byte(out), &h), out)
	require.Equal(l.t, job.Completed, h.Status)
	j := job.Job{ID: h.ID, Result: &job.Result{OutputDir: h.Folder, Disks: make([]job.DiskResult, h.Disks)}}
	l.same(j, vm)
	l.tidy(vm)
	return j
}

func TestHyperexport(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("web-01", 96*mib, 8*mib), vm("db-01", 16*mib), vm("db-02", 16*mib), vm("app-01", 8*mib))

	t.Run("a dry run touches nothing", func(t *testing.T) {
		out, errs, code := l.call("web-01", "-o", filepath.Join(l.exports, "new"), "--dry-run")
		require.Zero(t, code, errs)
		for _, want := range []string{"/DC0/vm/web-01", "2 disks", "datastore (", "web-01-disk-1.qcow2", "96 MiB", "needed,", "free", "snapshot, transfer, verify"} {
			require.Contains(t, out, want)
		}
		require.NoDirExists(t, l.state)
		require.NoDirExists(t, filepath.Join(l.exports, "new"))
		require.Empty(t, l.sim.Sessions(), "its session has ended")
		snaps, err := l.sim.Snapshots("web-01")
		require.NoError(t, err)
		require.Empty(t, snaps)

		out, _, code = l.call("web-01", "-o", "/proc/nowhere", "--validate-only")
		require.NotZero(t, code)
		require.Contains(t, out, "/proc")
		out, _, code = l.call("web-01", "db-01", "-o", l.exports, "--dry-run", "--json")
		require.Zero(t, code)
		require.Equal(t, 2, strings.Count(out, "\n"), "an object per line")
		require.NoDirExists(t, l.state)
	})

	t.Run("an export", func(t *testing.T) {
		out, errs, code := l.call("web-01", "-o", l.exports, "--format", "qcow2", "--compress", "--metadata", "ticket=42")
		require.Zero(t, code, errs)
		require.Contains(t, out, "completed")
		l.exported("web-01")
		require.NoError(t, filepath.WalkDir(l.state, func(path string, e fs.DirEntry, err error) error {
			require.NoError(t, err)
			info, err := e.Info()
			require.NoError(t, err)
			require.Zero(t, info.Mode().Perm()&0o077, "%s is for nobody else to read", path)
			if e.Type().IsRegular() {
				b, err := os.ReadFile(path)
				require.NoError(t, err)
				require.NotContains(t, string(b), l.sim.Password(), path)
			}
			return nil
		}))
		require.Empty(t, l.sim.Sessions(), "no session is left")
	})

	t.Run("failures have their exit codes", func(t *testing.T) {
		_, errs, code := l.callIn([]string{"GOVC_PASSWORD=wrong"}, "web-01", "-o", l.exports)
		require.Equal(t, 4, code, errs)
		require.NotContains(t, errs, "wrong")
		_, errs, code = l.call("nosuch", "-o", l.exports)
		require.Equal(t, 3, code, errs)
		_, errs, code = l.callIn([]string{"GOVC_URL=http://127.0.0.1:1/sdk"}, "web-01", "-o", l.exports)
		require.Equal(t, 6, code, errs)
		out, errs, code := l.call("web-01", "-o", l.exports)
		require.Equal(t, 7, code, errs)
		require.Contains(t, out, "exists already")
		_, errs, code = l.call("web-01")
		require.Equal(t, 2, code, errs)
	})

	t.Run("JSON lines", func(t *testing.T) {
		out, errs, code := l.call("web-01", "-o", l.exports, "--overwrite", "--json")
		require.Zero(t, code, errs)
		require.Empty(t, errs)
		var last job.Job
		for line := range strings.Lines(out) {
			require.NoError(t, json.Unmarshal([]byte(line), &last), line)
		}
		require.Equal(t, job.Completed, last.Status)
		require.Len(t, last.Result.Disks, 2)
		l.exported("web-01")
	})

	t.Run("a batch", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "vms.yaml")
		require.NoError(t, os.WriteFile(file, []byte("jobs:\n- db-01\n- {vm: db-02, format: raw}\n"), 0o600))
		_, errs, code := l.call("--batch", file, "-o", l.exports, "--quiet")
		require.Zero(t, code, errs)
		require.Empty(t, errs)
		l.exported("db-01")
		l.exported("db-02")
		require.FileExists(t, filepath.Join(l.exports, "db-02", "db-02-disk-1.raw"))
	})

	t.Run("by folder and filter", func(t *testing.T) {
		_, errs, code := l.call("--folder", "/DC0/vm", "--filter", "*-01", "-o", l.exports, "--skip-existing", "--parallel", "3")
		require.Zero(t, code, errs)
		require.Contains(t, errs, "db-01 is left out")
		l.exported("app-01")
		out, _, code := l.call("--list", "--filter", "db")
		require.Zero(t, code)
		require.Equal(t, 3, strings.Count(out, "\n"))
		out, _, code = l.call("--vm-info", "db-01")
		require.Zero(t, code)
		require.Contains(t, out, "Hard disk 1")
		_, _, code = l.call("--filter", "nothing*", "-o", l.exports)
		require.Equal(t, 3, code)
	})

	t.Run("a report", func(t *testing.T) {
		out, _, code := l.call("report", "--format", "csv")
		require.Zero(t, code)
		require.Equal(t, 1+6, strings.Count(out, "\n"), out)
	})
}

func TestHyperexportGoesOn(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(t *testing.T, p *process){
		"after a kill": func(t *testing.T, p *process) { p.kill() },
		"after Ctrl-C": func(t *testing.T, p *process) {
			require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
			require.Equal(t, 130, p.wait(30*time.Second))
			require.Contains(t, p.output(), "the same command goes on")
		},
		"after two Ctrl-C": func(t *testing.T, p *process) {
			require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
			require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
			require.Equal(t, 130, p.wait(30*time.Second))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTerminalLab(t, vm("web-01", 256*mib))
			p := l.begin("web-01", 80*mib)
			disturb(t, p)
			require.GreaterOrEqual(t, l.written(), int64(80*mib), "what was copied is kept")
			_, errs, code := l.call("web-01", "-o", l.exports)
			require.Zero(t, code, errs)
			require.Contains(t, errs, "goes on")
			l.exported("web-01")
			require.Less(t, l.sent("web-01"), int64(256*mib+66*mib), "it did not begin anew")
		})
	}
}

func TestHyperexportIsGivenUp(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("web-01", 256*mib), vm("db-01", 8*mib))
	p := l.begin("web-01", 20*mib)
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 130, p.wait(30*time.Second))
	out, errs, code := l.call("unfinished")
	require.Zero(t, code, errs)
	require.Contains(t, out, "stopped")

	other := filepath.Join(l.exports, "other")
	_, errs, code = l.call("web-01", "-o", other)
	require.Equal(t, 10, code)
	require.Contains(t, errs, "hyperexport cancel")
	_, errs, code = l.call("db-01", "-o", other)
	require.Zero(t, code, errs)
	out, _, _ = l.call("unfinished")
	require.Contains(t, out, "stopped", "another export does not set it going")

	out, errs, code = l.call("cancel", "web-01")
	require.Zero(t, code, errs)
	require.Contains(t, out, "cancelled")
	l.tidy("web-01")
	out, _, _ = l.call("unfinished")
	require.Contains(t, out, "Nothing is unfinished")
}

// Two calls share a folder: the second joins the first, and takes over when that one ends.
func TestHyperexportTwice(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*process){
		"the first ends":      func(p *process) { require.Zero(p.t, p.wait(time.Minute)) },
		"the first is killed": func(p *process) { p.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newTerminalLab(t, vm("web-01", 64*mib), vm("db-01", 256*mib))
			first := start(t, l.env, "hyperexport", "web-01", "-o", l.exports, "--limit", "10")
			l.eventually(time.Minute, "the first copies", func() bool { return l.written() > 0 })
			second := start(t, l.env, "hyperexport", "db-01", "-o", l.exports, "--limit", "15")
			end(first)
			require.Zero(t, second.wait(2*time.Minute))
			l.exported("db-01")
			if name == "the first is killed" {
				_, errs, code := l.call("web-01", "-o", l.exports)
				require.Zero(t, code, errs)
			}
			l.exported("web-01")
		})
	}
}

// The same command twice at once is one export, and both calls see its end.
func TestHyperexportTheSameTwice(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("web-01", 64*mib))
	var all []*process
	for range 3 {
		all = append(all, start(t, l.env, "hyperexport", "web-01", "-o", l.exports, "--limit", "20"))
	}
	for _, p := range all {
		require.Zero(t, p.wait(time.Minute))
	}
	l.exported("web-01")
	out, _, _ := l.call("history", "--json")
	require.Equal(t, 1, strings.Count(out, "\n"), out)
}

// A batch that was cut off does not begin again with what it completed.
func TestHyperexportGoesOnWithABatch(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("a-01", 8*mib), vm("b-01", 256*mib), vm("c-01", 8*mib))
	args := []string{"a-01", "b-01", "c-01", "-o", l.exports, "--limit", "20", "--parallel", "1"}
	p := start(t, l.env, "hyperexport", args...)
	l.eventually(time.Minute, "the second copies", func() bool {
		_, err := os.Stat(filepath.Join(l.exports, "a-01", "manifest.json"))
		return err == nil && l.written() > 10*mib
	})
	p.kill()
	args[6] = "0" // no limit
	_, errs, code := l.call(args...)
	require.Zero(t, code, errs)
	for _, name := range []string{"a-01", "b-01", "c-01"} {
		l.exported(name)
	}
	require.Less(t, l.sent("a-01"), int64(9*mib), "it was not copied twice")
}

// pane runs hyperexport in a real terminal.
func (l *terminalLab) pane(width, height int, args ...string) *pane {
	l.t.Helper()
	return newPane(l.t, width, height, l.env, l.exports, "hyperexport", args...)
}

func TestHyperexportPicker(t *testing.T) {
	t.Parallel()
	l := newTerminalLab(t, vm("web-01", 16*mib, 8*mib), vm("web-02", 64*mib), vm("evil\x1b]0;owned\a\x1b[2J\u202egnp", 8*mib))
	p := l.pane(72, 20)
	p.sees("3 VMs", "evil�]0;owned�", "enter choose")
	p.keys("web 1")
	require.Equal(t, strings.TrimSpace(`
hyperexport  `+l.sim.URL().Host+`  1 of 3 VMs
> web 1

❯   web-01                                   on          2 CPU   2.0 GiB
`), strings.TrimSpace(strings.Join(strings.Split(p.sees("1 of 3 VMs"), "\n")[:4], "\n")))
	p.keys("Right")
	p.sees("Hard disk 1", "16 MiB", "esc back")
	p.keys("Enter")
	p.sees("Export web-01 in which format?", "❯ qcow2")
	p.keys("Down", "Enter")
	p.sees("Export to which folder?", "> "+l.exports[:20])
	p.keys("Enter")
	p.sees("qcow2, compressed", "enter export")
	// Narrow and wide again, in the middle of it.
	p.tmux("resize-window", "-x", "30", "-y", "12")
	p.sees("on, 2 disks")
	p.tmux("resize-window", "-x", "10", "-y", "4")
	p.sees("too small")
	p.tmux("resize-window", "-x", "100", "-y", "20")
	p.sees("steps    snapshot, transfer, verify, manifest, clean", "enter export")
	p.keys("Enter")
	p.sees("completed", "exit code 0.")
	l.exported("web-01")

	t.Run("leaving it", func(t *testing.T) {
		for _, keys := range [][]string{{"Escape"}, {"C-c"}, {"Enter", "C-c"}} {
			p := l.pane(80, 10)
			p.sees("3 VMs")
			p.keys(keys...)
			p.sees("exit code 5.")
		}
	})
	t.Run("an export on a terminal", func(t *testing.T) {
		p := l.pane(100, 10, "web-02", "--output", l.exports, "--limit", "1")
		p.sees("web-02", "transfer", "MB/s")
		p.keys("C-c")
		p.sees("is stopped", "what was copied is kept", "exit code 130.")
		p = l.pane(40, 6, "web-02", "--output", l.exports)
		p.sees("completed", "exit code 0.")
		l.exported("web-02")
	})
}
