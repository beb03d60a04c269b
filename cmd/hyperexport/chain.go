package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"hypersdk/cbt"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// chainFormat is the format of the disks of a chain.
const chainFormat = "qcow2"

// chainPlan is what an incremental export would add to a chain.
type chainPlan struct {
	ID     string     `json:"id,omitempty"`     // of the chain; empty: it would be begun
	Point  int64      `json:"point"`            // that would be written
	Parent int64      `json:"parent,omitempty"` // the newest point that is there; 0: none
	Since  *time.Time `json:"since,omitempty"`  // of that point
}

// lookAtChain finds what point would follow, and refuses a chain of another VM.
func (p *plan) lookAtChain(ctx context.Context) error {
	p.Chain = &chainPlan{Point: 1}
	m, err := cbt.ReadManifest(ctx, p.Folder, cbt.Options{})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if p.Need > p.Free {
			return &providers.Error{Op: "plan", Reason: providers.Exhausted, Msg: fmt.Sprintf("not enough space for %s: about %s are needed, and %s are free",
				p.Folder, terminal.BytesText(p.Need), terminal.BytesText(p.Free))}
		}
		return nil
	case err != nil:
		return &providers.Error{Op: "plan", Reason: providers.Corrupt, Msg: err.Error()}
	}
	if m.VM.ID != string(p.VM.ID) {
		return &providers.Error{Op: "plan", Reason: providers.Exists, Msg: fmt.Sprintf("%s holds the chain of another VM (%s, %s)", p.Folder, m.VM.Name, m.VM.ID)}
	}
	p.Chain.ID, p.Chain.Point = m.ID, m.Next
	if n := m.Newest(); n != nil {
		p.Chain.Parent, p.Chain.Since, p.Need = n.Number, &n.Time, 0
	}
	return nil
}

// text is the plan for people.
func (c *chainPlan) text(s job.Spec) string {
	switch {
	case c.Parent == 0:
		return fmt.Sprintf("point %d, the first: all disks in full", c.Point)
	case s.Options.Full:
		return fmt.Sprintf("point %d after point %d of %s: all disks in full", c.Point, c.Parent, c.Since.Local().Format(time.DateTime))
	}
	return fmt.Sprintf("point %d: what changed since point %d of %s", c.Point, c.Parent, c.Since.Local().Format(time.DateTime))
}
