package workflows

import (
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/workflows/job"
)

// Log fetches a page of a job's log.
func Log(ctx workflow.Context, in job.LogRequest) (job.LogPage, error) {
	var page job.LogPage
	err := workflow.ExecuteActivity(reading(ctx, in.Host), activities.ReadLogActivity, in).Get(ctx, &page)
	if err != nil {
		return page, verdict(err).asError()
	}
	return page, nil
}
