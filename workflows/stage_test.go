package workflows

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// stage is everything around one job: activities that do nothing but note that they were called, an
// admission that says yes, and hosts.
type stage struct {
	*testsuite.TestWorkflowEnvironment
	t *testing.T

	mu     sync.Mutex
	calls  []string // activity, and what it was about; releases too
	queues map[string]string
	fail   map[string]error                       // by call; the activity fails so
	once   map[string]error                       // by call; the first attempt fails so
	hold   map[string]func(context.Context) error // by call; runs inside the activity
	vm     providers.VM
	hosts  []string // that Place answers, in turn; the last one again
	ways   []providers.Transport
	deaf   bool // admission does not answer
	// stubborn guests do not shut down.
	stubborn bool
	left     activities.LeaveRequest
	last     map[string]any // last request, by activity
}

const gib = 1 << 30

func newStage(t *testing.T) *stage {
	var suite testsuite.WorkflowTestSuite
	s := &stage{
		TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(), t: t,
		queues: map[string]string{}, fail: map[string]error{}, once: map[string]error{}, hold: map[string]func(context.Context) error{}, last: map[string]any{},
		hosts: []string{"h1"},
		ways:  []providers.Transport{{Name: "slow", Why: "the VM is asleep"}, {Name: "fast", Resumable: true}},
		vm: providers.VM{ID: "vm-42", Name: "web-01", Path: "/dc/vm/web-01", Disks: []providers.Disk{
			{ID: "2000", Label: "Hard disk 1", Size: 4 * gib, Used: gib, Thin: true}, {ID: "2001", Label: "Hard disk 2", Size: 2 * gib},
		}},
	}
	s.SetTestTimeout(20 * time.Second)
	s.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: testID, TaskQueue: Queue})
	s.RegisterWorkflowWithOptions(Export, workflow.RegisterOptions{Name: ExportWorkflow})
	s.RegisterWorkflowWithOptions(Operate, workflow.RegisterOptions{Name: OperateWorkflow})
	s.RegisterWorkflowWithOptions(ConvertDisk, workflow.RegisterOptions{Name: ConvertWorkflow})
	s.RegisterWorkflowWithOptions(Chain, workflow.RegisterOptions{Name: ChainWorkflow})
	s.RegisterWorkflowWithOptions(ListChain, workflow.RegisterOptions{Name: ListChainWorkflow})
	s.RegisterWorkflowWithOptions(Import, workflow.RegisterOptions{Name: ImportWorkflow})
	s.RegisterWorkflowWithOptions(SyncDisks, workflow.RegisterOptions{Name: SyncWorkflow})
	s.OnSignalExternalWorkflow(mock.Anything, AdmissionID, "", SignalRelease, mock.Anything).Return(
		func(_, _, _, _ string, arg any) error { s.note("release", fmt.Sprint(arg)); return nil })

	play(s, activities.AskActivity, func(in activities.AskRequest) (string, activities.Asked) {
		if !s.deaf {
			s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, time.Second)
		}
		return in.Spec.VMPath, activities.Asked{VM: s.vm.Name, Terms: activities.Terms{
			HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute, Format: "qcow2",
		}}
	})
	play(s, activities.PlaceActivity, func(activities.PlaceRequest) (string, activities.Host) {
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.hosts[0]
		if len(s.hosts) > 1 {
			s.hosts = s.hosts[1:]
		}
		return h, activities.Host{ID: h, Name: h}
	})
	play(s, activities.InspectActivity, func(in activities.InspectRequest) (string, activities.Facts) {
		return in.Format, activities.Facts{
			Kind: "fake", Capabilities: []string{"disk-leaser", "disk-source", "drives", "inventory", "power", "snapshot"}, VM: s.vm,
			Transports: s.ways,
			Format:     activities.FormatFacts{Name: in.Format, Ext: "." + in.Format},
		}
	})
	play(s, activities.PrepareActivity, func(in activities.PrepareRequest) (string, activities.Prepared) {
		return in.Target.Folder, activities.Prepared{Dir: in.Target.Output + "/" + in.Target.Folder}
	})
	play(s, activities.SnapshotActivity, func(in activities.SnapshotRequest) (string, providers.Snapshot) {
		return in.Key, providers.Snapshot{ID: "snapshot-7", Disks: s.vm.Disks, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	})
	play(s, activities.TransferActivity, func(in activities.TransferRequest) (string, activities.Transferred) {
		return in.File, activities.Transferred{Digest: "sha256-1m:" + in.File, Read: in.Size / 2, Stored: in.Size / 4, Inode: 7, Attempts: 1}
	})
	play(s, activities.LeaseActivity, func(in activities.LeaseRequest) (string, activities.Leased) {
		var out activities.Leased
		for _, d := range in.Disks {
			out.Disks = append(out.Disks, activities.Transferred{Digest: "sha256-1m:" + d.File, Read: d.Size / 8, Stored: d.Size / 4, Inode: 7, Attempts: 2})
		}
		return in.Transport, out
	})
	play(s, activities.VerifyActivity, func(in activities.VerifyRequest) (string, activities.Verified) {
		return in.File, activities.Verified{SHA256: "sum of " + in.File, Stored: in.Size / 4}
	})
	play(s, activities.FinishActivity, func(in activities.FinishRequest) (string, activities.Finished) {
		return in.Target.Folder, activities.Finished{Dir: "/exports/web-01", Files: []string{"/exports/web-01/manifest.json"}, Total: 99}
	})
	play(s, activities.DropSnapshotActivity, func(in activities.DropRequest) (string, struct{}) { return in.Key, struct{}{} })
	play(s, activities.DiscardActivity, func(in activities.DiscardRequest) (string, struct{}) { return in.Target.Folder, struct{}{} })
	play(s, activities.LeaveActivity, func(in activities.LeaveRequest) (string, struct{}) { s.left = in; return string(in.State), struct{}{} })
	return s
}

// play registers an activity that notes its call, "name what", and fails or waits if it was told to.
func play[In, Out any](s *stage, name string, do func(In) (string, Out)) {
	s.RegisterActivityWithOptions(func(ctx context.Context, in In) (Out, error) {
		var none Out
		what, out := do(in)
		call := s.note(name, what)
		s.mu.Lock()
		s.queues[call] = activity.GetInfo(ctx).TaskQueue
		s.last[name] = in
		err, hold := s.fail[call], s.hold[call]
		if e, ok := s.once[call]; ok {
			err = e
			delete(s.once, call)
		}
		s.mu.Unlock()
		if hold != nil {
			err = hold(ctx)
		}
		if err != nil {
			return none, err
		}
		return out, nil
	}, activity.RegisterOptions{Name: name})
}

func (s *stage) note(name, what string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := name + " " + what
	s.calls = append(s.calls, call)
	return call
}

// called lists the calls, without repetitions in a row, and without work on disks that begins after the
// clean-up has: cancelled before it began, it is begun all the same by the test environment, and late. A
// server does not begin it.
func (s *stage) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, c := range s.calls {
		if len(out) == 0 || out[len(out)-1] != c {
			out = append(out, c)
		}
	}
	cleaning := false
	var seen []string
	for _, c := range out {
		switch {
		case begins(c, "place ", "prepare", "settle ", "next-snapshot "): // anew, on another host or for another round
			cleaning = false
		case begins(c, "drop-snapshot ", "discard", "leave "):
			cleaning = true
		case cleaning && begins(c, "transfer-disk ", "verify-disk ", "sync-disk ", "pack-disk ", "check-package "):
			continue
		}
		seen = append(seen, c)
	}
	return seen
}

func begins(call string, with ...string) bool {
	return slices.ContainsFunc(with, func(w string) bool { return strings.HasPrefix(call, w) })
}

// from lists the calls from the first that begins so.
func (s *stage) from(prefix string) []string {
	all := s.called()
	for i, c := range all {
		if strings.HasPrefix(c, prefix) {
			return all[i:]
		}
	}
	return nil
}

func (s *stage) export(spec job.Spec) { s.ExecuteWorkflow(ExportWorkflow, spec) }

func (s *stage) status() job.Snapshot {
	s.t.Helper()
	v, err := s.QueryWorkflow(QueryStatus)
	require.NoError(s.t, err)
	var out job.Snapshot
	require.NoError(s.t, v.Get(&out))
	return out
}

func spec() job.Spec {
	return job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/exports", Format: "qcow2"}
}

// refused is how an activity fails for good.
func refused(reason providers.Reason, text string) error {
	return temporal.NewNonRetryableApplicationError(text, string(reason), nil)
}

// awayHost is how an activity fails that no worker took.
func awayHost() error {
	return temporal.NewTimeoutError(scheduleToStart, nil)
}

// beside has one call run until it is cancelled, and another, which ends both, end once the first has begun.
func (s *stage) beside(running, ending string, end func(context.Context) error) {
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	s.hold[running] = func(ctx context.Context) error { begin(); return untilCancelled(ctx) }
	s.hold[ending] = func(ctx context.Context) error {
		select {
		case <-begun:
			return end(ctx)
		case <-ctx.Done():
			return temporal.NewCanceledError()
		}
	}
}

// failing is how a call ends with an error.
func failing(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// cancelling is a call during which the job is cancelled.
func (s *stage) cancelling(ctx context.Context) error {
	s.CancelWorkflow()
	return untilCancelled(ctx)
}

// untilCancelled is an activity that runs until it is told to stop.
func untilCancelled(ctx context.Context) error {
	<-ctx.Done()
	return temporal.NewCanceledError()
}
