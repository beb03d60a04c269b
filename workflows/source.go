package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// source is what a job does to the VM that it reads from. It does nothing that it was not asked for.
type source struct {
	drives []providers.Drive
	looked bool // drives are known
	// removed says that they are, and empty that they may be and are to be put back.
	removed, empty bool
	wasOn          bool // before the job shut it down
	begun          bool // the guest may have been asked to shut down
	off            bool // and has
}

// touch is what activities that change the source are told.
func (e *export) touch() activities.Touch {
	return activities.Touch{Job: e.id, Connection: e.spec.Connection, VM: e.facts.VM.ID}
}

// still brings the source into the state in which its snapshot is to be taken.
func (e *export) still(ctx workflow.Context) error {
	if e.spec.Options.Shutdown && e.snapshot == nil {
		if err := e.shutDown(ctx); err != nil {
			return err
		}
	}
	if e.spec.Options.RemoveCDROM && e.snapshot == nil {
		return e.removeDrives(ctx)
	}
	return nil
}

// shutDown shuts the source down, or has its power taken away where that was asked for.
func (e *export) shutDown(ctx workflow.Context) error {
	src, o := &e.source, e.spec.Options
	if src.off || !src.begun && e.facts.VM.PowerState != providers.PowerOn {
		return nil
	}
	e.phase(ctx, job.Source, "shutting down "+e.vm)
	src.begun, src.wasOn = true, true
	e.undo.push(step{name: "VM " + e.vm + " shut down", onlyFailed: o.PowerOn == job.PowerOnNever, do: e.powerOn})
	forced, err := shutDown(touching(ctx, e.host.ID, e.terms), activities.ShutDownRequest{
		Touch: e.touch(), Within: o.ShutdownTimeout.Or(job.DefaultShutdownTimeout), Again: o.PowerOn != job.PowerOnNever,
	}, o.ShutdownThen)
	src.off = err == nil
	if forced {
		workflow.GetLogger(ctx).Info("the guest did not shut down, and its power was taken away")
	}
	return err
}

// powerOn lets the source run again. Where the guest was asked to shut down and had not done so yet, it
// may still do: that is waited for, lest the VM goes off after it was found on.
func (e *export) powerOn(ctx workflow.Context) error {
	if !e.source.wasOn {
		return nil // it does since its snapshot was taken
	}
	req := activities.PowerRequest{Touch: e.touch(), Want: providers.PowerOn}
	if !e.source.off {
		req.Settle = min(e.spec.Options.ShutdownTimeout.Or(job.DefaultShutdownTimeout), 2*time.Minute)
	}
	return e.takeBack(ctx, activities.PowerActivity, req)
}

// removeDrives takes the CD drives out of the source. What they are is in the history before they are
// touched, so that they can be put back whatever happens.
func (e *export) removeDrives(ctx workflow.Context) error {
	src := &e.source
	ctx = touching(ctx, e.host.ID, e.terms)
	if !src.looked {
		e.phase(ctx, job.Source, "taking the CD and DVD drives out of "+e.vm)
		if err := workflow.ExecuteActivity(ctx, activities.DrivesActivity, e.touch()).Get(ctx, &src.drives); err != nil {
			return err
		}
		src.looked = true
	}
	if len(src.drives) == 0 || src.removed {
		return nil
	}
	req := activities.DrivesRequest{Touch: e.touch(), Drives: src.drives, Again: !e.spec.Options.KeepCDROMRemoved}
	src.empty = true // or will be
	e.undo.push(step{name: "CD drives of " + e.vm + " removed", onlyFailed: e.spec.Options.KeepCDROMRemoved, do: func(ctx workflow.Context) error {
		if !e.source.empty {
			return nil // put back before
		}
		return e.takeBack(ctx, activities.RestoreDrivesActivity, req)
	}})
	err := workflow.ExecuteActivity(ctx, activities.RemoveDrivesActivity, req).Get(ctx, nil)
	src.removed = err == nil
	return err
}

// wake lets the source run again as soon as its snapshot is taken, where that was asked for.
func (e *export) wake(ctx workflow.Context) error {
	if !e.source.off || !e.source.wasOn || e.spec.Options.PowerOn != job.PowerOnAfterSnapshot {
		return nil
	}
	e.phase(ctx, job.Source, "starting "+e.vm+" again")
	ctx = touching(ctx, e.host.ID, e.terms)
	if e.source.empty && !e.spec.Options.KeepCDROMRemoved { // once it runs they cannot be plugged in
		req := activities.DrivesRequest{Touch: e.touch(), Drives: e.source.drives}
		if err := workflow.ExecuteActivity(ctx, activities.RestoreDrivesActivity, req).Get(ctx, nil); err != nil {
			return err
		}
		e.source.empty = false
	}
	err := workflow.ExecuteActivity(ctx, activities.PowerActivity, activities.PowerRequest{Touch: e.touch(), Want: providers.PowerOn}).Get(ctx, nil)
	e.source.wasOn = err != nil
	return err
}

// takeBack undoes a change of the source: from the job's host, or from anywhere.
func (e *export) takeBack(ctx workflow.Context, name string, req any) error {
	err := workflow.ExecuteActivity(cleaning(ctx, e.host.ID, e.terms), name, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(cleaning(ctx, "", e.terms), name, req).Get(ctx, nil)
	}
	return err
}

// shutDown asks a guest to shut down, with the activity options of ctx. A guest that does not do so in
// time, or cannot be asked, loses its power where that is what shall follow.
func shutDown(ctx workflow.Context, in activities.ShutDownRequest, then job.Then) (forced bool, err error) {
	asking := workflow.WithActivityOptions(ctx, shuttingDown(workflow.GetActivityOptions(ctx), in.Within))
	var is activities.Powered
	err = workflow.ExecuteActivity(asking, activities.ShutDownActivity, in).Get(ctx, &is)
	cannot := err != nil && providers.Precondition == verdict(err).reason
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil && !(cannot && then == job.ThenPowerOff):
		return false, err
	case err == nil && is.Power == providers.PowerOff:
		return false, nil
	case then != job.ThenPowerOff:
		return false, refusal(providers.Precondition, "the guest did not shut down within %s", in.Within)
	}
	req := activities.PowerRequest{Touch: in.Touch, Want: providers.PowerOff}
	err = workflow.ExecuteActivity(ctx, activities.PowerActivity, req).Get(ctx, nil)
	return err == nil, err
}

// shuttingDown gives an activity the time that a guest has. That it cannot be asked does not get better
// by asking again.
func shuttingDown(o workflow.ActivityOptions, within time.Duration) workflow.ActivityOptions {
	o.StartToCloseTimeout += within
	o.ScheduleToCloseTimeout += within
	policy := *o.RetryPolicy
	policy.NonRetryableErrorTypes = append([]string{string(providers.Precondition)}, policy.NonRetryableErrorTypes...)
	o.RetryPolicy = &policy
	return o
}
