package workflows

import (
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
)

// MaxWaiting is how many jobs a query for all of them answers of.
const MaxWaiting = 500

// fallbackLimit holds until a worker says how many jobs may run at once.
const fallbackLimit = 4

// Admission decides who may run now: so many jobs at once in all, one for a VM, by priority and then
// by arrival. Jobs ask and release by signal and hear of their turn by one; a job that ended without
// a word is noticed. There is one admission, it never ends, and cancelling it does nothing.
func Admission(ctx workflow.Context, q Turns) error {
	if q.Limit <= 0 {
		q.Limit = fallbackLimit
	}
	a := &admission{Turns: q}
	if err := workflow.SetQueryHandler(ctx, QueryWaiting, func(jobs []string) (map[string]string, error) {
		return a.why(jobs), nil
	}); err != nil {
		return err
	}
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	ask, release, limit := workflow.GetSignalChannel(ctx, SignalAsk), workflow.GetSignalChannel(ctx, SignalRelease), workflow.GetSignalChannel(ctx, SignalLimit)
	workflow.Go(ctx, a.check)
	for {
		err := workflow.Await(ctx, func() bool { return a.news || ask.Len()+release.Len()+limit.Len() > 0 })
		if err != nil {
			return err
		}
		a.news = false
		// Asks first: a job that asked and gave up has sent its release after its ask.
		for t := (activities.Ticket{}); ask.ReceiveAsync(&t); t = (activities.Ticket{}) {
			if a.ask(t) {
				a.tell(ctx, t.Job)
			}
		}
		for id := ""; release.ReceiveAsync(&id); id = "" {
			a.release(id)
		}
		for n := 0; limit.ReceiveAsync(&n); n = 0 {
			if n > 0 {
				a.Limit = n
			}
		}
		for id, ok := a.next(); ok; id, ok = a.next() {
			a.tell(ctx, id)
		}
		// A signal that is on its way is lost when its sender ends.
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() && a.telling == 0 {
			return workflow.NewContinueAsNewError(ctx, AdmissionWorkflow, a.Turns)
		}
	}
}

type admission struct {
	Turns
	news    bool // something changed that no signal told of
	telling int  // signals on their way
}

// tell tells a job that it is its turn. One that cannot be told has ended.
func (a *admission) tell(ctx workflow.Context, job string) {
	a.telling++
	told := workflow.SignalExternalWorkflow(ctx, job, "", SignalAdmitted, nil)
	workflow.Go(ctx, func(ctx workflow.Context) {
		if err := told.Get(ctx, nil); err != nil {
			a.release(job)
		}
		a.telling--
		a.news = true
	})
}

// check looks from time to time whether the jobs that run still live, so that one that was
// terminated does not keep its VM and its turn for ever.
func (a *admission) check(ctx workflow.Context) {
	for {
		if workflow.Await(ctx, func() bool { return len(a.Running) > 0 }) != nil {
			return
		}
		if wait := a.Checked.Add(checkOwners).Sub(workflow.Now(ctx)); wait > 0 {
			if workflow.Sleep(ctx, wait) != nil {
				return
			}
		}
		a.Checked = workflow.Now(ctx)
		req := activities.EndedRequest{}
		for _, t := range a.Running {
			req.Jobs = append(req.Jobs, t.Job)
		}
		var out activities.EndedResult
		if len(req.Jobs) == 0 || workflow.ExecuteActivity(anywhere(ctx), activities.EndedActivity, req).Get(ctx, &out) != nil {
			continue
		}
		for _, j := range out.Jobs {
			a.release(j)
		}
		a.news = true
	}
}
