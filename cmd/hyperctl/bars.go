package main

import (
	"fmt"
	"strings"

	"hypersdk/workflows/job"
)

const (
	barWidth  = 24
	diskWidth = 16
)

// bars draws jobs over and over in the same place of a terminal.
type bars struct {
	a      *app
	drawn  int  // lines that are on the screen
	hidden bool // the cursor
	utf8   bool
}

func newBars(a *app, _, _ int) *bars {
	locale := ""
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale = a.env(name); locale != "" {
			break
		}
	}
	l := strings.ToLower(locale)
	return &bars{a: a, utf8: strings.Contains(l, "utf-8") || strings.Contains(l, "utf8")}
}

func (b *bars) show(jobs []job.Job, note string) {
	total, height, ok := b.a.size()
	if !ok {
		total, height = 80, 24
	}
	var lines []string
	for _, j := range jobs {
		lines = append(lines, b.job(j, total, len(jobs) <= 3)...)
	}
	if note != "" {
		lines = append(lines, b.a.paint(yellow, note))
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
	b.a.printf("%s", out.String())
}

// end leaves the last picture where it is.
func (b *bars) end() {
	if b.hidden {
		b.a.printf("\x1b[?25h")
	}
}

// job is the lines of a job: its own, what keeps it waiting, and its disks where there is room.
func (b *bars) job(j job.Job, total int, disks bool) []string {
	p := j.Progress
	name := pad(cut(clean(title(j)), 24), 24)
	if j.Status != job.Running || p == nil {
		lines := []string{name + " " + b.a.paint(stateColour[j.Status], pad(string(j.Status), 9)) + " " + oneLine(remark(j))}
		if j.Result != nil {
			lines[0] += fmt.Sprintf("  %s in %s", bytesText(j.Result.TotalSize), j.Result.Duration.Round(1e8))
		}
		return lines
	}
	head := fmt.Sprintf("%s %s %s %s  %s", name, b.a.paint(cyan, pad(string(p.Phase), 9)), b.bar(p.PercentComplete, barWidth),
		pad(percentText(p.PercentComplete), -6), rateText(p.TransferRateMBps))
	if p.EstimatedRemaining != "" {
		head += "  " + p.EstimatedRemaining + " left"
	}
	lines := []string{head}
	switch {
	case p.Paused:
		lines = append(lines, "  "+b.a.paint(yellow, "paused"))
	case p.WaitingFor != "":
		lines = append(lines, "  "+b.a.paint(yellow, oneLine("waiting for "+p.WaitingFor)))
	}
	if !disks || len(p.Disks) < 2 {
		return lines
	}
	for _, d := range p.Disks {
		l := fmt.Sprintf("  %s %s %s  %s", pad(cut(clean(d.File), 32), 32), b.bar(percent(d), diskWidth), pad(percentText(percent(d)), -6), rateText(d.RateMBps))
		if d.Waiting != "" {
			l += "  " + oneLine(d.Waiting)
		}
		lines = append(lines, l)
	}
	return lines
}

func oneLine(s string) string { return strings.ReplaceAll(clean(s), "\n", " ") }

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
		if width(text) > room {
			if room > 0 {
				text = cut(text, room)
			} else {
				text = ""
			}
		}
		room -= width(text)
		out.WriteString(text)
	}
	return out.String()
}
