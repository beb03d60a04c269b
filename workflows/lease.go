package workflows

import (
	"errors"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// lease copies all disks under one lease: one activity, in which they come at the same time.
func (e *export) lease(ctx workflow.Context) error {
	e.status.Progress.Transport, e.status.Progress.TransportReason = e.plan.Transport, e.plan.Why
	e.begin(ctx, job.Transfer, "copying the disks under a lease", e.lines())
	req := activities.LeaseRequest{
		Job: e.id, Connection: e.spec.Connection, Transport: e.plan.Transport, Why: e.plan.Why, Target: e.plan.Target,
		Ref:     providers.SnapshotRef{VM: e.facts.VM.ID, Snapshot: e.snapshot.ID},
		Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
	}
	for _, d := range e.plan.Disks {
		req.Disks = append(req.Disks, activities.LeaseDisk{Disk: d.Disk.ID, Label: d.Disk.Label, Size: d.Disk.Size, Need: d.Need, File: d.File})
	}
	var out activities.Leased
	if err := workflow.ExecuteActivity(leasing(ctx, e.host.ID, e.terms), activities.LeaseActivity, req).Get(ctx, &out); err != nil {
		return err
	}
	if len(out.Disks) != len(e.done) {
		return refusal(providers.Unavailable, "%d disks came of %d", len(out.Disks), len(e.done))
	}
	for i, d := range out.Disks {
		e.done[i] = d
		e.copied(i, d)
	}
	e.status.UpdatedAt = now(ctx)
	return nil
}

// refusedBy says whether an activity failed because its transport cannot be used, though another can.
func refusedBy(err error) *activities.Refused {
	var app *temporal.ApplicationError
	var r activities.Refused
	if !errors.As(err, &app) || !app.NonRetryable() || !app.HasDetails() || app.Details(&r) != nil || r.Transport == "" {
		return nil
	}
	return &r
}
