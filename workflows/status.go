package workflows

import (
	"errors"
	"fmt"
	"strings"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/workflows/job"
)

// handlers answer what others ask of the job.
func (e *export) handlers(ctx workflow.Context) error {
	e.status.UpdatedAt = now(ctx)
	err := workflow.SetQueryHandler(ctx, QueryStatus, func() (job.Snapshot, error) {
		s := e.status
		s.Progress.Paused, s.Progress.LimitMBps = e.limits.Paused, e.limits.MBps
		return s, nil
	})
	if err != nil {
		return err
	}
	if err := workflow.SetQueryHandler(ctx, QueryLimits, func() (job.Limits, error) { return e.limits, nil }); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, UpdateControl,
		func(ctx workflow.Context, c job.Control) (job.Limits, error) {
			e.limits = c.Apply(e.limits)
			e.publish(ctx)
			return e.limits, nil
		},
		workflow.UpdateHandlerOptions{Validator: func(c job.Control) error {
			if e.ending || e.status.Status.Ended() {
				return errors.New("the job is ending; nothing is left to pause or limit")
			}
			return c.Validate()
		}})
}

// phase enters a phase and tells the world.
func (e *export) phase(ctx workflow.Context, p job.Phase, step string) {
	e.status.Progress.Phase, e.status.Progress.CurrentStep = p, step
	e.publish(ctx)
}

// publish mirrors the status into the memo, from which lists are made.
func (e *export) publish(ctx workflow.Context) {
	e.status.UpdatedAt = now(ctx)
	e.status.Progress.Paused, e.status.Progress.LimitMBps = e.limits.Paused, e.limits.MBps
	if err := workflow.UpsertMemo(ctx, map[string]any{MemoStatus: e.status}); err != nil {
		workflow.GetLogger(ctx).Error("status was not written to the memo", "error", err)
	}
}

// conclude takes everything back that must not stay, and writes what could not be taken back into the
// result or the error.
func (e *export) conclude(ctx workflow.Context, state job.State) {
	left := e.undo.run(ctx, state == job.Completed)
	for _, h := range e.away {
		if h.ID != e.host.ID {
			left = append(left, fmt.Sprintf("files in %s on host %s, which removes them when it is back", e.dir, h.ID))
		}
	}
	if err := e.leave(ctx, state, left); err != nil {
		left = append(left, "credentials given with the job ("+verdict(err).text+")")
	}
	if e.asked {
		// Where admission is gone there is nothing to give back.
		_ = workflow.SignalExternalWorkflow(ctx, AdmissionID, "", SignalRelease, e.id).Get(ctx, nil)
	}
	switch {
	case len(left) == 0:
	case e.status.Result != nil:
		e.status.Result.Leftover = left
	default:
		e.status.Error += "; left behind: " + strings.Join(left, "; ")
	}
}

// discard removes the job's hidden files.
func (e *export) discard(ctx workflow.Context) error {
	return workflow.ExecuteActivity(cleaning(ctx, e.host.ID, e.terms), activities.DiscardActivity,
		activities.DiscardRequest{Job: e.id, Target: e.plan.Target}).Get(ctx, nil)
}

// drop removes the snapshot: from the job's host, whose log then says so, or from anywhere.
func (e *export) drop(ctx workflow.Context) error {
	req := activities.DropRequest{Job: e.id, Connection: e.spec.Connection, VM: e.facts.VM.ID, Key: e.key()}
	err := workflow.ExecuteActivity(cleaning(ctx, e.host.ID, e.terms), activities.DropSnapshotActivity, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(cleaning(ctx, "", e.terms), activities.DropSnapshotActivity, req).Get(ctx, nil)
	}
	return err
}

// leave ends the job's stay on its host, which forgets the credentials that came with the job; where
// the host is away, or there never was one, another worker forgets them.
func (e *export) leave(ctx workflow.Context, state job.State, left []string) error {
	req := activities.LeaveRequest{
		Job: e.id, Host: e.host.ID, Connection: e.spec.Connection, State: state, Outcome: e.status.Error, Clean: len(left) == 0,
	}
	anyone := cleaning(ctx, "", e.terms)
	if e.host.ID == "" {
		return quickly(ctx, anyone, activities.LeaveActivity, req, nil)
	}
	err := workflow.ExecuteActivity(cleaning(ctx, e.host.ID, e.terms), activities.LeaveActivity, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(anyone, activities.LeaveActivity, req).Get(ctx, nil)
	}
	return err
}

func now(ctx workflow.Context) job.Time { return job.Time{Time: workflow.Now(ctx).UTC()} }
