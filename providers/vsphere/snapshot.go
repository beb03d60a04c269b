package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

const (
	// prefix begins the name of every snapshot of ours.
	prefix = "hypersdk "
	// maxName is how many characters vSphere takes for the name of a snapshot.
	maxName = 80
)

// snapshotName is the name of the snapshot with this key. A key that is too long is cut and told apart
// by its digest.
func snapshotName(key string) string {
	name := prefix + key
	if utf8.RuneCountInString(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(key))
	tail := "~" + hex.EncodeToString(sum[:8])
	return string([]rune(name)[:maxName-len(tail)]) + tail
}

// mark ends the description of a snapshot that has a name of its own, to know it by its key.
func mark(key string) string { return "[" + snapshotName(key) + "]" }

// unmark is a description without its mark.
func unmark(description string) string {
	if i := strings.LastIndex(description, "["+prefix); i >= 0 && strings.HasSuffix(description, "]") {
		return strings.TrimSuffix(description[:i], "\n")
	}
	return description
}

// Snapshot takes a snapshot, or answers the one that has this key already.
func (p *Provider) Snapshot(ctx context.Context, vm providers.VMID, opt providers.SnapshotOptions) (providers.Snapshot, error) {
	const op = "snapshot"
	if opt.Key == "" {
		return providers.Snapshot{}, &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Invalid, Msg: "no key was given"}
	}
	m, s, err := p.keyed(ctx, vm, opt.Key)
	if notThere(err) && m != nil {
		if err = p.takeSnapshot(ctx, m, opt); err == nil {
			m, s, err = p.keyed(ctx, vm, opt.Key)
		}
	}
	if err != nil {
		return providers.Snapshot{}, fail(op, string(vm), err)
	}
	frozen, err := p.frozen(ctx, s.ID)
	if err != nil {
		return providers.Snapshot{}, fail(op, string(vm), err)
	}
	s.Disks = m.disks(frozen)
	return s, nil
}

func (p *Provider) takeSnapshot(ctx context.Context, m *machine, opt providers.SnapshotOptions) error {
	name, description := snapshotName(opt.Key), opt.Description
	if opt.Name != "" {
		name, description = opt.Name, strings.TrimPrefix(description+"\n"+mark(opt.Key), "\n")
	}
	res, err := methods.CreateSnapshot_Task(ctx, p.soap, &types.CreateSnapshot_Task{
		This: m.Self, Name: name, Description: description, Memory: opt.Memory, Quiesce: opt.Quiesce,
	})
	if err != nil {
		return err
	}
	_, err = p.wait(ctx, res.Returnval)
	return err
}

// FindSnapshot looks for the snapshot with this key, and waits for one that is being taken.
func (p *Provider) FindSnapshot(ctx context.Context, vm providers.VMID, key string) (providers.Snapshot, error) {
	_, s, err := p.keyed(ctx, vm, key)
	return s, fail("find snapshot", string(vm), err)
}

// keyed reads a VM and looks for a snapshot in it, and waits for one that is being taken: it may be the
// one that is looked for, asked for by a call whose answer was lost. Where the VM is there and the
// snapshot is not, the error is NotFound and the machine is answered all the same.
func (p *Provider) keyed(ctx context.Context, vm providers.VMID, key string) (*machine, providers.Snapshot, error) {
	name, line := snapshotName(key), mark(key)
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		// Asked before the look: a snapshot whose task ends in between is seen.
		taking, err := p.running(ctx, vmRef(vm), "createSnapshot")
		if err != nil && !notThere(err) {
			return nil, providers.Snapshot{}, err
		}
		m, err := p.machine(ctx, vm, []string{"snapshot"})
		if err != nil {
			return nil, providers.Snapshot{}, err
		}
		for _, s := range snapshots(m.Snapshot) {
			if s.Name == name || strings.HasSuffix(s.Description, line) {
				s.Description = unmark(s.Description)
				return m, s, nil
			}
		}
		if !taking {
			return m, providers.Snapshot{}, &providers.Error{Op: "vsphere: find snapshot", Object: string(vm), Reason: providers.NotFound,
				Msg: "the VM has no snapshot named " + name}
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, providers.Snapshot{}, err
		}
	}
}

// DeleteSnapshot removes one snapshot and keeps its children. A snapshot, or a VM, that is not there is
// fine.
func (p *Provider) DeleteSnapshot(ctx context.Context, vm providers.VMID, id providers.SnapshotID) error {
	err := p.deleteSnapshot(ctx, vm, id)
	if notThere(err) {
		return nil // gone before, or with the VM, or by another hand in the meantime
	}
	return fail("delete snapshot", string(id)+" of "+string(vm), err)
}

func (p *Provider) deleteSnapshot(ctx context.Context, vm providers.VMID, id providers.SnapshotID) error {
	m, err := p.machine(ctx, vm, []string{"snapshot"})
	if err != nil {
		return err
	}
	for _, s := range snapshots(m.Snapshot) {
		if s.ID != id {
			continue
		}
		res, err := methods.RemoveSnapshot_Task(ctx, p.soap, &types.RemoveSnapshot_Task{
			This: snapshotRef(id), RemoveChildren: false, Consolidate: types.NewBool(true),
		})
		if err != nil {
			return err
		}
		_, err = p.wait(ctx, res.Returnval)
		return err
	}
	return nil
}

func snapshotRef(id providers.SnapshotID) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: string(id)}
}

// frozen is the devices of the VM as they were when the snapshot was taken. The files of its disks
// have not changed since.
func (p *Provider) frozen(ctx context.Context, id providers.SnapshotID) ([]types.BaseVirtualDevice, error) {
	s, err := load[mo.VirtualMachineSnapshot](ctx, p, snapshotRef(id), "config.hardware.device")
	return s.Config.Hardware.Device, err
}

// snapshots is the tree as a list, parents before children.
func snapshots(info *types.VirtualMachineSnapshotInfo) []providers.Snapshot {
	if info == nil {
		return nil
	}
	var out []providers.Snapshot
	var walk func(list []types.VirtualMachineSnapshotTree, parent providers.SnapshotID)
	walk = func(list []types.VirtualMachineSnapshotTree, parent providers.SnapshotID) {
		for _, s := range list {
			id := providers.SnapshotID(s.Snapshot.Value)
			out = append(out, providers.Snapshot{
				ID: id, Name: unescape(s.Name), Description: s.Description, Created: s.CreateTime.UTC(), Parent: parent,
				Quiesced: s.Quiesced, Memory: s.State == types.VirtualMachinePowerStatePoweredOn,
			})
			walk(s.ChildSnapshotList, id)
		}
	}
	walk(info.RootSnapshotList, "")
	return out
}
