package workflows

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
)

// hall is an admission workflow and the jobs around it. It never ends by itself: the test ends it by
// suggesting that it continue as new.
type hall struct {
	*testsuite.TestWorkflowEnvironment
	t     *testing.T
	told  []string        // jobs that were admitted
	gone  map[string]bool // jobs that cannot be told
	ended []string        // jobs that have ended when asked
}

func newHall(t *testing.T) *hall {
	var suite testsuite.WorkflowTestSuite
	h := &hall{TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(), t: t, gone: map[string]bool{}}
	h.SetTestTimeout(20 * time.Second)
	h.RegisterWorkflowWithOptions(Admission, workflow.RegisterOptions{Name: AdmissionWorkflow})
	h.RegisterActivityWithOptions(func(_ context.Context, in activities.EndedRequest) (activities.EndedResult, error) {
		var out activities.EndedResult
		for _, j := range in.Jobs {
			for _, e := range h.ended {
				if e == j {
					out.Jobs = append(out.Jobs, j)
				}
			}
		}
		return out, nil
	}, activity.RegisterOptions{Name: activities.EndedActivity})
	h.OnSignalExternalWorkflow(mock.Anything, mock.Anything, "", SignalAdmitted, mock.Anything).Return(
		func(_, job, _, _ string, _ any) error {
			if h.gone[job] {
				return fmt.Errorf("workflow %s has ended", job)
			}
			h.told = append(h.told, job)
			return nil
		})
	return h
}

// script runs steps, one every second, and then ends the workflow; it answers what the next run gets.
func (h *hall) script(q Turns, steps ...func()) Turns {
	for i, s := range append(steps, func() { h.SetContinueAsNewSuggested(true); h.SignalWorkflow(SignalLimit, 0) }) {
		h.RegisterDelayedCallback(s, time.Duration(i+1)*time.Second)
	}
	h.ExecuteWorkflow(AdmissionWorkflow, q)
	err := h.GetWorkflowError()
	require.True(h.t, workflow.IsContinueAsNewError(err), "%v", err)
	var can *workflow.ContinueAsNewError
	require.ErrorAs(h.t, err, &can)
	var out Turns
	require.NoError(h.t, converter.GetDefaultDataConverter().FromPayloads(can.Input, &out))
	return out
}

func (h *hall) ask(job, key string, priority int) func() {
	return func() {
		h.SignalWorkflow(SignalAsk, activities.Ticket{Job: job, Key: key, VM: "vm-" + key, Priority: priority})
	}
}

func (h *hall) release(job string) func() { return func() { h.SignalWorkflow(SignalRelease, job) } }

func (h *hall) expect(jobs ...string) func() {
	return func() { h.t.Helper(); require.Equal(h.t, jobs, h.told) }
}

func (h *hall) waiting(ids []string, want map[string]string) func() {
	return func() {
		h.t.Helper()
		var args []any
		if ids != nil {
			args = append(args, ids)
		}
		v, err := h.QueryWorkflow(QueryWaiting, args...)
		require.NoError(h.t, err)
		var got map[string]string
		require.NoError(h.t, v.Get(&got))
		require.Equal(h.t, want, got)
	}
}

func TestAdmissionLimit(t *testing.T) {
	h := newHall(t)
	left := h.script(Turns{Limit: 2},
		h.ask("a", "1", 0), h.ask("b", "2", 0), h.ask("c", "3", 0), h.ask("d", "4", 0),
		h.expect("a", "b"),
		h.waiting(nil, map[string]string{"c": "it is next; the limit is 2 jobs at once", "d": "1 job ahead; the limit is 2 jobs at once"}),
		h.waiting([]string{"d"}, map[string]string{"d": "1 job ahead; the limit is 2 jobs at once"}),
		h.release("a"), h.expect("a", "b", "c"),
		func() { h.SignalWorkflow(SignalLimit, 3) }, h.expect("a", "b", "c", "d"),
		h.waiting(nil, map[string]string{}),
	)
	require.Equal(t, 3, left.Limit)
	require.Equal(t, []string{"b", "c", "d"}, jobs(left.Running))
	require.Empty(t, left.Waiting)
}

func TestAdmissionPriority(t *testing.T) {
	h := newHall(t)
	h.script(Turns{Limit: 1},
		h.ask("a", "1", 0), h.ask("low", "2", 1), h.ask("high", "3", 90), h.ask("low-too", "4", 1), h.ask("high-too", "5", 90),
		h.release("a"), h.release("high"), h.release("high-too"), h.release("low"),
		h.expect("a", "high", "high-too", "low", "low-too"),
	)
}

func TestAdmissionOneOwner(t *testing.T) {
	h := newHall(t)
	h.script(Turns{Limit: 4},
		h.ask("a", "1", 0), h.ask("same", "1", 100), h.ask("other", "2", 0),
		h.expect("a", "other"),
		h.waiting(nil, map[string]string{"same": "vm vm-1 is being exported by job a"}),
		h.release("a"), h.expect("a", "other", "same"),
	)
}

func TestAdmissionCancelledWhileWaiting(t *testing.T) {
	h := newHall(t)
	h.script(Turns{Limit: 1},
		h.ask("a", "1", 0), h.ask("b", "2", 0), h.ask("c", "3", 0),
		h.release("b"),
		h.waiting(nil, map[string]string{"c": "it is next; the limit is 1 job at once"}),
		h.release("a"), h.expect("a", "c"),
	)
}

// Who asks again keeps its place; who is in hears again that it is.
func TestAdmissionAskedAgain(t *testing.T) {
	h := newHall(t)
	left := h.script(Turns{Limit: 1},
		h.ask("a", "1", 0), h.ask("b", "2", 0), h.ask("c", "3", 0), h.ask("b", "2", 0), h.ask("a", "1", 0),
		h.expect("a", "a"),
	)
	require.Equal(t, []string{"b", "c"}, jobs(left.Waiting))
}

// A job that was terminated does not keep its turn: not while it waits, not while it runs.
func TestAdmissionOfTheDead(t *testing.T) {
	h := newHall(t)
	h.gone["dead"] = true
	h.script(Turns{Limit: 1},
		h.ask("a", "1", 0), h.ask("dead", "2", 0), h.ask("c", "3", 0),
		h.release("a"), h.expect("a", "c"),
	)

	h = newHall(t)
	h.RegisterDelayedCallback(h.expect("a", "b"), 2*checkOwners)
	h.RegisterDelayedCallback(func() { h.SetContinueAsNewSuggested(true); h.SignalWorkflow(SignalLimit, 0) }, 3*checkOwners)
	h.ended = []string{"a"}
	h.RegisterDelayedCallback(h.ask("a", "1", 0), 0)
	h.RegisterDelayedCallback(h.ask("b", "1", 0), 0)
	h.ExecuteWorkflow(AdmissionWorkflow, Turns{Limit: 1})
	require.True(t, workflow.IsContinueAsNewError(h.GetWorkflowError()))
	require.Equal(t, []string{"a", "b"}, h.told)
}

// The state that is carried on is all of it.
func TestAdmissionContinues(t *testing.T) {
	h := newHall(t)
	left := h.script(Turns{Limit: 1}, h.ask("a", "1", 0), h.ask("b", "2", 5), h.ask("c", "3", 7))
	next := newHall(t)
	next.script(left,
		next.waiting(nil, map[string]string{"c": "it is next; the limit is 1 job at once", "b": "1 job ahead; the limit is 1 job at once"}),
		next.ask("d", "4", 7), next.release("a"), next.release("c"), next.release("d"),
		next.expect("c", "d", "b"),
	)
}

func TestAdmissionIsNotCancelled(t *testing.T) {
	h := newHall(t)
	h.script(Turns{Limit: 1}, h.ask("a", "1", 0), h.CancelWorkflow, h.ask("b", "2", 0), h.release("a"), h.expect("a", "b"))
}

func TestWaitingIsBounded(t *testing.T) {
	q := Turns{Limit: 1}
	for i := range 3 * MaxWaiting {
		q.ask(activities.Ticket{Job: fmt.Sprintf("job-%04d", i), Key: fmt.Sprint(i)})
	}
	_, ok := q.next()
	require.True(t, ok)
	require.Len(t, q.why(nil), MaxWaiting)
	last := fmt.Sprintf("job-%04d", 3*MaxWaiting-1)
	require.Equal(t, map[string]string{last: "1498 jobs ahead; the limit is 1 job at once"}, q.why([]string{last, "unknown"}))
}

func jobs(turns []Turn) []string {
	var out []string
	for _, t := range turns {
		out = append(out, t.Job)
	}
	return out
}

func BenchmarkAsk(b *testing.B) {
	for b.Loop() {
		q := Turns{Limit: 4}
		for i := range 600 {
			q.ask(activities.Ticket{Job: fmt.Sprintf("job-%04d", i), Key: fmt.Sprint(i), Priority: i % 3})
			q.next()
		}
	}
}
