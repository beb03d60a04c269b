package vspheretest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// truth is what a disk should hold: now, and at each snapshot.
type truth struct {
	now       []byte
	snapshots map[string][]byte // by id
}

// TestDisksHoldWhatWasWritten takes random steps (writes, snapshots, removals, reverts, restarts) and
// compares every point of the disk with a plain copy after each.
func TestDisksHoldWhatWasWritten(t *testing.T) {
	const size = 9*grain + 1024
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			o := Options{Dir: t.TempDir(), Hosts: 1, VMs: []VM{{Name: "vm", Disks: []Disk{{Size: size}}}}}
			s := Start(t, o)
			want := truth{now: make([]byte, size), snapshots: map[string][]byte{}}
			for step := range 150 {
				m, err := s.machine("vm")
				require.NoError(t, err)
				var fail *types.LocalizedMethodFault
				var pick *snapshot
				if len(m.snapshots) > 0 {
					pick = m.snapshots[r.IntN(len(m.snapshots))]
				}
				switch n := r.IntN(100); {
				case n < 50:
					p := make([]byte, 1+r.IntN(2*grain))
					off := r.IntN(size - len(p))
					generate(p, r.Uint64(), 0)
					require.NoError(t, s.GuestWrite("vm", 0, int64(off), p))
					copy(want.now[off:], p)
				case n < 70 && len(m.snapshots) < 6:
					snap := &snapshot{name: fmt.Sprint(step)}
					fail = s.takeSnapshot(m, snap)
					want.snapshots[snap.ref.Value] = slices.Clone(want.now)
				case n < 80 && pick != nil:
					delete(want.snapshots, pick.ref.Value)
					fail = s.dropSnapshots(m, r.IntN(3) > 0, func(x *snapshot) bool { return x == pick })
				case n < 88 && pick != nil:
					fail = s.revert(m, pick)
					want.now = slices.Clone(want.snapshots[pick.ref.Value])
				case n < 90:
					fail = s.consolidate(m)
				case n < 93:
					require.NoError(t, s.Close())
					s = Start(t, o)
				}
				require.Nil(t, fail, "step %d", step)
				want.check(t, s, step)
			}
			m, err := s.machine("vm")
			require.NoError(t, err)
			require.Nil(t, s.dropSnapshots(m, true, func(*snapshot) bool { return true }))
			require.Len(t, m.disks[0].layers, 1, "all is merged into the base")
			clear(want.snapshots)
			want.check(t, s, -1)
		})
	}
}

func (w *truth) check(t *testing.T, s *Server, step int) {
	t.Helper()
	got := make([]byte, len(w.now))
	image, err := s.Disk("vm", 0)
	require.NoError(t, err)
	_, err = image.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(w.now, got), "step %d: now", step)
	for id, want := range w.snapshots {
		image, err := s.DiskAt("vm", 0, id)
		require.NoError(t, err)
		_, err = image.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "step %d: %s", step, id)
	}
	m, err := s.machine("vm")
	require.NoError(t, err)
	vm := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	s.sim().WithLock(vm, func() {
		for _, d := range vm.Config.Hardware.Device {
			if disk, ok := d.(*types.VirtualDisk); ok {
				require.Equal(t, m.path(m.disks[0].live.name), disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName, "step %d", step)
			}
		}
	})
}

// TestKilledInTheMiddleOfAMerge leaves the files as a kill would, and starts another server on them.
func TestKilledInTheMiddleOfAMerge(t *testing.T) {
	o := Options{Dir: t.TempDir(), Hosts: 1, VMs: []VM{{Name: "vm", Disks: []Disk{{Size: 4 * grain}}}}}
	s := Start(t, o)
	want := truth{now: make([]byte, 4*grain), snapshots: map[string][]byte{}}
	write := func(off int, text string) {
		require.NoError(t, s.GuestWrite("vm", 0, int64(off), []byte(text)))
		copy(want.now[off:], text)
	}
	write(0, "before")
	m, err := s.machine("vm")
	require.NoError(t, err)
	a, b := &snapshot{name: "a"}, &snapshot{name: "b"}
	require.Nil(t, s.takeSnapshot(m, a))
	write(3, "between")
	require.Nil(t, s.takeSnapshot(m, b))
	want.snapshots[b.ref.Value] = slices.Clone(want.now)
	write(2*grain, "after")

	require.Nil(t, s.dropSnapshots(m, false, func(x *snapshot) bool { return x == a }))
	base := m.disks[0].layers[0]
	require.NoError(t, base.merge(m.disks[0].on(base)[0])) // and here it was killed
	require.NoError(t, s.Close())

	s = Start(t, o)
	want.check(t, s, 0)
	m, err = s.machine("vm")
	require.NoError(t, err)
	require.Len(t, m.disks[0].layers, 3)
	require.Nil(t, s.consolidate(m))
	require.Len(t, m.disks[0].layers, 2)
	want.check(t, s, 1)
}

// TestGuestWritesWhileSnapshotsComeAndGo is for the race detector, and for lost writes.
func TestGuestWritesWhileSnapshotsComeAndGo(t *testing.T) {
	const writers, span = 4, 4 * grain
	s := Start(t, Options{Hosts: 1, VMs: []VM{{Name: "vm", Disks: []Disk{{Size: writers * span}}}}})
	m, err := s.machine("vm")
	require.NoError(t, err)
	want := make([]byte, writers*span)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 0; n < 50 || !closed(stop); n++ {
				off := i*span + r.IntN(span-100)
				p := bytes.Repeat([]byte{byte(n)}, 1+r.IntN(100))
				if err := s.GuestWrite("vm", 0, int64(off), p); err != nil {
					t.Error(err)
					return
				}
				copy(want[off:], p)
			}
		})
	}
	for n := range 20 {
		snap := &snapshot{name: fmt.Sprint(n)}
		require.Nil(t, s.takeSnapshot(m, snap))
		image, err := s.DiskAt("vm", 0, snap.ref.Value)
		require.NoError(t, err)
		first, again := make([]byte, image.Size()), make([]byte, image.Size())
		_, err = image.ReadAt(first, 0)
		require.NoError(t, err)
		_, err = image.ReadAt(again, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(first, again), "frozen")
		if n%3 == 2 {
			require.Nil(t, s.dropSnapshots(m, true, func(*snapshot) bool { return true }))
		}
	}
	close(stop)
	wg.Wait()
	image, err := s.Disk("vm", 0)
	require.NoError(t, err)
	got := make([]byte, len(want))
	_, err = image.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestCoverageCountsEveryByte(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var c Coverage
		want := make([]int, 64)
		for range 1 + r.IntN(12) {
			off, n := r.IntN(64), 0
			n = r.IntN(65 - off)
			c.add(int64(off), int64(n))
			for i := off; i < off+n; i++ {
				want[i]++
			}
			got := make([]int, 64)
			end := int64(-1)
			for _, s := range c.Spans {
				require.GreaterOrEqual(t, s.Off, max(end, 0), "ascending, without overlap: %v", c.Spans)
				require.Positive(t, s.Len)
				require.Positive(t, s.Times)
				end = s.Off + s.Len
				for i := s.Off; i < end; i++ {
					got[i] = s.Times
				}
			}
			require.Equal(t, want, got, "%v", c.Spans)
		}
	}
}

func TestFileNames(t *testing.T) {
	for name, want := range map[string]string{
		"web-01": "web-01", "a/b\\c\nd": "a_b_c_d", "..": "_..", " x ": "x", "": "_", "\x00": "_",
	} {
		require.Equal(t, want, fileName(name))
	}
	require.Len(t, fileName(string(bytes.Repeat([]byte("x"), 300))), 180)
	require.Len(t, fileName(string(bytes.Repeat([]byte("長"), 300))), 180, "60 whole runes of 3 bytes")
	require.Len(t, fileName("x"+string(bytes.Repeat([]byte("長"), 300))), 178, "no rune is cut")
}
