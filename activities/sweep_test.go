package activities

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
)

func TestSweep(t *testing.T) {
	for _, c := range []struct {
		name   string
		engine func(*engine)
		stays  bool // what the job has on the host
		snap   bool // its snapshot
	}{
		{"running here", func(e *engine) { e.where["job-1"] = "h1" }, true, true},
		{"between hosts", func(*engine) {}, true, true},
		{"went on elsewhere", func(e *engine) { e.where["job-1"] = "h2" }, false, true},
		{"ended", func(e *engine) { e.ended["job-1"] = true }, false, false},
		{"of another cluster", func(e *engine) { e.ended["job-1"], e.home = true, "elsewhere" }, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			_, err := b.prepare(func(in *PrepareRequest) { in.Connection = "job:1" })
			require.NoError(t, err)
			_, err = call(b, b.control.Snapshot, SnapshotRequest{Job: "job-1", VM: "vm-42", Key: "hypersdk-job-1"})
			require.NoError(t, err)
			_, err = b.transfer()
			require.NoError(t, err)
			c.engine(b.engine)
			for range 2 {
				require.NoError(t, b.site.Sweep(t.Context()))
				require.Equal(t, c.stays, len(b.names()) > 0)
				require.Equal(t, c.snap, len(b.platform.snapshots) > 0)
			}
			if !c.snap {
				require.Equal(t, []string{"job:1"}, b.conns.forgotten)
			} else {
				require.Empty(t, b.conns.forgotten)
			}
			require.Equal(t, c.stays && c.name == "running here", len(b.site.places.all()) == 1)
		})
	}
}

// What cannot be removed now is tried again, less and less often.
func TestSweepTriesAgain(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.engine.ended["job-1"] = true
	b.conns.err = &providers.Error{Op: "fake: connect", Reason: providers.Unavailable, Msg: "no route to host"}
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		b.conns.onOpen = func() { opened++ }
		for range 24 * 60 {
			require.NoError(t, b.site.Sweep(t.Context()))
			pass(time.Minute)
		}
		require.Less(t, opened, 20)
		require.Greater(t, opened, 8)
		require.FileExists(t, b.site.recordPath("job-1"))
		b.conns.err = nil
		pass(lastRetry)
		require.NoError(t, b.site.Sweep(t.Context()))
		require.NoFileExists(t, b.site.recordPath("job-1"))
	})
}

// Without its connection nothing can be looked for any more.
func TestSweepGivesUp(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.engine.ended["job-1"] = true
	b.conns.err = &providers.Error{Op: "connections: open", Reason: providers.NotFound, Msg: "there is no such connection"}
	require.NoError(t, b.site.Sweep(t.Context()))
	require.NoFileExists(t, b.site.recordPath("job-1"))
	require.Contains(t, b.log(), "the snapshot could not be looked for")
}

func TestOldLogsAreForgotten(t *testing.T) {
	b := newBench(t)
	b.site.logger("job-old").Info("long ago")
	b.site.logger("job-new").Info("just now")
	then := time.Now().Add(-b.site.LogKeep - time.Hour)
	for _, p := range []string{"jobs/job-old/log.jsonl", "jobs/job-old", "jobs/job-new"} {
		require.NoError(t, os.Chtimes(filepath.Join(b.site.Data, p), then, then))
	}
	require.NoError(t, b.site.Sweep(t.Context()))
	require.NoDirExists(t, filepath.Join(b.site.Data, "jobs/job-old"))
	require.DirExists(t, filepath.Join(b.site.Data, "jobs/job-new"))
}

// A host that was away finds its files taken over: they are not its own any more.
func TestSweepOfASharedFolder(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	other := newBench(t, func(c *Config) { c.Host = "h2" })
	other.out, other.platform = b.out, b.platform
	p, err := other.prepare()
	require.NoError(t, err)
	require.Equal(t, "h1", p.TookOver)
	_, err = other.transfer()
	require.NoError(t, err)
	b.engine.where["job-1"] = "h2"
	require.NoError(t, b.site.Sweep(t.Context()))
	require.Len(t, b.names(), 4)
	require.NoFileExists(t, b.site.recordPath("job-1"))
}
