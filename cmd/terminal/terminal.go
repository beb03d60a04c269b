// Package terminal is how programs for the command line show things: text from elsewhere made fit for a
// terminal, tables that are as wide as it is, sizes and rates for people.
package terminal

import (
	"fmt"
	"io"
	"strings"
)

// Screen is where a program writes for people: a terminal, or not.
type Screen struct {
	Out io.Writer
	Env func(string) string
	// Size is that of the terminal that Out is; false where it is none.
	Size func() (width, height int, ok bool)
}

// Colours, as terminals number them.
const (
	Bold   = "1"
	Red    = "31"
	Green  = "32"
	Yellow = "33"
	Cyan   = "36"
)

// Colours says whether the output is a terminal that shows some.
func (s Screen) Colours() bool { return s.Live() && s.Env("NO_COLOR") == "" }

// Live says whether the output is a terminal on which lines can be drawn again.
func (s Screen) Live() bool {
	_, _, terminal := s.Size()
	return terminal && s.Env("TERM") != "dumb"
}

// UTF8 says whether the output shows more than ASCII.
func (s Screen) UTF8() bool {
	locale := ""
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale = s.Env(name); locale != "" {
			break
		}
	}
	l := strings.ToLower(locale)
	return strings.Contains(l, "utf-8") || strings.Contains(l, "utf8")
}

// Paint is text in a colour, where there are colours.
func (s Screen) Paint(colour, text string) string {
	if text == "" || !s.Colours() {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Printf writes formatted text.
func (s Screen) Printf(format string, args ...any) { fmt.Fprintf(s.Out, format, args...) }

// PrintTable writes a table, as wide as the terminal at most.
func (s Screen) PrintTable(t *Table) {
	total, _, _ := s.Size()
	for i, l := range t.Lines(total) {
		if i == 0 {
			l = s.Paint(Bold, l)
		}
		s.Printf("%s\n", l)
	}
}

// PrintRows writes names and values; those without a value are left out.
func (s Screen) PrintRows(rows [][2]string) {
	w := 0
	for _, r := range rows {
		w = max(w, Width(r[0]))
	}
	for _, r := range rows {
		if r[1] != "" {
			s.Printf("%s  %s\n", Pad(r[0], w), strings.ReplaceAll(Clean(r[1]), "\n", "\n"+strings.Repeat(" ", w+2)))
		}
	}
}
