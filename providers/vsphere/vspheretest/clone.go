package vspheretest

import (
	"io"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// cloneVM copies a VM as it is, with the content of its disks: the simulator's clones have none. Several
// clones of a VM may be made at once.
func cloneVM(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.CloneVM_Task)
	m, err := s.machineOf(c.this)
	if err != nil {
		return nil, gone(c.this)
	}
	ref := s.start(s.task(c, m.ref, nil, func() (types.AnyType, *types.LocalizedMethodFault) { return s.clone(m, req) }))
	return &types.CloneVM_TaskResponse{Returnval: ref}, nil
}

func (s *Server) clone(m *machine, req *types.CloneVM_Task) (types.AnyType, *types.LocalizedMethodFault) {
	v := m.spec
	v.Name, v.PoweredOff, v.Template = unescape(req.Name), !req.Spec.PowerOn, req.Spec.Template
	dc, folder := s.folderOf(req.Folder)
	if dc == nil {
		return nil, fault(&types.InvalidArgument{InvalidProperty: "folder"}, "A specified parameter was not correct: folder")
	}
	v.Datacenter, v.Folder = dc.name, folder
	if ref := req.Spec.Location.Datastore; ref != nil {
		v.Datastore = s.reg.Get(*ref).(*simulator.Datastore).Name
	}
	if vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine); m.spec.Template && ok && req.Spec.Location.Pool == nil {
		return nil, fault(&types.InvalidArgument{InvalidProperty: "spec.location.pool"}, "%s is a template; its clone needs a resource pool.", vm.Name)
	}
	taken := fault(&types.DuplicateName{Name: req.Name, Object: req.Folder}, "The name '%s' already exists.", req.Name)
	if s.has(v) {
		return nil, taken
	}
	v.Disks = append([]Disk(nil), v.Disks...)
	for i := range v.Disks {
		im := &Image{vm: m, disk: m.disks[i]}
		v.Disks[i].Size, v.Disks[i].Content = im.Size(), FromReader(io.NewSectionReader(im, 0, im.Size()))
	}
	id, err := s.AddVM(v)
	if err != nil && s.has(v) {
		return nil, taken
	}
	if err != nil {
		return nil, fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
	}
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: id}
	vm := s.reg.Get(ref).(*simulator.VirtualMachine)
	s.sim().WithLock(vm, func() {
		if req.Spec.Config != nil {
			vm.Config.ExtraConfig = req.Spec.Config.ExtraConfig
		}
	})
	return ref, nil
}

// folderOf finds a folder of VMs: its datacenter and its path in there.
func (s *Server) folderOf(ref types.ManagedObjectReference) (*datacenter, string) {
	s.building.Lock()
	defer s.building.Unlock()
	for _, dc := range s.datacenters {
		if dc.vmFolder == ref {
			return dc, ""
		}
		for path, folder := range dc.folders {
			if folder == ref {
				return dc, path
			}
		}
	}
	return nil, ""
}
