package vspheretest

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// mold is a VM that the simulator has made by itself. All VMs of a cluster are cast in one: for the
// simulator to make each would take some ten times as long.
type mold struct{ vm simulator.VirtualMachine }

// moldHome is the folder of the molds. The simulator logs what it does with the VMs there.
const moldHome = ".simulator"

func (s *Server) newMold(dc *datacenter, c cluster, number int) (*mold, error) {
	ds := dc.datastores[0]
	name := fmt.Sprintf("mold-%d", number)
	home := fmt.Sprintf("%s/%s", moldHome, name)
	dir := filepath.Join(ds.dir, filepath.FromSlash(home))
	if err := os.RemoveAll(dir); err != nil { // of an earlier run
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	spec := types.VirtualMachineConfigSpec{
		Name: name, GuestId: "otherGuest", Files: &types.VirtualMachineFileInfo{VmPathName: "[" + ds.name + "] " + home + "/" + name + ".vmx"},
	}
	folder := s.reg.Get(dc.vmFolder).(*simulator.Folder)
	task := folder.CreateVMTask(s.sim(), &types.CreateVM_Task{This: folder.Self, Config: spec, Pool: c.pool, Host: &c.hosts[0]})
	info, err := s.observer.await(s.ctx, task.(*methods.CreateVM_TaskBody).Res.Returnval)
	if err != nil {
		return nil, fmt.Errorf("mold: %w", err)
	}
	vm := s.reg.Get(info.Result.(types.ManagedObjectReference)).(*simulator.VirtualMachine)
	m := &mold{vm: *vm}
	m.vm.VirtualMachine = deepCopy(vm.VirtualMachine)
	m.vm.RecentTask = nil
	if fail := vm.UnregisterVM(s.sim(), &types.UnregisterVM{This: vm.Self}).Fault(); fail != nil {
		return nil, fmt.Errorf("mold: %s", fail.String)
	}
	return m, nil
}

// cast makes a VM that is not in the inventory yet. It also gives the disks their keys.
func (mold *mold) cast(m *machine, dc *datacenter) (*simulator.VirtualMachine, error) {
	vm := mold.vm
	vm.VirtualMachine = deepCopy(mold.vm.VirtualMachine)
	vm.DataSets = map[string]*simulator.DataSet{}
	if m.power == "" {
		m.power = types.VirtualMachinePowerStatePoweredOn
		if m.spec.PoweredOff {
			m.power = types.VirtualMachinePowerStatePoweredOff
		}
	}
	if err := m.equip(&vm.VirtualMachine, dc); err != nil {
		return nil, err
	}
	m.describe(&vm.VirtualMachine)
	m.describeUntracked(&vm.VirtualMachine)
	m.describeGuest(&vm.VirtualMachine)
	mo.ApplyPropertyChange(&vm.VirtualMachine, m.storage([]types.ManagedObjectReference{m.ds.ref}))
	return &vm, nil
}

func (m *machine) running() bool { return m.power == types.VirtualMachinePowerStatePoweredOn }

// equip gives the VM its devices.
func (m *machine) equip(vm *mo.VirtualMachine, dc *datacenter) error {
	b := deviceBuilder{list: vm.Config.Hardware.Device, controllers: map[string][]types.BaseVirtualController{}}
	var err error
	for i, d := range m.spec.Disks {
		if m.disks[i].key, err = b.disk(i, d, m.path(m.disks[i].layers[0].name), m.ds.ref); err != nil {
			return err
		}
	}
	if m.spec.ISO != "" {
		if err := b.cdrom(m.spec.ISO, m.running()); err != nil {
			return err
		}
	}
	vm.Network, vm.Guest.Net = nil, nil
	for i := range m.spec.NICs {
		nic := b.nic(i, m, dc.network)
		vm.Network = []types.ManagedObjectReference{dc.network}
		vm.Guest.Net = append(vm.Guest.Net, types.GuestNicInfo{
			Network: vmNetwork, MacAddress: nic.MacAddress, Connected: m.running(), DeviceConfigId: nic.Key, IpAddress: m.spec.Addresses,
		})
	}
	vm.Config.Hardware.Device = slices.Clip(b.list)
	vm.Summary.Config.NumEthernetCards = int32(len(vm.Guest.Net))
	vm.Summary.Config.NumVirtualDisks = int32(len(m.disks))
	vm.Capability.ChangeTrackingSupported = len(m.disks) > 0 && canTrack(m.spec.Hardware)
	return nil
}

// describe says what the VM is.
func (m *machine) describe(vm *mo.VirtualMachine) {
	v, c, sum := m.spec, vm.Config, &vm.Summary.Config
	vm.Name = escape(v.Name)
	c.Name, sum.Name = vm.Name, vm.Name
	c.Uuid, sum.Uuid = uuid("bios", m.path("")), uuid("bios", m.path(""))
	c.InstanceUuid, sum.InstanceUuid = uuid("instance", m.path("")), uuid("instance", m.path(""))
	c.GuestId, sum.GuestId = v.GuestID, v.GuestID
	c.GuestFullName, sum.GuestFullName = v.GuestName, v.GuestName
	c.Annotation, sum.Annotation = v.Annotation, v.Annotation
	c.Version, sum.HwVersion = v.Hardware, v.Hardware
	c.Template, sum.Template = v.Template, v.Template
	c.Firmware = v.Firmware
	c.Hardware.NumCPU, sum.NumCpu = int32(v.NumCPU), int32(v.NumCPU)
	c.Hardware.MemoryMB, sum.MemorySizeMB = int32(v.MemoryMB), int32(v.MemoryMB)
	c.ChangeTrackingEnabled = types.NewBool(m.tracking)
	c.ExtraConfig = nil
	home := (&object.DatastorePath{Datastore: m.ds.name, Path: m.home}).String()
	c.Files = types.VirtualMachineFileInfo{
		VmPathName: m.path(m.base + ".vmx"), SnapshotDirectory: home, SuspendDirectory: home, LogDirectory: home,
	}
	sum.VmPathName = c.Files.VmPathName
	vm.Datastore = []types.ManagedObjectReference{m.ds.ref}

	vm.Runtime.PowerState = m.power
	if m.running() {
		vm.Runtime.BootTime = types.NewTime(now())
	}
	vm.Summary.Runtime = vm.Runtime
}

// describeGuest says what the tools in the guest tell; nothing, where it has no name.
func (m *machine) describeGuest(vm *mo.VirtualMachine) {
	v, g, sum := m.spec, vm.Guest, vm.Summary.Guest
	sum.GuestId, sum.GuestFullName = v.GuestID, v.GuestName
	if v.Hostname == "" {
		return
	}
	g.HostName, g.GuestId, g.GuestFullName = v.Hostname, v.GuestID, v.GuestName
	g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
	g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	g.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
	if len(v.Addresses) > 0 {
		g.IpAddress = v.Addresses[0]
	}
	sum.HostName, sum.IpAddress = g.HostName, g.IpAddress
	sum.ToolsStatus, sum.ToolsRunningStatus, sum.ToolsVersionStatus2 = g.ToolsStatus, g.ToolsRunningStatus, g.ToolsVersionStatus2
}

// deepCopy copies a value of the API, so that neither sees a later change of the other.
func deepCopy[T any](v T) T { return copyOf(reflect.ValueOf(&v).Elem()).Interface().(T) }

func copyOf(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			out.Set(reflect.New(v.Type().Elem()))
			out.Elem().Set(copyOf(v.Elem()))
		}
	case reflect.Interface:
		if !v.IsNil() {
			out.Set(copyOf(v.Elem()))
		}
	case reflect.Slice:
		if !v.IsNil() {
			out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				out.Index(i).Set(copyOf(v.Index(i)))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() { // time.Time has none that are
				out.Field(i).Set(copyOf(v.Field(i)))
			}
		}
	}
	return out
}
