package workflows

import (
	"path"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ListChain tells what a chain is made of: now, or not at all.
func ListChain(ctx workflow.Context, in job.ChainQuery) (*job.ChainView, error) {
	view, err := describeChain(ctx, in, false)
	if err != nil {
		return nil, verdict(err).asError()
	}
	return view, nil
}

// chainTarget is the folder that a query asks about.
func chainTarget(q job.ChainQuery) activities.Target {
	if q.Path != "" {
		return activities.PlaceOf(q.Path)
	}
	return activities.Target{Output: q.Output, Folder: activities.SafeName(q.VM)}
}

// describeChain asks the hosts that may have a chain, at once, and answers the one with the newest point.
func describeChain(ctx workflow.Context, q job.ChainQuery, newest bool) (*job.ChainView, error) {
	ids := []string{q.Host}
	if q.Host == "" {
		var hosts activities.Hosts
		if err := workflow.ExecuteActivity(reading(ctx, ""), activities.HostsActivity, activities.HostsRequest{}).Get(ctx, &hosts); err != nil {
			return nil, err
		}
		ids = hosts.IDs
	}
	t := chainTarget(q)
	asked := make([]workflow.Future, len(ids))
	for i, id := range ids {
		asked[i] = workflow.ExecuteActivity(reading(ctx, id), activities.DescribeChainActivity, activities.DescribeChainRequest{Target: t, Newest: newest})
	}
	var best *job.ChainView
	var failed error
	missing := refusal(providers.Unavailable, "no host answers")
	for _, f := range asked {
		var d activities.DescribedChain
		switch err := f.Get(ctx, &d); {
		case temporal.IsCanceledError(err) || ctx.Err() != nil:
			return nil, err
		case err != nil && !hostLost(err):
			failed = err
		case err != nil:
		case d.View == nil:
			missing = refusal(d.Reason, "%s", d.Missing)
		case best == nil || newer(d.View, best):
			best = d.View
		}
	}
	switch {
	case best != nil:
		return best, nil
	case failed != nil:
		return nil, failed
	}
	return nil, missing
}

// newer says whether the newest point of a is after that of b.
func newer(a, b *job.ChainView) bool {
	switch {
	case len(a.Points) == 0:
		return false
	case len(b.Points) == 0:
		return true
	}
	return a.Points[len(a.Points)-1].Time.After(b.Points[len(b.Points)-1].Time.Time)
}

// folderOf is the path of the folder that a query asks about.
func folderOf(q job.ChainQuery) string {
	t := chainTarget(q)
	return path.Join(t.Output, t.Folder)
}
