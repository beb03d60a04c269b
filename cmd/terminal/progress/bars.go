package progress

import (
	"fmt"
	"strings"

	"hypersdk/cmd/terminal"
	"hypersdk/workflows/job"
)

const (
	barWidth  = 24
	diskWidth = 16
)

// bars draws jobs over and over in the same place of a terminal.
type bars struct {
	s      terminal.Screen
	drawn  int  // lines that are on the screen
	hidden bool // the cursor
	utf8   bool
}

func newBars(s terminal.Screen) *bars { return &bars{s: s, utf8: s.UTF8()} }

func (b *bars) Show(jobs []job.Job, note string) {
	total, height, ok := b.s.Size()
	if !ok {
		total, height = 80, 24
	}
	var lines []string
	for _, j := range jobs {
		lines = append(lines, b.job(j, total, len(jobs) <= 3)...)
	}
	if note != "" {
		lines = append(lines, b.s.Paint(terminal.Yellow, note))
	}
	if most := max(2, height-1); len(lines) > most { // what is above the screen cannot be drawn again
		hidden := len(lines) - most + 1
		lines = append(lines[:most-1], fmt.Sprintf("and %d lines more", hidden))
	}
	b.draw(lines, total)
}

// draw replaces what was drawn before, in one write so that nothing flickers.
func (b *bars) draw(lines []string, total int) {
	var out strings.Builder
	if !b.hidden {
		out.WriteString("\x1b[?25l")
		b.hidden = true
	}
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r", b.drawn)
	}
	for _, l := range lines {
		out.WriteString("\x1b[2K" + cutPainted(l, total) + "\n")
	}
	for range max(0, b.drawn-len(lines)) {
		out.WriteString("\x1b[2K\n")
	}
	if over := b.drawn - len(lines); over > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", over)
	}
	b.drawn = len(lines)
	b.s.Printf("%s", out.String())
}

// End leaves the last picture where it is.
func (b *bars) End() {
	if b.hidden {
		b.s.Printf("\x1b[?25h")
	}
}

// job is the lines of a job: its own, what keeps it waiting, and its disks where there is room.
func (b *bars) job(j job.Job, total int, disks bool) []string {
	p := j.Progress
	name := terminal.Pad(terminal.Cut(terminal.Clean(Title(j)), 24), 24)
	if j.Status != job.Running || p == nil {
		lines := []string{name + " " + b.s.Paint(colourOf(j.Status), terminal.Pad(string(j.Status), 9)) + " " + terminal.OneLine(Remark(j))}
		if j.Result != nil {
			lines[0] += fmt.Sprintf("  %s in %s", terminal.BytesText(j.Result.TotalSize), j.Result.Duration.Round(1e8))
		}
		return lines
	}
	head := fmt.Sprintf("%s %s %s %s  %s", name, b.s.Paint(terminal.Cyan, terminal.Pad(string(p.Phase), 9)), b.bar(p.PercentComplete, barWidth),
		terminal.Pad(terminal.PercentText(p.PercentComplete), -6), terminal.RateText(p.TransferRateMBps))
	if p.EstimatedRemaining != "" {
		head += "  " + p.EstimatedRemaining + " left"
	}
	lines := []string{head}
	switch {
	case p.Paused:
		lines = append(lines, "  "+b.s.Paint(terminal.Yellow, "paused"))
	case p.WaitingFor != "":
		lines = append(lines, "  "+b.s.Paint(terminal.Yellow, terminal.OneLine("waiting for "+p.WaitingFor)))
	}
	if !disks || len(p.Disks) < 2 {
		return lines
	}
	for _, d := range p.Disks {
		l := fmt.Sprintf("  %s %s %s  %s", terminal.Pad(terminal.Cut(terminal.Clean(d.File), 32), 32), b.bar(Percent(d), diskWidth), terminal.Pad(terminal.PercentText(Percent(d)), -6), terminal.RateText(d.RateMBps))
		if d.EstimatedRemaining != "" {
			l += "  " + d.EstimatedRemaining + " left"
		}
		if d.Waiting != "" {
			l += "  " + terminal.OneLine(d.Waiting)
		}
		lines = append(lines, l)
	}
	return lines
}

// bar is a share of 100 as a bar.
func (b *bars) bar(percent float64, w int) string {
	full, empty, ends := "#", "-", [2]string{"[", "]"}
	if b.utf8 {
		full, empty, ends = "█", "░", [2]string{"", ""}
	}
	n := int(min(100, max(0, percent)) / 100 * float64(w))
	return ends[0] + strings.Repeat(full, n) + strings.Repeat(empty, w-n) + ends[1]
}

// cutPainted cuts a line to a width, not counting its colours.
func cutPainted(s string, w int) string {
	if w <= 0 {
		return s
	}
	var out strings.Builder
	room := w - 1 // a full line would wrap on some terminals
	for s != "" {
		i := strings.IndexByte(s, 0x1b)
		if i == 0 {
			end := strings.IndexByte(s, 'm') + 1
			if end == 0 {
				return out.String()
			}
			out.WriteString(s[:end])
			s = s[end:]
			continue
		}
		text := s
		if i > 0 {
			text = s[:i]
		}
		s = s[len(text):]
		if terminal.Width(text) > room {
			if room > 0 {
				text = terminal.Cut(text, room)
			} else {
				text = ""
			}
		}
		room -= terminal.Width(text)
		out.WriteString(text)
	}
	return out.String()
}
