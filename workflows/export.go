package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Export is one VM exported: admitted, placed on a host, inspected, planned, snapshotted, copied disk
// by disk, verified and written down; then what it needed on the way is cleaned up.
func Export(ctx workflow.Context, spec job.Spec) (*job.Result, error) {
	e := &export{id: workflow.GetInfo(ctx).WorkflowExecution.ID, spec: spec, terms: firstTerms}
	e.status.Status, e.status.Progress.Phase = job.Pending, job.Admit
	e.limits.MBps = spec.Options.LimitMBps
	if err := e.handlers(ctx); err != nil {
		return nil, err
	}
	err := e.run(ctx)
	return e.end(ctx, err)
}

// export is the state of one job.
type export struct {
	id     string
	spec   job.Spec
	status job.Snapshot
	limits job.Limits
	undo   undo
	ending bool // nothing can be paused or limited any more
	asked  bool // admission may know of the job

	terms    activities.Terms
	vm       string // its name
	admitted time.Time
	host     activities.Host
	away     []activities.Host // hosts that the job lost, with its files
	facts    activities.Facts
	plan     plan
	dir      string
	snapshot *providers.Snapshot
	done     []activities.Transferred
	sums     []activities.Verified
}

// run does the job; what it leaves to be taken back is in e.undo.
func (e *export) run(ctx workflow.Context) error {
	if err := Supported(e.spec); err != nil {
		return err
	}
	if err := e.admit(ctx); err != nil {
		return err
	}
	for {
		err := e.place(ctx)
		if err == nil {
			err = e.work(ctx)
		}
		if ctx.Err() != nil && e.status.Result == nil {
			return ctx.Err()
		}
		if !hostLost(err) {
			return err
		}
		e.away = append(e.away, e.host)
		e.status.Progress.WaitingFor = fmt.Sprintf("host %s has not answered for %s; looking for another", e.host.ID, e.terms.HostAway)
	}
}

// admit waits for the job's turn. The VM is looked for first: who names a VM that is not there, or
// brings a wrong password, hears so at once, and admission knows the VM by an id that all its names
// share.
func (e *export) admit(ctx workflow.Context) error {
	e.asked = true
	e.status.Progress.CurrentStep = "looking for the VM"
	admitted := workflow.GetSignalChannel(ctx, SignalAdmitted)
	for ok := false; !ok; {
		var asked activities.Asked
		err := quickly(ctx, anywhere(ctx), activities.AskActivity, activities.AskRequest{Job: e.id, Spec: e.spec}, &asked)
		if err != nil {
			return err
		}
		e.vm, e.terms = asked.VM, asked.Terms
		e.status.Progress.CurrentStep = "waiting for its turn"
		e.status.UpdatedAt = now(ctx)
		if ok, err = e.turn(ctx, admitted); err != nil {
			return err
		}
	}
	e.admitted = workflow.Now(ctx)
	t := now(ctx)
	e.status.Status, e.status.StartedAt = job.Running, &t
	return nil
}

// turn waits until admission calls the job, or until it is time to ask again.
func (e *export) turn(ctx workflow.Context, admitted workflow.ReceiveChannel) (ok bool, err error) {
	timer, stop := workflow.WithCancel(ctx)
	defer stop()
	s := workflow.NewSelector(ctx)
	s.AddReceive(admitted, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil); ok = true })
	s.AddFuture(workflow.NewTimer(timer, askAgain), func(workflow.Future) {})
	s.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) { err = ctx.Err() })
	s.Select(ctx)
	return ok, err
}

// place finds a host. A job that lost its host may well get the same one again: its files are there.
func (e *export) place(ctx workflow.Context) error {
	e.status.Host = ""
	e.phase(ctx, job.Place, "looking for a host with a free place")
	var host activities.Host
	err := workflow.ExecuteActivity(somewhere(ctx), activities.PlaceActivity, activities.PlaceRequest{Job: e.id}).Get(ctx, &host)
	if err != nil {
		return err
	}
	e.host, e.status.Host, e.status.Progress.WaitingFor = host, host.ID, ""
	return nil
}

// work is everything that happens on one host.
func (e *export) work(ctx workflow.Context) error {
	for _, do := range []func(workflow.Context) error{e.inspect, e.prepare, e.snap, e.transfer, e.verify} {
		if err := e.unpaused(ctx); err != nil {
			return err
		}
		if err := do(ctx); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return e.finish(ctx)
}

func (e *export) inspect(ctx workflow.Context) error {
	e.phase(ctx, job.Inspect, "looking at the VM and the target")
	format := e.spec.Format
	if format == "" {
		format = e.terms.Format
	}
	req := activities.InspectRequest{Job: e.id, Spec: e.spec, Format: format, Waited: e.admitted.Sub(workflow.GetInfo(ctx).WorkflowStartTime)}
	var facts activities.Facts
	if err := e.call(ctx, activities.InspectActivity, req, &facts); err != nil {
		return err
	}
	e.phase(ctx, job.Plan, "deciding how to go about it")
	p, err := makePlan(e.spec, facts)
	if err != nil {
		return err
	}
	e.facts, e.plan, e.vm = facts, p, facts.VM.Name
	e.status.Progress.Transport = p.Transport
	return nil
}

func (e *export) prepare(ctx workflow.Context) error {
	e.undo.push(step{name: "hidden files in " + e.plan.Target.Output, onlyFailed: true, do: e.discard})
	req := activities.PrepareRequest{
		Job: e.id, Target: e.plan.Target, Need: e.plan.Need,
		Connection: e.spec.Connection, VM: e.facts.VM.ID, SnapshotKey: e.key(),
	}
	for _, d := range e.plan.Disks {
		req.Files = append(req.Files, d.File)
	}
	var out activities.Prepared
	if err := e.call(ctx, activities.PrepareActivity, req, &out); err != nil {
		return err
	}
	e.dir = out.Dir
	if out.TookOver != "" {
		e.away = slices.DeleteFunc(e.away, func(h activities.Host) bool { return h.ID == out.TookOver })
	}
	e.plan.Target.Overwrite = e.plan.Target.Overwrite || out.Ours
	return nil
}

// key names the job's snapshot for ever.
func (e *export) key() string { return "hypersdk-" + e.id }

func (e *export) snap(ctx workflow.Context) error {
	if e.snapshot == nil {
		e.phase(ctx, job.Snap, "taking a snapshot of "+e.vm)
		e.undo.push(step{name: "snapshot " + e.key() + " of " + e.vm, do: e.drop})
		var s providers.Snapshot
		err := workflow.ExecuteActivity(touching(ctx, e.host.ID, e.terms), activities.SnapshotActivity, activities.SnapshotRequest{
			Job: e.id, Connection: e.spec.Connection, VM: e.facts.VM.ID, Key: e.key(), Quiesce: e.spec.Options.Quiesce,
		}).Get(ctx, &s)
		if err != nil {
			return err
		}
		e.snapshot = &s
	}
	return e.plan.disksOf(*e.snapshot)
}

// finish is the point of no return: from here on the job is completed, not cancelled.
func (e *export) finish(ctx workflow.Context) error {
	e.phase(ctx, job.Manifest, "naming the files and writing the manifest")
	e.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	req := activities.FinishRequest{
		Job: e.id, Target: e.plan.Target, Spec: e.spec, VM: e.facts.VM, Kind: e.facts.Kind, Host: e.host,
		Started: e.admitted, Snapshot: e.snapshot.Created, Verified: !e.spec.Options.NoVerify, Via: e.plan.Transport,
	}
	for i, d := range e.plan.Disks {
		req.Disks = append(req.Disks, activities.FinishDisk{DiskResult: e.diskResult(i), Label: d.Disk.Label, Inode: e.done[i].Inode})
	}
	var out activities.Finished
	if err := e.call(ctx, activities.FinishActivity, req, &out); err != nil {
		return err
	}
	r := &job.Result{
		VMName: e.vm, OutputDir: out.Dir, Files: out.Files, TotalSize: out.Total, Success: true,
		Host: e.host.ID, Transport: e.plan.Transport,
	}
	for i := range e.plan.Disks {
		r.Disks = append(r.Disks, e.diskResult(i))
	}
	e.status.Result = r
	return nil
}

func (e *export) diskResult(i int) job.DiskResult {
	d := e.plan.Disks[i]
	r := job.DiskResult{
		Disk: string(d.Disk.ID), File: d.File, Format: e.plan.Target.Format, Size: d.Disk.Size,
		Stored: e.done[i].Stored, Digest: e.done[i].Digest, Read: e.done[i].Read, Retries: e.done[i].Attempts - 1,
	}
	if i < len(e.sums) {
		r.SHA256, r.Stored = e.sums[i].SHA256, e.sums[i].Stored
	}
	return r
}

// call runs a short activity on the job's host.
func (e *export) call(ctx workflow.Context, name string, in, out any) error {
	return workflow.ExecuteActivity(onHost(ctx, e.host.ID, e.terms), name, in).Get(ctx, out)
}

// unpaused waits while the job is paused.
func (e *export) unpaused(ctx workflow.Context) error {
	return workflow.Await(ctx, func() bool { return !e.limits.Paused })
}

// end cleans up, says how the job ended, and answers that to Temporal.
func (e *export) end(ctx workflow.Context, err error) (*job.Result, error) {
	state := job.Completed
	switch {
	case e.status.Result != nil: // complete: what came after can only have left something behind
	case ctx.Err() != nil || temporal.IsCanceledError(err):
		state = job.Cancelled
		e.status.Error, e.status.Reason = "cancelled on request", string(providers.Canceled)
	default:
		o := verdict(err)
		state = job.Failed
		e.status.Error, e.status.Reason = o.text, string(o.reason)
	}
	e.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	e.status.Progress.WaitingFor = ""
	if e.host.ID != "" {
		e.phase(ctx, job.Clean, "cleaning up")
	}
	e.conclude(ctx, state)

	t := now(ctx)
	e.status.Status, e.status.CompletedAt = state, &t
	if r := e.status.Result; r != nil {
		r.Duration = t.Sub(e.admitted)
		e.status.Progress.Disks = nil // the result says more of them
	}
	e.phase(ctx, job.Done, "")
	if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
		return nil, err
	}
	if state == job.Completed {
		return e.status.Result, nil
	}
	return nil, outcome{providers.Reason(e.status.Reason), e.status.Error}.asError()
}
