package activities

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Finish gives the files their names and writes the manifest. It may be cut off anywhere and begun
// again: what has its name already is known by its inode.
func (c *Control) Finish(ctx context.Context, in FinishRequest) (Finished, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, FinishActivity, func(_ context.Context, log *slog.Logger) (Finished, error) {
		f, err := c.openFolder(in.Target, false)
		if err != nil {
			return Finished{}, err
		}
		defer f.Close()
		old, ok, err := f.readManifest()
		if err != nil {
			return Finished{}, err
		}
		if !ok || old.Job != in.Job {
			if err := c.name(f, in); err != nil {
				return Finished{}, err
			}
			if err := f.writeManifest(in.manifest(c.Version, job.Now()), in.Target.Overwrite); err != nil {
				return Finished{}, err
			}
			if ok {
				f.removeStale(old, in, log)
			}
		}
		if err := errors.Join(f.remove(claimName), syncDir(f.root)); err != nil {
			return Finished{}, err
		}
		out, err := f.finished(in)
		log.Info("export is complete", "dir", out.Dir, "files", len(out.Files), "bytes", out.Total)
		return out, err
	})
}

// name renames every disk and its digests, durably.
func (c *Control) name(f *folder, in FinishRequest) error {
	p := part{folder: f, job: in.Job, host: c.Host, name: manifestName}
	if err := p.stillMine(); err != nil {
		return err
	}
	claimed, err := f.readClaim()
	if err != nil {
		return err
	}
	if !claimed.Naming {
		claimed.Naming = true
		if err := f.putClaim(claimed); err != nil {
			return err
		}
	}
	for _, d := range in.Disks {
		if err := f.nameDisk(d, in.Target.Overwrite); err != nil {
			return err
		}
		if err := f.remove(journalName(d.File)); err != nil {
			return err
		}
	}
	return syncDir(f.root)
}

func (f *folder) putClaim(c claim) error {
	file, err := f.open(claimName, os.O_RDWR)
	if err != nil {
		return err
	}
	defer file.Close()
	return writeClaim(file, c)
}

func (f *folder) nameDisk(d FinishDisk, replace bool) error {
	if !plain(d.File) {
		return refuse(providers.Invalid, "%q is not the name of a file", d.File)
	}
	// The digests go first: while a disk is hidden it can still be seen to be unfinished.
	err := f.rename(digestsName(d.File), d.File+digestsExt, replace)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	at := partName(d.File)
	st, err := f.root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		at = d.File
		st, err = f.root.Lstat(at)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(providers.NotFound, "%s was removed before the export was complete", filepath.Join(f.path, partName(d.File)))
	case err != nil:
		return err
	case inodeOf(st) != d.Inode || !st.Mode().IsRegular():
		return refuse(providers.Corrupt, "%s is not the file that was written", filepath.Join(f.path, at))
	case at == d.File:
		return nil
	}
	return f.rename(at, d.File, replace)
}

// removeStale removes the files of an earlier export that the new one did not replace.
func (f *folder) removeStale(old Manifest, in FinishRequest, log *slog.Logger) {
	keep := in.manifest("", job.Time{}).files()
	for _, n := range old.files() {
		if slices.Contains(keep, n) || !strings.Contains(n, "-disk-") {
			continue
		}
		if err := f.remove(n); err != nil {
			log.Warn("a file of the earlier export could not be removed", "file", n, "error", err)
		}
	}
}

func (f *folder) finished(in FinishRequest) (Finished, error) {
	out := Finished{Dir: f.path}
	for _, n := range append(in.manifest("", job.Time{}).files(), manifestName) {
		st, err := f.root.Lstat(n)
		if err != nil {
			return out, fmt.Errorf("finish: %w", err)
		}
		out.Files = append(out.Files, filepath.Join(f.path, n))
		out.Total += st.Size()
	}
	return out, nil
}

func inodeOf(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}
