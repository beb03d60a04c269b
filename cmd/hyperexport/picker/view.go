package picker

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"hypersdk/cmd/terminal"
	"hypersdk/providers"
)

// Text from elsewhere is made harmless and cut to the terminal before it is given a style: nothing else
// that moves a cursor or fills a line too many comes out of here.

func bold(s string) string    { return lipgloss.NewStyle().Bold(true).Render(s) }
func faint(s string) string   { return lipgloss.NewStyle().Faint(true).Render(s) }
func reverse(s string) string { return lipgloss.NewStyle().Reverse(true).Render(s) }
func warn(s string) string {
	return lipgloss.NewStyle().Foreground(lipgloss.Color("1")).Bold(true).Render(s)
}

const (
	frame                = 5 // lines around the list
	minWidth, minHeight  = 16, 7
	wide, wider, minName = 60, 90, 10
)

// room is how many VMs fit.
func (m *model) room() int { return m.height - frame }

func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	return v
}

// lines are what is shown: no more, and no wider, than the terminal.
func (m *model) lines() []string {
	if m.width < minWidth || m.height < minHeight {
		return []string{terminal.Cut("too small", max(1, m.width))}
	}
	var body []string
	keys := ""
	switch m.screen {
	case loading:
		body, keys = []string{m.fit("reading the inventory of " + m.src.Server + " …")}, "esc quit"
	case list:
		return m.list()
	case details:
		body, keys = m.describing(), "enter choose · esc back"
	case format:
		body, keys = m.formats(), "↑↓ move · enter choose · esc back"
	case output:
		body, keys = []string{bold(m.fit("Export to which folder?")), faint(m.fit("each VM gets a folder of its name below it")), "", m.folder.View()}, "enter go on · esc back"
	case planning:
		body, keys = []string{m.fit("making the plan …")}, "esc back"
	case confirm:
		body, keys = m.confirming()
	}
	return m.page(body, keys)
}

// page is a body between a title and the keys.
func (m *model) page(body []string, keys string) []string {
	lines := append([]string{bold(m.fit("hyperexport  " + m.src.Server)), ""}, body[:min(len(body), m.height-4)]...)
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return append(lines, faint(m.fit(keys)))
}

// fit makes text from elsewhere one harmless line that the terminal has room for.
func (m *model) fit(s string) string { return terminal.Cut(terminal.OneLine(s), m.width) }

func (m *model) list() []string {
	count := fmt.Sprintf("%d VMs", len(m.vms))
	if len(m.found) != len(m.vms) {
		count = fmt.Sprintf("%d of %s", len(m.found), count)
	}
	if n := len(m.marked); n > 0 {
		count += fmt.Sprintf(", %d marked", n)
	}
	lines := []string{bold(m.fit("hyperexport  " + m.src.Server + "  " + count)), m.query.View(), ""}
	for n := range m.room() {
		at := m.top + n
		switch {
		case at < len(m.found):
			lines = append(lines, m.row(at))
		case n == 0 && len(m.vms) == 0:
			lines = append(lines, m.fit("there are no VMs"))
		case n == 0:
			lines = append(lines, m.fit("no VM matches"))
		default:
			lines = append(lines, "")
		}
	}
	path := ""
	if i, ok := m.current(); ok {
		path = m.vms[i].Path
	}
	return append(lines, faint(m.fit(path)), faint(m.fit("enter choose · tab mark · ctrl+a all · → details · esc quit")))
}

// row is a VM of the list.
func (m *model) row(at int) string {
	i := m.found[at]
	vm := m.vms[i]
	mark, pointer := "  ", "  "
	if m.marked[i] {
		mark = "✓ "
	}
	if at == m.cursor {
		pointer = "❯ "
	}
	text := pointer + mark + m.columns(vm)
	if at == m.cursor {
		return reverse(terminal.Pad(terminal.Cut(text, m.width), m.width))
	}
	return terminal.Cut(text, m.width)
}

// columns are what there is room for.
func (m *model) columns(vm providers.VM) string {
	var rest string
	if m.width >= wide {
		rest = fmt.Sprintf("  %-9s %3d CPU %9s", terminal.Cut(terminal.OneLine(vm.PowerState.Word()), 9), vm.NumCPU, terminal.BytesText(vm.MemoryMB<<20))
	}
	if m.width >= wider {
		rest += fmt.Sprintf(" %9s  %s", terminal.BytesText(vm.StorageBytes), terminal.Pad(terminal.Cut(terminal.OneLine(vm.GuestOS), 24), 24))
	}
	w := max(minName, m.width-4-terminal.Width(rest))
	return terminal.Pad(terminal.Cut(terminal.OneLine(vm.Name), w), w) + rest
}

func (m *model) describing() []string {
	if m.trouble != "" {
		return []string{warn(m.fit(m.trouble))}
	}
	if m.rows == nil {
		return []string{m.fit("looking at the VM …")}
	}
	var out []string
	for _, r := range m.rows {
		if r[1] == "" {
			continue
		}
		for n, l := range strings.Split(terminal.Clean(r[1]), "\n") {
			name := r[0]
			if n > 0 {
				name = ""
			}
			out = append(out, m.fit(terminal.Pad(name, 10)+" "+l))
		}
	}
	return m.scrolled(out)
}

// scrolled is the part of the lines that there is room for.
func (m *model) scrolled(lines []string) []string {
	room := m.height - 4
	m.scroll = max(0, min(m.scroll, len(lines)-room))
	return lines[m.scroll:min(len(lines), m.scroll+room)]
}

func (m *model) formats() []string {
	n := len(m.selection())
	what := m.selection()[0].Name
	if n > 1 {
		what = fmt.Sprintf("%d VMs", n)
	}
	out := []string{bold(m.fit("Export " + what + " in which format?")), ""}
	for i, f := range m.src.Formats {
		text := "  " + f.Name
		if f.Compress {
			text += ", compressed"
		}
		text = m.fit(terminal.Pad(text, 22) + f.About)
		if i == m.format {
			text = reverse(terminal.Pad(m.fit("❯"+text[1:]), m.width))
		}
		out = append(out, text)
	}
	return out
}

func (m *model) confirming() (body []string, keys string) {
	for _, l := range m.plan {
		l = m.fit(l)
		if strings.HasPrefix(strings.TrimSpace(l), "refused") {
			l = warn(l)
		}
		body = append(body, l)
	}
	body = m.scrolled(body)
	if m.problem {
		return body, "it cannot be exported like this · esc back · q quit"
	}
	return body, "enter export · ↑↓ scroll · esc back · q quit"
}
