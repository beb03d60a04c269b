package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hypersdk/providers"
)

// record is what a host must know to clean up after a job whose workflow cannot do so any more: it was
// terminated, or it went on on another host. It is written before anything is made.
type record struct {
	Job         string         `json:"job"`
	Home        string         `json:"home"` // cluster and namespace of the job
	Connection  string         `json:"connection"`
	VM          providers.VMID `json:"vm"`
	SnapshotKey string         `json:"snapshot_key"`
	Target      Target         `json:"target"`
}

const recordName = "work.json"

func (s *Site) recordPath(job string) string {
	return filepath.Join(jobDir(s.jobs(), job), recordName)
}

// jobs is the folder with a folder for each job that the host has seen.
func (s *Site) jobs() string { return s.logs.dir }

func (s *Site) writeRecord(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := s.recordPath(r.Job)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return WriteFile(path, b)
}

// WriteFile replaces a file as a whole, durably, or not at all.
func WriteFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (s *Site) dropRecord(job string) error {
	if err := os.Remove(s.recordPath(job)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep removes what dead jobs left on this host or because of it, frees their places, and deletes
// logs that are old enough. What fails is logged and tried the next time.
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
	entries, err := os.ReadDir(s.jobs())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dir := filepath.Join(s.jobs(), e.Name())
		b, err := os.ReadFile(filepath.Join(dir, recordName))
		var r record
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.forgetLog(dir)
		case err != nil || json.Unmarshal(b, &r) != nil:
			s.deps.Log.Warn("the record of a job cannot be read", "file", filepath.Join(dir, recordName), "error", err)
		case r.Home == home:
			if err := s.sweep(ctx, r); err != nil {
				s.deps.Log.Warn("what a job left behind could not be removed yet", "job", r.Job, "error", err)
			}
		}
	}
	return nil
}

// whereabouts says whether a job has ended, and else on which host it is; empty: on none now.
func (s *Site) whereabouts(ctx context.Context, job string) (ended bool, host string, err error) {
	if ended, err = s.deps.Engine.Ended(ctx, job); err == nil && !ended {
		host, err = s.deps.Engine.Where(ctx, job)
	}
	return ended, host, err
}

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
	if err := s.discard(r.Job, r.Target, log); err != nil {
		return err
	}
	if ended {
		if err := s.dropSnapshot(ctx, DropRequest{Job: r.Job, Connection: r.Connection, VM: r.VM, Key: r.SnapshotKey}, log); err != nil {
			return err
		}
		if err := s.deps.Connections.Forget(ctx, r.Connection); err != nil {
			return err
		}
	}
	log.Info("removed what the job had left on this host", "dir", filepath.Join(r.Target.Output, r.Target.Folder))
	return s.dropRecord(r.Job)
}

// forgetLog deletes a job's folder once its log has not grown for as long as logs are kept.
func (s *Site) forgetLog(dir string) {
	files, err := s.logs.files(dir)
	if err != nil {
		return
	}
	for _, f := range files {
		st, err := os.Stat(filepath.Join(dir, f.name()))
		if err != nil || time.Since(st.ModTime()) < s.LogKeep {
			return
		}
	}
	if st, err := os.Stat(dir); err != nil || time.Since(st.ModTime()) < s.LogKeep {
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		s.deps.Log.Warn("an old log could not be deleted", "dir", dir, "error", err)
	}
}

// discard removes the hidden files of a job, if they are this host's to remove, and the folder, if the
// job made it and nothing else is in it.
func (s *Site) discard(job string, t Target, log *slog.Logger) error {
	f, err := s.openFolder(t, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, providers.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	c, mine, err := f.mine(job, s.Host)
	if err != nil {
		return err
	}
	if !mine {
		if c.Job == job {
			log.Info("the folder belongs to the job on another host now", "dir", f.path, "host", c.Host)
		}
		return nil
	}
	err = f.discardFiles(c.Files)
	for _, n := range slices.Sorted(maps.Keys(c.Naming)) {
		// What was given its name before the job failed; what it replaced cannot be had back, so that stays.
		if !t.Overwrite && plain(n) && f.named(n, c) {
			err = errors.Join(err, f.remove(n))
		}
	}
	if err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if err := f.remove(claimName); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if c.Made {
		// Fails where something else is in it, which is right.
		_ = s.removeFolder(t)
	}
	log.Info("removed the hidden files", "dir", f.path)
	return nil
}

func (s *Site) removeFolder(t Target) error {
	out, err := s.openOutput(t.Output, false)
	if err != nil {
		return err
	}
	defer out.Close()
	return out.Remove(t.Folder)
}
