package tui

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// help is every key.
var help = [][2]string{
	{"j k ↓ ↑", "down, up"}, {"g G", "first, last"}, {"ctrl+d ctrl+u pgdn pgup", "a page down, up"},
	{"enter d", "describe"}, {"l", "log of a job"}, {"/", "filter: words that have to be there; ! turns it around"},
	{"space", "mark"}, {"esc", "back, or forget the filter"}, {"tab", "jobs or VMs"},
	{":", "command: jobs, vms, help, quit"}, {"r ctrl+r", "read anew"},
	{"ctrl+k x", "cancel jobs"}, {"p", "pause jobs, or let them go on"}, {"L", "limit the bandwidth of jobs"}, {"e", "export VMs"},
	{"?", "this help"}, {"q", "back; at a list, leave"}, {"ctrl+c", "leave"},
}

func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	if m.prompt != nil {
		return m.answer(k)
	}
	switch s := k.String(); s {
	case "?":
		if m.view != helpView {
			m.open(helpView)
		}
	case ":":
		m.ask(":", "", nil, m.command)
	case "q":
		return m.back()
	case "esc":
		return m.escape()
	case "tab", "shift+tab":
		if m.view == vmsView {
			return m.list(jobsView)
		}
		return m.list(vmsView)
	case "r", "ctrl+r":
		if m.view == vmsView {
			return m.askVMs()
		}
		return m.refresh()
	default:
		if m.view == jobsView || m.view == vmsView {
			return m.listKey(s)
		}
		return m.textKey(s)
	}
	return nil
}

// escape goes back one step: it never leaves the program.
func (m *model) escape() tea.Cmd {
	if t := m.table(); t != nil {
		t.marked = nil
		if t.filter != "" {
			m.setFilter("")
		}
		return nil
	}
	return m.back()
}

// table is the list that is shown; nil where none is.
func (m *model) table() *table {
	switch m.view {
	case jobsView:
		return &m.jobList
	case vmsView:
		return &m.vmList
	}
	return nil
}

func (m *model) setFilter(f string) {
	t := m.table()
	if t == nil {
		return
	}
	t.filter = f
	if t == &m.jobList {
		t.set(jobIDs(m.jobs), matches(jobTexts(m.jobs), f))
	} else {
		t.set(vmIDs(m.vms), matches(vmTexts(m.vms), f))
	}
}

// step is how far a key moves; ok where it moves at all.
func (m *model) step(k string) (n int, ok bool) {
	page := max(1, m.room()-1)
	n, ok = map[string]int{
		"down": 1, "j": 1, "up": -1, "k": -1, "pgdown": page, "ctrl+d": page, "ctrl+f": page, "pgup": -page, "ctrl+u": -page, "ctrl+b": -page,
		"g": -1 << 40, "home": -1 << 40, "G": 1 << 40, "end": 1 << 40,
	}[k]
	return n, ok
}

func (m *model) listKey(k string) tea.Cmd {
	t := m.table()
	if n, ok := m.step(k); ok {
		t.move(n)
		return nil
	}
	switch k {
	case "/":
		m.ask("/", t.filter, m.setFilter, func(string) tea.Cmd { return nil })
	case "space", " ":
		t.mark()
	case "enter", "d":
		return m.describe(t.current())
	default:
		if m.view == jobsView {
			return m.jobKey(k)
		}
		if k == "e" {
			m.export()
		}
	}
	return nil
}

func (m *model) describe(id string) tea.Cmd {
	if id == "" {
		return nil
	}
	m.shown = id
	if m.view == jobsView {
		m.open(jobView)
		return nil
	}
	m.vm, m.vmErr = nil, nil
	m.open(vmView)
	return m.askVM(id)
}

func (m *model) textKey(k string) tea.Cmd {
	if n, ok := m.step(k); ok {
		m.text.move(n)
		if k == "G" || k == "end" {
			m.text.held = false // with the end of a log again
		}
		return nil
	}
	if m.view == jobView || m.view == logView {
		return m.jobKey(k)
	}
	return nil
}

func (m *model) jobKey(k string) tea.Cmd {
	jobs := m.chosen()
	if len(jobs) == 0 {
		return nil
	}
	switch k {
	case "l":
		if m.view != logView {
			if m.view == jobsView {
				m.shown = m.jobList.current()
			}
			m.open(logView)
			return m.askLog(m.shown)
		}
	case "ctrl+k", "x":
		m.cancel(open(jobs))
	case "p":
		return m.pause(open(jobs))
	case "L":
		m.limit(open(jobs))
	}
	return nil
}

var errEnded = errors.New("it has ended")

func (m *model) cancel(jobs []job.Job) {
	if len(jobs) == 0 {
		m.say("", errEnded)
		return
	}
	var ids []string
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	m.confirm("Cancel "+named(jobs)+"?", m.act(func(ctx context.Context) (string, error) {
		out, err := m.d.Cancel(ctx, ids...)
		for _, why := range out.Errors {
			err = errors.Join(err, errors.New(why))
		}
		return named(jobs) + " stops and cleans up", err
	}))
}

func (m *model) pause(jobs []job.Job) tea.Cmd {
	if len(jobs) == 0 {
		m.say("", errEnded)
		return nil
	}
	resume := jobs[0].Progress != nil && jobs[0].Progress.Paused
	return m.act(func(ctx context.Context) (string, error) {
		var errs []error
		for _, j := range jobs {
			var err error
			if resume {
				_, err = m.d.Resume(ctx, j.ID)
			} else {
				_, err = m.d.Pause(ctx, j.ID)
			}
			errs = append(errs, err)
		}
		if resume {
			return named(jobs) + " goes on", errors.Join(errs...)
		}
		return named(jobs) + " is paused", errors.Join(errs...)
	})
}

func (m *model) limit(jobs []job.Job) {
	if len(jobs) == 0 {
		m.say("", errEnded)
		return
	}
	m.ask("limit of "+named(jobs)+" in MB/s (0: none): ", "", nil, func(s string) tea.Cmd {
		mbps, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		if why := job.CheckLimit(mbps); err != nil || why != "" {
			m.say("", fmt.Errorf("%q is no limit", s))
			return nil
		}
		return m.act(func(ctx context.Context) (string, error) {
			var errs []error
			for _, j := range jobs {
				_, err := m.d.Limit(ctx, j.ID, mbps)
				errs = append(errs, err)
			}
			return fmt.Sprintf("%s: %g MB/s", named(jobs), mbps), errors.Join(errs...)
		})
	})
}

// export asks where to and how, and submits a job for each VM.
func (m *model) export() {
	ids := m.vmList.chosen()
	if len(ids) == 0 {
		return
	}
	what := fmt.Sprintf("%d VMs", len(ids))
	if vm, ok := m.vmOf(ids[0]); ok && len(ids) == 1 {
		what = vm.Name
	}
	m.ask("export "+what+" to the folder: ", m.opt.Output, nil, func(folder string) tea.Cmd {
		m.opt.Output = strings.TrimSpace(folder)
		m.ask("format: ", m.opt.Format, nil, func(format string) tea.Cmd {
			m.opt.Format = strings.TrimSpace(format)
			m.confirm(fmt.Sprintf("Export %s to %s as %s?", what, m.opt.Output, orDefault(m.opt.Format)), m.submit(ids))
			return nil
		})
		return nil
	})
}

func orDefault(format string) string {
	if format == "" {
		return "the daemon's usual format"
	}
	return format
}

func (m *model) submit(ids []string) tea.Cmd {
	var jobs []api.Submission
	for _, id := range ids {
		jobs = append(jobs, api.Submission{Spec: job.Spec{VMPath: id, OutputPath: m.opt.Output, Format: m.opt.Format, Connection: m.opt.Connection}})
	}
	return m.act(func(ctx context.Context) (string, error) {
		out, err := m.d.Submit(ctx, "", jobs...)
		for _, why := range out.Errors {
			err = errors.Join(err, errors.New(why))
		}
		return fmt.Sprintf("%d submitted", out.Accepted), err
	})
}

// command is what was typed behind a colon.
func (m *model) command(s string) tea.Cmd {
	switch s = strings.TrimSpace(strings.ToLower(s)); s {
	case "":
	case "jobs", "job", "j":
		return m.list(jobsView)
	case "vms", "vm", "v":
		return m.list(vmsView)
	case "help", "h", "?":
		m.open(helpView)
	case "quit", "q", "q!", "exit":
		return tea.Quit
	default:
		m.say("", fmt.Errorf("there is no command %q; there are: jobs, vms, help, quit", s))
	}
	return nil
}

// ask begins a prompt.
func (m *model) ask(label, value string, live func(string), done func(string) tea.Cmd) {
	in := textinput.New()
	in.Prompt, in.CharLimit = "", 4000
	st := in.Styles()
	st.Cursor.Blink = false
	in.SetStyles(st)
	in.SetValue(value)
	in.Focus()
	m.prompt = &prompt{label: label, input: in, live: live, done: done}
	m.layPrompt()
}

// confirm asks a question, and does what it is about when the answer is y.
func (m *model) confirm(question string, yes tea.Cmd) {
	m.prompt = &prompt{label: question + " (y/n) ", yesNo: true, done: func(string) tea.Cmd { return yes }}
}

func (m *model) answer(k tea.KeyPressMsg) tea.Cmd {
	p := m.prompt
	switch s := k.String(); {
	case s == "esc", p.yesNo && s != "y" && s != "Y":
		m.prompt = nil
		if p.live != nil {
			p.live("")
		}
	case p.yesNo:
		m.prompt = nil
		return p.done("")
	case s == "enter":
		m.prompt = nil
		return p.done(p.input.Value())
	case s == "backspace" && p.input.Value() == "" && p.live != nil:
		m.prompt = nil
	default:
		return m.typed(k)
	}
	return nil
}

func (m *model) typed(msg tea.Msg) (cmd tea.Cmd) {
	p := m.prompt
	p.input, cmd = p.input.Update(msg)
	m.layPrompt()
	if p.live != nil {
		p.live(p.input.Value())
	}
	return cmd
}
