package tui

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// view is what the body of the screen shows.
type view int

const (
	jobsView view = iota
	vmsView
	jobView
	logView
	vmView
	helpView
)

const (
	logLines  = 2000
	flashTime = 6 * time.Second
	// callTime is how long a daemon may take to answer.
	callTime = 20 * time.Second
)

// model is the state of the screen. It changes in Update only.
type model struct {
	ctx           context.Context
	d             Daemon
	opt           Options
	width, height int
	now           func() time.Time

	view   view
	before []view // where esc goes back to

	jobs     []job.Job
	total    int
	vms      []providers.VM
	jobList  table
	vmList   table
	away     error // why the daemon's jobs are not known now
	vmsAway  error
	vmsKnown bool
	asking   map[string]bool // what is on its way, so that nothing is asked twice

	shown string // id of the job or VM that is described
	vm    *providers.VM
	vmErr error
	log   []string
	logOf string
	text  scroller

	prompt *prompt
	flash  string
	bad    bool
	until  time.Time
}

// prompt is a line that is typed, or a question that is answered with y.
type prompt struct {
	label string
	input textinput.Model
	yesNo bool
	live  func(string)         // told at every key, where not nil
	done  func(string) tea.Cmd // told at the end
}

// What arrives from outside.
type (
	tick    struct{}
	jobsMsg struct {
		out api.Jobs
		err error
	}
	vmsMsg struct {
		vms []providers.VM
		err error
	}
	vmMsg struct {
		id  string
		vm  providers.VM
		err error
	}
	logMsg struct {
		id    string
		lines []string
		err   error
	}
	doneMsg struct {
		said string
		err  error
	}
)

func newModel(ctx context.Context, d Daemon, o Options) *model {
	if o.Pace <= 0 {
		o.Pace = time.Second
	}
	m := &model{ctx: ctx, d: d, opt: o, width: 80, height: 24, now: time.Now, asking: map[string]bool{}}
	if o.View == "vms" {
		m.view = vmsView
	}
	return m
}

func (m *model) Init() tea.Cmd {
	return tea.Batch(m.askJobs(), m.askVMsIfShown(), m.later())
}

func (m *model) later() tea.Cmd {
	return tea.Tick(m.opt.Pace, func(time.Time) tea.Msg { return tick{} })
}

// once makes a command that is not made again while it is on its way.
func (m *model) once(what string, ask func(ctx context.Context) tea.Msg) tea.Cmd {
	if m.asking[what] {
		return nil
	}
	m.asking[what] = true
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, callTime)
		defer cancel()
		return ask(ctx)
	}
}

func (m *model) askJobs() tea.Cmd {
	return m.once("jobs", func(ctx context.Context) tea.Msg {
		out, err := m.d.Jobs(ctx, api.Query{All: true, Limit: most})
		return jobsMsg{out, err}
	})
}

func (m *model) askVMs() tea.Cmd {
	return m.once("vms", func(ctx context.Context) tea.Msg {
		vms, err := m.d.VMs(ctx, m.opt.Connection, providers.Filter{})
		return vmsMsg{vms, err}
	})
}

func (m *model) askVMsIfShown() tea.Cmd {
	if m.view == vmsView && !m.vmsKnown {
		return m.askVMs()
	}
	return nil
}

func (m *model) askVM(id string) tea.Cmd {
	return m.once("vm", func(ctx context.Context) tea.Msg {
		vm, err := m.d.VM(ctx, api.VMInfoRequest{VMPath: id, Connection: m.opt.Connection})
		return vmMsg{id, vm, err}
	})
}

func (m *model) askLog(id string) tea.Cmd {
	return m.once("log", func(ctx context.Context) tea.Msg {
		var b bytes.Buffer
		_, err := m.d.Log(ctx, id, client.LogOptions{Tail: logLines}, &b)
		return logMsg{id, strings.Split(strings.TrimRight(b.String(), "\n"), "\n"), err}
	})
}

// act does something for the user and says afterwards what became of it.
func (m *model) act(do func(ctx context.Context) (string, error)) tea.Cmd {
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, callTime)
		defer cancel()
		said, err := do(ctx)
		return doneMsg{said, err}
	}
}

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.layPrompt()
	case tick:
		return m, tea.Batch(m.later(), m.refresh())
	case jobsMsg:
		delete(m.asking, "jobs")
		if m.away = msg.err; msg.err == nil {
			m.jobs, m.total = msg.out.Jobs, msg.out.Total
			m.jobList.set(jobIDs(m.jobs), matches(jobTexts(m.jobs), m.jobList.filter))
		}
	case vmsMsg:
		delete(m.asking, "vms")
		if m.vmsAway = msg.err; msg.err == nil {
			m.vms, m.vmsKnown = msg.vms, true
			m.vmList.set(vmIDs(m.vms), matches(vmTexts(m.vms), m.vmList.filter))
		}
	case vmMsg:
		delete(m.asking, "vm")
		if msg.id == m.shown {
			m.vm, m.vmErr = &msg.vm, msg.err
		}
	case logMsg:
		delete(m.asking, "log")
		if msg.id == m.shown {
			if msg.err != nil && m.logOf != msg.id {
				msg.lines = []string{msg.err.Error()}
			}
			if msg.err == nil || m.logOf != msg.id {
				m.log, m.logOf = msg.lines, msg.id
			}
		}
	case doneMsg:
		m.say(msg.said, msg.err)
		return m, m.askJobs()
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Quit
		}
		return m, m.key(msg)
	case tea.PasteMsg:
		if m.prompt != nil && !m.prompt.yesNo {
			return m, m.typed(msg)
		}
	}
	return m, nil
}

// refresh asks for what is shown anew.
func (m *model) refresh() tea.Cmd {
	if m.flash != "" && m.now().After(m.until) {
		m.flash = ""
	}
	cmds := []tea.Cmd{m.askJobs(), m.askVMsIfShown()}
	if m.view == logView {
		if j, ok := m.job(m.shown); ok && (!j.Status.Ended() || m.logOf != j.ID) {
			cmds = append(cmds, m.askLog(m.shown))
		}
	}
	return tea.Batch(cmds...)
}

// say puts a line where the keys are, for a while.
func (m *model) say(text string, err error) {
	m.flash, m.bad, m.until = text, err != nil, m.now().Add(flashTime)
	if err != nil {
		m.flash = err.Error()
	}
}

func (m *model) job(id string) (job.Job, bool) {
	i := slices.IndexFunc(m.jobs, func(j job.Job) bool { return j.ID == id })
	if i < 0 {
		return job.Job{}, false
	}
	return m.jobs[i], true
}

// open shows another view; back returns from it.
func (m *model) open(v view) {
	m.before = append(m.before, m.view)
	m.view, m.text = v, scroller{}
}

func (m *model) back() tea.Cmd {
	if len(m.before) == 0 {
		return tea.Quit
	}
	m.view, m.before = m.before[len(m.before)-1], m.before[:len(m.before)-1]
	m.text = scroller{}
	return nil
}

// list goes to one of the lists, from wherever.
func (m *model) list(v view) tea.Cmd {
	m.view, m.before = v, nil
	return m.askVMsIfShown()
}

// chosen is the jobs that a key is about: those that are marked, or the one under the cursor.
func (m *model) chosen() []job.Job {
	ids := m.jobList.chosen()
	if m.view == jobView || m.view == logView {
		ids = []string{m.shown}
	}
	var out []job.Job
	for _, id := range ids {
		if j, ok := m.job(id); ok {
			out = append(out, j)
		}
	}
	return out
}

// named is jobs in words.
func named(jobs []job.Job) string {
	if len(jobs) == 1 {
		return fmt.Sprintf("the job of %s", jobName(jobs[0]))
	}
	return fmt.Sprintf("%d jobs", len(jobs))
}

func open(jobs []job.Job) (out []job.Job) {
	for _, j := range jobs {
		if !j.Status.Ended() {
			out = append(out, j)
		}
	}
	return out
}
