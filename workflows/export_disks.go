package workflows

import (
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// transfer copies all disks at once, one activity each. The first that fails for good stops the
// others: their journals keep what they did, for as long as the job lives.
func (e *export) transfer(ctx workflow.Context) error {
	e.done = make([]activities.Transferred, len(e.plan.Disks))
	if e.plan.Leased {
		return e.lease(ctx)
	}
	e.begin(ctx, job.Transfer, "copying the disks", e.lines())
	var refused *activities.Refused
	err := e.each(ctx, len(e.plan.Disks), e.label, func(ctx workflow.Context, i int) workflow.Future {
		d := e.plan.Disks[i]
		return workflow.ExecuteActivity(ctx, activities.TransferActivity, activities.TransferRequest{
			Job: e.id, Connection: e.spec.Connection, Label: d.Disk.Label, Size: d.Disk.Size, Need: d.Need,
			Ref: e.ref(i), Target: e.plan.Target, File: d.File, Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
			Else: e.plan.Else,
		})
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &e.done[i]); err != nil {
			if refused == nil {
				refused = refusedBy(err)
			}
			return err
		}
		e.copied(i, e.done[i])
		return nil
	})
	if err == nil || refused == nil || e.plan.Else == "" || ctx.Err() != nil {
		return err
	}
	e.plan.Transport, e.plan.Leased, e.plan.Why = e.plan.Else, true, refused.Transport+": "+refused.Why
	return e.lease(ctx)
}

// verify reads all disks of the target again.
func (e *export) verify(ctx workflow.Context) error {
	if e.spec.Options.NoVerify {
		return nil
	}
	e.begin(ctx, job.Verify, "reading the target again to compare it with what was received", e.lines())
	sums := make([]activities.Verified, len(e.plan.Disks))
	n := len(sums)
	if e.plan.Target.Archive() != "" {
		n++ // what they are in
	}
	err := e.each(ctx, n, e.label, func(ctx workflow.Context, i int) workflow.Future {
		if i == len(sums) {
			return e.checkPackage(ctx)
		}
		d := e.plan.Disks[i]
		return workflow.ExecuteActivity(ctx, activities.VerifyActivity, activities.VerifyRequest{
			Job: e.id, Disk: string(d.Disk.ID), Label: d.Disk.Label, Size: d.Disk.Size, Target: e.plan.Target, File: d.File,
			Digest: e.done[i].Digest, Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
		})
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if i == len(sums) {
			return e.checked(ctx, f)
		}
		if err := f.Get(ctx, &sums[i]); err != nil {
			return err
		}
		e.verified(i)
		return nil
	})
	if err == nil {
		e.sums = sums
	}
	return err
}

// lines are the disks before anything is done about them.
func (e *export) lines() []job.DiskProgress {
	lines := make([]job.DiskProgress, len(e.plan.Disks))
	for i, d := range e.plan.Disks {
		lines[i] = job.DiskProgress{Disk: string(d.Disk.ID), File: d.File, Total: d.Disk.Size}
	}
	return lines
}

// ref names a disk as it is read.
func (e *export) ref(i int) providers.DiskRef {
	return providers.DiskRef{VM: e.facts.VM.ID, Snapshot: e.snapshot.ID, Disk: e.plan.Disks[i].Disk.ID, Transport: e.plan.Transport}
}

// label names a disk, or what comes behind them all: the archive that they are in.
func (e *export) label(i int) string {
	if i == len(e.plan.Disks) {
		return e.plan.Target.Archive()
	}
	d := e.plan.Disks[i]
	return d.Disk.Label + " (" + d.File + ")"
}
