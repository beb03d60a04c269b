package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestCBT(t *testing.T) {
	l := newLab(t)
	var got job.Action
	l.temporal.Operate(func(o job.Operation) (*job.Operated, error) {
		got = o.Action
		return &job.Operated{Message: "so it is", Tracking: &providers.TrackingStatus{Disks: []providers.DiskTracking{
			{ID: "2000", Label: "Hard disk 1", Tracked: true}, {ID: "2001", Label: "Hard disk 2", Missing: "it is independent"},
		}}}, nil
	})
	require.Equal(t, "so it is\n", l.ok("cbt", "enable", "db-01"))
	require.Equal(t, job.EnableCBT, got)
	require.Equal(t, "so it is\n", l.ok("cbt", "disable", "db-01"))
	require.Equal(t, job.DisableCBT, got)
	out := l.ok("cbt", "status", "db-01")
	require.Equal(t, job.ReportCBT, got)
	require.Regexp(t, `(?s)2000 +Hard disk 1 +yes.*2001 +Hard disk 2 +no +it is independent\s+so it is\n$`, out)
	require.Contains(t, l.ok("cbt", "status", "db-01", "--json"), `"missing": "it is independent"`)
}
