package workflows

import (
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// analysis is a look at what the next incremental export of a VM would do.
type analysis struct {
	*operation
	in    job.AnalyzeRequest
	out   job.Analysis
	chain *job.ChainView // nil: there is none to go on with, and why says why
	why   string
	off   string // why the changes cannot be asked for; "": they can
	hint  string // how tracking is switched on, where that is what is missing
}

// analyze finds the chain of the VM, and asks what changed since its newest point: up to a snapshot, which is
// removed in any case.
func (o *operation) analyze(ctx workflow.Context) error {
	a := &analysis{operation: o, out: job.Analysis{VMName: o.out.VM.Name, Disks: []job.AnalyzedDisk{}}}
	if o.in.Analyze != nil {
		a.in = *o.in.Analyze
	}
	if err := a.findChain(ctx); err != nil {
		return err
	}
	if err := a.track(ctx); err != nil {
		return err
	}
	measured, err := a.measure(ctx)
	if err != nil {
		return err
	}
	a.sum(measured)
	o.out.Analysis, o.out.Message = &a.out, a.out.Reason
	return nil
}

// findChain looks for the chain where the last export left it. That there is none is no failure.
func (a *analysis) findChain(ctx workflow.Context) error {
	if a.in.Output == "" {
		a.why = "no incremental export of " + a.out.VMName + " is known"
		return nil
	}
	q := job.ChainQuery{Output: a.in.Output, VM: a.out.VMName, Host: a.in.Host}
	view, err := describeChain(ctx, q, true)
	if err != nil && verdict(err).reason == providers.NotFound && a.in.Host != "" { // it may have been moved
		q.Host = ""
		view, err = describeChain(ctx, q, true)
	}
	if err != nil {
		return a.noChain(q, err)
	}
	switch {
	case view.VM.ID != "" && view.VM.ID != string(a.operation.out.VM.ID):
		a.why = "the chain in " + view.Path + " is of another VM (" + view.VM.Name + ", " + view.VM.ID + ")"
	case len(view.Points) == 0:
		a.why = "the chain in " + view.Path + " has no point yet"
	default:
		a.chain = view
		last := view.Points[len(view.Points)-1]
		a.out.LastPoint = &job.AnalyzedPoint{Number: last.Number, Time: last.Time, Folder: view.Path, Host: view.Host}
	}
	return nil
}

// noChain notes why there is no chain to go on with. What keeps from looking is answered.
func (a *analysis) noChain(q job.ChainQuery, err error) error {
	switch v := verdict(err); v.reason {
	case providers.NotFound:
		a.why = "there is no chain in " + folderOf(q)
	case providers.Corrupt:
		a.why = "the chain in " + folderOf(q) + " cannot be read: " + v.text
	default:
		return err
	}
	return nil
}

// track finds out whether the changes of the VM can be asked for.
func (a *analysis) track(ctx workflow.Context) error {
	var t providers.TrackingStatus
	err := a.do(ctx, short, activities.TrackingActivity, activities.TrackingRequest{Touch: a.touch()}, &t)
	switch {
	case err != nil && verdict(err).reason == providers.Unsupported:
		a.off = "the platform of " + a.out.VMName + " does not track changes"
	case err != nil:
		return err
	case !t.Active:
		a.off = trackingSentence(a.out.VMName, t)
		if t.Supported && !t.Enabled {
			a.hint = "; POST /cbt/enable, or \"hyperctl cbt enable\", switches tracking on"
		}
	}
	for _, d := range t.Disks {
		if t.Active && !d.Tracked && d.Missing != "" {
			a.out.Warnings = append(a.out.Warnings, d.Label+" is not tracked: "+d.Missing)
		}
	}
	return nil
}

// measure asks what would be read, on the host that has the chain.
func (a *analysis) measure(ctx workflow.Context) (m activities.Measured, err error) {
	req := activities.MeasureRequest{Touch: a.touch(), Why: a.off}
	if a.chain != nil {
		t := activities.PlaceOf(a.chain.Path)
		req.Target = &t
	}
	if a.off == "" {
		var back undo
		drop := activities.DropRequest{Job: a.id, Connection: a.operation.in.Connection, VM: a.operation.out.VM.ID, Key: a.key()}
		back.push(step{name: "snapshot " + a.key(), do: func(ctx workflow.Context) error {
			return workflow.ExecuteActivity(cleaning(ctx, "", firstTerms), activities.DropSnapshotActivity, drop).Get(ctx, nil)
		}})
		defer func() {
			ctx, _ := workflow.NewDisconnectedContext(ctx)
			for _, left := range back.run(ctx, err == nil) {
				a.out.Warnings = append(a.out.Warnings, "left behind: "+left)
				if err != nil {
					v := verdict(err)
					err = outcome{v.reason, v.text + "; left behind: " + left}
				}
			}
		}()
		var snap providers.Snapshot
		err = a.do(ctx, lengthy, activities.TakeSnapshotActivity, activities.TakeSnapshotRequest{
			Touch: a.touch(), Key: a.key(), SnapshotRequest: job.SnapshotRequest{Description: "taken to see what changed; removed at once"},
		}, &snap)
		if err != nil {
			return m, err
		}
		req.Snapshot, req.Points = snap.ID, map[providers.DiskID]cbt.Point{}
		for _, d := range snap.Disks {
			if d.ChangeID != "" {
				req.Points[d.ID] = d.ChangeID
			}
		}
	}
	ctx = operating(ctx, lengthy)
	if a.chain != nil {
		opt := workflow.GetActivityOptions(ctx)
		opt.TaskQueue, opt.ScheduleToStartTimeout = HostQueue(a.chain.Host), lookPatience
		ctx = workflow.WithActivityOptions(ctx, opt)
	}
	err = workflow.ExecuteActivity(ctx, activities.MeasureActivity, req).Get(ctx, &m)
	return m, err
}

// sum adds the disks up, and says in one sentence what that comes to.
func (a *analysis) sum(m activities.Measured) {
	out := &a.out
	out.Disks = append(out.Disks, m.Disks...)
	var compared, whole int64
	known := true
	for _, d := range m.Disks {
		out.TotalBytes += d.Size
		out.ChangedBytes += d.ChangedBytes
		out.AllocatedBytes += d.AllocatedBytes
		known = known && d.AllocatedBytes > 0
		out.CanIncremental = out.CanIncremental || d.CanIncremental
		if d.By != "" && !d.CanIncremental {
			compared++
		}
	}
	whole = out.TotalBytes
	if out.AllocatedBytes > 0 && known {
		whole = out.AllocatedBytes
	}
	if out.CanIncremental {
		out.EstimatedSavingsBytes = max(0, whole-out.ChangedBytes)
	}
	out.Reason = a.sentence(compared)
	rate := a.in.RateMBps
	if limit := a.in.LimitMBps; rate == 0 || limit > 0 && limit < rate {
		rate = limit
	}
	out.EstimatedDuration, out.EstimatedFullDuration = job.Estimate(out.ChangedBytes, rate), job.Estimate(whole, rate)
}

func (a *analysis) sentence(compared int64) string {
	switch {
	case len(a.out.Disks) == 0:
		return a.out.VMName + " has no disks"
	case a.off != "" && compared > 0:
		return a.off + ", so that the next run reads all disks and writes only what differs from the last point" + a.hint
	case a.off != "" && a.why != "":
		return a.why + ", so that the next run copies all disks in full; " + a.off + a.hint
	case a.off != "":
		return a.off + ", and the last point cannot be gone on with (" + a.first() + "), so that the next run copies all disks in full" + a.hint
	case a.why != "":
		return a.why + ", so that the next run copies all disks in full and begins a chain"
	case !a.out.CanIncremental:
		return "all disks would be copied in full: " + a.first()
	}
	for _, d := range a.out.Disks {
		if !d.CanIncremental {
			return "what changed since the last point is known, but of " + d.Label + " not: " + d.Reason
		}
	}
	return "what changed since the last point is known for all disks"
}

// first is the first reason why a disk would be copied in full.
func (a *analysis) first() string {
	for _, d := range a.out.Disks {
		if d.Reason != "" {
			return d.Reason
		}
	}
	return "nothing is known of what changed"
}
