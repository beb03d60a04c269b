package activities

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
	"hypersdk/providers"
)

// openOwned opens the output folder of a job, which must be the job's on this host.
func (s *Site) openOwned(job string, t Target, name string) (*folder, error) {
	f, err := s.openFolder(t, false)
	if err != nil {
		return nil, err
	}
	if err := s.stillOwned(f, job, name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stillOwned checks that the folder belongs to the job on this host.
func (s *Site) stillOwned(f *folder, job, name string) error {
	p := part{folder: f, job: job, host: s.Host, name: name}
	return p.stillMine()
}

// BeginPackage makes the archive of a package, without the contents of its disks, or finds that an
// earlier attempt has: then what is in it stays.
func (d *Data) BeginPackage(ctx context.Context, in PackageRequest) (BegunPackage, error) {
	d.places.take(in.Job)
	return step(ctx, d.Site, in.Job, BeginPackageActivity, func(ctx context.Context, log *slog.Logger) (BegunPackage, error) {
		f, err := d.openOwned(in.Job, in.Target, in.Target.Archive())
		if err != nil {
			return BegunPackage{}, err
		}
		defer f.Close()
		out, err := f.begunPackage(ctx, in)
		if err != nil || out.Size > 0 {
			return out, err
		}
		env, err := d.describe(ctx, f, in)
		if err != nil {
			return BegunPackage{}, err
		}
		if err := f.beginArchive(in, env); err != nil {
			return BegunPackage{}, err
		}
		if out, err = f.begunPackage(ctx, in); err == nil {
			log.Info("package begun", "file", in.Target.Archive(), "disks", len(in.Disks), "size", out.Size)
		}
		return out, err
	})
}

// beginArchive lays the archive out in a new file. What was put into an old one, if there is one, is of
// another layout.
func (f *folder) beginArchive(in PackageRequest, env ovf.Envelope) error {
	l, err := ovf.NewLayout(ovf.Content{Name: in.Target.Base, Envelope: env, Time: in.Time})
	if err != nil {
		return err
	}
	name := partName(in.Target.Archive())
	if err := f.remove(name); err != nil {
		return err
	}
	// The new file may well get the inode of the old one: what journals say of that must be gone before.
	for _, d := range in.Disks {
		if err := f.remove(packName(d.File)); err != nil {
			return err
		}
	}
	if err := syncDir(f.root); err != nil {
		return err
	}
	file, err := f.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := errors.Join(f.lock(file, name), l.Begin(file), file.Sync()); err != nil {
		return err
	}
	return syncDir(f.root)
}

// begunPackage says where the disks go in an archive that is there; of one that is not, or is laid out
// for other disks, nothing.
func (f *folder) begunPackage(ctx context.Context, in PackageRequest) (BegunPackage, error) {
	file, err := f.open(partName(in.Target.Archive()), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return BegunPackage{}, nil
	}
	if err != nil {
		return BegunPackage{}, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return BegunPackage{}, err
	}
	all, err := ovf.Places(ctx, file, st.Size())
	if errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrFormat) {
		return BegunPackage{}, nil // cut off while it was begun
	}
	if err != nil || len(all) != 2+len(in.Disks) || all[0].Name != in.Target.descriptor() || all[1].Name != in.Target.sums() {
		return BegunPackage{}, err
	}
	out := BegunPackage{Size: st.Size()}
	for i, d := range in.Disks {
		p := all[2+i]
		if p.Name != d.File || p.Size != d.Stored {
			return BegunPackage{}, nil
		}
		out.Offsets = append(out.Offsets, p.Off)
	}
	return out, nil
}

// describe makes the descriptor of a package from the hidden files of its disks.
func (d *Data) describe(ctx context.Context, f *folder, in PackageRequest) (ovf.Envelope, error) {
	format, err := d.deps.Format(in.Target.Format)
	if err != nil {
		return ovf.Envelope{}, err
	}
	populated := make([]int64, len(in.Disks))
	for i, disk := range in.Disks {
		if populated[i], err = f.populated(ctx, format, disk); err != nil {
			return ovf.Envelope{}, err
		}
	}
	return envelope(in.VM, in.Disks, populated), nil
}

// populated is how many bytes of a disk hold data.
func (f *folder) populated(ctx context.Context, format formats.Format, d PackagedDisk) (int64, error) {
	file, err := f.openDisk(d)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	img, err := format.Open(ctx, file, d.Stored, formats.OpenOptions{})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(f.path, partName(d.File)), err)
	}
	defer img.Close()
	var n int64
	for e, err := range img.Extents(ctx, 0, img.Size()) {
		if err != nil {
			return 0, err
		}
		if e.Kind == formats.Data {
			n += e.Len
		}
	}
	return n, nil
}

// openDisk opens the hidden file of a disk that was copied, as it was then.
func (f *folder) openDisk(d PackagedDisk) (*os.File, error) {
	if !plain(d.File) {
		return nil, refuse(providers.Invalid, "%q is not the name of a file", d.File)
	}
	file, err := f.open(partName(d.File), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, f.removed(partName(d.File))
	}
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && (inodeOf(st) != d.Inode || st.Size() != d.Stored) {
		err = refuse(providers.Corrupt, "%s is not the file that was written", filepath.Join(f.path, partName(d.File)))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
