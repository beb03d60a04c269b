package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows/job"
)

// watching runs the program in the background.
type watching struct {
	l         *lab
	out, errs *output
	code      chan int
	stop      context.CancelFunc
}

func (l *lab) watch(args ...string) *watching {
	l.t.Helper()
	ctx, stop := context.WithCancel(l.t.Context())
	w := &watching{l: l, out: &output{}, errs: &output{}, code: make(chan int, 1), stop: stop}
	go func() { w.code <- l.call(ctx, w.out, w.errs, args...) }()
	l.t.Cleanup(stop)
	return w
}

func (w *watching) says(text string) {
	w.l.t.Helper()
	require.Eventually(w.l.t, func() bool { return strings.Contains(w.out.String()+w.errs.String(), text) }, time.Minute, 5*time.Millisecond,
		"%s was not said", text)
}

func (w *watching) ends() int {
	w.l.t.Helper()
	select {
	case code := <-w.code:
		return code
	case <-time.After(time.Minute):
		w.l.t.Fatal("it does not end")
		return -1
	}
}

const quick = "--interval=50ms"

func TestWatchVerdicts(t *testing.T) {
	for _, c := range []struct {
		states []job.State
		code   int
	}{
		{[]job.State{job.Completed, job.Completed}, 0},
		{[]job.State{job.Completed, job.Failed}, 4},
		{[]job.State{job.Cancelled, job.Failed}, 4},
		{[]job.State{job.Completed, job.Cancelled}, 5},
	} {
		l := newLab(t)
		l.job("a")
		l.job("b")
		w := l.watch("watch", quick, "a", "b")
		w.says("transfer")
		l.end("a", c.states[0])
		w.says(string(c.states[0]))
		l.end("b", c.states[1])
		require.Equal(t, c.code, w.ends())
		require.Contains(t, w.out.String(), string(c.states[1]))
	}
}

// Without a terminal there is a line when something changes, and one now and then.
func TestWatchPlain(t *testing.T) {
	l := newLab(t)
	l.job("a")
	w := l.watch("watch", quick)
	w.says("web-01  transfer  30.0%  410 MB/s  1m31s left")
	l.temporal.Change("a", func(r *apiservertest.Run) { r.Limits.Paused = true })
	w.says("paused")
	l.end("a", job.Completed)
	require.Zero(t, w.ends())
	lines := strings.Split(strings.TrimSpace(w.out.String()), "\n")
	require.Len(t, lines, 3)
	require.Regexp(t, `^\d\d:\d\d:\d\d web-01  completed  /exports/web-01$`, lines[2])
	require.NotContains(t, w.out.String(), "\x1b")
}

func TestWatchJSON(t *testing.T) {
	l := newLab(t)
	l.job("a")
	w := l.watch("watch", quick, "--json")
	w.says(`"status":"running"`)
	l.end("a", job.Failed)
	require.Equal(t, 4, w.ends())
	for _, line := range strings.Split(strings.TrimSpace(w.out.String()), "\n") {
		var j job.Job
		require.NoError(t, json.Unmarshal([]byte(line), &j))
		require.Equal(t, "a", j.ID)
	}
}

// On a terminal jobs are drawn in place, within its bounds, and the cursor comes back.
func TestWatchBars(t *testing.T) {
	l := newLab(t)
	l.terminal, l.env["LANG"] = [2]int{100, 24}, "en_US.UTF-8"
	l.job("a")
	w := l.watch("watch", quick)
	w.says("30.0%")
	l.temporal.Change("a", func(r *apiservertest.Run) { r.Activities[0].Beat.Done = 30 << 30 })
	w.says("70.0%")
	l.end("a", job.Completed)
	require.Zero(t, w.ends())
	out := w.out.String()
	require.True(t, strings.HasPrefix(out, "\x1b[?25l"))
	require.True(t, strings.HasSuffix(out, "\x1b[?25h"))
	require.Contains(t, out, "\x1b[3A\r", "three lines: the job and its disks")
	require.Contains(t, out, strings.Repeat("█", 16)+strings.Repeat("░", 8))
	require.Contains(t, out, "\x1b[36mtransfer")
	require.Contains(t, out, "5.0 GiB in 1m23s")
	for _, line := range strings.Split(out, "\n") {
		require.Less(t, width(plain(line)), 100)
	}
}

func plain(s string) string {
	var out strings.Builder
	for s != "" {
		if s[0] == 0x1b {
			end := strings.IndexFunc(s[1:], func(r rune) bool { return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' })
			s = s[end+2:]
			continue
		}
		out.WriteByte(s[0])
		s = s[1:]
	}
	return strings.Trim(out.String(), "\r")
}

func TestWatchInterrupted(t *testing.T) {
	l := newLab(t)
	l.terminal = [2]int{80, 24}
	l.job("a")
	w := l.watch("watch", quick, "a")
	w.says("transfer")
	w.stop()
	require.Equal(t, 130, w.ends())
	require.True(t, strings.HasSuffix(w.out.String(), "\x1b[?25h"), "the cursor is back")
	require.Empty(t, w.errs.String())
}

// A daemon that restarts in between is waited for; one that was never there is not.
func TestWatchOverARestart(t *testing.T) {
	for _, terminal := range []int{0, 80} {
		l := newLab(t)
		l.terminal = [2]int{terminal, 24}
		l.job("a")
		w := l.watch("watch", quick, "a")
		w.says("transfer")
		l.down.Store(true)
		w.says("its jobs go on when it is back")
		l.end("a", job.Completed)
		l.down.Store(false)
		require.Zero(t, w.ends())
		require.Contains(t, w.out.String(), "completed")
	}
}

func TestSubmitAndWatch(t *testing.T) {
	l := newLab(t)
	w := l.watch("submit", "web-01", "-o", "/exports", "--watch")
	w.says("pending")
	l.end(l.temporal.IDs()[0], job.Completed)
	require.Zero(t, w.ends())
	require.Contains(t, w.out.String(), l.temporal.IDs()[0]+"\n")
	w = l.watch("submit", "web-01", "-o", "relative", "--watch")
	require.Equal(t, 1, w.ends())
}
