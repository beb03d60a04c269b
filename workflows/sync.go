package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// roundsPerRun is how many rounds one run of a warm copy makes, so that histories stay short however many
// weeks it goes on.
const roundsPerRun = 30

// SyncRun is what a run of a warm copy begins with.
type SyncRun struct {
	job.SyncSpec
	// Carried is what the run before left; nil: this is the first.
	Carried *SyncCarried `json:"carried,omitempty"`
}

// SyncCarried is what a warm copy takes from one run to the next, between two rounds: where it stands, and
// everything that it needs to take back what it has made.
type SyncCarried struct {
	Status   job.Snapshot            `json:"status"`
	Limits   job.Limits              `json:"limits"`
	Terms    activities.Terms        `json:"terms"`
	Admitted time.Time               `json:"admitted"`
	Host     activities.Host         `json:"host"`
	Away     []activities.Host       `json:"away,omitempty"`
	Dir      string                  `json:"dir"`
	VM       string                  `json:"vm"`
	Facts    activities.Facts        `json:"facts"`
	Plan     plan                    `json:"plan"`
	Snapshot *providers.Snapshot     `json:"snapshot"`
	Round    int                     `json:"round"`
	Began    time.Time               `json:"began"` // the round
	Done     []activities.SyncedDisk `json:"done"`
	Asked    bool                    `json:"asked,omitempty"` // for the cutover
}

// SyncDisks keeps copies of the disks of a VM in sync while it runs: admitted, placed on a host, inspected;
// copied in full and then, in rounds, by what changed, until the cutover; verified and written down.
func SyncDisks(ctx workflow.Context, in SyncRun) (*job.Result, error) {
	w := newWarm(ctx, in)
	if err := w.handlers(ctx); err != nil {
		return nil, err
	}
	if err := w.cutoverHandler(ctx); err != nil {
		return nil, err
	}
	err := w.run(ctx)
	if workflow.IsContinueAsNewError(err) {
		return nil, err
	}
	return w.end(ctx, err)
}

// warm is the state of one warm copy.
type warm struct {
	task
	spec   job.SyncSpec
	vm     string // its name
	facts  activities.Facts
	plan   plan
	placed bool   // on a host, by the run before
	ready  string // host whose output folder is prepared

	round    int                 // that the snapshot is of; 0: there is none yet
	holds    int                 // the round that the targets on the host hold, as far as is known
	last     int                 // the round of the cutover; 0: not yet
	snapshot *providers.Snapshot // of the round
	before   *providers.Snapshot // of the round before
	began    time.Time           // the round
	took     time.Duration       // for its snapshot
	done     []activities.SyncedDisk
	sums     []activities.Verified
	inRun    int // rounds of this run

	wanted bool // the cutover
	off    bool // the guest was shut down for it
	shut   time.Duration
}

func newWarm(ctx workflow.Context, in SyncRun) *warm {
	w := &warm{task: newTask(ctx, in.Connection, in.LimitMBps), spec: in.SyncSpec}
	c := in.Carried
	if c == nil {
		w.status.Sync = &job.SyncStatus{
			Submitted: job.Time{Time: workflow.GetInfo(ctx).WorkflowStartTime.UTC()}, Rounds: []job.SyncRound{},
		}
		return w
	}
	w.status, w.limits, w.terms, w.admitted, w.host, w.away, w.dir = c.Status, c.Limits, c.Terms, c.Admitted, c.Host, c.Away, c.Dir
	w.vm, w.facts, w.plan, w.snapshot, w.round, w.holds, w.began, w.done = c.VM, c.Facts, c.Plan, c.Snapshot, c.Round, c.Round, c.Began, c.Done
	w.wanted, w.placed, w.ready = c.Asked, true, c.Host.ID
	w.task.asked = true // admission knows the job by its id, which stays
	w.takesBack()
	return w
}

// carry is what the next run begins with.
func (w *warm) carry() SyncRun {
	facts := w.facts
	facts.VM.Disks, facts.Transports = nil, nil // the plan says what matters of them
	return SyncRun{SyncSpec: w.spec, Carried: &SyncCarried{
		Status: w.status, Limits: w.limits, Terms: w.terms, Admitted: w.admitted, Host: w.host, Away: w.away, Dir: w.dir,
		VM: w.vm, Facts: facts, Plan: w.plan, Snapshot: w.snapshot, Round: w.round, Began: w.began, Done: w.done, Asked: w.wanted,
	}}
}

// takesBack notes what is to be taken back when the job ends, whichever run it ends in.
func (w *warm) takesBack() {
	w.undo.push(step{name: "hidden files in " + w.plan.Target.Output, onlyFailed: true, do: w.discard})
	if w.round > 0 {
		w.undo.push(step{name: "snapshot of " + w.vm, do: w.drop})
	}
}

func (w *warm) run(ctx workflow.Context) error {
	if !w.task.asked {
		if err := w.admit(ctx, w.ask); err != nil {
			return err
		}
	}
	return w.onHosts(ctx, w.place, w.work)
}

func (w *warm) ask(ctx workflow.Context) (asked activities.Asked, err error) {
	if w.vm == "" {
		w.status.Progress.CurrentStep = "looking for the VM"
	}
	err = quickly(ctx, anywhere(ctx), activities.AskActivity, activities.AskRequest{Job: w.id, Spec: w.spec.Definition()}, &asked)
	w.vm = asked.VM
	return asked, err
}

// place finds a host. On another one the targets are begun anew; the snapshot is the platform's, and stays.
func (w *warm) place(ctx workflow.Context) error {
	if w.placed {
		w.placed = false
		return nil
	}
	w.status.Host = ""
	w.phase(ctx, job.Place, "looking for a host with a free place")
	var host activities.Host
	err := workflow.ExecuteActivity(somewhere(ctx), activities.PlaceActivity, activities.PlaceRequest{Job: w.id}).Get(ctx, &host)
	if err != nil {
		return err
	}
	w.settled(host)
	w.holds = max(w.round-1, 0)
	return nil
}

// work is everything that happens on one host.
func (w *warm) work(ctx workflow.Context) error {
	if err := w.steps(ctx, w.inspect, w.prepare); err != nil {
		return err
	}
	for w.last == 0 || w.holds < w.last {
		if w.last == 0 && w.round > 0 && w.holds == w.round {
			if err := w.between(ctx); err != nil {
				return err
			}
		}
		if err := w.steps(ctx, w.turn, w.copy); err != nil {
			return err
		}
	}
	if err := w.steps(ctx, w.verify); err != nil {
		return err
	}
	return w.finish(ctx)
}

func (w *warm) inspect(ctx workflow.Context) error {
	if len(w.plan.Disks) > 0 {
		return nil
	}
	w.phase(ctx, job.Inspect, "looking at the VM and the target")
	spec := w.spec.Definition()
	req := activities.InspectRequest{Job: w.id, Spec: spec, Format: spec.Format, Waited: w.admitted.Sub(workflow.GetInfo(ctx).WorkflowStartTime)}
	var facts activities.Facts
	if err := w.call(ctx, activities.InspectActivity, req, &facts); err != nil {
		return err
	}
	w.phase(ctx, job.Plan, "deciding how to go about it")
	p, err := makeSync(spec, facts)
	if err != nil {
		return err
	}
	w.facts, w.plan, w.vm = facts, p, facts.VM.Name
	w.status.Progress.Transport, w.status.Progress.TransportReason = p.Transport, p.Why
	return nil
}

// makeSync decides as for an export, without the ways to read disks that do not read what one asks for.
func makeSync(s job.Spec, f activities.Facts) (plan, error) {
	ways := make([]providers.Transport, len(f.Transports))
	for i, t := range f.Transports {
		if t.Leased && t.Why == "" {
			t.Why = "it reads disks front to back, and a round only what changed"
		}
		ways[i] = t
	}
	f.Transports = ways
	return makePlan(s, f)
}

func (w *warm) prepare(ctx workflow.Context) error {
	w.takesBack()
	if w.ready == w.host.ID {
		return nil
	}
	req := activities.PrepareRequest{
		Job: w.id, Target: w.plan.Target, Need: w.plan.Need, Connection: w.spec.Connection, VM: w.facts.VM.ID, SnapshotKey: w.key(max(w.round, 1)),
	}
	for _, d := range w.plan.Disks {
		req.Files = append(req.Files, d.File)
	}
	var out activities.Prepared
	if err := w.call(ctx, activities.PrepareActivity, req, &out); err != nil {
		return err
	}
	w.dir, w.ready = out.Dir, w.host.ID
	w.plan.Target.Overwrite = w.plan.Target.Overwrite || out.Ours
	return nil
}

// key names the snapshot of a round for ever.
func (w *warm) key(round int) string { return fmt.Sprintf("hypersdk-%s-%d", w.id, round) }

// turn takes the snapshot of the next round, once that of the one before is gone. From what points on the
// changes are counted is in the history before anything is deleted.
func (w *warm) turn(ctx workflow.Context) error {
	if w.round > w.holds {
		return nil // the one that there is was not copied yet
	}
	next := w.round + 1
	w.began = workflow.Now(ctx)
	w.status.Sync.NextRound = nil
	w.phase(ctx, job.Snap, fmt.Sprintf("round %d: taking a snapshot of %s", next, w.vm))
	req := activities.NextSnapshotRequest{Job: w.id, Connection: w.spec.Connection, VM: w.facts.VM.ID, Key: w.key(next), Quiesce: w.spec.Quiesce}
	if w.round > 0 {
		req.Last = w.key(w.round)
	}
	w.undo.push(step{name: "snapshot of " + w.vm, do: w.dropBoth})
	var s providers.Snapshot
	if err := workflow.ExecuteActivity(turning(ctx, w.host.ID, w.terms), activities.NextSnapshotActivity, req).Get(ctx, &s); err != nil {
		return err
	}
	w.round, w.before, w.snapshot, w.took = next, w.snapshot, &s, workflow.Now(ctx).Sub(w.began)
	w.undo.push(step{name: "snapshot of " + w.vm, do: w.drop})
	w.status.Sync.Round = next
	return w.plan.disksOf(s)
}

// copy brings all targets to the round at once, one activity each.
func (w *warm) copy(ctx workflow.Context) error {
	what := "copying what changed"
	if w.round == 1 {
		what = "copying the disks"
	}
	if w.round == w.last {
		what = "the last one: " + what
	}
	w.begin(ctx, job.Transfer, fmt.Sprintf("round %d: %s", w.round, what), w.lines())
	done := make([]activities.SyncedDisk, len(w.plan.Disks))
	err := w.each(ctx, len(done), w.label, func(ctx workflow.Context, i int) workflow.Future {
		return workflow.ExecuteActivity(ctx, activities.SyncActivity, w.request(i))
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &done[i]); err != nil {
			return err
		}
		w.copied(i, done[i].Transferred)
		return nil
	})
	if err != nil {
		return err
	}
	w.done, w.holds = done, w.round
	w.inRun++
	w.noteRound(ctx)
	return nil
}

func (w *warm) request(i int) activities.SyncRequest {
	d := w.plan.Disks[i]
	return activities.SyncRequest{
		Job: w.id, Connection: w.spec.Connection, Round: w.round, Label: d.Disk.Label, Size: d.Disk.Size, Need: d.Need,
		Ref:   providers.DiskRef{VM: w.facts.VM.ID, Snapshot: w.snapshot.ID, Disk: d.Disk.ID, Transport: w.plan.Transport},
		Since: pointOf(w.before, d.Disk.ID), Point: pointOf(w.snapshot, d.Disk.ID),
		Target: w.plan.Target, File: d.File, Workers: w.spec.Parallel, Limits: w.limits,
	}
}

// pointOf is the point of a disk in a snapshot; empty where there is none.
func pointOf(s *providers.Snapshot, id providers.DiskID) cbt.Point {
	if s == nil {
		return ""
	}
	d, _ := find(s.Disks, id)
	return d.ChangeID
}

// lines are the disks before anything is done about them.
func (w *warm) lines() []job.DiskProgress {
	lines := make([]job.DiskProgress, len(w.plan.Disks))
	for i, d := range w.plan.Disks {
		lines[i] = job.DiskProgress{Disk: string(d.Disk.ID), File: d.File, Total: d.Disk.Size}
	}
	return lines
}

func (w *warm) label(i int) string {
	d := w.plan.Disks[i]
	return d.Disk.Label + " (" + d.File + ")"
}

// discard removes the job's hidden files.
func (w *warm) discard(ctx workflow.Context) error {
	return workflow.ExecuteActivity(cleaning(ctx, w.host.ID, w.terms), activities.DiscardActivity,
		activities.DiscardRequest{Job: w.id, Target: w.plan.Target}).Get(ctx, nil)
}

// drop removes the snapshot: from the job's host, whose log then says so, or from anywhere.
func (w *warm) drop(ctx workflow.Context) error { return w.dropRound(ctx, w.round) }

// dropBoth removes the snapshots of the round and of the one that was being begun.
func (w *warm) dropBoth(ctx workflow.Context) error {
	err := w.dropRound(ctx, w.round+1)
	if w.round > 0 {
		if first := w.dropRound(ctx, w.round); err == nil {
			err = first
		}
	}
	return err
}

func (w *warm) dropRound(ctx workflow.Context, round int) error {
	return w.anywhere(ctx, activities.DropSnapshotActivity, activities.DropRequest{
		Job: w.id, Connection: w.spec.Connection, VM: w.facts.VM.ID, Key: w.key(round),
	})
}

// anywhere undoes something on the job's host, or where that does not answer on any.
func (w *warm) anywhere(ctx workflow.Context, name string, req any) error {
	err := workflow.ExecuteActivity(cleaning(ctx, w.host.ID, w.terms), name, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(cleaning(ctx, "", w.terms), name, req).Get(ctx, nil)
	}
	return err
}
