package endtoend

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// track switches change tracking on.
func (l *lab) track(name string) {
	l.t.Helper()
	_, err := l.api.EnableCBT(l.t.Context(), api.VMRequest{Target: api.Target{VMPath: name}})
	require.NoError(l.t, err)
}

// sync starts a warm copy with rounds as fast as they may be.
func (l *lab) sync(name string, change func(*job.SyncSpec)) string {
	l.t.Helper()
	s := job.SyncSpec{VMPath: name, OutputPath: l.exports, Interval: job.Duration(time.Second)}
	change(&s)
	out, err := l.api.Sync(l.t.Context(), "", api.SyncRequest{SyncSpec: s})
	require.NoError(l.t, err)
	return out.JobID
}

// rounds waits until the targets of a warm copy hold a round.
func (l *lab) rounds(id string, n int, within time.Duration) job.Job {
	l.t.Helper()
	return l.until(id, within, "a round is copied", func(j job.Job) bool { return j.Sync != nil && j.Sync.Holds >= n })
}

// next waits for two more rounds: the first may have begun before what was done before.
func (l *lab) next(id string) job.Job {
	l.t.Helper()
	return l.rounds(id, l.job(id).Sync.Holds+2, time.Minute)
}

// writes has the guest write n stretches of up to size bytes here and there.
func (l *lab) writes(r *rand.Rand, name string, disk, n, size int) {
	l.t.Helper()
	img, err := l.sim.Disk(name, disk)
	require.NoError(l.t, err)
	for range n {
		b := make([]byte, 1+r.IntN(size))
		if r.IntN(4) > 0 {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		require.NoError(l.t, l.sim.GuestWrite(name, disk, r.Int64N(img.Size()-int64(len(b))), b))
	}
}

// A VM that is written to is copied in rounds, and the cutover by the command line shuts it down: the copy
// is the disk that was left.
func TestWarmCopy(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{guest("web-01", 300*time.Millisecond, 90*mib, 40*mib+512)}})
	l.up()
	l.track("web-01")
	r := rand.New(rand.NewPCG(1, 2))
	id := l.sync("web-01", func(s *job.SyncSpec) { s.Shutdown, s.Name = true, "move web-01" })
	l.rounds(id, 1, time.Minute)
	require.NotEmpty(t, l.hidden(), "nothing has its name before the cutover")
	require.NoFileExists(t, l.exports+"/web-01/manifest.json")
	for range 3 {
		l.writes(r, "web-01", 0, 20, 100<<10)
		l.writes(r, "web-01", 1, 5, 3*mib)
		l.next(id)
	}
	j := l.until(id, 20*time.Second, "it waits", func(j job.Job) bool { return j.Progress.Phase == job.Wait && j.Sync.Forecast != nil })
	require.Equal(t, job.Sync, j.Kind)
	require.Contains(t, j.Progress.WaitingFor, "round ")
	first, changed := j.Sync.Rounds[0], int64(0)
	for _, r := range j.Sync.Rounds[1:] {
		require.Empty(t, r.Notes)
		require.LessOrEqual(t, r.Read, r.Changed+r.Changed/10)
		require.Less(t, r.Read, first.Changed)
		changed += r.Changed
	}
	require.Positive(t, changed)
	require.Positive(t, j.Sync.Forecast.Downtime)

	out, errs, code := l.hyperctl("sync", "status", id)
	require.Zero(t, code, errs)
	require.Contains(t, out, "down for ")
	require.Contains(t, out, "ROUND")
	l.writes(r, "web-01", 0, 20, 100<<10)
	out, errs, code = l.hyperctl("sync", "cutover", id, "--follow")
	require.Zero(t, code, "%s%s", out, errs)
	require.Contains(t, out, "cuts over; the downtime is forecast to be ")
	j = l.completed(id, "web-01", time.Minute)
	require.Equal(t, providers.PowerOff, l.info("web-01").PowerState, "it stays off")
	require.True(t, j.Sync.Rounds[len(j.Sync.Rounds)-1].Final)
	require.Equal(t, []string{"qcow2", "qcow2"}, []string{j.Result.Disks[0].Format, j.Result.Disks[1].Format})
	out, _, code = l.hyperctl("query", "--all")
	require.Zero(t, code)
	require.Contains(t, out, "move web-01")
}

// Killed in the first round and in a later one, it costs a segment each time.
func TestWarmCopyIsKilled(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			const size, delta = 200 * mib, 120 * mib
			l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", size)}})
			l.up()
			l.track("web-01")
			id := l.sync("web-01", func(s *job.SyncSpec) { s.Format, s.LimitMBps, s.Interval = format, 40, job.Duration(2*time.Second) })
			l.moved(id, 60*mib)
			l.daemon.kill()
			l.up()
			l.unlimited(id)
			l.rounds(id, 1, time.Minute)
			l.sim.ResetRecord()
			_, err := l.api.Limit(t.Context(), id, 40)
			require.NoError(t, err)
			r := rand.New(rand.NewPCG(3, 4))
			noise := make([]byte, delta)
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			require.NoError(t, l.sim.GuestWrite("web-01", 0, 10*mib, noise))
			l.until(id, time.Minute, "a round is half copied", func(j job.Job) bool {
				return j.Progress.Phase == job.Transfer && len(j.Progress.Disks) == 1 && j.Progress.Disks[0].Read > 60*mib
			})
			l.daemon.kill()
			require.NotEmpty(t, l.hidden())
			l.up()
			l.unlimited(id)
			l.next(id)
			served, err := l.sim.ServedDisk("web-01", 0)
			require.NoError(t, err)
			require.LessOrEqual(t, served.Sent(), int64(delta+segment+mib), "a kill costs at most one segment of reading")
			_, err = l.api.Cutover(t.Context(), id)
			require.NoError(t, err)
			l.completed(id, "web-01", time.Minute)
		})
	}
}

// Killed wherever it happens to be, while the guest writes on, it comes to the right end.
func TestWarmCopyIsKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := 4
	if slow {
		kills = 15
	}
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 60*mib, 20*mib)}})
	l.up()
	l.track("web-01")
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	id := l.sync("web-01", func(s *job.SyncSpec) { s.LimitMBps = 25 })
	for i := range kills {
		alive := time.Duration(500+r.IntN(4000)) * time.Millisecond
		t.Logf("kill %d after %s", i+1, alive)
		l.writes(r, "web-01", 0, 30, mib)
		l.writes(r, "web-01", 1, 10, 200<<10)
		pause(t, alive)
		l.daemon.kill()
		l.up()
	}
	l.unlimited(id)
	l.next(id)
	_, err := l.api.Cutover(t.Context(), id)
	require.NoError(t, err)
	l.completed(id, "web-01", time.Minute)
}

// What the tracker lost is found by comparison, and a disk that grew is copied anew; both are told.
func TestWarmCopyWithoutTheTracker(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 30*mib), vm("plain", 24*mib)}})
	l.up()
	l.track("web-01")
	r := rand.New(rand.NewPCG(5, 6))
	id := l.sync("web-01", func(s *job.SyncSpec) {})
	l.rounds(id, 2, time.Minute)
	l.writes(r, "web-01", 0, 10, 100<<10)
	require.NoError(t, l.sim.ResetTracking("web-01"))
	l.writes(r, "web-01", 0, 10, 100<<10)
	j := l.next(id)
	noted := func(j job.Job, what string) bool {
		return slices.ContainsFunc(j.Sync.Rounds, func(r job.SyncRound) bool { return strings.Contains(strings.Join(r.Notes, "\n"), what) })
	}
	require.True(t, noted(j, "Hard disk 1 was compared: "), "%+v", j.Sync.Rounds)
	l.writes(r, "web-01", 0, 10, 100<<10)
	j = l.next(id)
	require.Empty(t, j.Sync.Rounds[len(j.Sync.Rounds)-1].Notes, "from then on it is tracked again")
	_, err := l.api.Cutover(t.Context(), id)
	require.NoError(t, err)
	j = l.completed(id, "web-01", time.Minute)
	require.Equal(t, providers.PowerOn, l.info("web-01").PowerState)

	// Not tracked at all, and cut over by itself once little enough changes.
	id = l.sync("plain", func(s *job.SyncSpec) { s.Format, s.Cutover, s.ThresholdBytes = "raw", job.CutoverAuto, 2*mib })
	l.rounds(id, 1, time.Minute)
	l.writes(r, "plain", 0, 1, 100<<10)
	j = l.completed(id, "plain", time.Minute)
	require.True(t, noted(j, "its changes are not tracked"))
	require.Contains(t, j.Sync.Ready, "at most 2097152 were wanted")
}

// A guest that does not shut down calls the cutover off: rounds go on, and nothing is lost. Cancelled, the
// job leaves nothing.
func TestWarmCopyIsCalledOff(t *testing.T) {
	t.Parallel()
	stubborn := guest("web-01", 0, 20*mib)
	stubborn.Stubborn = true
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{stubborn}})
	l.up()
	l.track("web-01")
	id := l.sync("web-01", func(s *job.SyncSpec) {
		s.Shutdown, s.ShutdownTimeout, s.Interval = true, job.Duration(time.Second), job.Duration(time.Hour)
	})
	l.rounds(id, 1, time.Minute)
	_, err := l.api.Cutover(t.Context(), id)
	require.NoError(t, err)
	j := l.until(id, time.Minute, "the cutover is called off", func(j job.Job) bool { return j.Sync.CalledOff != "" && j.Sync.Holds == 2 })
	require.Contains(t, j.Sync.CalledOff, "did not shut down within 1s")
	require.False(t, j.Sync.CutoverAsked)
	require.Equal(t, providers.PowerOn, l.info("web-01").PowerState)
	_, errs, code := l.hyperctl("sync", "cutover", id, "--follow")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "the cutover was called off: the guest did not shut down within 1s; the rounds go on")

	_, err = l.api.Pause(t.Context(), id)
	require.NoError(t, err)
	l.until(id, 5*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused })
	begin := time.Now()
	_, err = l.api.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, job.Cancelled, l.end(id, 10*time.Second).Status)
	t.Logf("cancelled and clean after %s", time.Since(begin))
	l.tidy("web-01")
}

// Its history begins anew every so many rounds; the job does not.
func TestWarmCopyGoesOnForLong(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib)}})
	l.up()
	l.track("web-01")
	id := l.sync("web-01", func(s *job.SyncSpec) {})
	j := l.rounds(id, 2, time.Minute)
	created, run := j.CreatedAt, j.TemporalURL
	r := rand.New(rand.NewPCG(7, 8))
	for n := 3; n <= 34; n++ {
		l.writes(r, "web-01", 0, 2, 10<<10)
		l.rounds(id, n, time.Minute)
	}
	j = l.job(id)
	require.NotEqual(t, run, j.TemporalURL, "another run")
	require.Equal(t, created, j.CreatedAt)
	require.Len(t, j.Sync.Rounds, job.MaxSyncRounds)
	require.Equal(t, job.Running, j.Status)
	all, err := l.api.Jobs(t.Context(), api.Query{All: true})
	require.NoError(t, err)
	require.Len(t, all.Jobs, 1, "one job, however many runs")
	_, err = l.api.Cutover(t.Context(), id)
	require.NoError(t, err)
	l.completed(id, "web-01", time.Minute)
}

func TestWarmCopyRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib)}})
	l.up()
	ctx := t.Context()
	for field, s := range map[string]job.SyncSpec{
		"format":      {VMPath: "web-01", OutputPath: "/x", Format: "vmdk"},
		"interval":    {VMPath: "web-01", OutputPath: "/x", Interval: job.Duration(time.Millisecond)},
		"cutover":     {VMPath: "web-01", OutputPath: "/x", Cutover: job.CutoverAuto},
		"parallel":    {VMPath: "web-01", OutputPath: "/x", Parallel: 1000},
		"output_path": {VMPath: "web-01", OutputPath: "x"},
	} {
		_, err := l.api.Sync(ctx, "", api.SyncRequest{SyncSpec: s})
		require.Equal(t, 422, refused(t, err), field)
		require.ErrorContains(t, err, field)
	}
	_, err := l.api.Cutover(ctx, "nobody")
	require.Equal(t, 404, refused(t, err))
	id := l.submit(l.spec("web-01", "raw"))
	l.end(id, time.Minute)
	_, err = l.api.Cutover(ctx, id)
	require.Equal(t, 409, refused(t, err))

	s := api.SyncRequest{SyncSpec: job.SyncSpec{VMPath: "nobody", OutputPath: l.exports}}
	first, err := l.api.Sync(ctx, "key", s)
	require.NoError(t, err)
	second, err := l.api.Sync(ctx, "key", s)
	require.NoError(t, err)
	require.Equal(t, first.JobID, second.JobID)
	require.Equal(t, job.Failed, l.end(first.JobID, time.Minute).Status)
	s.MaxRounds = 3
	_, err = l.api.Sync(ctx, "key", s)
	require.Equal(t, 409, refused(t, err))
}
