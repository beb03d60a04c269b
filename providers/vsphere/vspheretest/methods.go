package vspheretest

import (
	"github.com/vmware/govmomi/vim25/types"
)

// method answers a call with a response of the API, or a fault.
type method func(s *Server, c *call) (any, *types.LocalizedMethodFault)

// ownMethods are the methods that this package answers instead of the simulator.
var ownMethods = map[string]method{
	"CreateSnapshot_Task":          createSnapshot,
	"CreateSnapshotEx_Task":        createSnapshotEx,
	"RemoveSnapshot_Task":          removeSnapshot,
	"RemoveAllSnapshots_Task":      removeAllSnapshots,
	"RevertToSnapshot_Task":        revertToSnapshot,
	"RevertToCurrentSnapshot_Task": revertToCurrentSnapshot,
	"ConsolidateVMDisks_Task":      consolidateDisks,
	"CloneVM_Task":                 cloneVM,
	"ShutdownGuest":                shutdownGuest,
	"ReconfigVM_Task":              reconfigure,
	"AnswerVM":                     answerVM,
	"ExportVm":                     exportVM,
	"ExportSnapshot":               exportSnapshot,
	"ImportVApp":                   importVApp,
	"CreateDescriptor":             describeOVF,
	"QueryChangedDiskAreas":        queryChangedAreas,
}

// work is what a task does.
type work = func() (types.AnyType, *types.LocalizedMethodFault)

func createSnapshot(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.CreateSnapshot_Task)
	snap := &snapshot{name: req.Name, description: req.Description, quiesced: req.Quiesce, memory: req.Memory}
	ref, fail := s.onVM(c, func(m *machine) work { return s.snapshotWork(m, snap) })
	return &types.CreateSnapshot_TaskResponse{Returnval: ref}, fail
}

func createSnapshotEx(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.CreateSnapshotEx_Task)
	snap := &snapshot{name: req.Name, description: req.Description, quiesced: req.QuiesceSpec != nil, memory: req.Memory}
	ref, fail := s.onVM(c, func(m *machine) work { return s.snapshotWork(m, snap) })
	return &types.CreateSnapshotEx_TaskResponse{Returnval: ref}, fail
}

func (s *Server) snapshotWork(m *machine, snap *snapshot) work {
	return func() (types.AnyType, *types.LocalizedMethodFault) {
		snap.quiesced = snap.quiesced && s.canQuiesce(m)
		if fail := s.takeSnapshot(m, snap); fail != nil {
			return nil, fail
		}
		return snap.ref, nil
	}
}

func removeSnapshot(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.RemoveSnapshot_Task)
	consolidate := req.Consolidate == nil || *req.Consolidate
	ref, fail := s.onSnapshot(c, func(m *machine, snap *snapshot) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) {
			return nil, s.dropSnapshots(m, consolidate, func(other *snapshot) bool {
				return other == snap || req.RemoveChildren && other.below(snap)
			})
		}
	})
	return &types.RemoveSnapshot_TaskResponse{Returnval: ref}, fail
}

func removeAllSnapshots(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.RemoveAllSnapshots_Task)
	consolidate := req.Consolidate == nil || *req.Consolidate
	ref, fail := s.onVM(c, func(m *machine) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) {
			return nil, s.dropSnapshots(m, consolidate, func(*snapshot) bool { return true })
		}
	})
	return &types.RemoveAllSnapshots_TaskResponse{Returnval: ref}, fail
}

func revertToSnapshot(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	ref, fail := s.onSnapshot(c, func(m *machine, snap *snapshot) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) { return nil, s.revert(m, snap) }
	})
	return &types.RevertToSnapshot_TaskResponse{Returnval: ref}, fail
}

func revertToCurrentSnapshot(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	ref, fail := s.onVM(c, func(m *machine) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) {
			m.mu.RLock()
			snap := m.current
			m.mu.RUnlock()
			if snap == nil {
				return nil, fault(&types.NotFound{}, "The VM has no snapshot.")
			}
			return nil, s.revert(m, snap)
		}
	})
	return &types.RevertToCurrentSnapshot_TaskResponse{Returnval: ref}, fail
}

func consolidateDisks(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	ref, fail := s.onVM(c, func(m *machine) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) { return nil, s.consolidate(m) }
	})
	return &types.ConsolidateVMDisks_TaskResponse{Returnval: ref}, fail
}

// onVM starts a task on the VM that a call is on.
func (s *Server) onVM(c *call, do func(*machine) work) (types.ManagedObjectReference, *types.LocalizedMethodFault) {
	m, err := s.machineOf(c.this)
	if err != nil {
		return c.this, gone(c.this)
	}
	return s.start(s.task(c, m.ref, m, do(m))), nil
}

// onSnapshot starts a task on the VM of the snapshot that a call is on.
func (s *Server) onSnapshot(c *call, do func(*machine, *snapshot) work) (types.ManagedObjectReference, *types.LocalizedMethodFault) {
	m, snap := s.owner(c.this)
	if m == nil {
		return c.this, gone(c.this)
	}
	return s.start(s.task(c, m.ref, m, do(m, snap))), nil
}

func gone(ref types.ManagedObjectReference) *types.LocalizedMethodFault {
	return fault(&types.ManagedObjectNotFound{Obj: ref}, "The object '%s:%s' has already been deleted or has not been completely created.", "vim."+ref.Type, ref.Value)
}

// below says whether s was taken on top of other, by whatever steps.
func (s *snapshot) below(other *snapshot) bool {
	for p := s.parent; p != nil; p = p.parent {
		if p == other {
			return true
		}
	}
	return false
}
