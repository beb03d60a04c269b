package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/cmd/terminal/progress"
	"hypersdk/workflows/job"
)

const (
	livePace = 500 * time.Millisecond
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
	show progress.Display
	jobs map[string]job.Job
	gone absence
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
	defer w.show.End()
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
	if err = w.gone.forgive(ctx, err); err != nil {
		return false, err
	}
	if w.gone.away() {
		note = awayNote
	}
	list := make([]job.Job, 0, len(w.ids))
	for _, id := range w.ids {
		list = append(list, w.jobs[id])
	}
	w.show.Show(list, note)
	return len(open) == 0 || !slices.ContainsFunc(list, func(j job.Job) bool { return !j.Status.Ended() }), verdict(list, note)
}

const awayNote = "the daemon does not answer; its jobs go on when it is back"

// absence is that of a daemon that answered before.
type absence struct {
	known bool      // it has answered
	since time.Time // zero: it is there
}

func (d *absence) away() bool { return !d.since.IsZero() }

// forgive takes what an attempt to reach the daemon came to. It answers the error of one that is not
// merely away for a while.
func (d *absence) forgive(ctx context.Context, err error) error {
	var away *client.UnreachableError
	var refused *api.Error
	passing := errors.As(err, &away) || errors.As(err, &refused) && refused.Status >= 500
	switch {
	case err == nil:
		*d = absence{known: true}
		return nil
	case ctx.Err() != nil || !passing || !d.known:
		return err
	case !d.away():
		d.since = time.Now()
	case time.Since(d.since) > patience:
		return err
	}
	return nil
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

func (a *app) display() progress.Display {
	return progress.New(a.Screen(), a.json, func(note string) { a.complain("%s", note) })
}
