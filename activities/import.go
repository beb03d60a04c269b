package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// AskImport makes sure that the platform takes packages, and puts the import into the queue of admission.
func (c *Control) AskImport(ctx context.Context, in AskImportRequest) (Asked, error) {
	return step(ctx, c.Site, in.Job, AskImportActivity, func(ctx context.Context, _ *slog.Logger) (Asked, error) {
		if _, _, err := open[providers.PackageImporter](ctx, c.Site, in.Spec.Connection); err != nil {
			return Asked{}, err
		}
		name := clip(in.Spec.Title(), 100)
		err := c.deps.Engine.Ask(ctx, Ticket{Job: in.Job, Key: in.Job, VM: name, Priority: in.Spec.Priority})
		return Asked{VM: name, Terms: c.terms()}, err
	})
}

// LookPackage says whether this host has a package.
func (c *Control) LookPackage(ctx context.Context, in LookPackageRequest) (Looked, error) {
	return step(ctx, c.Site, in.Job, LookPackageActivity, func(ctx context.Context, _ *slog.Logger) (Looked, error) {
		out := Looked{Host: Host{ID: c.Host, Name: c.Name}, Free: c.places.free()}
		p, err := c.openPackage(ctx, in.Path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, providers.NotFound) || errors.Is(err, providers.Denied) || errors.Is(err, fs.ErrPermission) {
			out.Missing, out.Reason = err.Error(), reasonOf(pathError(err))
			return out, nil
		}
		if err != nil {
			return out, err
		}
		return out, p.Close()
	})
}

// PlanImport judges a package, here and by the platform, and writes down what the host must know to clean
// up after the job.
func (c *Control) PlanImport(ctx context.Context, in PlanImportRequest) (PlannedImport, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, PlanImportActivity, func(ctx context.Context, log *slog.Logger) (PlannedImport, error) {
		p, err := c.openPackage(ctx, in.Spec.PackagePath)
		if err != nil {
			return PlannedImport{}, err
		}
		defer p.Close()
		signer, err := p.CheckDescriptor()
		if err != nil {
			return PlannedImport{}, err
		}
		files, err := c.files(ctx, p)
		if err != nil {
			return PlannedImport{}, err
		}
		descriptor, err := p.restated(files)
		if err != nil {
			return PlannedImport{}, err
		}
		_, imp, err := open[providers.PackageImporter](ctx, c.Site, in.Spec.Connection)
		if err != nil {
			return PlannedImport{}, err
		}
		plan, err := imp.PlanImport(ctx, descriptor, in.Spec.Target(p.vmName()))
		if err != nil {
			return PlannedImport{}, err
		}
		out := PlannedImport{Target: plan.Target, Warnings: plan.Warnings}
		if p.Manifest == nil {
			out.Warnings = append(out.Warnings, "the package has no manifest: nothing can tell whether its files are as they were made")
		}
		for _, f := range files {
			if f.Said != 0 {
				out.Warnings = append(out.Warnings, fmt.Sprintf("%s has %d bytes, the descriptor says %d", f.Name, f.Size, f.Said))
			}
		}
		if out.Files, err = wanted(plan.Files, files); err != nil {
			return out, err
		}
		if err := enough(p, plan); err != nil {
			return out, err
		}
		home, err := c.deps.Engine.Home(ctx)
		if err != nil {
			return out, err
		}
		if err := c.writeRecord(record{Job: in.Job, Home: home, Connection: in.Spec.Connection, Import: &importRecord{Key: in.Key, Target: plan.Target}}); err != nil {
			return out, fmt.Errorf("data folder: %w", err)
		}
		log.Info("the package is judged", "package", in.Spec.PackagePath, "files", len(out.Files), "signed", len(signer) > 0,
			"datastore", plan.Target.Datastore, "folder", plan.Target.Folder)
		for _, w := range out.Warnings {
			log.Warn("warning of the package", "warning", w)
		}
		return out, nil
	})
}

// wanted are those of the files that the platform asks for.
func wanted(names []string, files []PackedFile) ([]PackedFile, error) {
	var out []PackedFile
	for _, n := range names {
		found := false
		for _, f := range files {
			if f.Name == n {
				out, found = append(out, f), true
			}
		}
		if !found {
			return nil, refuse(providers.Invalid, "the platform asks for %q, which the package does not have", n)
		}
	}
	return out, nil
}

// enough refuses disks that can never be allocated in full on the datastore. Thin ones may well have room.
func enough(p *openedPackage, plan providers.ImportPlan) error {
	var need int64
	for _, d := range p.Envelope.Disks {
		need += d.Capacity
	}
	if plan.Target.Thick && need > plan.Free {
		return final(refuse(providers.Exhausted, "not enough space on %s: the disks need %s, and %s is free",
			plan.Target.Datastore, bytesText(need), bytesText(plan.Free)))
	}
	return nil
}

// ImportPackage makes the VM. An attempt begins anew: what the one before it left is removed first.
func (d *Data) ImportPackage(ctx context.Context, in ImportRequest) (Imported, error) {
	d.places.take(in.Job)
	log := d.logger(in.Job)
	attempt := activity.GetInfo(ctx).Attempt
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	u := &unpacking{Site: d.Site, in: in, log: log, limit: limit, stop: activity.GetWorkerStopChannel(ctx)}
	for _, f := range in.Files {
		m := newMeter(job.DiskProgress{Disk: f.Name, File: f.Name, Phase: job.Transfer, Total: f.Size, Attempt: attempt})
		u.files = append(u.files, &unpackedFile{PackedFile: f, m: m, rest: m.work()})
	}
	work, stop := u.watch(ctx)
	defer stop()
	began := time.Now()
	vm, err := u.run(work)
	if err != nil {
		return Imported{}, d.failed(ctx, log, ImportPackageActivity, u.explain(ctx, work, err))
	}
	took := time.Since(began)
	log.Info("imported", "vm", vm.Path, "attempt", attempt, "took", took.Round(time.Millisecond).String())
	return Imported{VM: vm.ID, Name: vm.Name, Path: vm.Path, Attempts: attempt, Took: took}, nil
}

// unpacking is one attempt to import a package.
type unpacking struct {
	*Site
	in    ImportRequest
	log   *slog.Logger
	limit *throttle
	stop  <-chan struct{} // the worker stops
	files []*unpackedFile
}

func (u *unpacking) run(ctx context.Context) (providers.VM, error) {
	p, err := u.openPackage(ctx, u.in.Path)
	if err != nil {
		return providers.VM{}, err
	}
	defer p.Close()
	if _, err := p.CheckDescriptor(); err != nil {
		return providers.VM{}, err
	}
	files, err := u.Site.files(ctx, p)
	if err != nil {
		return providers.VM{}, err
	}
	pkg := providers.Package{}
	if pkg.Descriptor, err = p.restated(files); err != nil {
		return providers.VM{}, err
	}
	for _, f := range u.files {
		pkg.Files = append(pkg.Files, u.file(p, f))
	}
	// The connection is lent for as long as the lease has to be ended, also when the attempt was not.
	held, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	unlink := context.AfterFunc(ctx, release)
	_, imp, err := open[providers.PackageImporter](held, u.Site, u.in.Connection)
	unlink()
	if err != nil {
		return providers.VM{}, err
	}
	u.log.Info("uploading", "files", len(u.files), "package", u.in.Path, "datastore", u.in.Target.Datastore)
	vm, err := imp.ImportPackage(ctx, pkg, u.in.Target, u.in.Key)
	if err != nil && reasonOf(err) == providers.Unavailable && ctx.Err() == nil {
		// The platform may have choked on what is damaged before its sum could be compared.
		err = cmp.Or(u.damage(ctx, p), err)
	}
	return vm, err
}

// damage reads the files that go up, and says which of them is not what the manifest says.
func (u *unpacking) damage(ctx context.Context, p *openedPackage) error {
	for _, f := range p.Envelope.Files {
		if !p.Vouched(f.Href) || !slices.ContainsFunc(u.files, func(one *unpackedFile) bool { return one.Name == f.Href }) {
			continue
		}
		r, err := p.Checked(sized(f), func(int64) {})
		if err == nil {
			_, err = io.Copy(io.Discard, interrupted{ctx, r})
			err = errors.Join(err, r.Close())
		}
		if errors.Is(err, formats.ErrCorrupt) {
			return err
		}
	}
	return nil
}

// watch watches over all files. When the worker stops, the attempt is broken off at once: nothing of it
// could be kept.
func (u *unpacking) watch(ctx context.Context) (context.Context, func()) {
	w := watching{stall: u.Stall, stops: "the worker stops; the import begins anew"}
	for _, f := range u.files {
		w.meters = append(w.meters, f.m)
	}
	return u.watchAll(ctx, w)
}

// explain says what an error of the attempt means.
func (u *unpacking) explain(ctx, work context.Context, err error) error {
	var decided *temporal.ApplicationError
	switch {
	case cancelled(ctx):
		return context.Canceled
	case errors.As(err, &decided):
		return err
	case work.Err() != nil && ctx.Err() == nil:
		return context.Cause(work) // cut off: what the import says is only the echo
	case errors.Is(err, fs.ErrNotExist) && reasonOf(err) == providers.Unavailable:
		return pathError(err)
	}
	return err
}

// DiscardImport removes what an import left unfinished.
func (c *Control) DiscardImport(ctx context.Context, in DiscardImportRequest) error {
	_, err := step(ctx, c.Site, in.Job, DiscardImportActivity, func(ctx context.Context, log *slog.Logger) (struct{}, error) {
		return struct{}{}, c.discardImport(ctx, in.Connection, importRecord{Key: in.Key, Target: in.Target}, log)
	})
	return err
}

// importRecord is what a host must know to clean up after an import.
type importRecord struct {
	Key    string                 `json:"key"`
	Target providers.ImportTarget `json:"target"`
}

func (s *Site) discardImport(ctx context.Context, connection string, r importRecord, log *slog.Logger) error {
	_, imp, err := open[providers.PackageImporter](ctx, s, connection)
	if err != nil {
		return err
	}
	if err := imp.DiscardImport(ctx, r.Target, r.Key); err != nil {
		return err
	}
	log.Info("nothing unfinished is left of the import", "vm", cmp.Or(r.Target.Name, r.Key))
	return nil
}

// sweepImport cleans up after an import: what it left unfinished goes where it has ended; on another host
// it goes on by itself.
func (s *Site) sweepImport(ctx context.Context, r record, ended bool, log *slog.Logger) error {
	if ended {
		err := s.discardImport(ctx, r.Connection, *r.Import, log)
		if errors.Is(err, providers.NotFound) {
			log.Warn("what the import left could not be looked for", "vm", r.Import.Target.Name, "error", err)
			err = nil // the connection is no longer known: it will not be later either
		}
		if err != nil {
			return err
		}
		if err := s.deps.Connections.Forget(ctx, r.Connection); err != nil {
			return err
		}
	}
	return s.dropRecord(r.Job)
}
