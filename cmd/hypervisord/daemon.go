package main

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

// parts are what a process runs beside what these stand on.
type parts struct{ api, worker bool }

// split says whether the process is one half of a daemon.
func (p parts) split() bool { return p.api != p.worker }

// daemon is what has been started, in this order; it is stopped in the reverse of it.
type daemon struct {
	cfg    Config
	parts  parts
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

// run starts the parts, and stops them when ctx ends or one of them fails.
func run(ctx context.Context, cfg Config, p parts, log *slog.Logger) error {
	d := &daemon{cfg: cfg, parts: p, log: log, failed: make(chan error, 8)}
	static, err := d.check()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err = d.start(ctx, static); err == nil {
		d.ready(time.Since(begun))
		select {
		case <-ctx.Done():
			log.Info("stopping")
		case err = <-d.failed:
		}
		d.tellSystemd("STOPPING=1")
	}
	if ctx.Err() != nil {
		err = nil // whatever could not be started was not to be
	}
	stopped := make(chan struct{})
	go func() {
		d.stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(stopTimeout):
		err = errors.Join(err, fmt.Errorf("it did not stop within %s and is ended; jobs go on from their last checkpoint when it is started again", stopTimeout))
	}
	if err != nil {
		return failure{err}
	}
	log.Info("stopped")
	return nil
}

// check finds what is wrong before anything is started.
func (d *daemon) check() (map[string]connections.Config, error) {
	if d.parts.split() && !d.cfg.joins() {
		return nil, errors.New("half a daemon needs a Temporal cluster to meet the other half: give --temporal-address, or TEMPORAL_ADDRESS")
	}
	if d.cfg.joins() && d.cfg.KeyFile == "" {
		return nil, errors.New("processes on one Temporal cluster share the keys that encrypt their jobs: make them once with `hypervisord keygen FILE`, copy the file to every host, and give --key-file, or HYPERSDK_KEY_FILE")
	}
	static, err := d.cfg.connections()
	if err != nil {
		return nil, err
	}
	return static, connections.Options{Drivers: drivers(), Static: static}.Validate()
}

func (d *daemon) start(ctx context.Context, static map[string]connections.Config) error {
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

func (d *daemon) ready(took time.Duration) {
	attrs := []any{"version", programVersion(), "data", d.cfg.DataDir, "took", took.Round(time.Millisecond).String(), "temporal", d.address}
	if d.apiListener != nil {
		attrs = append(attrs, "api", "http://"+d.apiListener.Addr().String())
	}
	if ui := d.temporalUI(); ui != "" {
		attrs = append(attrs, "temporal_ui", ui)
	}
	if d.worker != nil {
		attrs = append(attrs, "host", d.worker.Host())
	}
	d.log.Info("ready", attrs...)
	d.tellSystemd("READY=1")
	if f := d.cfg.exposed(); f != "" {
		d.log.Warn("the configuration file holds passwords and everybody on this host may read it; run chmod 600", "file", f)
	}
	if d.cfg.EnableCBT {
		d.log.Warn("EnableCBT has no effect: this version copies in full")
	}
}

func (d *daemon) tellSystemd(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("systemd was not told", "state", state, "error", err)
	}
}

// stop ends whatever has been started. Nobody is taken up any more, then jobs come to a durable end,
// and only then goes what they stand on.
func (d *daemon) stop() {
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
func (d *daemon) say(err error) {
	if err != nil {
		d.log.Warn("while stopping", "error", err)
	}
}
