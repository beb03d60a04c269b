package activities

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestPointsOfAChain(t *testing.T) {
	b, p := newLedger(t, 8, 4)
	first := p.point("job-1")
	require.EqualValues(t, 1, first.Point.Number)
	require.EqualValues(t, 12*mib, first.Point.Changed)
	require.Equal(t, []cbt.Point{"", ""}, p.asked, "of a first copy the platform is asked what is allocated")
	for i, d := range first.Disks {
		require.True(t, d.Full)
		require.Equal(t, "first point of the chain", d.Reason)
		require.Equal(t, int64(len(p.disks[i].data)/2), d.Read, "what is not allocated is not read")
	}

	p.guest(0, 3*mib+100, 1000)
	p.guest(0, 6*mib, 64<<10)
	second := p.point("job-2")
	require.EqualValues(t, 2, second.Point.Number)
	require.EqualValues(t, 1, second.Point.Parent)
	require.Equal(t, first.Point.Chain, second.Point.Chain)
	d := second.Disks[0]
	require.False(t, d.Full)
	require.Equal(t, "tracking", d.By)
	require.EqualValues(t, 128<<10, d.Changed, "two clusters")
	require.EqualValues(t, 128<<10, d.Read)
	require.Equal(t, "disk0-000001.qcow2", d.Backing)
	require.Zero(t, second.Disks[1].Read, "the second disk is as it was")
	require.Equal(t, []string{b.path("disk0-000002.qcow2"), b.path("disk0-000002.digests"), b.path("disk1-000002.qcow2"),
		b.path("disk1-000002.digests"), b.path("chain.json")}, second.Files)
	var size int64
	for _, f := range second.Files {
		st, err := os.Stat(f)
		require.NoError(t, err)
		size += st.Size()
	}
	require.Equal(t, size, second.Total)
	for _, n := range b.names() {
		require.True(t, !strings.HasPrefix(n, ".") || n == ".lock", "%s is left", n)
	}
	p.same("job-1", 1)
}

// Which doubt means what.
func TestWhatIsReadOfADisk(t *testing.T) {
	lost := &providers.Error{Op: "fake", Reason: providers.TrackingLost, Msg: "it was reset"}
	for _, c := range []struct {
		name   string
		before func(*ledger) // the first point
		then   func(*ledger)
		ask    func(*AppendRequest)
		want   job.DiskResult // Full, By and Reason
		read   int64
	}{
		{name: "tracked", want: job.DiskResult{By: "tracking"}, read: 64 << 10},
		{name: "asked for in full", ask: func(in *AppendRequest) { in.Full = true }, want: job.DiskResult{Full: true, Reason: "it was asked for"}, read: 4 * mib},
		{name: "tracking was reset", then: func(p *ledger) { p.disks[0].epoch, p.disks[0].seq = "52 bb", 1 },
			want: job.DiskResult{Full: true, Reason: "its changes cannot be told: tracking began anew since the last copy"}, read: 4 * mib},
		{name: "tracking is lost", then: func(p *ledger) {
			p.told = func(since cbt.Point) error {
				if since == "" {
					return nil
				}
				return lost
			}
		}, want: job.DiskResult{Full: true, Reason: "its changes cannot be told: it was reset"}, read: 4 * mib},
		{name: "what is allocated cannot be told", then: func(p *ledger) { p.told = func(cbt.Point) error { return lost } },
			want: job.DiskResult{Full: true, Reason: "its changes cannot be told: it was reset"}, read: 8 * mib},
		{name: "resized", then: func(p *ledger) { p.disks[0].resize(10) },
			want: job.DiskResult{Full: true, Reason: "the disk was resized from 8388608 to 10485760 bytes"}, read: 4 * mib},
		{name: "tracking is off", then: func(p *ledger) { p.disks[0].epoch = "" },
			want: job.DiskResult{By: "comparison", Reason: "compared with the chain: its changes are not tracked"}, read: 8*mib + mib},
		{name: "tracking was off", before: func(p *ledger) { p.disks[0].epoch = "" }, then: func(p *ledger) { p.disks[0].epoch = "52 cc" },
			want: job.DiskResult{By: "comparison", Reason: "compared with the chain: its changes were not tracked yet at the newest point"}, read: 8*mib + mib},
		{name: "not tracked, and resized", before: func(p *ledger) { p.disks[0].epoch = "" }, then: func(p *ledger) { p.disks[0].resize(10) },
			want: job.DiskResult{By: "comparison", Reason: "compared with the chain: its changes are not tracked"}, read: 10*mib + mib + 2*mib},
		{name: "no tracker", then: func(p *ledger) { p.b.conns.provider = untracked{p} },
			want: job.DiskResult{By: "comparison", Reason: "compared with the chain: the platform does not track changes"}, read: 8*mib + mib},
		{name: "audited", ask: func(in *AppendRequest) { in.Audit = true }, want: job.DiskResult{By: "tracking"}, read: 8*mib + mib + 64<<10},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, p := newLedger(t, 8)
			_ = b
			if c.before != nil {
				c.before(p)
			}
			p.point("job-1")
			p.guest(0, 2*mib, 5000)
			if c.then != nil {
				c.then(p)
			}
			var change []func(*AppendRequest)
			if c.ask != nil {
				change = append(change, c.ask)
			}
			out := p.point("job-2", change...)
			d := out.Disks[0]
			require.Equal(t, c.want, job.DiskResult{Full: d.Full, By: d.By, Reason: d.Reason})
			require.Equal(t, c.read, d.Read)
			require.Empty(t, out.Alerts)

			p.b.conns.provider, p.told = p, nil
			p.guest(0, 5*mib, 1)
			p.point("job-3")
		})
	}
}

// untracked is the platform without its tracker.
type untracked struct{ p *ledger }

func (u untracked) Kind() string                   { return u.p.Kind() }
func (u untracked) Ping(ctx context.Context) error { return u.p.Ping(ctx) }
func (u untracked) Close() error                   { return u.p.Close() }

func (u untracked) Transports(ctx context.Context, vm providers.VM) ([]providers.Transport, error) {
	return u.p.Transports(ctx, vm)
}

func (u untracked) OpenDisk(ctx context.Context, ref providers.DiskRef) (formats.Image, error) {
	return u.p.OpenDisk(ctx, ref)
}

// A question for the changes that failed is no reason to copy in full.
func TestChangesAreAskedForAgain(t *testing.T) {
	_, p := newLedger(t, 4)
	p.point("job-1")
	p.guest(0, mib, 10)
	p.asked = nil
	failed := 0
	p.told = func(cbt.Point) error {
		if failed++; failed < 2 {
			return &providers.Error{Op: "fake", Reason: providers.Unavailable, Msg: "the server is busy"}
		}
		return nil
	}
	out := p.point("job-2")
	require.Equal(t, "tracking", out.Disks[0].By)
	require.Len(t, p.asked, 2)

	p.told = func(cbt.Point) error {
		return &providers.Error{Op: "fake", Reason: providers.Denied, Msg: "no privilege"}
	}
	_, err := p.claim("job-3")
	require.NoError(t, err)
	_, err = p.append(p.request("job-3"))
	app := failure(t, err)
	require.Equal(t, string(providers.Denied), app.Type())
	require.Contains(t, app.Message(), "Hard disk 1: ")
	require.Equal(t, []int64{1, 2}, p.points())
}

// A tracker that leaves out what was written is caught, and the point is right all the same.
func TestTrackerThatForgets(t *testing.T) {
	b, p := newLedger(t, 8, 2)
	p.point("job-1")
	p.guest(0, 5*mib, 100)
	p.disks[0].forgets = true
	p.guest(0, 3*mib, 5000)
	audit := func(in *AppendRequest) { in.Audit = true }
	_, err := p.claim("job-2")
	require.NoError(t, err)
	in := p.request("job-2", audit)
	out, err := p.append(in)
	require.NoError(t, err)
	require.Len(t, out.Alerts, 1)
	require.Contains(t, out.Alerts[0], "Hard disk 1: the platform's tracking missed changes of 8.0 KiB in 1 places")
	require.Equal(t, "comparison", out.Disks[0].By)
	require.Contains(t, out.Disks[0].Reason, "missed changes")
	require.Equal(t, "tracking", out.Disks[1].By)
	p.same("job-2", out.Point.Number)
	require.Contains(t, b.siteLog("job-2"), `"level":"ERROR"`)

	again, err := p.append(in)
	require.NoError(t, err)
	require.Equal(t, out.Alerts, again.Alerts, "who has not heard of it does the second time")
	require.Equal(t, out.Disks[0].Reason, again.Disks[0].Reason)
	require.Equal(t, out.Point, again.Point)
	require.Equal(t, out.Files, again.Files)
	require.Len(t, p.points(), 2, "a point is written once")
}

// A delta is not built upon damage.
func TestDamagedChain(t *testing.T) {
	b, p := newLedger(t, 8, 2)
	p.point("job-1")
	p.guest(0, 2*mib+4096, 100)
	p.guest(1, 4096, 100)
	spoil(t, b.path("disk0-000001.qcow2"))
	out := p.whole("job-2")
	require.True(t, out.Disks[0].Full)
	require.Contains(t, out.Disks[0].Reason, "a delta would build upon damage")
	require.False(t, out.Disks[1].Full)
	c, err := cbt.Open(t.Context(), b.path(""), cbt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer c.Close()
	img, err := c.Open(t.Context(), 2, "2000")
	require.NoError(t, err)
	defer img.Close()
	got := make([]byte, 4*mib)
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, p.disks[0].data[:4*mib], got)
}

// spoil turns all that a file holds behind its tables around.
func spoil(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	at := 0
	for i := range data[:len(data)-3*mib] { // somewhere in the third MiB of the disk
		if data[i] != 0 && i > 2*mib {
			at = i
			break
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	bad := make([]byte, 2*mib)
	for i := range bad {
		bad[i] = ^data[at+i]
	}
	_, err = f.WriteAt(bad, int64(at))
	require.NoError(t, err)
}

// Whatever ends an attempt, the next one goes on where it was.
func TestPointGoesOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		points []func(*ledger) // before the point that is cut
		most   int64           // bytes that are read twice
	}{
		{"the first", nil, 0},
		{"compared", []func(*ledger){func(p *ledger) { p.disks[0].epoch = "" }}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, p := newLedger(t, 96)
			b.data.StopWithin = time.Minute // what is on its way is to be durable, however slow the machine is
			for i, f := range c.points {
				f(p)
				p.point("before-" + string(rune('a'+i)))
				p.guest(0, 0, 40*mib)
			}
			_, err := p.claim("job-1")
			require.NoError(t, err)
			in := p.request("job-1")
			b.platform.read = 0
			stop := make(chan struct{})
			var once sync.Once
			b.platform.fault = func(_ context.Context, off, _ int64) error {
				if off >= 32*mib {
					once.Do(func() { close(stop) })
				}
				return nil
			}
			_, err = p.append(in, func(env *testsuite.TestActivityEnvironment) {
				env.SetWorkerOptions(worker.Options{BackgroundActivityContext: t.Context()})
				env.SetWorkerStopChannel(stop)
			})
			require.ErrorContains(t, err, "the worker stops")
			b.platform.fault = nil
			out, err := p.append(in)
			require.NoError(t, err)
			require.Equal(t, b.platform.read, out.Disks[0].Read, "what both attempts read is told")
			require.NoError(t, do(b, b.control.FinishPoint, FinishPointRequest{Job: "job-1", Target: p.target(), Number: out.Point.Number}))
			p.same("job-1", out.Point.Number)
			want := int64(48 * mib) // what is allocated
			if c.points != nil {
				want = 96*mib + 40*mib
			}
			require.LessOrEqual(t, b.platform.read, want+24*mib)
		})
	}
}

// A cut of one disk is its own.
func TestADiskIsTakenUpAgain(t *testing.T) {
	b, p := newLedger(t, 8, 2)
	cuts := 0
	b.platform.fault = func(_ context.Context, off, _ int64) error {
		b.platform.mu.Lock()
		defer b.platform.mu.Unlock()
		if off == 2*mib && cuts < 1 {
			cuts++
			return errors.New("connection reset by peer")
		}
		return nil
	}
	p.point("job-1")
	require.Equal(t, 1, cuts)
	require.Contains(t, b.siteLog("job-1"), "taken up again")
}

// The snapshot was changed under the readers: nothing of it is kept.
func TestPointOfAThawedSnapshot(t *testing.T) {
	b, p := newLedger(t, 2)
	_, err := p.claim("job-1")
	require.NoError(t, err)
	b.platform.thawed = &providers.Error{Op: "fake", Reason: providers.NotFound, Msg: "the snapshot is gone"}
	_, err = p.append(p.request("job-1"))
	require.Equal(t, string(providers.NotFound), failure(t, err).Type())
	require.Empty(t, p.points())
}

func TestCancelledPointLeavesTheChainAsItWas(t *testing.T) {
	for _, first := range []bool{true, false} {
		b, p := newLedger(t, 96)
		if !first {
			p.point("job-0")
			p.guest(0, 0, 90*mib)
		}
		before := b.names()
		_, err := p.claim("job-1")
		require.NoError(t, err)
		in := p.request("job-1")
		var cancel context.CancelCauseFunc
		b.platform.fault = func(_ context.Context, off, _ int64) error {
			if off >= 30*mib {
				cancel(temporal.NewCanceledError())
			}
			return nil
		}
		_, err = p.append(in, cancellable(&cancel))
		require.True(t, temporal.IsCanceledError(err), "%v", err)
		b.platform.fault = nil
		require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: p.target()}))
		require.Equal(t, before, b.names())
		if first {
			require.NoDirExists(t, b.path(""), "the job had made the folder")
		}
		p.point("job-2")
	}
}

// A point that was committed and whose job failed all the same is taken back; one whose job was completed is
// not, whoever cleans up when.
func TestDiscardOfAPoint(t *testing.T) {
	b, p := newLedger(t, 4)
	p.point("job-0")
	_, err := p.claim("job-1")
	require.NoError(t, err)
	_, err = p.append(p.request("job-1"))
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, p.points())
	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: p.target()}))
	require.Equal(t, []int64{1}, p.points())
	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-0", Target: p.target()}))
	require.Equal(t, []int64{1}, p.points())
	require.EqualValues(t, 3, p.point("job-2").Point.Number, "numbers are never used again")
}

func TestSweepOfAPoint(t *testing.T) {
	b, p := newLedger(t, 4)
	p.point("job-0")
	_, err := p.claim("job-1")
	require.NoError(t, err)
	_, err = p.append(p.request("job-1"))
	require.NoError(t, err)
	b.engine.ended["job-0"], b.engine.ended["job-1"] = true, true
	require.NoError(t, b.site.Sweep(t.Context()))
	require.Equal(t, []int64{1}, p.points(), "the job died before it was complete")
	require.NotContains(t, b.names(), claimName)
}

// What a job that died has left is removed by the next one that comes to the folder.
func TestNextJobRemovesWhatIsLeft(t *testing.T) {
	b, p := newLedger(t, 4)
	_, err := p.claim("job-1")
	require.NoError(t, err)
	in := p.request("job-1")
	b.platform.thawed = &providers.Error{Op: "fake", Reason: providers.NotFound, Msg: "the snapshot is gone"}
	_, err = p.append(in)
	require.Error(t, err)
	b.platform.thawed = nil
	require.Contains(t, b.names(), "chain.json")
	b.engine.ended["job-1"] = true
	_, err = call(b, b.control.Prepare, PrepareRequest{Job: "job-2", Target: b.target(), Files: []string{"web-01-disk-1.raw"}, VM: "vm-42"})
	require.NoError(t, err)
	require.Equal(t, []string{claimName}, b.names())
}

func TestChainOfAnotherVM(t *testing.T) {
	b, p := newLedger(t, 2)
	p.point("job-1")
	_, err := call(b, b.control.Prepare, PrepareRequest{Job: "job-2", Target: p.target(), VM: "vm-43", Chain: cbt.VM{ID: "vm-43", Name: "web-01", Provider: "fake"}})
	app := failure(t, err)
	require.Equal(t, string(providers.Exists), app.Type())
	require.Contains(t, app.Message(), "holds the chain of another VM")
	before := b.names()
	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-2", Target: p.target()}))
	require.Subset(t, before, b.names())
	require.Equal(t, []int64{1}, p.points())
}

func TestChainInUse(t *testing.T) {
	b, p := newLedger(t, 2)
	p.point("job-1")
	_, err := p.claim("job-2")
	require.NoError(t, err)
	c, err := cbt.Open(t.Context(), b.path(""), cbt.Options{})
	require.NoError(t, err)
	_, err = p.append(p.request("job-2"))
	app := failure(t, err)
	require.Equal(t, string(providers.Precondition), app.Type())
	require.False(t, app.NonRetryable())

	defer c.Close()
	found, err := call(b, b.control.FindChain, FindChainRequest{Job: "job-2", Output: b.out, Folder: "web-01", VM: "vm-42"})
	require.NoError(t, err)
	require.True(t, found.Ours)
	require.EqualValues(t, 1_700_000_000, found.Newest.Unix())
	require.NoError(t, os.WriteFile(b.path("chain.json"), []byte("{}"), 0o600))
	found, err = call(b, b.control.FindChain, FindChainRequest{Job: "job-2", Output: b.out, Folder: "web-01", VM: "vm-42"})
	require.NoError(t, err)
	require.True(t, found.Has)
	require.False(t, found.Ours, "whose it is cannot be read")
	for _, in := range []FindChainRequest{{Output: b.out, Folder: "db-01"}, {Output: filepath.Join(b.out, "nowhere"), Folder: "web-01"}} {
		found, err = call(b, b.control.FindChain, in)
		require.NoError(t, err)
		require.False(t, found.Has)
	}
}
