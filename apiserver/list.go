package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"hypersdk/workflows/job"
)

const (
	pageSize = 500
	maxScan  = 20_000 // executions that one list looks at
	parallel = 8      // calls to Temporal that one request has under way
)

// Executions are jobs by their workflow type, and open or closed in one of several ways.
const openQuery = "ExecutionStatus = 'Running'"

var closedAs = map[job.State][]string{
	job.Completed: {"Completed"}, job.Failed: {"Failed", "Terminated", "TimedOut"}, job.Cancelled: {"Canceled"},
}

// jobQuery is the visibility query for jobs in any of the states; none: all of them.
func jobQuery(states []job.State) string {
	open, closed := split(states)
	var either []string
	if open {
		either = append(either, openQuery)
	}
	if closed != "" {
		either = append(either, closed)
	}
	return jobsOnly() + " AND (" + strings.Join(either, " OR ") + ")"
}

func jobsOnly() string { return "WorkflowType IN (" + quoted(jobWorkflows) + ")" }

// split says whether jobs in any of the states may be open, and how they may be closed; "" is not at all.
func split(states []job.State) (open bool, closed string) {
	var in []string
	for st, statuses := range closedAs {
		if len(states) == 0 || slices.Contains(states, st) {
			in = append(in, statuses...)
		}
	}
	slices.Sort(in)
	if len(in) > 0 {
		closed = "ExecutionStatus IN (" + quoted(in) + ")"
	}
	return len(states) == 0 || slices.Contains(states, job.Pending) || slices.Contains(states, job.Running), closed
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = "'" + strings.ReplaceAll(w, "'", "") + "'"
	}
	return strings.Join(out, ", ")
}

// list is the newest jobs in any of the states, newest first, at most limit; and how many there are.
//
// Jobs that have ended are told by their memo alone; running ones are looked at one by one, which is
// as many as admission lets run at once.
func (s *Server) list(ctx context.Context, states []job.State, limit int) ([]job.Job, int, error) {
	newest, whole, err := s.newest(ctx, states, limit)
	if err != nil {
		return nil, 0, err
	}
	jobs := s.listed(ctx, s.recent.missing(ctx, s, newest))
	if len(states) > 0 {
		jobs = slices.DeleteFunc(jobs, func(j job.Job) bool { return !slices.Contains(states, j.Status) })
	}
	n := len(jobs)
	if !whole {
		count, err := s.temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: jobQuery(states)})
		if err != nil {
			return nil, 0, fmt.Errorf("count jobs: %w", err)
		}
		n = max(n, int(count.GetCount()))
	}
	return jobs[:min(limit, len(jobs))], n, nil
}

// listed are executions as jobs. Those that ended are told by their memo alone, those that wait by one
// question for all, and those that run are looked at one by one: as many as admission lets run.
func (s *Server) listed(ctx context.Context, infos []*workflowpb.WorkflowExecutionInfo) []job.Job {
	jobs := make([]job.Job, len(infos))
	each(ctx, len(infos), func(i int) {
		jobs[i] = s.view(infos[i])
		if infos[i].GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING || jobs[i].Status != job.Running {
			return
		}
		if j, err := s.job(ctx, jobs[i].ID); err == nil {
			jobs[i] = j
		} // else it has gone since, or Temporal is busy: what the memo said is true enough
	})
	var ids []string
	for _, j := range jobs {
		if j.Status == job.Pending {
			ids = append(ids, j.ID)
		}
	}
	if len(ids) == 0 {
		return jobs
	}
	why := s.queries.waits(ctx, ids...)
	for i := range jobs {
		if jobs[i].Status == job.Pending {
			pending(&jobs[i], why[jobs[i].ID])
		}
	}
	return jobs
}

// newest are the executions that started last, the last first, of jobs that may be in any of the
// states; whole says that there are no more.
func (s *Server) newest(ctx context.Context, states []job.State, limit int) (found []*workflowpb.WorkflowExecutionInfo, whole bool, err error) {
	open, closed := split(states)
	whole = true
	if open {
		// Whether an open job is pending or running only its memo knows: of one state alone all have to
		// be looked at.
		enough := func(got []*workflowpb.WorkflowExecutionInfo) bool {
			return len(got) >= limit && slices.Contains(states, job.Pending) == slices.Contains(states, job.Running)
		}
		if found, err = s.scan(ctx, openQuery, limit, enough); err != nil {
			return nil, false, err
		}
		found = slices.DeleteFunc(found, func(x *workflowpb.WorkflowExecutionInfo) bool {
			return len(states) > 0 && !slices.Contains(states, s.view(x).Status)
		})
		whole = len(found) < limit
	}
	if closed != "" {
		// An execution starts before it closes: once one closed before the last of limit known ones
		// started, all that follow did too.
		enough := func(got []*workflowpb.WorkflowExecutionInfo) bool {
			if len(got) < limit {
				return false
			}
			last := got[len(got)-1].GetCloseTime().AsTime()
			starts := slices.SortedFunc(slices.Values(got), newestFirst)
			return last.Before(starts[limit-1].GetStartTime().AsTime())
		}
		more, err := s.scan(ctx, closed, limit, enough)
		if err != nil {
			return nil, false, err
		}
		whole = whole && len(more) < limit
		found = append(found, more...)
	}
	slices.SortStableFunc(found, newestFirst)
	return found[:min(limit, len(found))], whole, nil
}

// scan lists executions of jobs until there are enough. SQL visibility has no ORDER BY: what is open
// comes in the order of its start, what is closed in that of its end, the last first.
func (s *Server) scan(ctx context.Context, query string, limit int, enough func([]*workflowpb.WorkflowExecutionInfo) bool) ([]*workflowpb.WorkflowExecutionInfo, error) {
	var found []*workflowpb.WorkflowExecutionInfo
	var token []byte
	for len(found) < maxScan {
		page, err := s.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: jobsOnly() + " AND " + query, PageSize: int32(min(pageSize, max(limit, 20))), NextPageToken: token,
		})
		if err != nil {
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		found = append(found, page.GetExecutions()...)
		if token = page.GetNextPageToken(); len(token) == 0 || enough != nil && enough(found) {
			break
		}
	}
	return found, nil
}

func newestFirst(a, b *workflowpb.WorkflowExecutionInfo) int {
	return cmp.Or(b.GetStartTime().AsTime().Compare(a.GetStartTime().AsTime()),
		cmp.Compare(a.GetExecution().GetWorkflowId(), b.GetExecution().GetWorkflowId()))
}

// each calls f(0) … f(n-1), a few at once, and stops beginning new ones when ctx ends.
func each(ctx context.Context, n int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}
