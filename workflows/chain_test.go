package workflows

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// chainStage is a stage for jobs on chains: it has one host, which has the chain of web-01.
func chainStage(t *testing.T) *images {
	s := newImages(t, "h1")
	play(s.stage, activities.AskChainActivity, func(in activities.AskChainRequest) (string, activities.Asked) {
		s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, time.Second)
		return in.Path, activities.Asked{VM: in.Path, Terms: activities.Terms{
			HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute, Format: "raw",
		}}
	})
	play(s.stage, activities.LookAtChainActivity, func(in activities.LookAtChainRequest) (string, activities.Looked) {
		return string(in.Work.Action), activities.Looked{
			Host: activities.Host{ID: "h1", Name: "host h1"}, Free: 1, Format: activities.FormatFacts{Name: "vmdk", Ext: ".vmdk"},
			Chain: &activities.ChainSeen{ID: "c1", VM: cbt.VM{ID: "vm-42", Name: "web-01"}, Points: 5, Point: 3, Weight: 6 * gib, Disks: []activities.DiskSeen{
				{Disk: "2000", Number: 1, Size: 4 * gib, Held: gib, File: "disk0-000003.qcow2", Digest: "sha256-1m:web-01-disk-1.vmdk"},
				{Disk: "2001", Number: 3, Size: 2 * gib, Held: 3 * gib, File: "disk2-000003.qcow2", Digest: "sha256-1m:web-01-disk-3.vmdk"},
			}},
		}
	})
	play(s.stage, activities.CheckChainActivity, func(in activities.ChainRequest) (string, activities.ChainDone) {
		return in.Work.Depth, activities.ChainDone{Points: 5, Check: &job.ChainCheck{Depth: "data", Links: 10, Read: 99}}
	})
	play(s.stage, activities.MergeChainActivity, func(in activities.ChainRequest) (string, activities.ChainDone) {
		return in.Work.Path, activities.ChainDone{Points: 3, Files: []string{"/b/web-01/disk0-000003.qcow2"}, Total: 77, Disks: []cbt.Disk{
			{Disk: "2000", Size: 4 * gib, Full: true, Reason: "merged from points 1 to 3", File: "disk0-000003.qcow2", Stored: 77, Digest: "d"},
		}}
	})
	play(s.stage, activities.DiscardMergeActivity, func(in activities.ChainRequest) (string, struct{}) { return in.Work.Path, struct{}{} })
	play(s.stage, activities.DeletePointActivity, func(in activities.ChainRequest) (string, activities.ChainDone) {
		return in.Work.Path, activities.ChainDone{Points: 4}
	})
	return s
}

func (s *images) chain(w job.ChainWork) job.Snapshot {
	w.Path = "/b/web-01"
	s.ExecuteWorkflow(ChainWorkflow, w)
	return s.status()
}

func TestCheckOfAChain(t *testing.T) {
	s := chainStage(t)
	st := s.chain(job.ChainWork{Action: job.CheckChain, Depth: "data"})
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{
		"ask-chain /b/web-01", "hosts ", "look-at-chain check", "settle ", "check-chain data", "leave completed", "release " + testID,
	}, s.called())
	require.Equal(t, HostQueue("h1"), s.queues["check-chain data"])
	require.Equal(t, Queue, s.queues["ask-chain /b/web-01"])
	r := st.Result
	require.True(t, r.Success)
	require.Equal(t, "web-01", r.VMName)
	require.Equal(t, "/b/web-01", r.OutputDir)
	require.Equal(t, &job.ChainCheck{Depth: "data", Links: 10, Read: 99}, r.Chain.Check)
	require.Equal(t, 5, r.Chain.Points)
}

// A check that found damage has failed, and says what it found.
func TestCheckOfADamagedChain(t *testing.T) {
	s := chainStage(t)
	found := activities.ChainDone{Points: 5, First: "2 problems, the first: point 2 of disk \"2000\"", Check: &job.ChainCheck{
		Depth: "links", Damage: 2, Problems: []cbt.Problem{{Point: 2, Disk: "2000", File: "disk0-000002.qcow2", What: "it is missing"}},
	}}
	s.OnActivity(activities.CheckChainActivity, mock.Anything, mock.Anything).Return(found, nil)
	st := s.chain(job.ChainWork{Action: job.CheckChain})
	var app *temporal.ApplicationError
	require.ErrorAs(t, s.GetWorkflowError(), &app)
	require.Equal(t, string(providers.Corrupt), app.Type())
	require.Equal(t, job.Failed, st.Status)
	require.Equal(t, found.First, st.Error)
	require.False(t, st.Result.Success)
	require.Equal(t, found.Check, st.Result.Chain.Check)
}

func TestMergeOfAChain(t *testing.T) {
	s := chainStage(t)
	st := s.chain(job.ChainWork{Action: job.MergeChain, UpTo: 3})
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"merge-chain /b/web-01", "leave completed", "release " + testID}, s.from("merge-chain"))
	require.Equal(t, []string{"/b/web-01/disk0-000003.qcow2"}, st.Result.Files)
	require.Equal(t, job.DiskResult{Disk: "2000", File: "disk0-000003.qcow2", Format: "qcow2", Size: 4 * gib, Stored: 77, Digest: "d",
		Full: true, Reason: "merged from points 1 to 3"}, st.Result.Disks[0])
	require.EqualValues(t, 3, st.Result.Chain.Point)
	require.Equal(t, 3, st.Result.Chain.Points)
}

// What a merge hid is removed when it does not come to its end.
func TestMergeIsUndone(t *testing.T) {
	t.Run("it fails", func(t *testing.T) {
		s := chainStage(t)
		s.fail["merge-chain /b/web-01"] = refused(providers.Corrupt, "point 2 of disk \"2000\": link disk0-000002.qcow2: it is missing")
		st := s.chain(job.ChainWork{Action: job.MergeChain, UpTo: 3})
		require.Equal(t, job.Failed, st.Status)
		require.Contains(t, st.Error, "disk0-000002.qcow2")
		require.Nil(t, st.Result)
		require.Equal(t, []string{"discard-merge /b/web-01", "leave failed", "release " + testID}, s.from("discard-merge"))
	})
	t.Run("it is cancelled", func(t *testing.T) {
		s := chainStage(t)
		s.hold["merge-chain /b/web-01"] = s.cancelling
		st := s.chain(job.ChainWork{Action: job.MergeChain, UpTo: 3})
		require.Equal(t, job.Cancelled, st.Status)
		require.Equal(t, []string{"discard-merge /b/web-01", "leave cancelled", "release " + testID}, s.from("discard-merge"))
	})
	t.Run("a host that is lost", func(t *testing.T) {
		s := chainStage(t)
		s.once["merge-chain /b/web-01"] = awayHost()
		st := s.chain(job.ChainWork{Action: job.MergeChain, UpTo: 3})
		require.Equal(t, job.Completed, st.Status)
		require.Contains(t, s.from("merge-chain"), "look-at-chain merge", "the chain is looked for again")
	})
}

func TestFlattenOfAChain(t *testing.T) {
	s := chainStage(t)
	st := s.chain(job.ChainWork{Action: job.FlattenChain, Point: 3, TargetFormat: "vmdk", OutputPath: "/r", Compress: true})
	require.NoError(t, s.GetWorkflowError())
	calls := s.called()
	require.Equal(t, "prepare-images web-01-disk-1.vmdk", calls[4])
	require.ElementsMatch(t, []string{"transfer-disk web-01-disk-1.vmdk", "transfer-disk web-01-disk-3.vmdk"}, calls[5:7])
	require.ElementsMatch(t, []string{"verify-disk web-01-disk-1.vmdk", "verify-disk web-01-disk-3.vmdk"}, calls[7:9])
	require.Equal(t, []string{"finish-images web-01-disk-1.vmdk", "leave completed", "release " + testID}, calls[9:])
	asked := s.last[activities.TransferActivity].(activities.TransferRequest)
	require.Nil(t, asked.Image)
	require.Equal(t, "c1", asked.Chain.ID)
	require.EqualValues(t, 3, asked.Chain.Point)
	prepared := s.last[activities.PrepareImagesActivity].(activities.PrepareImagesRequest)
	require.EqualValues(t, gib/2, prepared.Images[0].Need, "what it is read through, and half of that compressed")
	require.EqualValues(t, gib, prepared.Images[1].Need, "never more than the disk has")
	require.Equal(t, []string{"/r/web-01-disk-1.vmdk", "/r/web-01-disk-3.vmdk"}, st.Result.Files)
	require.Equal(t, "2001", st.Result.Disks[1].Disk)
	require.Equal(t, job.FlattenChain, st.Result.Chain.Action)
	require.Equal(t, "/r", st.Result.OutputDir)
}

func TestFlattenOfOneDisk(t *testing.T) {
	disks := flattened(job.ChainWork{Disk: "2001", OutputPath: "/r/a.img", Path: "/b/web-01"}, activities.Looked{
		Chain: &activities.ChainSeen{Disks: []activities.DiskSeen{{Disk: "2001", Number: 3}}}, Format: activities.FormatFacts{Name: "raw", Ext: ".img"},
	})
	require.Equal(t, "/r", disks[0].Target.Output)
	require.Equal(t, "a.img", disks[0].Target.Alone)
	require.Equal(t, "2001", disks[0].id())
}

func TestCancelledFlatten(t *testing.T) {
	s := chainStage(t)
	s.beside("transfer-disk web-01-disk-3.vmdk", "transfer-disk web-01-disk-1.vmdk", s.cancelling)
	st := s.chain(job.ChainWork{Action: job.FlattenChain, TargetFormat: "vmdk", OutputPath: "/r"})
	require.Equal(t, job.Cancelled, st.Status)
	require.Equal(t, []string{"discard ", "leave cancelled", "release " + testID}, s.from("discard"))
}

func TestDeleteOfAPoint(t *testing.T) {
	s := chainStage(t)
	st := s.chain(job.ChainWork{Action: job.DeletePoint})
	require.Equal(t, job.Completed, st.Status)
	require.Equal(t, 4, st.Result.Chain.Points)
	require.EqualValues(t, 3, st.Result.Chain.Point)

	s = chainStage(t)
	s.fail["delete-point /b/web-01"] = refused(providers.Invalid, "chain: delete point 3: point 4 reads disk \"2000\" through it")
	st = s.chain(job.ChainWork{Action: job.DeletePoint, Point: 3})
	require.Equal(t, job.Failed, st.Status)
	require.Equal(t, string(providers.Invalid), st.Reason)
	require.Contains(t, st.Error, "through it")
}

// described plays the hosts that are asked for a chain, by their ids.
func described(s *images, by map[string]activities.DescribedChain) {
	var turn int
	play(s.stage, activities.DescribeChainActivity, func(in activities.DescribeChainRequest) (string, activities.DescribedChain) {
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.known[turn%len(s.known)]
		turn++
		return h, by[h]
	})
}

func pointAt(host string, n int64) activities.DescribedChain {
	return activities.DescribedChain{View: &job.ChainView{ID: "c1", Host: host, Path: "/b/web-01", VM: job.ChainVM{ID: "vm-42", Name: "web-01"}, Points: []job.ChainPoint{
		{Number: n, Time: job.Time{Time: time.Unix(1000*n, 0).UTC()}},
	}}}
}

func TestListOfAChain(t *testing.T) {
	none := activities.DescribedChain{Missing: "no such file", Reason: providers.NotFound}
	list := func(s *images, q job.ChainQuery) (*job.ChainView, error) {
		s.ExecuteWorkflow(ListChainWorkflow, q)
		var v *job.ChainView
		if err := s.GetWorkflowError(); err != nil {
			return nil, err
		}
		return v, s.GetWorkflowResult(&v)
	}
	t.Run("the newest of several", func(t *testing.T) {
		s := newImages(t, "h1", "h2", "h3")
		described(s, map[string]activities.DescribedChain{"h1": pointAt("h1", 2), "h2": pointAt("h2", 5), "h3": none})
		v, err := list(s, job.ChainQuery{Output: "/b", VM: "web-01"})
		require.NoError(t, err)
		require.Equal(t, "h2", v.Host)
		require.Equal(t, activities.Target{Output: "/b", Folder: "web-01"}, s.last[activities.DescribeChainActivity].(activities.DescribeChainRequest).Target)
	})
	t.Run("of one host", func(t *testing.T) {
		s := newImages(t, "h1")
		described(s, map[string]activities.DescribedChain{"h1": pointAt("h1", 2)})
		v, err := list(s, job.ChainQuery{Path: "/b/web-01", Host: "h1"})
		require.NoError(t, err)
		require.EqualValues(t, 2, v.Points[0].Number)
		require.NotContains(t, s.called(), "hosts ")
	})
	t.Run("nowhere", func(t *testing.T) {
		s := newImages(t, "h1")
		described(s, map[string]activities.DescribedChain{"h1": none})
		_, err := list(s, job.ChainQuery{Path: "/b/web-01"})
		var app *temporal.ApplicationError
		require.ErrorAs(t, err, &app)
		require.Equal(t, string(providers.NotFound), app.Type())
	})
	t.Run("in use", func(t *testing.T) {
		s := newImages(t, "h1")
		described(s, map[string]activities.DescribedChain{"h1": none})
		s.fail["describe-chain h1"] = temporal.NewApplicationError("another process works on the chain: in use", string(providers.Precondition))
		_, err := list(s, job.ChainQuery{Path: "/b/web-01"})
		var app *temporal.ApplicationError
		require.ErrorAs(t, err, &app)
		require.Equal(t, string(providers.Precondition), app.Type())
	})
	t.Run("no host answers", func(t *testing.T) {
		s := newImages(t, "h1")
		described(s, nil)
		s.fail["describe-chain h1"] = awayHost()
		_, err := list(s, job.ChainQuery{Path: "/b/web-01"})
		require.ErrorContains(t, err, "no host answers")
	})
}

// analyzing is a stage for analyses: a VM that is tracked, and the chains of the hosts.
type analyzing struct {
	*images
	by map[string]activities.DescribedChain
}

func analyses(t *testing.T) analyzing {
	s := analyzing{newImages(t, "h1"), map[string]activities.DescribedChain{"h1": pointAt("h1", 3)}}
	operations(s.stage)
	described(s.images, s.by)
	play(s.stage, activities.MeasureActivity, func(in activities.MeasureRequest) (string, activities.Measured) {
		require.Equal(t, map[providers.DiskID]cbt.Point{"2000": "52 de/7"}, in.Points, "the second disk is not tracked")
		return string(in.Snapshot), activities.Measured{Disks: []job.AnalyzedDisk{
			{Disk: "2000", Label: "Hard disk 1", Size: 4 * gib, AllocatedBytes: 3 * gib, CanIncremental: true, By: cbt.Tracked, ChangedBytes: gib / 4},
			{Disk: "2001", Label: "Hard disk 2", Size: 2 * gib, AllocatedBytes: gib, ChangedBytes: gib, Reason: "the disk was resized"},
		}}
	})
	return s
}

func (s analyzing) analyze(r job.AnalyzeRequest) (job.Analysis, error) {
	s.ExecuteWorkflow(OperateWorkflow, job.Operation{Action: job.Analyze, VMPath: "web-01", Analyze: &r})
	if err := s.GetWorkflowError(); err != nil {
		return job.Analysis{}, err
	}
	var out job.Operated
	err := s.GetWorkflowResult(&out)
	return *out.Analysis, err
}

const dropped = "drop-snapshot hypersdk-" + testID

func TestAnalysis(t *testing.T) {
	s := analyses(t)
	a, err := s.analyze(job.AnalyzeRequest{Output: "/b", RateMBps: 100, LimitMBps: 10})
	require.NoError(t, err)
	require.Equal(t, []string{"find-vm web-01", "hosts ", "describe-chain h1", "change-tracking look",
		"take-snapshot  hypersdk-" + testID, "measure-increment snapshot-7", dropped, "leave completed"}, s.called())
	require.Equal(t, HostQueue("h1"), s.queues["measure-increment snapshot-7"], "where the chain is")
	require.True(t, a.CanIncremental)
	require.Equal(t, "what changed since the last point is known, but of Hard disk 2 not: the disk was resized", a.Reason)
	require.EqualValues(t, 6*gib, a.TotalBytes)
	require.EqualValues(t, 4*gib, a.AllocatedBytes)
	require.EqualValues(t, gib+gib/4, a.ChangedBytes)
	require.EqualValues(t, 4*gib-gib-gib/4, a.EstimatedSavingsBytes)
	require.Equal(t, "2m14s", a.EstimatedDuration, "at the limit, which is below the rate")
	require.Equal(t, "7m9s", a.EstimatedFullDuration)
	require.EqualValues(t, 3, a.LastPoint.Number)
	require.Equal(t, "/b/web-01", a.LastPoint.Folder)
	require.Equal(t, "h1", a.LastPoint.Host)
}

func TestAnalysisWithoutAChain(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(analyzing, *job.AnalyzeRequest)
		says  string
	}{
		{"none is known", func(_ analyzing, r *job.AnalyzeRequest) { r.Output = "" }, "no incremental export of web-01 is known"},
		{"none is there", func(s analyzing, _ *job.AnalyzeRequest) {
			s.by["h1"] = activities.DescribedChain{Missing: "no such file", Reason: providers.NotFound}
		}, "there is no chain in /b/web-01"},
		{"of another VM", func(s analyzing, _ *job.AnalyzeRequest) {
			other := pointAt("h1", 3)
			other.View.VM = job.ChainVM{ID: "vm-7", Name: "db-01"}
			s.by["h1"] = other
		}, "is of another VM (db-01, vm-7)"},
		{"damaged", func(s analyzing, _ *job.AnalyzeRequest) {
			s.fail["describe-chain h1"] = refused(providers.Corrupt, "chain.json: the checksum is wrong")
		}, "cannot be read: chain.json: the checksum is wrong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, r := analyses(t), job.AnalyzeRequest{Output: "/b"}
			s.OnActivity(activities.MeasureActivity, mock.Anything, mock.Anything).Return(activities.Measured{Disks: []job.AnalyzedDisk{
				{Disk: "2000", Size: 4 * gib, AllocatedBytes: gib, ChangedBytes: gib, Reason: "there is no point to start from"},
			}}, nil)
			c.setup(s, &r)
			a, err := s.analyze(r)
			require.NoError(t, err)
			require.False(t, a.CanIncremental)
			require.Contains(t, a.Reason, c.says)
			require.Contains(t, a.Reason, "copies all disks in full")
			require.Nil(t, a.LastPoint)
			require.EqualValues(t, gib, a.ChangedBytes)
			require.Zero(t, a.EstimatedSavingsBytes)
			require.Empty(t, a.EstimatedDuration, "never invented")
			require.Contains(t, s.called(), dropped)
		})
	}
}

// Without tracking nobody's VM gets a snapshot, and what would happen is said.
func TestAnalysisWithoutTracking(t *testing.T) {
	compared := job.AnalyzedDisk{Disk: "2000", Size: gib, ChangedBytes: gib, By: cbt.Compared, Reason: "it is off"}
	for _, c := range []struct {
		name  string
		in    job.AnalyzeRequest
		disk  job.AnalyzedDisk
		says  []string
		on    bool // it is switched on, and has not begun
		track error
	}{
		{"compared", job.AnalyzeRequest{Output: "/b"}, compared, []string{"not tracked", "reads all disks and writes only what differs", "hyperctl cbt enable"}, false, nil},
		{"no chain", job.AnalyzeRequest{}, job.AnalyzedDisk{Size: gib, ChangedBytes: gib}, []string{"no incremental export", "copies all disks in full", "hyperctl cbt enable"}, false, nil},
		{"it has not begun", job.AnalyzeRequest{Output: "/b"}, compared, []string{"not tracked yet: take a snapshot", "writes only what differs"}, true, nil},
		{"a broken chain", job.AnalyzeRequest{Output: "/b"}, job.AnalyzedDisk{Size: gib, Reason: "a delta would build upon damage"}, []string{"build upon damage", "in full"}, false, nil},
		{"a platform that does not", job.AnalyzeRequest{Output: "/b"}, compared, []string{"does not track changes", "writes only what differs"}, false,
			refused(providers.Unsupported, "no")},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := analyses(t)
			s.OnActivity(activities.TrackingActivity, mock.Anything, mock.Anything).Return(
				providers.TrackingStatus{Supported: true, Enabled: c.on, Missing: map[bool][]string{true: {"take a snapshot"}}[c.on]}, c.track)
			s.OnActivity(activities.MeasureActivity, mock.Anything, mock.Anything).Return(activities.Measured{Disks: []job.AnalyzedDisk{c.disk}}, nil)
			a, err := s.analyze(c.in)
			require.NoError(t, err)
			require.False(t, a.CanIncremental)
			for _, w := range c.says {
				require.Contains(t, a.Reason, w)
			}
			require.Equal(t, !c.on && c.track == nil, strings.Contains(a.Reason, "switches tracking on"))
			require.Zero(t, a.EstimatedSavingsBytes)
			require.Empty(t, s.from("take-snapshot"))
			require.Empty(t, s.from("drop-snapshot"))
		})
	}
}

// The snapshot of an analysis goes, whatever comes of it.
func TestTheSnapshotOfAnAnalysisGoes(t *testing.T) {
	t.Run("it fails", func(t *testing.T) {
		s := analyses(t)
		s.fail["measure-increment snapshot-7"] = refused(providers.Denied, "no privilege")
		_, err := s.analyze(job.AnalyzeRequest{Output: "/b"})
		require.ErrorContains(t, err, "no privilege")
		require.Contains(t, s.called(), dropped)
	})
	t.Run("taking it fails", func(t *testing.T) {
		s := analyses(t)
		s.fail["take-snapshot  hypersdk-"+testID] = refused(providers.Unavailable, "the answer was lost")
		_, err := s.analyze(job.AnalyzeRequest{Output: "/b"})
		require.Error(t, err)
		require.Contains(t, s.called(), dropped, "it may be there all the same")
	})
	t.Run("it is cancelled", func(t *testing.T) {
		s := analyses(t)
		s.hold["measure-increment snapshot-7"] = s.cancelling
		_, err := s.analyze(job.AnalyzeRequest{Output: "/b"})
		require.True(t, temporal.IsCanceledError(errors.Unwrap(err)) || temporal.IsCanceledError(err), "%v", err)
		require.Contains(t, s.called(), dropped)
	})
	t.Run("it does not go", func(t *testing.T) {
		s := analyses(t)
		s.fail[dropped] = refused(providers.Denied, "no privilege to remove it")
		a, err := s.analyze(job.AnalyzeRequest{Output: "/b"})
		require.NoError(t, err)
		require.Equal(t, []string{"left behind: snapshot hypersdk-" + testID + " (no privilege to remove it)"}, a.Warnings)
	})
}

// Jobs on one chain wait for one another, and say so.
func TestJobsOnAChainWait(t *testing.T) {
	q := Turns{Limit: 5}
	q.ask(activities.Ticket{Job: "a", Key: activities.ChainKey + "1", VM: "/b/web-01"})
	q.ask(activities.Ticket{Job: "b", Key: activities.ChainKey + "1", VM: "/b/web-01"})
	q.ask(activities.Ticket{Job: "c", Key: activities.ChainKey + "2", VM: "/b/db-01"})
	first, ok := q.next()
	require.True(t, ok)
	require.Equal(t, "a", first)
	second, ok := q.next()
	require.True(t, ok)
	require.Equal(t, "c", second)
	_, ok = q.next()
	require.False(t, ok)
	require.Equal(t, "chain /b/web-01 is being worked on by job a", q.why([]string{"b"})["b"])
}
