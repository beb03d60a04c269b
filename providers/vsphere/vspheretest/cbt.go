package vspheretest

import (
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// maxAreas is how many areas vSphere lists in one answer about changed blocks.
const maxAreas = 2000

// tracker notes which grains of a disk are written from one point to the next. Points of two trackers
// have nothing to do with each other: where tracking begins anew there is a new one.
type tracker struct {
	id     string   // "52 9b 4d f1 6c 8d f5 5d-90 8f 3d c3 5e c4 1f 7a"
	epochs []bitmap // epochs[n] is what was written from point n to point n+1; the last is still open
}

// point is a moment of a tracker.
type point struct {
	tracker *tracker
	seq     int
}

// bitmap is a set of grains. nil is empty.
type bitmap []byte

func (b bitmap) has(g int64) bool { return g/8 < int64(len(b)) && b[g/8]&(1<<(g%8)) != 0 }

func newTracker() *tracker {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return &tracker{id: fmt.Sprintf("% x-% x", b[:8], b[8:]), epochs: []bitmap{nil}}
}

func (t *tracker) now() point { return point{t, len(t.epochs) - 1} }

// cut ends an epoch and answers the point that begins the next.
func (t *tracker) cut() point {
	t.epochs = append(t.epochs, nil)
	return t.now()
}

func (p point) String() string { return p.tracker.id + "/" + strconv.Itoa(p.seq) }

// since is the grains that were written from point number seq to p.
func (p point) since(seq int) bitmap {
	var all bitmap
	for _, epoch := range p.tracker.epochs[seq:p.seq] {
		if len(all) < len(epoch) {
			all = append(all, make(bitmap, len(epoch)-len(all))...)
		}
		for i, b := range epoch {
			all[i] |= b
		}
	}
	return all
}

// wrote notes that the guest wrote n bytes at off, or, of a tracker that forgets, does not. The VM is
// locked.
func (d *disk) wrote(off, n int64) {
	if d.track == nil || n <= 0 {
		return
	}
	if d.writes++; d.forget > 0 && d.writes%d.forget == 0 {
		return
	}
	open := &d.track.epochs[len(d.track.epochs)-1]
	if *open == nil {
		*open = make(bitmap, (d.live.grains()+7)/8)
	}
	for g := off / grain; g <= (off+n-1)/grain; g++ {
		(*open)[g/8] |= 1 << (g % 8)
	}
}

// stun is a moment in which the VM stands still: what was asked of tracking takes effect. The VM is
// locked.
func (m *machine) stun() {
	for i, d := range m.disks {
		switch {
		case !m.tracking || d.independent || i < len(m.spec.Disks) && m.spec.Disks[i].Untracked:
			d.track = nil
		case d.track == nil:
			d.track = newTracker()
		}
	}
}

// pinpoint makes a snapshot a point of all disks that are tracked. The VM is locked.
func (m *machine) pinpoint(snap *snapshot) {
	m.stun()
	snap.points = map[int32]point{}
	for _, d := range m.disks {
		if d.track != nil && !d.independent {
			snap.points[d.key] = d.track.cut()
		}
	}
}

// loseTrack lets tracking begin anew. The VM is locked.
func (m *machine) loseTrack() {
	for _, d := range m.disks {
		d.track = nil
	}
	m.stun()
}

// ids is the change ids of the disks as they are now. The VM is locked.
func (m *machine) ids() map[int32]string {
	out := map[int32]string{}
	for _, d := range m.disks {
		if d.track != nil {
			out[d.key] = d.track.now().String()
		}
	}
	return out
}

// ids is the change ids of the disks in a snapshot.
func (s *snapshot) ids() map[int32]string {
	out := map[int32]string{}
	for key, p := range s.points {
		out[key] = p.String()
	}
	return out
}

// withIDs gives the disks among devices their change ids, in place.
func withIDs(devices []types.BaseVirtualDevice, ids map[int32]string) []types.BaseVirtualDevice {
	for _, dev := range devices {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			b.ChangeId = ids[d.Key]
		}
	}
	return devices
}

// retrack tells the change ids of a VM that was just switched on or off. Its object is locked.
func (s *Server) retrack(vm *mo.VirtualMachine) {
	s.mu.Lock()
	m := s.machines[vm.Self]
	s.mu.Unlock()
	if m == nil || vm.Config == nil {
		return
	}
	m.mu.RLock()
	ids := m.ids()
	m.mu.RUnlock()
	vm.Config.Hardware.Device = withIDs(deepCopy(vm.Config.Hardware.Device), ids)
}

// describeUntracked sets the options of a VM that keep a disk from being tracked.
func (m *machine) describeUntracked(vm *mo.VirtualMachine) {
	devices := object.VirtualDeviceList(vm.Config.Hardware.Device)
	for i, d := range m.spec.Disks {
		if !d.Untracked {
			continue
		}
		disk := devices.FindByKey(m.disks[i].key).GetVirtualDevice()
		bus := devices.FindByKey(disk.ControllerKey).(types.BaseVirtualController).GetVirtualController().BusNumber
		kind := d.Controller
		if busOf(kind).key == 1000 {
			kind = "scsi"
		}
		vm.Config.ExtraConfig = append(vm.Config.ExtraConfig,
			&types.OptionValue{Key: fmt.Sprintf("%s%d:%d.ctkEnabled", kind, bus, *disk.UnitNumber), Value: "FALSE"})
	}
}

// canTrack says whether the changes of a VM of a hardware version can be tracked: from version 7 on.
func canTrack(hardware string) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(hardware, "vmx-"))
	return err == nil && n >= 7
}

// queryChangedAreas tells which parts of a disk changed from a point, or what is allocated, to a
// snapshot.
func queryChangedAreas(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.QueryChangedDiskAreas)
	m, err := s.machineOf(c.this)
	if err != nil {
		return nil, gone(c.this)
	}
	if req.Snapshot == nil {
		return nil, notCorrect("snapshot")
	}
	snap := m.snapshotOf(*req.Snapshot)
	if snap == nil {
		return nil, gone(*req.Snapshot)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	d, l := m.keyed(req.DeviceKey), snap.layers[req.DeviceKey]
	switch {
	case d == nil || l == nil:
		return nil, notCorrect("deviceKey")
	case req.StartOffset < 0 || req.StartOffset >= l.size:
		return nil, notCorrect("startOffset")
	}
	written, fail := m.written(snap, d, req.ChangeId)
	if fail != nil {
		return nil, fail
	}
	return &types.QueryChangedDiskAreasResponse{Returnval: s.areas(req.StartOffset, l.size, written)}, nil
}

func notCorrect(property string) *types.LocalizedMethodFault {
	return fault(&types.InvalidArgument{InvalidProperty: property}, "A specified parameter was not correct: %s", property)
}

func (m *machine) keyed(key int32) *disk {
	for _, d := range m.disks {
		if d.key == key {
			return d
		}
	}
	return nil
}

// written tells the grains that were written from a change id on to a snapshot. A change id that its
// tracking does not know is a file that cannot be read, as on a real host.
func (m *machine) written(snap *snapshot, d *disk, id string) (func(g int64) bool, *types.LocalizedMethodFault) {
	p, ok := snap.points[d.key]
	file := m.path(strings.TrimSuffix(snap.layers[d.key].name, ".vmdk") + "-ctk.vmdk")
	unknown := fault(&types.FileFault{File: file}, "Error caused by file %s", file)
	if !ok || d.track != p.tracker {
		return nil, unknown
	}
	if id == "*" {
		return m.allocated(snap.layers[d.key], d)
	}
	i := strings.LastIndex(id, "/")
	if i < 0 {
		return nil, notCorrect("changeId")
	}
	seq, err := strconv.Atoi(id[i+1:])
	if err != nil {
		return nil, notCorrect("changeId")
	}
	if id[:i] != p.tracker.id || seq < 0 || seq > p.seq {
		return nil, unknown
	}
	return p.since(seq).has, nil
}

// allocated tells the grains of a layer and those below it that take space. Only thin disks on VMFS
// know that.
func (m *machine) allocated(l *layer, d *disk) (func(g int64) bool, *types.LocalizedMethodFault) {
	i := 0
	for ; m.disks[i] != d; i++ {
	}
	if m.ds.kind != typeVMFS || m.thick(i) {
		return func(int64) bool { return true }, nil
	}
	base := l
	for base.parent != nil {
		base = base.parent
	}
	f, err := os.Open(base.path())
	if err != nil {
		return nil, fileFault(err, base.name)
	}
	defer f.Close()
	used, err := dataOf(f, base.size)
	if err != nil {
		return nil, fileFault(err, base.name)
	}
	return func(g int64) bool {
		for x := l; x.parent != nil; x = x.parent {
			if x.holds(g) {
				return true
			}
		}
		return used.has(g)
	}, nil
}

// areas is one answer: from off on, until it lists as many areas, or tells of as many bytes, as an
// answer may.
func (s *Server) areas(off, size int64, written func(g int64) bool) types.DiskChangeInfo {
	info := types.DiskChangeInfo{StartOffset: off}
	end := size
	if span := s.opt.ChangedSpan; span > 0 {
		end = min(end, off+span)
	}
	for at := off; at < end; {
		g := at / grain
		next := min((g+1)*grain, end)
		if written(g) {
			n := len(info.ChangedArea)
			switch {
			case n > 0 && info.ChangedArea[n-1].Start+info.ChangedArea[n-1].Length == at:
				info.ChangedArea[n-1].Length += next - at
			case n == s.opt.ChangedAreas:
				info.Length = at - off
				return info
			default:
				info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: at, Length: next - at})
			}
		}
		at = next
	}
	info.Length = end - off
	return info
}
