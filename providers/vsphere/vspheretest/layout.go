package vspheretest

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// withLayers is a copy of devices in which the disks are backed by the layers given by key.
func (m *machine) withLayers(devices []types.BaseVirtualDevice, layers map[int32]*layer) []types.BaseVirtualDevice {
	devices = deepCopy(devices)
	for _, d := range devices {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		old, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if l := layers[disk.Key]; ok && l != nil {
			disk.Backing = m.backing(l, old)
		}
	}
	return devices
}

// backing describes a layer, and through Parent those below it.
func (m *machine) backing(l *layer, like *types.VirtualDiskFlatVer2BackingInfo) *types.VirtualDiskFlatVer2BackingInfo {
	b := *like
	b.FileName, b.Parent, b.ChangeId = m.path(l.name), nil, ""
	if l.parent != nil {
		b.ThinProvisioned = types.NewBool(true)
		b.Parent = m.backing(l.parent, like)
	}
	return &b
}

// publish brings the simulator's objects of the VM and its snapshots in line with m. The VM's object
// is locked on behalf of ctx.
func (s *Server) publish(ctx *simulator.Context, m *machine, vm *simulator.VirtualMachine) {
	m.mu.RLock()
	live := map[int32]*layer{}
	for _, d := range m.disks {
		live[d.key] = d.live
	}
	changes := []types.PropertyChange{
		{Name: "config.hardware.device", Val: withIDs(m.withLayers(vm.Config.Hardware.Device, live), m.ids())},
		{Name: "snapshot", Val: nil},
		{Name: "rootSnapshot", Val: nil},
		{Name: "runtime.consolidationNeeded", Val: m.fragmented()},
	}
	if len(m.snapshots) > 0 {
		tree := m.tree(nil)
		info := types.VirtualMachineSnapshotInfo{RootSnapshotList: tree}
		if m.current != nil {
			info.CurrentSnapshot = &m.current.ref
		}
		var roots []types.ManagedObjectReference
		for _, t := range tree {
			roots = append(roots, t.Snapshot)
		}
		changes[1].Val, changes[2].Val = info, roots
	}
	snapshots := slices.Clone(m.snapshots)
	m.mu.RUnlock()

	s.reg.Update(ctx, vm, changes)
	s.reg.Update(ctx, vm, m.storage(vm.Datastore))
	for _, snap := range snapshots {
		if obj, ok := s.reg.Get(snap.ref).(*simulator.VirtualMachineSnapshot); ok {
			s.publishSnapshot(m, snap, obj)
		}
	}
}

func (s *Server) publishSnapshot(m *machine, snap *snapshot, obj *simulator.VirtualMachineSnapshot) {
	ctx := s.sim()
	ctx.WithLock(obj, func() {
		m.mu.RLock()
		defer m.mu.RUnlock()
		obj.Config.Hardware.Device = withIDs(m.withLayers(obj.Config.Hardware.Device, snap.layers), snap.ids())
		obj.ChildSnapshot = nil
		for _, other := range m.snapshots {
			if other.parent == snap {
				obj.ChildSnapshot = append(obj.ChildSnapshot, other.ref)
			}
		}
	})
}

// tree is the snapshots below parent as the API shows them.
func (m *machine) tree(parent *snapshot) []types.VirtualMachineSnapshotTree {
	var out []types.VirtualMachineSnapshotTree
	for _, snap := range m.snapshots {
		if snap.parent != parent {
			continue
		}
		out = append(out, types.VirtualMachineSnapshotTree{
			Snapshot: snap.ref, Vm: m.ref, Name: escape(snap.name), Description: snap.description, Id: snap.id,
			CreateTime: snap.created, State: snap.power, Quiesced: snap.quiesced, ReplaySupported: types.NewBool(false),
			ChildSnapshotList: m.tree(snap),
		})
	}
	return out
}

// layoutBuilder collects the files of a VM.
type layoutBuilder struct {
	m  *machine
	ex types.VirtualMachineFileLayoutEx
}

func (b *layoutBuilder) file(name, kind string, size int64) int32 {
	path := b.m.path(name)
	for _, f := range b.ex.File {
		if f.Name == path {
			return f.Key
		}
	}
	key := int32(len(b.ex.File))
	b.ex.File = append(b.ex.File, types.VirtualMachineFileLayoutExFileInfo{
		Key: key, Name: path, Type: kind, Size: size, UniqueSize: size, Accessible: types.NewBool(true),
	})
	return key
}

func (b *layoutBuilder) plain(suffix string, kind types.VirtualMachineFileLayoutExFileType) {
	name := b.m.base + suffix
	if suffix == "vmware.log" {
		name = suffix
	}
	if fi, err := os.Stat(filepath.Join(b.m.dir(), name)); err == nil {
		b.file(name, string(kind), fi.Size())
	}
}

// chain is the units of a disk, the base first.
func (b *layoutBuilder) chain(l *layer, thick bool) []types.VirtualMachineFileLayoutExDiskUnit {
	var units []types.VirtualMachineFileLayoutExDiskUnit
	if l.parent != nil {
		units = b.chain(l.parent, thick)
	}
	size := l.used()
	if thick && l.parent == nil {
		size = l.size
	}
	descriptor := b.file(l.name, string(types.VirtualMachineFileLayoutExFileTypeDiskDescriptor), 1024)
	extent := b.file(l.extent(), string(types.VirtualMachineFileLayoutExFileTypeDiskExtent), size)
	return append(units, types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{descriptor, extent}})
}

// storage is where the VM's files are and what space they take.
func (m *machine) storage(datastores []types.ManagedObjectReference) []types.PropertyChange {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b := layoutBuilder{m: m}
	b.plain(".vmx", types.VirtualMachineFileLayoutExFileTypeConfig)
	b.plain(".nvram", types.VirtualMachineFileLayoutExFileTypeNvram)
	b.plain("vmware.log", types.VirtualMachineFileLayoutExFileTypeLog)
	var provisioned int64
	for i, d := range m.disks {
		provisioned += d.live.size
		b.ex.Disk = append(b.ex.Disk, types.VirtualMachineFileLayoutExDiskLayout{Key: d.key, Chain: b.chain(d.live, m.thick(i))})
	}
	for _, snap := range m.snapshots {
		layout := types.VirtualMachineFileLayoutExSnapshotLayout{Key: snap.ref, DataKey: -1, MemoryKey: -1}
		for i, d := range m.disks {
			if l := snap.layers[d.key]; l != nil {
				layout.Disk = append(layout.Disk, types.VirtualMachineFileLayoutExDiskLayout{Key: d.key, Chain: b.chain(l, m.thick(i))})
			}
		}
		b.ex.Snapshot = append(b.ex.Snapshot, layout)
	}
	b.ex.Timestamp = now()
	var committed int64
	for _, f := range b.ex.File {
		committed += f.Size
	}
	left := max(0, provisioned-committed)
	usage := types.VirtualMachineStorageInfo{Timestamp: now()}
	if len(datastores) > 0 {
		usage.PerDatastoreUsage = []types.VirtualMachineUsageOnDatastore{
			{Datastore: datastores[0], Committed: committed, Uncommitted: left, Unshared: committed},
		}
	}
	return []types.PropertyChange{
		{Name: "layoutEx", Val: b.ex},
		{Name: "storage", Val: usage},
		{Name: "summary.storage", Val: types.VirtualMachineStorageSummary{
			Committed: committed, Uncommitted: left, Unshared: committed, Timestamp: now(),
		}},
	}
}

func (m *machine) thick(disk int) bool { return disk < len(m.spec.Disks) && m.spec.Disks[disk].Thick }

// fragmented says whether there are deltas that no snapshot needs.
func (m *machine) fragmented() bool {
	for _, d := range m.disks {
		for _, l := range d.layers {
			if !m.needed(d, l) {
				return true
			}
		}
	}
	return false
}
