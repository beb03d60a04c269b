package workflows

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// pointStage is a stage for incremental exports: hosts that have the chain of the VM, or have not.
type pointStage struct {
	*stage
	known  []string
	has    map[string]activities.ChainFound // by host
	silent map[string]bool
	track  bool // the operator's wish
	out    activities.Appended
}

func newPointStage(t *testing.T, hosts ...string) *pointStage {
	s := &pointStage{stage: newStage(t), known: hosts, has: map[string]activities.ChainFound{}, silent: map[string]bool{}}
	s.vm.Disks[0].ChangeID, s.vm.Disks[1].ChangeID = "52 aa/7", "52 bb/3"
	s.out = activities.Appended{
		Dir: "/exports/web-01", Files: []string{"/exports/web-01/chain.json"}, Total: 77, Point: job.PointResult{Chain: "c0ffee", Number: 3, Parent: 2, Changed: 5},
		Disks:  []job.DiskResult{{Disk: "2000", File: "disk0-000003.qcow2", By: "tracking", Read: 4, Changed: 4}, {Disk: "2001", File: "disk1-000003.qcow2", Full: true, Reason: "reset", Read: 1, Changed: 1}},
		Alerts: []string{"the tracker lies"},
	}
	play(s.stage, activities.AskActivity, func(in activities.AskRequest) (string, activities.Asked) {
		s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, time.Second)
		return in.Spec.VMPath, activities.Asked{VM: s.vm.Name, ID: s.vm.ID, Folder: "web-01", Terms: activities.Terms{
			HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute, Format: "raw", Track: s.track,
		}}
	})
	play(s.stage, activities.InspectActivity, func(in activities.InspectRequest) (string, activities.Facts) {
		return in.Format, activities.Facts{
			Kind: "fake", Capabilities: []string{"change-tracking", "disk-leaser", "disk-source", "inventory", "power", "snapshot"}, VM: s.vm,
			Transports: s.ways, Format: activities.FormatFacts{Name: in.Format, Ext: "." + in.Format},
		}
	})
	play(s.stage, activities.HostsActivity, func(activities.HostsRequest) (string, activities.Hosts) {
		return "", activities.Hosts{IDs: append([]string{}, s.known...)}
	})
	s.RegisterActivityWithOptions(func(ctx context.Context, in activities.FindChainRequest) (activities.ChainFound, error) {
		host := strings.TrimPrefix(activity.GetInfo(ctx).TaskQueue, HostQueue(""))
		s.note(activities.FindChainActivity, host)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.last[activities.FindChainActivity] = in
		if s.silent[host] {
			return activities.ChainFound{}, awayHost()
		}
		out := s.has[host]
		out.Host = activities.Host{ID: host, Name: "host " + host}
		return out, nil
	}, activity.RegisterOptions{Name: activities.FindChainActivity})
	s.RegisterActivityWithOptions(func(ctx context.Context, in activities.SettleRequest) (activities.Host, error) {
		host := strings.TrimPrefix(activity.GetInfo(ctx).TaskQueue, HostQueue(""))
		s.note(activities.SettleActivity, host+" for "+in.What)
		return activities.Host{ID: host, Name: "host " + host}, nil
	}, activity.RegisterOptions{Name: activities.SettleActivity})
	play(s.stage, activities.TrackingActivity, func(activities.TrackingRequest) (string, providers.TrackingStatus) {
		return "on", providers.TrackingStatus{}
	})
	play(s.stage, activities.AppendActivity, func(in activities.AppendRequest) (string, activities.Appended) { return in.Target.Folder, s.out })
	play(s.stage, activities.FinishPointActivity, func(in activities.FinishPointRequest) (string, struct{}) { return in.Target.Folder, struct{}{} })
	return s
}

func incremental() job.Spec {
	return job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/exports", Incremental: true}
}

func TestIncrementalExport(t *testing.T) {
	s := newPointStage(t, "h1")
	in := incremental()
	in.Compress, in.Options.Full, in.Options.VerifyTracking = true, true, true
	s.export(in)
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{
		"ask /dc/vm/web-01", "hosts ", "place h1", "inspect qcow2", "prepare web-01", "snapshot hypersdk-" + testID, "append-point web-01",
		"finish-point web-01", "drop-snapshot hypersdk-" + testID, "leave completed", "release " + testID,
	}, s.called(), "with one host nobody is asked for the chain; what the daemon's default format is does not matter")

	vm := cbt.VM{ID: "vm-42", Name: "web-01", Provider: "fake"}
	prepared := s.last[activities.PrepareActivity].(activities.PrepareRequest)
	require.Equal(t, vm, prepared.Chain)
	require.True(t, prepared.Target.Chain)
	require.Empty(t, prepared.Files)
	req := s.last[activities.AppendActivity].(activities.AppendRequest)
	require.Equal(t, vm, req.VM)
	require.Equal(t, []activities.AppendDisk{
		{Disk: "2000", Label: "Hard disk 1", Size: 4 * gib, ChangeID: "52 aa/7"}, {Disk: "2001", Label: "Hard disk 2", Size: 2 * gib, ChangeID: "52 bb/3"},
	}, req.Disks)
	require.True(t, req.Full)
	require.True(t, req.Audit)
	require.True(t, req.Target.Compress)
	require.Equal(t, "fast", req.Transport)

	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, &s.out.Point, r.Point)
	require.Equal(t, s.out.Disks, r.Disks)
	require.Equal(t, s.out.Alerts, r.Alerts)
	require.Equal(t, s.out.Files, r.Files)
	require.EqualValues(t, 77, r.TotalSize)
	require.Equal(t, job.Completed, s.status().Status)
}

func TestIncrementalExportGoesToItsChain(t *testing.T) {
	at := func(day int) time.Time { return time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		name string
		has  map[string]activities.ChainFound
		want string
	}{
		{"nowhere yet", nil, "place h1"},
		{"on one", map[string]activities.ChainFound{"h2": {Has: true, Ours: true, Newest: at(1)}}, "settle h2 for the chain of web-01"},
		{"on two", map[string]activities.ChainFound{"h1": {Has: true, Ours: true, Newest: at(1), Free: 9}, "h3": {Has: true, Ours: true, Newest: at(2)}}, "settle h3 for the chain of web-01"},
		{"in a folder that they share", map[string]activities.ChainFound{"h1": {Has: true, Ours: true, Newest: at(1)}, "h3": {Has: true, Ours: true, Newest: at(1), Free: 3}}, "settle h3 for the chain of web-01"},
		{"beside that of another VM", map[string]activities.ChainFound{"h1": {Has: true, Newest: at(3)}, "h2": {Has: true, Ours: true}}, "settle h2 for the chain of web-01"},
		{"that cannot be read now", map[string]activities.ChainFound{"h2": {Has: true}}, "settle h2 for the chain of web-01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newPointStage(t, "h1", "h2", "h3")
			s.has = c.has
			s.export(incremental())
			require.NoError(t, s.GetWorkflowError())
			calls := s.called()
			require.ElementsMatch(t, []string{"find-chain h1", "find-chain h2", "find-chain h3"}, calls[2:5])
			require.Equal(t, c.want, calls[5])
			require.Equal(t, "/exports", s.last[activities.FindChainActivity].(activities.FindChainRequest).Output)
			var r job.Result
			require.NoError(t, s.GetWorkflowResult(&r))
			require.Equal(t, s.out.Alerts, r.Alerts)
		})
	}
}

// A host that may have the chain is waited for; then the export goes on without, and says so.
func TestHostWithTheChainIsSilent(t *testing.T) {
	s := newPointStage(t, "h1", "h2")
	s.silent["h2"] = true
	s.RegisterDelayedCallback(func() {
		require.Contains(t, s.status().Progress.WaitingFor, "host h2, which does not answer and may have the chain of web-01")
	}, 5*time.Minute)
	s.export(incremental())
	require.NoError(t, s.GetWorkflowError())
	require.Contains(t, s.called(), "place h1")
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Len(t, r.Alerts, 2)
	require.Contains(t, r.Alerts[0], "host h2, which may have the chain of web-01, did not answer for 10m0s")
	require.GreaterOrEqual(t, r.Duration, 10*time.Minute)

	s = newPointStage(t, "h1", "h2")
	s.silent["h2"] = true
	s.has["h2"] = activities.ChainFound{Has: true, Ours: true}
	s.RegisterDelayedCallback(func() { s.mu.Lock(); defer s.mu.Unlock(); s.silent["h2"] = false }, 3*time.Minute)
	s.export(incremental())
	require.NoError(t, s.GetWorkflowError())
	require.Contains(t, s.called(), "settle h2 for the chain of web-01", "it has come back")
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, s.out.Alerts, r.Alerts)
}

// What was begun is taken back, whatever the phase; from the committed point on the job is complete.
func TestIncrementalExportIsCancelled(t *testing.T) {
	const key = "hypersdk-" + testID
	for _, c := range []struct {
		call string
		undo []string
	}{
		{"prepare web-01", []string{"discard web-01", "leave cancelled", "release " + testID}},
		{"append-point web-01", []string{"drop-snapshot " + key, "discard web-01", "leave cancelled", "release " + testID}},
	} {
		s := newPointStage(t, "h1")
		s.hold[c.call] = s.cancelling
		s.export(incremental())
		require.True(t, temporal.IsCanceledError(s.GetWorkflowError()), "%v", s.GetWorkflowError())
		calls := s.called()
		require.Equal(t, c.undo, calls[len(calls)-len(c.undo):])
		require.True(t, s.last[activities.DiscardActivity].(activities.DiscardRequest).Target.Chain)
	}
	s := newPointStage(t, "h1")
	s.hold["finish-point web-01"] = func(context.Context) error { s.CancelWorkflow(); return nil } // it was committed
	s.export(incremental())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, job.Completed, s.status().Status)
	require.NotContains(t, s.called(), "discard web-01")
}

func TestIncrementalExportFails(t *testing.T) {
	for call, reason := range map[string]providers.Reason{"append-point web-01": providers.Corrupt, "finish-point web-01": providers.Denied} {
		s := newPointStage(t, "h1")
		s.fail[call] = refused(reason, "it did not work")
		s.export(incremental())
		require.ErrorContains(t, s.GetWorkflowError(), "it did not work")
		require.Equal(t, []string{"drop-snapshot hypersdk-" + testID, "discard web-01", "leave failed", "release " + testID}, s.from("drop-snapshot"))
	}
}

// Where its host is lost, the job waits for the chain there, and then begins another one elsewhere.
func TestHostIsLostWithTheChain(t *testing.T) {
	s := newPointStage(t, "h1", "h2")
	s.has["h1"] = activities.ChainFound{Has: true, Ours: true}
	s.hosts = []string{"h2"}
	s.once["append-point web-01"] = awayHost()
	s.hold["prepare web-01"] = func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.silent["h1"] = true
		return nil
	}
	s.export(incremental())
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, "place h2", s.from("place")[0])
	require.Equal(t, HostQueue("h2"), s.queues["finish-point web-01"])
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Contains(t, r.Alerts[0], "host h1")
}

// The operator may let incremental exports switch tracking on; a VM that cannot be tracked is compared.
func TestTrackingIsSwitchedOn(t *testing.T) {
	for _, c := range []struct {
		name        string
		wish, is    bool
		fail        error
		want        bool
		incremental bool
	}{
		{"wished for", true, false, nil, true, true},
		{"not wished for", false, false, nil, false, true},
		{"on already", true, true, nil, false, true},
		{"cannot be", true, false, refused(providers.Unsupported, "vmx-04"), true, true},
		{"of an export in full", true, false, nil, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newPointStage(t, "h1")
			s.track, s.vm.ChangeTracking = c.wish, c.is
			if c.fail != nil {
				s.fail["change-tracking on"] = c.fail
			}
			in := incremental()
			in.Incremental = c.incremental
			s.export(in)
			require.NoError(t, s.GetWorkflowError())
			require.Equal(t, c.want, len(s.from("change-tracking on")) > 0)
		})
	}
}

func TestWhatNoChainCanGive(t *testing.T) {
	thick := false
	for name, change := range map[string]func(*job.Spec){
		"format must be qcow2":                           func(s *job.Spec) { s.Format = "ova" },
		"thin must not be false with incremental":        func(s *job.Spec) { s.Thin = &thick },
		"options.overwrite must not be set":              func(s *job.Spec) { s.Options.Overwrite = true },
		"options.full means nothing without incremental": func(s *job.Spec) { s.Incremental, s.Options.Full = false, true },
		"options.verify_tracking means nothing without":  func(s *job.Spec) { s.Incremental, s.Options.VerifyTracking = false, true },
	} {
		s := newPointStage(t, "h1")
		in := incremental()
		change(&in)
		s.export(in)
		require.ErrorContains(t, s.GetWorkflowError(), name)
		require.Empty(t, s.from("snapshot"))
	}
	s := newPointStage(t, "h1")
	s.ways[1].Leased, s.ways[1].Resumable = true, false
	s.export(incremental())
	require.ErrorContains(t, s.GetWorkflowError(), "what changed of the disks of web-01 cannot be read now (slow: the VM is asleep; fast: it sends whole disks front to back")
	require.Empty(t, s.from("prepare"))
}
