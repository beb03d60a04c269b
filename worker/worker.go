// Package worker hosts workflows and activities: it is the part of the program that does the work,
// connected to whatever Temporal server it is given.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"hypersdk/activities"
	"hypersdk/workflows"
)

// Worker is a host at work. It polls three queues: the common one for workflows and short steps, the
// one on which hosts are found, for as long as it has a free place, and its own.
type Worker struct {
	cfg    Config
	log    *slog.Logger
	site   *activities.Site
	engine *engine
	parts  []worker.Worker
	stop   context.CancelFunc
	sweeps sync.WaitGroup
}

// steps is how many activities a host runs at once: disks wait for one another inside, so that short
// steps never wait for long ones.
const steps = 1000

// New makes a worker. The client stays the caller's to close, after Stop.
func New(cfg Config, c client.Client, deps Deps) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := cfg.identify(); err != nil {
		return nil, fmt.Errorf("worker: host id: %w", err)
	}
	e := &engine{client: c, limit: cfg.Limit, namespace: cfg.Namespace}
	site, err := activities.New(cfg.Config, activities.Deps{
		Log: deps.Log, Connections: deps.Connections, Format: deps.Format, Probe: deps.Probe, Engine: e, Durable: deps.Durable,
	})
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w := &Worker{cfg: cfg, log: deps.Log, site: site, engine: e}
	return w, w.assemble(c, deps)
}

// identify fills in who the host is.
func (c *Config) identify() (err error) {
	if c.Host == "" {
		if c.Host, err = hostID(c.Data); err != nil {
			return err
		}
	}
	if c.Name == "" {
		if c.Name, err = os.Hostname(); err != nil {
			c.Name = c.Host
		}
	}
	return nil
}

// assemble makes the three workers of the SDK that this one is made of.
func (w *Worker) assemble(c client.Client, deps Deps) error {
	common := worker.Options{
		Identity: w.cfg.Host, WorkerStopTimeout: w.cfg.StopTimeout, MaxHeartbeatThrottleInterval: time.Second,
		// Copies may leave little of the processor for a moment; that is no deadlock.
		DeadlockDetectionTimeout: 10 * time.Second,
		OnFatalError: func(err error) {
			if deps.OnFatal != nil {
				deps.OnFatal(err)
				return
			}
			deps.Log.Error("the worker cannot go on", "error", err)
		},
	}
	own, finding := common, common
	own.DisableWorkflowWorker, own.MaxConcurrentActivityExecutionSize = true, steps
	finding.DisableWorkflowWorker, finding.MaxConcurrentActivityTaskPollers = true, 1
	var err error
	if finding.Tuner, err = placeTuner(w.site.Places()); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	control, data := &activities.Control{Site: w.site}, &activities.Data{Site: w.site}
	anyone := worker.New(c, workflows.Queue, common)
	workflows.Register(anyone)
	register(anyone, control, nil)
	host := worker.New(c, workflows.HostQueue(w.cfg.Host), own)
	register(host, control, data)
	finder := worker.New(c, workflows.PlaceQueue, finding)
	finder.RegisterActivityWithOptions(control.Place, activity.RegisterOptions{Name: activities.PlaceActivity})
	w.parts = []worker.Worker{anyone, host, finder}
	return nil
}

func register(r worker.ActivityRegistry, c *activities.Control, d *activities.Data) {
	as := func(f any, name string) { r.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	as(c.Ask, activities.AskActivity)
	as(c.Ended, activities.EndedActivity)
	as(c.Inspect, activities.InspectActivity)
	as(c.Prepare, activities.PrepareActivity)
	as(c.Snapshot, activities.SnapshotActivity)
	as(c.DropSnapshot, activities.DropSnapshotActivity)
	as(c.NextSnapshot, activities.NextSnapshotActivity)
	as(c.Finish, activities.FinishActivity)
	as(c.Discard, activities.DiscardActivity)
	as(c.Leave, activities.LeaveActivity)
	as(c.ReadLog, activities.ReadLogActivity)
	as(c.FindVM, activities.FindVMActivity)
	as(c.Power, activities.PowerActivity)
	as(c.ShutDown, activities.ShutDownActivity)
	as(c.Drives, activities.DrivesActivity)
	as(c.RemoveDrives, activities.RemoveDrivesActivity)
	as(c.RestoreDrives, activities.RestoreDrivesActivity)
	as(c.TakeSnapshot, activities.TakeSnapshotActivity)
	as(c.DeleteSnapshot, activities.DeleteSnapshotActivity)
	as(c.Clone, activities.CloneActivity)
	as(c.SetTemplate, activities.SetTemplateActivity)
	as(c.Tracking, activities.TrackingActivity)
	as(c.AskConversion, activities.AskConversionActivity)
	as(c.Hosts, activities.HostsActivity)
	as(c.AskImport, activities.AskImportActivity)
	as(c.DiscardImport, activities.DiscardImportActivity)
	as(c.AskChain, activities.AskChainActivity)
	as(c.Measure, activities.MeasureActivity)
	if d != nil {
		as(c.Look, activities.LookActivity)
		as(c.Settle, activities.SettleActivity)
		as(c.LookPackage, activities.LookPackageActivity)
		as(c.PlanImport, activities.PlanImportActivity)
		as(d.ImportPackage, activities.ImportPackageActivity)
		as(c.PrepareImages, activities.PrepareImagesActivity)
		as(c.FinishImages, activities.FinishImagesActivity)
		as(c.LookAtChain, activities.LookAtChainActivity)
		as(c.DescribeChain, activities.DescribeChainActivity)
		as(c.DeletePoint, activities.DeletePointActivity)
		as(c.DiscardMerge, activities.DiscardMergeActivity)
		as(d.CheckChain, activities.CheckChainActivity)
		as(d.MergeChain, activities.MergeChainActivity)
		as(d.TransferDisk, activities.TransferActivity)
		as(d.SyncDisk, activities.SyncActivity)
		as(d.LeaseDisks, activities.LeaseActivity)
		as(c.FindChain, activities.FindChainActivity)
		as(d.AppendPoint, activities.AppendActivity)
		as(c.FinishPoint, activities.FinishPointActivity)
		as(d.VerifyDisk, activities.VerifyActivity)
		as(d.BeginPackage, activities.BeginPackageActivity)
		as(d.PackDisk, activities.PackActivity)
		as(d.SealPackage, activities.SealActivity)
		as(d.CheckPackage, activities.CheckPackageActivity)
	}
}

// Host is the id of the host that the worker is.
func (w *Worker) Host() string { return w.cfg.Host }

// Logs are the logs of the jobs that were, or are, on this host.
func (w *Worker) Logs() *activities.Logs { return w.site.Logs() }

// Start begins to work. It returns once the worker polls; it does not wait for a task.
func (w *Worker) Start() error {
	for i, p := range w.parts {
		if err := p.Start(); err != nil {
			for _, q := range w.parts[:i] {
				q.Stop()
			}
			return fmt.Errorf("worker: %w", err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.sweeps.Go(func() { w.announce(ctx) })
	w.sweeps.Go(func() { w.sweep(ctx) })
	return nil
}

// Stop lets what runs come to a durable end, within the stop timeout. A worker is not started again.
func (w *Worker) Stop() {
	if w.stop != nil {
		w.stop()
	}
	var wg sync.WaitGroup
	for _, p := range w.parts {
		wg.Go(p.Stop)
	}
	wg.Wait()
	w.sweeps.Wait()
}

// announce tells admission how many jobs may run at once, until it has heard.
func (w *Worker) announce(ctx context.Context) {
	if w.cfg.Limit == 0 {
		return
	}
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := w.engine.announce(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		w.log.Warn("admission has not heard of the limit yet", "limit", w.cfg.Limit, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// sweep cleans up after dead jobs: now, and every now and then.
func (w *Worker) sweep(ctx context.Context) {
	tick := time.NewTicker(w.cfg.SweepPace)
	defer tick.Stop()
	for {
		if err := w.site.Sweep(ctx); err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
			w.log.Warn("cleaning up after dead jobs did not work", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
