// Package daemon puts hypervisord together: its configuration, the embedded Temporal server or the
// cluster, the worker, the connections and the API. Programs that bring their own engine along, such as
// hyperexport, are put together by the same code.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"go.temporal.io/sdk/client"

	"hypersdk/providers/connections"
	"hypersdk/providers/connections/keys"
	"hypersdk/worker"
	"hypersdk/worker/codec"
	"hypersdk/worker/embedded"
)

// stopTimeout is how long everything together may take to stop. Every part has less of its own.
const stopTimeout = 29 * time.Second

// Failure is an error that is not the fault of the command line or the configuration.
type Failure struct{ Err error }

func (f Failure) Error() string { return f.Err.Error() }
func (f Failure) Unwrap() error { return f.Err }

// Parts are what a process runs beside what these stand on.
type Parts struct {
	API, Worker bool
	// Listener is where the API is served, which closes it; nil: it listens on DaemonAddr.
	Listener net.Listener
}

// split says whether the process is one half of a daemon.
func (p Parts) split() bool { return p.API != p.Worker }

// Daemon is what has been started, in this order; it is stopped in the reverse of it.
type Daemon struct {
	cfg    Config
	parts  Parts
	log    *slog.Logger
	failed chan error // of a part that runs

	apiListener, uiListener net.Listener
	temporal                *embedded.Server // nil on a cluster
	ring                    *keys.Ring
	codec                   *codec.Codec
	client                  client.Client
	address, namespace      string // of Temporal, as the client has it
	connections             *connections.Connections
	worker                  *worker.Worker
	stopSweep, stopAPI      func()
}

// Run starts the parts, and stops them when ctx ends or one of them fails.
func Run(ctx context.Context, cfg Config, p Parts, log *slog.Logger) error {
	begun := time.Now()
	d, err := Start(ctx, cfg, p, log)
	if err == nil {
		d.ready(time.Since(begun))
		select {
		case <-ctx.Done():
			log.Info("stopping")
		case err = <-d.failed:
			err = Failure{err}
		}
		d.tellSystemd("STOPPING=1")
		err = errors.Join(err, d.Stop())
	}
	if ctx.Err() != nil && !errors.Is(err, errStuck) {
		err = nil // whatever could not be started was not to be
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// Start starts the parts; the caller stops them. What could not be started is a [Failure], what cannot
// be as configured is not; nothing is left running then.
func Start(ctx context.Context, cfg Config, p Parts, log *slog.Logger) (*Daemon, error) {
	d := &Daemon{cfg: cfg, parts: p, log: log, failed: make(chan error, 8), apiListener: p.Listener}
	static, err := d.check()
	if err != nil {
		return nil, err
	}
	if err := d.start(ctx, static); err != nil {
		return nil, Failure{errors.Join(err, d.Stop())}
	}
	return d, nil
}

// Failed tells of a part that cannot go on.
func (d *Daemon) Failed() <-chan error { return d.failed }

var errStuck = errors.New("it did not stop in time")

// Stop ends whatever has been started, within half a minute.
func (d *Daemon) Stop() error {
	stopped := make(chan struct{})
	go func() {
		d.stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		return nil
	case <-time.After(stopTimeout):
		return Failure{fmt.Errorf("%w (%s) and is ended; jobs go on from their last checkpoint when it is started again", errStuck, stopTimeout)}
	}
}

// check finds what is wrong before anything is started.
func (d *Daemon) check() (map[string]connections.Config, error) {
	if d.parts.split() && !d.cfg.joins() {
		return nil, errors.New("half a daemon needs a Temporal cluster to meet the other half: give --temporal-address, or TEMPORAL_ADDRESS")
	}
	if d.cfg.joins() && d.cfg.KeyFile == "" {
		return nil, errors.New("processes on one Temporal cluster share the keys that encrypt their jobs: make them once with `hypervisord keygen FILE`, copy the file to every host, and give --key-file, or HYPERSDK_KEY_FILE")
	}
	static, err := d.cfg.Named()
	if err != nil {
		return nil, err
	}
	return static, connections.Options{Drivers: Drivers(), Static: static}.Validate()
}

func (d *Daemon) start(ctx context.Context, static map[string]connections.Config) error {
	for _, step := range []func(context.Context) error{
		d.prepareData, d.listen, d.startTemporal, d.loadKeys, d.dial,
		func(context.Context) error { return d.openConnections(static) },
		d.startSweep, d.startWorker, d.startAPI,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) ready(took time.Duration) {
	attrs := []any{"version", d.cfg.Version, "data", d.cfg.DataDir, "took", took.Round(time.Millisecond).String(), "temporal", d.address}
	if d.apiListener != nil {
		attrs = append(attrs, "api", "http://"+d.apiListener.Addr().String())
	}
	if ui := d.TemporalUI(); ui != "" {
		attrs = append(attrs, "temporal_ui", ui)
	}
	if d.worker != nil {
		attrs = append(attrs, "host", d.worker.Host())
	}
	d.log.Info("ready", attrs...)
	d.tellSystemd("READY=1")
	if f := d.cfg.Exposed(); f != "" {
		d.log.Warn("the configuration file holds passwords and everybody on this host may read it; run chmod 600", "file", f)
	}
}

func (d *Daemon) tellSystemd(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("systemd was not told", "state", state, "error", err)
	}
}

// stop ends whatever has been started. Nobody is taken up any more, then jobs come to a durable end,
// and only then goes what they stand on.
func (d *Daemon) stop() {
	if d.stopAPI != nil {
		d.stopAPI()
	}
	if d.worker != nil {
		d.worker.Stop()
	}
	if d.stopSweep != nil {
		d.stopSweep()
	}
	if d.connections != nil {
		d.say(d.connections.Close())
	}
	if d.client != nil {
		d.client.Close()
	}
	if d.temporal != nil {
		d.say(d.temporal.Stop())
	}
	for _, l := range []net.Listener{d.apiListener, d.uiListener} {
		if l != nil {
			l.Close() // where nobody has served it; else it is closed already
		}
	}
}

// say logs what went wrong while stopping: nothing else can be done about it.
func (d *Daemon) say(err error) {
	if err != nil {
		d.log.Warn("while stopping", "error", err)
	}
}
