package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/workflows/job"
)

const (
	livePace = 500 * time.Millisecond
	// plainPace is how often a job is mentioned where the output is no terminal, if nothing changes but
	// its numbers.
	plainPace = 5 * time.Second
	// patience is how long a daemon may be away, once it has answered: jobs outlive its restart.
	patience = 5 * time.Minute
)

func (a *app) watchCommand() *cobra.Command {
	var pace time.Duration
	c := &cobra.Command{
		Use: "watch [JOB...]", Short: "Show the progress of jobs until they have ended",
		Long: `Shows the progress of jobs, or of all that run or wait, until they have ended: live on a terminal, as a
line every few seconds elsewhere, and as an object per change with --json. A daemon that restarts in
between is waited for.

The exit code is 4 where a job failed, and 5 where one was cancelled.`,
		RunE:              func(c *cobra.Command, args []string) error { return a.watch(c.Context(), args, pace) },
		ValidArgsFunction: a.completeJobs(job.Pending, job.Running),
	}
	c.Flags().DurationVar(&pace, "interval", 0, "how often to look (default 500ms)")
	return c
}

// watcher is what is watched, and how it is shown.
type watcher struct {
	a    *app
	ids  []string
	show display
	jobs map[string]job.Job
	away time.Time // since when the daemon does not answer
}

// display is a way to show jobs.
type display interface {
	show(jobs []job.Job, note string)
	end()
}

func (a *app) watch(ctx context.Context, ids []string, pace time.Duration) error {
	if pace < 0 || pace > 0 && pace < 50*time.Millisecond {
		return usageError("--interval must be at least 50ms")
	}
	if pace == 0 {
		pace = livePace
	}
	if len(ids) == 0 {
		open, err := a.client.Jobs(ctx, api.Query{Status: api.States{job.Pending, job.Running}, All: true})
		if err != nil {
			return err
		}
		for _, j := range open.Jobs {
			ids = append(ids, j.ID)
		}
		if len(ids) == 0 {
			a.complain("no job runs or waits")
			return nil
		}
	}
	w := &watcher{a: a, ids: ids, jobs: map[string]job.Job{}, show: a.display()}
	defer w.show.end()
	t := time.NewTicker(pace)
	defer t.Stop()
	for {
		done, err := w.look(ctx)
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// look asks once and shows what there is; done when all jobs have ended, with what that comes to.
func (w *watcher) look(ctx context.Context) (done bool, err error) {
	var open []string
	for _, id := range w.ids {
		if !w.jobs[id].Status.Ended() {
			open = append(open, id)
		}
	}
	note := ""
	for _, some := range slices.Collect(slices.Chunk(open, 500)) {
		var out api.Jobs
		if out, err = w.a.client.Jobs(ctx, api.Query{JobIDs: some}); err != nil {
			break
		}
		for _, j := range out.Jobs {
			w.jobs[j.ID] = j
		}
		for _, id := range some {
			if _, ok := w.jobs[id]; !ok {
				return false, &codeError{exitNotFound, fmt.Errorf("no such job: %s", id)}
			}
		}
	}
	if note, err = w.forgive(ctx, err); err != nil {
		return false, err
	}
	list := make([]job.Job, 0, len(w.ids))
	for _, id := range w.ids {
		list = append(list, w.jobs[id])
	}
	w.show.show(list, note)
	return len(open) == 0 || !slices.ContainsFunc(list, func(j job.Job) bool { return !j.Status.Ended() }), verdict(list, note)
}

// forgive takes it that a daemon that answered before is away for a while.
func (w *watcher) forgive(ctx context.Context, err error) (note string, _ error) {
	var away *client.UnreachableError
	var refused *api.Error
	passing := errors.As(err, &away) || errors.As(err, &refused) && refused.Status >= 500
	switch {
	case err == nil:
		w.away = time.Time{}
		return "", nil
	case ctx.Err() != nil || !passing || len(w.jobs) == 0:
		return "", err
	case w.away.IsZero():
		w.away = time.Now()
	case time.Since(w.away) > patience:
		return "", err
	}
	return "the daemon does not answer; its jobs go on when it is back", nil
}

// verdict is what the ends of jobs come to: nil while one is open.
func verdict(jobs []job.Job, note string) error {
	var failed, cancelled int
	for _, j := range jobs {
		switch {
		case !j.Status.Ended() || note != "":
			return nil
		case j.Status == job.Failed:
			failed++
		case j.Status == job.Cancelled:
			cancelled++
		}
	}
	switch {
	case failed > 0:
		return &codeError{code: exitJobFailed}
	case cancelled > 0:
		return &codeError{code: exitCancelled}
	}
	return nil
}

func (a *app) display() display {
	w, h, terminal := a.size()
	switch {
	case a.json:
		return &jsonLines{a: a, last: map[string]string{}}
	case terminal && a.env("TERM") != "dumb":
		return newBars(a, w, h)
	default:
		return &plainLines{a: a, last: map[string]mention{}}
	}
}

// jsonLines prints a job whenever it has changed.
type jsonLines struct {
	a    *app
	last map[string]string
}

func (l *jsonLines) show(jobs []job.Job, _ string) {
	for _, j := range jobs {
		b, err := json.Marshal(j)
		if err == nil && l.last[j.ID] != string(b) {
			l.last[j.ID] = string(b)
			l.a.printf("%s\n", b)
		}
	}
}

func (l *jsonLines) end() {}

// plainLines prints a line for a job every few seconds, and at once when something other than a number
// changes.
type plainLines struct {
	a    *app
	last map[string]mention
	note string
}

type mention struct {
	at    time.Time
	state string
}

func (l *plainLines) show(jobs []job.Job, note string) {
	now := time.Now()
	if note != "" && note != l.note {
		l.a.complain("%s", note)
	}
	l.note = note
	for _, j := range jobs {
		last, state := l.last[j.ID], stateOf(j)
		if last.state == state && (now.Sub(last.at) < plainPace || j.Status.Ended() || note != "") {
			continue
		}
		l.last[j.ID] = mention{now, state}
		l.a.printf("%s %s\n", now.Format("15:04:05"), clean(strings.Join(lineOf(j), "  ")))
	}
}

func (l *plainLines) end() {}

func stateOf(j job.Job) string {
	s := string(j.Status)
	if p := j.Progress; p != nil {
		s += fmt.Sprint(p.Phase, p.Paused, p.WaitingFor != "")
	}
	return s
}

// lineOf is a job in a line: what it is called, where it is, and how fast it goes on.
func lineOf(j job.Job) []string {
	line := []string{title(j), string(j.Status)}
	if p := j.Progress; p != nil && j.Status == job.Running {
		line[1] = string(p.Phase)
		line = append(line, percentText(p.PercentComplete))
		for _, s := range []string{rateText(p.TransferRateMBps), p.EstimatedRemaining} {
			if s != "" {
				line = append(line, s)
			}
		}
		if p.EstimatedRemaining != "" {
			line[len(line)-1] += " left"
		}
	}
	r := remark(j)
	if p := j.Progress; p != nil && j.Status == job.Running && p.TransferRateMBps > 0 && !p.Paused && p.WaitingFor == "" {
		r = "" // the numbers say it
	}
	if r != "" {
		line = append(line, strings.ReplaceAll(r, "\n", " "))
	}
	return line
}
