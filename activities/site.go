// Package activities is what jobs do, a step at a time. It translates: between workflows, which know
// only requests and results, and providers and formats, which know nothing of jobs; and between
// errors with a reason and decisions to try again.
//
// [Control] has the short steps, [Data] the ones that move bytes. Both belong to one host: the files of
// a job, their journals and the job's log are on its disks.
package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/providers"
)

// Site is a host at work: what its activities share.
type Site struct {
	Config
	deps    Deps
	logs    *Logs
	places  *Places
	limits  *throttles
	buffers *formats.Buffers
	streams *formats.Buffers // of what comes under leases: as it came, and unpacked
	slots   chan struct{}    // disks at work
	swept   sweeps
}

// limitsPace is how often a running job's limits are asked for.
const limitsPace = time.Second

// New is a host with this configuration, which must be valid.
func New(c Config, d Deps) (*Site, error) {
	s := &Site{
		Config: c, deps: d,
		logs:    NewLogs(c.Data, c.LogBytes),
		places:  NewPlaces(c.Places),
		limits:  newThrottles(d.Engine.Limits, limitsPace),
		buffers: formats.NewBuffers(c.Memory),
		streams: formats.NewBuffers(c.Memory / 2),
		slots:   make(chan struct{}, c.Disks),
		swept:   sweeps{pending: map[string]retry{}},
	}
	for _, dir := range []string{s.logs.dir, s.records()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Places are the places of the host.
func (s *Site) Places() *Places { return s.places }

// Logs are the logs of the host's jobs.
func (s *Site) Logs() *Logs { return s.logs }

// Control is the short steps of jobs.
type Control struct{ *Site }

// Data is the steps that move bytes.
type Data struct{ *Site }

// logger writes into the log of a job, and into that of the program.
func (s *Site) logger(job string) *slog.Logger { return s.logs.Logger(s.deps.Log, job) }

// step runs a short activity that may change something: what led to it is durable before.
func step[Out any](ctx context.Context, s *Site, job, name string, do func(context.Context, *slog.Logger) (Out, error)) (Out, error) {
	return inquiry(ctx, s, job, name, func(ctx context.Context, log *slog.Logger) (Out, error) {
		if err := s.deps.durable(ctx); err != nil {
			var none Out
			return none, err
		}
		return do(ctx, log)
	})
}

// inquiry runs a short activity: it beats, logs a failure, and gives it its meaning.
func inquiry[Out any](ctx context.Context, s *Site, job, name string, do func(context.Context, *slog.Logger) (Out, error)) (Out, error) {
	stop := s.alive(ctx)
	log := s.logger(job)
	out, err := do(ctx, log)
	stop()
	return out, s.failed(ctx, log, name, err)
}

// failed translates an error, and logs it once.
func (s *Site) failed(ctx context.Context, log *slog.Logger, name string, err error) error {
	if err == nil {
		return nil
	}
	reason := reasonOf(err)
	text := err.Error()
	err = s.Paces.fail(ctx, err)
	log = log.With("step", name, "attempt", activity.GetInfo(ctx).Attempt)
	switch {
	case temporal.IsCanceledError(err):
		log.Info("stopped: the job was cancelled")
	case again(err):
		log.Warn("will be tried again", "error", text, "reason", string(reason))
	default:
		log.Error("failed", "error", text, "reason", string(reason))
	}
	return err
}

// open opens a connection and takes the provider as what is needed of it.
func open[C any](ctx context.Context, s *Site, connection string) (providers.Provider, C, error) {
	var none C
	p, err := s.deps.Connections.Open(ctx, connection)
	if err != nil {
		return nil, none, err
	}
	c, err := providers.As[C](p)
	return p, c, err
}

// vmKey names a VM for admission: the same for all connections to its platform and for all names that
// the VM has. It is short, and tells nothing.
func vmKey(platform string, vm providers.VMID) string {
	sum := sha256.Sum256([]byte(platform + "\x00" + string(vm)))
	return hex.EncodeToString(sum[:10])
}
