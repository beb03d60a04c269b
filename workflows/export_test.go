package workflows

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const scheduleToStart = enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START

const testID = "default-test-workflow-id"

func TestExport(t *testing.T) {
	s := newStage(t)
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())

	calls := s.called()
	require.Equal(t, []string{
		"ask /dc/vm/web-01", "place h1", "inspect qcow2", "prepare web-01", "snapshot hypersdk-" + testID,
	}, calls[:5])
	require.ElementsMatch(t, []string{"transfer-disk web-01-disk-1.qcow2", "transfer-disk web-01-disk-2.qcow2"}, calls[5:7])
	require.ElementsMatch(t, []string{"verify-disk web-01-disk-1.qcow2", "verify-disk web-01-disk-2.qcow2"}, calls[7:9])
	require.Equal(t, []string{"finish web-01", "drop-snapshot hypersdk-" + testID, "leave completed", "release " + testID}, calls[9:],
		"what a success does not keep is undone, the last thing first")
	for call, queue := range s.queues {
		switch call {
		case "ask /dc/vm/web-01":
			require.Equal(t, Queue, queue)
		case "place h1":
			require.Equal(t, PlaceQueue, queue)
		default:
			require.Equal(t, HostQueue("h1"), queue, call)
		}
	}

	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.True(t, r.Success)
	require.Equal(t, "web-01", r.VMName)
	require.Equal(t, "fast", r.Transport)
	require.Equal(t, []job.DiskResult{
		{Disk: "2000", File: "web-01-disk-1.qcow2", Format: "qcow2", Size: 4 * gib, Stored: gib,
			Digest: "sha256-1m:web-01-disk-1.qcow2", SHA256: "sum of web-01-disk-1.qcow2", Read: 2 * gib},
		{Disk: "2001", File: "web-01-disk-2.qcow2", Format: "qcow2", Size: 2 * gib, Stored: gib / 2,
			Digest: "sha256-1m:web-01-disk-2.qcow2", SHA256: "sum of web-01-disk-2.qcow2", Read: gib},
	}, r.Disks)
	require.Empty(t, r.Leftover)

	st := s.status()
	require.Equal(t, job.Completed, st.Status)
	require.Equal(t, job.Done, st.Progress.Phase)
	require.Equal(t, &r, st.Result)
	require.NotNil(t, st.StartedAt)
	require.NotNil(t, st.CompletedAt)
	require.Equal(t, "h1", st.Host)
	require.True(t, s.left.Clean)
}

func TestExportWithoutVerification(t *testing.T) {
	s := newStage(t)
	in := spec()
	in.Options.NoVerify = true
	s.export(in)
	require.NoError(t, s.GetWorkflowError())
	for _, c := range s.called() {
		require.NotContains(t, c, "verify-disk")
	}
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Empty(t, r.Disks[0].SHA256)
	require.Equal(t, int64(gib), r.Disks[0].Stored)
}

// The undo stack holds what was begun, and nothing else.
func TestExportFails(t *testing.T) {
	const key = "hypersdk-" + testID
	undoAll := []string{"drop-snapshot " + key, "discard web-01", "leave failed", "release " + testID}
	for _, c := range []struct {
		name, call, text string
		reason           providers.Reason
		undo             []string
	}{
		{"no such VM", "ask /dc/vm/web-01", "there is no VM /dc/vm/web-01", providers.NotFound, []string{"leave failed", "release " + testID}},
		{"wrong password", "ask /dc/vm/web-01", "the user name or the password is wrong", providers.Auth, []string{"leave failed", "release " + testID}},
		{"VM gone meanwhile", "inspect qcow2", "there is no VM /dc/vm/web-01", providers.NotFound, []string{"leave failed", "release " + testID}},
		{"target there already", "prepare web-01", "/exports/web-01/manifest.json exists already", providers.Exists, []string{"discard web-01", "leave failed", "release " + testID}},
		{"snapshot refused", "snapshot " + key, "no privilege to take snapshots", providers.Denied, undoAll},
		{"disk unreadable", "transfer-disk web-01-disk-2.qcow2", "the snapshot is gone", providers.NotFound, undoAll},
		{"target differs", "verify-disk web-01-disk-1.qcow2", "the target differs at 1 MiB", providers.Corrupt, undoAll},
		{"name taken", "finish web-01", "manifest.json appeared", providers.Exists, undoAll},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			s.fail[c.call] = refused(c.reason, c.text)
			s.export(spec())

			var app *temporal.ApplicationError
			require.ErrorAs(t, s.GetWorkflowError(), &app)
			require.True(t, app.NonRetryable())
			require.Equal(t, string(c.reason), app.Type())
			require.Contains(t, app.Message(), c.text)
			calls := s.called()
			require.Equal(t, c.undo, calls[len(calls)-len(c.undo):])
			require.NotContains(t, calls[:len(calls)-len(c.undo)], c.undo[0])

			st := s.status()
			require.Equal(t, job.Failed, st.Status)
			require.Equal(t, app.Message(), st.Error)
			require.Equal(t, string(c.reason), st.Reason)
			require.Nil(t, st.Result)
			require.Equal(t, st.Error, s.left.Outcome)
		})
	}
}

func TestADiskIsNamedInItsFailure(t *testing.T) {
	s := newStage(t)
	s.beside("transfer-disk web-01-disk-1.qcow2", "transfer-disk web-01-disk-2.qcow2", failing(refused(providers.NotFound, "the snapshot is gone")))
	var stopped []string
	s.SetOnActivityCanceledListener(func(info *activity.Info) { stopped = append(stopped, info.ActivityType.Name) })
	s.export(spec())
	require.ErrorContains(t, s.GetWorkflowError(), "Hard disk 2 (web-01-disk-2.qcow2): the snapshot is gone")
	require.Equal(t, []string{activities.TransferActivity}, stopped, "the other disk was told to stop")
}

// What does not work at once is tried again by an activity of its own, for all to see.
func TestAskIsTriedAgain(t *testing.T) {
	s := newStage(t)
	s.once["ask /dc/vm/web-01"] = temporal.NewApplicationError("the server does not answer", string(providers.Unavailable))
	var started []string
	s.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
		started = append(started, info.ActivityType.Name)
	})
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, activities.AskActivity, started[0])
}

// Whatever the phase, a cancelled job stops and leaves nothing.
func TestExportIsCancelled(t *testing.T) {
	const key = "hypersdk-" + testID
	undoAll := []string{"drop-snapshot " + key, "discard web-01", "leave cancelled", "release " + testID}
	for _, c := range []struct {
		call string
		undo []string
	}{
		{"ask /dc/vm/web-01", []string{"leave cancelled", "release " + testID}},
		{"place h1", []string{"leave cancelled", "release " + testID}},
		{"inspect qcow2", []string{"leave cancelled", "release " + testID}},
		{"prepare web-01", []string{"discard web-01", "leave cancelled", "release " + testID}},
		{"snapshot " + key, undoAll},
		{"transfer-disk web-01-disk-1.qcow2", undoAll},
		{"verify-disk web-01-disk-2.qcow2", undoAll},
	} {
		t.Run(c.call, func(t *testing.T) {
			s := newStage(t)
			s.hold[c.call] = s.cancelling
			s.export(spec())
			require.True(t, temporal.IsCanceledError(s.GetWorkflowError()), "%v", s.GetWorkflowError())
			calls := s.called()
			require.Equal(t, c.undo, calls[len(calls)-len(c.undo):])
			require.Equal(t, job.Cancelled, s.status().Status)
		})
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	s := newStage(t)
	s.deaf = true
	s.RegisterDelayedCallback(s.CancelWorkflow, time.Minute)
	s.export(spec())
	require.True(t, temporal.IsCanceledError(s.GetWorkflowError()))
	require.Equal(t, []string{"ask /dc/vm/web-01", "leave cancelled", "release " + testID}, s.called())
	require.Equal(t, Queue, s.queues["leave cancelled"], "there never was a host")
	require.Nil(t, s.status().StartedAt)
}

// From the manifest on a job is complete, whatever happens.
func TestCancelledTooLate(t *testing.T) {
	s := newStage(t)
	s.hold["finish web-01"] = func(context.Context) error { s.CancelWorkflow(); return nil }
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, job.Completed, s.status().Status)
}

// A job that waits makes sure now and then that admission still knows of it.
func TestAsksAgainWhileWaiting(t *testing.T) {
	s := newStage(t)
	s.deaf = true
	s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, 2*askAgain+time.Minute)
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	asked := 0
	for _, c := range s.calls {
		if c == "ask /dc/vm/web-01" {
			asked++
		}
	}
	require.Equal(t, 3, asked)
}

func TestHostIsLost(t *testing.T) {
	for _, c := range []struct {
		name string
		took string // host that the second claimed the folder from
		left []string
	}{
		{"with its own disk", "", []string{"files in /exports/web-01 on host h1, which removes them when it is back"}},
		{"and its folder is shared", "h1", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			s.hosts = []string{"h1", "h2"}
			prepared := 0
			play(s, activities.PrepareActivity, func(in activities.PrepareRequest) (string, activities.Prepared) {
				out := activities.Prepared{Dir: "/exports/web-01"}
				if prepared++; prepared == 2 {
					out.TookOver = c.took
				}
				return in.Target.Folder, out
			})
			s.vm.Disks = s.vm.Disks[:1]
			s.once["transfer-disk web-01-disk-1.qcow2"] = awayHost()
			s.export(spec())
			require.NoError(t, s.GetWorkflowError())
			require.Equal(t, []string{"place h2", "inspect qcow2", "prepare web-01"}, s.from("place h2")[:3])
			calls := s.called()
			snaps := 0
			for _, c := range calls {
				if c == "snapshot hypersdk-"+testID {
					snaps++
				}
			}
			require.Equal(t, 1, snaps, "the snapshot is not the host's")
			require.Equal(t, HostQueue("h2"), s.queues["finish web-01"])
			var r job.Result
			require.NoError(t, s.GetWorkflowResult(&r))
			require.Equal(t, "h2", r.Host)
			require.Equal(t, c.left, r.Leftover)
		})
	}
}

// A host that is away cannot clean up; what can be done without it is done elsewhere.
func TestHostIsLostAndTheJobCancelled(t *testing.T) {
	s := newStage(t)
	s.hold["transfer-disk web-01-disk-1.qcow2"] = s.cancelling
	s.once["discard web-01"], s.once["drop-snapshot hypersdk-"+testID], s.once["leave cancelled"] = awayHost(), awayHost(), awayHost()
	s.export(spec())
	require.True(t, temporal.IsCanceledError(s.GetWorkflowError()))
	require.Equal(t, Queue, s.queues["drop-snapshot hypersdk-"+testID])
	require.Equal(t, Queue, s.queues["leave cancelled"])
	require.Contains(t, s.status().Error, "left behind: hidden files in /exports (the host of the job does not answer)")
	require.False(t, s.left.Clean, "the host keeps its record and removes them later")
}

func TestLeftoversOfASuccess(t *testing.T) {
	s := newStage(t)
	s.fail["drop-snapshot hypersdk-"+testID] = refused(providers.Denied, "no privilege to remove snapshots")
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, []string{"snapshot hypersdk-" + testID + " of web-01 (no privilege to remove snapshots)"}, r.Leftover)
}

func TestPauseAndLimit(t *testing.T) {
	s := newStage(t)
	yes, no, limit := true, false, 25.0
	during := make(chan struct{})
	s.hold["transfer-disk web-01-disk-1.qcow2"] = func(context.Context) error { <-during; return nil }
	results := map[string]job.Limits{}
	update := func(id string, c job.Control) {
		s.UpdateWorkflow(UpdateControl, id, &answer{
			complete: func(v any, err error) {
				require.NoError(t, err)
				results[id] = v.(job.Limits)
			},
			reject: func(err error) { t.Errorf("%s was rejected: %v", id, err) },
		}, c)
	}
	s.RegisterDelayedCallback(func() {
		update("limit", job.Control{LimitMBps: &limit})
		update("pause", job.Control{Paused: &yes})
		close(during)
	}, 2*time.Second)
	s.RegisterDelayedCallback(func() {
		st := s.status()
		require.Equal(t, job.Transfer, st.Progress.Phase, "the next phase does not begin while the job is paused")
		require.True(t, st.Progress.Paused)
		require.Equal(t, 25.0, st.Progress.LimitMBps)
		update("resume", job.Control{Paused: &no})
	}, time.Hour)
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, job.Limits{MBps: 25}, results["limit"])
	require.Equal(t, job.Limits{MBps: 25, Paused: true}, results["pause"])
	require.Equal(t, job.Limits{MBps: 25}, results["resume"])
	require.Equal(t, job.Limits{MBps: 25}, s.last[activities.VerifyActivity].(activities.VerifyRequest).Limits)
}

func TestControlIsRefused(t *testing.T) {
	yes, negative := true, -1.0
	for _, c := range []struct {
		name, want string
		at         string
		control    job.Control
	}{
		{"nothing asked", "say pause, resume or a limit", "transfer-disk web-01-disk-1.qcow2", job.Control{}},
		{"negative limit", "between 0", "transfer-disk web-01-disk-1.qcow2", job.Control{LimitMBps: &negative}},
		{"while it ends", "the job is ending", "finish web-01", job.Control{Paused: &yes}},
		{"while it cleans up", "the job is ending", "drop-snapshot hypersdk-" + testID, job.Control{Paused: &yes}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			var refusal error
			asked := make(chan struct{})
			s.hold[c.at] = func(context.Context) error {
				s.RegisterDelayedCallback(func() {
					s.UpdateWorkflow(UpdateControl, "u", &answer{
						complete: func(any, error) { t.Error("accepted") }, reject: func(err error) { refusal = err },
					}, c.control)
					close(asked)
				}, 0)
				<-asked
				return nil
			}
			s.export(spec())
			require.NoError(t, s.GetWorkflowError())
			require.ErrorContains(t, refusal, c.want)
		})
	}
}

// The plan fails before anything is touched.
func TestPlanRefuses(t *testing.T) {
	s := newStage(t)
	s.vm.Disks[1].Mode = "independent_persistent"
	s.export(spec())
	require.ErrorContains(t, s.GetWorkflowError(), "Hard disk 2 of web-01 is an independent disk")
	require.Equal(t, []string{"ask /dc/vm/web-01", "place h1", "inspect qcow2", "leave failed", "release " + testID}, s.called())

	s = newStage(t)
	in := spec()
	in.Incremental, in.Format = true, "vmdk"
	s.export(in)
	require.ErrorContains(t, s.GetWorkflowError(), "format must be qcow2, or left out, with incremental")
	require.Equal(t, []string{"leave failed"}, s.called(), "admission was never asked")
}

func TestDisksChangedBeforeTheSnapshot(t *testing.T) {
	s := newStage(t)
	play(s, activities.SnapshotActivity, func(in activities.SnapshotRequest) (string, providers.Snapshot) {
		return in.Key, providers.Snapshot{ID: "snapshot-7", Disks: s.vm.Disks[:1]}
	})
	s.export(spec())
	require.ErrorContains(t, s.GetWorkflowError(), "the VM had 2 disks when the job looked and 1 in its snapshot")
}

func TestGivesUpWithTheLastFailure(t *testing.T) {
	s := newStage(t)
	s.fail["inspect qcow2"] = temporal.NewTimeoutError(
		enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, temporal.NewApplicationError("the server does not answer", string(providers.Unavailable)))
	s.export(spec())
	var app *temporal.ApplicationError
	require.ErrorAs(t, s.GetWorkflowError(), &app)
	require.Equal(t, "gave up after trying for long: the server does not answer", app.Message())
	require.Equal(t, string(providers.Unavailable), app.Type())
}

// answer is the callbacks of an update.
type answer struct {
	complete func(any, error)
	reject   func(error)
}

func (a *answer) Accept()                 {}
func (a *answer) Reject(err error)        { a.reject(err) }
func (a *answer) Complete(v any, e error) { a.complete(v, e) }

func TestVerdict(t *testing.T) {
	require.Equal(t, outcome{providers.Unavailable, "the host of the job does not answer"}, verdict(awayHost()))
	require.Equal(t, outcome{providers.Unavailable, "x"}, verdict(errors.New("x")))
	require.ErrorIs(t, refusal(providers.Exists, "there"), providers.Exists)
}
