package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
)

const sweepPace = 10 * time.Minute

// startSweep deletes, now and then, credentials whose jobs are gone; a job deletes its own, unless the
// daemon died between storing them and starting it.
func (d *Daemon) startSweep(context.Context) error {
	if !d.storesCredentials() {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(sweepPace)
		defer tick.Stop()
		for {
			if err := d.connections.Sweep(ctx, d.jobEnded); err != nil && ctx.Err() == nil {
				d.log.Warn("credentials of jobs that have ended could not be deleted yet", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	d.stopSweep = func() {
		stop()
		running.Wait()
	}
	return nil
}

// jobEnded says whether a job has ended, or never was.
func (d *Daemon) jobEnded(ctx context.Context, job string) (bool, error) {
	w, err := d.client.DescribeWorkflowExecution(ctx, job, "")
	var unknown *serviceerror.NotFound
	if errors.As(err, &unknown) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return w.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, nil
}
