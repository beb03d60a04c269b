package vspheretest

import (
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// deviceBuilder makes the devices of a VM with the keys that vSphere gives them.
type deviceBuilder struct {
	list        object.VirtualDeviceList
	controllers map[string][]types.BaseVirtualController // by kind
	scsi        int32                                    // buses of all SCSI kinds share their numbers
}

// bus is how a kind of controller numbers itself and its disks.
type bus struct {
	key, disks int32 // keys of the first controller and its first disk
	units      int32 // disks that one can have
}

func busOf(kind string) bus {
	switch kind {
	case "ide":
		return bus{key: 200, disks: 3000, units: 2}
	case "sata":
		return bus{key: 15000, disks: 16000, units: 30}
	case "nvme":
		return bus{key: 31000, disks: 32000, units: 15}
	default:
		return bus{key: 1000, disks: 2000, units: 16} // number 7 is the controller's own
	}
}

// controller is one of a kind with a free place.
func (b *deviceBuilder) controller(kind string) (types.BaseVirtualController, error) {
	size := busOf(kind)
	places := int(size.units)
	if size.key == 1000 {
		places--
	}
	have := b.controllers[kind]
	if n := len(have); n > 0 && len(have[n-1].GetVirtualController().Device) < places {
		return have[n-1], nil
	}
	var dev types.BaseVirtualDevice
	var err error
	switch kind {
	case "ide":
		dev, err = b.list.CreateIDEController()
	case "sata":
		dev, err = b.list.CreateSATAController()
	case "nvme":
		dev, err = b.list.CreateNVMEController()
	default:
		dev, err = b.list.CreateSCSIController(kind)
	}
	if err != nil {
		return nil, err
	}
	c := dev.(types.BaseVirtualController)
	n := int32(len(have))
	if size.key == 1000 {
		n = b.scsi
		b.scsi++
	}
	base := c.GetVirtualController()
	base.Key, base.BusNumber = size.key+n, n
	if b.controllers == nil {
		b.controllers = map[string][]types.BaseVirtualController{}
	}
	b.controllers[kind] = append(have, c)
	b.list = append(b.list, dev)
	return c, nil
}

// disk is number i of the VM, with its base at the datastore path file.
func (b *deviceBuilder) disk(i int, d Disk, file string) (*types.VirtualDisk, error) {
	c, err := b.controller(d.Controller)
	if err != nil {
		return nil, fmt.Errorf("disk %d: %w", i, err)
	}
	disk := &types.VirtualDisk{CapacityInKB: d.Size / 1024, CapacityInBytes: d.Size}
	disk.Key = -1 // none yet; AssignController takes 0 for that and makes one up
	b.list.AssignController(disk, c)
	base, size := c.GetVirtualController(), busOf(d.Controller)
	disk.Key = size.disks + base.BusNumber*size.units + *disk.UnitNumber
	base.Device[len(base.Device)-1] = disk.Key
	disk.DeviceInfo = &types.Description{Label: fmt.Sprintf("Hard disk %d", i+1)}
	backing := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: d.Mode, ThinProvisioned: types.NewBool(!d.Thick)}
	backing.FileName = file
	disk.Backing = backing
	b.list = append(b.list, disk)
	return disk, nil
}

// cdrom is a drive with an image in it.
func (b *deviceBuilder) cdrom(iso string) error {
	c, err := b.controller("ide")
	if err != nil {
		return err
	}
	backing := &types.VirtualCdromIsoBackingInfo{}
	backing.FileName = iso
	cd := &types.VirtualCdrom{}
	cd.Key = -1
	cd.Backing = backing
	cd.DeviceInfo = &types.Description{Label: "CD/DVD drive 1"}
	cd.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: true}
	b.list.AssignController(cd, c)
	base := c.GetVirtualController()
	cd.Key = 3000 + base.BusNumber*2 + *cd.UnitNumber
	base.Device[len(base.Device)-1] = cd.Key
	b.list = append(b.list, cd)
	return nil
}

// nic is number i of the VM.
func (b *deviceBuilder) nic(i int) error {
	backing := &types.VirtualEthernetCardNetworkBackingInfo{}
	backing.DeviceName = vmNetwork
	dev, err := b.list.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return err
	}
	d := dev.GetVirtualDevice()
	d.Key = 4000 + int32(i)
	d.DeviceInfo = &types.Description{Label: fmt.Sprintf("Network adapter %d", i+1), Summary: vmNetwork}
	d.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: true}
	b.list = append(b.list, dev)
	return nil
}
