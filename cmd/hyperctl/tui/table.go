package tui

import (
	"slices"
	"strings"
)

// table is a list with a cursor that stays on what it is on while the list changes.
type table struct {
	ids    []string // that match, in order
	all    int      // how many there are
	cursor int
	top    int
	marked map[string]bool
	filter string
}

// set takes a new list: the ids of all, and whether each matches.
func (t *table) set(ids []string, match []bool) {
	at := t.current()
	t.all, t.ids = len(ids), t.ids[:0]
	there := make(map[string]bool, len(ids))
	for i, id := range ids {
		there[id] = true
		if match[i] {
			t.ids = append(t.ids, id)
		}
	}
	for id := range t.marked {
		if !there[id] {
			delete(t.marked, id)
		}
	}
	if i := slices.Index(t.ids, at); i >= 0 {
		t.cursor = i
	}
	t.move(0)
}

func (t *table) current() string {
	if t.cursor < 0 || t.cursor >= len(t.ids) {
		return ""
	}
	return t.ids[t.cursor]
}

func (t *table) move(n int) { t.cursor = max(0, min(t.cursor+n, len(t.ids)-1)) }

// window is which rows are shown where there is room for so many.
func (t *table) window(room int) (from, to int) {
	room = max(1, room)
	t.top = max(0, min(t.top, t.cursor, len(t.ids)-room))
	if t.cursor >= t.top+room {
		t.top = t.cursor - room + 1
	}
	return t.top, min(len(t.ids), t.top+room)
}

func (t *table) mark() {
	if id := t.current(); id != "" {
		if t.marked == nil {
			t.marked = map[string]bool{}
		}
		if t.marked[id] {
			delete(t.marked, id)
		} else {
			t.marked[id] = true
		}
		t.move(1)
	}
}

// chosen is what is marked, or what the cursor is on.
func (t *table) chosen() []string {
	var out []string
	for _, id := range t.ids {
		if t.marked[id] {
			out = append(out, id)
		}
	}
	if out == nil && t.current() != "" {
		out = []string{t.current()}
	}
	return out
}

// matches says which texts have all words of a filter in them. A filter that begins with ! turns that
// around.
func matches(texts []string, filter string) []bool {
	rest, not := strings.CutPrefix(strings.TrimSpace(strings.ToLower(filter)), "!")
	words := strings.Fields(rest)
	out := make([]bool, len(texts))
	for i, t := range texts {
		t = strings.ToLower(t)
		missing := slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(t, w) })
		out[i] = len(words) == 0 || missing == not
	}
	return out
}

// scroller is a text that may be longer than the screen. It stays at its end where that is wanted, as
// a log does, until somebody scrolls up.
type scroller struct {
	top  int
	held bool // somebody scrolled
}

func (s *scroller) move(n int) { s.top, s.held = max(0, s.top+n), true }

// window is which lines are shown.
func (s *scroller) window(lines, room int, tail bool) (from, to int) {
	end := max(0, lines-room)
	if tail && !s.held {
		s.top = end
	}
	if s.top >= end {
		s.top, s.held = end, s.held && s.top < end
	}
	return s.top, min(lines, s.top+room)
}
