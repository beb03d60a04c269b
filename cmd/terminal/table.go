package terminal

import "strings"

// Table is columns under heads. A head with ">" before it is over numbers, which stand to the right;
// one with "?" is left out where the terminal is narrow.
type Table struct {
	heads        []string
	right, extra map[int]bool
	rows         [][]string
}

// NewTable is a table without rows.
func NewTable(heads ...string) *Table {
	t := &Table{right: map[int]bool{}, extra: map[int]bool{}}
	for i, h := range heads {
		h, t.extra[i] = strings.CutPrefix(h, "?")
		h, t.right[i] = strings.CutPrefix(h, ">")
		t.heads = append(t.heads, h)
	}
	return t
}

// Add adds a row.
func (t *Table) Add(cells ...string) {
	for i := range cells {
		cells[i] = OneLine(cells[i])
	}
	t.rows = append(t.rows, cells)
}

// widths are those of the columns; 0 for one that is left out so that the last one has some room.
func (t *Table) widths(total int) []int {
	const room = 24
	w := make([]int, len(t.heads))
	need := 0
	for i := range w {
		for _, r := range append([][]string{t.heads}, t.rows...) {
			w[i] = max(w[i], Width(r[i]))
		}
		need += w[i] + 2
	}
	last := len(w) - 1
	need += min(w[last], room) - w[last]
	for i := last; i >= 0 && total > 0 && need > total; i-- {
		if t.extra[i] {
			need -= w[i] + 2
			w[i] = 0
		}
	}
	return w
}

// Lines are the head and the rows, cut to the width of the terminal; 0 is none.
func (t *Table) Lines(total int) []string {
	w := t.widths(total)
	var out []string
	for _, r := range append([][]string{t.heads}, t.rows...) {
		var b strings.Builder
		for i, c := range r {
			if i > 0 && w[i] > 0 {
				b.WriteString("  ")
			}
			switch {
			case w[i] == 0:
			case t.right[i]:
				b.WriteString(Pad(c, -w[i]))
			case i < len(r)-1:
				b.WriteString(Pad(c, w[i]))
			default:
				b.WriteString(c)
			}
		}
		line := strings.TrimRight(b.String(), " ")
		if total > 0 {
			line = Cut(line, total)
		}
		out = append(out, line)
	}
	return out
}
