package image

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"hypersdk/formats"
)

// progress tells how far a conversion has come: in one line that changes on a terminal, elsewhere in
// a line for every tenth.
type progress struct {
	w        io.Writer // nil: nobody wants to know
	size     int64
	from     int64
	terminal bool
	began    time.Time

	mu   sync.Mutex
	last time.Time
	next int64 // a line is due here
	now  formats.Progress
}

func newProgress(w io.Writer, size, from int64) *progress {
	p := &progress{w: w, size: size, from: from, began: time.Now(), now: formats.Progress{Done: from}}
	if f, ok := w.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	p.next = from + size/10
	return p
}

// at notes how far the conversion is.
func (p *progress) at(now formats.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = now
	if p.w == nil {
		return
	}
	if p.terminal {
		if t := time.Now(); t.Sub(p.last) >= 100*time.Millisecond {
			p.last = t
			fmt.Fprintf(p.w, "\r\x1b[K%s", p.line())
		}
		return
	}
	if now.Done >= p.next {
		p.next = now.Done + p.size/10
		fmt.Fprintln(p.w, p.line())
	}
}

// finish ends the line.
func (p *progress) finish(whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K")
	}
	if whole {
		fmt.Fprintln(p.w, p.line())
	}
}

func (p *progress) line() string {
	done, took := p.now.Done-p.from, time.Since(p.began)
	rate := float64(done) / max(took.Seconds(), 1e-3)
	s := fmt.Sprintf("%5.1f %%  %s of %s", 100*float64(p.now.Done)/float64(max(p.size, 1)), bytesText(p.now.Done), bytesText(p.size))
	if p.size == 0 {
		s = "100.0 %"
	}
	s += fmt.Sprintf("  %s/s", bytesText(int64(rate)))
	if left := p.size - p.now.Done; left > 0 && rate >= 1 {
		s += fmt.Sprintf("  ETA %s", (time.Duration(float64(left)/rate) * time.Second).Round(time.Second))
	}
	return s
}
