package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// heavy is what a full description asks of a VM beside [light].
var heavy = []string{"config", "guest.hostName", "guest.ipAddress", "guest.net", "layoutEx", "snapshot", "runtime"}

// machine is a VM with the things around it that its description names.
type machine struct {
	mo.VirtualMachine
	tree       tree
	names      map[types.ManagedObjectReference]string // of hosts and networks
	stores     map[types.ManagedObjectReference]datastore
	portgroups map[string]string // name by key
}

// datastore is where files are: its name as stored, and its kind, "VMFS".
type datastore struct{ name, kind string }

// machine reads a VM, with what it lies in, runs on and is stored on, in one query.
func (p *Provider) machine(ctx context.Context, id providers.VMID, props []string) (*machine, error) {
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: string(id)}
	to := func(kind, path string, then ...types.BaseSelectionSpec) *types.TraversalSpec {
		return &types.TraversalSpec{Type: kind, Path: path, SelectSet: then}
	}
	up := to("ManagedEntity", "parent", &types.SelectionSpec{Name: "up"}, &types.SelectionSpec{Name: "out"})
	up.Name = "up"
	out := to("VirtualApp", "parentFolder", &types.SelectionSpec{Name: "up"})
	out.Name = "out"
	objects, err := p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: ref,
			SelectSet: []types.BaseSelectionSpec{
				up, out,
				to("VirtualMachine", "parentVApp", &types.SelectionSpec{Name: "up"}, &types.SelectionSpec{Name: "out"}),
				to("VirtualMachine", "runtime.host"),
				to("VirtualMachine", "datastore"),
				to("VirtualMachine", "network"),
			},
		}},
		PropSet: append([]types.PropertySpec{
			{Type: "VirtualMachine", PathSet: union(light, props)},
			{Type: "HostSystem", PathSet: []string{"name"}},
			{Type: "Datastore", PathSet: []string{"name", "summary.type"}},
			{Type: "Network", PathSet: []string{"name"}},
			{Type: "OpaqueNetwork", PathSet: []string{"name", "summary"}},
			{Type: "DistributedVirtualPortgroup", PathSet: []string{"name", "key"}},
		}, above...),
	})
	gone := &providers.Error{Op: "vsphere: read VM", Object: string(id), Reason: providers.NotFound, Msg: "there is no such VM"}
	if notThere(err) {
		return nil, gone
	}
	if err != nil {
		return nil, err
	}
	m := &machine{
		tree: tree{}, names: map[types.ManagedObjectReference]string{},
		stores: map[types.ManagedObjectReference]datastore{}, portgroups: map[string]string{},
	}
	for _, o := range objects {
		if o.Obj != ref {
			o.MissingSet = nil // a host that we may not see costs its name, not the description
		}
		entity, err := decode(o)
		if err != nil {
			return nil, err
		}
		m.add(entity)
	}
	if m.Self != ref {
		return nil, gone
	}
	return m, nil
}

// union is a and b, each path once and none below another: a path that another begins with is asked
// for only as part of that.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	var out []string
	for _, p := range all {
		below := slices.ContainsFunc(all, func(q string) bool { return len(q) < len(p) && p[:len(q)+1] == q+"." })
		if !below && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func (m *machine) add(entity any) {
	m.tree.add(entity)
	switch e := entity.(type) {
	case mo.VirtualMachine:
		m.VirtualMachine = e
	case mo.HostSystem:
		m.names[e.Self] = unescape(e.Name)
	case mo.Datastore:
		m.stores[e.Self] = datastore{name: e.Name, kind: e.Summary.Type}
	case mo.Network:
		m.names[e.Self] = unescape(e.Name)
	case mo.OpaqueNetwork:
		m.names[e.Self] = unescape(e.Name)
		if s, ok := e.Summary.(*types.OpaqueNetworkSummary); ok {
			m.portgroups[s.OpaqueNetworkId] = unescape(e.Name)
		}
	case mo.DistributedVirtualPortgroup:
		m.names[e.Self] = unescape(e.Name)
		m.portgroups[e.Key] = unescape(e.Name)
	}
}

// describe tells all that the platform knows of the VM. A VM whose files cannot be reached has no
// configuration; the rest of it is told all the same.
func (m *machine) describe() providers.VM {
	vm := describe(&m.VirtualMachine, m.tree)
	if m.Runtime.Host != nil {
		vm.Host = m.names[*m.Runtime.Host]
	}
	if g := m.Guest; g != nil {
		vm.Hostname = g.HostName
		vm.Addresses = addresses(g)
	}
	vm.Snapshots = snapshots(m.Snapshot)
	for i := range vm.Snapshots {
		vm.Snapshots[i].Description = unmark(vm.Snapshots[i].Description)
	}
	c := m.Config
	if c == nil {
		return vm
	}
	vm.UUID, vm.Firmware, vm.HardwareVersion, vm.Annotation = c.Uuid, c.Firmware, c.Version, c.Annotation
	vm.GuestID = c.GuestId
	vm.ChangeTracking = c.ChangeTrackingEnabled != nil && *c.ChangeTrackingEnabled
	vm.Template = c.Template
	vm.Disks = m.disks(c.Hardware.Device)
	for _, d := range c.Hardware.Device {
		switch d := d.(type) {
		case *types.VirtualCdrom:
			vm.CDROMs = append(vm.CDROMs, cdrom(d))
		case types.BaseVirtualEthernetCard:
			vm.NICs = append(vm.NICs, m.nic(d))
		}
	}
	return vm
}

func addresses(g *types.GuestInfo) []string {
	var out []string
	add := func(a string) {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	add(g.IpAddress)
	for _, n := range g.Net {
		for _, a := range n.IpAddress {
			add(a)
		}
	}
	return out
}

// disks describes the virtual disks among devices, which are those of the VM or of a snapshot.
func (m *machine) disks(devices []types.BaseVirtualDevice) []providers.Disk {
	list := object.VirtualDeviceList(devices)
	var out []providers.Disk
	for _, dev := range devices {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		disk := providers.Disk{
			ID: diskID(d), Label: label(&d.VirtualDevice), Size: capacity(d), Used: m.used(d.Key),
		}
		if d.UnitNumber != nil {
			disk.Unit = int(*d.UnitNumber)
		}
		if c := list.FindByKey(d.ControllerKey); c != nil {
			disk.Controller = controller(c)
			if b, ok := c.(types.BaseVirtualController); ok {
				disk.Bus = int(b.GetVirtualController().BusNumber)
			}
		}
		if b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
			file := b.GetVirtualDeviceFileBackingInfo()
			disk.Path = file.FileName
			if file.Datastore != nil {
				store := m.stores[*file.Datastore]
				disk.Datastore, disk.DatastoreType = unescape(store.name), store.kind
			}
		}
		disk.Mode, disk.Thin = mode(d.Backing)
		disk.ChangeID = changeID(d.Backing)
		out = append(out, disk)
	}
	return out
}

func diskID(d *types.VirtualDisk) providers.DiskID {
	return providers.DiskID(strconv.Itoa(int(d.Key)))
}

// capacity is in bytes. Old hosts tell it in KiB only.
func capacity(d *types.VirtualDisk) int64 {
	if d.CapacityInBytes != 0 {
		return d.CapacityInBytes
	}
	return d.CapacityInKB << 10
}

// used is the space that all files of a disk take, 0 where the platform does not say.
func (m *machine) used(key int32) int64 {
	if m.LayoutEx == nil {
		return 0
	}
	size := map[int32]int64{}
	for _, f := range m.LayoutEx.File {
		size[f.Key] = f.Size
	}
	var sum int64
	for _, d := range m.LayoutEx.Disk {
		if d.Key != key {
			continue
		}
		for _, unit := range d.Chain {
			for _, k := range unit.FileKey {
				sum += size[k]
			}
		}
	}
	return sum
}

// mode is the mode of a disk with this backing, and whether it is thin.
func mode(b types.BaseVirtualDeviceBackingInfo) (string, bool) {
	switch b := b.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return b.DiskMode, b.ThinProvisioned != nil && *b.ThinProvisioned
	case *types.VirtualDiskSeSparseBackingInfo:
		return b.DiskMode, true
	case *types.VirtualDiskSparseVer2BackingInfo:
		return b.DiskMode, true
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return b.DiskMode, false
	}
	return "", false
}

func controller(c types.BaseVirtualDevice) string {
	switch c.(type) {
	case *types.ParaVirtualSCSIController:
		return "pvscsi"
	case *types.VirtualLsiLogicSASController:
		return "lsilogicsas"
	case *types.VirtualLsiLogicController:
		return "lsilogic"
	case *types.VirtualBusLogicController:
		return "buslogic"
	case *types.VirtualIDEController:
		return "ide"
	case types.BaseVirtualSATAController:
		return "sata"
	case *types.VirtualNVMEController:
		return "nvme"
	case types.BaseVirtualSCSIController:
		return "scsi"
	}
	return ""
}

func label(d *types.VirtualDevice) string {
	if d.DeviceInfo != nil {
		if l := d.DeviceInfo.GetDescription().Label; l != "" {
			return l
		}
	}
	return fmt.Sprintf("device %d", d.Key)
}

func connected(d *types.VirtualDevice) bool { return d.Connectable != nil && d.Connectable.Connected }

func cdrom(d *types.VirtualCdrom) providers.CDROM {
	out := providers.CDROM{ID: strconv.Itoa(int(d.Key)), Label: label(&d.VirtualDevice), Connected: connected(&d.VirtualDevice)}
	switch b := d.Backing.(type) {
	case types.BaseVirtualDeviceFileBackingInfo:
		out.Media = b.GetVirtualDeviceFileBackingInfo().FileName
	case types.BaseVirtualDeviceDeviceBackingInfo:
		out.Media = b.GetVirtualDeviceDeviceBackingInfo().DeviceName
	}
	return out
}

func (m *machine) nic(d types.BaseVirtualEthernetCard) providers.NIC {
	c := d.GetVirtualEthernetCard()
	out := providers.NIC{
		ID: strconv.Itoa(int(c.Key)), Label: label(&c.VirtualDevice), Model: model(d), MAC: c.MacAddress,
		Connected: connected(&c.VirtualDevice),
	}
	switch b := c.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		out.Network = b.DeviceName
		if b.Network != nil && m.names[*b.Network] != "" {
			out.Network = m.names[*b.Network]
		}
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		out.Network = m.portgroups[b.Port.PortgroupKey]
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		out.Network = m.portgroups[b.OpaqueNetworkId]
	}
	return out
}

func model(d types.BaseVirtualEthernetCard) string {
	switch d.(type) {
	case *types.VirtualVmxnet3, *types.VirtualVmxnet3Vrdma:
		return "vmxnet3"
	case *types.VirtualVmxnet2:
		return "vmxnet2"
	case *types.VirtualE1000:
		return "e1000"
	case *types.VirtualE1000e:
		return "e1000e"
	case *types.VirtualPCNet32:
		return "pcnet32"
	case *types.VirtualSriovEthernetCard:
		return "sriov"
	}
	return ""
}
