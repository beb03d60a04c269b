package vsphere_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// guest is a VM whose changes are tracked.
type guest struct {
	*testing.T
	server *vspheretest.Server
	p      *vsphere.Provider
	id     providers.VMID
	taken  int
}

func newGuest(t *testing.T, o vspheretest.Options, vm vspheretest.VM) *guest {
	t.Helper()
	vm.Name = "web-01"
	if vm.Disks == nil {
		vm.Disks = []vspheretest.Disk{disk(1, 4*mib)}
	}
	o.VMs = append(o.VMs, vm)
	s := vspheretest.Start(t, o)
	g := &guest{T: t, server: s, p: connect(t, s)}
	found, err := g.p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	g.id = found.ID
	return g
}

func (g *guest) track(on bool) {
	g.Helper()
	require.NoError(g, g.p.SetTracking(g.Context(), g.id, on))
}

func (g *guest) snap() providers.Snapshot {
	g.Helper()
	g.taken++
	s, err := g.p.Snapshot(g.Context(), g.id, providers.SnapshotOptions{Key: fmt.Sprint(g.taken)})
	require.NoError(g, err)
	return s
}

func (g *guest) drop(s providers.Snapshot) {
	g.Helper()
	require.NoError(g, g.p.DeleteSnapshot(g.Context(), g.id, s.ID))
}

// next deletes one snapshot and takes another, in the order that loses nothing.
func (g *guest) next(s providers.Snapshot) providers.Snapshot {
	g.Helper()
	g.drop(s)
	return g.snap()
}

func (g *guest) changes(s providers.Snapshot, i int, since cbt.Point) (cbt.Changes, error) {
	return g.p.Changes(g.Context(), providers.DiskRef{VM: g.id, Snapshot: s.ID, Disk: s.Disks[i].ID}, since)
}

func (g *guest) write(off int64, p []byte) {
	g.Helper()
	require.NoError(g, g.server.GuestWrite("web-01", 0, off, p))
}

// api is a client of its own, as another program's.
func (g *guest) api() *object.VirtualMachine {
	g.Helper()
	c, err := govmomi.NewClient(g.Context(), g.server.LoginURL(), true)
	require.NoError(g, err)
	g.Cleanup(func() {
		_ = c.Logout(context.Background())
		c.CloseIdleConnections()
	})
	return object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: string(g.id)})
}

func (g *guest) revert(s providers.Snapshot) {
	g.Helper()
	task, err := g.api().RevertToSnapshot(g.Context(), s.Name, false)
	require.NoError(g, err)
	require.NoError(g, task.Wait(g.Context()))
}

// Whatever makes the changes since the last copy unknown is told, and with a sentence.
func TestTrackingIsLost(t *testing.T) {
	for _, c := range []struct {
		name, why string
		between   func(g *guest, last providers.Snapshot) providers.Snapshot
	}{
		{"reset", "began anew", func(g *guest, s providers.Snapshot) providers.Snapshot {
			require.NoError(g, g.server.ResetTracking("web-01"))
			return g.next(s)
		}},
		{"off in between", "began anew", func(g *guest, s providers.Snapshot) providers.Snapshot {
			g.track(false)
			g.drop(s) // which the VM stands still for
			g.write(0, []byte("nobody sees this"))
			g.track(true)
			return g.snap()
		}},
		{"off", "switched off", func(g *guest, s providers.Snapshot) providers.Snapshot {
			g.track(false)
			return g.next(s)
		}},
		{"reverted", "began anew", func(g *guest, s providers.Snapshot) providers.Snapshot {
			g.write(0, []byte("gone with the revert"))
			g.revert(s)
			return g.next(s)
		}},
		{"grown", "began anew", func(g *guest, s providers.Snapshot) providers.Snapshot {
			g.drop(s)
			require.NoError(g, g.server.ResizeDisk("web-01", 0, 8*mib))
			return g.snap()
		}},
		{"replaced", "began anew", func(g *guest, s providers.Snapshot) providers.Snapshot {
			g.drop(s)
			require.NoError(g, g.server.RemoveDisk("web-01"))
			require.NoError(g, g.server.AddDisk("web-01", disk(9, 4*mib)))
			return g.snap()
		}},
		{"switched off after the snapshot", "switched off", func(g *guest, s providers.Snapshot) providers.Snapshot {
			s = g.next(s)
			g.track(false)
			return s
		}},
		{"reset after the snapshot", "does not know", func(g *guest, s providers.Snapshot) providers.Snapshot {
			s = g.next(s)
			require.NoError(g, g.server.ResetTracking("web-01"))
			return s
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, vspheretest.Options{}, vspheretest.VM{})
			g.track(true)
			last := g.snap()
			now := c.between(g, last)
			require.Equal(t, last.Disks[0].ID, now.Disks[0].ID, "the disk looks the same")
			_, err := g.changes(now, 0, last.Disks[0].ChangeID)
			require.ErrorIs(t, err, providers.TrackingLost)
			require.ErrorContains(t, err, c.why)
		})
	}
}

// A disk more, or one less, leaves the others tracked.
func TestADiskIsAddedAndRemoved(t *testing.T) {
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{})
	g.track(true)
	first := g.snap()
	g.drop(first)
	require.NoError(t, g.server.AddDisk("web-01", disk(9, mib)))
	second := g.snap()
	require.Len(t, second.Disks, 2)
	_, err := g.changes(second, 0, first.Disks[0].ChangeID)
	require.NoError(t, err)
	_, err = g.changes(second, 1, "")
	require.NoError(t, err, "the new disk is copied in full")
	g.drop(second)
	require.NoError(t, g.server.RemoveDisk("web-01"))
	third := g.snap()
	require.Len(t, third.Disks, 1)
	_, err = g.changes(third, 0, second.Disks[0].ChangeID)
	require.NoError(t, err)
}

func TestChangesComeInPages(t *testing.T) {
	for name, o := range map[string]vspheretest.Options{
		"of four areas":               {ChangedAreas: 4},
		"of a few bytes, often empty": {ChangedAreas: 4, ChangedSpan: 100_000},
		"all at once":                 {},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, o, vspheretest.VM{Disks: []vspheretest.Disk{disk(1, 8*mib+5<<10)}})
			g.track(true)
			first := g.snap()
			var want cbt.Set
			for _, block := range []int64{0, 2, 4, 5, 6, 20, 40, 60, 80, 100, 120, 128} {
				g.write(block<<16, []byte("x"))
				require.NoError(t, want.Add(block<<16, min(64<<10, 8*mib+5<<10-block<<16)))
			}
			require.NoError(t, g.server.GuestDiscard("web-01", 0, 50<<16, 3<<16))
			require.NoError(t, want.Add(50<<16, 3<<16))
			second := g.next(first)
			ch, err := g.changes(second, 0, first.Disks[0].ChangeID)
			require.NoError(t, err)
			require.True(t, want.Equal(ch.Ranges), "got %v", ch.Ranges)
			all, err := g.changes(second, 0, "")
			require.NoError(t, err)
			require.True(t, all.Ranges.Covers(0, 64<<10))
			require.Less(t, all.Ranges.Bytes(), 8*mib+int64(5<<10), "holes are not allocated")
			if o.ChangedAreas == 0 {
				require.Equal(t, 2, g.server.Calls()["QueryChangedDiskAreas"], "nothing is asked from the end of the disk on")
			}
		})
	}
}

// Where a datastore does not know what is allocated, all is.
func TestAllIsAllocated(t *testing.T) {
	thick := disk(1, 4*mib)
	thick.Thick = true
	for name, c := range map[string]struct {
		store vspheretest.Datastore
		disk  vspheretest.Disk
	}{
		"NFS":   {vspheretest.Datastore{Name: "share", Type: "NFS"}, disk(1, 4*mib)},
		"thick": {vspheretest.Datastore{Name: "fast"}, thick},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, vspheretest.Options{Datastores: []vspheretest.Datastore{c.store}}, vspheretest.VM{Disks: []vspheretest.Disk{c.disk}})
			g.track(true)
			s := g.snap()
			ch, err := g.changes(s, 0, "")
			require.NoError(t, err)
			require.True(t, cbt.Whole(4*mib).Equal(ch.Ranges))
		})
	}
}

func TestTrackingStatus(t *testing.T) {
	independent, untracked := disk(2, mib), disk(3, mib)
	independent.Mode, untracked.Untracked = "independent_persistent", true
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{Disks: []vspheretest.Disk{disk(1, mib), independent, untracked}})
	status := func() providers.TrackingStatus {
		s, err := g.p.Tracking(t.Context(), g.id)
		require.NoError(t, err)
		return s
	}
	s := status()
	require.Equal(t, []string{"tracking is not switched on"}, s.Missing)
	require.Contains(t, s.Disks[1].Missing, "independent")
	require.Contains(t, s.Disks[2].Missing, "scsi0:2.ctkEnabled is FALSE")

	old := g.snap()
	s = status()
	require.Len(t, s.Missing, 2)
	require.Contains(t, s.Missing[1], "delete its snapshots before")
	err := g.p.SetTracking(t.Context(), g.id, true)
	require.ErrorIs(t, err, providers.Precondition)
	require.ErrorContains(t, err, "has a snapshot")
	g.drop(old)

	g.track(true)
	s = status()
	require.True(t, s.Enabled)
	require.False(t, s.Active, "the VM runs, and has not stood still yet")
	require.Contains(t, s.Missing[0], "take a snapshot and delete it")
	require.Equal(t, "tracking has not started yet", s.Disks[0].Missing)
	require.NoError(t, g.p.PowerOff(t.Context(), g.id))
	require.NoError(t, g.p.PowerOn(t.Context(), g.id))
	s = status()
	require.True(t, s.Active, "a power cycle lets it begin: %+v", s)
	require.Empty(t, s.Missing)
	require.True(t, s.Disks[0].Tracked)
	require.NotEmpty(t, s.Disks[0].ChangeID)
	require.False(t, s.Disks[1].Tracked)
	require.False(t, s.Disks[2].Tracked)

	now := g.snap()
	_, err = g.changes(now, 2, "")
	require.ErrorIs(t, err, providers.TrackingLost, "one disk is not tracked although its VM is")
}

func TestAVMThatIsOffIsTrackedAtOnce(t *testing.T) {
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{PoweredOff: true})
	g.track(true)
	s, err := g.p.Tracking(t.Context(), g.id)
	require.NoError(t, err)
	require.True(t, s.Active)
}

func TestHardwareThatIsTooOld(t *testing.T) {
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{Hardware: "vmx-04"})
	s, err := g.p.Tracking(t.Context(), g.id)
	require.NoError(t, err)
	require.False(t, s.Supported)
	require.Len(t, s.Missing, 1)
	require.Contains(t, s.Missing[0], "vmx-04")
	err = g.p.SetTracking(t.Context(), g.id, true)
	require.ErrorIs(t, err, providers.Unsupported)
	require.ErrorContains(t, err, "upgrade the virtual hardware")
}

// What is told while tracking is switched off, or the snapshot deleted, need not be all.
func TestTrackingEndsWhileItIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(g *guest, s providers.Snapshot)
		reason providers.Reason
	}{
		"switched off": {func(g *guest, _ providers.Snapshot) { g.track(false) }, providers.TrackingLost},
		"deleted":      {func(g *guest, s providers.Snapshot) { g.drop(s) }, providers.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, vspheretest.Options{}, vspheretest.VM{})
			g.track(true)
			s := g.snap()
			before := g.server.Calls()["QueryChangedDiskAreas"]
			in := inject(t, g.server, vspheretest.Fault{Call: "QueryChangedDiskAreas", Delay: vspheretest.Duration(500 * time.Millisecond)})
			defer in.Remove()
			told := make(chan error, 1)
			go func() {
				_, err := g.changes(s, 0, "")
				told <- err
			}()
			require.Eventually(t, func() bool { return g.server.Calls()["QueryChangedDiskAreas"] > before }, time.Minute, time.Millisecond)
			c.end(g, s)
			require.ErrorIs(t, <-told, c.reason)
		})
	}
}

// Whatever call fails, nothing is told that is not so, and asked again it works.
func TestChangesWithFaultsOnEveryCall(t *testing.T) {
	g := newGuest(t, vspheretest.Options{ChangedAreas: 2}, vspheretest.VM{})
	g.track(true)
	first := g.snap()
	for i := range int64(10) {
		g.write(i<<18, []byte("x"))
	}
	second := g.next(first)
	since := first.Disks[0].ChangeID
	want, err := g.changes(second, 0, since)
	require.NoError(t, err)
	require.Equal(t, 10, want.Ranges.Len())
	struck := map[string]int{}
	for call := range g.server.Calls() {
		for after := range 6 {
			for _, c := range []struct {
				fault  vspheretest.Fault
				reason providers.Reason
			}{
				{vspheretest.Fault{Fault: "NoPermission"}, providers.Denied},
				{vspheretest.Fault{Drop: true}, providers.Unavailable},
				{vspheretest.Fault{Fault: "FileFault"}, ""},
				{vspheretest.Fault{Fault: "HostCommunication"}, providers.Unavailable},
			} {
				c.fault.Call, c.fault.Skip, c.fault.Times = call, after, 1
				in := inject(t, g.server, c.fault)
				ch, err := g.changes(second, 0, since)
				if in.Struck() > 0 && c.reason != "" && call != "Logout" {
					struck[call]++
				}
				in.Remove()
				if err == nil {
					require.True(t, want.Ranges.Equal(ch.Ranges), "%s %+v", call, c.fault)
					continue
				}
				if c.reason != "" {
					require.ErrorIs(t, err, c.reason, "%s %+v", call, c.fault)
				} else if call == "QueryChangedDiskAreas" {
					require.ErrorIs(t, err, providers.TrackingLost)
				}
				require.Zero(t, ch.Ranges.Len(), "an error comes without changes")
			}
		}
	}
	require.NotZero(t, struck["QueryChangedDiskAreas"])
	ch, err := g.changes(second, 0, since)
	require.NoError(t, err)
	require.True(t, want.Ranges.Equal(ch.Ranges))
}

func TestSwitchingFails(t *testing.T) {
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{})
	for _, c := range []struct {
		fault  vspheretest.Fault
		reason providers.Reason
	}{
		{vspheretest.Fault{Fault: "NoPermission"}, providers.Denied},
		{vspheretest.Fault{Fault: "TaskInProgress", Task: true}, providers.Precondition},
		{vspheretest.Fault{Fault: "FileFault", Task: true}, providers.Unavailable},
	} {
		c.fault.Call, c.fault.Times = "ReconfigVM_Task", 1
		inject(t, g.server, c.fault)
		require.ErrorIs(t, g.p.SetTracking(t.Context(), g.id, true), c.reason)
	}
	inject(t, g.server, vspheretest.Fault{Call: "ReconfigVM_Task", After: true, Drop: true, Times: 1})
	require.ErrorIs(t, g.p.SetTracking(t.Context(), g.id, true), providers.Unavailable, "the answer is lost")
	require.NoError(t, patiently(func() error { return g.p.SetTracking(t.Context(), g.id, true) }))
	calls := g.server.Calls()["ReconfigVM_Task"]
	g.track(true)
	require.Equal(t, calls, g.server.Calls()["ReconfigVM_Task"], "what is on is left alone")
}

// A tracker with a fault is believed: nothing but a comparison of digests can find out.
func TestATrackerThatForgets(t *testing.T) {
	g := newGuest(t, vspheretest.Options{}, vspheretest.VM{})
	g.track(true)
	first := g.snap()
	require.NoError(t, g.server.ForgetWrites("web-01", 0, 2))
	g.write(0, []byte("seen"))
	g.write(mib, []byte("forgotten"))
	second := g.next(first)
	ch, err := g.changes(second, 0, first.Disks[0].ChangeID)
	require.NoError(t, err)
	require.True(t, ch.Ranges.Touches(0, 4))
	require.False(t, ch.Ranges.Touches(mib, 9))
}

// kept is a snapshot that is or was, with the disk as it was then.
type kept struct {
	snap  providers.Snapshot
	bytes []byte
}

// A guest does anything, by seed. Changes from any point to any snapshot are told in full, or are lost.
func TestChangesAreNeverTooFew(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			g := newGuest(t, vspheretest.Options{ChangedAreas: 3}, vspheretest.VM{Disks: []vspheretest.Disk{disk(seed, 2*mib)}})
			g.track(true)
			var points, live []kept
			told, lost := 0, 0
			for range 120 {
				switch n := r.IntN(20); {
				case n < 8:
					p := bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(100_000))
					g.write(r.Int64N(2*mib-int64(len(p))), p)
				case n < 9:
					require.NoError(t, g.server.GuestDiscard("web-01", 0, r.Int64N(mib), 1+r.Int64N(mib)))
				case n < 13 && len(live) < 5:
					s := g.snap()
					k := kept{s, content(t, g.server, "web-01", 0, string(s.ID))}
					points, live = append(points, k), append(live, k)
				case n < 16 && len(live) > 0:
					i := r.IntN(len(live))
					g.drop(live[i].snap)
					live = append(live[:i:i], live[i+1:]...)
				case n == 16 && len(live) > 0:
					g.revert(live[r.IntN(len(live))].snap)
				case n == 17 && r.IntN(3) == 0:
					require.NoError(t, g.server.ResetTracking("web-01"))
				case n == 18 && len(live) == 0:
					g.track(r.IntN(2) == 0)
				case n == 19 && r.IntN(3) == 0:
					require.NoError(t, g.p.PowerOff(t.Context(), g.id))
					require.NoError(t, g.p.PowerOn(t.Context(), g.id))
				}
				if len(live) == 0 {
					continue
				}
				to := live[r.IntN(len(live))]
				from := points[r.IntN(len(points))]
				ch, err := g.changes(to.snap, 0, from.snap.Disks[0].ChangeID)
				if err != nil {
					require.ErrorIs(t, err, providers.TrackingLost)
					lost++
					continue
				}
				told++
				if from.snap.Disks[0].ChangeID == "" {
					from.bytes = make([]byte, 2*mib)
				}
				copied := bytes.Clone(from.bytes)
				for x := range ch.Ranges.All() {
					copy(copied[x.Off:x.End()], to.bytes[x.Off:x.End()])
				}
				require.True(t, bytes.Equal(to.bytes, copied), "from %s to %s", ch.From, ch.To)
			}
			require.NotZero(t, told)
			require.NotZero(t, lost)
		})
	}
}
