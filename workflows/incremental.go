package workflows

import (
	"fmt"
	"slices"
	"strings"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// chainFormat is the format of the disks of a chain.
const chainFormat = "qcow2"

// chainVM is the VM as its chain names it.
func (e *export) chainVM() cbt.VM {
	return cbt.VM{ID: string(e.facts.VM.ID), Name: e.facts.VM.Name, Provider: e.facts.Kind}
}

// placeAtChain finds the host that has the chain of the VM. Where none has, any host with a place will do;
// where one that may have it stays silent for too long, too, and that is an alert: the chain that was there
// is not gone on with.
func (e *export) placeAtChain(ctx workflow.Context) error {
	e.status.Host = ""
	e.phase(ctx, job.Place, "looking for the host that has the chain of "+e.vm)
	late := workflow.Now(ctx).Add(e.terms.HostAway)
	for {
		hosts, err := e.chainHosts(ctx)
		if err != nil {
			return err
		}
		if len(hosts) < 2 {
			return e.place(ctx)
		}
		found, silent, err := e.lookForChain(ctx, hosts)
		if err != nil {
			return err
		}
		if found.Has {
			if err := e.settle(ctx, found.Host, "the chain of "+e.vm); !hostLost(err) {
				return err
			}
			silent = []string{found.Host.ID}
		}
		if len(silent) == 0 {
			return e.place(ctx)
		}
		if !workflow.Now(ctx).Before(late) {
			return e.placeWithoutChain(ctx, silent)
		}
		e.status.Progress.WaitingFor = fmt.Sprintf("host %s, which does not answer and may have the chain of %s", strings.Join(silent, ", "), e.vm)
		e.publish(ctx)
		if err := workflow.Sleep(ctx, lookAgain); err != nil {
			return err
		}
	}
}

// placeWithoutChain goes on without the hosts that may have the chain.
func (e *export) placeWithoutChain(ctx workflow.Context, silent []string) error {
	if err := e.place(ctx); err != nil {
		return err
	}
	if !slices.Contains(silent, e.host.ID) { // else it has come back meanwhile
		e.alerts = append(e.alerts, fmt.Sprintf("host %s, which may have the chain of %s, did not answer for %s; the export went to host %s, in full where that has no chain",
			strings.Join(silent, ", "), e.vm, e.terms.HostAway, e.host.Name))
	}
	return nil
}

// chainHosts are the hosts that may have the chain: those that were heard of lately, and those that the job
// has lost. To ask is cheap, for every incremental export does.
func (e *export) chainHosts(ctx workflow.Context) ([]string, error) {
	var hosts activities.Hosts
	if err := quickly(ctx, anywhere(ctx), activities.HostsActivity, activities.HostsRequest{Job: e.id}, &hosts); err != nil {
		return nil, err
	}
	for _, h := range e.away {
		if !slices.Contains(hosts.IDs, h.ID) {
			hosts.IDs = append(hosts.IDs, h.ID)
		}
	}
	return hosts.IDs, nil
}

// lookForChain asks every host for the chain, and answers the one whose newest point is the newest; one
// that is there and cannot be read now, or is another VM's, counts less than any other. Hosts that do not
// answer are silent.
func (e *export) lookForChain(ctx workflow.Context, hosts []string) (best activities.ChainFound, silent []string, err error) {
	req := activities.FindChainRequest{Job: e.id, Output: e.spec.OutputPath, Folder: e.asked.Folder, VM: e.asked.ID}
	asked := make([]workflow.Future, len(hosts))
	for i, id := range hosts {
		asked[i] = workflow.ExecuteActivity(looking(ctx, id, e.terms), activities.FindChainActivity, req)
	}
	var failed error
	for i, f := range asked {
		var seen activities.ChainFound
		switch err := f.Get(ctx, &seen); {
		case ctx.Err() != nil:
			return best, nil, ctx.Err()
		case hostLost(err):
			silent = append(silent, hosts[i])
		case err != nil:
			failed = err
		case seen.Has && better(seen, best):
			best = seen
		}
	}
	if best.Has {
		return best, nil, nil
	}
	return best, silent, failed
}

// better says whether the chain on one host is rather the one to go on with than that on another.
func better(a, b activities.ChainFound) bool {
	switch {
	case !b.Has:
		return true
	case a.Ours != b.Ours:
		return a.Ours
	case !a.Newest.Equal(b.Newest):
		return a.Newest.After(b.Newest)
	}
	return a.Free > b.Free
}

// workOnChain is everything that an incremental export does on one host.
func (e *export) workOnChain(ctx workflow.Context) error {
	if err := e.steps(ctx, e.inspect, e.prepare, e.track, e.still, e.snap, e.wake); err != nil {
		return err
	}
	out, err := e.append(ctx)
	if err != nil {
		return err
	}
	return e.finishPoint(ctx, out)
}

// track switches the tracking of changes on, where the operator lets exports do so. Where it cannot be, the
// disks are compared with the chain, which needs no tracking.
func (e *export) track(ctx workflow.Context) error {
	if !e.terms.Track || e.facts.VM.ChangeTracking || e.snapshot != nil || !has(e.facts.Capabilities, "change-tracking") {
		return nil
	}
	e.phase(ctx, job.Source, "switching the tracking of changes of "+e.vm+" on")
	on := true
	err := workflow.ExecuteActivity(touching(ctx, e.host.ID, e.terms), activities.TrackingActivity,
		activities.TrackingRequest{Touch: e.touch(), Want: &on}).Get(ctx, nil)
	if err != nil && ctx.Err() == nil && !hostLost(err) {
		workflow.GetLogger(ctx).Warn("the tracking of changes was not switched on", "error", verdict(err).text)
		return nil
	}
	return err
}

// append adds a point to the chain: one activity, in which all disks come at the same time.
func (e *export) append(ctx workflow.Context) (out activities.Appended, err error) {
	if err := workflow.Await(ctx, func() bool { return !e.limits.Paused }); err != nil {
		return out, err
	}
	lines := e.lines()
	req := activities.AppendRequest{
		Job: e.id, Connection: e.spec.Connection, VM: e.chainVM(), Snapshot: e.snapshot.ID, Time: e.snapshot.Created,
		Transport: e.plan.Transport, Target: e.plan.Target, Full: e.spec.Options.Full, Audit: e.spec.Options.VerifyTracking,
		NoVerify: e.spec.Options.NoVerify, Workers: e.spec.Options.ParallelDownloads, Limits: e.limits,
	}
	for i, d := range e.plan.Disks {
		lines[i].File = d.Disk.Label // until the chain says what it is called there
		req.Disks = append(req.Disks, activities.AppendDisk{Disk: d.Disk.ID, Label: d.Disk.Label, Size: d.Disk.Size, ChangeID: d.Disk.ChangeID})
	}
	e.begin(ctx, job.Transfer, "adding a point to the chain", lines)
	if err := workflow.ExecuteActivity(moving(ctx, e.host.ID, e.terms), activities.AppendActivity, req).Get(ctx, &out); err != nil {
		return out, err
	}
	if len(out.Disks) != len(req.Disks) {
		return out, refusal(providers.Unavailable, "%d disks are in the point of %d", len(out.Disks), len(req.Disks))
	}
	for i, d := range out.Disks {
		e.copied(i, activities.Transferred{Digest: d.Digest, Read: d.Read, Attempts: d.Retries + 1})
		e.status.Progress.Disks[i].File = d.File
	}
	return out, nil
}

// finishPoint is the point of no return: the point stays, and the job is completed, not cancelled.
func (e *export) finishPoint(ctx workflow.Context, out activities.Appended) error {
	e.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	e.phase(ctx, job.Manifest, "the point is part of the chain")
	req := activities.FinishPointRequest{Job: e.id, Target: e.plan.Target, Number: out.Point.Number}
	if err := e.call(ctx, activities.FinishPointActivity, req, nil); err != nil {
		return err
	}
	e.status.Result = &job.Result{
		VMName: e.vm, OutputDir: out.Dir, Files: out.Files, TotalSize: out.Total, Success: true, Disks: out.Disks,
		Host: e.host.ID, Transport: e.plan.Transport, Point: &out.Point, Alerts: append(e.alerts, out.Alerts...),
	}
	return nil
}
