package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Connections are platforms by name, and the only reader of secrets.
type Connections interface {
	// Open is the provider of the connection; "" is the default one. It is shared and pooled: it is
	// lent until ctx ends, and the caller does not close it.
	Open(ctx context.Context, name string) (providers.Provider, error)
	// Identity names the platform that a connection leads to, the same for every connection to it.
	Identity(name string) (string, error)
	// Forget deletes a connection that was given with a job, and ends its session. One that is
	// configured, or not there, stays as it is.
	Forget(ctx context.Context, name string) error
}

// Engine is what activities ask of the workflows, without knowing them.
type Engine interface {
	// Ask puts a job into the queue of admission.
	Ask(ctx context.Context, t Ticket) error
	// Limits is what a running job keeps to.
	Limits(ctx context.Context, jobID string) (job.Limits, error)
	// Ended says whether a job has ended. One that nobody knows any more has.
	Ended(ctx context.Context, jobID string) (bool, error)
	// Where is the id of the host that a running job is on; empty: on none now.
	Where(ctx context.Context, jobID string) (string, error)
	// Hosts are the ids of the hosts that work now, or did a moment ago.
	Hosts(ctx context.Context) ([]string, error)
	// Home names the cluster and namespace that jobs live in.
	Home(ctx context.Context) (string, error)
}

// Ticket is a job's request to be admitted.
type Ticket struct {
	Job      string `json:"job"`
	Key      string `json:"key"`          // names the VM: one job for a key at a time
	VM       string `json:"vm,omitempty"` // name of the VM for people
	Priority int    `json:"priority,omitempty"`
}

// Config is how a host does its work.
type Config struct {
	Data    string   // folder for logs and the records of jobs; exists
	Host    string   // id of the host
	Name    string   // name of the host for people
	Version string   // of the program, for manifests
	Roots   []string // folders below which jobs may write, and read disk images; empty: anywhere
	Format  string   // of a job that names none
	Track   bool     // incremental exports may switch the tracking of a VM's changes on
	Places  int      // jobs that this host takes at once
	Disks   int      // disks that are copied or verified at once
	Workers int      // ranges of one disk that are read at once; 0: as many as the copy loop likes
	Memory  int64    // bytes that copies may have under way together; those under leases half as much beside

	HostAway    time.Duration // how long a host may be silent before its jobs are placed anew
	Heartbeat   time.Duration // how long an activity may be silent before it is started anew
	Stall       time.Duration // how long no byte may move before a copy is started anew
	CleanWithin time.Duration // how long cleaning up is tried
	StopWithin  time.Duration // how long a copy may take to come to a durable end when the worker stops
	Paces       Paces

	LogBytes  int64         // of one job's log on disk
	LogKeep   time.Duration // how long the log of a job that has ended is kept
	SweepPace time.Duration // how often the host looks for what dead jobs left on it
}

// DefaultConfig is right for a host with a few cores. Data and Host are missing in it.
func DefaultConfig() Config {
	return Config{
		Format: "qcow2", Places: 4, Disks: 8, Memory: 96 << 20,
		HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, Stall: 30 * time.Second,
		CleanWithin: 30 * time.Minute, StopWithin: 10 * time.Second, Paces: DefaultPaces(),
		LogBytes: 8 << 20, LogKeep: 30 * 24 * time.Hour, SweepPace: time.Minute,
	}
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	want(filepath.IsAbs(c.Data), "data folder %q is not an absolute path", c.Data)
	want(c.Host != "", "host id is missing")
	want(c.Places >= 1 && c.Places <= 1000, "places is %d; it must be 1 to 1000", c.Places)
	want(c.Disks >= 1 && c.Disks <= 1000, "disks is %d; it must be 1 to 1000", c.Disks)
	want(c.Workers >= 0 && c.Workers <= 64, "workers is %d; it must be 0 to 64", c.Workers)
	want(c.Memory >= 1<<20, "memory is %d; it must be at least 1 MiB", c.Memory)
	want(c.Format != "", "default format is missing")
	for _, r := range c.Roots {
		want(filepath.IsAbs(r) && filepath.Clean(r) == r, "root %q is not an absolute, clean path", r)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"host_away", c.HostAway}, {"heartbeat", c.Heartbeat}, {"stall", c.Stall}, {"clean_within", c.CleanWithin},
		{"stop_within", c.StopWithin}, {"log_keep", c.LogKeep}, {"sweep_pace", c.SweepPace},
	} {
		want(d.d > 0, "%s is %s; it must be more than nothing", d.name, d.d)
	}
	want(c.LogBytes >= 64<<10, "log_bytes is %d; it must be at least 64 KiB", c.LogBytes)
	return errors.Join(errs...)
}

// Deps is what activities stand on. None may be nil.
type Deps struct {
	Log         *slog.Logger
	Connections Connections
	Format      func(name string) (formats.Format, error)
	// Probe recognises the format of a file by its content.
	Probe  func(r io.ReaderAt, size int64) (formats.Format, error)
	Engine Engine
	// Durable returns when what led to an activity is on the disk. Nil where it always is.
	Durable func(context.Context) error
}

func (d Deps) durable(ctx context.Context) error {
	if d.Durable == nil {
		return nil
	}
	return d.Durable(ctx)
}
