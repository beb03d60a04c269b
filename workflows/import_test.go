package workflows

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// importStage is a stage on which a package lies on host h2.
func importStage(t *testing.T) *stage {
	t.Helper()
	s := newStage(t)
	play(s, activities.AskImportActivity, func(in activities.AskImportRequest) (string, activities.Asked) {
		s.RegisterDelayedCallback(func() { s.SignalWorkflow(SignalAdmitted, nil) }, time.Second)
		return in.Spec.Title(), activities.Asked{VM: in.Spec.Title(), Terms: activities.Terms{
			HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute,
		}}
	})
	play(s, activities.HostsActivity, func(activities.HostsRequest) (string, activities.Hosts) {
		return "", activities.Hosts{IDs: []string{"h2"}}
	})
	play(s, activities.LookPackageActivity, func(in activities.LookPackageRequest) (string, activities.Looked) {
		return in.Path, activities.Looked{Host: activities.Host{ID: "h2", Name: "two"}, Free: 3}
	})
	play(s, activities.SettleActivity, func(activities.SettleRequest) (string, activities.Host) {
		return "", activities.Host{ID: "h2", Name: "two"}
	})
	target := providers.ImportTarget{Name: "web-01", Folder: "/dc/vm", Datastore: "/dc/datastore/a"}
	play(s, activities.PlanImportActivity, func(in activities.PlanImportRequest) (string, activities.PlannedImport) {
		return in.Key, activities.PlannedImport{Target: target, Files: []activities.PackedFile{{Name: "a.vmdk", Size: 100}, {Name: "b.vmdk", Size: 20}}}
	})
	play(s, activities.ImportPackageActivity, func(in activities.ImportRequest) (string, activities.Imported) {
		return in.Key, activities.Imported{VM: "vm-7", Name: "web-01", Path: "/dc/vm/web-01", Attempts: 1}
	})
	play(s, activities.DiscardImportActivity, func(in activities.DiscardImportRequest) (string, struct{}) { return in.Key, struct{}{} })
	return s
}

var importSpec = job.ImportSpec{PackagePath: "/exports/web-01.ova", Connection: "lab", LimitMBps: 7}

func TestImport(t *testing.T) {
	s := importStage(t)
	s.ExecuteWorkflow(ImportWorkflow, importSpec)
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{
		"ask-import web-01", "hosts ", "look-at-package /exports/web-01.ova", "settle ", "plan-import " + testID, "import-package " + testID,
		"leave completed", "release " + testID,
	}, s.called())
	require.Equal(t, HostQueue("h2"), s.queues["import-package "+testID])
	in := s.last[activities.ImportPackageActivity].(activities.ImportRequest)
	require.Equal(t, "/dc/datastore/a", in.Target.Datastore, "what the plan found")
	require.InDelta(t, 7, in.Limits.MBps, 0)
	require.True(t, s.left.Clean)
	got := s.status()
	require.Equal(t, job.Completed, got.Status)
	require.Equal(t, "/dc/vm/web-01", got.Result.VMPath)
	require.EqualValues(t, 120, got.Result.TotalSize)
}

// What an import has begun is taken back, wherever that can be done from.
func TestImportThatFails(t *testing.T) {
	s := importStage(t)
	s.fail["import-package "+testID] = refused(providers.Corrupt, "a.vmdk is damaged")
	s.ExecuteWorkflow(ImportWorkflow, importSpec)
	require.Error(t, s.GetWorkflowError())
	require.Equal(t, []string{"import-package " + testID, "discard-import " + testID, "leave failed", "release " + testID}, s.from("import-package"))
	require.Equal(t, "a.vmdk is damaged", s.status().Error)
	require.Equal(t, "corrupt", s.status().Reason)

	s = importStage(t)
	s.fail["plan-import "+testID] = refused(providers.NotFound, "there is no such datastore")
	s.ExecuteWorkflow(ImportWorkflow, importSpec)
	require.Equal(t, []string{"plan-import " + testID, "leave failed", "release " + testID}, s.from("plan-import"), "nothing was begun")

	s = importStage(t)
	s.fail["import-package "+testID] = refused(providers.Denied, "no")
	s.fail["discard-import "+testID] = refused(providers.Denied, "no")
	s.ExecuteWorkflow(ImportWorkflow, importSpec)
	require.Contains(t, s.status().Error, "left behind: unfinished VM web-01 in /dc/vm (no)")
	require.False(t, s.left.Clean, "the host goes on to clean up")
}

func TestImportSpec(t *testing.T) {
	require.Empty(t, importSpec.Validate())
	require.Equal(t, "web-01", importSpec.Title())
	require.Equal(t, "given", job.ImportSpec{PackagePath: "/a.ova", Name: "given"}.Target("package's").Name)
	require.Equal(t, "package's", job.ImportSpec{PackagePath: "/a.ova"}.Target("package's").Name)
	for field, change := range map[string]func(*job.ImportSpec){
		"package_path": func(i *job.ImportSpec) { i.PackagePath = "web-01.ova" },
		"name":         func(i *job.ImportSpec) { i.Name = "a\nb" },
		"networks":     func(i *job.ImportSpec) { i.Networks = map[string]string{"a": " "} },
		"limit_mbps":   func(i *job.ImportSpec) { i.LimitMBps = -1 },
		"priority":     func(i *job.ImportSpec) { i.Priority = 101 },
		"datastore":    func(i *job.ImportSpec) { i.Datastore = "\xff" },
	} {
		one := importSpec
		change(&one)
		faults := one.Validate()
		require.Len(t, faults, 1, field)
		require.Equal(t, field, faults[0].Field)
	}
	require.Contains(t, job.ImportSpec{PackagePath: "/a.vmdk"}.Validate()[0].Message, ".ova or .ovf")
}
