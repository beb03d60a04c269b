package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"hypersdk/activities"
	"hypersdk/formats"
)

// Config is how a worker behaves.
type Config struct {
	// Config is how its host does the work. Host may stay empty: it is then the one kept in the data
	// folder, made the first time.
	activities.Config
	// Limit is how many jobs run at once on all hosts together; 0: whatever the others say.
	Limit int
	// Namespace is the client's.
	Namespace string
	// StopTimeout is how long Stop waits for activities to come to an end.
	StopTimeout time.Duration
}

// DefaultConfig is right for a daemon on its own. Data is missing in it.
func DefaultConfig() Config {
	return Config{Config: activities.DefaultConfig(), Limit: 4, StopTimeout: 20 * time.Second}
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	if c.Host == "" {
		c.Host = "unknown yet"
	}
	errs := []error{c.Config.Validate()}
	if c.Limit < 0 || c.Limit > 10_000 {
		errs = append(errs, fmt.Errorf("limit is %d; it must be 0 to 10000", c.Limit))
	}
	if c.StopTimeout <= c.StopWithin {
		errs = append(errs, fmt.Errorf("stop timeout %s leaves no time for stop_within %s", c.StopTimeout, c.StopWithin))
	}
	return errors.Join(errs...)
}

// Deps is what a worker stands on.
type Deps struct {
	Log         *slog.Logger
	Connections activities.Connections
	// Format finds a disk format by its name.
	Format func(name string) (formats.Format, error)
	// Probe recognises the format of a file by its content.
	Probe func(r io.ReaderAt, size int64) (formats.Format, error)
	// Durable returns when what Temporal has taken down is on the disk; nil where that is its own affair.
	Durable func(context.Context) error
	// OnFatal is told when the worker cannot go on (its namespace is gone, …); nil: only logged.
	OnFatal func(error)
}
