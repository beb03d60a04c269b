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
			if ok {
				// Before the manifest: an attempt that is cut off here is begun again, and knows still what was old.
				f.removeStale(old, in, log)
			}
			if err := f.writeManifest(in.manifest(c.Version, job.Now()), in.Target.Overwrite); err != nil {
				return Finished{}, err
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
		if claimed.Naming, err = f.inodes(in.namings()); err != nil {
			return err
		}
		if err := f.putClaim(claimed); err != nil {
			return err
		}
	}
	for _, n := range in.namings() {
		if err := f.nameFile(n.hidden, n.final, claimed, in.Target.Overwrite); err != nil {
			return err
		}
	}
	for _, d := range in.Disks {
		if err := errors.Join(f.remove(journalName(d.File)), f.remove(packName(d.File)), f.removeRound(d.File)); err != nil {
			return err
		}
	}
	return syncDir(f.root)
}

// naming is a hidden file that is to be given its name. inode 0: it was not noted when it was written.
type naming struct {
	hidden, final string
	inode         uint64
}

// namings are the files of an export in the order in which they get their names. The digests go before
// their disk: while a disk is hidden it is seen to be unfinished. The descriptor of a package goes last.
func (in FinishRequest) namings() []naming {
	var out []naming
	for _, d := range in.Disks {
		out = append(out, naming{digestsName(d.File), d.File + digestsExt, 0})
		if d.Archive == "" {
			out = append(out, naming{partName(d.File), d.File, d.Inode})
		}
	}
	for _, p := range slices.Backward(in.Package) {
		out = append(out, naming{partName(p.Name), p.Name, p.Inode})
	}
	return out
}

// inodes lists, by final name, the hidden files that are to be named.
func (f *folder) inodes(all []naming) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, n := range all {
		if !plain(n.final) {
			return nil, refuse(providers.Invalid, "%q is not the name of a file", n.final)
		}
		st, err := f.root.Lstat(n.hidden)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, f.removed(n.hidden)
		}
		if err != nil {
			return nil, err
		}
		out[n.final] = inodeOf(st)
		if n.inode != 0 && out[n.final] != n.inode {
			return nil, refuse(providers.Corrupt, "%s is not the file that was written", filepath.Join(f.path, n.hidden))
		}
	}
	return out, nil
}

func (f *folder) removed(name string) error {
	return refuse(providers.NotFound, "%s was removed before the job was complete", filepath.Join(f.path, name))
}

func (f *folder) putClaim(c claim) error {
	file, err := f.open(f.claimFile, os.O_RDWR)
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
		// What a manifest that anybody may have written names is removed only if an export could be it.
		packaged := slices.Contains([]string{".ova", ".ovf", ".mf"}, filepath.Ext(n)) && strings.HasPrefix(n, PackageName(in.Target.Folder))
		if slices.Contains(keep, n) || !packaged && !strings.Contains(n, "-disk-") {
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
