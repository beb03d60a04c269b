package vspheretest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// GuestDiscard is the guest of a VM giving n bytes at off of disk number i back: they are zeros then.
func (s *Server) GuestDiscard(vm string, i int, off, n int64) error {
	zeros := make([]byte, min(max(n, 0), 1<<20))
	if len(zeros) == 0 {
		return fmt.Errorf("vspheretest: guest discard of %d bytes at %d", n, off)
	}
	for end := off + n; off < end; off += int64(len(zeros)) {
		zeros = zeros[:min(int64(len(zeros)), end-off)]
		if err := s.GuestWrite(vm, i, off, zeros); err != nil {
			return err
		}
	}
	return nil
}

// ForgetWrites makes the tracker of disk number i of a VM forget every so many-th write: 1 forgets all
// of them, 0 none any more.
func (s *Server) ForgetWrites(vm string, i, every int) error {
	return s.onDisk(vm, i, func(_ *machine, d *disk) error {
		d.forget = every
		return nil
	})
}

// ResetTracking lets the tracking of all disks of a VM begin anew, as a host that lost power does.
func (s *Server) ResetTracking(vm string) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.loseTrack()
	m.mu.Unlock()
	return s.republish(m, nil)
}

// ResizeDisk makes disk number i of a VM without snapshots larger. Its tracking begins anew.
func (s *Server) ResizeDisk(vm string, i int, size int64) error {
	var key int32
	err := s.onDisk(vm, i, func(m *machine, d *disk) error {
		switch {
		case len(m.snapshots) > 0:
			return fmt.Errorf("vspheretest: VM %q has snapshots; its disks cannot grow", vm)
		case size < d.live.size || size%1024 != 0:
			return fmt.Errorf("vspheretest: a disk of %d bytes cannot become one of %d", d.live.size, size)
		}
		key = d.key
		d.track = nil
		m.stun()
		return d.live.grow(size)
	})
	if err != nil {
		return err
	}
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.spec.Disks[i].Size = size
	m.mu.Unlock()
	return s.republish(m, func(devices object.VirtualDeviceList) (object.VirtualDeviceList, error) {
		d := devices.FindByKey(key).(*types.VirtualDisk)
		d.CapacityInBytes, d.CapacityInKB = size, size/1024
		return devices, nil
	})
}

// AddDisk gives a VM without snapshots one more disk, on its paravirtual controller.
func (s *Server) AddDisk(vm string, d Disk) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if len(m.snapshots) > 0 {
		m.mu.Unlock()
		return fmt.Errorf("vspheretest: VM %q has snapshots; it takes no disks", vm)
	}
	v := VM{Disks: []Disk{d}}.withDefaults()
	d = v.Disks[0]
	i := len(m.disks)
	l, err := createBase(m.dir(), m.base+"_"+strconv.Itoa(i)+".vmdk", d.Size, d.Content)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	d.Size = l.size
	m.mu.Unlock()
	return s.republish(m, func(devices object.VirtualDeviceList) (object.VirtualDeviceList, error) {
		b := deviceBuilder{list: devices, controllers: map[string][]types.BaseVirtualController{}}
		for _, c := range devices.SelectByType((*types.ParaVirtualSCSIController)(nil)) {
			b.controllers["pvscsi"] = append(b.controllers["pvscsi"], c.(types.BaseVirtualController))
			b.scsi++
		}
		key, err := b.disk(i, d, m.path(l.name), m.ds.ref)
		if err != nil {
			return nil, err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.disks = append(m.disks, &disk{key: key, independent: independent(d.Mode), layers: []*layer{l}, live: l})
		m.spec.Disks = append(m.spec.Disks, d)
		m.stun()
		return b.list, nil
	})
}

// RemoveDisk takes the last disk of a VM without snapshots away, with its files. The next one that is
// added has its key.
func (s *Server) RemoveDisk(vm string) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if len(m.snapshots) > 0 || len(m.disks) == 0 {
		m.mu.Unlock()
		return fmt.Errorf("vspheretest: VM %q has snapshots, or no disk to remove", vm)
	}
	n := len(m.disks) - 1
	d := m.disks[n]
	m.disks, m.spec.Disks = m.disks[:n:n], m.spec.Disks[:n:n]
	m.mu.Unlock()
	err = s.republish(m, func(devices object.VirtualDeviceList) (object.VirtualDeviceList, error) {
		for _, dev := range devices {
			if c, ok := dev.(types.BaseVirtualController); ok {
				base := c.GetVirtualController()
				base.Device = slices.DeleteFunc(base.Device, func(key int32) bool { return key == d.key })
			}
		}
		return slices.DeleteFunc(devices, func(dev types.BaseVirtualDevice) bool { return dev.GetVirtualDevice().Key == d.key }), nil
	})
	return errors.Join(err, d.live.remove())
}

// onDisk does something to a disk of a VM, which is locked.
func (s *Server) onDisk(vm string, i int, do func(*machine, *disk) error) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	d, err := m.disk(i)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return do(m, d)
}

// republish saves a VM and tells what has become of it, after its devices were changed; nil leaves them.
func (s *Server) republish(m *machine, change func(object.VirtualDeviceList) (object.VirtualDeviceList, error)) error {
	vm, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("vspheretest: VM %q is gone", m.spec.Name)
	}
	var err error
	ctx := s.sim()
	ctx.WithLock(vm, func() {
		if change != nil {
			var devices object.VirtualDeviceList
			if devices, err = change(deepCopy(vm.Config.Hardware.Device)); err != nil {
				return
			}
			s.reg.Update(ctx, vm, []types.PropertyChange{{Name: "config.hardware.device", Val: []types.BaseVirtualDevice(devices)}})
		}
		s.publish(ctx, m, vm)
	})
	return errors.Join(err, s.save(m))
}

// setTracking takes down that tracking was switched. It takes effect when the VM next stands still: at
// once, where it does not run.
func (s *Server) setTracking(m *machine, on *bool) *types.LocalizedMethodFault {
	if on == nil {
		return nil
	}
	m.mu.Lock()
	m.tracking = *on
	if m.power == types.VirtualMachinePowerStatePoweredOff {
		m.stun()
	}
	m.mu.Unlock()
	if err := s.republish(m, nil); err != nil {
		return fileFault(err, m.home)
	}
	return nil
}
