package vspheretest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"

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
	if kind == "ide" && b.controllers[kind] == nil { // every VM has two of these
		for _, d := range b.list.SelectByType((*types.VirtualIDEController)(nil)) {
			b.controllers[kind] = append(b.controllers[kind], d.(types.BaseVirtualController))
		}
	}
	have := b.controllers[kind]
	for _, c := range have {
		if len(c.GetVirtualController().Device) < places {
			return c, nil
		}
	}
	var dev types.BaseVirtualDevice
	var err error
	switch kind {
	case "ide":
		return nil, errors.New("a VM has no more than four IDE drives")
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
	n := int32(len(have))
	if size.key == 1000 {
		n = b.scsi
		b.scsi++
	}
	c := dev.(types.BaseVirtualController)
	base := c.GetVirtualController()
	base.Key, base.BusNumber = size.key+n, n
	base.DeviceInfo = &types.Description{Label: strings.ToUpper(kind) + " controller " + strconv.Itoa(int(n)), Summary: kind}
	b.list.AssignController(dev, b.pci())
	b.controllers[kind] = append(have, c)
	b.list = append(b.list, dev)
	return c, nil
}

func (b *deviceBuilder) pci() types.BaseVirtualController {
	return b.list.SelectByType((*types.VirtualPCIController)(nil))[0].(types.BaseVirtualController)
}

// attach puts a device in a free place of a controller. key is that of the first place on the first bus.
func (b *deviceBuilder) attach(dev types.BaseVirtualDevice, c types.BaseVirtualController, key, units int32) {
	d, base := dev.GetVirtualDevice(), c.GetVirtualController()
	d.Key = -1 // none yet; AssignController takes 0 for that and makes one up
	b.list.AssignController(dev, c)
	d.Key = key + base.BusNumber*units + *d.UnitNumber
	base.Device[len(base.Device)-1] = d.Key
	b.list = append(b.list, dev)
}

// disk is number i of the VM, with its base at the datastore path file.
func (b *deviceBuilder) disk(i int, d Disk, file string, ds types.ManagedObjectReference) (key int32, err error) {
	c, err := b.controller(d.Controller)
	if err != nil {
		return 0, fmt.Errorf("disk %d: %w", i, err)
	}
	no := types.NewBool(false)
	backing := &types.VirtualDiskFlatVer2BackingInfo{
		DiskMode: d.Mode, ThinProvisioned: types.NewBool(!d.Thick),
		Split: no, WriteThrough: no, EagerlyScrub: no, DigestEnabled: no, Uuid: uuid("disk", file), ContentId: uuid("content", file),
	}
	backing.FileName, backing.Datastore = file, &ds
	disk := &types.VirtualDisk{CapacityInKB: d.Size / 1024, CapacityInBytes: d.Size}
	disk.Backing = backing
	disk.DeviceInfo = &types.Description{Label: fmt.Sprintf("Hard disk %d", i+1), Summary: fmt.Sprintf("%d KB", d.Size/1024)}
	size := busOf(d.Controller)
	b.attach(disk, c, size.disks, size.units)
	return disk.Key, nil
}

// cdrom is a drive with an image in it. It is connected if the VM runs.
func (b *deviceBuilder) cdrom(iso string, running bool) error {
	c, err := b.controller("ide")
	if err != nil {
		return err
	}
	backing := &types.VirtualCdromIsoBackingInfo{}
	backing.FileName = iso
	cd := &types.VirtualCdrom{}
	cd.Backing = backing
	cd.DeviceInfo = &types.Description{Label: "CD/DVD drive 1", Summary: "ISO " + iso}
	cd.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: running, AllowGuestControl: true}
	b.attach(cd, c, 3000, 2)
	return nil
}

// nic is number i of the VM.
func (b *deviceBuilder) nic(i int, m *machine, network types.ManagedObjectReference) *types.VirtualVmxnet3 {
	backing := &types.VirtualEthernetCardNetworkBackingInfo{Network: &network}
	backing.DeviceName = vmNetwork
	nic := &types.VirtualVmxnet3{}
	nic.Backing = backing
	nic.DeviceInfo = &types.Description{Label: fmt.Sprintf("Network adapter %d", i+1), Summary: vmNetwork}
	nic.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: m.running(), AllowGuestControl: true}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s nic %d", m.path(""), i))
	nic.AddressType, nic.MacAddress = "assigned", fmt.Sprintf("00:50:56:%02x:%02x:%02x", sum[0]&0x3f, sum[1], sum[2])
	b.attach(nic, b.pci(), 4000-7, 0) // places 0 to 6 are not for cards
	return nic
}

// uuid is an id that depends on what it is for alone.
func uuid(kind, of string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + of))
	sum[6], sum[8] = sum[6]&0x0f|0x50, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
