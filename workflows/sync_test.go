package workflows

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// warmStage is a stage for warm copies: a guest that changes less from round to round, whose changes are
// tracked.
type warmStage struct {
	*stage
	changed func(round int, disk string) int64
	power   providers.Power
	asked   []activities.SyncRequest
	turns   []activities.NextSnapshotRequest
}

func newWarmStage(t *testing.T) *warmStage {
	s := &warmStage{stage: newStage(t), power: providers.PowerOn, changed: func(round int, _ string) int64 { return gib >> round }}
	s.SetTestTimeout(time.Minute)
	play(s.stage, activities.NextSnapshotActivity, func(in activities.NextSnapshotRequest) (string, providers.Snapshot) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.turns = append(s.turns, in)
		out := providers.Snapshot{ID: providers.SnapshotID("s " + in.Key), Created: s.Now()}
		for _, d := range s.vm.Disks {
			d.ChangeID = cbt.Point(string(d.ID) + " in " + in.Key)
			out.Disks = append(out.Disks, d)
		}
		return in.Key, out
	})
	play(s.stage, activities.SyncActivity, func(in activities.SyncRequest) (string, activities.SyncedDisk) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, in)
		out := activities.SyncedDisk{By: activities.SyncedTracked, Changed: s.changed(in.Round, in.File), Asked: time.Second, Copied: 10 * time.Second}
		if in.Round == 1 {
			out.By, out.Changed = activities.SyncedInFull, in.Size
		}
		out.Transferred = activities.Transferred{
			Digest: fmt.Sprintf("digest of %s in round %d", in.File, in.Round), Read: out.Changed, Stored: in.Size / 4, Inode: 7, Attempts: 1,
		}
		return fmt.Sprintf("%s %d", in.File, in.Round), out
	})
	play(s.stage, activities.FindVMActivity, func(in activities.FindVMRequest) (string, activities.FoundVM) {
		vm := s.vm
		vm.PowerState = s.power
		return in.VMPath, activities.FoundVM{VM: vm}
	})
	play(s.stage, activities.ShutDownActivity, func(in activities.ShutDownRequest) (string, activities.Powered) {
		if s.stubborn {
			return string(in.VM), activities.Powered{Power: providers.PowerOn}
		}
		return string(in.VM), activities.Powered{Power: providers.PowerOff}
	})
	play(s.stage, activities.PowerActivity, func(in activities.PowerRequest) (string, activities.Powered) {
		return string(in.Want), activities.Powered{Power: in.Want}
	})
	return s
}

func warmSpec(change ...func(*job.SyncSpec)) SyncRun {
	s := job.SyncSpec{VMPath: "/dc/vm/web-01", OutputPath: "/exports", Interval: job.Duration(10 * time.Minute)}
	for _, f := range change {
		f(&s)
	}
	return SyncRun{SyncSpec: s}
}

func (s *warmStage) sync(in SyncRun) { s.ExecuteWorkflow(SyncWorkflow, in) }

// at does something after a while.
func (s *warmStage) at(d time.Duration, do func()) { s.RegisterDelayedCallback(do, d) }

// cutover asks for the cutover, and answers why that was refused.
func (s *warmStage) cutover() (refusal error) {
	s.UpdateWorkflow(UpdateCutover, "", &answer{
		complete: func(_ any, err error) { require.NoError(s.t, err) }, reject: func(err error) { refusal = err },
	})
	return refusal
}

func (s *warmStage) oneDisk() { s.vm.Disks = s.vm.Disks[:1] }

func TestSync(t *testing.T) {
	s := newWarmStage(t)
	s.at(25*time.Minute, func() {
		st := s.status()
		require.Equal(t, job.Wait, st.Progress.Phase)
		require.Contains(t, st.Progress.WaitingFor, "round 4")
		require.NotNil(t, st.Sync.NextRound)
		require.Equal(t, 3, st.Sync.Holds)
		require.NoError(t, s.cutover())
		require.NoError(t, s.cutover(), "asking again changes nothing")
	})
	s.sync(warmSpec())
	require.NoError(t, s.GetWorkflowError())
	key := func(round int) string { return fmt.Sprintf("hypersdk-%s-%d", testID, round) }
	calls := s.called()
	require.Equal(t, []string{"ask /dc/vm/web-01", "place h1", "inspect qcow2", "prepare web-01"}, calls[:4])
	require.Equal(t, []string{"finish web-01", "drop-snapshot " + key(4), "leave completed", "release " + testID}, calls[len(calls)-4:])
	require.NotContains(t, calls, "shut-down vm-42", "nothing is done to the VM that was not asked for")

	require.Len(t, s.turns, 4)
	for i, turn := range s.turns {
		require.Equal(t, key(i+1), turn.Key)
		require.Equal(t, map[bool]string{true: "", false: key(i)}[i == 0], turn.Last, "the snapshot before goes first")
	}
	require.Len(t, s.asked, 8)
	for _, in := range s.asked {
		require.Equal(t, providers.SnapshotID("s "+key(in.Round)), in.Ref.Snapshot)
		require.Equal(t, cbt.Point(string(in.Ref.Disk)+" in "+key(in.Round)), in.Point)
		since := cbt.Point("")
		if in.Round > 1 {
			since = cbt.Point(string(in.Ref.Disk) + " in " + key(in.Round-1))
		}
		require.Equal(t, since, in.Since, "the points of the round before are kept")
		require.Equal(t, "fast", in.Ref.Transport)
	}
	require.Equal(t, "digest of web-01-disk-2.qcow2 in round 4", s.last[activities.FinishActivity].(activities.FinishRequest).Disks[1].Digest)
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.True(t, r.Success)
	require.Equal(t, "sum of web-01-disk-1.qcow2", r.Disks[0].SHA256)
	st := s.status()
	require.Equal(t, job.Completed, st.Status)
	rounds := st.Sync.Rounds
	require.Len(t, rounds, 4)
	require.True(t, rounds[3].Final)
	require.Equal(t, int64(2*gib>>2), rounds[1].Changed)
	require.GreaterOrEqual(t, rounds[2].Began.Sub(rounds[1].Began.Time), 10*time.Minute, "rounds keep their pace")
	require.Less(t, rounds[3].Began.Sub(rounds[2].Began.Time), 10*time.Minute, "the cutover does not wait")
}

// When it is time, by each of the thresholds, it cuts over by itself, or says so and goes on.
func TestSyncWhenItIsTime(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*job.SyncSpec)
		rounds int // the last one included
		why    string
	}{
		"so many rounds":    {func(s *job.SyncSpec) { s.MaxRounds = 3 }, 4, "it was to be time after 3"},
		"few changed bytes": {func(s *job.SyncSpec) { s.ThresholdBytes = gib >> 5 }, 6, "at most 33554432 were wanted"},
		"a short downtime":  {func(s *job.SyncSpec) { s.MaxDowntime = job.Duration(time.Hour) }, 3, "at most 1h0m0s was wanted"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newWarmStage(t)
			s.oneDisk()
			s.sync(warmSpec(c.change, func(s *job.SyncSpec) { s.Cutover = job.CutoverAuto }))
			require.NoError(t, s.GetWorkflowError())
			require.Len(t, s.turns, c.rounds)

			s = newWarmStage(t)
			s.oneDisk()
			s.at(3*time.Hour, func() {
				st := s.status()
				require.Greater(t, st.Sync.Round, c.rounds, "it goes on")
				require.Contains(t, st.Sync.Ready, c.why)
				require.Equal(t, "the cutover to be asked for: "+st.Sync.Ready, st.Progress.WaitingFor)
				require.NoError(t, s.cutover())
			})
			s.sync(warmSpec(c.change))
			require.NoError(t, s.GetWorkflowError())
		})
	}
}

func TestSyncShutsDownForTheCutover(t *testing.T) {
	s := newWarmStage(t)
	s.oneDisk()
	s.at(15*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.sync(warmSpec(func(s *job.SyncSpec) { s.Shutdown = true }))
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"find-vm vm-42", "shut-down vm-42", "next-snapshot hypersdk-" + testID + "-3"}, s.from("find-vm")[:3],
		"the last snapshot is taken of a VM that is off")
	require.NotContains(t, s.called(), "power poweredOn", "it stays off")

	// What comes after does not succeed: the VM runs again.
	s = newWarmStage(t)
	s.oneDisk()
	s.at(15*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.fail["verify-disk web-01-disk-1.qcow2"] = refused(providers.Corrupt, "the target differs")
	s.sync(warmSpec(func(s *job.SyncSpec) { s.Shutdown = true }))
	require.ErrorContains(t, s.GetWorkflowError(), "the target differs")
	require.Equal(t, []string{"power poweredOn", "drop-snapshot hypersdk-" + testID + "-3", "discard web-01", "leave failed", "release " + testID}, s.from("power"))

	// It is off already.
	s = newWarmStage(t)
	s.oneDisk()
	s.power = providers.PowerOff
	s.at(15*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.sync(warmSpec(func(s *job.SyncSpec) { s.Shutdown = true }))
	require.NoError(t, s.GetWorkflowError())
	require.NotContains(t, s.called(), "shut-down vm-42")
}

func TestSyncCutoverIsCalledOff(t *testing.T) {
	s := newWarmStage(t)
	s.oneDisk()
	s.stubborn = true
	s.at(15*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.at(time.Hour, func() {
		st := s.status()
		require.Equal(t, "the guest did not shut down within 5m0s", st.Sync.CalledOff)
		require.False(t, st.Sync.CutoverAsked)
		require.Greater(t, st.Sync.Round, 4, "rounds go on")
		require.Contains(t, s.called(), "power poweredOn")
		require.Contains(t, st.Progress.WaitingFor, "called off: the guest did not shut down")
		require.Equal(t, 2*time.Minute, s.last[activities.PowerActivity].(activities.PowerRequest).Settle, "it may still come about")
		s.stubborn = false
		require.NoError(t, s.cutover())
	})
	s.sync(warmSpec(func(s *job.SyncSpec) { s.Shutdown = true }))
	require.NoError(t, s.GetWorkflowError())

	// A guest that cannot be asked was not, and nothing is waited for.
	s = newWarmStage(t)
	s.oneDisk()
	s.once["shut-down vm-42"] = refused(providers.Precondition, "its tools do not run")
	s.at(15*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.at(20*time.Minute, func() {
		require.Equal(t, "its tools do not run", s.status().Sync.CalledOff)
		require.Zero(t, s.last[activities.PowerActivity].(activities.PowerRequest).Settle)
		require.NoError(t, s.cutover())
	})
	s.sync(warmSpec(func(s *job.SyncSpec) { s.Shutdown = true }))
	require.NoError(t, s.GetWorkflowError())

	s = newWarmStage(t)
	s.oneDisk()
	s.stubborn = true
	s.sync(warmSpec(func(s *job.SyncSpec) {
		s.Shutdown, s.ShutdownThen, s.MaxRounds, s.Cutover = true, job.ThenPowerOff, 2, job.CutoverAuto
	}))
	require.NoError(t, s.GetWorkflowError())
	require.Contains(t, s.called(), "power poweredOff")
}

// A run hands everything to the next: where it stands, whose turn it is, and what is to be taken back.
func TestSyncGoesOnInANewRun(t *testing.T) {
	s := newWarmStage(t)
	s.oneDisk()
	limit := 12.5
	s.at(time.Minute, func() {
		s.UpdateWorkflow(UpdateControl, "", &answer{complete: func(any, error) {}, reject: func(err error) { t.Error(err) }}, job.Control{LimitMBps: &limit})
	})
	s.sync(warmSpec())
	var again *workflow.ContinueAsNewError
	require.True(t, errors.As(s.GetWorkflowError(), &again), "%v", s.GetWorkflowError())
	require.Equal(t, SyncWorkflow, again.WorkflowType.Name)
	require.Len(t, s.turns, roundsPerRun)
	require.NotContains(t, s.called(), "release "+testID, "it keeps its turn")
	require.NotContains(t, s.called(), "leave completed")
	var in SyncRun
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &in))
	require.NotNil(t, in.Carried)
	require.Less(t, len(again.Input.Payloads[0].Data), 50<<10)

	next := newWarmStage(t)
	next.oneDisk()
	next.at(5*time.Minute, func() {
		st := next.status()
		require.Equal(t, job.Running, st.Status)
		require.Equal(t, roundsPerRun, st.Sync.Round)
		require.Len(t, st.Sync.Rounds, job.MaxSyncRounds)
		require.Equal(t, in.Carried.Status.Sync.Submitted, st.Sync.Submitted)
		require.Equal(t, 12.5, st.Progress.LimitMBps)
	})
	next.at(time.Hour, func() { require.NoError(t, next.cutover()) })
	next.sync(in)
	require.NoError(t, next.GetWorkflowError())
	calls := next.called()
	require.Equal(t, fmt.Sprintf("next-snapshot hypersdk-%s-%d", testID, roundsPerRun+1), calls[0], "it does not ask, look for a host, or prepare again")
	require.Equal(t, fmt.Sprintf("hypersdk-%s-%d", testID, roundsPerRun), next.turns[0].Last)
	require.Equal(t, s.asked[len(s.asked)-1].Point, next.asked[0].Since)
	require.Equal(t, "release "+testID, calls[len(calls)-1])

	// Cancelled at once, it takes back what the run before made.
	next = newWarmStage(t)
	next.at(0, next.CancelWorkflow)
	next.sync(in)
	require.True(t, temporal.IsCanceledError(next.GetWorkflowError()))
	require.Equal(t, []string{
		fmt.Sprintf("drop-snapshot hypersdk-%s-%d", testID, roundsPerRun), "discard web-01", "leave cancelled", "release " + testID,
	}, next.called())
}

// Whatever the phase, a cancelled job stops and leaves nothing.
func TestSyncIsCancelled(t *testing.T) {
	key := func(round int) string { return fmt.Sprintf("hypersdk-%s-%d", testID, round) }
	for call, undo := range map[string][]string{
		"next-snapshot " + key(1):         {"drop-snapshot " + key(1), "discard web-01"},
		"sync-disk web-01-disk-1.qcow2 1": {"drop-snapshot " + key(1), "discard web-01"},
		"next-snapshot " + key(2):         {"drop-snapshot " + key(2), "drop-snapshot " + key(1), "discard web-01"},
		"sync-disk web-01-disk-1.qcow2 2": {"drop-snapshot " + key(2), "discard web-01"},
		"verify-disk web-01-disk-1.qcow2": {"drop-snapshot " + key(3), "discard web-01"},
	} {
		t.Run(call, func(t *testing.T) {
			s := newWarmStage(t)
			s.oneDisk()
			s.at(15*time.Minute, func() { _ = s.cutover() })
			s.hold[call] = s.cancelling
			s.sync(warmSpec())
			require.True(t, temporal.IsCanceledError(s.GetWorkflowError()), "%v", s.GetWorkflowError())
			calls := s.called()
			undo := append(undo, "leave cancelled", "release "+testID)
			require.Equal(t, undo, calls[len(calls)-len(undo):])
		})
	}
}

func TestSyncPauses(t *testing.T) {
	s := newWarmStage(t)
	s.oneDisk()
	yes, no := true, false
	control := func(c job.Control) {
		s.UpdateWorkflow(UpdateControl, "", &answer{complete: func(any, error) {}, reject: func(err error) { t.Error(err) }}, c)
	}
	s.at(5*time.Minute, func() { control(job.Control{Paused: &yes}) })
	s.at(5*time.Hour, func() {
		require.Equal(t, 1, s.status().Sync.Round, "no round begins while the job is paused")
		require.NoError(t, s.cutover())
	})
	s.at(6*time.Hour, func() {
		require.Equal(t, 1, s.status().Sync.Round)
		control(job.Control{Paused: &no})
	})
	s.sync(warmSpec())
	require.NoError(t, s.GetWorkflowError())
	require.Len(t, s.turns, 2)
}

// A host that is lost takes the targets with it, and not the snapshot: the round is copied on another one.
func TestSyncLosesItsHost(t *testing.T) {
	s := newWarmStage(t)
	s.oneDisk()
	s.hosts = []string{"h1", "h2"}
	s.once["sync-disk web-01-disk-1.qcow2 2"] = awayHost()
	s.at(35*time.Minute, func() { require.NoError(t, s.cutover()) })
	s.sync(warmSpec())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"place h2", "prepare web-01", "sync-disk web-01-disk-1.qcow2 2"}, s.from("place h2")[:3])
	require.Equal(t, HostQueue("h2"), s.queues["finish web-01"])
	require.Equal(t, fmt.Sprintf("hypersdk-%s-2", testID), s.last[activities.PrepareActivity].(activities.PrepareRequest).SnapshotKey)
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, []string{"files in /exports/web-01 on host h1, which removes them when it is back"}, r.Leftover)
}

// What reads disks front to back cannot read what changed.
func TestSyncNeedsToReadAtRandom(t *testing.T) {
	s := newWarmStage(t)
	s.ways = []providers.Transport{{Name: "nfc", Leased: true}}
	s.sync(warmSpec())
	require.ErrorContains(t, s.GetWorkflowError(), "nfc: it reads disks front to back")
}

func TestForecast(t *testing.T) {
	at := func(minutes int) job.Time { return job.Time{Time: time.Date(2026, 1, 1, 0, minutes, 0, 0, time.UTC)} }
	seconds := func(n float64) job.Duration { return job.Duration(n * float64(time.Second)) }
	first := job.SyncRound{Round: 1, Point: at(0), Copied: seconds(100), Took: seconds(105), Read: 10e9, Changed: 10e9}
	second := job.SyncRound{Round: 2, Point: at(10), Copied: seconds(6), Took: seconds(12), Read: 600e6, Changed: 600e6}
	require.Nil(t, forecast(job.SyncSpec{}, []job.SyncRound{first}, 0), "one round says nothing about changes")
	require.Nil(t, forecast(job.SyncSpec{}, []job.SyncRound{first, {Round: 2, Point: at(0)}}, 0))
	got := forecast(job.SyncSpec{}, []job.SyncRound{first, second}, 0)
	require.Equal(t, 1.0, got.ChangeRate, "600 MB in 10 minutes")
	require.Equal(t, 100.0, got.TransferRate)
	require.Equal(t, seconds(6), got.Overhead)
	require.Equal(t, int64(12e6), got.Changed, "what changed since the last snapshot, 12 seconds ago")
	require.Equal(t, seconds(6.12), got.Downtime)
	got = forecast(job.SyncSpec{Shutdown: true}, []job.SyncRound{first, second}, 0)
	require.Equal(t, seconds(30), got.Shutdown)
	require.Equal(t, seconds(30+6+0.42), got.Downtime)
	require.Equal(t, seconds(90+6+1.02), forecast(job.SyncSpec{Shutdown: true}, []job.SyncRound{first, second}, 90*time.Second).Downtime)
	quiet := second
	quiet.Read, quiet.Changed, quiet.Copied, quiet.Took = 0, 0, seconds(0), seconds(4)
	require.Equal(t, seconds(4), forecast(job.SyncSpec{}, []job.SyncRound{first, quiet}, 0).Downtime)
}
