package vsphere

import (
	"bytes"
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// Drives describes the CD and DVD drives of a VM.
func (p *Provider) Drives(ctx context.Context, vm providers.VMID) ([]providers.Drive, error) {
	const op = "look at the CD drives of"
	h, err := p.hardware(ctx, vm)
	if err != nil {
		return nil, fail(op, string(vm), err)
	}
	var out []providers.Drive
	for _, d := range h.devices {
		cd, ok := d.(*types.VirtualCdrom)
		if !ok {
			continue
		}
		var form bytes.Buffer
		if err := types.NewJSONEncoder(&form).Encode(*cd); err != nil {
			return nil, fail(op, string(vm), err)
		}
		out = append(out, providers.Drive{CDROM: cdrom(cd), Form: bytes.TrimSpace(form.Bytes())})
	}
	return out, nil
}

// hardware is what a VM is made of, and whether it runs.
type hardware struct {
	devices object.VirtualDeviceList
	power   providers.Power
}

func (p *Provider) hardware(ctx context.Context, vm providers.VMID) (hardware, error) {
	m, err := load[mo.VirtualMachine](ctx, p, vmRef(vm), "runtime.powerState", "config.hardware.device")
	if err != nil {
		return hardware{}, err
	}
	if m.Config == nil {
		return hardware{}, &providers.Error{Op: "vsphere: read VM", Object: string(vm), Reason: providers.Precondition,
			Msg: "the platform cannot read the configuration of the VM now"}
	}
	return hardware{m.Config.Hardware.Device, power(m.Runtime.PowerState)}, nil
}

// RemoveDrives takes drives out of a VM that is off, and empties and disconnects those of one that is
// not: IDE drives cannot be unplugged while it runs.
func (p *Provider) RemoveDrives(ctx context.Context, vm providers.VMID, drives []providers.Drive) error {
	return p.changeDrives(ctx, "remove the CD drives of", vm, drives, func(h hardware, was *types.VirtualCdrom) (*types.VirtualDeviceConfigSpec, error) {
		cd, ok := h.at(was).(*types.VirtualCdrom)
		switch {
		case !ok:
			return nil, nil
		case h.power == providers.PowerOff:
			return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: cd}, nil
		case vacated(cd):
			return nil, nil
		}
		return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: vacate(cd)}, nil
	})
}

// RestoreDrives puts drives back as they were.
func (p *Provider) RestoreDrives(ctx context.Context, vm providers.VMID, drives []providers.Drive) error {
	return p.changeDrives(ctx, "put back the CD drives of", vm, drives, func(h hardware, was *types.VirtualCdrom) (*types.VirtualDeviceConfigSpec, error) {
		if was.Connectable != nil {
			was.Connectable.Connected = was.Connectable.Connected && h.power == providers.PowerOn
			was.Connectable.Status = "" // what the platform says of it, and nobody else
		}
		is := h.at(was)
		if is == nil {
			if _, ide := h.devices.FindByKey(was.ControllerKey).(*types.VirtualIDEController); ide && h.power != providers.PowerOff {
				return nil, &providers.Error{Op: "vsphere: put back the CD drives of", Object: string(vm), Reason: providers.Unsupported,
					Msg: label(&was.VirtualDevice) + " can be plugged in only while the VM is off"}
			}
			if h.devices.FindByKey(was.Key) != nil {
				was.Key = -1 // the platform gives it another
			}
			return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: was}, nil
		}
		cd, ok := is.(*types.VirtualCdrom)
		if !ok {
			return nil, &providers.Error{Op: "vsphere: put back the CD drives of", Object: string(vm), Reason: providers.Exists,
				Msg: fmt.Sprintf("%s has taken the place of %s", label(is.GetVirtualDevice()), label(&was.VirtualDevice))}
		}
		if !vacated(cd) || vacated(was) {
			return nil, nil // as it was, or as somebody wants it since
		}
		was.Key = cd.Key
		return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: was}, nil
	})
}

// changeDrives changes drives of a VM in one step; nil changes nothing.
func (p *Provider) changeDrives(ctx context.Context, op string, vm providers.VMID, drives []providers.Drive,
	change func(h hardware, was *types.VirtualCdrom) (*types.VirtualDeviceConfigSpec, error)) error {
	h, err := p.hardware(ctx, vm)
	if err != nil {
		return fail(op, string(vm), err)
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for _, d := range drives {
		var was types.VirtualCdrom
		if err := types.NewJSONDecoder(bytes.NewReader(d.Form)).Decode(&was); err != nil {
			return &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Invalid,
				Msg: "what is known of " + d.Label + " cannot be read", Err: err}
		}
		c, err := change(h, &was)
		if err != nil {
			return err
		}
		if c != nil {
			changes = append(changes, c)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	res, err := methods.ReconfigVM_Task(ctx, p.soap, &types.ReconfigVM_Task{
		This: vmRef(vm), Spec: types.VirtualMachineConfigSpec{DeviceChange: changes},
	})
	if err == nil {
		err = p.waitFor(ctx, vm, res.Returnval)
	}
	return fail(op, string(vm), err)
}

// at is the device in the place of a drive, nil where the place is free.
func (h hardware) at(cd *types.VirtualCdrom) types.BaseVirtualDevice {
	for _, other := range h.devices {
		d := other.GetVirtualDevice()
		if d.ControllerKey == cd.ControllerKey && d.UnitNumber != nil && cd.UnitNumber != nil && *d.UnitNumber == *cd.UnitNumber {
			return other
		}
	}
	return nil
}

// vacate is a drive with nothing in it, and not connected.
func vacate(cd *types.VirtualCdrom) *types.VirtualCdrom {
	out := *cd
	out.Backing = &types.VirtualCdromRemotePassthroughBackingInfo{
		VirtualDeviceRemoteDeviceBackingInfo: types.VirtualDeviceRemoteDeviceBackingInfo{UseAutoDetect: types.NewBool(false)},
	}
	out.DeviceInfo = nil // its summary names what was in it
	out.Connectable = &types.VirtualDeviceConnectInfo{AllowGuestControl: cd.Connectable != nil && cd.Connectable.AllowGuestControl}
	return &out
}

// vacated says whether a drive is as vacate leaves it.
func vacated(cd *types.VirtualCdrom) bool {
	_, remote := cd.Backing.(*types.VirtualCdromRemotePassthroughBackingInfo)
	c := cd.Connectable
	return remote && (c == nil || !c.Connected && !c.StartConnected)
}
