package workflows

import (
	"go.temporal.io/sdk/workflow"
)

// undo is what has to be taken back when a job ends, the last thing first.
type undo struct{ steps []step }

type step struct {
	name string // what is left behind if it fails: "snapshot hypersdk-…"
	// onlyFailed marks what a success keeps.
	onlyFailed bool
	do         func(workflow.Context) error
}

// push notes a step before the thing that it undoes is begun: steps succeed when there is nothing to
// undo. A step with the same name replaces the earlier one, in its place.
func (u *undo) push(s step) {
	for i := range u.steps {
		if u.steps[i].name == s.name {
			u.steps[i] = s
			return
		}
	}
	u.steps = append(u.steps, s)
}

// run takes the steps in reverse and goes on when one fails. It answers what was left behind.
func (u *undo) run(ctx workflow.Context, succeeded bool) (left []string) {
	for i := len(u.steps) - 1; i >= 0; i-- {
		s := u.steps[i]
		if succeeded && s.onlyFailed {
			continue
		}
		if err := s.do(ctx); err != nil {
			left = append(left, s.name+" ("+verdict(err).text+")")
		}
	}
	u.steps = nil
	return left
}
