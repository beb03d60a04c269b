package activities

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hypersdk/providers"
)

// sweeps is what a host remembers from one sweep to the next.
type sweeps struct {
	pending map[string]retry // by file name of the record
	logs    time.Time        // when old logs were looked for
}

// retry is when a clean-up that failed is tried again.
type retry struct {
	at    time.Time
	pause time.Duration
}

const (
	firstRetry = time.Minute
	lastRetry  = 6 * time.Hour
	logsPace   = time.Hour
)

// Sweep removes what dead jobs left on this host or because of it, frees their places, and deletes
// logs that are old enough. What fails is logged and tried again, less and less often. One sweep runs
// at a time.
func (s *Site) Sweep(ctx context.Context) error {
	home, err := s.deps.Engine.Home(ctx)
	if err != nil {
		return err
	}
	for _, job := range s.places.all() {
		if ended, host, err := s.whereabouts(ctx, job); err == nil && (ended || host != s.Host) {
			s.places.leave(job)
		}
	}
	entries, err := os.ReadDir(s.records())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if last, ok := s.swept.pending[e.Name()]; strings.HasSuffix(e.Name(), ".json") && (!ok || !time.Now().Before(last.at)) {
			s.sweepRecord(ctx, e.Name(), home)
		}
	}
	if time.Since(s.swept.logs) >= logsPace {
		s.swept.logs = time.Now()
		return s.forgetLogs()
	}
	return nil
}

func (s *Site) sweepRecord(ctx context.Context, name, home string) {
	path := filepath.Join(s.records(), name)
	var r record
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && r.Home == home {
		err = s.sweep(ctx, r)
	}
	if err == nil || ctx.Err() != nil {
		delete(s.swept.pending, name)
		return
	}
	last := s.swept.pending[name]
	last.pause = min(max(2*last.pause, firstRetry), lastRetry)
	last.at = time.Now().Add(last.pause)
	s.swept.pending[name] = last
	s.deps.Log.Warn("what a job left behind could not be removed", "job", r.Job, "record", path, "again in", last.pause.String(), "error", err)
}

// whereabouts says whether a job has ended, and else on which host it is; empty: on none now.
func (s *Site) whereabouts(ctx context.Context, job string) (ended bool, host string, err error) {
	if ended, err = s.deps.Engine.Ended(ctx, job); err == nil && !ended {
		host, err = s.deps.Engine.Where(ctx, job)
	}
	return ended, host, err
}

// sweep cleans up after one job: all of it where the job has ended, its files where it went on on
// another host.
func (s *Site) sweep(ctx context.Context, r record) error {
	ended, host, err := s.whereabouts(ctx, r.Job)
	if err != nil {
		return err
	}
	if !ended && (host == s.Host || host == "") {
		return nil
	}
	ctx, done := context.WithCancel(ctx) // the connection is lent for as long
	defer done()
	log := s.logger(r.Job)
	if r.Import != nil {
		return s.sweepImport(ctx, r, ended, log)
	}
	targets := r.Targets
	if len(targets) == 0 {
		targets = []Target{r.Target}
	}
	for _, t := range targets {
		if err := s.discard(ctx, r.Job, t, log); err != nil {
			return err
		}
	}
	if ended && r.SnapshotKey != "" {
		err := s.dropSnapshot(ctx, DropRequest{Job: r.Job, Connection: r.Connection, VM: r.VM, Key: r.SnapshotKey}, log)
		if errors.Is(err, providers.NotFound) {
			log.Warn("the snapshot could not be looked for", "snapshot", r.SnapshotKey, "error", err)
			err = nil // the connection is no longer known: it will not be later either
		}
		if err != nil {
			return err
		}
		if err := s.restoreSource(ctx, r, log); err != nil {
			return err
		}
		if err := s.deps.Connections.Forget(ctx, r.Connection); err != nil {
			return err
		}
	}
	log.Info("removed what the job had left on this host", "dir", filepath.Join(r.Target.Output, r.Target.Folder))
	return s.dropRecord(r.Job)
}

// forgetLogs deletes the logs that have not grown for as long as logs are kept.
func (s *Site) forgetLogs() error {
	entries, err := os.ReadDir(s.logs.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(s.logs.dir, e.Name())
		if old, err := s.old(dir); err != nil || !old {
			continue // gone meanwhile, or still in use
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// old says whether nothing in a folder has changed for as long as logs are kept.
func (s *Site) old(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	st, err := os.Stat(dir)
	if err != nil || time.Since(st.ModTime()) < s.LogKeep {
		return false, err
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || time.Since(st.ModTime()) < s.LogKeep {
			return false, err
		}
	}
	return true, nil
}
