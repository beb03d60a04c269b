package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const (
	// operatePatience is how long an operation is tried again: somebody waits for it, and nothing is to
	// happen to his VM by surprise later.
	operatePatience = 30 * time.Second
	// operateBeat is how long a worker may be silent in an operation.
	operateBeat = 10 * time.Second
)

// Operate does one thing to one VM.
func Operate(ctx workflow.Context, in job.Operation) (*job.Operated, error) {
	o := &operation{id: workflow.GetInfo(ctx).WorkflowExecution.ID, in: in}
	err := o.run(ctx)
	return o.end(ctx, err)
}

// operation is the state of one operation.
type operation struct {
	id  string
	in  job.Operation
	out job.Operated
}

// operating is for steps of an operation, of which one may take so long.
func operating(ctx workflow.Context, within time.Duration) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              Queue,
		StartToCloseTimeout:    within,
		ScheduleToCloseTimeout: within,
		HeartbeatTimeout:       operateBeat,
		WaitForCancellation:    true,
		RetryPolicy:            retries(time.Second, 5*time.Second),
	})
}

const (
	short = 10 * time.Minute
	// lengthy is what snapshots and clones may take: as long as disks are large.
	lengthy = day
)

func (o *operation) touch() activities.Touch {
	return activities.Touch{Job: o.id, Connection: o.in.Connection, VM: o.out.VM.ID, Patience: operatePatience}
}

// do runs one step.
func (o *operation) do(ctx workflow.Context, within time.Duration, name string, in, out any) error {
	ctx = operating(ctx, within)
	return workflow.ExecuteActivity(ctx, name, in).Get(ctx, out)
}

func (o *operation) run(ctx workflow.Context) error {
	var found activities.FoundVM
	if err := o.do(ctx, short, activities.FindVMActivity, activities.FindVMRequest{Touch: o.touch(), VMPath: o.in.VMPath}, &found); err != nil {
		return err
	}
	o.out.VM, o.out.Power = found.VM, found.VM.PowerState
	switch o.in.Action {
	case job.PowerOn:
		return o.power(ctx, providers.PowerOn, "is on")
	case job.PowerOff:
		return o.power(ctx, providers.PowerOff, "is off")
	case job.ShutDown:
		return o.shutDown(ctx)
	case job.RemoveCDROM:
		return o.removeDrives(ctx)
	case job.TakeSnapshot:
		return o.snapshot(ctx)
	case job.DeleteSnapshot:
		return o.deleteSnapshot(ctx)
	case job.Clone:
		return o.clone(ctx)
	case job.Template:
		return o.template(ctx)
	case job.EnableCBT, job.DisableCBT, job.ReportCBT:
		return o.tracking(ctx)
	case job.Analyze:
		return o.analyze(ctx)
	}
	return refusal(providers.Unsupported, "this version does not know the action %q", o.in.Action)
}

// say is the sentence that tells people what came of it.
func (o *operation) say(format string, args ...any) {
	o.out.Message = o.out.VM.Name + " " + fmt.Sprintf(format, args...)
}

func (o *operation) power(ctx workflow.Context, want providers.Power, sentence string) error {
	if o.out.Power == want {
		o.say("%s already", sentence)
		return nil
	}
	err := o.do(ctx, short, activities.PowerActivity, activities.PowerRequest{Touch: o.touch(), Want: want}, nil)
	if err == nil {
		o.out.Power = want
		o.say("%s", sentence)
	}
	return err
}

func (o *operation) shutDown(ctx workflow.Context) error {
	if o.out.Power == providers.PowerOff {
		o.say("is off already")
		return nil
	}
	forced, err := shutDown(operating(ctx, short), activities.ShutDownRequest{
		Touch: o.touch(), Within: o.in.Timeout.Or(job.DefaultShutdownTimeout),
	}, o.in.Then)
	if err != nil {
		return err
	}
	o.out.Power, o.out.Forced = providers.PowerOff, forced
	o.say("has shut down")
	if forced {
		o.say("did not shut down by itself, and its power was taken away")
	}
	return nil
}

func (o *operation) removeDrives(ctx workflow.Context) error {
	var drives []providers.Drive
	if err := o.do(ctx, short, activities.DrivesActivity, o.touch(), &drives); err != nil {
		return err
	}
	if len(drives) == 0 {
		o.say("has no CD or DVD drives")
		return nil
	}
	if err := o.do(ctx, short, activities.RemoveDrivesActivity, activities.DrivesRequest{Touch: o.touch(), Drives: drives}, nil); err != nil {
		return err
	}
	var names []string
	for _, d := range drives {
		o.out.Drives = append(o.out.Drives, d.CDROM)
		names = append(names, d.Label)
	}
	if o.out.Power == providers.PowerOff {
		o.say("has lost %s", strings.Join(names, ", "))
	} else {
		o.say("runs, so that %s stayed, emptied and disconnected", strings.Join(names, ", "))
	}
	return nil
}

// key names for ever what an operation makes.
func (o *operation) key() string { return "hypersdk-" + o.id }

func (o *operation) snapshot(ctx workflow.Context) error {
	var s providers.Snapshot
	err := o.do(ctx, lengthy, activities.TakeSnapshotActivity,
		activities.TakeSnapshotRequest{Touch: o.touch(), Key: o.key(), SnapshotRequest: *o.in.Snapshot}, &s)
	if err != nil {
		return err
	}
	s.Disks = nil // the answer is about the snapshot, not about the VM
	o.out.Snapshot = &s
	o.say("has the snapshot %s (%s)", s.Name, s.ID)
	if o.in.Snapshot.Quiesce && !s.Quiesced {
		o.out.Message += "; the guest's file systems were not at rest, because its tools do not run"
	}
	return nil
}

func (o *operation) deleteSnapshot(ctx workflow.Context) error {
	var s providers.Snapshot
	err := o.do(ctx, lengthy, activities.DeleteSnapshotActivity,
		activities.DeleteSnapshotRequest{Touch: o.touch(), Snapshot: o.in.Snapshot.Name}, &s)
	if err == nil {
		o.say("does not have the snapshot %s any more", o.in.Snapshot.Name)
	}
	return err
}

func (o *operation) clone(ctx workflow.Context) error {
	var vm providers.VM
	err := o.do(ctx, lengthy, activities.CloneActivity, activities.CloneRequest{Touch: o.touch(), Key: o.key(), CloneRequest: *o.in.Clone}, &vm)
	if err != nil {
		return err
	}
	o.out.Clone = &vm
	o.say("was cloned to %s", vm.Path)
	if !o.in.Clone.PowerOn || o.in.Clone.Template {
		return nil
	}
	touch := o.touch()
	touch.VM = vm.ID
	if err := o.do(ctx, short, activities.PowerActivity, activities.PowerRequest{Touch: touch, Want: providers.PowerOn}, nil); err != nil {
		v := verdict(err)
		return outcome{v.reason, "the clone " + vm.Path + " was made and could not be started: " + v.text}
	}
	vm.PowerState = providers.PowerOn
	return nil
}

func (o *operation) template(ctx workflow.Context) error {
	err := o.do(ctx, short, activities.SetTemplateActivity, activities.TemplateRequest{Touch: o.touch(), Template: o.in.Template}, nil)
	switch {
	case err != nil:
		return err
	case o.in.Template:
		o.say("is a template")
	default:
		o.say("is a VM, and no template")
	}
	return nil
}

// end forgets the credentials that came with the operation, and says how it ended.
func (o *operation) end(ctx workflow.Context, err error) (*job.Operated, error) {
	s := job.OperationStatus{Status: job.Completed, Result: &o.out}
	switch {
	case err == nil:
	case ctx.Err() != nil || temporal.IsCanceledError(err):
		s = job.OperationStatus{Status: job.Cancelled, Error: "cancelled on request", Reason: string(providers.Canceled)}
	default:
		v := verdict(err)
		s = job.OperationStatus{Status: job.Failed, Error: v.text, Reason: string(v.reason)}
	}
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	leave := activities.LeaveRequest{Job: o.id, Connection: o.in.Connection, State: s.Status, Outcome: s.Error, Clean: true}
	if err := quickly(ctx, cleaning(ctx, "", firstTerms), activities.LeaveActivity, leave, nil); err != nil {
		workflow.GetLogger(ctx).Error("the credentials of an operation were not forgotten", "error", err)
	}
	if err := workflow.UpsertMemo(ctx, map[string]any{MemoStatus: s}); err != nil {
		workflow.GetLogger(ctx).Error("status was not written to the memo", "error", err)
	}
	if s.Status == job.Completed {
		return &o.out, nil
	}
	return nil, outcome{providers.Reason(s.Reason), s.Error}.asError()
}
