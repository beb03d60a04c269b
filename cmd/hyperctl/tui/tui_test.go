package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// daemon is one that remembers what it was told.
type daemon struct {
	jobs  []job.Job
	vms   []providers.VM
	log   string
	err   error
	calls []string
	sent  []api.Submission
}

func (d *daemon) note(format string, a ...any) error {
	d.calls = append(d.calls, fmt.Sprintf(format, a...))
	return d.err
}

func (d *daemon) Server() string { return "http://localhost:8080" }
func (d *daemon) Jobs(context.Context, api.Query) (api.Jobs, error) {
	return api.Jobs{Jobs: d.jobs, Total: len(d.jobs)}, d.err
}
func (d *daemon) Log(_ context.Context, _ string, _ client.LogOptions, w io.Writer) (int64, error) {
	_, _ = io.WriteString(w, d.log)
	return int64(len(d.log)), d.err
}
func (d *daemon) Cancel(_ context.Context, ids ...string) (api.Cancelled, error) {
	return api.Cancelled{}, d.note("cancel %s", ids)
}
func (d *daemon) Pause(_ context.Context, id string) (api.Controlled, error) {
	return api.Controlled{}, d.note("pause %s", id)
}
func (d *daemon) Resume(_ context.Context, id string) (api.Controlled, error) {
	return api.Controlled{}, d.note("resume %s", id)
}
func (d *daemon) Limit(_ context.Context, id string, mbps float64) (api.Controlled, error) {
	return api.Controlled{}, d.note("limit %s %g", id, mbps)
}
func (d *daemon) Submit(_ context.Context, _ string, jobs ...api.Submission) (api.Submitted, error) {
	d.sent = append(d.sent, jobs...)
	return api.Submitted{Accepted: len(jobs)}, d.err
}
func (d *daemon) VMs(context.Context, string, providers.Filter) ([]providers.VM, error) {
	return d.vms, d.err
}
func (d *daemon) VM(_ context.Context, r api.VMInfoRequest) (providers.VM, error) {
	for _, vm := range d.vms {
		if string(vm.ID) == r.VMPath {
			vm.Disks = []providers.Disk{{Label: "Hard disk 1", Size: 1 << 30}}
			return vm, d.err
		}
	}
	return providers.VM{}, errors.New("there is no such VM")
}

func aDaemon() *daemon {
	mk := func(id, vm string, s job.State) job.Job {
		return job.Job{ID: id, Definition: job.Spec{VMPath: "/dc/vm/" + vm, OutputPath: "/exports", Format: "qcow2"}, Status: s,
			Progress: &job.Progress{Phase: job.Transfer, PercentComplete: 42.5, BytesTransferred: 1 << 30, TotalBytes: 2 << 30}, CreatedAt: job.Time{Time: began}}
	}
	failed := mk("j3", "db-01", job.Failed)
	failed.Error = "the disk is full"
	return &daemon{
		jobs: []job.Job{mk("j1", "web-01", job.Running), mk("j2", "web-02", job.Pending), failed, mk("j4", "old", job.Completed)},
		vms: []providers.VM{
			{ID: "vm-1", Name: "db-01", Path: "/dc/vm/db-01", PowerState: providers.PowerOn, NumCPU: 2, MemoryMB: 2048, GuestOS: "Debian"},
			{ID: "vm-2", Name: "web-01", Path: "/dc/vm/web-01", PowerState: providers.PowerOff},
			{ID: "vm-3", Name: "web-02", Path: "/dc/vm/web-02", PowerState: providers.PowerOn},
		},
		log: "one\ntwo\nthree\n",
	}
}

// user sits before the screen.
type user struct {
	t    *testing.T
	d    *daemon
	m    *model
	quit bool
}

func newUser(t *testing.T, d *daemon) *user {
	u := &user{t: t, d: d, m: newModel(t.Context(), d, Options{Output: "/exports"})}
	u.m.now = func() time.Time { return began.Add(90 * time.Second) }
	u.send(tea.WindowSizeMsg{Width: 120, Height: 20})
	u.run(u.m.askJobs())
	return u
}

func (u *user) send(msg tea.Msg) {
	_, cmd := u.m.Update(msg)
	u.run(cmd)
}

// run does what a command does, but for waiting.
func (u *user) run(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	switch msg := cmd().(type) {
	case nil:
	case tea.QuitMsg:
		u.quit = true
	case tea.BatchMsg:
		for _, c := range msg {
			u.run(c)
		}
	default:
		u.send(msg)
	}
}

var special = map[string]tea.KeyPressMsg{
	"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "tab": {Code: tea.KeyTab}, "down": {Code: tea.KeyDown}, "up": {Code: tea.KeyUp},
	"pgdown": {Code: tea.KeyPgDown}, "backspace": {Code: tea.KeyBackspace}, "ctrl+k": {Code: 'k', Mod: tea.ModCtrl}, "ctrl+c": {Code: 'c', Mod: tea.ModCtrl},
	"space": {Code: tea.KeySpace, Text: " "},
}

func (u *user) keys(keys ...string) {
	for _, k := range keys {
		if msg, ok := special[k]; ok {
			u.send(msg)
			continue
		}
		for _, r := range k {
			u.send(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
}

var styles = regexp.MustCompile("\x1b\\[[0-9;]*m")

func (u *user) sees() string { return styles.ReplaceAllString(strings.Join(u.m.lines(), "\n"), "") }

func TestTheListOfJobs(t *testing.T) {
	u := newUser(t, aDaemon())
	screen := u.sees()
	require.Contains(t, screen, "jobs (4)  http://localhost:8080  1 running, 1 waiting, 1 failed")
	require.Regexp(t, `web-01 +running +transfer +42.5% +qcow2 +1m`, screen)
	u.keys("/", "web")
	require.Contains(t, u.sees(), "2 of 4 /web")
	require.NotContains(t, u.sees(), "db-01")
	u.keys("enter", "esc")
	require.Contains(t, u.sees(), "db-01", "esc forgets the filter")
	u.keys("/", "!web", "enter")
	require.NotContains(t, u.sees(), "web-0")
	require.False(t, u.quit)
}

func TestTheCursorStaysOnItsJob(t *testing.T) {
	d := aDaemon()
	u := newUser(t, d)
	u.keys("j", "j")
	require.Equal(t, "j3", u.m.jobList.current())
	d.jobs = append([]job.Job{{ID: "new", Definition: job.Spec{VMPath: "x"}}}, d.jobs...)
	u.send(tick0(u))
	require.Equal(t, "j3", u.m.jobList.current())
	d.jobs = d.jobs[:2]
	u.send(tick0(u))
	require.Equal(t, "j1", u.m.jobList.current(), "what is gone leaves the cursor on the list")
	u.keys("G", "down", "down")
	require.Equal(t, "j1", u.m.jobList.current())
	u.keys("g", "up")
	require.Equal(t, "new", u.m.jobList.current())
}

// tick0 is a look at the jobs, as a tick makes one.
func tick0(u *user) tea.Msg { return u.m.askJobs()() }

func TestAJobIsDescribedAndItsLogShown(t *testing.T) {
	u := newUser(t, aDaemon())
	u.keys("j", "j", "enter")
	require.Contains(t, u.sees(), "the disk is full")
	require.Contains(t, u.sees(), "/dc/vm/db-01")
	u.keys("l")
	require.Contains(t, u.sees(), "log of j3")
	require.Contains(t, u.sees(), "three")
	u.keys("esc")
	require.Contains(t, u.sees(), "job j3")
	u.keys("q")
	require.Contains(t, u.sees(), "jobs (4)")
	u.keys("esc")
	require.False(t, u.quit, "esc never leaves the program")
	u.keys("q")
	require.True(t, u.quit)
}

func TestALogStaysAtItsEndUntilSomebodyScrolls(t *testing.T) {
	d := aDaemon()
	lines := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "line %d.\n", i)
		}
		return b.String()
	}
	d.log = lines(100)
	u := newUser(t, d)
	u.keys("l")
	require.Contains(t, u.sees(), "line 99.")
	d.log = lines(150)
	u.send(u.m.askLog("j1")())
	require.Contains(t, u.sees(), "line 149.")
	u.keys("up", "up")
	d.log = lines(200)
	u.send(u.m.askLog("j1")())
	require.NotContains(t, u.sees(), "line 199.")
	require.Contains(t, u.sees(), "line 140.")
	u.keys("G")
	require.Contains(t, u.sees(), "line 199.")
	u.keys("g")
	require.Contains(t, u.sees(), "line 0.")
}

func TestNothingIsCancelledUnasked(t *testing.T) {
	u := newUser(t, aDaemon())
	u.keys("ctrl+k")
	require.Contains(t, u.sees(), "Cancel the job of web-01? (y/n)")
	u.keys("n")
	require.Empty(t, u.d.calls)
	u.keys("ctrl+k", "enter")
	require.Empty(t, u.d.calls, "only y is yes")
	u.keys("ctrl+k", "y")
	require.Equal(t, []string{"cancel [j1]"}, u.d.calls)
	require.Contains(t, u.sees(), "stops and cleans up")
	u.keys("j", "j", "ctrl+k")
	require.Contains(t, u.sees(), "it has ended")
	u.keys("g", "space", "space", "ctrl+k")
	require.Contains(t, u.sees(), "Cancel 2 jobs?")
	u.keys("y")
	require.Equal(t, "cancel [j1 j2]", u.d.calls[1])
}

func TestJobsAreSteered(t *testing.T) {
	d := aDaemon()
	u := newUser(t, d)
	u.keys("p")
	d.jobs[0].Progress.Paused = true
	u.send(tick0(u))
	require.Regexp(t, `web-01 +paused`, u.sees())
	u.keys("p", "L", "12.5", "enter")
	require.Equal(t, []string{"pause j1", "resume j1", "limit j1 12.5"}, u.d.calls)
	u.keys("L", "-1", "enter")
	require.Contains(t, u.sees(), `"-1" is no limit`)
	d.err = errors.New("no such job")
	u.keys("p")
	require.Contains(t, u.sees(), "no such job")
}

func TestVMsAreExported(t *testing.T) {
	u := newUser(t, aDaemon())
	u.keys("tab")
	require.Contains(t, u.sees(), "VMs (3)")
	require.Regexp(t, `db-01 +on +2 +2.0 GiB`, u.sees())
	u.keys("d")
	require.Contains(t, u.sees(), "Hard disk 1  1.0 GiB")
	u.keys("esc", "j", "space", "space", "e")
	require.Contains(t, u.sees(), "export 2 VMs to the folder: /exports")
	u.keys("enter", "ova", "enter")
	require.Contains(t, u.sees(), "Export 2 VMs to /exports as ova? (y/n)")
	require.Empty(t, u.d.sent)
	u.keys("y")
	require.Len(t, u.d.sent, 2)
	require.Equal(t, job.Spec{VMPath: "vm-2", OutputPath: "/exports", Format: "ova"}, u.d.sent[0].Spec)
	require.Contains(t, u.sees(), "2 submitted")
	u.keys("e", "esc", "e")
	require.Contains(t, u.sees(), "export", "a prompt that was left can be had again")
}

func TestCommandsAndHelp(t *testing.T) {
	u := newUser(t, aDaemon())
	u.keys(":", "vms", "enter")
	require.Equal(t, vmsView, u.m.view)
	u.keys(":", "jobs", "enter", "?")
	for _, h := range help[:8] {
		require.Contains(t, u.sees(), h[1])
	}
	u.keys("esc", ":", "rm -rf", "enter")
	require.Contains(t, u.sees(), `there is no command "rm -rf"`)
	u.keys(":", "q", "enter")
	require.True(t, u.quit)
	u = newUser(t, aDaemon())
	u.keys("/", "x", "ctrl+c")
	require.True(t, u.quit)
}

func TestADaemonThatIsAwayIsWaitedFor(t *testing.T) {
	d := aDaemon()
	u := newUser(t, d)
	d.err = errors.New("connection refused")
	u.send(tick0(u))
	require.Contains(t, u.sees(), "the daemon does not answer: connection refused")
	require.Contains(t, u.sees(), "web-01", "what was known last is still shown")
	d.err = nil
	u.send(tick0(u))
	require.NotContains(t, u.sees(), "refused")
}

// Whatever things are called and however small the terminal is, no screen is larger than it, and
// nothing but styles is sent beside text.
func TestScreensFitAndDoNoHarm(t *testing.T) {
	names := []string{"\x1b]0;owned\a\x1b[2J", "a\nb\r\tc", "\u202egnp.exe", strings.Repeat("日本語", 60), "\x9b31m", "", strings.Repeat("x", 3000)}
	for _, width := range []int{1, 15, 16, 37, 79, 131, 170} {
		for _, height := range []int{1, 5, 9, 40} {
			d := &daemon{log: strings.Join(names, "\n")}
			for i, n := range names {
				d.vms = append(d.vms, providers.VM{ID: providers.VMID(fmt.Sprint(i)), Name: n, Path: n, GuestOS: n, PowerState: providers.Power(n), Annotation: n})
				d.jobs = append(d.jobs, job.Job{ID: fmt.Sprint(i), Definition: job.Spec{Name: n, VMPath: n, OutputPath: n, Format: n}, Status: job.Running, Error: n,
					Progress: &job.Progress{WaitingFor: n, CurrentStep: n, EstimatedRemaining: n, Phase: job.Phase(n), TotalBytes: 1, Disks: []job.DiskProgress{{Disk: n, File: n, Waiting: n}}}})
			}
			u := newUser(t, d)
			u.send(tea.WindowSizeMsg{Width: width, Height: height})
			for _, k := range []string{"", "j", "space", "enter", "down", "l", "pgdown", "esc", "esc", "/" + strings.Repeat("z", 300), "esc", "ctrl+k", "n", "tab", "enter", "esc", "e", "y", "enter", "?", "j"} {
				u.keys(k)
				lines := u.m.lines()
				require.LessOrEqual(t, len(lines), max(1, height), "width %d, after %q", width, k)
				for _, l := range lines {
					plain := styles.ReplaceAllString(l, "")
					require.NotRegexp(t, `[\x00-\x1f\x7f-\x9f\x{202e}]`, plain, "width %d, after %q", width, k)
					require.LessOrEqual(t, terminal.Width(plain), max(1, width), "width %d, after %q: %q", width, k, plain)
				}
			}
		}
	}
}
