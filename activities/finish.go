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

// name renames every disk and its digests, durably. The claim says beforehand which files those are, so
// that an attempt that is cut off, and a job that fails in the middle, know their own.
func (c *Control) name(f *folder, in FinishRequest) error {
	p := part{folder: f, job: in.Job, host: c.Host, name: manifestName}
	if err := p.stillMine(); err != nil {
		return err
	}
	claimed, err := f.readClaim()
	if err != nil {
		return err
	}
	if claimed.Naming == nil {
		if claimed.Naming, err = f.inodes(in.Disks); err != nil {
			return err
		}
		if err := f.putClaim(claimed); err != nil {
			return err
		}
	}
	for _, d := range in.Disks {
		// The digests go first: while a disk is hidden it is seen to be unfinished.
		if err := f.nameFile(digestsName(d.File), d.File+digestsExt, claimed, in.Target.Overwrite); err != nil {
			return err
		}
		if err := f.nameFile(partName(d.File), d.File, claimed, in.Target.Overwrite); err != nil {
			return err
		}
		if err := f.remove(journalName(d.File)); err != nil {
			return err
		}
	}
	return syncDir(f.root)
}

// inodes lists, by final name, the hidden files that are to be named.
func (f *folder) inodes(disks []FinishDisk) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, d := range disks {
		if !plain(d.File) {
			return nil, refuse(providers.Invalid, "%q is not the name of a file", d.File)
		}
		for final, hidden := range map[string]string{d.File: partName(d.File), d.File + digestsExt: digestsName(d.File)} {
			st, err := f.root.Lstat(hidden)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, f.removed(hidden)
			}
			if err != nil {
				return nil, err
			}
			out[final] = inodeOf(st)
		}
		if out[d.File] != d.Inode {
			return nil, refuse(providers.Corrupt, "%s is not the file that was written", filepath.Join(f.path, partName(d.File)))
		}
	}
	return out, nil
}

func (f *folder) removed(name string) error {
	return refuse(providers.NotFound, "%s was removed before the export was complete", filepath.Join(f.path, name))
}

func (f *folder) putClaim(c claim) error {
	file, err := f.open(claimName, os.O_RDWR)
	if err != nil {
		return err
	}
	defer file.Close()
	return writeClaim(file, c)
}

// nameFile renames one file, or finds that it has its name.
func (f *folder) nameFile(hidden, final string, c claim, replace bool) error {
	err := f.rename(hidden, final, replace)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !f.named(final, c) {
		return f.removed(hidden)
	}
	return nil
}

// named says whether a file with a final name is the job's own.
func (f *folder) named(final string, c claim) bool {
	st, err := f.root.Lstat(final)
	return err == nil && c.Naming[final] != 0 && inodeOf(st) == c.Naming[final]
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
