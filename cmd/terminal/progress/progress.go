// Package progress shows jobs while they run: live bars on a terminal, a line now and then elsewhere, an
// object per change for programs.
package progress

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"hypersdk/cmd/terminal"
	"hypersdk/workflows/job"
)

// linePace is how often a job is mentioned where the output is no terminal, if nothing changes but its
// numbers.
const linePace = 5 * time.Second

// Display is a way to show jobs.
type Display interface {
	// Show shows jobs as they are now, and a note about all of them.
	Show(jobs []job.Job, note string)
	// End leaves the last picture where it is.
	End()
}

// New is the display that suits a screen: an object per change where asJSON is set, else live bars on a
// terminal and lines elsewhere. complain says a note where there are only lines.
func New(s terminal.Screen, asJSON bool, complain func(string)) Display {
	switch {
	case asJSON:
		return &jsonLines{s: s, last: map[string]string{}}
	case s.Live():
		return newBars(s)
	default:
		return &plainLines{s: s, last: map[string]mention{}, complain: complain}
	}
}

// jsonLines prints a job whenever it has changed.
type jsonLines struct {
	s    terminal.Screen
	last map[string]string
}

func (l *jsonLines) Show(jobs []job.Job, _ string) {
	for _, j := range jobs {
		b, err := json.Marshal(j)
		if err == nil && l.last[j.ID] != string(b) {
			l.last[j.ID] = string(b)
			l.s.Printf("%s\n", b)
		}
	}
}

func (l *jsonLines) End() {}

// plainLines prints a line for a job every few seconds, and at once when something other than a number
// changes.
type plainLines struct {
	s    terminal.Screen
	last map[string]mention
	note string
	// complain says what is not about one job.
	complain func(string)
}

type mention struct {
	at    time.Time
	state string
}

func (l *plainLines) Show(jobs []job.Job, note string) {
	now := time.Now()
	if note != "" && note != l.note {
		l.complain(note)
	}
	l.note = note
	for _, j := range jobs {
		last, state := l.last[j.ID], stateOf(j)
		if last.state == state && (now.Sub(last.at) < linePace || j.Status.Ended() || note != "") {
			continue
		}
		l.last[j.ID] = mention{now, state}
		l.s.Printf("%s %s\n", now.Format("15:04:05"), terminal.Clean(strings.Join(lineOf(j), "  ")))
	}
}

func (l *plainLines) End() {}

func stateOf(j job.Job) string {
	s := string(j.Status)
	if p := j.Progress; p != nil {
		s += fmt.Sprint(p.Phase, p.Paused, p.WaitingFor != "")
	}
	return s
}

// lineOf is a job in a line: what it is called, where it is, and how fast it goes on.
func lineOf(j job.Job) []string {
	line := []string{Title(j), string(j.Status)}
	if p := j.Progress; p != nil && j.Status == job.Running {
		line[1] = string(p.Phase)
		line = append(line, terminal.PercentText(p.PercentComplete))
		for _, s := range []string{terminal.RateText(p.TransferRateMBps), p.EstimatedRemaining} {
			if s != "" {
				line = append(line, s)
			}
		}
		if p.EstimatedRemaining != "" {
			line[len(line)-1] += " left"
		}
	}
	r := Remark(j)
	if p := j.Progress; p != nil && j.Status == job.Running && p.TransferRateMBps > 0 && !p.Paused && p.WaitingFor == "" {
		r = "" // the numbers say it
	}
	if r != "" {
		line = append(line, strings.ReplaceAll(r, "\n", " "))
	}
	return line
}

// VMName is the last part of an inventory path.
func VMName(ref string) string {
	if i := strings.LastIndexByte(ref, '/'); i >= 0 && i < len(ref)-1 {
		return ref[i+1:]
	}
	return ref
}

// Title is what a job is called in a list.
func Title(j job.Job) string {
	if j.Definition.Name != "" {
		return j.Definition.Name
	}
	return VMName(j.Definition.VMPath)
}

// Remark is the one thing to say about a job beside its numbers.
func Remark(j job.Job) string {
	p := j.Progress
	switch {
	case j.Error != "":
		return j.Error
	case j.Result != nil:
		if j.Result.VMPath != "" {
			return j.Result.VMPath
		}
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

// Percent is how much of a disk is done.
func Percent(d job.DiskProgress) float64 {
	if d.Total <= 0 {
		return 0
	}
	return 100 * float64(d.Done) / float64(d.Total)
}

func colourOf(s job.State) string {
	switch s {
	case job.Pending, job.Cancelled:
		return terminal.Yellow
	case job.Running:
		return terminal.Cyan
	case job.Completed:
		return terminal.Green
	}
	return terminal.Red
}
