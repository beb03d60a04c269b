package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// task is what all jobs have in common, whatever they do: where they stand, what they keep to, which
// host they are on, and what has to be taken back when they end.
type task struct {
	id         string
	connection string // that the job uses; empty: none, or the default one
	status     job.Snapshot
	limits     job.Limits
	undo       undo
	ending     bool // nothing can be paused or limited any more
	asked      bool // admission may know of the job

	terms    activities.Terms
	admitted time.Time
	host     activities.Host
	away     []activities.Host // hosts that the job lost, with its files
	dir      string            // where its files are, for people
	findings *job.Result       // of a job that fails for what it found
}

func newTask(ctx workflow.Context, connection string, limit float64) task {
	t := task{id: workflow.GetInfo(ctx).WorkflowExecution.ID, connection: connection, terms: firstTerms}
	t.status.Status, t.status.Progress.Phase = job.Pending, job.Admit
	t.limits.MBps = limit
	return t
}

// admit waits for the job's turn: ask puts it into the queue, and may be called again.
func (t *task) admit(ctx workflow.Context, ask func(workflow.Context) (activities.Asked, error)) error {
	t.asked = true
	admitted := workflow.GetSignalChannel(ctx, SignalAdmitted)
	for ok := false; !ok; {
		asked, err := ask(ctx)
		if err != nil {
			return err
		}
		t.terms = asked.Terms
		t.status.Progress.CurrentStep = "waiting for its turn"
		t.status.UpdatedAt = now(ctx)
		if ok, err = t.turn(ctx, admitted); err != nil {
			return err
		}
	}
	t.admitted = workflow.Now(ctx)
	at := now(ctx)
	t.status.Status, t.status.StartedAt = job.Running, &at
	return nil
}

// turn waits until admission calls the job, or until it is time to ask again.
func (t *task) turn(ctx workflow.Context, admitted workflow.ReceiveChannel) (ok bool, err error) {
	timer, stop := workflow.WithCancel(ctx)
	defer stop()
	s := workflow.NewSelector(ctx)
	s.AddReceive(admitted, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil); ok = true })
	s.AddFuture(workflow.NewTimer(timer, askAgain), func(workflow.Future) {})
	s.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) { err = ctx.Err() })
	s.Select(ctx)
	return ok, err
}

// onHosts finds a host and does the work there; where that host is lost, on another one.
func (t *task) onHosts(ctx workflow.Context, place, work func(workflow.Context) error) error {
	for {
		err := place(ctx)
		if err == nil {
			err = work(ctx)
		}
		if ctx.Err() != nil && t.status.Result == nil {
			return ctx.Err()
		}
		if !hostLost(err) {
			return err
		}
		t.away = append(t.away, t.host)
		t.status.Progress.WaitingFor = fmt.Sprintf("host %s has not answered for %s; looking for another", t.host.ID, t.terms.HostAway)
	}
}

// settled notes the host that the job is on.
func (t *task) settled(h activities.Host) {
	t.host, t.status.Host, t.status.Progress.WaitingFor = h, h.ID, ""
}

// steps does one thing after the other, none of them while the job is paused.
func (t *task) steps(ctx workflow.Context, steps ...func(workflow.Context) error) error {
	for _, do := range steps {
		if err := workflow.Await(ctx, func() bool { return !t.limits.Paused }); err != nil {
			return err
		}
		if err := do(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// call runs a short activity on the job's host.
func (t *task) call(ctx workflow.Context, name string, in, out any) error {
	return workflow.ExecuteActivity(onHost(ctx, t.host.ID, t.terms), name, in).Get(ctx, out)
}

// begin enters a phase in which the disks have progress of their own, a line each. What the phase before
// knew of them stays known.
func (t *task) begin(ctx workflow.Context, phase job.Phase, step string, lines []job.DiskProgress) {
	old := t.status.Progress.Disks
	t.status.Progress.TotalBytes = 0
	for i := range lines {
		lines[i].Phase = phase
		if phase == job.Verify && i < len(old) {
			lines[i].Read, lines[i].Digest = old[i].Read, old[i].Digest
		}
		t.status.Progress.TotalBytes += lines[i].Total
	}
	t.status.Progress.Disks = lines
	t.phase(ctx, phase, step)
}

// copied notes that a disk is copied.
func (t *task) copied(i int, out activities.Transferred) {
	p := &t.status.Progress.Disks[i]
	p.Done, p.Read, p.Digest, p.Attempt, p.ResumedFrom = p.Total, out.Read, out.Digest, out.Attempts, out.ResumedFrom
}

// verified notes that a disk was read again.
func (t *task) verified(i int) {
	t.status.Progress.Disks[i].Done = t.status.Progress.Disks[i].Total
}

// each starts an activity for each of n disks and takes their results as they come. When one fails the
// others are told to stop, and it waits for them: nobody writes any more when it returns. label names a
// disk in the failure.
func (t *task) each(ctx workflow.Context, n int, label func(int) string,
	start func(workflow.Context, int) workflow.Future, took func(workflow.Context, int, workflow.Future) error,
) error {
	ctx, stop := workflow.WithCancel(moving(ctx, t.host.ID, t.terms))
	defer stop()
	var first error
	s := workflow.NewSelector(ctx)
	for i := range n {
		s.AddFuture(start(ctx, i), func(f workflow.Future) {
			err := took(ctx, i, f)
			t.status.UpdatedAt = now(ctx)
			if err != nil && first == nil {
				first = named(label(i), err)
				stop()
			}
		})
	}
	for range n {
		s.Select(ctx)
	}
	return first
}

// verifyEach reads n disks of the target again, all at once; request says of one what is to be read.
func (t *task) verifyEach(ctx workflow.Context, n int, label func(int) string, request func(int) activities.VerifyRequest) ([]activities.Verified, error) {
	sums := make([]activities.Verified, n)
	err := t.each(ctx, n, label, func(ctx workflow.Context, i int) workflow.Future {
		return workflow.ExecuteActivity(ctx, activities.VerifyActivity, request(i))
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &sums[i]); err != nil {
			return err
		}
		t.verified(i)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sums, nil
}

// named is err with the disk that it is about.
func named(label string, err error) error {
	if hostLost(err) {
		return err
	}
	o := verdict(err)
	if o.reason == providers.Canceled {
		return err
	}
	return outcome{o.reason, label + ": " + o.text}
}

// end cleans up, says how the job ended, and answers that to Temporal.
func (t *task) end(ctx workflow.Context, err error) (*job.Result, error) {
	state := job.Completed
	switch {
	case t.status.Result != nil: // complete: what came after can only have left something behind
	case ctx.Err() != nil || temporal.IsCanceledError(err):
		state = job.Cancelled
		t.status.Error, t.status.Reason = "cancelled on request", string(providers.Canceled)
	default:
		o := verdict(err)
		state = job.Failed
		t.status.Error, t.status.Reason = o.text, string(o.reason)
	}
	t.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	t.status.Progress.WaitingFor = ""
	if t.host.ID != "" {
		t.phase(ctx, job.Clean, "cleaning up")
	}
	t.conclude(ctx, state)

	at := now(ctx)
	t.status.Status, t.status.CompletedAt = state, &at
	if state == job.Failed && t.status.Reason == string(providers.Corrupt) {
		t.status.Result = t.findings
	}
	if r := t.status.Result; r != nil {
		r.Duration = at.Sub(t.admitted)
		t.status.Progress.Disks = nil // the result says more of them
	}
	t.phase(ctx, job.Done, "")
	if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
		return nil, err
	}
	if state == job.Completed {
		return t.status.Result, nil
	}
	return nil, outcome{providers.Reason(t.status.Reason), t.status.Error}.asError()
}
