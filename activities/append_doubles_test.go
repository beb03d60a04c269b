package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
	"hypersdk/providers"
)

// ledger is a platform that notes what its guest writes, and freezes its disks in snapshots.
type ledger struct {
	*platform
	b     *bench
	disks []*ledgerDisk
	snaps map[providers.SnapshotID]map[providers.DiskID]frozen
	asked []cbt.Point // since when changes were asked for
	told  func(since cbt.Point) error
}

// ledgerDisk is a disk that the guest writes to.
type ledgerDisk struct {
	id      providers.DiskID
	data    []byte
	epoch   string // of its tracking; "": off
	seq     int
	writes  []cbt.Range // and the seq that each came after, beside it
	at      []int
	forgets bool
	used    cbt.Set // what is allocated
}

// frozen is a disk as of a snapshot.
type frozen struct {
	data []byte
	id   cbt.Point
	used cbt.Set
}

// newLedger is a bench with a platform of disks of so many MiB, of which the first half has data.
func newLedger(t *testing.T, sizes ...int64) (*bench, *ledger) {
	t.Helper()
	b := newBench(t)
	p := &ledger{platform: b.platform, b: b, snaps: map[providers.SnapshotID]map[providers.DiskID]frozen{}}
	for i, n := range sizes {
		d := &ledgerDisk{id: providers.DiskID(strconv.Itoa(2000 + i)), data: make([]byte, n*mib), epoch: "52 aa", seq: 1}
		_, err := newNoise(uint64(i), n*mib).ReadAt(d.data[:n*mib/2], 0)
		require.NoError(t, err)
		require.NoError(t, d.used.Add(0, n*mib/2))
		p.disks = append(p.disks, d)
	}
	b.conns.provider = p
	b.formats = map[string]formats.Format{"raw": raw.Format(), "qcow2": qcow2.Format()}
	return b, p
}

// guest writes n bytes of something new.
func (p *ledger) guest(i int, off, n int64) {
	d := p.disks[i]
	for j := range n {
		d.data[off+j] ^= 0x5a
	}
	if !d.forgets {
		d.writes, d.at = append(d.writes, cbt.Range{Off: off, Len: n}), append(d.at, d.seq)
	}
	if err := d.used.Add(off, n); err != nil {
		panic(err)
	}
}

// resize lets a disk grow; its tracking begins anew.
func (d *ledgerDisk) resize(mibs int64) {
	d.data = append(d.data, make([]byte, mibs*mib-int64(len(d.data)))...)
	if d.epoch != "" {
		d.epoch, d.seq, d.writes, d.at = d.epoch+"'", 1, nil, nil
	}
}

// snap takes a snapshot, and answers the disks of a point.
func (p *ledger) snap(id string) (out []AppendDisk) {
	all := map[providers.DiskID]frozen{}
	for i, d := range p.disks {
		f := frozen{data: slices.Clone(d.data), used: d.used.Clone()}
		if d.epoch != "" {
			d.seq++
			f.id = cbt.Point(fmt.Sprint(d.epoch, "/", d.seq-1))
		}
		all[d.id] = f
		out = append(out, AppendDisk{Disk: d.id, Label: fmt.Sprint("Hard disk ", i+1), Size: int64(len(d.data)), ChangeID: f.id})
	}
	p.snaps[providers.SnapshotID(id)] = all
	return out
}

func (p *ledger) OpenDisk(ctx context.Context, ref providers.DiskRef) (formats.Image, error) {
	f, ok := p.snaps[ref.Snapshot][ref.Disk]
	if !ok {
		return nil, &providers.Error{Op: "fake: open disk", Object: string(ref.Snapshot), Reason: providers.NotFound, Msg: "the snapshot is gone"}
	}
	return &remote{Image: memory{formatstest.NewDisk(1, int64(len(f.data))), f.data}, p: p.platform, ctx: ctx}, nil
}

// memory is a disk in memory.
type memory struct {
	formats.Image // of the same size; only that is used
	data          []byte
}

func (m memory) ReadAt(b []byte, off int64) (int, error) {
	n := copy(b, m.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p *ledger) SetTracking(context.Context, providers.VMID, bool) error { return nil }

func (p *ledger) Tracking(context.Context, providers.VMID) (providers.TrackingStatus, error) {
	return providers.TrackingStatus{}, nil
}

func (p *ledger) Changes(_ context.Context, ref providers.DiskRef, since cbt.Point) (cbt.Changes, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, since)
	if p.told != nil {
		if err := p.told(since); err != nil {
			return cbt.Changes{}, err
		}
	}
	f := p.snaps[ref.Snapshot][ref.Disk]
	out := cbt.Changes{From: since, To: f.id, By: cbt.Tracked}
	if since == "" {
		out.Ranges = f.used.Clone()
		return out, nil
	}
	epoch, from, _ := strings.Cut(string(since), "/")
	is, until, _ := strings.Cut(string(f.id), "/")
	if epoch != is {
		return out, &providers.Error{Op: "fake: tell the changes of", Object: string(ref.Disk), Reason: providers.TrackingLost, Msg: "tracking began anew since the last copy"}
	}
	first, _ := strconv.Atoi(from)
	last, _ := strconv.Atoi(until)
	i := slices.IndexFunc(p.disks, func(d *ledgerDisk) bool { return d.id == ref.Disk })
	var all []cbt.Range
	for k, w := range p.disks[i].writes {
		if at := p.disks[i].at[k]; at > first && at <= last {
			all = append(all, w)
		}
	}
	var err error
	out.Ranges, err = cbt.Collect(slices.Values(all))
	return out, err
}

var ledgerVM = cbt.VM{ID: "vm-42", Name: "web-01", Provider: "fake"}

func (p *ledger) target() Target {
	return Target{Output: p.b.out, Folder: "web-01", Format: "qcow2", Chain: true}
}

// claim is the preparation of a job.
func (p *ledger) claim(job string) (Prepared, error) {
	return call(p.b, p.b.control.Prepare, PrepareRequest{Job: job, Target: p.target(), VM: "vm-42", SnapshotKey: "hypersdk-" + job, Chain: ledgerVM})
}

// request is the point of a job, whose snapshot has its id.
func (p *ledger) request(job string, change ...func(*AppendRequest)) AppendRequest {
	if p.snaps[providers.SnapshotID(job)] == nil {
		p.snap(job)
	}
	in := AppendRequest{
		Job: job, VM: ledgerVM, Snapshot: providers.SnapshotID(job), Time: time.Unix(1_700_000_000, 0).UTC(), Transport: "fast", Target: p.target(),
	}
	for i, d := range p.disks {
		f, ok := p.snaps[in.Snapshot][d.id]
		if ok {
			in.Disks = append(in.Disks, AppendDisk{Disk: d.id, Label: fmt.Sprint("Hard disk ", i+1), Size: int64(len(f.data)), ChangeID: f.id})
		}
	}
	for _, f := range change {
		f(&in)
	}
	return in
}

func (p *ledger) append(in AppendRequest, set ...func(*testsuite.TestActivityEnvironment)) (Appended, error) {
	p.b.t.Helper()
	return call(p.b, p.b.data.AppendPoint, in, set...)
}

// point adds a point as a job does, and checks every byte of it.
func (p *ledger) point(job string, change ...func(*AppendRequest)) Appended {
	p.b.t.Helper()
	out := p.whole(job, change...)
	p.same(job, out.Point.Number)
	return out
}

// whole adds a point as a job does, from its claim to its end.
func (p *ledger) whole(job string, change ...func(*AppendRequest)) Appended {
	p.b.t.Helper()
	_, err := p.claim(job)
	require.NoError(p.b.t, err)
	out, err := p.append(p.request(job, change...))
	require.NoError(p.b.t, err)
	require.NoError(p.b.t, do(p.b, p.b.control.FinishPoint, FinishPointRequest{Job: job, Target: p.target(), Number: out.Point.Number}))
	return out
}

// siteLog is the log of a job.
func (b *bench) siteLog(job string) string {
	b.t.Helper()
	page, _, err := b.site.Logs().Read(b.t.Context(), job, 0)
	require.NoError(b.t, err)
	return string(page)
}

// same compares a point with the snapshot of its job.
func (p *ledger) same(job string, number int64) {
	p.b.t.Helper()
	t := p.b.t
	c, err := cbt.Open(t.Context(), p.b.path(""), cbt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer c.Close()
	for _, id := range slices.Sorted(maps.Keys(p.snaps[providers.SnapshotID(job)])) {
		img, err := c.Open(t.Context(), number, string(id))
		require.NoError(t, err)
		want := p.snaps[providers.SnapshotID(job)][id].data
		got := make([]byte, img.Size())
		_, err = img.ReadAt(got, 0)
		require.True(t, err == nil || errors.Is(err, io.EOF), "%v", err)
		require.True(t, slices.Equal(want, got), "disk %s at point %d is not the disk of its snapshot", id, number)
		require.NoError(t, img.Close())
	}
	r, err := c.Check(t.Context(), cbt.CheckOptions{Depth: cbt.CheckData})
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	require.Empty(t, r.Strays)
}

// points are the numbers of the points of the chain; none where there is none.
func (p *ledger) points() (all []int64) {
	c, err := cbt.Open(p.b.t.Context(), p.b.path(""), cbt.Options{ReadOnly: true})
	if err != nil {
		return nil
	}
	defer c.Close()
	m := c.Manifest()
	for _, s := range m.Points {
		all = append(all, s.Number)
	}
	return all
}
