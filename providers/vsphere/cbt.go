package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// everything is the change id that asks for what is allocated.
const everything = "*"

const (
	// maxPages bounds how often the server is asked about one disk, and maxAreas what is kept of its
	// answers: 64 MiB. A disk that changed in so many places is copied in full sooner.
	maxPages = 1 << 16
	maxAreas = 4 << 20
	// rounding is how far an answer may reach beyond the end of a disk that is no multiple of the unit
	// that is tracked in.
	rounding = 1 << 20
)

// trackingProps is what is asked of a VM to know about the tracking of its changes.
var trackingProps = []string{
	"capability.changeTrackingSupported", "config.changeTrackingEnabled", "config.version", "config.template",
	"config.hardware.device", "config.extraConfig", "snapshot", "runtime.powerState",
}

// SetTracking switches changed block tracking on or off.
func (p *Provider) SetTracking(ctx context.Context, vm providers.VMID, on bool) error {
	const op = "switch change tracking of"
	m, err := p.machine(ctx, vm, trackingProps)
	if err != nil {
		return fail(op, string(vm), err)
	}
	no := func(r providers.Reason, format string, a ...any) error {
		return &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: r, Msg: fmt.Sprintf(format, a...)}
	}
	list := snapshots(m.Snapshot)
	switch {
	case m.Config == nil:
		return no(providers.Precondition, "the server does not tell the VM's configuration")
	case m.tracked() == on:
		return nil
	case on && m.untrackable() != "":
		return no(providers.Unsupported, "%s", m.untrackable())
	case on && len(list) > 0:
		return no(providers.Precondition, "the VM has a snapshot (%q), with which vSphere does not track reliably from the beginning; delete its snapshots first", list[0].Name)
	}
	res, err := methods.ReconfigVM_Task(ctx, p.soap, &types.ReconfigVM_Task{
		This: m.Self, Spec: types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(on)},
	})
	if err == nil {
		_, err = p.wait(ctx, res.Returnval)
	}
	return fail(op, string(vm), err)
}

// tracked says whether tracking is switched on.
func (m *machine) tracked() bool {
	return m.Config != nil && m.Config.ChangeTrackingEnabled != nil && *m.Config.ChangeTrackingEnabled
}

// untrackable says why vSphere cannot track the VM; "" where it can.
func (m *machine) untrackable() string {
	v := m.Config.Version
	n, err := strconv.Atoi(strings.TrimPrefix(v, "vmx-"))
	switch {
	case m.Config.Template:
		return "it is a template, which does not change; turn it into a VM first"
	case err == nil && n < 7:
		return fmt.Sprintf("its hardware version is %s, and changes are tracked from vmx-07 on; upgrade the virtual hardware while the VM is off", v)
	case !m.Capability.ChangeTrackingSupported:
		return "the host does not offer change tracking for this VM"
	}
	return ""
}

// Tracking tells which disks are tracked, and what is missing for the others.
func (p *Provider) Tracking(ctx context.Context, vm providers.VMID) (providers.TrackingStatus, error) {
	const op = "change tracking of"
	m, err := p.machine(ctx, vm, trackingProps)
	if err != nil {
		return providers.TrackingStatus{}, fail(op, string(vm), err)
	}
	if m.Config == nil {
		return providers.TrackingStatus{}, &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Precondition,
			Msg: "the server does not tell the VM's configuration"}
	}
	why := m.untrackable()
	s := providers.TrackingStatus{VM: vm, Supported: why == "", Enabled: m.tracked()}
	tracked, waits := false, false
	for _, dev := range m.Config.Hardware.Device {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		one := providers.DiskTracking{ID: diskID(d), Label: label(&d.VirtualDevice), Missing: m.untrackedDisk(d)}
		id := changeID(d.Backing)
		switch {
		case one.Missing != "" || !s.Supported || !s.Enabled:
		case id == "":
			one.Missing, waits = "tracking has not started yet", true
		default:
			one.Tracked, one.ChangeID = true, id
		}
		tracked = tracked || one.Tracked
		s.Disks = append(s.Disks, one)
	}
	s.Missing = m.missing(why, s.Enabled, waits)
	s.Active = tracked && !waits
	return s, nil
}

// missing says what a VM still needs.
func (m *machine) missing(why string, enabled, waits bool) (out []string) {
	if why != "" {
		return []string{why}
	}
	if enabled && waits {
		return []string{"tracking starts when the VM next stands still for a moment: take a snapshot and delete it, or switch the VM off and on"}
	}
	if !enabled {
		out = []string{"tracking is not switched on"}
		if list := snapshots(m.Snapshot); len(list) > 0 {
			out = append(out, fmt.Sprintf("the VM has a snapshot (%q); delete its snapshots before tracking is switched on", list[0].Name))
		}
	}
	return out
}

// untrackedDisk says why a disk is not tracked although its VM is; "" where nothing speaks against it.
func (m *machine) untrackedDisk(d *types.VirtualDisk) string {
	if kind, _ := mode(d.Backing); strings.HasPrefix(kind, "independent") {
		return "it is independent (" + kind + "), so that no snapshot has a part of it"
	}
	switch b := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		if b.Sharing == string(types.VirtualDiskSharingSharingMultiWriter) {
			return "it is shared with other VMs, whose writes nobody tracks"
		}
	case *types.VirtualDiskSeSparseBackingInfo, *types.VirtualDiskSparseVer2BackingInfo:
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		if b.CompatibilityMode == string(types.VirtualDiskCompatibilityModePhysicalMode) {
			return "it is a raw device in physical mode, whose writes pass the host by"
		}
	default:
		return "it is of an old kind of disk that is not tracked"
	}
	option := m.trackOption(d)
	for _, base := range m.Config.ExtraConfig {
		o := base.GetOptionValue()
		if strings.EqualFold(o.Key, option) && strings.EqualFold(fmt.Sprint(o.Value), "false") {
			return "the VM's option " + option + " is FALSE; set it to TRUE"
		}
	}
	return ""
}

// trackOption is the option of a VM that switches the tracking of one disk: "scsi0:0.ctkEnabled".
func (m *machine) trackOption(d *types.VirtualDisk) string {
	dev := object.VirtualDeviceList(m.Config.Hardware.Device).FindByKey(d.ControllerKey)
	c, ok := dev.(types.BaseVirtualController)
	if !ok || d.UnitNumber == nil {
		return ""
	}
	kind := "scsi"
	switch dev.(type) {
	case types.BaseVirtualSATAController:
		kind = "sata"
	case *types.VirtualNVMEController:
		kind = "nvme"
	case *types.VirtualIDEController:
		kind = "ide"
	}
	return fmt.Sprintf("%s%d:%d.ctkEnabled", kind, c.GetVirtualController().BusNumber, *d.UnitNumber)
}

// changeID is the point in the tracking of a disk with this backing.
func changeID(b types.BaseVirtualDeviceBackingInfo) cbt.Point {
	switch b := b.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return cbt.Point(b.ChangeId)
	case *types.VirtualDiskSeSparseBackingInfo:
		return cbt.Point(b.ChangeId)
	case *types.VirtualDiskSparseVer2BackingInfo:
		return cbt.Point(b.ChangeId)
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return cbt.Point(b.ChangeId)
	}
	return ""
}

// Changes asks the server for the areas that changed from since on to a snapshot.
func (p *Provider) Changes(ctx context.Context, ref providers.DiskRef, since cbt.Point) (cbt.Changes, error) {
	object := fmt.Sprintf("%s disk %s", ref.VM, ref.Disk)
	q := &query{p: p, ref: ref, object: object}
	ch, err := q.run(ctx, since)
	return ch, fail(q.op(), object, err)
}

// query is a question for the changes of one disk.
type query struct {
	p      *Provider
	ref    providers.DiskRef
	object string
	disk   *types.VirtualDisk // as the snapshot has it
}

func (*query) op() string { return "tell the changes of" }

// lost is the error where changes cannot be proved.
func (q *query) lost(format string, a ...any) error {
	return q.no(providers.TrackingLost, format, a...)
}

func (q *query) no(r providers.Reason, format string, a ...any) error {
	return &providers.Error{Op: "vsphere: " + q.op(), Object: q.object, Reason: r, Msg: fmt.Sprintf(format, a...)}
}

func (q *query) run(ctx context.Context, since cbt.Point) (cbt.Changes, error) {
	m, err := q.p.machine(ctx, q.ref.VM, trackingProps)
	if err != nil {
		return cbt.Changes{}, err
	}
	to, err := q.point(ctx, m)
	if err != nil {
		return cbt.Changes{}, err
	}
	id := everything
	if since != "" {
		if err := q.follows(since, to); err != nil {
			return cbt.Changes{}, err
		}
		id = string(since)
	}
	ranges, err := q.ranges(ctx, id)
	if err != nil {
		return cbt.Changes{}, err
	}
	// What was told holds only if the snapshot was there, and its VM tracked, all the time.
	if m, err = q.p.machine(ctx, q.ref.VM, trackingProps); err != nil {
		return cbt.Changes{}, err
	}
	if _, err := q.point(ctx, m); err != nil {
		return cbt.Changes{}, err
	}
	return cbt.Changes{From: since, To: to, By: cbt.Tracked, Ranges: ranges}, nil
}

// point is the change id that the snapshot has of the disk.
func (q *query) point(ctx context.Context, m *machine) (cbt.Point, error) {
	if !slices.ContainsFunc(snapshots(m.Snapshot), func(s providers.Snapshot) bool { return s.ID == q.ref.Snapshot }) {
		return "", q.no(providers.NotFound, "the VM has no snapshot %s", q.ref.Snapshot)
	}
	s, err := load[mo.VirtualMachineSnapshot](ctx, q.p, snapshotRef(q.ref.Snapshot), "config.hardware.device")
	if err != nil {
		return "", err
	}
	if q.disk = findDisk(s.Config.Hardware.Device, q.ref.Disk); q.disk == nil {
		return "", q.no(providers.NotFound, "the snapshot %s has no disk %s", q.ref.Snapshot, q.ref.Disk)
	}
	to := changeID(q.disk.Backing)
	switch {
	case !m.tracked():
		return "", q.lost("change tracking is switched off")
	case to == "":
		return "", q.lost("the disk was not tracked when the snapshot %s was taken", q.ref.Snapshot)
	}
	if _, _, ok := splitPoint(to); !ok {
		return "", q.lost("the server's change id %q is of an unknown form", to)
	}
	return to, nil
}

// follows makes sure that to comes after since in the same tracking.
func (q *query) follows(since, to cbt.Point) error {
	was, from, ok := splitPoint(since)
	if !ok {
		return q.lost("the point %q of the last copy is no change id", shorten(string(since)))
	}
	is, until, _ := splitPoint(to)
	switch {
	case was != is:
		return q.lost("tracking began anew since the last copy, which another one (%s instead of %s) has followed: it was reset or off in between, or the disk was replaced, resized or reverted to a snapshot", is, was)
	case from > until:
		return q.lost("the last copy (point %d) is newer than the snapshot (point %d): the disk was reverted in between", from, until)
	}
	return nil
}

// splitPoint takes a change id, "52 9b … 7a/12", apart: its tracking, and the number of the point.
func splitPoint(p cbt.Point) (tracking string, seq uint64, ok bool) {
	tracking, number, ok := cutLast(string(p), "/")
	seq, err := strconv.ParseUint(number, 10, 63)
	return tracking, seq, ok && err == nil && tracking != "" && len(p) <= 256
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// shorten keeps what others wrote from filling a message.
func shorten(s string) string { return s[:min(len(s), 100)] }

// ranges asks page by page. A page tells of as many bytes as its length says, also where it lists no
// area; it is never asked from the end of the disk on, which is a fault.
func (q *query) ranges(ctx context.Context, id string) (cbt.Set, error) {
	size := capacity(q.disk)
	snapshot := snapshotRef(q.ref.Snapshot)
	var out cbt.Set
	for off, pages := int64(0), 0; off < size; pages++ {
		if pages >= maxPages || out.Len() > maxAreas {
			return cbt.Set{}, q.lost("the server lists more than %d areas on %d pages, and is at %d of %d bytes; copying all is faster", out.Len(), pages, off, size)
		}
		res, err := methods.QueryChangedDiskAreas(ctx, q.p.soap, &types.QueryChangedDiskAreas{
			This: vmRef(q.ref.VM), Snapshot: &snapshot, DeviceKey: q.disk.Key, StartOffset: off, ChangeId: id,
		})
		if err != nil {
			return cbt.Set{}, q.refused(err, id)
		}
		if err := q.page(&out, res.Returnval, off, size); err != nil {
			return cbt.Set{}, err
		}
		off += min(res.Returnval.Length, size-off)
	}
	return out, nil
}

// page adds what one answer lists, which has to make sense: what is left out would be lost.
func (q *query) page(out *cbt.Set, info types.DiskChangeInfo, off, size int64) error {
	if info.StartOffset != off || info.Length <= 0 || info.Length-rounding > size-off {
		return q.lost("the server was asked from byte %d of %d on, and answered about %d bytes at %d", off, size, info.Length, info.StartOffset)
	}
	for _, a := range info.ChangedArea {
		// An area may be rounded up beyond the end of the disk; anywhere else it means another disk.
		if a.Start < 0 || a.Start >= size || a.Length <= 0 {
			return q.lost("the server lists a change of %d bytes at %d on a disk of %d bytes", a.Length, a.Start, size)
		}
		if err := out.Add(a.Start, min(a.Length, size-a.Start)); err != nil {
			return q.lost("%v", err)
		}
	}
	return nil
}

// refused sorts what the server says about a change id: one that it does not know is a broken file, or
// a wrong parameter, to it.
func (q *query) refused(err error, id string) error {
	f, invalid := faultAs[*types.InvalidArgument](err)
	invalid = invalid && (f.InvalidProperty == "" || strings.EqualFold(f.InvalidProperty, "changeId"))
	switch {
	case !invalid && !isFault[*types.FileFault](err) && !isFault[*types.FileNotFound](err):
		return err
	case id == everything:
		return &providers.Error{Op: "vsphere: " + q.op(), Object: q.object, Reason: providers.TrackingLost,
			Msg: "the server cannot tell what is allocated, as where tracking was off or the datastore does not know", Err: strip(err)}
	}
	return &providers.Error{Op: "vsphere: " + q.op(), Object: q.object, Reason: providers.TrackingLost,
		Msg: "the server does not know the last copy's point " + shorten(id) + " any more, as where tracking was off or reset in between", Err: strip(err)}
}
