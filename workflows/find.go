package workflows

import (
	"fmt"
	"strings"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// find finds the host that has what a job works on, and settles the job there: files do not come to a job,
// the job goes to them. what names them for people; look starts a look at what one host has, which answers
// an activities.Looked.
func (t *task) find(ctx workflow.Context, what string, look func(workflow.Context) workflow.Future) (activities.Looked, error) {
	t.status.Host = ""
	t.phase(ctx, job.Place, "looking for a host that has "+what)
	late := workflow.Now(ctx).Add(t.terms.HostAway)
	for {
		found, silent, err := t.look(ctx, what, look)
		if err == nil {
			err = t.settle(ctx, found.Host, what)
			if !hostLost(err) {
				return found, err
			}
			silent = []string{found.Host.ID}
		}
		if len(silent) == 0 || ctx.Err() != nil || !workflow.Now(ctx).Before(late) {
			return found, err
		}
		t.status.Progress.WaitingFor = fmt.Sprintf("host %s, which does not answer; %s", strings.Join(silent, ", "), verdict(err).text)
		t.publish(ctx)
		if err := workflow.Sleep(ctx, lookAgain); err != nil {
			return found, err
		}
	}
}

// look asks every host, and answers the one with the most room of those that have it all. Hosts that do
// not answer are silent; only they may change their mind.
func (t *task) look(ctx workflow.Context, what string, one func(workflow.Context) workflow.Future) (best activities.Looked, silent []string, err error) {
	var hosts activities.Hosts
	if err := workflow.ExecuteActivity(anywhere(ctx), activities.HostsActivity, activities.HostsRequest{Job: t.id}).Get(ctx, &hosts); err != nil {
		return best, nil, err
	}
	asked := make([]workflow.Future, len(hosts.IDs))
	for i, id := range hosts.IDs {
		asked[i] = one(looking(ctx, id, t.terms))
	}
	var failed error
	var missing []activities.Looked
	for i, f := range asked {
		var seen activities.Looked
		switch err := f.Get(ctx, &seen); {
		case ctx.Err() != nil:
			failed = ctx.Err()
		case hostLost(err):
			silent = append(silent, hosts.IDs[i])
		case err != nil:
			failed = err
		case seen.Missing != "":
			missing = append(missing, seen)
		case best.Host.ID == "" || seen.Free > best.Free:
			best = seen
		}
	}
	switch {
	case ctx.Err() != nil:
		return best, nil, ctx.Err()
	case best.Host.ID != "":
		return best, nil, nil
	case failed != nil:
		return best, nil, failed
	}
	return best, silent, nobody(what, missing)
}

// nobody says that no host has what a job works on.
func nobody(what string, missing []activities.Looked) error {
	switch len(missing) {
	case 0:
		return refusal(providers.Unavailable, "no host answers")
	case 1:
		return refusal(missing[0].Reason, "%s (host %s)", missing[0].Missing, missing[0].Host.Name)
	}
	const most = 5
	var said []string
	for _, m := range missing[:min(len(missing), most)] {
		said = append(said, m.Host.Name+": "+m.Missing)
	}
	return refusal(missing[0].Reason, "none of %d hosts has %s (%s)", len(missing), what, strings.Join(said, "; "))
}

// settle gets a place on the host that was found to have what a job works on.
func (t *task) settle(ctx workflow.Context, on activities.Host, what string) error {
	t.status.Progress.CurrentStep = "waiting for a place on host " + on.Name
	t.publish(ctx)
	var host activities.Host
	err := workflow.ExecuteActivity(settling(ctx, on.ID, t.terms), activities.SettleActivity, activities.SettleRequest{
		Job: t.id, Waited: t.admitted.Sub(workflow.GetInfo(ctx).WorkflowStartTime), What: what,
	}).Get(ctx, &host)
	if err != nil {
		return err
	}
	t.settled(host)
	return nil
}
