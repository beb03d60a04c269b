package workflows

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/activities"
	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// images is a stage for conversions: hosts that have the images or have not.
type images struct {
	*stage
	there map[string]activities.Looked // by host; one that is missing does not answer
	known []string                     // hosts
}

func newImages(t *testing.T, hosts ...string) *images {
	s := &images{stage: newStage(t), there: map[string]activities.Looked{}, known: hosts}
	for _, h := range hosts {
		s.there[h] = sees(h, 1)
	}
	play(s.stage, activities.AskConversionActivity, func(in activities.AskConversionRequest) (string, activities.Asked) {
		s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, time.Second)
		return in.Title, activities.Asked{VM: in.Title, Terms: activities.Terms{
			HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute, Format: "raw",
		}}
	})
	play(s.stage, activities.HostsActivity, func(activities.HostsRequest) (string, activities.Hosts) {
		return "", activities.Hosts{IDs: s.known}
	})
	var looks int
	play(s.stage, activities.LookActivity, func(activities.LookRequest) (string, activities.Looked) {
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.known[looks%len(s.known)]
		looks++
		return h, s.there[h]
	})
	play(s.stage, activities.SettleActivity, func(activities.SettleRequest) (string, activities.Host) {
		return "", activities.Host{ID: s.queueHost(), Name: "host"}
	})
	play(s.stage, activities.PrepareImagesActivity, func(in activities.PrepareImagesRequest) (string, struct{}) {
		return in.Images[0].Target.Alone, struct{}{}
	})
	play(s.stage, activities.FinishImagesActivity, func(in activities.FinishImagesRequest) (string, activities.Finished) {
		out := activities.Finished{Dir: "/out", Total: 77}
		for _, i := range in.Images {
			out.Files = append(out.Files, i.Target.Output+"/"+i.Target.Alone)
		}
		return in.Images[0].Target.Alone, out
	})
	return s
}

// queueHost is the host that has the images.
func (s *images) queueHost() string {
	for _, h := range s.known {
		if l, ok := s.there[h]; ok && l.Missing == "" {
			return h
		}
	}
	return ""
}

// sees is what a host that has the images answers.
func sees(host string, free int) activities.Looked {
	return activities.Looked{
		Host: activities.Host{ID: host, Name: "host " + host}, Free: free, Format: activities.FormatFacts{Name: "qcow2", Ext: ".qcow2"},
		Images: []activities.Seen{
			{Image: activities.Image{Format: "vmdk", File: local.Identity{Name: "/in/a.vmdk", Ino: 1}}, Size: 4 * gib, Held: gib},
			{Image: activities.Image{Format: "raw", File: local.Identity{Name: "/in/b.raw", Ino: 2}}, Size: 2 * gib, Held: 3 * gib},
		},
	}
}

func two() job.Conversion {
	return job.Conversion{TargetFormat: "qcow2", Compress: true, ClusterSize: 65536, Disks: []job.ConversionDisk{
		{SourcePath: "/in/a.vmdk", OutputPath: "/out/a.qcow2"}, {SourcePath: "/in/b.raw", SourceFormat: "raw", OutputPath: "/out/b.qcow2"},
	}}
}

func TestConversion(t *testing.T) {
	s := newImages(t, "h1")
	s.ExecuteWorkflow(ConvertWorkflow, two())
	require.NoError(t, s.GetWorkflowError())
	calls := s.called()
	require.Equal(t, []string{"ask-conversion a.vmdk and 1 more", "hosts ", "look-at-images h1", "settle ", "prepare-images a.qcow2"}, calls[:5])
	require.ElementsMatch(t, []string{"transfer-disk a.qcow2", "transfer-disk b.qcow2"}, calls[5:7])
	require.ElementsMatch(t, []string{"verify-disk a.qcow2", "verify-disk b.qcow2"}, calls[7:9])
	require.Equal(t, []string{"finish-images a.qcow2", "leave completed", "release " + testID}, calls[9:])
	for call, queue := range s.queues {
		if call == "ask-conversion a.vmdk and 1 more" || call == "hosts " {
			require.Equal(t, Queue, queue, call)
		} else {
			require.Equal(t, HostQueue("h1"), queue, call)
		}
	}
	prepared := s.last[activities.PrepareImagesActivity].(activities.PrepareImagesRequest)
	require.EqualValues(t, gib/2, prepared.Images[0].Need, "what it holds, and half of that compressed")
	require.EqualValues(t, gib, prepared.Images[1].Need, "never more than the disk has")
	require.Equal(t, &formats.CreateOptions{Compression: "zlib", ClusterSize: 65536}, prepared.Images[0].Target.Create)

	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.True(t, r.Success)
	require.Equal(t, []string{"/out/a.qcow2", "/out/b.qcow2"}, r.Files)
	require.Equal(t, job.DiskResult{
		Disk: "/in/a.vmdk", File: "a.qcow2", Format: "qcow2", Size: 4 * gib, Stored: gib, Read: 2 * gib,
		Digest: "sha256-1m:a.qcow2", SHA256: "sum of a.qcow2",
	}, r.Disks[0])
	require.Equal(t, job.Done, s.status().Progress.Phase)
	require.True(t, s.left.Clean)
}

func TestConversionWithoutVerification(t *testing.T) {
	s := newImages(t, "h1")
	in := two()
	in.NoVerify = true
	s.ExecuteWorkflow(ConvertWorkflow, in)
	require.NoError(t, s.GetWorkflowError())
	require.NotContains(t, s.called(), "verify-disk a.qcow2")
}

// A job goes to the host that has its images, and to the one with the most room where several have.
func TestConversionGoesWhereItsImagesAre(t *testing.T) {
	t.Run("one of three", func(t *testing.T) {
		s := newImages(t, "h1", "h2", "h3")
		s.there["h1"] = activities.Looked{Host: activities.Host{ID: "h1", Name: "one"}, Missing: "no such file"}
		s.there["h3"] = activities.Looked{Host: activities.Host{ID: "h3", Name: "three"}, Missing: "no such file"}
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.NoError(t, s.GetWorkflowError())
		require.Equal(t, "h2", s.status().Host)
		require.Equal(t, HostQueue("h2"), s.queues["transfer-disk a.qcow2"])
	})
	t.Run("none", func(t *testing.T) {
		s := newImages(t, "h1", "h2")
		for h, name := range map[string]string{"h1": "one", "h2": "two"} {
			s.there[h] = activities.Looked{Host: activities.Host{ID: h, Name: name}, Missing: "a.vmdk: no such file", Reason: providers.NotFound}
		}
		s.ExecuteWorkflow(ConvertWorkflow, two())
		st := s.status()
		require.Equal(t, job.Failed, st.Status)
		require.Contains(t, st.Error, "none of 2 hosts has the images")
		require.Contains(t, st.Error, "one: a.vmdk: no such file")
		require.Contains(t, st.Error, "two: a.vmdk: no such file")
		require.Equal(t, string(providers.NotFound), st.Reason)
		require.Equal(t, []string{"leave failed", "release " + testID}, s.from("leave"))
	})
	t.Run("one that does not answer is asked again", func(t *testing.T) {
		s := newImages(t, "h1")
		s.once["look-at-images h1"] = awayHost()
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.NoError(t, s.GetWorkflowError())
	})
	t.Run("none that answers", func(t *testing.T) {
		s := newImages(t, "h1")
		s.fail["look-at-images h1"] = awayHost()
		s.RegisterDelayedCallback(func() {
			require.Contains(t, s.status().Progress.WaitingFor, "host h1, which does not answer")
		}, time.Minute)
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, job.Failed, s.status().Status)
		require.Contains(t, s.status().Error, "no host answers")
	})
	t.Run("an image that cannot be read", func(t *testing.T) {
		s := newImages(t, "h1")
		s.fail["look-at-images h1"] = refused(providers.Corrupt, "a.vmdk: it is corrupt")
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, "a.vmdk: it is corrupt", s.status().Error)
	})
	t.Run("a host that is lost", func(t *testing.T) {
		s := newImages(t, "h1")
		s.once["transfer-disk b.qcow2"] = awayHost()
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.NoError(t, s.GetWorkflowError())
		require.Contains(t, s.from("transfer-disk"), "look-at-images h1", "its images are looked for again")
	})
}

// What a conversion made is taken back when it fails or is cancelled.
func TestConversionIsUndone(t *testing.T) {
	gone := []string{"discard ", "leave failed", "release " + testID}
	t.Run("a disk fails", func(t *testing.T) {
		s := newImages(t, "h1")
		s.beside("transfer-disk a.qcow2", "transfer-disk b.qcow2", failing(refused(providers.Precondition, "the source changed while it was converted")))
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, job.Failed, s.status().Status)
		require.Equal(t, "b.raw (b.qcow2): the source changed while it was converted", s.status().Error)
		require.Equal(t, gone, s.from("discard"))
	})
	t.Run("it is cancelled", func(t *testing.T) {
		s := newImages(t, "h1")
		s.beside("transfer-disk b.qcow2", "transfer-disk a.qcow2", s.cancelling)
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, job.Cancelled, s.status().Status)
		require.Equal(t, []string{"discard ", "leave cancelled", "release " + testID}, s.from("discard"))
	})
	t.Run("what cannot be removed is told", func(t *testing.T) {
		s := newImages(t, "h1")
		s.fail["prepare-images a.qcow2"] = refused(providers.Exists, "/out/a.qcow2 exists already")
		s.hold["discard "] = func(context.Context) error { return refused(providers.Denied, "read-only") }
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, "/out/a.qcow2 exists already; left behind: hidden files of /out/b.qcow2 (read-only); hidden files of /out/a.qcow2 (read-only)", s.status().Error)
		require.False(t, s.left.Clean)
	})
	t.Run("it is cancelled while it waits", func(t *testing.T) {
		s := newImages(t, "h1")
		s.hold["settle "] = s.cancelling
		s.ExecuteWorkflow(ConvertWorkflow, two())
		require.Equal(t, job.Cancelled, s.status().Status)
		require.Equal(t, []string{"leave cancelled", "release " + testID}, s.from("leave"))
	})
}
