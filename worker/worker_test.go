package worker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"

	"hypersdk/activities"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func TestHostID(t *testing.T) {
	data := t.TempDir()
	id, err := hostID(data)
	require.NoError(t, err)
	require.Regexp(t, `^[a-z0-9-]+-[0-9a-f]{12}$`, id)
	again, err := hostID(data)
	require.NoError(t, err)
	require.Equal(t, id, again, "it is kept")
	other, err := hostID(t.TempDir())
	require.NoError(t, err)
	require.NotEqual(t, id, other)

	for _, bad := range []string{"", "../x", "a b", "UPPER"} {
		require.NoError(t, os.WriteFile(filepath.Join(data, hostFile), []byte(bad), 0o600))
		_, err = hostID(data)
		require.ErrorContains(t, err, "does not hold a host id")
	}
	_, err = hostID(filepath.Join(data, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestConfig(t *testing.T) {
	ok := DefaultConfig()
	ok.Data = t.TempDir()
	require.NoError(t, ok.Validate())
	for name, change := range map[string]func(*Config){
		"data folder": func(c *Config) { c.Data = "relative" },
		"places is":   func(c *Config) { c.Places = 0 },
		"disks is":    func(c *Config) { c.Disks = -1 },
		"workers is":  func(c *Config) { c.Workers = 65 },
		"memory is":   func(c *Config) { c.Memory = 1 },
		"format":      func(c *Config) { c.Format = "" },
		"root":        func(c *Config) { c.Roots = []string{"/exports/../etc"} },
		"heartbeat":   func(c *Config) { c.Heartbeat = 0 },
		"log_bytes":   func(c *Config) { c.LogBytes = 1 },
		"limit is":    func(c *Config) { c.Limit = -1 },
		"leaves no":   func(c *Config) { c.StopTimeout = c.StopWithin },
	} {
		c := ok
		change(&c)
		require.ErrorContains(t, c.Validate(), name)
	}
}

func newMock(t *testing.T) *mocks.Client { return mocks.NewClient(t) }

func TestEngineAsks(t *testing.T) {
	c := newMock(t)
	e := &engine{client: c, limit: 3}
	ticket := activities.Ticket{Job: "job-1", Key: "k", VM: "web-01"}
	for signal, arg := range map[string]any{workflows.SignalAsk: ticket, workflows.SignalLimit: 3} {
		c.On("SignalWithStartWorkflow", mock.Anything, workflows.AdmissionID, signal, arg, mock.MatchedBy(func(o client.StartWorkflowOptions) bool {
			return o.TaskQueue == workflows.Queue && o.WorkflowIDReusePolicy == enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
		}), workflows.AdmissionWorkflow, workflows.Turns{Limit: 3}).Return(nil, nil).Once()
	}
	require.NoError(t, e.Ask(t.Context(), ticket))
	require.NoError(t, e.announce(t.Context()))
}

func TestEngineKnowsWhoEnded(t *testing.T) {
	status := func(s enumspb.WorkflowExecutionStatus) *workflowservice.DescribeWorkflowExecutionResponse {
		return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: s}}
	}
	for _, c := range []struct {
		name string
		resp *workflowservice.DescribeWorkflowExecutionResponse
		err  error
		want bool
		fail bool
	}{
		{"running", status(enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING), nil, false, false},
		{"completed", status(enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED), nil, true, false},
		{"terminated", status(enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED), nil, true, false},
		{"unknown", nil, serviceerror.NewNotFound("no such workflow"), true, false},
		{"no answer", nil, errors.New("no answer"), false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMock(t)
			m.On("DescribeWorkflowExecution", mock.Anything, "job-1", "").Return(c.resp, c.err)
			got, err := (&engine{client: m}).Ended(t.Context(), "job-1")
			require.Equal(t, c.fail, err != nil)
			if !c.fail {
				require.Equal(t, c.want, got)
			}
		})
	}
}

// answer is what a query answers.
type answer[T any] struct{ v T }

func (answer[T]) HasValue() bool    { return true }
func (a answer[T]) Get(p any) error { *p.(*T) = a.v; return nil }

func TestEngineQueries(t *testing.T) {
	m := newMock(t)
	m.On("QueryWorkflow", mock.Anything, "job-1", "", workflows.QueryLimits).Return(answer[job.Limits]{job.Limits{MBps: 5}}, nil)
	m.On("QueryWorkflow", mock.Anything, "job-1", "", workflows.QueryStatus).Return(answer[job.Snapshot]{job.Snapshot{Host: "h1"}}, nil)
	m.On("QueryWorkflow", mock.Anything, "job-2", "", mock.Anything).Return(nil, errors.New("no answer"))
	e := &engine{client: m}
	l, err := e.Limits(t.Context(), "job-1")
	require.NoError(t, err)
	require.Equal(t, 5.0, l.MBps)
	h, err := e.Where(t.Context(), "job-1")
	require.NoError(t, err)
	require.Equal(t, "h1", h)
	_, err = e.Limits(t.Context(), "job-2")
	require.Error(t, err)
	_, err = e.Where(t.Context(), "job-2")
	require.Error(t, err)
}

// A worker polls for jobs only while its host has a place.
func TestPlaceSupplier(t *testing.T) {
	p := activities.NewPlaces(1)
	s := placeSupplier{p}
	permit, err := s.ReserveSlot(t.Context(), nil)
	require.NoError(t, err)
	require.NotNil(t, permit)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.ReserveSlot(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Nil(t, s.TryReserveSlot(nil))
	s.ReleaseSlot(nil)
	_, err = s.ReserveSlot(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, 1, s.MaxSlots())
	_, err = placeTuner(p)
	require.NoError(t, err)
}

func TestNewRefuses(t *testing.T) {
	c := DefaultConfig()
	c.Data = "relative"
	_, err := New(c, newMock(t), Deps{Log: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "worker: data folder")
}
