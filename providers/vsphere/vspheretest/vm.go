package vspheretest

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// machine is what this package knows of a VM beside the simulator's object.
type machine struct {
	ref  types.ManagedObjectReference
	spec VM
	ds   *datastore
	home string // folder of the VM in the datastore
	base string // what the names of its files begin with

	adopted bool // made through the API, and not kept for a later run

	busy sync.Mutex // held by the task that runs

	// mu guards what follows and the files of the layers. Locks of the simulator are never taken
	// while it is held.
	mu        sync.RWMutex
	power     types.VirtualMachinePowerState
	disks     []*disk
	snapshots []*snapshot // parents before children
	current   *snapshot
	lastSnap  int32 // the highest number of a snapshot of this VM
}

// disk is a disk of a machine.
type disk struct {
	key         int32
	independent bool // has no part in snapshots
	layers      []*layer
	live        *layer // where the guest writes
}

// independent says whether disks of a mode have no part in snapshots.
func independent(mode string) bool { return strings.HasPrefix(mode, "independent") }

// dir is the VM's folder on the real disk.
func (m *machine) dir() string { return filepath.Join(m.ds.dir, m.home) }

// path is the datastore path of a file of the VM.
func (m *machine) path(name string) string { return "[" + m.ds.name + "] " + m.home + "/" + name }

// escape writes a name as the API does: these three characters are special in inventory paths.
func escape(name string) string {
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(name)
}

// has says whether there is a VM with the name and place of v.
func (s *Server) has(v VM) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v = v.withDefaults()
	for _, m := range s.machines {
		if m.spec.Name == v.Name && m.spec.Folder == v.Folder && m.spec.Datacenter == s.datacenter(v.Datacenter).name {
			return true
		}
	}
	return false
}

// AddVM makes a VM and its disks. It answers the VM's id, "vm-42".
func (s *Server) AddVM(v VM) (id string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("vspheretest: add VM %q: %w", v.Name, err)
		}
	}()
	v = v.withDefaults()
	dc := s.datacenter(v.Datacenter)
	if dc == nil {
		return "", fmt.Errorf("there is no datacenter %q", v.Datacenter)
	}
	ds := dc.datastore(v.Datastore)
	switch {
	case ds == nil:
		return "", fmt.Errorf("there is no datastore %q in datacenter %q", v.Datastore, dc.name)
	case v.Name == "":
		return "", errors.New("it needs a name")
	}
	v.Datacenter, v.Datastore = dc.name, ds.name
	if s.has(v) {
		return "", errors.New("there is one of that name in the folder")
	}
	m := &machine{spec: v, ds: ds, base: fileName(v.Name)}
	if err := m.makeHome(); err != nil {
		return "", err
	}
	if err := m.makeDisks(); err != nil {
		return "", errors.Join(err, os.RemoveAll(m.dir()))
	}
	s.building.Lock()
	defer s.building.Unlock()
	if err := s.register(m, 0); err != nil {
		return "", errors.Join(err, os.RemoveAll(m.dir()))
	}
	return m.ref.Value, s.save(m)
}

// makeHome makes the folder of the VM's files: named after the VM, or after an object on vSAN.
func (m *machine) makeHome() error {
	if m.ds.kind == typeVSAN {
		b := make([]byte, 16)
		_, _ = rand.Read(b) // never fails
		m.home = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
		return os.Mkdir(m.dir(), 0o755)
	}
	for i := 0; ; i++ {
		m.home = m.base
		if i > 0 {
			m.home += " (" + strconv.Itoa(i) + ")"
		}
		if err := os.Mkdir(m.dir(), 0o755); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

func (m *machine) makeDisks() error {
	for i := range m.spec.Disks {
		d := &m.spec.Disks[i]
		name := m.base
		if i > 0 {
			name += "_" + strconv.Itoa(i)
		}
		l, err := createBase(m.dir(), name+".vmdk", d.Size, d.Content)
		if err != nil {
			return err
		}
		d.Size = l.size
		m.disks = append(m.disks, &disk{independent: independent(d.Mode), layers: []*layer{l}, live: l})
	}
	return nil
}

// register makes the simulator's object of m. id is the number that the VM had in an earlier run,
// 0 for a new one.
func (s *Server) register(m *machine, id int) error {
	dc := s.datacenter(m.spec.Datacenter)
	folder, err := s.folder(dc, m.spec.Folder)
	if err != nil {
		return err
	}
	if id > 0 {
		s.align(id - 2) // the task that makes the VM takes a number, too
	}
	devices, err := m.devices()
	if err != nil {
		return err
	}
	name := strings.ReplaceAll(m.base, "%", "_") // for now: the simulator makes a file of it
	spec := types.VirtualMachineConfigSpec{
		Name: name, GuestId: m.spec.GuestID, Version: m.spec.Hardware, Firmware: m.spec.Firmware,
		Annotation: m.spec.Annotation, NumCPUs: int32(m.spec.NumCPU), MemoryMB: m.spec.MemoryMB,
		Files: &types.VirtualMachineFileInfo{VmPathName: m.path(m.base + ".vmx")},
	}
	if spec.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd); err != nil {
		return err
	}
	for _, c := range spec.DeviceChange { // the files are there
		c.GetVirtualDeviceConfigSpec().FileOperation = ""
	}
	pool, host := dc.place()
	task := s.reg.Get(folder).(*simulator.Folder).CreateVMTask(s.sim(), &types.CreateVM_Task{This: folder, Config: spec, Pool: pool, Host: &host})
	info, err := s.observer.await(s.ctx, task.(*methods.CreateVM_TaskBody).Res.Returnval)
	if err != nil {
		return err
	}
	m.ref = info.Result.(types.ManagedObjectReference)
	if want := "vm-" + strconv.Itoa(id); id > 0 && m.ref.Value != want {
		return fmt.Errorf("it got the id %s instead of %s; was the server started with a larger inventory than before?", m.ref.Value, want)
	}
	if name != m.base {
		_ = os.Rename(filepath.Join(m.dir(), name+".nvram"), filepath.Join(m.dir(), m.base+".nvram"))
	}
	vm := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	ctx := s.sim()
	ctx.WithLock(vm, func() { s.finish(ctx, m, vm) })
	s.given(m.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machines[m.ref] = m
	return nil
}

// number is the number in an id: 42 of "vm-42".
func number(ref types.ManagedObjectReference) int {
	n, _ := strconv.Atoi(ref.Value[strings.LastIndex(ref.Value, "-")+1:])
	return n
}

// align makes the simulator's next id higher than n.
func (s *Server) align(n int) {
	obj := &mo.Task{}
	obj.Self = types.ManagedObjectReference{Type: "Task", Value: "task-" + strconv.Itoa(n)}
	s.reg.Put(obj)
	_ = s.reg.AlignCounter() // never fails
	s.reg.Remove(s.sim(), obj.Self)
}

// finish gives a new VM the properties that its creation leaves out.
func (s *Server) finish(ctx *simulator.Context, m *machine, vm *simulator.VirtualMachine) {
	v := m.spec
	power := types.VirtualMachinePowerStatePoweredOn
	if v.PoweredOff {
		power = types.VirtualMachinePowerStatePoweredOff
	}
	m.power = cmp.Or(m.power, power)
	vm.Config.ExtraConfig = nil // nothing in it tells a simulator
	changes := []types.PropertyChange{
		{Name: "name", Val: escape(v.Name)},
		{Name: "config.name", Val: escape(v.Name)},
		{Name: "summary.config.name", Val: escape(v.Name)},
		{Name: "config.guestFullName", Val: v.GuestName},
		{Name: "summary.config.guestFullName", Val: v.GuestName},
		{Name: "summary.config.annotation", Val: v.Annotation},
		{Name: "summary.config.numCpu", Val: int32(v.NumCPU)},
		{Name: "summary.config.memorySizeMB", Val: int32(v.MemoryMB)},
		{Name: "config.hardware.numCPU", Val: int32(v.NumCPU)},
		{Name: "config.hardware.memoryMB", Val: int32(v.MemoryMB)},
		{Name: "config.changeTrackingEnabled", Val: false},
		{Name: "runtime.powerState", Val: m.power},
		{Name: "summary.runtime.powerState", Val: m.power},
		{Name: "runtime.consolidationNeeded", Val: false},
	}
	if m.power == types.VirtualMachinePowerStatePoweredOn {
		changes = append(changes,
			types.PropertyChange{Name: "runtime.bootTime", Val: now()},
			types.PropertyChange{Name: "summary.runtime.bootTime", Val: now()})
		for _, d := range vm.Config.Hardware.Device {
			if c := d.GetVirtualDevice().Connectable; c != nil {
				c.Connected = c.StartConnected
			}
		}
	}
	if v.Hostname != "" {
		changes = append(changes, s.guest(vm, v)...)
	}
	s.reg.Update(ctx, vm, changes)
	if v.Template {
		vm.MarkAsTemplate(&types.MarkAsTemplate{This: vm.Self})
	}
	s.reg.Update(ctx, vm, m.storage(vm))
}

// guest is what the tools in the guest tell.
func (s *Server) guest(vm *simulator.VirtualMachine, v VM) []types.PropertyChange {
	g := *vm.Guest
	g.HostName = v.Hostname
	g.GuestId, g.GuestFullName = v.GuestID, v.GuestName
	g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
	g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	g.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
	if len(v.Addresses) > 0 {
		g.IpAddress = v.Addresses[0]
	}
	g.Net = slices.Clone(g.Net)
	for i := range g.Net {
		g.Net[i].IpAddress = v.Addresses
	}
	return []types.PropertyChange{
		{Name: "guest", Val: g},
		{Name: "summary.guest.hostName", Val: g.HostName},
		{Name: "summary.guest.ipAddress", Val: g.IpAddress},
		{Name: "summary.guest.toolsStatus", Val: g.ToolsStatus},
		{Name: "summary.guest.toolsRunningStatus", Val: g.ToolsRunningStatus},
	}
}

// DeleteVM takes a VM away with all its files, whatever is being done with it: what is being read of
// its disks breaks off.
func (s *Server) DeleteVM(vm string) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	obj, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("vspheretest: VM %q is gone", vm)
	}
	ctx := s.sim()
	ctx.WithLock(obj, func() {
		s.reg.Update(ctx, obj, []types.PropertyChange{{Name: "runtime.powerState", Val: types.VirtualMachinePowerStatePoweredOff}})
	})
	task := obj.DestroyTask(s.sim(), &types.Destroy_Task{This: m.ref})
	_, err = s.observer.await(s.ctx, task.(*methods.Destroy_TaskBody).Res.Returnval)
	return errors.Join(err, os.RemoveAll(m.dir()))
}

// machine finds a VM by its id, its name where only one has it, or its path below the VM folder.
func (s *Server) machine(vm string) (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *machine
	for ref, m := range s.machines {
		path := m.spec.Folder + "/" + m.spec.Name
		if ref.Value != vm && m.spec.Name != vm && path != vm {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("vspheretest: there are several VMs %q; name one by its id", vm)
		}
		found = m
	}
	if found == nil {
		return nil, fmt.Errorf("vspheretest: there is no VM %q", vm)
	}
	return found, nil
}

// forget drops what is known of a VM that left the inventory.
func (s *Server) forget(ref types.ManagedObjectReference) {
	s.mu.Lock()
	m := s.machines[ref]
	delete(s.machines, ref)
	for r := range s.reading {
		if m != nil && r.vm == m {
			r.abort()
		}
	}
	s.mu.Unlock()
	if m == nil {
		return
	}
	s.keepLastID()
	m.mu.Lock()
	snapshots := m.snapshots
	m.snapshots, m.current = nil, nil
	m.mu.Unlock()
	for _, snap := range snapshots {
		s.reg.Remove(s.sim(), snap.ref)
	}
	if err := os.Remove(m.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.opt.Log.Error("forget a VM", "vm", m.spec.Name, "err", err)
	}
}

// powered takes down that a VM was switched on or off. The VM's object is locked.
func (s *Server) powered(ref types.ManagedObjectReference, state types.VirtualMachinePowerState) {
	s.mu.Lock()
	m := s.machines[ref]
	s.mu.Unlock()
	if m == nil {
		return
	}
	m.mu.Lock()
	m.power = state
	m.mu.Unlock()
	if err := s.save(m); err != nil {
		s.opt.Log.Error("save a VM", "vm", m.spec.Name, "err", err)
	}
}

// devices are the VM's own, beside those that every VM has. It also gives the disks their keys.
func (m *machine) devices() (object.VirtualDeviceList, error) {
	b := deviceBuilder{}
	for i, d := range m.spec.Disks {
		disk, err := b.disk(i, d, m.path(m.disks[i].layers[0].name))
		if err != nil {
			return nil, err
		}
		m.disks[i].key = disk.Key
	}
	if m.spec.ISO != "" {
		if err := b.cdrom(m.spec.ISO); err != nil {
			return nil, err
		}
	}
	for i := range m.spec.NICs {
		if err := b.nic(i); err != nil {
			return nil, err
		}
	}
	return b.list, nil
}
