package apiservertest

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
)

// matching are the runs that a visibility query finds, in the order of SQL visibility: open ones first,
// those that closed last before others.
func (t *Temporal) matching(query string) []*Run {
	if strings.Contains(query, "ORDER BY") {
		panic("SQL visibility has no ORDER BY")
	}
	types, statuses := typeIn.FindStringSubmatch(query), ""
	for _, m := range statusIn.FindAllStringSubmatch(query, -1) {
		statuses += m[1] + m[2]
	}
	var since time.Time
	if m := closedBy.FindStringSubmatch(query); m != nil {
		var err error
		if since, err = time.Parse(time.RFC3339Nano, m[1]); err != nil {
			panic(err)
		}
	}
	var found []*Run
	for _, r := range t.runs {
		if strings.Contains(types[1], "'"+r.Type+"'") && (statuses == "" || strings.Contains(statuses, "'"+r.Status.String()+"'")) &&
			(since.IsZero() || r.Closed.After(since)) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b *Run) int {
		if a.Closed.IsZero() != b.Closed.IsZero() {
			return map[bool]int{true: -1, false: 1}[a.Closed.IsZero()]
		}
		return cmp.Or(b.Closed.Compare(a.Closed), b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// ListWorkflow lists runs, page by page.
func (t *Temporal) ListWorkflow(ctx context.Context, q *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	err := t.enter(ctx, "ListWorkflow")
	defer t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	found := t.matching(q.GetQuery())
	from, _ := strconv.Atoi(string(q.GetNextPageToken()))
	to := min(len(found), from+int(q.GetPageSize()))
	out := &workflowservice.ListWorkflowExecutionsResponse{}
	for _, r := range found[from:to] {
		info, err := t.info(r)
		if err != nil {
			return nil, err
		}
		out.Executions = append(out.Executions, info)
	}
	if to < len(found) {
		out.NextPageToken = []byte(strconv.Itoa(to))
	}
	return out, nil
}

// CountWorkflow counts runs, by status where the query says so.
func (t *Temporal) CountWorkflow(ctx context.Context, q *workflowservice.CountWorkflowExecutionsRequest) (*workflowservice.CountWorkflowExecutionsResponse, error) {
	err := t.enter(ctx, "CountWorkflow")
	defer t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	found := t.matching(q.GetQuery())
	out := &workflowservice.CountWorkflowExecutionsResponse{Count: int64(len(found))}
	if !strings.Contains(q.GetQuery(), "GROUP BY ExecutionStatus") {
		return out, nil
	}
	counts := map[string]int64{}
	for _, r := range found {
		counts[r.Status.String()]++
	}
	for status, n := range counts {
		p, err := converter.GetDefaultDataConverter().ToPayload(status)
		if err != nil {
			return nil, err
		}
		out.Groups = append(out.Groups, &workflowservice.CountWorkflowExecutionsResponse_AggregationGroup{
			GroupValues: []*commonpb.Payload{p}, Count: n,
		})
	}
	return out, nil
}
