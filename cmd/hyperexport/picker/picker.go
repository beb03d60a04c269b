// Package picker is the interactive side of hyperexport: it shows an inventory, lets somebody search it
// and choose VMs, asks for a format and a folder, shows the plan, and answers what was decided.
package picker

import (
	"context"
	"errors"
	"io"

	tea "charm.land/bubbletea/v2"

	"hypersdk/providers"
)

// Source is what the picker shows and asks about.
type Source struct {
	// Server names the platform, for people.
	Server string
	// VMs is the inventory.
	VMs func(ctx context.Context) ([]providers.VM, error)
	// Describe is a VM in names and values.
	Describe func(ctx context.Context, vm providers.VM) ([][2]string, error)
	// Plan is what the choice would come to, in lines; problem is set where it cannot be done.
	Plan func(ctx context.Context, c Choice) (lines []string, problem bool, err error)
	// Formats are offered, the first of them as the default. One alone is not asked for.
	Formats []Format
	// Output is the folder to export to that is suggested; it is not asked for where OutputFixed is set.
	Output      string
	OutputFixed bool
}

// Format is a way to write disks.
type Format struct {
	Name     string
	Compress bool
	About    string
}

// Choice is what was decided.
type Choice struct {
	VMs    []providers.VM
	Format Format
	Output string
}

// ErrQuit is that nothing was chosen.
var ErrQuit = errors.New("nothing was chosen")

// Run shows the picker on a terminal until something is chosen or it is given up.
func Run(ctx context.Context, in io.Reader, out io.Writer, s Source) (Choice, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := tea.NewProgram(newModel(ctx, s), tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out), tea.WithoutSignalHandler())
	end, err := p.Run()
	if err != nil {
		if ctx.Err() != nil {
			return Choice{}, ctx.Err()
		}
		return Choice{}, err
	}
	m := end.(*model)
	switch {
	case m.err != nil:
		return Choice{}, m.err
	case !m.chosen:
		return Choice{}, ErrQuit
	}
	return m.choice(), nil
}
