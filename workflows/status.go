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
func (t *task) handlers(ctx workflow.Context) error {
	t.status.UpdatedAt = now(ctx)
	err := workflow.SetQueryHandler(ctx, QueryStatus, func() (job.Snapshot, error) {
		s := t.status
		s.Progress.Paused, s.Progress.LimitMBps = t.limits.Paused, t.limits.MBps
		return s, nil
	})
	if err != nil {
		return err
	}
	if err := workflow.SetQueryHandler(ctx, QueryLimits, func() (job.Limits, error) { return t.limits, nil }); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, UpdateControl,
		func(ctx workflow.Context, c job.Control) (job.Limits, error) {
			t.limits = c.Apply(t.limits)
			t.publish(ctx)
			return t.limits, nil
		},
		workflow.UpdateHandlerOptions{Validator: func(c job.Control) error {
			if t.ending || t.status.Status.Ended() {
				return errors.New("the job is ending; nothing is left to pause or limit")
			}
			return c.Validate()
		}})
}

// phase enters a phase and tells the world.
func (t *task) phase(ctx workflow.Context, p job.Phase, step string) {
	t.status.Progress.Phase, t.status.Progress.CurrentStep = p, step
	t.publish(ctx)
}

// publish mirrors the status into the memo, from which lists are made.
func (t *task) publish(ctx workflow.Context) {
	t.status.UpdatedAt = now(ctx)
	t.status.Progress.Paused, t.status.Progress.LimitMBps = t.limits.Paused, t.limits.MBps
	if err := workflow.UpsertMemo(ctx, map[string]any{MemoStatus: t.status}); err != nil {
		workflow.GetLogger(ctx).Error("status was not written to the memo", "error", err)
	}
}

// conclude takes everything back that must not stay, and writes what could not be taken back into the
// result or the error.
func (t *task) conclude(ctx workflow.Context, state job.State) {
	left := t.undo.run(ctx, state == job.Completed)
	for _, h := range t.away {
		if h.ID != t.host.ID {
			left = append(left, fmt.Sprintf("files in %s on host %s, which removes them when it is back", t.dir, h.ID))
		}
	}
	if err := t.leave(ctx, state, left); err != nil {
		left = append(left, "credentials given with the job ("+verdict(err).text+")")
	}
	if t.asked {
		// Where admission is gone there is nothing to give back.
		_ = workflow.SignalExternalWorkflow(ctx, AdmissionID, "", SignalRelease, t.id).Get(ctx, nil)
	}
	switch {
	case len(left) == 0:
	case t.status.Result != nil:
		t.status.Result.Leftover = left
	default:
		t.status.Error += "; left behind: " + strings.Join(left, "; ")
	}
}

// leave ends the job's stay on its host, which forgets the credentials that came with the job; where
// the host is away, or there never was one, another worker forgets them.
func (t *task) leave(ctx workflow.Context, state job.State, left []string) error {
	req := activities.LeaveRequest{
		Job: t.id, Host: t.host.ID, Connection: t.connection, State: state, Outcome: t.status.Error, Clean: len(left) == 0,
	}
	anyone := cleaning(ctx, "", t.terms)
	if t.host.ID == "" {
		return quickly(ctx, anyone, activities.LeaveActivity, req, nil)
	}
	err := workflow.ExecuteActivity(cleaning(ctx, t.host.ID, t.terms), activities.LeaveActivity, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(anyone, activities.LeaveActivity, req).Get(ctx, nil)
	}
	return err
}

func now(ctx workflow.Context) job.Time { return job.Time{Time: workflow.Now(ctx).UTC()} }
