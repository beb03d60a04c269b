package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// main is the program without a subcommand.
func (a *app) main(c *cobra.Command, args []string) error {
	ctx := c.Context()
	if err := a.configure(c.Flags()); err != nil {
		return err
	}
	a.opt.vms = append(a.opt.vms, args...)
	if err := a.contradictions(); err != nil {
		return err
	}
	p, err := a.platform()
	if err != nil {
		return err
	}
	var specs []job.Spec
	err = p.inventory(ctx, func(pr providers.Provider, inv providers.Inventory) error {
		if a.opt.list {
			vms, err := a.listed(ctx, inv)
			if err != nil {
				return err
			}
			return a.printVMs(vms)
		}
		if a.nothingChosen() {
			specs, err = a.pick(ctx, p, pr, inv)
		} else {
			specs, err = a.chosen(ctx, inv)
		}
		switch {
		case err != nil:
			return err
		case a.opt.info:
			return a.describe(ctx, inv, specs)
		case a.opt.dryRun || a.opt.validate:
			return a.preview(ctx, pr, specs)
		}
		return nil
	})
	if err != nil || a.opt.list || a.opt.info || a.opt.dryRun || a.opt.validate {
		return err
	}
	if specs = a.withoutExisting(specs); len(specs) == 0 {
		return nil
	}
	return a.export(ctx, p, specs)
}

// contradictions finds flags that exclude each other before anybody is asked anything.
func (a *app) contradictions() error {
	o := a.opt
	var modes []string
	for name, on := range map[string]bool{"--dry-run": o.dryRun, "--validate-only": o.validate, "--list": o.list, "--vm-info": o.info} {
		if on {
			modes = append(modes, name)
		}
	}
	slices.Sort(modes)
	many := o.folder != "" || o.filter != "" || o.power != ""
	switch {
	case len(modes) > 1:
		return usageError("%s exclude each other", strings.Join(modes, " and "))
	case o.batch != "" && (len(o.vms) > 0 || many):
		return usageError("--batch names the VMs itself: leave out --vm, --folder, --filter and --power")
	case len(o.vms) > 0 && many:
		return usageError("name VMs, or choose them by --folder, --filter and --power, not both")
	case o.list && (len(o.vms) > 0 || o.batch != ""):
		return usageError("--list takes --folder, --filter and --power; --vm-info describes one VM")
	case o.batch == "-" && o.passwordFile == "-":
		return usageError("the standard input cannot be both the batch file and the password")
	case o.parallel < 1 || o.parallel > places:
		return usageError("--parallel must be 1 to %d", places)
	case o.skipExisting && o.spec.Incremental:
		return usageError("--skip-existing and --incremental exclude each other: a chain is added to")
	case o.skipExisting && o.spec.Options.Overwrite:
		return usageError("--skip-existing and --overwrite exclude each other")
	case o.spec.OutputPath == "" && o.batch == "" && !o.list && !o.info && !a.nothingChosen():
		return usageError("say where to export to (--output)")
	case a.nothingChosen() && !o.list && !a.interactive():
		return usageError("name a VM (--vm), or choose VMs by --folder, --filter or --batch")
	}
	return nil
}

func (a *app) nothingChosen() bool {
	o := a.opt
	return len(o.vms) == 0 && o.folder == "" && o.filter == "" && o.power == "" && o.batch == ""
}

// interactive says whether there is somebody to show an inventory to.
func (a *app) interactive() bool {
	return a.Screen().Live() && a.Ask != nil && !a.opt.json && !a.opt.info
}

// chosen are the exports that the flags or the batch file name, each VM by its path.
func (a *app) chosen(ctx context.Context, inv providers.Inventory) ([]job.Spec, error) {
	base, err := a.template()
	if err != nil {
		return nil, err
	}
	var specs []job.Spec
	switch {
	case a.opt.batch != "":
		if specs, err = a.readBatch(base); err != nil {
			return nil, err
		}
		for i := range specs {
			specs[i] = a.inFormat(specs[i])
		}
	case len(a.opt.vms) > 0:
		for _, vm := range a.opt.vms {
			s := a.inFormat(base)
			s.VMPath = vm
			specs = append(specs, s)
		}
	default:
		vms, err := a.listed(ctx, inv)
		if err != nil {
			return nil, err
		}
		if len(vms) == 0 {
			return nil, &codeError{exitNotFound, errors.New("no VM is chosen by --folder, --filter and --power")}
		}
		for _, vm := range vms {
			s := a.inFormat(base)
			s.VMPath, s.Name = vm.Path, vm.Name
			specs = append(specs, s)
		}
		return specs, a.checkAll(specs)
	}
	if !a.opt.info {
		if err := a.checkAll(specs); err != nil {
			return nil, err
		}
	}
	return specs, resolve(ctx, inv, specs)
}

func (a *app) checkAll(specs []job.Spec) error {
	seen := map[string]bool{}
	for _, s := range specs {
		if err := check(s); err != nil {
			return err
		}
		if seen[keyOf(s)] {
			return usageError("%s is named twice for the same folder", s.VMPath)
		}
		seen[keyOf(s)] = true
	}
	return nil
}

// resolve replaces what VMs are called by their paths: a name that is ambiguous or not there is said
// before anything is begun.
func resolve(ctx context.Context, inv providers.Inventory, specs []job.Spec) error {
	var errs []error
	for i := range specs {
		vm, err := inv.VM(ctx, specs[i].VMPath)
		if err != nil {
			if r := providers.ReasonOf(err); r != providers.NotFound && r != providers.Invalid {
				return err
			}
			errs = append(errs, err)
			continue
		}
		specs[i].VMPath = vm.Path
		if specs[i].Name == "" {
			specs[i].Name = job.Shorten(vm.Name, 200)
		}
	}
	return errors.Join(errs...)
}

func (a *app) describe(ctx context.Context, inv providers.Inventory, specs []job.Spec) error {
	for i, s := range specs {
		vm, err := inv.VM(ctx, s.VMPath)
		if err != nil {
			return err
		}
		if i > 0 && !a.opt.json {
			a.printf("\n")
		}
		if err := a.printVM(vm); err != nil {
			return err
		}
	}
	return nil
}

// withoutExisting leaves out what is exported already, where that is asked for.
func (a *app) withoutExisting(specs []job.Spec) []job.Spec {
	if !a.opt.skipExisting {
		return specs
	}
	return slices.DeleteFunc(specs, func(s job.Spec) bool {
		there := complete(s.OutputPath, s.Name)
		if there && !a.opt.quiet {
			a.complain("%s is left out: there is a complete export in %s", s.VMPath, s.OutputPath)
		}
		return there
	})
}

// export runs exports to their ends, or until the call is interrupted.
func (a *app) export(ctx context.Context, p platform, specs []job.Spec) (err error) {
	e, err := a.openEngine(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	if e.daemon != nil && e.daemon.TemporalUI() != "" {
		a.complain("the Temporal Web UI is at %s", e.daemon.TemporalUI())
	} else if a.opt.ui {
		a.complain("another hyperexport runs the engine, so that --ui has no effect here")
	}
	r, err := newRun(ctx, a, e, specs)
	if err != nil {
		return err
	}
	defer r.show.End()
	if err := r.follow(ctx); err != nil {
		if ctx.Err() == nil {
			return err
		}
		return r.interrupted()
	}
	if err := r.record(); err != nil {
		a.complain("the history was not written: %v", err)
	}
	return r.verdict()
}

const lookPace = 300 * time.Millisecond

// follow begins exports, so many at once, and shows them until all have ended.
func (r *run) follow(ctx context.Context) error {
	t := time.NewTicker(lookPace)
	defer t.Stop()
	for {
		note := ""
		err := r.step(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if note, err = r.forgive(ctx, err); err != nil {
				return err
			}
		}
		r.display(note)
		if r.done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// interrupted leaves the exports so that the same command goes on with them, and says so.
func (r *run) interrupted() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var open []*export
	for _, x := range r.exports {
		if x.id == "" || x.job.Status.Ended() {
			continue
		}
		// A paused export waits for its own command, whoever runs the engine meanwhile.
		if _, err := r.engine.api.Pause(ctx, x.id); err != nil {
			r.app.complain("%s could not be told to wait: %v", x.spec.VMPath, err)
		}
		open = append(open, x)
	}
	r.show.End()
	err := r.record()
	for _, x := range open {
		percent := ""
		if p := x.job.Progress; p != nil && p.PercentComplete > 0 {
			percent = fmt.Sprintf(" at %.1f%%", p.PercentComplete)
		}
		r.app.complain("%s is stopped%s; what was copied is kept", x.spec.VMPath, percent)
	}
	if len(open) > 0 {
		r.app.complain("the same command goes on; \"hyperexport cancel\" gives it up")
	}
	return &codeError{exitInterrupted, err}
}

// verdict is what the ends of the exports come to.
func (r *run) verdict() error {
	var failed []providers.Reason
	for _, x := range r.exports {
		switch x.job.Status {
		case job.Failed:
			failed = append(failed, providers.Reason(x.job.Reason))
		case job.Cancelled:
			failed = append(failed, providers.Canceled)
		case job.Completed:
			for _, al := range x.job.Result.Alerts {
				r.app.complain("%s: ALERT: %s", x.spec.VMPath, al)
			}
			for _, l := range x.job.Result.Leftover {
				r.app.complain("%s: left behind: %s", x.spec.VMPath, l)
			}
		}
		// Lines have said it; bars may have had no room.
		if x.job.Status == job.Failed && !r.app.opt.json && (r.app.opt.quiet || r.app.Screen().Live()) {
			r.app.complain("%s: %s", x.spec.VMPath, x.job.Error)
		}
	}
	return verdict(failed)
}

// keyOf names an export by what makes it the same one: the VM, the folder and the format, or the chain.
func keyOf(s job.Spec) string {
	key := []string{s.VMPath, s.OutputPath, activities.SafeName(s.Format)}
	if s.Incremental {
		key = append(key, "incremental")
	}
	return strings.Join(key, "\x00")
}
