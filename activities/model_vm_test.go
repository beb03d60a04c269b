package activities

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/cbt"
	"hypersdk/providers/vsphere/vspheretest"
)

// grain is the unit in which the fake vCenter notes changes, and clusters of a chain are.
const grain = 64 << 10

// content is a disk in grains that are never written to twice, so that a copy of it costs next to nothing.
type content struct {
	size   int64
	grains [][]byte // nil: zeros
}

func newContent(size int64) content {
	return content{size, make([][]byte, (size+grain-1)/grain)}
}

func (c content) clone() content { return content{c.size, slices.Clone(c.grains)} }

func (c *content) write(p []byte, off int64) {
	for len(p) > 0 {
		b := make([]byte, grain)
		copy(b, c.grains[off/grain])
		n := copy(b[off%grain:], p)
		c.grains[off/grain] = b
		p, off = p[n:], off+int64(n)
	}
}

func (c *content) grow(size int64) {
	g := newContent(size)
	copy(g.grains, c.grains)
	*c = g
}

var zeroGrain [grain]byte

func (c content) grain(i int64) []byte {
	if i >= int64(len(c.grains)) || c.grains[i] == nil {
		return zeroGrain[:]
	}
	return c.grains[i]
}

// same says in which grain the first bytes of r are something else; -1: in none.
func (c content) same(r io.ReaderAt) (int64, error) {
	buf := make([]byte, 16*grain)
	for off := int64(0); off < c.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), c.size-off)]
		if n, err := r.ReadAt(p, off); err != nil && (err != io.EOF || n < len(p)) {
			return off / grain, err
		}
		for i := off / grain; len(p) > 0; i++ {
			n := min(grain, len(p))
			if !bytes.Equal(p[:n], c.grain(i)[:n]) {
				return i, nil
			}
			p = p[n:]
		}
	}
	return -1, nil
}

// differs is where two disks differ, in whole blocks.
func (c content) differs(t *testing.T, o content, block int64) cbt.Set {
	var s cbt.Set
	for i := range (max(c.size, o.size) + grain - 1) / grain {
		a, b := c.grain(i), o.grain(i)
		if &a[0] == &b[0] {
			continue
		}
		for at := int64(0); at < grain; at += 4096 {
			if !bytes.Equal(a[at:at+4096], b[at:at+4096]) {
				require.NoError(t, s.Add(i*grain+at, 4096))
			}
		}
	}
	return s.Align(block, c.size)
}

// modelVM is a VM as whoever works with it knows it: what its disks hold, and what of that its vCenter should
// have noted.
type modelVM struct {
	t   *testing.T
	sim *vspheretest.Server
	vm  string

	disks    []*modelDisk
	on       bool
	tracking bool // asked for; it begins, and ends, when the VM next stands still
	epochs   int
	moment   int // snapshots for points that were taken so far
	foreign  []*foreignSnapshot
	taken    int // of them
	wrote    int // times
}

// modelDisk is one of its disks.
type modelDisk struct {
	id      string
	now     content
	epoch   int // of its tracking: it begins anew with each; 0: it is not tracked
	hot     int64
	writes  []modelWrite
	forgets bool // its tracker does, from now on
}

type modelWrite struct {
	moment    int
	off, n    int64
	forgotten bool
}

// foreignSnapshot is one that somebody else took.
type foreignSnapshot struct {
	name  string
	disks []content
}

// newModelVM starts a vCenter with a VM.
func newModelVM(t *testing.T, r *rand.Rand) *modelVM {
	g := &modelVM{t: t, vm: "web-01", on: true}
	vm := vspheretest.VM{Name: g.vm}
	for range 1 + r.IntN(3) {
		vm.Disks = append(vm.Disks, newVirtualDisk(r))
	}
	o := vspheretest.Options{Dir: quick(t), Hosts: 1, VMs: []vspheretest.VM{vm}}
	if r.IntN(2) == 0 { // answers about changes come in pages
		o.ChangedAreas, o.ChangedSpan = 5, 3<<20+grain
	}
	g.sim = vspheretest.Start(t, o)
	for i := range vm.Disks {
		g.plugged(i)
	}
	return g
}

// newVirtualDisk is of 4 to 16 MiB, and a little.
func newVirtualDisk(r *rand.Rand) vspheretest.Disk {
	size := (4+r.Int64N(1+r.Int64N(12)))<<20 + r.Int64N(3)*r.Int64N(1<<10)<<10
	return vspheretest.Disk{Size: size, Content: vspheretest.Generated(r.Uint64(), size*r.Int64N(4)/4)}
}

// plugged takes up disk number i, which is new.
func (g *modelVM) plugged(i int) {
	g.t.Helper()
	img, err := g.sim.Disk(g.vm, i)
	require.NoError(g.t, err)
	d := &modelDisk{id: fmt.Sprint(img.Key()), now: newContent(img.Size())}
	p := make([]byte, img.Size())
	_, err = io.ReadFull(io.NewSectionReader(img, 0, img.Size()), p)
	require.NoError(g.t, err)
	d.now.write(p, 0)
	g.disks = append(g.disks, d)
}

// write writes something somewhere: often near to what it wrote before, and often nothing but zeros.
func (g *modelVM) write(r *rand.Rand) error {
	g.wrote++
	i := r.IntN(len(g.disks))
	d := g.disks[i]
	n := min(1+r.Int64N(1<<r.IntN(21)), d.now.size)
	if r.IntN(4) == 0 {
		d.hot = r.Int64N(d.now.size)
	}
	off := min(d.hot+r.Int64N(512<<10), d.now.size-n)
	if r.IntN(3) == 0 {
		off = r.Int64N(d.now.size - n + 1)
	}
	p := make([]byte, n)
	d.writes = append(d.writes, modelWrite{g.moment, off, n, d.forgets})
	switch r.IntN(5) {
	case 0:
		d.now.write(p, off)
		return g.sim.GuestDiscard(g.vm, i, off, n)
	case 1:
		for j := range p {
			p[j] = byte(j >> 12)
		}
	default:
		for j := range p {
			p[j] = byte(r.Uint32())
		}
	}
	d.now.write(p, off)
	return g.sim.GuestWrite(g.vm, i, off, p)
}

// claimed is what the tracker of a disk should tell of what was written since a moment; forgotten says that
// it will leave something out.
func (d *modelDisk) claimed(t *testing.T, since, until int) (s cbt.Set, forgotten bool) {
	var all []cbt.Range
	for _, w := range d.writes {
		switch {
		case w.moment < since || w.moment >= until:
		case w.forgotten:
			forgotten = true
		default:
			all = append(all, cbt.Range{Off: w.off, Len: w.n})
		}
	}
	s, err := cbt.Collect(slices.Values(all))
	require.NoError(t, err)
	return s.Align(grain, d.now.size), forgotten
}

// stand is a moment in which the VM stands still.
func (g *modelVM) stand() {
	for _, d := range g.disks {
		switch {
		case !g.tracking:
			d.epoch = 0
		case d.epoch == 0:
			g.epochs++
			d.epoch = g.epochs
		}
	}
}

// lost lets all tracking begin anew.
func (g *modelVM) lost() {
	for _, d := range g.disks {
		d.epoch = 0
	}
	g.stand()
}

// contents is what all disks hold.
func (g *modelVM) contents() (all []content) {
	for _, d := range g.disks {
		all = append(all, d.now.clone())
	}
	return all
}

// whole makes sure that the fake vCenter and this guest are of one mind.
func (g *modelVM) whole() {
	g.t.Helper()
	for i, d := range g.disks {
		img, err := g.sim.Disk(g.vm, i)
		require.NoError(g.t, err)
		at, err := d.now.same(img)
		require.NoError(g.t, err)
		require.EqualValues(g.t, -1, at, "disk %d of the fake vCenter is not what the guest wrote", i)
	}
}

// byHand does something with the VM as another program's client does, whom no fault strikes.
func (g *modelVM) byHand(do func(*object.VirtualMachine) (*object.Task, error)) {
	g.t.Helper()
	faults := g.sim.Faults()
	g.sim.ClearFaults()
	defer func() {
		for _, in := range faults {
			if f := in.Fault(); f.Times == 0 || in.Struck() < f.Times {
				_, err := g.sim.Inject(f)
				require.NoError(g.t, err)
			}
		}
	}()
	ctx := g.t.Context()
	c, err := govmomi.NewClient(ctx, g.sim.LoginURL(), true)
	require.NoError(g.t, err)
	defer c.CloseIdleConnections()
	task, err := do(object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: g.sim.State().VMs[0].ID}))
	require.NoError(g.t, err)
	require.NoError(g.t, task.Wait(ctx))
	require.NoError(g.t, session.NewManager(c.Client).Logout(ctx))
}

func (g *modelVM) power(on bool) {
	g.byHand(func(vm *object.VirtualMachine) (*object.Task, error) {
		if on {
			return vm.PowerOn(g.t.Context())
		}
		return vm.PowerOff(g.t.Context())
	})
	g.on = on
	g.stand()
}

func (g *modelVM) setTracking(on bool) {
	g.byHand(func(vm *object.VirtualMachine) (*object.Task, error) {
		return vm.Reconfigure(g.t.Context(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(on)})
	})
	if g.tracking = on; !g.on {
		g.stand()
	}
}

func (g *modelVM) takeForeign() {
	g.taken++
	f := &foreignSnapshot{name: fmt.Sprint("before the upgrade ", g.taken), disks: g.contents()}
	g.byHand(func(vm *object.VirtualMachine) (*object.Task, error) {
		return vm.CreateSnapshot(g.t.Context(), f.name, "", false, false)
	})
	g.foreign = append(g.foreign, f)
	g.stand()
}

// dropSnapshot removes a snapshot by its name.
func (g *modelVM) dropSnapshot(name string) {
	keep := true
	g.byHand(func(vm *object.VirtualMachine) (*object.Task, error) {
		return vm.RemoveSnapshot(g.t.Context(), name, false, &keep)
	})
	g.foreign = slices.DeleteFunc(g.foreign, func(f *foreignSnapshot) bool { return f.name == name })
	g.stand()
}

func (g *modelVM) dropForeign() {
	for len(g.foreign) > 0 {
		g.dropSnapshot(g.foreign[0].name)
	}
}

// revert takes the disks back to what they held at a snapshot, and switches the VM, which is off then, on.
func (g *modelVM) revert(name string, disks []content) {
	g.byHand(func(vm *object.VirtualMachine) (*object.Task, error) {
		return vm.RevertToSnapshot(g.t.Context(), name, true)
	})
	for i, c := range disks {
		g.disks[i].now = c.clone()
	}
	g.lost()
	g.power(true)
}

// told is the end of what a host said.
type told struct {
	mu  sync.Mutex
	all []byte
}

func (l *told) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p...)
	if n := len(l.all); n > 1<<20 {
		l.all = slices.Clone(l.all[n/2:])
	}
	return len(p), nil
}

func (l *told) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all[max(len(l.all)-12_000, 0):])
}
