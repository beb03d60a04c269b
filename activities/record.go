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
	// Drives are CD drives to be put back, and PowerOn that the VM is to run again.
	Drives  []providers.Drive `json:"drives,omitempty"`
	PowerOn bool              `json:"power_on,omitempty"`
	Target  Target            `json:"target"`
	Targets []Target          `json:"targets,omitempty"` // of a job without a folder of its own
	Import  *importRecord     `json:"import,omitempty"`  // of a job that makes a VM, and no files
}

func (s *Site) recordPath(job string) string {
	return jobDir(s.records(), job) + ".json"
}

// records is the folder with a record for each job that has something on this host.
func (s *Site) records() string { return filepath.Join(s.Data, "work") }

func (s *Site) writeRecord(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return WriteFile(s.recordPath(r.Job), b)
}

// changeRecord changes the record of a job; what has none needs none.
func (s *Site) changeRecord(job string, change func(*record)) error {
	var r record
	b, err := os.ReadFile(s.recordPath(job))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return fmt.Errorf("record of the job: %w", err)
	}
	change(&r)
	return s.writeRecord(r)
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

// discard removes the hidden files of a job, if they are this host's to remove, and the folder, if the
// job made it and nothing else is in it.
func (s *Site) discard(ctx context.Context, job string, t Target, log *slog.Logger) error {
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
	if c.Chain {
		err = errors.Join(err, f.discardPoint(ctx, job))
	}
	for _, n := range slices.Sorted(maps.Keys(c.Naming)) {
		// What was given its name before the job failed; what it replaced cannot be had back, so that stays.
		if !t.Overwrite && plain(n) && f.named(n, c) {
			err = errors.Join(err, f.remove(n))
		}
	}
	if err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if err := f.remove(f.claimFile); err != nil {
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
