package vsphere_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// leased is a VM with a snapshot of ours, about to be leased.
type leased struct {
	t   *testing.T
	sim *vspheretest.Server
	p   *vsphere.Provider
	ref providers.SnapshotRef
	id  providers.DiskID // of its first disk
}

func newLeased(t *testing.T, o vspheretest.Options, change ...func(*vsphere.Config)) *leased {
	t.Helper()
	if o.VMs == nil {
		o.VMs = []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{disk(1, 12<<20), disk(2, 2<<20)}}}
	}
	s := vspheretest.Start(t, o)
	p := connect(t, s, change...)
	vm, err := p.VM(t.Context(), o.VMs[0].Name)
	require.NoError(t, err)
	snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "lease"})
	require.NoError(t, err)
	return &leased{t: t, sim: s, p: p, ref: providers.SnapshotRef{VM: vm.ID, Snapshot: snap.ID}, id: snap.Disks[0].ID}
}

// lease opens a lease that is closed with the test, and makes sure that none is left over then.
func (l *leased) lease() providers.Lease {
	l.t.Helper()
	one, err := l.p.Lease(l.t.Context(), l.ref)
	require.NoError(l.t, err)
	l.t.Cleanup(func() {
		_ = one.Close()
		require.Zero(l.t, l.sim.Leases(), "no lease is left over")
	})
	return one
}

// read reads a disk to its end.
func (l *leased) read(one providers.Lease) error {
	st, err := one.Open(l.t.Context(), l.id, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	return drain(l.t.Context(), st)
}

func drain(ctx context.Context, st formats.Stream) error {
	for {
		if _, err := st.Next(ctx); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func at(n int64) *int64 { return &n }

func TestWhatHappensToALeasedDisk(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  vspheretest.Fault
		reason providers.Reason // "": nothing
		says   string
	}{
		{"cut at once", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(0), Times: 1}, providers.Unavailable, "cut"},
		{"cut in the header", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(100), Times: 1}, providers.Unavailable, "cut after 100 bytes"},
		{"cut in the middle", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(1 << 20), Times: 1}, providers.Unavailable, "cut after 1048576 bytes"},
		{"dropped", vspheretest.Fault{File: "disk-0.vmdk", Drop: true, Times: 1}, providers.Unavailable, ""},
		{"silent", vspheretest.Fault{File: "disk-0.vmdk", CutAt: at(1 << 20), Stall: true, Times: 1}, providers.Unavailable, "cut after 1048576 bytes"},
		{"503", vspheretest.Fault{File: "disk-0.vmdk", Status: 503, Times: 1}, providers.Throttled, ""},
		{"404", vspheretest.Fault{File: "disk-0.vmdk", Status: 404, Times: 1}, providers.Unavailable, "not known any more"},
		{"403", vspheretest.Fault{File: "disk-0.vmdk", Status: 403, Times: 1}, providers.Denied, ""},
		{"redirected elsewhere", vspheretest.Fault{File: "disk-0.vmdk", Status: 302, Times: 1}, providers.Unavailable, "302"},
		{"a byte that nothing but the manifest tells", vspheretest.Fault{File: "disk-0.vmdk", FlipAt: at(6000), Times: 1}, providers.Corrupt, "manifest"},
		{"a marker that is none", vspheretest.Fault{File: "disk-0.vmdk", FlipAt: at(64<<10 + 1), Times: 1}, providers.Corrupt, ""},
		{"a manifest that cannot be read at first", vspheretest.Fault{Call: "HttpNfcLeaseGetManifest", Fault: "HostCommunication", Times: 2}, "", ""},
		{"a manifest that may not be read", vspheretest.Fault{Call: "HttpNfcLeaseGetManifest", Fault: "NoPermission"}, providers.Denied, ""},
		{"progress that is refused at first", vspheretest.Fault{Call: "HttpNfcLeaseProgress", Fault: "HostCommunication", Times: 1}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLeased(t, vspheretest.Options{}, func(c *vsphere.Config) { c.StallTimeout = vsphere.Duration(100 * time.Millisecond) })
			in := inject(t, l.sim, c.fault)
			one := l.lease()
			err := l.read(one)
			require.Positive(t, in.Struck())
			if c.reason == "" {
				require.NoError(t, err)
				require.NoError(t, one.Commit(t.Context()))
				return
			}
			require.Equal(t, c.reason, providers.ReasonOf(err), "%v", err)
			require.ErrorContains(t, err, c.says)
			require.NoError(t, one.Err(), "the lease holds")
			if c.fault.Times == 1 {
				require.NoError(t, l.read(one), "and the disk can be read again")
			}
		})
	}
}

func TestLeaseThatIsNotGranted(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  vspheretest.Fault
		reason providers.Reason
		says   string
	}{
		{"never ready", vspheretest.Fault{Call: "ExportSnapshot", Task: true, Stall: true}, providers.Unavailable, "was not ready after 200ms"},
		{"fails while it gets ready", vspheretest.Fault{Call: "ExportSnapshot", Task: true, Fault: "FileLocked", Message: "the disk is locked"}, providers.Precondition, "the disk is locked"},
		{"no privilege", vspheretest.Fault{Call: "ExportSnapshot", Fault: "NoPermission"}, providers.Denied, ""},
		{"no licence", vspheretest.Fault{Call: "ExportSnapshot", Fault: "RestrictedVersion"}, providers.Unsupported, ""},
		{"busy", vspheretest.Fault{Call: "ExportSnapshot", Fault: "TaskInProgress"}, providers.Precondition, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLeased(t, vspheretest.Options{}, func(c *vsphere.Config) { c.LeaseReady = vsphere.Duration(200 * time.Millisecond) })
			inject(t, l.sim, c.fault)
			_, err := l.p.Lease(t.Context(), l.ref)
			require.ErrorIs(t, err, c.reason)
			require.ErrorContains(t, err, c.says)
			require.Zero(t, l.sim.Leases(), "no lease is left over")
		})
	}
}

func TestLeaseThatTakesItsTime(t *testing.T) {
	l := newLeased(t, vspheretest.Options{})
	inject(t, l.sim, vspheretest.Fault{Call: "ExportSnapshot", Task: true, Delay: vspheretest.Duration(300 * time.Millisecond)})
	one := l.lease()
	require.NoError(t, l.read(one))
	require.NoError(t, one.Commit(t.Context()))
}

func TestLeaseLivesWhileNobodyReads(t *testing.T) {
	const timeout = time.Second
	l := newLeased(t, vspheretest.Options{LeaseTimeout: timeout})
	one := l.lease()
	st, err := one.Open(t.Context(), l.id, nil)
	require.NoError(t, err)
	defer st.Close()
	begin := time.Now()
	require.Eventually(t, func() bool { return time.Since(begin) > 3*timeout }, time.Minute, timeout/4)
	l.sim.ExpireSessions()
	require.NoError(t, drain(t.Context(), st), "what was begun goes on where it was")
	require.NoError(t, one.Commit(t.Context()))
}

func TestLeaseThatIsLost(t *testing.T) {
	l := newLeased(t, vspheretest.Options{LeaseTimeout: time.Second})
	inject(t, l.sim, vspheretest.Fault{File: "disk-0.vmdk", CutAfter: at(1 << 20), Stall: true})
	one := l.lease()
	st, err := one.Open(t.Context(), l.id, nil)
	require.NoError(t, err)
	defer st.Close()
	inject(t, l.sim, vspheretest.Fault{Call: "HttpNfcLeaseProgress", Fault: "HostCommunication"})
	err = drain(t.Context(), st)
	require.ErrorIs(t, err, providers.Unavailable)
	require.ErrorContains(t, err, "the lease was lost")
	require.ErrorContains(t, err, "timed out", "in the server's own words")
	require.ErrorIs(t, one.Err(), providers.Unavailable)
	require.ErrorContains(t, one.Commit(t.Context()), "the lease was lost")
	l.sim.ClearFaults()
	require.NoError(t, one.Close())
	require.NoError(t, l.read(l.lease()), "another one can be had")
}

func TestLeaseOfAVMThatIsOff(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{
		{Name: "off", PoweredOff: true, Disks: []vspheretest.Disk{disk(1, 3<<20)}},
		{Name: "on", Disks: []vspheretest.Disk{disk(1, 3<<20)}},
	}})
	p := connect(t, s)
	for name, reason := range map[string]providers.Reason{"off": "", "on": providers.Precondition} {
		vm, err := p.VM(t.Context(), name)
		require.NoError(t, err)
		l, err := p.Lease(t.Context(), providers.SnapshotRef{VM: vm.ID})
		require.Equal(t, reason, providers.ReasonOf(err), "%v", err)
		if err == nil {
			require.Len(t, l.Disks(), 1)
			require.NoError(t, l.Close())
		}
	}
	require.Zero(t, s.Leases())
}

func TestLeasesNameTheDisksOfEveryController(t *testing.T) {
	var disks []vspheretest.Disk
	for i, c := range []string{"pvscsi", "lsilogic", "lsilogic-sas", "buslogic", "sata", "nvme", "ide", "pvscsi", "sata"} {
		d := disk(uint64(i), int64(i+1)<<20)
		d.Controller = c
		disks = append(disks, d)
	}
	l := newLeased(t, vspheretest.Options{TLS: true, VMs: []vspheretest.VM{{Name: "many", Disks: disks}}})
	one := l.lease()
	require.Len(t, one.Disks(), len(disks))
	vm, err := l.p.VM(t.Context(), "many")
	require.NoError(t, err)
	for _, d := range one.Disks() {
		i := -1
		for j := range vm.Disks {
			if vm.Disks[j].ID == d.ID {
				i = j
			}
		}
		require.GreaterOrEqual(t, i, 0)
		require.EqualValues(t, int64(i+1)<<20, d.Size, "%s", disks[i].Controller)
		st, err := one.Open(t.Context(), d.ID, nil)
		require.NoError(t, err)
		require.Equal(t, d.Size, st.Size())
		require.NoError(t, st.Close())
	}
}

func TestTransportsAreToldBestFirst(t *testing.T) {
	for _, c := range []struct {
		name        string
		options     vspheretest.Options
		before      func(*testing.T, *vsphere.Provider, providers.VMID)
		direct, nfc string // why not
	}{
		{name: "plain", options: vspheretest.Options{}},
		{name: "vSAN", options: vspheretest.Options{Datastores: []vspheretest.Datastore{{Name: "v", Type: "vsan"}}}, direct: "does not give out files"},
		{name: "a snapshot of somebody else", direct: "another snapshot", before: func(t *testing.T, p *vsphere.Provider, vm providers.VMID) {
			for _, key := range []string{"a", "b"} {
				_, err := p.Snapshot(t.Context(), vm, providers.SnapshotOptions{Key: key})
				require.NoError(t, err)
			}
		}},
		{name: "an independent disk", options: vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{{Size: 1 << 20, Mode: "independent_persistent"}}}}},
			direct: "independent", nfc: "independent"},
		{name: "a template", options: vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Template: true, Disks: []vspheretest.Disk{disk(1, 1<<20)}}}},
			direct: "template", nfc: "template"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.options.VMs == nil {
				c.options.VMs = []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, 1<<20)}}}
			}
			p := connect(t, vspheretest.Start(t, c.options))
			vm, err := p.VM(t.Context(), "vm")
			require.NoError(t, err)
			if c.before != nil {
				c.before(t, p, vm.ID)
			}
			got, err := p.Transports(t.Context(), vm)
			require.NoError(t, err)
			require.Len(t, got, 3)
			require.Equal(t, []string{vsphere.Datastore, vsphere.NFC, vsphere.VDDK}, []string{got[0].Name, got[1].Name, got[2].Name})
			require.Equal(t, []bool{false, true}, []bool{got[0].Leased, got[1].Leased})
			for i, why := range []string{c.direct, c.nfc} {
				require.Equal(t, why == "", got[i].Why == "", "%s: %s", got[i].Name, got[i].Why)
				require.Contains(t, got[i].Why, why)
			}
		})
	}
}

// A chain of snapshots is read through: every disk is as our snapshot has it.
func TestLeaseReadsThroughAChainOfSnapshots(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, 4<<20)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	var last providers.Snapshot
	for i, key := range []string{"a", "b", "c"} {
		require.NoError(t, s.GuestWrite("vm", 0, int64(i)<<20, []byte("written before "+key)))
		last, err = p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: key})
		require.NoError(t, err)
	}
	require.NoError(t, s.GuestWrite("vm", 0, 0, []byte("written after the last one")))
	l, err := p.Lease(t.Context(), providers.SnapshotRef{VM: vm.ID, Snapshot: last.ID})
	require.NoError(t, err)
	defer l.Close()
	st, err := l.Open(t.Context(), last.Disks[0].ID, nil)
	require.NoError(t, err)
	defer st.Close()
	require.Equal(t, content(t, s, "vm", 0, string(last.ID)), copied(t, st))
	require.NoError(t, l.Commit(t.Context()))
}

// copied is all of a disk that comes as a stream.
func copied(t *testing.T, st formats.Stream) []byte {
	t.Helper()
	f := formatstest.NewMemFile()
	w, err := raw.Format().Create(t.Context(), f, st.Size(), formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	_, err = formats.Copy(t.Context(), w, st, formats.CopyOptions{})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	b := make([]byte, st.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

func TestLeaseOfAProgramThatWasKilledIsAborted(t *testing.T) {
	l := newLeased(t, vspheretest.Options{})
	kept := &memory{}
	killed := run(t, l.sim, kept)
	_, err := killed.Lease(t.Context(), l.ref)
	require.NoError(t, err)
	left, err := kept.Load() // as a kill leaves it
	require.NoError(t, err)
	require.Equal(t, 1, l.sim.Leases())

	_, err = l.p.Lease(t.Context(), l.ref)
	require.ErrorIs(t, err, providers.Precondition, "nobody else gets it")
	run(t, l.sim, &memory{kept: left})
	require.Zero(t, l.sim.Leases(), "the next program ends it as it starts")
	require.NoError(t, l.read(l.lease()))
}
