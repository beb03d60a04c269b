package vspheretest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// leaseObject is what the API shows of a lease.
type leaseObject struct{ mo.HttpNfcLease }

// lease is an export or import lease: for as long as somebody reports progress, the disks of a VM can be
// read from, or written to, URLs that need no session.
type lease struct {
	server *Server
	obj    *leaseObject
	id     string // the part of the URLs that nobody can guess
	vm     *machine
	disks  map[string]*leaseDisk // by file name
	task   *Fault                // what is to become of the lease; nil: nothing

	incoming *incoming // nil: an export

	mu       sync.Mutex
	manifest map[string]types.HttpNfcLeaseManifestEntry // by file name
	renewed  chan struct{}
	ended    chan struct{}
	over     bool
}

type leaseDisk struct {
	image *Image
	key   string
}

// leaseMethods are those of leases.
var leaseMethods = map[string]func(l *lease, c *call) (any, *types.LocalizedMethodFault){
	"HttpNfcLeaseProgress":    (*lease).progress,
	"HttpNfcLeaseComplete":    (*lease).complete,
	"HttpNfcLeaseAbort":       (*lease).abort,
	"HttpNfcLeaseGetManifest": (*lease).getManifest,
}

// blockedByExport are methods that would change a VM while it is exported.
var blockedByExport = map[string]bool{
	"PowerOnVM_Task": true, "ReconfigVM_Task": true, "Destroy_Task": true, "UnregisterVM": true, "CreateSnapshot_Task": true,
	"CreateSnapshotEx_Task": true, "RevertToCurrentSnapshot_Task": true, "RemoveAllSnapshots_Task": true, "ExportVm": true,
}

func exportVM(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	m, err := s.machineOf(c.this)
	if err != nil {
		return nil, gone(c.this)
	}
	l := s.newLease(c, m, nil)
	m.mu.Lock()
	power := m.power
	if power == types.VirtualMachinePowerStatePoweredOff {
		m.exported = l
	}
	m.mu.Unlock()
	if power != types.VirtualMachinePowerStatePoweredOff {
		return nil, fault(&types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: power},
			"The operation cannot be performed in the current state (%s).", power)
	}
	if fail := l.openAlone(); fail != nil {
		l.end() // which frees the VM
		return nil, fail
	}
	return &types.ExportVmResponse{Returnval: l.obj.Self}, nil
}

func exportSnapshot(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	m, snap := s.owner(c.this)
	if m == nil {
		return nil, gone(c.this)
	}
	l := s.newLease(c, m, snap)
	if fail := l.openAlone(); fail != nil {
		return nil, fail
	}
	return &types.ExportSnapshotResponse{Returnval: l.obj.Self}, nil
}

// newLease makes a lease for a VM's disks, as they are or as a snapshot has them.
func (s *Server) newLease(c *call, m *machine, snap *snapshot) *lease {
	l := &lease{
		server: s, vm: m, id: rand.Text(), task: c.task, disks: map[string]*leaseDisk{},
		manifest: map[string]types.HttpNfcLeaseManifestEntry{}, renewed: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	if m != nil {
		l.offer(m, snap)
	}
	l.obj = &leaseObject{}
	l.obj.Self = types.ManagedObjectReference{Type: "HttpNfcLease", Value: "session[" + c.session.key + "]" + l.id}
	l.obj.State = types.HttpNfcLeaseStateInitializing
	l.obj.Mode = string(types.HttpNfcLeaseModePushOrGet)
	return l
}

// offer makes the disks of a VM, as they are or as a snapshot has them, those of the lease.
func (l *lease) offer(m *machine, snap *snapshot) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for i, d := range m.disks {
		if snap != nil && snap.layers[d.key] == nil { // an independent disk
			continue
		}
		l.disks[fmt.Sprintf("disk-%d.vmdk", i)] = &leaseDisk{image: &Image{vm: m, disk: d, snapshot: snap}, key: m.deviceKey(i)}
	}
}

// open makes the lease known.
func (l *lease) open() types.ManagedObjectReference {
	l.server.reg.Put(l.obj)
	l.server.mu.Lock()
	l.server.leases[l.id] = l
	l.server.mu.Unlock()
	l.server.work.Go(l.run)
	return l.obj.Self
}

// openAlone is open for a VM that has no lease yet: it has one at a time.
func (l *lease) openAlone() *types.LocalizedMethodFault {
	l.server.mu.Lock()
	for _, other := range l.server.leases {
		if other.vm == l.vm && !other.dead() {
			l.server.mu.Unlock()
			return fault(&types.TaskInProgress{}, "The VM is being exported under another lease.")
		}
	}
	l.server.leases[l.id] = l
	l.server.mu.Unlock()
	l.open()
	return nil
}

// deviceKey is how leases call disk number i: "/vm-42/ParaVirtualSCSIController0:0".
func (m *machine) deviceKey(i int) string {
	kind := map[string]string{
		"lsilogic": "VirtualLsiLogicController", "lsilogic-sas": "VirtualLsiLogicSASController", "buslogic": "VirtualBusLogicController",
		"sata": "VirtualAHCIController", "nvme": "VirtualNVMEController", "ide": "VirtualIDEController",
	}[m.spec.Disks[i].Controller]
	if kind == "" {
		kind = "ParaVirtualSCSIController"
	}
	size := busOf(m.spec.Disks[i].Controller)
	n := m.disks[i].key - size.disks
	return fmt.Sprintf("/%s/%s%d:%d", m.ref.Value, kind, n/size.units, n%size.units)
}

// run is the life of a lease.
func (l *lease) run() {
	s := l.server
	if !wait(s.ctx, s.opt.TaskDelay) {
		return
	}
	if t := l.task; t != nil {
		if t.Stall { // it never becomes ready
			select {
			case <-l.ended:
			case <-s.ctx.Done():
			}
			return
		}
		if !wait(s.ctx, time.Duration(t.Delay)) {
			return
		}
		if fail := t.soap(); fail != nil {
			l.fail(fail)
			return
		}
	}
	if l.incoming != nil {
		if fail := l.arrive(); fail != nil {
			l.fail(fail)
			return
		}
	}
	if l.dead() { // aborted meanwhile
		l.leave()
		return
	}
	l.update(types.PropertyChange{Name: "info", Val: l.info()}, types.PropertyChange{Name: "initializeProgress", Val: int32(100)},
		types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateReady})
	timer := time.NewTimer(s.opt.LeaseTimeout)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-l.ended:
			return
		case <-l.renewed:
			timer.Reset(s.opt.LeaseTimeout)
		case <-timer.C:
			l.fail(fault(&types.Timedout{}, "The lease has timed out."))
			return
		}
	}
}

func (l *lease) update(changes ...types.PropertyChange) {
	l.server.reg.AtomicUpdate(l.server.sim(), l.obj, changes)
}

// info tells where the disks are.
func (l *lease) info() types.HttpNfcLeaseInfo {
	info := types.HttpNfcLeaseInfo{Lease: l.obj.Self, Entity: l.vm.ref, LeaseTimeout: int32(l.server.opt.LeaseTimeout / time.Second)}
	vm := escape(l.vm.spec.Name)
	if l.incoming != nil {
		vm = l.incoming.name
		for _, file := range slices.Sorted(maps.Keys(l.incoming.files)) {
			u, key := l.server.URL(), l.incoming.files[file].key
			u.Path = "/nfc/" + l.id + "/" + file
			info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
				Key: key, ImportKey: strings.Replace(key, l.vm.ref.Value, vm, 1), Url: u.String(),
				SslThumbprint: l.server.Thumbprint(), Disk: types.NewBool(false), TargetId: file,
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.disks)) {
		d := l.disks[name]
		u := l.server.URL()
		u.Path = "/nfc/" + l.id + "/" + name
		info.TotalDiskCapacityInKB += d.image.Size() / 1024
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key: d.key, ImportKey: strings.Replace(d.key, l.vm.ref.Value, vm, 1), Url: u.String(),
			SslThumbprint: l.server.Thumbprint(), Disk: types.NewBool(true), TargetId: name, FileSize: d.image.used(),
		})
	}
	return info
}

// fail ends the lease with an error, which its object goes on to tell.
func (l *lease) fail(f *types.LocalizedMethodFault) {
	l.end()
	l.update(types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateError}, types.PropertyChange{Name: "error", Val: *f})
}

// end makes the URLs void and the VM free. It answers whether the lease was alive.
func (l *lease) end() bool {
	l.mu.Lock()
	was, vm := l.over, l.vm
	l.over = true
	l.mu.Unlock()
	if was {
		return false
	}
	close(l.ended)
	l.server.mu.Lock()
	for r := range l.server.reading {
		if r.lease == l {
			r.abort()
		}
	}
	l.server.mu.Unlock()
	if vm == nil { // an import that has not begun
		return true
	}
	vm.mu.Lock()
	if vm.exported == l {
		vm.exported = nil
	}
	vm.mu.Unlock()
	l.leave()
	return true
}

func (l *lease) dead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// finish ends the lease and takes its object away.
func (l *lease) finish() {
	l.end()
	l.server.mu.Lock()
	delete(l.server.leases, l.id)
	l.server.mu.Unlock()
	l.server.reg.Remove(l.server.sim(), l.obj.Self)
}

// state is that of the lease, and why it failed if it did.
func (l *lease) state() (state types.HttpNfcLeaseState, fail *types.LocalizedMethodFault) {
	l.server.sim().WithLock(l.obj, func() { state, fail = l.obj.State, l.obj.Error })
	return state, fail
}

// ready is nil where the lease can be used.
func (l *lease) ready() *types.LocalizedMethodFault {
	switch state, fail := l.state(); {
	case fail != nil:
		return fail
	case state != types.HttpNfcLeaseStateReady:
		return fault(&types.InvalidState{}, "The lease is not ready: it is %s.", state)
	}
	return nil
}

func (l *lease) progress(c *call) (any, *types.LocalizedMethodFault) {
	if fail := l.ready(); fail != nil {
		return nil, fail
	}
	select {
	case l.renewed <- struct{}{}:
	default: // it has not noticed the last one yet
	}
	l.update(types.PropertyChange{Name: "transferProgress", Val: c.body.(*types.HttpNfcLeaseProgress).Percent})
	return &types.HttpNfcLeaseProgressResponse{}, nil
}

func (l *lease) complete(*call) (any, *types.LocalizedMethodFault) {
	if fail := l.ready(); fail != nil {
		return nil, fail
	}
	if l.incoming != nil {
		l.mu.Lock()
		l.incoming.complete = true
		l.mu.Unlock()
	}
	l.finish()
	return &types.HttpNfcLeaseCompleteResponse{}, nil
}

func (l *lease) abort(*call) (any, *types.LocalizedMethodFault) {
	l.finish()
	return &types.HttpNfcLeaseAbortResponse{}, nil
}

func (l *lease) getManifest(*call) (any, *types.LocalizedMethodFault) {
	if fail := l.ready(); fail != nil {
		return nil, fail
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	res := &types.HttpNfcLeaseGetManifestResponse{}
	for _, name := range slices.Sorted(maps.Keys(l.manifest)) {
		res.Returnval = append(res.Returnval, l.manifest[name])
	}
	return res, nil
}

// lease is the lease of an object's id, nil if there is none.
func (s *Server) lease(ref types.ManagedObjectReference) *lease {
	if ref.Type != "HttpNfcLease" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[ref.Value[strings.LastIndex(ref.Value, "]")+1:]]
}

// Leases is how many leases are alive.
func (s *Server) Leases() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.leases {
		if !l.dead() {
			n++
		}
	}
	return n
}
