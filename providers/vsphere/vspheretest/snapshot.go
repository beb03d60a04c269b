package vspheretest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// maxSnapshots is how deep vSphere lets a chain of snapshots grow.
const maxSnapshots = 32

// snapshot is a snapshot of a machine.
type snapshot struct {
	ref         types.ManagedObjectReference
	id          int32
	name        string
	description string
	created     time.Time
	power       types.VirtualMachinePowerState
	quiesced    bool
	memory      bool
	parent      *snapshot
	layers      map[int32]*layer // by key of the disk: what the snapshot has frozen
	points      map[int32]point  // by key of the disk, where its changes are tracked
}

// takeSnapshot freezes the live layer of each disk and puts a delta on it.
func (s *Server) takeSnapshot(m *machine, snap *snapshot) *types.LocalizedMethodFault {
	vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return fault(&types.ManagedObjectNotFound{Obj: m.ref}, "The VM has been deleted.")
	}
	var fail *types.LocalizedMethodFault
	ctx := s.sim()
	ctx.WithLock(vm, func() {
		obj := &simulator.VirtualMachineSnapshot{}
		obj.Vm, obj.Config = m.ref, deepCopy(*vm.Config)
		if fail = m.freeze(snap); fail != nil {
			return
		}
		s.reg.Put(obj)
		m.mu.Lock()
		snap.ref = obj.Self
		m.snapshots = append(m.snapshots, snap)
		m.current = snap
		m.mu.Unlock()
		s.given(snap.ref)
		s.publish(ctx, m, vm)
	})
	if fail == nil {
		fail = s.saved(m)
	}
	return fail
}

// freeze makes the deltas of a new snapshot.
func (m *machine) freeze(snap *snapshot) *types.LocalizedMethodFault {
	m.mu.Lock()
	defer m.mu.Unlock()
	depth := 0
	for p := m.current; p != nil; p = p.parent {
		depth++
	}
	if depth >= maxSnapshots {
		return fault(&types.TooManySnapshotLevels{}, "The chain of snapshots is too deep.")
	}
	snap.layers = map[int32]*layer{}
	deltas := map[*disk]*layer{}
	for _, d := range m.disks {
		if d.independent {
			continue
		}
		delta, err := newDelta(m.deltaName(d), d.live)
		if err != nil {
			for _, made := range deltas {
				_ = made.remove()
			}
			return fileFault(err, d.live.name)
		}
		deltas[d] = delta
	}
	for d, delta := range deltas {
		snap.layers[d.key] = d.live
		d.layers, d.live = append(d.layers, delta), delta
	}
	m.pinpoint(snap)
	m.lastSnap++
	snap.id, snap.parent, snap.created = m.lastSnap, m.current, now()
	snap.power = types.VirtualMachinePowerStatePoweredOff // without the memory
	if snap.memory && m.running() {
		snap.power = m.power
	}
	return nil
}

// deltaName is the first name for a delta of a disk that is free: "web-01-000001.vmdk".
func (m *machine) deltaName(d *disk) string {
	base := strings.TrimSuffix(d.layers[0].name, ".vmdk")
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s-%06d.vmdk", base, i)
		if _, err := os.Lstat(filepath.Join(m.dir(), name)); errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
}

// dropSnapshots removes snapshots and, with consolidate, merges the deltas that nothing needs then.
func (s *Server) dropSnapshots(m *machine, consolidate bool, drop func(*snapshot) bool) *types.LocalizedMethodFault {
	m.mu.Lock()
	var dropped []*snapshot
	kept := m.snapshots[:0:0]
	for _, snap := range m.snapshots {
		if drop(snap) {
			dropped = append(dropped, snap)
		} else {
			kept = append(kept, snap)
		}
	}
	gone := func(p *snapshot) bool { return p != nil && slices.Contains(dropped, p) }
	for _, snap := range kept {
		for gone(snap.parent) {
			snap.parent = snap.parent.parent
		}
	}
	for gone(m.current) {
		m.current = m.current.parent
	}
	m.snapshots = kept
	m.stun()
	m.mu.Unlock()
	s.keepLastID()
	for _, snap := range dropped {
		s.reg.Remove(s.sim(), snap.ref)
	}
	if !consolidate {
		return s.settle(m, nil, nil)
	}
	return s.consolidate(m)
}

// consolidate merges all deltas that nothing needs. What is needed is saved before: a run that takes
// over from one that was killed in the middle must not take a half merged layer for a frozen one.
func (s *Server) consolidate(m *machine) *types.LocalizedMethodFault {
	if fail := s.saved(m); fail != nil {
		return fail
	}
	m.mu.Lock()
	var obsolete []*layer
	var err error
	for _, d := range m.disks {
		var layers []*layer
		layers, err = m.collapse(d)
		obsolete = append(obsolete, layers...)
		if err != nil {
			break
		}
	}
	m.mu.Unlock()
	return s.settle(m, obsolete, err)
}

// settle saves the new state of m, and only then removes the files that the old one needed.
func (s *Server) settle(m *machine, obsolete []*layer, err error) *types.LocalizedMethodFault {
	fail := s.saved(m)
	for _, l := range obsolete {
		if fail == nil {
			err = errors.Join(err, l.remove())
		}
	}
	if vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine); ok {
		ctx := s.sim()
		ctx.WithLock(vm, func() { s.publish(ctx, m, vm) })
	}
	if err != nil {
		return fileFault(err, m.home)
	}
	return fail
}

// needed says whether a layer has to stay as it is.
func (m *machine) needed(d *disk, l *layer) bool {
	if d.live == l {
		return true
	}
	return slices.ContainsFunc(m.snapshots, func(s *snapshot) bool { return s.layers[d.key] == l })
}

// collapse drops the layers of a disk that nothing needs: one without a delta on it goes; one with a
// single delta takes that delta's grains and its place. It answers the layers whose files are no
// longer needed.
func (m *machine) collapse(d *disk) (obsolete []*layer, err error) {
	for {
		i := slices.IndexFunc(d.layers, func(l *layer) bool { return !m.needed(d, l) && len(d.on(l)) < 2 })
		if i < 0 {
			return obsolete, nil
		}
		l := d.layers[i]
		gone := l
		if deltas := d.on(l); len(deltas) == 1 {
			gone = deltas[0]
			if err := l.merge(gone); err != nil {
				return obsolete, err
			}
			if err := m.replace(d, gone, l); err != nil {
				return obsolete, err
			}
		}
		d.layers = slices.DeleteFunc(d.layers, func(x *layer) bool { return x == gone })
		obsolete = append(obsolete, gone)
	}
}

// on is the deltas on top of a layer.
func (d *disk) on(l *layer) []*layer {
	var out []*layer
	for _, x := range d.layers {
		if x.parent == l {
			out = append(out, x)
		}
	}
	return out
}

// replace puts l wherever old is.
func (m *machine) replace(d *disk, old, l *layer) error {
	if d.live == old {
		d.live = l
	}
	for _, snap := range m.snapshots {
		if snap.layers[d.key] == old {
			snap.layers[d.key] = l
		}
	}
	for _, x := range d.on(old) {
		x.parent = l
		if err := writeDescriptor(x); err != nil {
			return err
		}
	}
	return nil
}

// revert takes the disks back to a snapshot: a new delta on what it has frozen. The rest of the
// configuration stays.
func (s *Server) revert(m *machine, snap *snapshot) *types.LocalizedMethodFault {
	m.mu.Lock()
	var err error
	for _, d := range m.disks {
		frozen := snap.layers[d.key]
		if frozen == nil {
			continue
		}
		var delta *layer
		if delta, err = newDelta(m.deltaName(d), frozen); err != nil {
			break
		}
		d.layers, d.live = append(d.layers, delta), delta
	}
	m.current = snap
	m.loseTrack()
	m.mu.Unlock()
	if err != nil {
		return fileFault(err, m.home)
	}
	if vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine); ok {
		ctx := s.sim()
		ctx.WithLock(vm, func() {
			s.reg.Update(ctx, vm, []types.PropertyChange{
				{Name: "runtime.powerState", Val: snap.power}, {Name: "summary.runtime.powerState", Val: snap.power},
			})
		})
	}
	return s.consolidate(m)
}

// findSnapshot finds a snapshot by its id, or by its name where only one has it.
func (m *machine) findSnapshot(name string) (*snapshot, error) {
	var found *snapshot
	for _, snap := range m.snapshots {
		if snap.ref.Value == name {
			return snap, nil
		}
		if snap.name == name {
			if found != nil {
				return nil, fmt.Errorf("vspheretest: VM %q has several snapshots %q; name one by its id", m.spec.Name, name)
			}
			found = snap
		}
	}
	if found == nil {
		return nil, fmt.Errorf("vspheretest: VM %q has no snapshot %q", m.spec.Name, name)
	}
	return found, nil
}

// owner finds the machine of a snapshot by the snapshot's id.
func (s *Server) owner(ref types.ManagedObjectReference) (*machine, *snapshot) {
	if ref.Type != "VirtualMachineSnapshot" {
		return nil, nil
	}
	for _, m := range s.all() {
		if snap := m.snapshotOf(ref); snap != nil {
			return m, snap
		}
	}
	return nil, nil
}

func (m *machine) snapshotOf(ref types.ManagedObjectReference) *snapshot {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, snap := range m.snapshots {
		if snap.ref == ref {
			return snap
		}
	}
	return nil
}

// saved is save, as the end of a task.
func (s *Server) saved(m *machine) *types.LocalizedMethodFault {
	if err := s.save(m); err != nil {
		return fileFault(err, m.home)
	}
	return nil
}

func fileFault(err error, file string) *types.LocalizedMethodFault {
	return fault(&types.FileFault{File: file}, "%v", err)
}
