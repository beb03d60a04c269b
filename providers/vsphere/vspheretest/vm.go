package vspheretest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
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
	tracking  bool // asked for; each disk's track says whether it is
	disks     []*disk
	snapshots []*snapshot // parents before children
	current   *snapshot
	lastSnap  int32  // the highest number of a snapshot of this VM
	exported  *lease // while the VM itself, rather than a snapshot, is being exported
}

// disk is a disk of a machine.
type disk struct {
	key         int32
	independent bool // has no part in snapshots
	layers      []*layer
	live        *layer // where the guest writes

	track  *tracker // nil: its changes are not tracked
	writes int      // that were to be tracked
	forget int      // every so many-th write is not tracked; 0: all are
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

// unescape is the name that escape has written.
func unescape(s string) string {
	return strings.NewReplacer("%2f", "/", "%5c", `\`, "%25", "%").Replace(s)
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
	s.building.Lock()
	defer s.building.Unlock()
	if s.has(v) {
		return "", errors.New("there is one of that name in the folder")
	}
	m := &machine{spec: v, ds: ds, base: fileName(v.Name), home: unfinished}
	if err := m.makeHome(); err != nil {
		return "", errors.Join(err, os.RemoveAll(m.dir()))
	}
	if err := s.register(m); err != nil {
		return "", errors.Join(err, os.RemoveAll(m.dir()))
	}
	return m.ref.Value, s.save(m)
}

// unfinished is the home of a VM while its disks are being made.
const unfinished = ".unfinished"

// makeHome makes the VM's folder and the files in it, which get their place at once.
func (m *machine) makeHome() error {
	if err := os.RemoveAll(m.dir()); err != nil { // of a run that was killed
		return err
	}
	if err := os.Mkdir(m.dir(), 0o755); err != nil {
		return err
	}
	if err := errors.Join(m.makeDisks(), m.makeVMX()); err != nil {
		return err
	}
	made := m.dir()
	m.home = m.homeName()
	for _, d := range m.disks {
		d.live.dir = m.dir()
	}
	return os.Rename(made, m.dir())
}

// homeName is a name for the VM's folder that is free: that of the VM, or of an object on vSAN.
func (m *machine) homeName() string {
	if m.ds.kind == typeVSAN {
		b := make([]byte, 16)
		_, _ = rand.Read(b) // never fails
		return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	name := m.base
	for i := 1; ; i++ {
		if _, err := os.Lstat(filepath.Join(m.ds.dir, name)); errors.Is(err, fs.ErrNotExist) {
			return name
		}
		name = m.base + " (" + strconv.Itoa(i) + ")"
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

// makeVMX makes the file that the VM is registered by.
func (m *machine) makeVMX() error {
	text := fmt.Sprintf(".encoding = \"UTF-8\"\nconfig.version = \"8\"\ndisplayName = %q\nguestOS = %q\n", m.spec.Name, m.spec.GuestID)
	return os.WriteFile(filepath.Join(m.dir(), m.base+".vmx"), []byte(text), 0o644)
}

// register puts the VM into the inventory. Its id is that of m, or a new one if it has none.
func (s *Server) register(m *machine) error {
	dc := s.datacenter(m.spec.Datacenter)
	parent, err := s.folder(dc, m.spec.Folder)
	if err != nil {
		return err
	}
	c, host := dc.place()
	vm, err := c.mold.cast(m, dc)
	if err != nil {
		return err
	}
	vm.Self = m.ref
	if vm.Self.Value == "" {
		s.reg.NewEntity(vm)
		m.ref = vm.Self
		s.given(m.ref)
	}
	vm.Summary.Vm = &vm.Self
	vm.Runtime.Host, vm.Summary.Runtime.Host = &host, &host
	if !m.spec.Template {
		vm.ResourcePool = &c.pool
	}
	s.mu.Lock()
	s.machines[m.ref] = m
	s.mu.Unlock()

	ctx := s.sim()
	folder := s.reg.Get(parent).(*simulator.Folder)
	s.tree.Lock()
	ctx.WithLock(folder, func() {
		folder.ChildEntity = append(folder.ChildEntity, vm.Self)
		s.reg.PutEntity(folder, vm)
	})
	s.tree.Unlock()
	onHost, ds := s.reg.Get(host).(*simulator.HostSystem), s.reg.Get(m.ds.ref).(*simulator.Datastore)
	s.reg.AppendReference(ctx, onHost, &onHost.Vm, vm.Self)
	s.reg.AppendReference(ctx, ds, &ds.Vm, vm.Self)
	if pool, ok := s.reg.Get(c.pool).(*simulator.ResourcePool); ok && vm.ResourcePool != nil {
		s.reg.AppendReference(ctx, pool, &pool.Vm, vm.Self)
	}
	return nil
}

// number is the number in an id: 42 of "vm-42".
func number(ref types.ManagedObjectReference) int {
	n, _ := strconv.Atoi(ref.Value[strings.LastIndex(ref.Value, "-")+1:])
	return n
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
	return s.destroy(m, obj)
}

// destroy takes a VM out of the inventory, and its files away.
func (s *Server) destroy(m *machine, vm *simulator.VirtualMachine) error {
	s.tree.Lock()
	defer s.tree.Unlock()
	task := vm.DestroyTask(s.sim(), &types.Destroy_Task{This: m.ref})
	_, err := s.observer.await(s.ctx, task.(*methods.Destroy_TaskBody).Res.Returnval)
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
	var leases []*lease
	for _, l := range s.leases {
		if l.vm == m && !l.dead() {
			leases = append(leases, l)
		}
	}
	s.mu.Unlock()
	if m == nil {
		return
	}
	for _, l := range leases {
		l.finish()
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
	m.stun()
	m.mu.Unlock()
	if err := s.save(m); err != nil {
		s.opt.Log.Error("save a VM", "vm", m.spec.Name, "err", err)
	}
}
