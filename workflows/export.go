package workflows

import (
	"slices"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Export is one VM exported: admitted, placed on a host, inspected, planned, snapshotted, copied disk
// by disk, verified and written down; then what it needed on the way is cleaned up.
func Export(ctx workflow.Context, spec job.Spec) (*job.Result, error) {
	e := &export{task: newTask(ctx, spec.Connection, spec.Options.LimitMBps), spec: spec}
	if err := e.handlers(ctx); err != nil {
		return nil, err
	}
	err := e.run(ctx)
	return e.end(ctx, err)
}

// export is the state of one job.
type export struct {
	task
	spec     job.Spec
	vm       string // its name
	facts    activities.Facts
	plan     plan
	source   source
	snapshot *providers.Snapshot
	done     []activities.Transferred
	sums     []activities.Verified
	packaged []activities.FinishFile // of a package, beside its disks
	asked    activities.Asked        // by admission
	alerts   []string                // that an incremental export ends with
}

// run does the job; what it leaves to be taken back is in e.undo.
func (e *export) run(ctx workflow.Context) error {
	if err := Supported(e.spec); err != nil {
		return err
	}
	if err := e.admit(ctx, e.ask); err != nil {
		return err
	}
	if e.spec.Incremental {
		return e.onHosts(ctx, e.placeAtChain, e.workOnChain)
	}
	return e.onHosts(ctx, e.place, e.work)
}

// ask asks for the job's turn. The VM is looked for first: who names a VM that is not there, or
// brings a wrong password, hears so at once, and admission knows the VM by an id that all its names
// share.
func (e *export) ask(ctx workflow.Context) (asked activities.Asked, err error) {
	if e.vm == "" {
		e.status.Progress.CurrentStep = "looking for the VM"
	}
	err = quickly(ctx, anywhere(ctx), activities.AskActivity, activities.AskRequest{Job: e.id, Spec: e.spec}, &asked)
	e.vm, e.asked = asked.VM, asked
	return asked, err
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
	e.settled(host)
	return nil
}

// work is everything that happens on one host.
func (e *export) work(ctx workflow.Context) error {
	if err := e.steps(ctx, e.inspect, e.prepare, e.still, e.snap, e.wake, e.transfer, e.pack, e.verify, e.seal); err != nil {
		return err
	}
	return e.finish(ctx)
}

func (e *export) inspect(ctx workflow.Context) error {
	e.phase(ctx, job.Inspect, "looking at the VM and the target")
	format := e.spec.Format
	if format == "" {
		format = e.terms.Format
	}
	if e.spec.Incremental {
		format = chainFormat
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
	e.status.Progress.Transport, e.status.Progress.TransportReason = p.Transport, p.Why
	return nil
}

func (e *export) prepare(ctx workflow.Context) error {
	e.undo.push(step{name: "hidden files in " + e.plan.Target.Output, onlyFailed: true, do: e.discard})
	req := activities.PrepareRequest{
		Job: e.id, Target: e.plan.Target, Need: e.plan.Need,
		Connection: e.spec.Connection, VM: e.facts.VM.ID, SnapshotKey: e.key(),
	}
	for _, d := range e.plan.Disks {
		if d.File != "" {
			req.Files = append(req.Files, d.File)
		}
	}
	if e.plan.Target.Chain {
		req.Chain = e.chainVM()
	}
	req.Files = append(req.Files, e.plan.Target.PackageFiles()...)
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
		Package: e.packaged,
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
		Host: e.host.ID, Transport: e.plan.Transport, OVFPath: e.ovfPath(out.Dir),
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
		Archive: e.plan.Target.Archive(),
	}
	if i < len(e.sums) {
		r.SHA256, r.Stored = e.sums[i].SHA256, e.sums[i].Stored
	}
	return r
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
