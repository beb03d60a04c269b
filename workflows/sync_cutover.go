package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// cutoverHandler takes the request for the cutover. Asking again changes nothing.
func (w *warm) cutoverHandler(ctx workflow.Context) error {
	return workflow.SetUpdateHandlerWithOptions(ctx, UpdateCutover,
		func(ctx workflow.Context) (job.SyncStatus, error) {
			w.wanted = true
			w.status.Sync.CutoverAsked, w.status.Sync.CalledOff = true, ""
			w.publish(ctx)
			return *w.status.Sync, nil
		},
		workflow.UpdateHandlerOptions{Validator: func() error {
			if w.ending || w.status.Status.Ended() {
				return errors.New("the job is ending; it is too late to ask for the cutover")
			}
			return nil
		}})
}

// between is the time between two rounds: it decides whether the next one is the last, and waits for it.
func (w *warm) between(ctx workflow.Context) error {
	s := w.status.Sync
	s.Ready = timely(w.spec, *s)
	if s.Ready != "" && w.spec.Cutover == job.CutoverAuto && s.CalledOff == "" {
		w.wanted = true
	}
	for !w.wanted {
		if w.inRun >= roundsPerRun || workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			return w.again(ctx)
		}
		due, err := w.await(ctx)
		if err != nil || due {
			return err
		}
	}
	s.CutoverAsked = true
	return w.steps(ctx, w.cutOver)
}

// again goes on in a new run, with an empty history.
func (w *warm) again(ctx workflow.Context) error {
	if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
		return err
	}
	return workflow.NewContinueAsNewError(ctx, SyncWorkflow, w.carry())
}

// await waits until the next round is due, or the cutover is asked for.
func (w *warm) await(ctx workflow.Context) (due bool, err error) {
	s := w.status.Sync
	next := w.began.Add(w.spec.Pace())
	pause := max(next.Sub(workflow.Now(ctx)), job.MinSyncInterval)
	at := job.Time{Time: workflow.Now(ctx).Add(pause).UTC()}
	s.NextRound = &at
	w.status.Progress.WaitingFor = fmt.Sprintf("round %d, at %s", w.round+1, at.Format("15:04:05 MST"))
	switch {
	case s.CalledOff != "":
		w.status.Progress.WaitingFor = "the cutover to be asked for again, which was called off: " + s.CalledOff
	case s.Ready != "":
		w.status.Progress.WaitingFor = "the cutover to be asked for: " + s.Ready
	}
	w.phase(ctx, job.Wait, fmt.Sprintf("round %d is copied; the next one begins at %s", w.round, at.Format("15:04:05 MST")))
	_, err = workflow.AwaitWithTimeout(ctx, pause, func() bool { return w.wanted })
	if err == nil { // a cutover that is asked for while the job is paused comes before the next round
		err = workflow.Await(ctx, func() bool { return w.wanted || !w.limits.Paused })
	}
	w.status.Progress.WaitingFor, s.NextRound = "", nil
	return !w.wanted, err
}

// timely says why it is time for the cutover; "" where it is not.
func timely(spec job.SyncSpec, s job.SyncStatus) string {
	if len(s.Rounds) == 0 {
		return ""
	}
	last := s.Rounds[len(s.Rounds)-1]
	switch f := s.Forecast; {
	case spec.ThresholdBytes > 0 && last.Round > 1 && last.Changed <= spec.ThresholdBytes:
		return fmt.Sprintf("round %d had %d changed bytes, at most %d were wanted", last.Round, last.Changed, spec.ThresholdBytes)
	case spec.MaxDowntime > 0 && f != nil && f.Downtime <= spec.MaxDowntime:
		return fmt.Sprintf("the downtime is forecast to be %s, at most %s was wanted", f.Downtime, spec.MaxDowntime)
	case spec.MaxRounds > 0 && last.Round >= spec.MaxRounds:
		return fmt.Sprintf("round %d is copied, and it was to be time after %d", last.Round, spec.MaxRounds)
	}
	return ""
}

// cutOver makes the next round the last one. Where the guest is to be shut down and does not, the cutover
// is called off and rounds go on: what was copied is not given up for that.
func (w *warm) cutOver(ctx workflow.Context) error {
	if w.spec.Shutdown && !w.off {
		why, err := w.shutDown(ctx)
		if err != nil {
			return err
		}
		if why != "" {
			w.wanted = false
			w.status.Sync.CutoverAsked, w.status.Sync.CalledOff = false, why
			return nil
		}
	}
	w.last = w.round + 1
	return nil
}

// shutDown shuts the guest down, or says why the cutover is to be called off.
func (w *warm) shutDown(ctx workflow.Context) (calledOff string, err error) {
	w.phase(ctx, job.Source, "shutting down "+w.vm+" for the cutover")
	touch := activities.Touch{Job: w.id, Connection: w.spec.Connection, VM: w.facts.VM.ID}
	ctx2 := touching(ctx, w.host.ID, w.terms)
	var found activities.FoundVM
	req := activities.FindVMRequest{Touch: touch, VMPath: string(w.facts.VM.ID)}
	if err := workflow.ExecuteActivity(ctx2, activities.FindVMActivity, req).Get(ctx, &found); err != nil {
		return "", err
	}
	switch found.VM.PowerState {
	case providers.PowerOff:
		w.off = true
		return "", nil
	case providers.PowerSuspended:
		return w.vm + " is suspended, so that it cannot be shut down", nil
	}
	within := w.spec.ShutdownTimeout.Or(job.DefaultShutdownTimeout)
	begun := true // the guest may have been asked
	power := step{name: "VM " + w.vm + " shut down", onlyFailed: true, do: func(ctx workflow.Context) error {
		on := activities.PowerRequest{Touch: touch, Want: providers.PowerOn}
		if begun && !w.off { // it may still come about
			on.Settle = min(within, 2*time.Minute)
		}
		return w.anywhere(ctx, activities.PowerActivity, on)
	}}
	w.undo.push(power)
	began := workflow.Now(ctx)
	_, err = shutDown(ctx2, activities.ShutDownRequest{Touch: touch, Within: within}, w.spec.ShutdownThen)
	if err == nil {
		w.off, w.shut = true, workflow.Now(ctx).Sub(began)
		return "", nil
	}
	why := verdict(err)
	if ctx.Err() != nil || hostLost(err) || why.reason != providers.Precondition {
		return "", err
	}
	// What the guest was asked for may still come about: then it is started again. One that cannot be asked
	// was not.
	begun = errors.As(err, &outcome{})
	if err := power.do(ctx); err != nil {
		return "", err
	}
	return why.text, nil
}

// verify reads all targets again.
func (w *warm) verify(ctx workflow.Context) error {
	if w.spec.NoVerify {
		return nil
	}
	w.begin(ctx, job.Verify, "reading the targets again to compare them with what was received", w.lines())
	sums, err := w.verifyEach(ctx, len(w.plan.Disks), w.label, func(i int) activities.VerifyRequest {
		d := w.plan.Disks[i]
		return activities.VerifyRequest{
			Job: w.id, Disk: string(d.Disk.ID), Label: d.Disk.Label, Size: d.Disk.Size, Target: w.plan.Target, File: d.File,
			Digest: w.done[i].Digest, Workers: w.spec.Parallel, Limits: w.limits,
		}
	})
	w.sums = sums
	return err
}

// finish is the point of no return: from here on the job is completed, not cancelled.
func (w *warm) finish(ctx workflow.Context) error {
	w.phase(ctx, job.Manifest, "naming the files and writing the manifest")
	w.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	req := activities.FinishRequest{
		Job: w.id, Target: w.plan.Target, Spec: w.spec.Definition(), VM: w.facts.VM, Kind: w.facts.Kind, Host: w.host,
		Started: w.admitted, Snapshot: w.snapshot.Created, Verified: !w.spec.NoVerify, Via: w.plan.Transport,
	}
	for i, d := range w.plan.Disks {
		req.Disks = append(req.Disks, activities.FinishDisk{DiskResult: w.diskResult(i), Label: d.Disk.Label, Inode: w.done[i].Inode})
		req.VM.Disks = append(req.VM.Disks[:i:i], d.Disk)
	}
	var out activities.Finished
	if err := w.call(ctx, activities.FinishActivity, req, &out); err != nil {
		return err
	}
	r := &job.Result{
		VMName: w.vm, OutputDir: out.Dir, Files: out.Files, TotalSize: out.Total, Success: true, Host: w.host.ID, Transport: w.plan.Transport,
	}
	for i := range w.plan.Disks {
		r.Disks = append(r.Disks, w.diskResult(i))
	}
	w.status.Result = r
	return nil
}

func (w *warm) diskResult(i int) job.DiskResult {
	d, done := w.plan.Disks[i], w.done[i]
	r := job.DiskResult{
		Disk: string(d.Disk.ID), File: d.File, Format: w.plan.Target.Format, Size: d.Disk.Size, Stored: done.Stored, Digest: done.Digest,
		Read: done.Read, Retries: done.Attempts - 1,
	}
	if i < len(w.sums) {
		r.SHA256, r.Stored = w.sums[i].SHA256, w.sums[i].Stored
	}
	return r
}
