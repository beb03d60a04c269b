package tui

import (
	"fmt"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"hypersdk/cmd/terminal"
	"hypersdk/workflows/job"
)

// Text from elsewhere is made harmless and cut to the terminal before it is given a style: nothing else
// that moves a cursor or fills a line too many comes out of here.

func bold(s string) string    { return lipgloss.NewStyle().Bold(true).Render(s) }
func faint(s string) string   { return lipgloss.NewStyle().Faint(true).Render(s) }
func reverse(s string) string { return lipgloss.NewStyle().Reverse(true).Render(s) }
func colour(c, s string) string {
	return lipgloss.NewStyle().Foreground(lipgloss.Color(c)).Render(s)
}

const (
	frame               = 3 // lines around the body: title, head, foot
	minWidth, minHeight = 16, 5
)

// room is how many lines the body has.
func (m *model) room() int { return max(1, m.height-frame) }

func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	return v
}

// fit makes text from elsewhere one harmless line that the terminal has room for.
func (m *model) fit(s string) string { return terminal.Cut(terminal.OneLine(s), m.width) }

// lines are what is shown: no more, and no wider, than the terminal.
func (m *model) lines() []string {
	if m.width < minWidth || m.height < minHeight {
		return []string{terminal.Cut("too small", max(1, m.width))}
	}
	var head string
	var body []string
	switch m.view {
	case jobsView:
		head, body = m.grid(&m.jobList, jobColumns, m.jobCells, m.away, "no jobs; press tab for the VMs, and e there to export one")
	case vmsView:
		empty := "there are no VMs"
		if !m.vmsKnown {
			empty = "reading the inventory …"
		}
		head, body = m.grid(&m.vmList, vmColumns, m.vmCells, m.vmsAway, empty)
	case jobView:
		body = m.scrolled(m.jobText(), false)
	case logView:
		body = m.scrolled(m.log, true)
	case vmView:
		body = m.scrolled(m.vmText(), false)
	case helpView:
		body = m.scrolled(helpText(), false)
	}
	lines := append([]string{m.title(), head}, body...)
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return append(lines[:m.height-1], m.foot())
}

// title says what is shown, of which daemon, and how its jobs are.
func (m *model) title() string {
	what := map[view]string{jobsView: "jobs", vmsView: "VMs", jobView: "job " + m.shown, logView: "log of " + m.shown, vmView: "VM " + m.shown, helpView: "keys"}[m.view]
	if t := m.table(); t != nil {
		n := fmt.Sprint(t.all)
		if t == &m.jobList && m.total > t.all {
			n = fmt.Sprintf("%d newest of %d", t.all, m.total)
		}
		if t.filter != "" {
			n = fmt.Sprintf("%d of %s", len(t.ids), n) + " /" + t.filter
		}
		what += " (" + n + ")"
		if k := len(t.marked); k > 0 {
			what += fmt.Sprintf(" %d marked", k)
		}
	}
	count := map[job.State]int{}
	for _, j := range m.jobs {
		count[j.Status]++
	}
	return bold(m.fit(fmt.Sprintf("%s  %s  %d running, %d waiting, %d failed", what, m.d.Server(), count[job.Running], count[job.Pending], count[job.Failed])))
}

// foot is the prompt, or what was just said, or the keys.
func (m *model) foot() string {
	switch {
	case m.prompt != nil && m.prompt.yesNo:
		return bold(m.fit(m.prompt.label))
	case m.prompt != nil:
		return m.promptLabel() + m.prompt.input.View()
	case m.flash != "" && m.bad:
		return colour("1", m.fit(m.flash))
	case m.flash != "":
		return colour("2", m.fit(m.flash))
	case m.away != nil:
		return colour("1", m.fit("the daemon does not answer: "+m.away.Error()))
	}
	keys := map[view]string{
		jobsView: "enter describe · l log · p pause · ctrl+k cancel · / filter · tab VMs · ? keys · q leave",
		vmsView:  "enter describe · e export · space mark · / filter · tab jobs · ? keys · q leave",
		jobView:  "l log · p pause · L limit · ctrl+k cancel · esc back",
		logView:  "j k g G scroll · esc back", vmView: "j k scroll · esc back", helpView: "esc back",
	}[m.view]
	return faint(m.fit(keys))
}

// promptLabel leaves room to type.
func (m *model) promptLabel() string {
	return terminal.Cut(terminal.OneLine(m.prompt.label), max(1, m.width-10))
}

// layPrompt makes what is typed fit.
func (m *model) layPrompt() {
	if p := m.prompt; p != nil && !p.yesNo {
		p.input.SetWidth(max(1, m.width-terminal.Width(m.promptLabel())-2))
		p.input.SetCursor(p.input.Position()) // which part of a long text is shown follows the cursor
	}
}

// column is a column of a list: what has a width of 0 takes what is left.
type column struct {
	title string
	width int
	right bool
	from  int // the width of the terminal from which on it is shown
}

// grid is a list under its heads: the columns that there is room for.
func (m *model) grid(t *table, cols []column, cells func(id string) ([]string, string), away error, empty string) (head string, body []string) {
	var shown []int
	left := m.width - 2
	for i, c := range cols {
		if m.width >= c.from {
			shown = append(shown, i)
			left -= c.width + 2
		}
	}
	row := func(v []string) string {
		var b strings.Builder
		for n, i := range shown {
			w := cols[i].width
			if w == 0 {
				w = max(6, left+2)
			}
			text := terminal.Cut(terminal.OneLine(v[i]), w)
			if cols[i].right {
				text = terminal.Pad(text, -w)
			} else {
				text = terminal.Pad(text, w)
			}
			if n > 0 {
				b.WriteString("  ")
			}
			b.WriteString(text)
		}
		return b.String()
	}
	titles := make([]string, len(cols))
	for i, c := range cols {
		titles[i] = c.title
	}
	head = faint(m.fit("  " + row(titles)))
	if len(t.ids) == 0 {
		switch {
		case away != nil:
			return head, []string{colour("1", m.fit(away.Error()))}
		case t.filter != "" && t.all > 0:
			empty = "nothing matches"
		}
		return head, []string{m.fit(empty)}
	}
	from, to := t.window(m.room())
	for i := from; i < to; i++ {
		id := t.ids[i]
		mark := "  "
		if t.marked[id] {
			mark = "✓ "
		}
		v, c := cells(id)
		line := terminal.Cut(mark+row(v), m.width)
		switch {
		case i == t.cursor:
			line = reverse(terminal.Pad(line, m.width))
		case c != "":
			line = colour(c, line)
		}
		body = append(body, line)
	}
	return head, body
}

// scrolled is the part of a text that there is room for, its lines made harmless and wrapped.
func (m *model) scrolled(text []string, tail bool) []string {
	var lines []string
	for _, l := range text {
		lines = append(lines, wrap(terminal.OneLine(l), m.width)...)
	}
	from, to := m.text.window(len(lines), m.room(), tail)
	return lines[from:to]
}

// wrap breaks a line that is wider than w; what follows is set in.
func wrap(l string, w int) (out []string) {
	const in = "    "
	for terminal.Width(l) > w {
		n, used := 0, 0
		for i, r := range l {
			if used += terminal.Width(string(r)); used > w && i > len(in) {
				break
			}
			n = i + utf8.RuneLen(r)
		}
		out = append(out, terminal.Cut(l[:n], w))
		l = in + l[n:]
	}
	return append(out, l)
}

func helpText() []string {
	out := make([]string, 0, len(help))
	for _, h := range help {
		out = append(out, terminal.Pad(h[0], 26)+h[1])
	}
	return out
}
