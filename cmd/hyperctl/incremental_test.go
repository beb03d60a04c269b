package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/apiservertest"
	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

var aTime = job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local)}

func anAnalysis() *job.Analysis {
	return &job.Analysis{
		CanIncremental: true, Reason: "what changed since the last point is known, but of Hard disk 2 not: the disk was resized",
		EstimatedSavingsBytes: 6 << 30, VMName: "db-01", ChangedBytes: 2 << 30, TotalBytes: 40 << 30, AllocatedBytes: 8 << 30,
		EstimatedDuration: "20s", EstimatedFullDuration: "1m25s", Warnings: []string{"Hard disk 3 is not tracked: it is independent"},
		LastPoint: &job.AnalyzedPoint{Number: 7, Time: aTime, Folder: "/backups/db-01", Host: "h1"},
		Disks: []job.AnalyzedDisk{
			{Disk: "2000", Label: "Hard disk 1", Size: 30 << 30, AllocatedBytes: 7 << 30, ChangedBytes: 1 << 30, CanIncremental: true, By: cbt.Tracked},
			{Disk: "2001", Label: "Hard disk 2", Size: 10 << 30, AllocatedBytes: 1 << 30, ChangedBytes: 1 << 30, Reason: "the disk was resized"},
		},
	}
}

func TestIncrementalAnalyze(t *testing.T) {
	l := newLab(t)
	var got job.Operation
	l.temporal.Operate(func(o job.Operation) (*job.Operated, error) {
		got = o
		return &job.Operated{Analysis: anAnalysis()}, nil
	})
	golden(t, "incremental-analyze", l.ok("incremental", "analyze", "db-01", "--output", "/backups", "--limit", "100"))
	require.Equal(t, job.Analyze, got.Action)
	require.Equal(t, "/backups", got.Analyze.Output)
	require.EqualValues(t, 100, got.Analyze.LimitMBps)
	require.Contains(t, l.ok("incremental", "analyze", "db-01", "--json"), `"estimated_savings_bytes": 6442450944`)

	l.temporal.Operate(func(job.Operation) (*job.Operated, error) {
		return nil, temporal.NewNonRetryableApplicationError("the chain is in use", string(providers.Precondition), nil)
	})
	code, _, errs := l.run("incremental", "analyze", "db-01")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "the chain is in use")
	code, _, _ = l.run("incremental", "analyze", "nobody")
	require.Equal(t, exitNotFound, code)
}

func TestIncrementalList(t *testing.T) {
	l := newLab(t)
	var got job.ChainQuery
	l.temporal.Chains(func(q job.ChainQuery) (*job.ChainView, error) {
		got = q
		return &job.ChainView{ID: "6f1d1c0a9f5e4a0b8d3c2b1a09f8e7d6", VM: job.ChainVM{ID: "vm-1", Name: "db-01"}, Path: "/backups/db-01", Host: "h1", Total: 9, Stored: 3 << 30,
			Points: []job.ChainPoint{
				{Number: 7, Time: aTime, Disks: []job.ChainDisk{
					{Disk: "2000", Size: 30 << 30, Full: true, Reason: "merged from points 1 to 7", Changed: 30 << 30, Stored: 2 << 30, File: "disk0-000007.qcow2"},
					{Disk: "2001", Size: 10 << 30, Full: true, Reason: "the disk was not there at point 6", Changed: 10 << 30, Stored: 1 << 29, File: "disk1-000007.qcow2"},
				}},
				{Number: 8, Parent: 7, Time: aTime, Disks: []job.ChainDisk{
					{Disk: "2000", Size: 30 << 30, By: cbt.Tracked, Changed: 1 << 28, Stored: 1 << 28, File: "disk0-000008.qcow2"},
					{Disk: "2001", Size: 10 << 30, By: cbt.Compared, File: "disk1-000008.qcow2"},
				}},
			}}, nil
	})
	golden(t, "incremental-list", l.ok("incremental", "list", "/backups/db-01"))
	require.Equal(t, job.ChainQuery{Path: "/backups/db-01"}, got)
	l.ok("incremental", "list", "--vm", "vm-1", "--output", "/backups", "--host", "h1")
	require.Equal(t, job.ChainQuery{Output: "/backups", VM: "db-01", Host: "h1"}, got)
	require.Contains(t, l.ok("incremental", "list", "/backups/db-01", "--json"), `"total": 9`)

	l.temporal.Chains(nil)
	code, _, errs := l.run("incremental", "list", "/backups/db-01")
	require.Equal(t, exitNotFound, code)
	require.Contains(t, errs, "not found")
	for _, args := range []string{"", "/a /b", "/a --vm x"} {
		code, _, errs := l.run(append([]string{"incremental", "list"}, strings.Fields(args)...)...)
		require.Equal(t, exitUsage, code, errs)
	}
}

func TestWorkOnAChain(t *testing.T) {
	for _, c := range []struct {
		args string
		want job.ChainWork
	}{
		{"check /b/db-01", job.ChainWork{Action: job.CheckChain, Depth: "links"}},
		{"check /b/db-01 --depth data --limit 5 --priority 7 --name mine", job.ChainWork{Action: job.CheckChain, Depth: "data", LimitMBps: 5, Priority: 7, Name: "mine"}},
		{"merge /b/db-01 --up-to 7", job.ChainWork{Action: job.MergeChain, UpTo: 7}},
		{"flatten /b/db-01 -O QCOW2 -o /r/", job.ChainWork{Action: job.FlattenChain, TargetFormat: "qcow2", OutputPath: "/r"}},
		{"flatten /b/db-01 --point 3 --disk 2000 -O raw -o /r/a.img -c --overwrite", job.ChainWork{Action: job.FlattenChain, Point: 3, Disk: "2000",
			TargetFormat: "raw", OutputPath: "/r/a.img", Compress: true, Overwrite: true}},
		{"delete /b/db-01 --point 9", job.ChainWork{Action: job.DeletePoint, Point: 9}},
	} {
		l := newLab(t)
		id := strings.TrimSpace(l.ok(append([]string{"incremental"}, strings.Fields(c.args)...)...))
		run, ok := l.temporal.Run(id)
		require.True(t, ok, c.args)
		c.want.Path = "/b/db-01"
		require.Equal(t, c.want, run.Memo[workflows.MemoChain], c.args)
		require.Contains(t, l.ok("query"), job.ChainWork.Title(c.want))
		status := l.ok("status", id)
		require.Regexp(t, `Chain +/b/db-01`, status)
		require.NotContains(t, status, "()")
	}
	for args, says := range map[string]string{
		"check": "needs the folder of a chain", "merge /b": "--up-to names the point", "flatten /b": "-O names the format",
		"flatten /b -O floppy -o /r": "floppy",
	} {
		l := newLab(t)
		code, _, errs := l.run(append([]string{"incremental"}, strings.Fields(args)...)...)
		require.Equal(t, exitUsage, code, args)
		require.Contains(t, errs, says)
		require.Empty(t, l.temporal.IDs())
	}
}

// On a terminal a person is asked before points are given up.
func TestPointsAreNotGivenUpUnasked(t *testing.T) {
	for _, args := range []string{"merge /b/db-01 --up-to 7", "delete /b/db-01"} {
		l := newLab(t)
		l.ask = func(string) (string, error) { return "", nil }
		l.in = "n\n"
		code, _, errs := l.run(append([]string{"incremental"}, strings.Fields(args)...)...)
		require.Equal(t, exitFailure, code)
		require.Contains(t, errs, "/b/db-01? [y/N]")
		require.Empty(t, l.temporal.IDs())
		l.ok(append([]string{"incremental", "--json"}, strings.Fields(args+" --yes")...)...)
	}
}

// A check that is followed shows what it found.
func TestCheckThatIsFollowed(t *testing.T) {
	l := newLab(t)
	l.temporal.Add(apiservertest.Run{ID: "c1", Type: workflows.ChainWorkflow, Memo: map[string]any{
		workflows.MemoChain: job.ChainWork{Action: job.CheckChain, Path: "/b/db-01"}, workflows.MemoSpec: job.ChainWork{Action: job.CheckChain, Path: "/b/db-01"}.Definition(),
	}})
	l.temporal.Change("c1", func(r *apiservertest.Run) {
		r.End(job.Failed, &job.Result{OutputDir: "/b/db-01", Chain: &job.ChainResult{Action: job.CheckChain, Check: &job.ChainCheck{
			Depth: "data", Links: 12, Damage: 150, Problems: []cbt.Problem{{Point: 2, Disk: "2000", File: "disk0-000002.qcow2", What: "it is missing"}},
		}}}, "150 problems, the first: point 2")
	})
	out := l.ok("status", "c1")
	require.Contains(t, out, "150 problems, the first")
	require.Regexp(t, `2 +2000 +disk0-000002.qcow2 +it is missing`, out)
	require.Contains(t, out, "149 more.")
	code, _, errs := l.run("watch", "c1")
	require.Equal(t, exitJobFailed, code, errs)
}
