package endtoend

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// segment is what a kill may cost for each disk.
const segment = 64 * mib

func TestKilledDaemonGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 400*mib)}})
	l.up()
	for i, s := range []job.Spec{{Format: "raw"}, {Format: "qcow2"}, {Format: "qcow2", Compress: true}} {
		t.Run(fmt.Sprintf("%s compressed %t", s.Format, s.Compress), func(t *testing.T) {
			l.sim.ResetRecord()
			s.VMPath, s.OutputPath = "web-01", fmt.Sprintf("%s/%d", l.exports, i)
			require.NoError(t, os.MkdirAll(s.OutputPath, 0o755))
			s.Options.LimitMBps = 100
			id := l.submit(s)
			l.moved(id, 150*mib)
			l.daemon.kill()
			l.up()
			l.unlimited(id)
			j := l.completed(id, "web-01", 2*time.Minute)
			c, err := l.sim.ServedDisk("web-01", 0)
			require.NoError(t, err)
			require.LessOrEqual(t, c.Again(), int64(segment), "a kill costs at most one segment of reading")
			require.EqualValues(t, 400*mib, c.Distinct())
			require.Positive(t, j.Result.Disks[0].Retries)
		})
	}
}

func TestCleanStopLosesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 300*mib, 100*mib)}})
	l.up()
	s := l.spec("web-01", "qcow2")
	s.Options.LimitMBps = 60
	id := l.submit(s)
	l.moved(id, 80*mib)
	begin := time.Now()
	require.Zero(t, l.daemon.stop(30*time.Second))
	t.Logf("stopped in %s", time.Since(begin))
	require.Empty(t, l.sim.Sessions())
	l.up()
	l.unlimited(id)
	l.completed(id, "web-01", 2*time.Minute)
	for i := range 2 {
		c, err := l.sim.ServedDisk("web-01", i)
		require.NoError(t, err)
		require.LessOrEqual(t, c.Again(), int64(16*mib), "what was read was recorded")
	}
}

// The daemon is killed again and again, wherever it happens to be.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := 4
	if slow {
		kills = 10
	}
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 150*mib, 90*mib), vm("db-01", 64*mib)}})
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	l.up()
	s, s2 := l.spec("web-01", "qcow2"), l.spec("db-01", "raw")
	s.Compress, s.Options.LimitMBps = true, 12
	s2.Options.LimitMBps = 6
	web, db := l.submit(s), l.submit(s2)
	for i := range kills {
		alive := time.Duration(500+r.IntN(4000)) * time.Millisecond
		t.Logf("kill %d after %s", i+1, alive)
		pause(t, alive)
		l.daemon.kill()
		l.up()
	}
	for _, id := range []string{web, db} {
		l.unlimited(id)
	}
	for _, id := range []string{web, db} {
		l.end(id, 3*time.Minute)
	}
	l.completed(web, "web-01", time.Minute)
	l.completed(db, "db-01", time.Minute)
	for _, d := range []struct {
		vm   string
		disk int
		size int64
	}{{"web-01", 0, 150 * mib}, {"web-01", 1, 90 * mib}, {"db-01", 0, 64 * mib}} {
		c, err := l.sim.ServedDisk(d.vm, d.disk)
		require.NoError(t, err)
		require.Equal(t, d.size, c.Distinct())
		require.LessOrEqual(t, c.Again(), int64(kills*segment))
	}
}

// pause lets the daemon do what it does for a moment that only chance chooses.
func pause(t *testing.T, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

func TestPauseResumeLimitCancel(t *testing.T) {
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 600*mib)}})
	l.up()
	s := l.spec("web-01", "qcow2")
	s.Options.LimitMBps = 30
	id := l.submit(s)
	l.moved(id, 10*mib)

	_, err := l.api.Pause(t.Context(), id)
	require.NoError(t, err)
	l.until(id, 5*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused })
	quiet := func() int64 {
		c, err := l.sim.ServedDisk("web-01", 0)
		require.NoError(t, err)
		return c.Sent()
	}
	var before int64
	l.eventually(10*time.Second, "no byte moves any more", func() bool {
		before = quiet()
		pause(t, 1500*time.Millisecond)
		return quiet() == before
	})
	_, err = l.api.Resume(t.Context(), id)
	require.NoError(t, err)
	l.eventually(10*time.Second, "bytes move again", func() bool { return quiet() > before })

	_, err = l.api.Limit(t.Context(), id, 5)
	require.NoError(t, err)
	l.until(id, 5*time.Second, "the limit is told", func(j job.Job) bool { return j.Progress.LimitMBps == 5 })
	pause(t, 3*time.Second) // the bucket of the old limit runs out
	from, begin := quiet(), time.Now()
	pause(t, 4*time.Second)
	rate := float64(quiet()-from) / time.Since(begin).Seconds() / 1e6
	require.InDelta(t, 5, rate, 3, "MB/s under a limit of 5")

	begin = time.Now()
	out, err := l.api.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, []string{id}, out.Cancelled)
	l.eventually(2*time.Second+500*time.Millisecond, "no byte moves after a cancel", func() bool {
		a := quiet()
		pause(t, 300*time.Millisecond)
		return quiet() == a
	})
	j := l.end(id, 20*time.Second)
	t.Logf("cancelled and clean after %s", time.Since(begin))
	require.Equal(t, job.Cancelled, j.Status)
	l.tidy("web-01")
	out, err = l.api.Cancel(t.Context(), id, "no-such-job")
	require.NoError(t, err)
	require.Empty(t, out.Cancelled)
	require.Len(t, out.Errors, 2)
}
