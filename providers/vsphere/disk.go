package vsphere

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats"
	"hypersdk/providers"
)

// Datastore is the transport that reads the "-flat.vmdk" of a disk from its datastore by HTTP ranges.
//
// A snapshot freezes that file: from then on the VM writes into a delta beside it. So it holds the disk
// as of the snapshot, provided that the file is the base of the chain and that nothing folds a delta
// back into it, which deleting an older snapshot would do. Hence the rule that ours is the only one.
const Datastore = "datastore"

// plainStores are the kinds of datastore on which the bytes of a disk are a file.
var plainStores = []string{"VMFS", "NFS", "NFS41"}

// diskProps is what is asked of a VM to know whether and where its disks can be read.
var diskProps = []string{"config.hardware.device", "config.template", "config.keyId", "snapshot", "runtime"}

// Transports tells whether the disks of vm can be read from their datastores, with VDDK, and under a lease.
// VDDK comes last where the connection has none: it is no better way that one would have to hear about.
func (p *Provider) Transports(ctx context.Context, vm providers.VM) ([]providers.Transport, error) {
	const op = "look at the disks of"
	m, err := p.machine(ctx, vm.ID, diskProps)
	if err != nil {
		return nil, fail(op, string(vm.ID), err)
	}
	direct := providers.Transport{Name: Datastore, Resumable: true}
	leased := providers.Transport{Name: NFC, Leased: true}
	if why := m.refuseLease(); why != nil {
		leased.Why = why.Msg
	}
	library := p.vddkTransport(ctx, m)
	if err := ctx.Err(); err != nil {
		return nil, fail(op, string(vm.ID), err)
	}
	all := func() []providers.Transport {
		if p.vddk.configured() {
			return []providers.Transport{direct, library, leased}
		}
		return []providers.Transport{direct, leased, library}
	}
	if why := m.refuse(""); why != nil {
		direct.Why = why.Msg
		return all(), nil
	}
	devices := m.Config.Hardware.Device
	if ours := snapshots(m.Snapshot); len(ours) > 0 {
		if devices, err = p.frozen(ctx, ours[0].ID); err != nil {
			return nil, fail(op, string(vm.ID), err)
		}
	}
	for _, dev := range devices {
		if d, ok := dev.(*types.VirtualDisk); ok {
			if why := m.refuseDisk(d); why != nil {
				direct.Why = why.Msg
				break
			}
		}
	}
	return all(), nil
}

// refuse says why no disk of the VM can be read from its datastore, nil where nothing speaks against
// it. mine is the snapshot to be read; "" before there is one, when a snapshot of ours that is left
// over, or just being used, does not count.
func (m *machine) refuse(mine providers.SnapshotID) *providers.Error {
	no := func(r providers.Reason, format string, a ...any) *providers.Error {
		return &providers.Error{Op: "vsphere: read from datastore", Object: m.Self.Value, Reason: r, Msg: fmt.Sprintf(format, a...)}
	}
	switch state := m.Runtime.ConnectionState; {
	case state != "" && state != types.VirtualMachineConnectionStateConnected:
		return no(providers.Precondition, "the VM is %s", state)
	case m.Config == nil:
		return no(providers.Precondition, "the server does not tell the VM's configuration")
	case m.Config.Template:
		return no(providers.Unsupported, "it is a template, of which no snapshot can be taken; turn it into a VM first")
	case m.Config.KeyId != nil:
		return no(providers.Unsupported, "the VM is encrypted")
	case m.Runtime.ConsolidationNeeded:
		return no(providers.Precondition, "the VM's disks need consolidation: remains of a deleted snapshot are still in their chains")
	}
	for i, s := range snapshots(m.Snapshot) {
		if s.ID == mine || (mine == "" && i == 0 && strings.HasPrefix(s.Name, prefix)) {
			continue
		}
		return no(providers.Precondition, "the VM has another snapshot (%q); the file of a disk is its whole state only while ours is the only one", s.Name)
	}
	return nil
}

// refuseDisk says why this disk, as a snapshot has or will have frozen it, cannot be read from its
// datastore.
func (m *machine) refuseDisk(d *types.VirtualDisk) *providers.Error {
	no := func(r providers.Reason, format string, a ...any) *providers.Error {
		return &providers.Error{Op: "vsphere: read from datastore", Object: m.Self.Value + " disk " + string(diskID(d)), Reason: r,
			Msg: label(&d.VirtualDevice) + " " + fmt.Sprintf(format, a...)}
	}
	b, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return no(providers.Unsupported, "%s", unreadable(d.Backing))
	}
	var store datastore
	if b.Datastore != nil {
		store = m.stores[*b.Datastore]
	}
	switch {
	case strings.HasPrefix(b.DiskMode, "independent"):
		return no(providers.Unsupported, "is independent (%s), so that no snapshot freezes it", b.DiskMode)
	case b.Sharing == string(types.VirtualDiskSharingSharingMultiWriter):
		return no(providers.Unsupported, "is shared with other VMs, which a snapshot does not stop from writing")
	case b.KeyId != nil:
		return no(providers.Unsupported, "is encrypted")
	case b.Parent != nil:
		return no(providers.Precondition, "is a delta of %s, so that its file is not the whole of it", b.Parent.FileName)
	case !slices.Contains(plainStores, store.kind):
		return no(providers.Unsupported, "is on datastore %q of kind %s, which does not give out files of disks over HTTP; that needs %s",
			unescape(store.name), orUnknown(store.kind), strings.Join(plainStores, ", "))
	}
	return nil
}

// unreadable says what a disk is that is no plain file.
func unreadable(b types.BaseVirtualDeviceBackingInfo) string {
	switch b.(type) {
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo, *types.VirtualDiskPartitionedRawDiskVer2BackingInfo:
		return "is a raw device mapping: its bytes are not in a file"
	case *types.VirtualDiskSeSparseBackingInfo, *types.VirtualDiskSparseVer1BackingInfo, *types.VirtualDiskSparseVer2BackingInfo:
		return "is stored sparsely: its file is not the disk byte by byte"
	}
	return "is stored in a way (" + strings.TrimPrefix(fmt.Sprintf("%T", b), "*types.") + ") that is no plain file"
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// flat is a file that holds a disk byte by byte.
type flat struct {
	url  string
	size int64
}

// OpenDisk opens the disk as it was when the snapshot was taken.
func (p *Provider) OpenDisk(ctx context.Context, ref providers.DiskRef) (formats.Image, error) {
	object := fmt.Sprintf("%s disk %s", ref.VM, ref.Disk)
	switch ref.Transport {
	case "", Datastore:
	case VDDK:
		return p.openVDDK(ctx, ref, object)
	default:
		return nil, &providers.Error{Op: "vsphere: open disk", Object: object, Reason: providers.Unsupported,
			Msg: fmt.Sprintf("there is no transport %q for a disk by itself; there are: %s, %s", ref.Transport, Datastore, VDDK)}
	}
	f, err := p.resolve(ctx, ref)
	if err != nil {
		return nil, fail("open disk", object, err)
	}
	im := newImage(ctx, p, object, f, func(ctx context.Context) error {
		now, err := p.resolve(ctx, ref)
		if err == nil && now != f {
			err = &providers.Error{Op: "vsphere: read disk", Object: object, Reason: providers.Precondition, Msg: "the disk has been moved to another file"}
		}
		return fail("read disk", object, err)
	})
	if err := im.probe(); err != nil {
		im.Close()
		return nil, fail("open disk", object, err)
	}
	return im, nil
}

// resolve finds the file that holds the disk, after making sure that it is frozen.
func (p *Provider) resolve(ctx context.Context, ref providers.DiskRef) (flat, error) {
	m, err := p.machine(ctx, ref.VM, diskProps)
	if err != nil {
		return flat{}, err
	}
	if err := m.has(ref.Snapshot); err != nil {
		return flat{}, err
	}
	if why := m.refuse(ref.Snapshot); why != nil {
		return flat{}, why
	}
	d, err := p.frozenDisk(ctx, m, ref)
	if err != nil {
		return flat{}, err
	}
	if why := m.refuseDisk(d); why != nil {
		return flat{}, why
	}
	u, err := p.flatURL(m, d)
	return flat{url: u, size: capacity(d)}, err
}

// has makes sure that there is a snapshot, without which nothing freezes the disks.
func (m *machine) has(snapshot providers.SnapshotID) error {
	if slices.ContainsFunc(snapshots(m.Snapshot), func(s providers.Snapshot) bool { return s.ID == snapshot }) {
		return nil
	}
	return &providers.Error{Op: "vsphere: open disk", Object: m.Self.Value, Reason: providers.NotFound,
		Msg: "the VM has no snapshot " + string(snapshot) + " any more, so that nothing freezes its disks"}
}

// frozenDisk is a disk as a snapshot has it, which the VM itself no longer works on.
func (p *Provider) frozenDisk(ctx context.Context, m *machine, ref providers.DiskRef) (*types.VirtualDisk, error) {
	no := func(r providers.Reason, msg string) error {
		return &providers.Error{Op: "vsphere: open disk", Object: string(ref.VM), Reason: r, Msg: msg}
	}
	devices, err := p.frozen(ctx, ref.Snapshot)
	if err != nil {
		return nil, err
	}
	d := findDisk(devices, ref.Disk)
	if d == nil {
		return nil, no(providers.NotFound, "its snapshot "+string(ref.Snapshot)+" has no disk "+string(ref.Disk))
	}
	if m.Config == nil {
		return nil, no(providers.Precondition, "the server does not tell the VM's configuration")
	}
	if live := findDisk(m.Config.Hardware.Device, ref.Disk); live != nil && fileOf(live) == fileOf(d) && fileOf(d) != "" {
		return nil, no(providers.Precondition, "the VM itself works on "+fileOf(d)+", although there is a snapshot")
	}
	return d, nil
}

func findDisk(devices []types.BaseVirtualDevice, id providers.DiskID) *types.VirtualDisk {
	for _, dev := range devices {
		if d, ok := dev.(*types.VirtualDisk); ok && diskID(d) == id {
			return d
		}
	}
	return nil
}

func fileOf(d *types.VirtualDisk) string {
	if b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return b.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

// flatURL is the address of the file with the bytes of d, which lies beside the descriptor that its
// backing names. The name is never guessed from that of a delta: a delta has no such file, and that of
// its base would be another state of the disk.
func (p *Provider) flatURL(m *machine, d *types.VirtualDisk) (string, error) {
	b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	var file object.DatastorePath
	if !file.FromString(b.FileName) || path.Ext(file.Path) != ".vmdk" {
		return "", &providers.Error{Op: "vsphere: read from datastore", Object: m.Self.Value, Reason: providers.Unsupported,
			Msg: fmt.Sprintf("%q is not the path of a disk on a datastore", b.FileName)}
	}
	u := *p.login.server.url
	u.Path = "/folder/" + strings.TrimSuffix(file.Path, ".vmdk") + "-flat.vmdk"
	q := url.Values{"dcPath": {m.tree.datacenter(m.Self)}, "dsName": {m.stores[*b.Datastore].name}}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // which no reader of queries takes for anything but a space
	return u.String(), nil
}
