package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/cmd/terminal/progress"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// run is the exports of one call.
type run struct {
	app     *app
	engine  *engine
	show    progress.Display
	exports []*export
	request *request
	others  []job.Job // that are under way beside those of this call
	away    time.Time // since when the engine does not answer
}

// export is one of them.
type export struct {
	spec job.Spec
	id   string // of its job; empty before it has one
	job  job.Job
	said bool // in the history
}

// patience is how long an engine may be away: another process takes it over within seconds.
const patience = time.Minute

func newRun(ctx context.Context, a *app, e *engine, specs []job.Spec) (*run, error) {
	r := &run{app: a, engine: e}
	screen := a.Screen()
	if a.opt.quiet && !a.opt.json {
		r.show = silent{}
	} else {
		r.show = progress.New(screen, a.opt.json, func(note string) { a.complain("%s", note) })
	}
	for _, s := range specs {
		r.exports = append(r.exports, &export{spec: s})
	}
	var err error
	if r.request, err = openRequest(e.dir, specs); err != nil {
		return nil, err
	}
	if err := r.takeUp(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// silent shows nothing.
type silent struct{}

func (silent) Show([]job.Job, string) {}
func (silent) End()                   {}

// takeUp finds what an earlier call of the same has left: exports under way go on, and of a call that
// was cut off what it completed is not done again.
func (r *run) takeUp(ctx context.Context) error {
	open, err := r.engine.unfinished(ctx)
	if err != nil {
		return err
	}
	for _, x := range r.exports {
		var found *job.Job
		for i, j := range open {
			if keyOf(j.Definition) == keyOf(x.spec) {
				found = &open[i]
			} else if j.Definition.VMPath == x.spec.VMPath && j.Progress != nil && j.Progress.Paused {
				return &codeError{exitRefused, fmt.Errorf("a stopped export of %s to %s (%s) is in the way: go on with it, or give it up with \"hyperexport cancel %s\"",
					x.spec.VMPath, j.Definition.OutputPath, j.Definition.Format, j.ID)}
			}
		}
		if found != nil {
			if err := r.goOn(ctx, x, *found); err != nil {
				return err
			}
			continue
		}
		if id := r.request.Jobs[keyOf(x.spec)]; id != "" {
			j, err := r.engine.api.Job(ctx, id)
			switch {
			case client.IsNotFound(err), err == nil && j.Status != job.Completed:
			case err != nil:
				return err
			default:
				x.id, x.job = id, j
			}
		}
	}
	for _, j := range open {
		if !slices.ContainsFunc(r.exports, func(x *export) bool { return x.id == j.ID }) && (j.Progress == nil || !j.Progress.Paused) {
			r.others = append(r.others, j)
			if !r.app.opt.quiet && !r.app.opt.json {
				r.app.complain("the export of %s to %s is under way, too", j.Definition.VMPath, j.Definition.OutputPath)
			}
		}
	}
	return nil
}

// goOn takes up an export that was stopped or cut off.
func (r *run) goOn(ctx context.Context, x *export, j job.Job) error {
	x.id, x.job = j.ID, j
	d := j.Definition
	if d.Compress != x.spec.Compress || d.Options.Overwrite != x.spec.Options.Overwrite || d.Options.Quiesce != x.spec.Options.Quiesce ||
		d.Options.NoVerify != x.spec.Options.NoVerify || d.Options.Full != x.spec.Options.Full ||
		d.Options.VerifyTracking != x.spec.Options.VerifyTracking || d.Options.Transport != x.spec.Options.Transport {
		r.app.complain("%s goes on as it was begun, with the options that it had then; \"hyperexport cancel %s\" gives it up", d.VMPath, j.ID)
	}
	if !r.app.opt.quiet && !r.app.opt.json {
		r.app.complain("the export of %s goes on", d.VMPath)
	}
	if err := r.control(ctx, func() error { _, err := r.engine.api.Resume(ctx, j.ID); return err }); err != nil {
		return fmt.Errorf("go on with the export of %s: %w", d.VMPath, err)
	}
	if x.spec.Options.LimitMBps == d.Options.LimitMBps {
		return nil
	}
	return r.control(ctx, func() error { _, err := r.engine.api.Limit(ctx, j.ID, x.spec.Options.LimitMBps); return err })
}

// control changes a running job. A worker that has just begun may let the first tries wait too long;
// a job that is ending needs no steering any more.
func (r *run) control(ctx context.Context, do func() error) error {
	late := time.Now().Add(patience)
	for {
		err := do()
		var answer *api.Error
		switch {
		case err == nil, errors.As(err, &answer) && answer.Status == http.StatusConflict:
			return nil
		case ctx.Err() != nil || time.Now().After(late) || !passing(err):
			return err
		}
		select {
		case <-time.After(lookPace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step looks at the jobs that are open, and begins others where there is room.
func (r *run) step(ctx context.Context) error {
	if err := r.look(ctx); err != nil {
		return err
	}
	active := 0
	for _, x := range r.exports {
		if x.id != "" && !x.job.Status.Ended() {
			active++
		}
	}
	for _, x := range r.exports {
		if x.id != "" || active >= r.app.opt.parallel {
			continue
		}
		if err := r.begin(ctx, x); err != nil {
			return err
		}
		if !x.job.Status.Ended() {
			active++
		}
	}
	return nil
}

func (r *run) look(ctx context.Context) error {
	var open []string
	for _, x := range r.exports {
		if x.id != "" && !x.job.Status.Ended() {
			open = append(open, x.id)
		}
	}
	if len(open) == 0 {
		return nil
	}
	out, err := r.engine.api.Jobs(ctx, api.Query{JobIDs: open})
	if err != nil {
		return err
	}
	r.away = time.Time{}
	for _, j := range out.Jobs {
		for _, x := range r.exports {
			if x.id == j.ID {
				x.job = j
			}
		}
	}
	return nil
}

// begin submits an export. Where the same was submitted by somebody else meanwhile, that one is taken:
// who begins holds a lock.
func (r *run) begin(ctx context.Context, x *export) error {
	unlock, err := r.engine.lockSubmit(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	open, err := r.engine.unfinished(ctx)
	if err != nil {
		return err
	}
	for _, j := range open {
		if keyOf(j.Definition) == keyOf(x.spec) {
			x.id, x.job = j.ID, j
			return r.request.note(x)
		}
	}
	out, err := r.engine.api.Submit(ctx, "", api.Submission{Spec: x.spec})
	var answer *api.Error
	switch {
	case err != nil && errors.As(err, &answer) && answer.Status == http.StatusUnprocessableEntity:
		now := job.Now()
		x.job = job.Job{ID: "-", Definition: x.spec, Status: job.Failed, Error: strings.Join(out.Errors, "; "), Reason: string(providers.Invalid),
			CreatedAt: now, CompletedAt: &now, UpdatedAt: now}
		x.id = "-"
		return nil
	case err != nil:
		return err
	case len(out.JobIDs) != 1:
		return fmt.Errorf("the engine answered %d jobs to one", len(out.JobIDs))
	}
	x.id = out.JobIDs[0]
	x.job = job.Job{ID: x.id, Definition: x.spec, Status: job.Pending}
	return r.request.note(x)
}

// forgive takes it that the engine is away for a moment: another process had it, and has ended.
func (r *run) forgive(ctx context.Context, err error) (note string, _ error) {
	switch {
	case !passing(err):
		return "", err
	case r.away.IsZero():
		r.away = time.Now()
	case time.Since(r.away) > patience:
		return "", err
	}
	if err := r.engine.reconnect(ctx); err != nil {
		return "", err
	}
	return "", nil
}

// passing says whether an error is that the engine is away, or busy.
func passing(err error) bool {
	var away *client.UnreachableError
	var answer *api.Error
	return errors.As(err, &away) || errors.As(err, &answer) && answer.Status >= 500
}

func (r *run) display(note string) {
	jobs := make([]job.Job, 0, len(r.exports))
	waiting := 0
	for _, x := range r.exports {
		if x.id == "" {
			waiting++
			continue
		}
		jobs = append(jobs, x.job)
	}
	// What goes on comes first: a terminal may not have room for all.
	if r.app.Screen().Live() {
		slices.SortStableFunc(jobs, func(a, b job.Job) int { return order(a) - order(b) })
	}
	if note == "" && waiting > 0 && r.app.Screen().Live() && !r.app.opt.json {
		note = fmt.Sprintf("%d more wait for their turn (--parallel %d)", waiting, r.app.opt.parallel)
	}
	r.show.Show(jobs, note)
}

func order(j job.Job) int {
	switch {
	case j.Status == job.Running:
		return 0
	case j.Status == job.Pending:
		return 1
	case j.Status != job.Completed:
		return 2
	}
	return 3
}

func (r *run) done() bool {
	return !slices.ContainsFunc(r.exports, func(x *export) bool { return x.id == "" || !x.job.Status.Ended() })
}

// record writes what has ended into the history; a call that is done with all of it is forgotten.
func (r *run) record() error {
	var entries []historyEntry
	for _, x := range r.exports {
		if x.id != "" && x.job.Status.Ended() && !x.said {
			entries = append(entries, entryOf(x.job, r.engine.platform))
			x.said = true
		}
	}
	err := appendHistory(r.app.opt.dataDir, entries)
	if r.done() {
		err = errors.Join(err, r.request.forget())
	}
	return err
}

// unfinished are the exports that are under way or stopped, in this folder.
func (e *engine) unfinished(ctx context.Context) ([]job.Job, error) {
	out, err := e.api.Jobs(ctx, api.Query{Status: api.States{job.Pending, job.Running}, All: true})
	return out.Jobs, err
}

// lockSubmit lets one call at a time look for an export and begin it.
func (e *engine) lockSubmit(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(e.dir, "submit.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-time.After(joinPace):
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
}
