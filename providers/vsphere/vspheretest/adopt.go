package vspheretest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// machineOf is the machine of a VM of the simulator; one that was not made by [Server.AddVM] is taken
// up as it is.
func (s *Server) machineOf(ref types.ManagedObjectReference) (*machine, error) {
	s.mu.Lock()
	m := s.machines[ref]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	vm, ok := s.reg.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil, fmt.Errorf("vspheretest: there is no VM %s", ref.Value)
	}
	var err error
	s.sim().WithLock(vm, func() { m, err = s.adopt(vm) })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.machines[ref]; other != nil {
		return other, nil
	}
	s.machines[ref] = m
	return m, nil
}

// adopt describes a VM that was made through the API. Its object is locked.
func (s *Server) adopt(vm *simulator.VirtualMachine) (*machine, error) {
	var vmx object.DatastorePath
	if !vmx.FromString(vm.Config.Files.VmPathName) {
		return nil, fmt.Errorf("vspheretest: VM %s has no files", vm.Self.Value)
	}
	m := &machine{ref: vm.Self, power: vm.Runtime.PowerState, adopted: true}
	for _, dc := range s.datacenters {
		for _, ref := range vm.Datastore {
			if ds, ok := s.reg.Get(ref).(*simulator.Datastore); ok && ds.Name == vmx.Datastore {
				if one := dc.datastore(vmx.Datastore); one != nil && one.ref == ref { // others may have the name
					m.ds, m.spec.Datacenter = one, dc.name
				}
			}
		}
	}
	if m.ds == nil {
		return nil, fmt.Errorf("vspheretest: VM %s is on an unknown datastore %q", vm.Self.Value, vmx.Datastore)
	}
	m.spec.Hardware = vm.Config.Version
	m.home = filepath.Dir(vmx.Path)
	m.base = strings.TrimSuffix(filepath.Base(vmx.Path), ".vmx")
	m.spec.Name = strings.NewReplacer("%2f", "/", "%5c", `\`, "%25", "%").Replace(vm.Name)
	for _, d := range vm.Config.Hardware.Device {
		virtual, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		backing, ok := virtual.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		var file object.DatastorePath
		if !ok || !file.FromString(backing.FileName) {
			continue
		}
		l := &layer{dir: filepath.Join(m.ds.dir, filepath.Dir(file.Path)), name: filepath.Base(file.Path), size: virtual.CapacityInBytes}
		if err := os.Truncate(l.path(), l.size); err != nil {
			return nil, err
		}
		m.disks = append(m.disks, &disk{key: virtual.Key, independent: independent(backing.DiskMode), layers: []*layer{l}, live: l})
		m.spec.Disks = append(m.spec.Disks, Disk{Size: l.size, Mode: backing.DiskMode})
	}
	return m, nil
}
