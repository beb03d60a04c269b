// Package tui is the daemon on a whole screen: its jobs and the VMs that it sees, live, with the keys
// that users of k9s know.
package tui

import (
	"context"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
)

// Daemon is what is looked at and steered. A [client.Client] is one.
type Daemon interface {
	Server() string
	Jobs(ctx context.Context, q api.Query) (api.Jobs, error)
	Log(ctx context.Context, id string, o client.LogOptions, w io.Writer) (next int64, err error)
	Cancel(ctx context.Context, ids ...string) (api.Cancelled, error)
	Pause(ctx context.Context, id string) (api.Controlled, error)
	Resume(ctx context.Context, id string) (api.Controlled, error)
	Limit(ctx context.Context, id string, mbps float64) (api.Controlled, error)
	Submit(ctx context.Context, key string, jobs ...api.Submission) (api.Submitted, error)
	VMs(ctx context.Context, connection string, f providers.Filter) ([]providers.VM, error)
	VM(ctx context.Context, r api.VMInfoRequest) (providers.VM, error)
}

// Options are where it begins.
type Options struct {
	Connection string // whose VMs are shown; "": the daemon's default one
	View       string // "jobs" or "vms"; "": jobs
	// Output and Format are proposed for exports.
	Output, Format string
	// Pace is how often jobs are looked at; 0: every second.
	Pace time.Duration
}

// most is how many jobs are shown, the newest.
const most = 1000

// Run shows the screen until the user leaves it, or ctx ends.
func Run(ctx context.Context, d Daemon, o Options, in io.Reader, out io.Writer) error {
	p := tea.NewProgram(newModel(ctx, d, o), tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out))
	_, err := p.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
