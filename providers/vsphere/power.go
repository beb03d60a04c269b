package vsphere

import (
	"context"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

func vmRef(id providers.VMID) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachine", Value: string(id)}
}

// Power is whether the VM runs.
func (p *Provider) Power(ctx context.Context, vm providers.VMID) (providers.Power, error) {
	s, err := p.powerOf(ctx, vm)
	return s, fail("power state of", string(vm), err)
}

func (p *Provider) powerOf(ctx context.Context, vm providers.VMID) (providers.Power, error) {
	m, err := load[mo.VirtualMachine](ctx, p, vmRef(vm), "runtime.powerState")
	return power(m.Runtime.PowerState), err
}

// PowerOn starts the VM, or lets one that is suspended go on.
func (p *Provider) PowerOn(ctx context.Context, vm providers.VMID) error {
	return fail("power on", string(vm), p.switchTo(ctx, vm, providers.PowerOn, func() (types.ManagedObjectReference, error) {
		res, err := methods.PowerOnVM_Task(ctx, p.soap, &types.PowerOnVM_Task{This: vmRef(vm)})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}))
}

// PowerOff takes the power away.
func (p *Provider) PowerOff(ctx context.Context, vm providers.VMID) error {
	return fail("power off", string(vm), p.switchTo(ctx, vm, providers.PowerOff, func() (types.ManagedObjectReference, error) {
		res, err := methods.PowerOffVM_Task(ctx, p.soap, &types.PowerOffVM_Task{This: vmRef(vm)})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}))
}

// switchTo brings a VM into a power state by a task. A task that failed because another hand, or an
// earlier attempt, was faster has done its work.
func (p *Provider) switchTo(ctx context.Context, vm providers.VMID, want providers.Power, begin func() (types.ManagedObjectReference, error)) error {
	is, err := p.powerOf(ctx, vm)
	if err != nil || is == want {
		return err
	}
	task, err := begin()
	if err == nil {
		err = p.waitFor(ctx, vm, task)
	}
	if isFault[*types.InvalidPowerState](err) {
		if is, again := p.powerOf(ctx, vm); again == nil && is == want {
			return nil
		}
	}
	return err
}

// ShutDown asks the guest to shut down.
func (p *Provider) ShutDown(ctx context.Context, vm providers.VMID) error {
	const op = "shut down"
	is, err := p.powerOf(ctx, vm)
	switch {
	case err != nil:
		return fail(op, string(vm), err)
	case is == providers.PowerOff:
		return nil
	case is != providers.PowerOn:
		return &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Precondition,
			Msg: "the VM is suspended; only a guest that runs can shut down"}
	}
	_, err = methods.ShutdownGuest(ctx, p.soap, &types.ShutdownGuest{This: vmRef(vm)})
	switch {
	case isFault[*types.InvalidPowerState](err):
		if is, again := p.powerOf(ctx, vm); again == nil && is == providers.PowerOff {
			return nil
		}
	case isFault[*types.ToolsUnavailable](err):
		return &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Precondition,
			Msg: "VMware Tools do not run in the guest, so that it cannot be asked to shut down"}
	}
	return fail(op, string(vm), err)
}
