package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Ask looks for the VM and puts the job into the queue of admission.
func (c *Control) Ask(ctx context.Context, in AskRequest) (Asked, error) {
	return inquiry(ctx, c.Site, in.Job, AskActivity, func(ctx context.Context, log *slog.Logger) (Asked, error) {
		_, inv, err := open[providers.Inventory](ctx, c.Site, in.Spec.Connection)
		if err != nil {
			return Asked{}, err
		}
		vm, err := inv.VM(ctx, in.Spec.VMPath)
		if err != nil {
			return Asked{}, err
		}
		platform, err := c.deps.Connections.Identity(in.Spec.Connection)
		if err != nil {
			return Asked{}, err
		}
		name := clip(vm.Name, 100)
		err = c.deps.Engine.Ask(ctx, Ticket{
			Job: in.Job, Key: vmKey(platform, vm.ID), VM: name, Priority: in.Spec.Options.Priority,
		})
		return Asked{VM: name, Terms: c.terms(), ID: vm.ID, Folder: SafeName(vm.Name)}, err
	})
}

// terms are those on which this host takes jobs.
func (c Config) terms() Terms {
	return Terms{HostAway: c.HostAway, Heartbeat: c.Heartbeat, CleanWithin: c.CleanWithin, Format: c.Format, Track: c.Track}
}

// Ended says which jobs have ended.
func (c *Control) Ended(ctx context.Context, in EndedRequest) (EndedResult, error) {
	stop := c.alive(ctx)
	defer stop()
	var out EndedResult
	for _, j := range in.Jobs {
		ended, err := c.deps.Engine.Ended(ctx, j)
		if err != nil {
			return out, c.Paces.fail(ctx, err)
		}
		if ended {
			out.Jobs = append(out.Jobs, j)
		}
	}
	return out, nil
}

// Place takes a job in. It is called only while a place is reserved.
func (c *Control) Place(_ context.Context, in PlaceRequest) (Host, error) {
	c.places.take(in.Job)
	return Host{ID: c.Host, Name: c.Name}, nil
}

// Inspect gathers the facts that a plan is made of.
func (c *Control) Inspect(ctx context.Context, in InspectRequest) (Facts, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, InspectActivity, func(ctx context.Context, log *slog.Logger) (Facts, error) {
		p, err := c.deps.Connections.Open(ctx, in.Spec.Connection)
		if err != nil {
			return Facts{}, err
		}
		f, err := Look(ctx, p, c.deps.Format, in)
		if err != nil {
			return Facts{}, err
		}
		log.Info("admitted", "vm", f.VM.Path, "disks", len(f.VM.Disks), "host", c.Host, "waited", in.Waited.Round(time.Millisecond).String())
		return f, nil
	})
}

// Look gathers the facts that a plan is made of, and touches nothing.
func Look(ctx context.Context, p providers.Provider, format func(name string) (formats.Format, error), in InspectRequest) (Facts, error) {
	inv, err := providers.As[providers.Inventory](p)
	if err != nil {
		return Facts{}, err
	}
	vm, err := inv.VM(ctx, in.Spec.VMPath)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Kind: p.Kind(), Capabilities: providers.Capabilities(p), VM: bounded(vm), Format: formatFacts(ctx, format, in, vm)}
	if src, ok := p.(providers.DiskSource); ok {
		if f.Transports, err = src.Transports(ctx, vm); err != nil {
			return Facts{}, err
		}
	}
	return f, nil
}

// bounded is a VM as it goes into a history: without what may be long.
func bounded(vm providers.VM) providers.VM {
	vm.Snapshots = nil
	vm.Annotation = clip(vm.Annotation, 2000)
	vm.Addresses = vm.Addresses[:min(len(vm.Addresses), 32)]
	vm.NICs = vm.NICs[:min(len(vm.NICs), 32)]
	vm.CDROMs = vm.CDROMs[:min(len(vm.CDROMs), 8)]
	return vm
}

// formatFacts lays a disk as large as the VM's largest out in memory, empty, to see whether the format
// can do what was asked for.
func formatFacts(ctx context.Context, format func(name string) (formats.Format, error), in InspectRequest, vm providers.VM) FormatFacts {
	name, pkg := unpackaged(in.Format)
	f, err := format(name)
	if err != nil {
		return FormatFacts{Name: in.Format, Why: err.Error()}
	}
	facts := FormatFacts{Name: f.Name, Ext: f.Ext, Package: pkg}
	if f.Create == nil || f.Open == nil {
		facts.Why = fmt.Sprintf("format %s can only be read", f.Name)
		return facts
	}
	var size int64
	for _, d := range vm.Disks {
		size = max(size, d.Size)
	}
	if err := layable(ctx, f, size, Target{Compress: in.Spec.Compress || pkg != ""}.createOptions()); err != nil {
		facts.Why = fmt.Sprintf("the disks cannot be written as asked: %v", err)
	}
	return facts
}

// layable lays an empty disk out in memory and says why that cannot be done.
func layable(ctx context.Context, f formats.Format, size int64, o formats.CreateOptions) error {
	w, err := f.Create(ctx, newScratch(), size, o, formats.Checkpoint{})
	if err == nil {
		err = w.Close()
	}
	if errors.Is(err, errScratch) {
		return nil // it would go on, beyond what is kept of it here
	}
	return err
}

// createOptions are how a disk is laid out.
func (t Target) createOptions() formats.CreateOptions {
	if t.Create != nil {
		return *t.Create
	}
	var o formats.CreateOptions
	if t.Compress {
		o.Compression = "zlib"
	}
	return o
}

// Prepare claims the output folder for the job, and checks that the export may and can go there.
func (c *Control) Prepare(ctx context.Context, in PrepareRequest) (Prepared, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, PrepareActivity, func(ctx context.Context, log *slog.Logger) (Prepared, error) {
		home, err := c.deps.Engine.Home(ctx)
		if err != nil {
			return Prepared{}, err
		}
		r := record{Job: in.Job, Home: home, Connection: in.Connection, VM: in.VM, SnapshotKey: in.SnapshotKey, Target: in.Target}
		if err := c.writeRecord(r); err != nil {
			return Prepared{}, fmt.Errorf("data folder: %w", err)
		}
		f, err := c.openFolder(in.Target, true)
		if err != nil {
			return Prepared{}, err
		}
		defer f.Close()
		before, err := f.take(ctx, claim{Job: in.Job, Host: c.Host, Files: in.Files}, c.deps.Engine.Ended)
		if err != nil {
			return Prepared{}, err
		}
		out := Prepared{Dir: f.path}
		if before.Job == in.Job {
			out.Ours = before.Naming != nil
			if before.Host != c.Host {
				out.TookOver = before.Host
			}
		}
		switch {
		case in.Target.Chain:
			if in.Need, err = f.prepareChain(ctx, in.Job, in.Chain, in.Need); err != nil {
				return Prepared{}, err
			}
		case !in.Target.Overwrite && !out.Ours:
			if err := f.vacant(in.Files); err != nil {
				return Prepared{}, err
			}
		}
		if err := f.room(in); err != nil {
			return Prepared{}, final(err)
		}
		if in.Target.Thick {
			if err := f.tryReserve(); err != nil {
				return Prepared{}, err
			}
		}
		log.Info("output folder is ready", "dir", f.path, "needs about", bytesText(in.Need))
		return out, nil
	})
}

// vacant checks that no file of the export is there already.
func (f *folder) vacant(files []string) error {
	names := []string{manifestName}
	for _, n := range files {
		names = append(names, n, n+digestsExt)
	}
	for _, n := range names {
		if there, err := f.exists(n); err != nil {
			return pathError(err)
		} else if there {
			return refuse(providers.Exists, "%s exists already; set overwrite to replace an earlier export", filepath.Join(f.path, n))
		}
	}
	return nil
}

// room checks that what the export needs is free, counting what it has already.
func (f *folder) room(in PrepareRequest) error {
	free, err := f.free()
	if err != nil {
		return err
	}
	if free += f.held(in.Files); in.Need > free {
		return refuse(providers.Exhausted, "not enough space in %s: the export needs about %s, and %s is free", f.path, bytesText(in.Need), bytesText(free))
	}
	return nil
}

// free is the space that is free on the folder's file system.
func (f *folder) free() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(f.path, &fs); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", f.path, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// held is the space that the hidden files of these have already.
func (f *folder) held(files []string) (n int64) {
	for _, name := range files {
		if st, err := f.root.Lstat(partName(name)); err == nil {
			n += allocated(st)
		}
	}
	return n
}

// Snapshot takes the job's snapshot, or finds it.
func (c *Control) Snapshot(ctx context.Context, in SnapshotRequest) (providers.Snapshot, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, SnapshotActivity, func(ctx context.Context, log *slog.Logger) (providers.Snapshot, error) {
		return c.takeSnapshot(ctx, in, "taken to export the VM; removed when the export ends", log)
	})
}

// takeSnapshot takes a snapshot, or finds the one with its key.
func (s *Site) takeSnapshot(ctx context.Context, in SnapshotRequest, description string, log *slog.Logger) (providers.Snapshot, error) {
	_, src, err := open[providers.Snapshotter](ctx, s, in.Connection)
	if err != nil {
		return providers.Snapshot{}, err
	}
	began := time.Now()
	snap, err := src.Snapshot(ctx, in.VM, providers.SnapshotOptions{Key: in.Key, Quiesce: in.Quiesce, Description: description})
	if err != nil {
		return snap, err
	}
	log.Info("snapshot taken", "snapshot", snap.ID, "took", time.Since(began).Round(time.Millisecond).String())
	snap.Description = ""
	return snap, nil
}

// DropSnapshot removes the job's snapshot; one that is not there is removed.
func (c *Control) DropSnapshot(ctx context.Context, in DropRequest) error {
	_, err := step(ctx, c.Site, in.Job, DropSnapshotActivity, func(ctx context.Context, log *slog.Logger) (struct{}, error) {
		return struct{}{}, c.dropSnapshot(ctx, in, log)
	})
	return err
}

func (s *Site) dropSnapshot(ctx context.Context, in DropRequest, log *slog.Logger) error {
	_, src, err := open[providers.Snapshotter](ctx, s, in.Connection)
	if err != nil {
		return err
	}
	snap, err := src.FindSnapshot(ctx, in.VM, in.Key)
	if errors.Is(err, providers.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	began := time.Now()
	if err := src.DeleteSnapshot(ctx, in.VM, snap.ID); err != nil {
		return err
	}
	log.Info("snapshot removed", "snapshot", snap.ID, "took", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// Discard removes what the job has hidden in its output folder.
func (c *Control) Discard(ctx context.Context, in DiscardRequest) error {
	_, err := step(ctx, c.Site, in.Job, DiscardActivity, func(ctx context.Context, log *slog.Logger) (struct{}, error) {
		return struct{}{}, c.discard(ctx, in.Job, in.Target, log)
	})
	return err
}

// Leave ends the job's stay: its place is free, the credentials that came with it are forgotten, and
// its log says how it ended. Where something was left behind, the host keeps what it needs to clean up
// later: its record, and the credentials.
func (c *Control) Leave(ctx context.Context, in LeaveRequest) error {
	_, err := step(ctx, c.Site, in.Job, LeaveActivity, func(ctx context.Context, log *slog.Logger) (struct{}, error) {
		here := in.Host == c.Host
		if in.Clean || !here {
			if err := c.deps.Connections.Forget(ctx, in.Connection); err != nil {
				return struct{}{}, err
			}
		}
		if in.Clean && here {
			if err := c.dropRecord(in.Job); err != nil {
				return struct{}{}, err
			}
		}
		c.places.leave(in.Job)
		switch in.State {
		case job.Failed:
			log.Error("job failed", "error", in.Outcome)
		default:
			log.Info("job " + string(in.State))
		}
		return struct{}{}, nil
	})
	return err
}

// ReadLog answers a page of a job's log.
func (c *Control) ReadLog(ctx context.Context, in job.LogRequest) (job.LogPage, error) {
	b, next, err := c.logs.Read(ctx, in.Job, in.Offset)
	return job.LogPage{Data: b, Next: next}, c.Paces.fail(ctx, err)
}
