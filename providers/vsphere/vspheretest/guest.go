package vspheretest

import (
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// shutdownGuest asks the guest to shut down, which takes its time, or never does. While it does, its
// tools do not run any more.
func shutdownGuest(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	m, err := s.machineOf(c.this)
	if err != nil {
		return nil, gone(c.this)
	}
	vm := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	power, tools := s.guest(vm)
	switch {
	case power != types.VirtualMachinePowerStatePoweredOn:
		return nil, fault(&types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: power},
			"The attempted operation cannot be performed in the current state (%s).", power)
	case !tools:
		return nil, fault(&types.ToolsUnavailable{}, "Cannot complete operation because VMware Tools is not running in this virtual machine.")
	}
	if !m.spec.Stubborn {
		s.setTools(vm, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
		s.work.Go(func() {
			if !wait(s.ctx, time.Duration(m.spec.ShutdownTime)) {
				return
			}
			task := vm.PowerOffVMTask(s.sim(), &types.PowerOffVM_Task{This: vm.Self})
			_, _ = s.observer.await(s.ctx, task.(*methods.PowerOffVM_TaskBody).Res.Returnval) // another hand may have been faster
			s.setTools(vm, types.VirtualMachineToolsRunningStatusGuestToolsRunning)           // at its next start
		})
	}
	return &types.ShutdownGuestResponse{}, nil
}

// guest says whether a VM runs, and whether the tools in it do.
func (s *Server) guest(vm *simulator.VirtualMachine) (power types.VirtualMachinePowerState, tools bool) {
	s.sim().WithLock(vm, func() {
		power = vm.Runtime.PowerState
		tools = vm.Guest != nil && vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	})
	return power, tools
}

func (s *Server) setTools(vm *simulator.VirtualMachine, status types.VirtualMachineToolsRunningStatus) {
	s.reg.AtomicUpdate(s.sim(), vm, []types.PropertyChange{{Name: "guest.toolsRunningStatus", Val: string(status)}})
}

// canQuiesce says whether the guest's file systems can be brought to rest: where they cannot, vSphere
// takes the snapshot without.
func (s *Server) canQuiesce(m *machine) bool {
	vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return false
	}
	power, tools := s.guest(vm)
	return power == types.VirtualMachinePowerStatePoweredOn && tools
}

// lockedDrive is what a VM asks whose guest holds on to the CD that is taken from it.
const lockedDrive = "msg.cdromdisconnect.locked"

// reconfigure changes a VM. IDE drives are neither plugged in nor out while it runs, and a guest that
// holds on to a drive makes the VM ask.
func reconfigure(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.ReconfigVM_Task)
	ref, fail := s.onVM(c, func(m *machine) work {
		return func() (types.AnyType, *types.LocalizedMethodFault) { return nil, s.reconfigure(m, req) }
	})
	return &types.ReconfigVM_TaskResponse{Returnval: ref}, fail
}

func (s *Server) reconfigure(m *machine, req *types.ReconfigVM_Task) *types.LocalizedMethodFault {
	vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return gone(m.ref)
	}
	if on := req.Spec.ChangeTrackingEnabled; on != nil && *on && !canTrack(m.spec.Hardware) {
		return fault(&types.NotSupported{}, "The operation is not supported on the object.")
	}
	var hot, locked bool
	s.sim().WithLock(vm, func() {
		running := vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff
		for _, change := range req.Spec.DeviceChange {
			spec := change.GetVirtualDeviceConfigSpec()
			cd, ok := spec.Device.(*types.VirtualCdrom)
			if !ok || !running {
				continue
			}
			edit := spec.Operation == types.VirtualDeviceConfigSpecOperationEdit
			_, ide := object.VirtualDeviceList(vm.Config.Hardware.Device).FindByKey(cd.ControllerKey).(*types.VirtualIDEController)
			hot = hot || ide && !edit
			locked = locked || edit && m.spec.LockedDrive && cd.Connectable != nil && !cd.Connectable.Connected
		}
	})
	if hot {
		return fault(&types.GenericVmConfigFault{Reason: "The device cannot be hot plugged."}, "Hot-plug of an IDE device is not supported.")
	}
	if locked && !s.ask(vm) {
		return fault(&types.GenericVmConfigFault{Reason: "The guest has locked the drive."}, "The guest operating system has locked the CD-ROM door.")
	}
	task := vm.ReconfigVMTask(s.sim(), req)
	info, err := s.observer.await(s.ctx, task.(*methods.ReconfigVM_TaskBody).Res.Returnval)
	if info.Error != nil {
		return info.Error
	}
	if err != nil {
		return fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
	}
	return s.setTracking(m, req.Spec.ChangeTrackingEnabled)
}

// ask lets a VM ask about its drive, and waits for the answer: whether it is yes.
func (s *Server) ask(vm *simulator.VirtualMachine) bool {
	answer := make(chan string, 1)
	s.mu.Lock()
	s.questions[vm.Self] = answer
	s.mu.Unlock()
	choice := func(key, label string) types.BaseElementDescription {
		return &types.ElementDescription{Key: key, Description: types.Description{Label: label, Summary: label}}
	}
	question := &types.VirtualMachineQuestionInfo{
		Id: "1", Text: "The guest operating system has locked the CD-ROM door. Disconnect anyway (and override the lock)?",
		Choice:  types.ChoiceOption{ChoiceInfo: []types.BaseElementDescription{choice("0", "Yes"), choice("1", "No")}},
		Message: []types.VirtualMachineMessage{{Id: lockedDrive, Text: "The guest operating system has locked the CD-ROM door."}},
	}
	set := func(q *types.VirtualMachineQuestionInfo) {
		s.sim().WithLock(vm, func() { vm.Runtime.Question = q })
	}
	set(question)
	defer set(nil)
	select {
	case key := <-answer:
		return key == "0"
	case <-s.ctx.Done():
		return false
	}
}

// answerVM answers what a VM asked.
func answerVM(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.AnswerVM)
	s.mu.Lock()
	answer := s.questions[c.this]
	delete(s.questions, c.this)
	s.mu.Unlock()
	if answer == nil {
		return nil, fault(&types.InvalidArgument{InvalidProperty: "questionId"}, "The VM has not asked anything.")
	}
	answer <- req.AnswerChoice
	return &types.AnswerVMResponse{}, nil
}
