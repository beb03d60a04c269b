package activities

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// leaser is a platform whose disks are read under leases.
type leaser struct {
	*platform
	bytes map[providers.DiskID][]byte // of the disk, as a lease sends it
	sizes map[providers.DiskID]int64
	order []providers.DiskID

	mu     sync.Mutex
	opened map[providers.DiskID]int
	leases atomic.Int32 // that were not ended
	taken  int
	fault  func(ctx context.Context, l *fakeLease, disk providers.DiskID, nth int, off int64) error // of reading
	grant  error
	commit error
}

type fakeLease struct {
	p    *leaser
	ctx  context.Context
	end  context.CancelFunc
	lost error
	over bool
}

// newLeaser is a bench with a platform of disks of so many MiB.
func newLeaser(t *testing.T, sizes ...int64) (*bench, *leaser) {
	t.Helper()
	b := newBench(t)
	p := &leaser{platform: b.platform, bytes: map[providers.DiskID][]byte{}, sizes: map[providers.DiskID]int64{}, opened: map[providers.DiskID]int{}}
	for i, n := range sizes {
		id := providers.DiskID(fmt.Sprint(2000 + i))
		src := newNoise(uint64(i), n*mib+512)
		var out bytes.Buffer
		w, err := vmdk.Encode(t.Context(), &out, src.Size(), formats.CreateOptions{})
		require.NoError(t, err)
		_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		require.NoError(t, w.Close())
		p.bytes[id], p.sizes[id] = out.Bytes(), src.Size()
		p.order = append(p.order, id)
	}
	b.conns.provider = p
	b.formats = map[string]formats.Format{"raw": raw.Format(), "qcow2": qcow2.Format(), "vmdk": vmdk.Format()}
	t.Cleanup(func() { require.Zero(t, p.leases.Load(), "no lease is left over") })
	return b, p
}

func (p *leaser) Lease(ctx context.Context, _ providers.SnapshotRef) (providers.Lease, error) {
	if p.grant != nil {
		return nil, p.grant
	}
	l := &fakeLease{p: p}
	l.ctx, l.end = context.WithCancel(ctx)
	p.taken++
	p.leases.Add(1)
	return l, nil
}

func (l *fakeLease) Disks() (out []providers.LeasedDisk) {
	for _, id := range l.p.order {
		out = append(out, providers.LeasedDisk{ID: id, Size: l.p.sizes[id], Format: "vmdk"})
	}
	return out
}

func (l *fakeLease) Err() error { return l.lost }

func (l *fakeLease) Open(ctx context.Context, id providers.DiskID, tap io.Writer) (formats.Stream, error) {
	if l.lost != nil {
		return nil, l.lost
	}
	l.p.mu.Lock()
	l.p.opened[id]++
	nth, off := l.p.opened[id], int64(0)
	l.p.mu.Unlock()
	r := io.TeeReader(bytes.NewReader(l.p.bytes[id]), tap)
	return vmdk.Stream(ctx, reader(func(b []byte) (int, error) {
		if l.p.fault != nil {
			if err := l.p.fault(ctx, l, id, nth, off); err != nil {
				return 0, err
			}
		}
		if err := errors.Join(ctx.Err(), l.ctx.Err(), l.lost); err != nil {
			return 0, err
		}
		n, err := r.Read(b[:min(len(b), 64<<10)])
		off += int64(n)
		return n, err
	}))
}

type reader func([]byte) (int, error)

func (f reader) Read(b []byte) (int, error) { return f(b) }

func (l *fakeLease) Commit(context.Context) error {
	if l.p.commit != nil {
		return l.p.commit
	}
	return l.Close()
}

func (l *fakeLease) Close() error {
	if !l.over {
		l.over = true
		l.end()
		l.p.leases.Add(-1)
	}
	return nil
}

func (b *bench) leaseRequest(p *leaser, t Target) LeaseRequest {
	in := LeaseRequest{Job: "job-1", Ref: providers.SnapshotRef{VM: "vm-42", Snapshot: "s1"}, Transport: "nfc", Why: "fast: not now", Target: t}
	for i, id := range p.order {
		in.Disks = append(in.Disks, LeaseDisk{Disk: id, Label: fmt.Sprintf("Hard disk %d", i+1), Size: p.sizes[id], Need: p.sizes[id], File: fmt.Sprintf("web-01-disk-%d.%s", i+1, t.Format)})
	}
	return in
}

// lease prepares the folder and copies all disks under a lease.
func (b *bench) lease(p *leaser, t Target, set ...func(*testsuite.TestActivityEnvironment)) (Leased, error) {
	b.t.Helper()
	in := b.leaseRequest(p, t)
	_, err := b.prepare(func(r *PrepareRequest) {
		r.Target, r.Files = t, nil
		for _, d := range in.Disks {
			r.Files = append(r.Files, d.File)
		}
	})
	require.NoError(b.t, err)
	return call(b, b.data.LeaseDisks, in, set...)
}

// holds checks that a hidden file is the disk, and its digest that of the disk.
func (b *bench) holds(p *leaser, t Target, out Leased) {
	b.t.Helper()
	require.Len(b.t, out.Disks, len(p.order))
	for i := range p.order {
		name := b.path(partName(b.leaseRequest(p, t).Disks[i].File))
		f, err := os.Open(name)
		require.NoError(b.t, err)
		defer f.Close()
		st, err := f.Stat()
		require.NoError(b.t, err)
		require.Equal(b.t, st.Size(), out.Disks[i].Stored)
		img, err := b.formats[t.Format].Open(b.t.Context(), f, st.Size(), formats.OpenOptions{})
		require.NoError(b.t, err)
		defer img.Close()
		got, want := digestOf(b.t, img), digestOf(b.t, newNoise(uint64(i), p.sizes[p.order[i]]))
		require.Equal(b.t, want, got, "%s is not the disk", name)
		require.Equal(b.t, want, out.Disks[i].Digest)
	}
}

func digestOf(t *testing.T, img formats.Image) string {
	t.Helper()
	d, err := formats.CreateDigests(formatstest.NewMemFile(), img.Size())
	require.NoError(t, err)
	sum, err := formats.DigestOf(t.Context(), img, d, formats.VerifyOptions{})
	require.NoError(t, err)
	return sum.String()
}

func TestLeaseIntoEveryFormat(t *testing.T) {
	for _, c := range []struct {
		format         string
		compress, kept bool
	}{{"raw", false, false}, {"qcow2", false, false}, {"qcow2", true, false}, {"vmdk", false, false}, {"vmdk", true, true}} {
		t.Run(fmt.Sprintf("%s compressed %t", c.format, c.compress), func(t *testing.T) {
			b, p := newLeaser(t, 3, 1, 2)
			target := Target{Output: b.out, Folder: "web-01", Format: c.format, Compress: c.compress}
			out, err := b.lease(p, target)
			require.NoError(t, err)
			b.holds(p, target, out)
			require.Equal(t, 1, p.taken, "one lease for all disks")
			if c.kept {
				got, err := os.ReadFile(b.path(partName("web-01-disk-1.vmdk")))
				require.NoError(t, err)
				require.True(t, bytes.Equal(p.bytes["2000"], got), "what was sent is kept as it came")
			}
			require.Contains(t, b.log(), "fast: not now")

			again, err := b.lease(p, target)
			require.NoError(t, err)
			require.Equal(t, 1, p.taken, "disks that are whole need no lease")
			require.Equal(t, out.Disks[0].Digest, again.Disks[0].Digest)
		})
	}
}

func unavailable(msg string) error {
	return &providers.Error{Op: "fake: read", Reason: providers.Unavailable, Msg: msg}
}

func TestACutCostsItsOwnDiskOnly(t *testing.T) {
	b, p := newLeaser(t, 3, 2)
	p.fault = func(_ context.Context, _ *fakeLease, id providers.DiskID, nth int, off int64) error {
		if id == "2000" && nth <= 2 && off > mib {
			return unavailable("cut")
		}
		return nil
	}
	out, err := b.lease(p, b.target())
	require.NoError(t, err)
	b.holds(p, b.target(), out)
	require.Equal(t, map[providers.DiskID]int{"2000": 3, "2001": 1}, p.opened)
	require.Equal(t, 1, p.taken)
	require.EqualValues(t, 3, out.Disks[0].Attempts)
	require.Greater(t, out.Disks[0].Read, int64(len(p.bytes["2000"])), "what was read in vain counts")
	require.Contains(t, b.log(), "the disk begins anew")
}

func TestALostLeaseCostsWhatIsNotWhole(t *testing.T) {
	b, p := newLeaser(t, 2, 1)
	whole := make(chan struct{})
	p.fault = func(_ context.Context, l *fakeLease, id providers.DiskID, nth int, off int64) error {
		if id == "2000" && nth == 1 && off > mib {
			<-whole
			l.lost = unavailable("the lease was lost")
			return l.lost
		}
		return nil
	}
	go func() {
		defer close(whole)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for range 4000 {
			if _, err := os.Stat(b.path(journalName("web-01-disk-2.raw"))); err == nil && bytes.Contains([]byte(b.logNow()), []byte(`"copied"`)) {
				return
			}
			<-tick.C
		}
	}()
	_, err := b.lease(p, b.target())
	app := failure(t, err)
	require.Equal(t, string(providers.Unavailable), app.Type())
	require.False(t, app.NonRetryable())
	require.Contains(t, app.Message(), "the lease was lost; 1 of 2 disks are whole, what is not begins anew")
	require.Equal(t, b.site.Paces.Again, app.NextRetryDelay(), "it came further: no reason to hesitate")

	out, err := b.lease(p, b.target())
	require.NoError(t, err)
	b.holds(p, b.target(), out)
	require.Equal(t, map[providers.DiskID]int{"2000": 2, "2001": 1}, p.opened)
}

// logNow is the log of the job, "" before there is one.
func (b *bench) logNow() string {
	page, _, err := b.site.Logs().Read(context.Background(), "job-1", 0)
	if err != nil {
		return ""
	}
	return string(page)
}

func TestWhatEndsALease(t *testing.T) {
	corrupt := &providers.Error{Op: "fake: read", Reason: providers.Corrupt, Msg: "not what the manifest says"}
	for _, c := range []struct {
		name   string
		fault  error // of reading disk 2001
		grant  error
		commit error
		reason providers.Reason
		final  bool
		says   string
	}{
		{name: "a disk that may not be read", fault: &providers.Error{Op: "fake: read", Reason: providers.Denied}, reason: providers.Denied, final: true, says: "Hard disk 2 (web-01-disk-2.raw)"},
		{name: "a disk that is corrupt", fault: corrupt, reason: providers.Corrupt, final: true, says: "manifest"},
		{name: "no room", fault: syscall.ENOSPC, reason: providers.Exhausted, says: "no space left in"},
		{name: "a busy VM", grant: &providers.Error{Op: "fake: lease", Reason: providers.Precondition, Msg: "another lease"}, reason: providers.Precondition, says: "another lease; 0 of 2 disks"},
		{name: "no privilege", grant: &providers.Error{Op: "fake: lease", Reason: providers.Denied}, reason: providers.Denied, final: true, says: "denied"},
		{name: "a manifest that differs in the end", commit: corrupt, reason: providers.Corrupt, final: true, says: "manifest"},
		{name: "an end that fails", commit: unavailable("no answer")},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, p := newLeaser(t, 1, 1)
			p.grant, p.commit = c.grant, c.commit
			p.fault = func(_ context.Context, _ *fakeLease, id providers.DiskID, _ int, off int64) error {
				if id == "2001" && off > 0 {
					return c.fault
				}
				return nil
			}
			out, err := b.lease(p, b.target())
			if c.reason == "" {
				require.NoError(t, err)
				b.holds(p, b.target(), out)
				return
			}
			app := failure(t, err)
			require.Equal(t, string(c.reason), app.Type(), app.Message())
			require.Equal(t, c.final, app.NonRetryable())
			require.Contains(t, app.Message(), c.says)
		})
	}
}

func TestOneDiskOfEightThatFailsForGoodStopsTheOthers(t *testing.T) {
	b, p := newLeaser(t, 1, 1, 1, 1, 1, 1, 1, 1)
	p.fault = func(ctx context.Context, _ *fakeLease, id providers.DiskID, _ int, off int64) error {
		switch {
		case id == "2005" && off > 0:
			return &providers.Error{Op: "fake: read", Reason: providers.Denied}
		case id != "2005" && off > 256<<10:
			return slowly(ctx) // until it is told to stop
		}
		return nil
	}
	_, err := b.lease(p, b.target())
	app := failure(t, err)
	require.True(t, app.NonRetryable())
	require.Contains(t, app.Message(), "Hard disk 6")
}

// slowly waits for the end of a reading.
func slowly(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestALeaseThatIsCancelled(t *testing.T) {
	b, p := newLeaser(t, 4)
	var cancel context.CancelCauseFunc
	env := cancellable(&cancel)
	p.fault = func(_ context.Context, _ *fakeLease, _ providers.DiskID, _ int, off int64) error {
		if off > mib {
			cancel(temporal.NewCanceledError())
		}
		return nil
	}
	_, err := b.lease(p, b.target(), env)
	require.True(t, temporal.IsCanceledError(err), "%v", err)
}

func TestAPauseHoldsBackWhatComes(t *testing.T) {
	b, p := newLeaser(t, 6)
	b.engine.limits = job.Limits{Paused: true}
	var read atomic.Int64
	p.fault = func(_ context.Context, _ *fakeLease, _ providers.DiskID, _ int, off int64) error {
		read.Store(off)
		return nil
	}
	b.engine.onAsked = func(e *engine) {
		if e.asked == 2 { // paused for a second
			require.LessOrEqual(t, read.Load(), int64(mib), "nothing is read ahead")
			e.limits = job.Limits{}
		}
	}
	in := b.leaseRequest(p, b.target())
	in.Limits = job.Limits{Paused: true}
	_, err := b.prepare(func(r *PrepareRequest) { r.Files = []string{in.Disks[0].File} })
	require.NoError(t, err)
	out, err := call(b, b.data.LeaseDisks, in)
	require.NoError(t, err)
	b.holds(p, b.target(), out)
}

// A transport that is refused when it comes to it is final only where there is another one.
func TestARefusedTransportSaysSo(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		other   string
		refused bool
		final   bool
	}{
		{"waited out, where there is no other", &providers.Error{Op: "fake", Reason: providers.Precondition}, "", false, false},
		{"not frozen", &providers.Error{Op: "fake", Reason: providers.Precondition}, "nfc", true, true},
		{"no privilege", &providers.Error{Op: "fake", Reason: providers.Denied}, "nfc", true, true},
		{"no file", &providers.Error{Op: "fake", Reason: providers.NotFound}, "nfc", true, true},
		{"no ranges", &providers.Error{Op: "fake", Reason: providers.Unsupported}, "nfc", true, true},
		{"the network", unavailable("cut"), "nfc", false, false},
		{"the password", &providers.Error{Op: "fake", Reason: providers.Auth}, "nfc", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			b.platform.openErr = c.err
			in := b.request()
			in.Else, in.Ref.Transport = c.other, "fast"
			_, err = call(b, b.data.TransferDisk, in)
			app := failure(t, err)
			require.Equal(t, c.final, app.NonRetryable())
			var r Refused
			require.Equal(t, c.refused, app.HasDetails() && app.Details(&r) == nil)
			if c.refused {
				require.Equal(t, "fast", r.Transport)
				require.NotEmpty(t, r.Why)
			}
		})
	}
}
