package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/clipperhouse/displaywidth"

	"hypersdk/workflows/job"
)

// clean makes text from elsewhere fit for a terminal: control characters, which could do anything to
// it, become visible.
func clean(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return '�'
		}
		return r
	}, s)
}

// isControl holds for what moves the cursor or turns the direction of writing, but not for a new line.
func isControl(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
}

func width(s string) int { return displaywidth.String(s) }

// cut shortens text to a width.
func cut(s string, w int) string {
	if w <= 0 || width(s) <= w {
		return s
	}
	return displaywidth.TruncateString(s, w, "…")
}

// pad fills text up to a width; a negative one fills on the left.
func pad(s string, w int) string {
	if w < 0 {
		return strings.Repeat(" ", max(0, -w-width(s))) + s
	}
	return s + strings.Repeat(" ", max(0, w-width(s)))
}

// table is columns under heads. A head with ">" before it is over numbers, which stand to the right;
// one with "?" is left out where the terminal is narrow.
type table struct {
	heads        []string
	right, extra map[int]bool
	rows         [][]string
}

func newTable(heads ...string) *table {
	t := &table{right: map[int]bool{}, extra: map[int]bool{}}
	for i, h := range heads {
		h, t.extra[i] = strings.CutPrefix(h, "?")
		h, t.right[i] = strings.CutPrefix(h, ">")
		t.heads = append(t.heads, h)
	}
	return t
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = strings.ReplaceAll(clean(cells[i]), "\n", " ")
	}
	t.rows = append(t.rows, cells)
}

// widths are those of the columns; 0 for one that is left out so that the last one has some room.
func (t *table) widths(total int) []int {
	const room = 24
	w := make([]int, len(t.heads))
	need := 0
	for i := range w {
		for _, r := range append([][]string{t.heads}, t.rows...) {
			w[i] = max(w[i], width(r[i]))
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

// lines are the rows, cut to the width of the terminal; 0 is none.
func (t *table) lines(total int) []string {
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
				b.WriteString(pad(c, -w[i]))
			case i < len(r)-1:
				b.WriteString(pad(c, w[i]))
			default:
				b.WriteString(c)
			}
		}
		line := strings.TrimRight(b.String(), " ")
		if total > 0 {
			line = cut(line, total)
		}
		out = append(out, line)
	}
	return out
}

func (a *app) printTable(t *table) {
	total, _, _ := a.size()
	for i, l := range t.lines(total) {
		if i == 0 {
			l = a.paint(bold, l)
		}
		a.printf("%s\n", l)
	}
}

// Colours, as terminals number them.
const (
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// colours says whether the output is a terminal that shows some.
func (a *app) colours() bool {
	_, _, terminal := a.size()
	return terminal && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
}

func (a *app) paint(colour, s string) string {
	if s == "" || !a.colours() {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

var stateColour = map[job.State]string{
	job.Pending: yellow, job.Running: cyan, job.Completed: green, job.Failed: red, job.Cancelled: yellow,
}

// bytesText is a size for people, in units of 1024.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n), -1
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[u])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[u])
}

// rateText is a rate in MB/s; "" where nothing moves.
func rateText(mbps float64) string {
	switch {
	case mbps <= 0:
		return ""
	case mbps < 10:
		return fmt.Sprintf("%.1f MB/s", mbps)
	}
	return fmt.Sprintf("%.0f MB/s", mbps)
}

func percentText(p float64) string { return fmt.Sprintf("%.1f%%", p) }

// sinceText is how long ago something was, roughly.
func sinceText(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// vmName is the last part of an inventory path.
func vmName(ref string) string {
	if i := strings.LastIndexByte(ref, '/'); i >= 0 && i < len(ref)-1 {
		return ref[i+1:]
	}
	return ref
}

// title is what a job is called in a list.
func title(j job.Job) string {
	if j.Definition.Name != "" {
		return j.Definition.Name
	}
	return vmName(j.Definition.VMPath)
}

// remark is the one thing to say about a job beside its numbers.
func remark(j job.Job) string {
	p := j.Progress
	switch {
	case j.Error != "":
		return j.Error
	case j.Result != nil:
		return j.Result.OutputDir
	case p == nil:
		return ""
	case p.Paused:
		return "paused"
	case p.WaitingFor != "":
		return "waiting for " + p.WaitingFor
	}
	return p.CurrentStep
}
