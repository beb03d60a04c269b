package picker

import (
	"context"
	"strings"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"hypersdk/cmd/terminal/fuzzy"
	"hypersdk/providers"
)

// screen is what is asked at the moment.
type screen int

const (
	loading screen = iota
	list
	details
	format
	output
	planning
	confirm
)

// model is the picker's state. It changes in Update only.
type model struct {
	ctx           context.Context
	src           Source
	screen        screen
	width, height int
	err           error // ends the picker
	chosen        bool

	vms    []providers.VM
	index  *fuzzy.Index
	query  textinput.Model
	found  []int // of vms, that match
	cursor int   // in found
	top    int   // of what is shown of found
	marked map[int]bool

	rows    [][2]string // of the VM in the details
	trouble string      // why something could not be shown
	format  int
	folder  textinput.Model
	plan    []string
	problem bool
	scroll  int
}

// What arrives from outside.
type (
	inventory struct {
		vms []providers.VM
		err error
	}
	description struct {
		id   providers.VMID
		rows [][2]string
		err  error
	}
	plan struct {
		lines   []string
		problem bool
		err     error
	}
)

func newModel(ctx context.Context, s Source) *model {
	m := &model{ctx: ctx, src: s, marked: map[int]bool{}, query: field("type to search"), folder: field("folder"), width: 80, height: 24}
	m.folder.SetValue(s.Output)
	return m
}

func field(hint string) textinput.Model {
	f := textinput.New()
	f.Prompt, f.Placeholder, f.CharLimit = "> ", hint, 4000
	st := f.Styles()
	st.Cursor.Blink = false
	f.SetStyles(st)
	f.Focus()
	return f
}

func (m *model) Init() tea.Cmd {
	return func() tea.Msg {
		vms, err := m.src.VMs(m.ctx)
		return inventory{vms, err}
	}
}

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.query.SetWidth(max(1, m.width-4))
		m.folder.SetWidth(max(1, m.width-4))
		m.follow()
	case inventory:
		return m, m.load(msg)
	case description:
		if m.screen == details {
			m.rows, m.trouble = msg.rows, ""
			if msg.err != nil {
				m.trouble = msg.err.Error()
			}
		}
	case plan:
		if m.screen == planning {
			m.screen, m.plan, m.problem, m.scroll = confirm, msg.lines, msg.problem, 0
			if msg.err != nil {
				m.plan, m.problem = []string{msg.err.Error()}, true
			}
		}
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Quit
		}
		return m, m.key(msg)
	case tea.PasteMsg:
		return m, m.typed(msg)
	}
	return m, nil
}

func (m *model) load(i inventory) tea.Cmd {
	if m.err = i.err; m.err != nil {
		return tea.Quit
	}
	texts := make([]string, len(i.vms))
	for n, vm := range i.vms {
		texts[n] = vm.Path
	}
	m.vms, m.index, m.screen = i.vms, fuzzy.New(texts), list
	m.search()
	return nil
}

// search finds what matches the query anew.
func (m *model) search() {
	m.found = m.index.Find(m.query.Value())
	m.cursor, m.top = 0, 0
}

// key is a key on the screen that is shown.
func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	switch m.screen {
	case list:
		return m.listKey(k)
	case format:
		return m.formatKey(k)
	case output:
		return m.outputKey(k)
	case confirm:
		return m.confirmKey(k)
	case details:
		switch k.String() {
		case "esc", "left", "ctrl+o", "q":
			m.screen = list
		case "enter":
			return m.ask()
		case "up", "k":
			m.scroll = max(0, m.scroll-1)
		case "down", "j":
			m.scroll++
		}
		return nil
	}
	if s := k.String(); s == "esc" || s == "q" { // while something is being read
		if m.screen == planning {
			m.screen = list
			return nil
		}
		return tea.Quit
	}
	return nil
}

func (m *model) listKey(k tea.KeyPressMsg) tea.Cmd {
	page := max(1, m.room()-1)
	switch k.String() {
	case "up", "ctrl+p":
		m.cursor--
	case "down", "ctrl+n":
		m.cursor++
	case "pgup":
		m.cursor -= page
	case "pgdown":
		m.cursor += page
	case "tab":
		if i, ok := m.current(); ok {
			m.toggle(i)
			m.cursor++
		}
	case "ctrl+a":
		m.toggleAll()
	case "esc":
		if m.query.Value() == "" {
			return tea.Quit
		}
		m.query.SetValue("")
		m.search()
	case "ctrl+o", "right":
		return m.describe()
	case "enter":
		if len(m.selection()) > 0 {
			return m.ask()
		}
	default:
		return m.typed(k)
	}
	m.follow()
	return nil
}

// typed is text for the field that is shown.
func (m *model) typed(msg tea.Msg) (cmd tea.Cmd) {
	switch m.screen {
	case list:
		before := m.query.Value()
		m.query, cmd = m.query.Update(msg)
		if m.query.Value() != before {
			m.search()
		}
	case output:
		m.folder, cmd = m.folder.Update(msg)
	}
	return cmd
}

// follow keeps the cursor on the list, and what is shown around it.
func (m *model) follow() {
	m.cursor = max(0, min(m.cursor, len(m.found)-1))
	room := max(1, m.room())
	m.top = max(0, min(m.top, m.cursor, len(m.found)-1))
	if m.cursor >= m.top+room {
		m.top = m.cursor - room + 1
	}
}

func (m *model) current() (int, bool) {
	if m.cursor >= len(m.found) {
		return 0, false
	}
	return m.found[m.cursor], true
}

func (m *model) toggle(i int) {
	if m.marked[i] {
		delete(m.marked, i)
	} else {
		m.marked[i] = true
	}
}

// toggleAll marks all that match, or none of them where all are.
func (m *model) toggleAll() {
	all := true
	for _, i := range m.found {
		all = all && m.marked[i]
	}
	for _, i := range m.found {
		delete(m.marked, i)
		if !all {
			m.marked[i] = true
		}
	}
}

// selection is the VMs that are marked, or else the one under the cursor.
func (m *model) selection() []providers.VM {
	var out []providers.VM
	for i, vm := range m.vms {
		if m.marked[i] {
			out = append(out, vm)
		}
	}
	if i, ok := m.current(); ok && out == nil {
		out = []providers.VM{m.vms[i]}
	}
	return out
}

func (m *model) describe() tea.Cmd {
	i, ok := m.current()
	if !ok {
		return nil
	}
	vm := m.vms[i]
	m.screen, m.rows, m.trouble, m.scroll = details, nil, "", 0
	return func() tea.Msg {
		rows, err := m.src.Describe(m.ctx, vm)
		return description{vm.ID, rows, err}
	}
}

// ask goes to the next question that is open.
func (m *model) ask() tea.Cmd {
	switch {
	case m.screen < format && len(m.src.Formats) > 1:
		m.screen = format
	case m.screen < output && !m.src.OutputFixed:
		m.screen = output
	default:
		return m.makePlan()
	}
	return nil
}

// back goes to the question before.
func (m *model) back() {
	switch {
	case m.screen > output && !m.src.OutputFixed:
		m.screen = output
	case m.screen > format && len(m.src.Formats) > 1:
		m.screen = format
	default:
		m.screen = list
	}
}

func (m *model) formatKey(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "up", "k":
		m.format = max(0, m.format-1)
	case "down", "j", "tab":
		m.format = min(len(m.src.Formats)-1, m.format+1)
	case "esc", "left":
		m.back()
	case "enter", "right":
		return m.ask()
	}
	return nil
}

func (m *model) outputKey(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "esc":
		m.back()
		return nil
	case "enter":
		if strings.TrimSpace(m.folder.Value()) == "" {
			return nil
		}
		return m.ask()
	}
	return m.typed(k)
}

func (m *model) confirmKey(k tea.KeyPressMsg) tea.Cmd {
	switch k.String() {
	case "enter", "y":
		if !m.problem {
			m.chosen = true
			return tea.Quit
		}
	case "esc", "left", "n":
		m.back()
	case "up", "k":
		m.scroll = max(0, m.scroll-1)
	case "down", "j":
		m.scroll++
	case "q":
		return tea.Quit
	}
	return nil
}

func (m *model) choice() Choice {
	return Choice{VMs: m.selection(), Format: m.src.Formats[m.format], Output: strings.TrimSpace(m.folder.Value())}
}

func (m *model) makePlan() tea.Cmd {
	m.screen = planning
	c := m.choice()
	return func() tea.Msg {
		lines, problem, err := m.src.Plan(m.ctx, c)
		return plan{lines, problem, err}
	}
}
