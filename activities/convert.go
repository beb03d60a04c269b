package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// AskConversion puts a conversion into the queue of admission. It shares nothing with other jobs but the
// limit on all: two that write one file are kept apart by the claim on it.
func (c *Control) AskConversion(ctx context.Context, in AskConversionRequest) (Asked, error) {
	return step(ctx, c.Site, in.Job, AskConversionActivity, func(ctx context.Context, _ *slog.Logger) (Asked, error) {
		name := clip(in.Title, 100)
		err := c.deps.Engine.Ask(ctx, Ticket{Job: in.Job, Key: in.Job, VM: name, Priority: in.Priority})
		return Asked{VM: name, Terms: c.terms()}, err
	})
}

// Hosts are the hosts that may have the files of a job: this one, which answers, and those that were
// heard of lately.
func (c *Control) Hosts(ctx context.Context, in HostsRequest) (Hosts, error) {
	return step(ctx, c.Site, in.Job, HostsActivity, func(ctx context.Context, _ *slog.Logger) (Hosts, error) {
		ids, err := c.deps.Engine.Hosts(ctx)
		if err != nil {
			return Hosts{}, err
		}
		ids = append(ids, c.Host)
		slices.Sort(ids)
		return Hosts{IDs: slices.Compact(ids)}, nil
	})
}

// Look opens every image of a conversion, and tries whether the target format can do what was asked for.
func (c *Control) Look(ctx context.Context, in LookRequest) (Looked, error) {
	return step(ctx, c.Site, in.Job, LookActivity, func(ctx context.Context, _ *slog.Logger) (Looked, error) {
		out := Looked{Host: Host{ID: c.Host, Name: c.Name}, Free: c.places.free()}
		f, err := c.deps.Format(in.Spec.TargetFormat)
		if err != nil {
			return out, err
		}
		out.Format = FormatFacts{Name: f.Name, Ext: f.Ext}
		if f.Create == nil || f.Open == nil {
			return out, refuse(providers.Unsupported, "format %s can only be read", f.Name)
		}
		for _, d := range in.Spec.Disks {
			seen, err := c.see(ctx, in.Spec, d, f)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, providers.Denied) || errors.Is(err, fs.ErrPermission) {
				out.Missing, out.Reason, out.Images = err.Error(), reasonOf(err), nil
				return out, nil
			}
			if err != nil {
				return out, err
			}
			out.Images = append(out.Images, seen)
		}
		return out, notOneOf(in.Spec, out.Images)
	})
}

// see looks at one image.
func (c *Control) see(ctx context.Context, spec job.Conversion, d job.ConversionDisk, target formats.Format) (Seen, error) {
	o, err := c.openImage(ctx, d.SourcePath, d.SourceFormat, spec.AllowDir)
	if err != nil {
		return Seen{}, err
	}
	defer o.Close()
	img := o.image
	if target.Name != rawFormat {
		img = local.RoundUp(img)
	}
	out := Seen{
		Image: Image{Format: o.format.Name, Within: spec.AllowDir, File: o.file.Identity},
		Size:  img.Size(), Held: o.file.Allocated(),
	}
	if o.folder != nil {
		out.Image.Beside = o.folder.Opened()
	}
	if err := layable(ctx, target, out.Size, Layout(spec)); err != nil {
		return out, fmt.Errorf("%s cannot be written as asked: %w", d.OutputPath, err)
	}
	return out, nil
}

// Layout is how the targets of a conversion are laid out.
func Layout(c job.Conversion) formats.CreateOptions {
	return formats.CreateOptions{
		Subformat: c.Subformat, Compression: c.Codec(), Level: c.CompressionLevel, ClusterSize: c.ClusterSize, Prealloc: c.Preallocation,
	}
}

// notOneOf checks that no target is one of the files that are read.
func notOneOf(spec job.Conversion, images []Seen) error {
	for _, d := range spec.Disks {
		info, err := os.Stat(d.OutputPath)
		if err != nil {
			continue // what is wrong with it is found when it is claimed
		}
		there := local.Identify("", info)
		for _, s := range images {
			for _, f := range append([]local.Identity{s.Image.File}, s.Image.Beside...) {
				if f.Dev == there.Dev && f.Ino == there.Ino {
					return refuse(providers.Invalid, "%s is one of the files that are read", d.OutputPath)
				}
			}
		}
	}
	return nil
}

// Settle takes a job in that came for the files of this host.
func (c *Control) Settle(ctx context.Context, in SettleRequest) (Host, error) {
	return step(ctx, c.Site, in.Job, SettleActivity, func(_ context.Context, log *slog.Logger) (Host, error) {
		if !c.places.enter(in.Job) {
			return Host{}, refuse(providers.Precondition, "a place on host %s, which has %s and works on %d jobs, as many as it takes",
				c.Name, cmp.Or(in.What, "the images"), c.places.Max())
		}
		log.Info("admitted", "host", c.Host, "waited", in.Waited.Round(time.Millisecond).String())
		return Host{ID: c.Host, Name: c.Name}, nil
	})
}

// PrepareImages claims every target of a conversion, and checks that it may and can go there.
func (c *Control) PrepareImages(ctx context.Context, in PrepareImagesRequest) (struct{}, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, PrepareImagesActivity, func(ctx context.Context, log *slog.Logger) (none struct{}, err error) {
		home, err := c.deps.Engine.Home(ctx)
		if err != nil {
			return none, err
		}
		r := record{Job: in.Job, Home: home, Target: in.Images[0].Target}
		for _, i := range in.Images {
			r.Targets = append(r.Targets, i.Target)
		}
		if err := c.writeRecord(r); err != nil {
			return none, fmt.Errorf("data folder: %w", err)
		}
		rooms := map[uint64]*room{}
		for _, i := range in.Images {
			if err := c.prepareImage(ctx, in.Job, i, rooms); err != nil {
				return none, err
			}
		}
		for _, r := range rooms {
			if r.need > r.free {
				return none, final(refuse(providers.Exhausted, "not enough space in %s: the conversion needs about %s, and %s is free",
					r.path, bytesText(r.need), bytesText(r.free)))
			}
		}
		log.Info("targets are claimed", "files", len(in.Images))
		return none, nil
	})
}

// room is the space on one file system.
type room struct {
	path       string
	need, free int64
}

func (c *Control) prepareImage(ctx context.Context, id string, in PrepareImage, rooms map[uint64]*room) error {
	f, err := c.openFolder(in.Target, false)
	if err != nil {
		return err
	}
	defer f.Close()
	files := []string{in.Target.Alone}
	before, err := f.take(ctx, claim{Job: id, Host: c.Host, Files: files}, c.deps.Engine.Ended)
	if err != nil {
		return err
	}
	if err := f.vacantFor(in.Target, id, before); err != nil {
		return err
	}
	st, err := f.root.Stat(".")
	if err != nil {
		return err
	}
	dev := local.Identify("", st).Dev
	if rooms[dev] == nil {
		free, err := f.free()
		if err != nil {
			return err
		}
		rooms[dev] = &room{path: f.path, free: free}
	}
	rooms[dev].need += in.Need
	rooms[dev].free += f.held(files)
	return nil
}

// vacantFor checks that nothing has the name of a target, or that a file may be replaced there; a file
// that the job has named itself may stay.
func (f *folder) vacantFor(t Target, id string, before claim) error {
	st, err := f.root.Lstat(t.Alone)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return pathError(err)
	case !st.Mode().IsRegular():
		return refuse(providers.Invalid, "%s is there and is not a regular file", f.what())
	case t.Overwrite || before.Job == id && f.named(t.Alone, before):
		return nil
	}
	return refuse(providers.Exists, "%s exists already; set overwrite to replace it", f.what())
}

// FinishImages gives the files of a conversion their names. It may be cut off anywhere and begun again:
// what has its name already is known by its inode.
func (c *Control) FinishImages(ctx context.Context, in FinishImagesRequest) (Finished, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, FinishImagesActivity, func(_ context.Context, log *slog.Logger) (Finished, error) {
		var out Finished
		for _, i := range in.Images {
			if err := c.nameImage(in.Job, i, &out); err != nil {
				return out, err
			}
		}
		// The claims go when all have their names: a job that fails before takes its own away again.
		for _, i := range in.Images {
			if err := c.unclaim(i.Target); err != nil {
				return out, err
			}
		}
		log.Info("conversion is complete", "files", len(out.Files), "bytes", out.Total)
		return out, nil
	})
}

func (c *Control) nameImage(id string, in FinishImage, out *Finished) error {
	f, err := c.openFolder(in.Target, false)
	if err != nil {
		return err
	}
	defer f.Close()
	final := in.Target.Alone
	if st, err := f.root.Lstat(final); err != nil || inodeOf(st) != in.Inode {
		if err := c.rename(f, id, in); err != nil {
			return err
		}
	}
	st, err := f.root.Lstat(final)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	out.Dir = f.path
	out.Files, out.Total = append(out.Files, filepath.Join(f.path, final)), out.Total+st.Size()
	return errors.Join(f.remove(journalName(final)), f.remove(digestsName(final)), syncDir(f.root))
}

// rename gives one file its name. The claim says beforehand which file that is.
func (c *Control) rename(f *folder, id string, in FinishImage) error {
	final := in.Target.Alone
	p := part{folder: f, job: id, host: c.Host, name: final}
	if err := p.stillMine(); err != nil {
		return err
	}
	st, err := f.root.Lstat(partName(final))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f.removed(partName(final))
	case err != nil:
		return err
	case inodeOf(st) != in.Inode:
		return refuse(providers.Corrupt, "%s is not the file that was written", filepath.Join(f.path, partName(final)))
	}
	claimed, err := f.readClaim()
	if err != nil {
		return err
	}
	claimed.Naming = map[string]uint64{final: in.Inode}
	if err := f.putClaim(claimed); err != nil {
		return err
	}
	return f.rename(partName(final), final, in.Target.Overwrite)
}

func (c *Control) unclaim(t Target) error {
	f, err := c.openFolder(t, false)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.remove(f.claimFile), syncDir(f.root))
}
