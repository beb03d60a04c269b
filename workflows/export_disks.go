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
	e.begin(ctx, job.Transfer, "copying the disks")
	e.done = make([]activities.Transferred, len(e.plan.Disks))
	return e.disks(ctx, func(ctx workflow.Context, i int) workflow.Future {
		d := e.plan.Disks[i]
		return workflow.ExecuteActivity(ctx, activities.TransferActivity, activities.TransferRequest{
			Job: e.id, Connection: e.spec.Connection, Label: d.Disk.Label, Size: d.Disk.Size, Need: d.Need,
			Ref:    providers.DiskRef{VM: e.facts.VM.ID, Snapshot: e.snapshot.ID, Disk: d.Disk.ID, Transport: e.plan.Transport},
			Target: e.plan.Target, File: d.File, Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
		})
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &e.done[i]); err != nil {
			return err
		}
		p, out := &e.status.Progress.Disks[i], e.done[i]
		p.Done, p.Read, p.Digest, p.Attempt, p.ResumedFrom = p.Total, out.Read, out.Digest, out.Attempts, out.ResumedFrom
		return nil
	})
}

// verify reads all disks of the target again.
func (e *export) verify(ctx workflow.Context) error {
	if e.spec.Options.NoVerify {
		return nil
	}
	e.begin(ctx, job.Verify, "reading the target again to compare it with what was received")
	sums := make([]activities.Verified, len(e.plan.Disks))
	err := e.disks(ctx, func(ctx workflow.Context, i int) workflow.Future {
		d := e.plan.Disks[i]
		return workflow.ExecuteActivity(ctx, activities.VerifyActivity, activities.VerifyRequest{
			Job: e.id, Disk: string(d.Disk.ID), Label: d.Disk.Label, Size: d.Disk.Size, Target: e.plan.Target, File: d.File,
			Digest: e.done[i].Digest, Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
		})
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &sums[i]); err != nil {
			return err
		}
		e.status.Progress.Disks[i].Done = e.status.Progress.Disks[i].Total
		return nil
	})
	if err == nil {
		e.sums = sums
	}
	return err
}

// begin enters a phase in which the disks have progress of their own.
func (e *export) begin(ctx workflow.Context, phase job.Phase, step string) {
	old := e.status.Progress.Disks
	lines := make([]job.DiskProgress, len(e.plan.Disks))
	e.status.Progress.TotalBytes = 0
	for i, d := range e.plan.Disks {
		lines[i] = job.DiskProgress{Disk: string(d.Disk.ID), File: d.File, Phase: phase, Total: d.Disk.Size}
		if phase == job.Verify && i < len(old) {
			lines[i].Read, lines[i].Digest = old[i].Read, old[i].Digest
		}
		e.status.Progress.TotalBytes += d.Disk.Size
	}
	e.status.Progress.Disks = lines
	e.phase(ctx, phase, step)
}

// disks starts an activity for every disk and takes their results as they come. When one fails the
// others are told to stop, and it waits for them: nobody writes any more when it returns.
func (e *export) disks(ctx workflow.Context, start func(workflow.Context, int) workflow.Future, took func(workflow.Context, int, workflow.Future) error) error {
	ctx, stop := workflow.WithCancel(moving(ctx, e.host.ID, e.terms))
	defer stop()
	var first error
	s := workflow.NewSelector(ctx)
	for i := range e.plan.Disks {
		s.AddFuture(start(ctx, i), func(f workflow.Future) {
			err := took(ctx, i, f)
			e.status.UpdatedAt = now(ctx)
			if err != nil && first == nil {
				first = e.named(i, err)
				stop()
			}
		})
	}
	for range e.plan.Disks {
		s.Select(ctx)
	}
	return first
}

// named is err with the disk that it is about.
func (e *export) named(i int, err error) error {
	if hostLost(err) {
		return err
	}
	o := verdict(err)
	if o.reason == providers.Canceled {
		return err
	}
	d := e.plan.Disks[i]
	return outcome{o.reason, d.Disk.Label + " (" + d.File + "): " + o.text}
}
