package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities that do something to a VM.
const (
	FindVMActivity         = "find-vm"         // Control.FindVM
	PowerActivity          = "power"           // Control.Power
	ShutDownActivity       = "shut-down"       // Control.ShutDown
	DrivesActivity         = "drives"          // Control.Drives
	RemoveDrivesActivity   = "remove-drives"   // Control.RemoveDrives
	RestoreDrivesActivity  = "restore-drives"  // Control.RestoreDrives
	TakeSnapshotActivity   = "take-snapshot"   // Control.TakeSnapshot
	DeleteSnapshotActivity = "delete-snapshot" // Control.DeleteSnapshot
	CloneActivity          = "clone"           // Control.Clone
	SetTemplateActivity    = "set-template"    // Control.SetTemplate
)

// Touch is what is done for whom to which VM.
type Touch struct {
	Job        string         `json:"job"` // or operation
	Connection string         `json:"connection"`
	VM         providers.VMID `json:"vm"`
	// Patience is how long it is tried again; 0: as long as the activity may. What somebody waits for
	// is not done by surprise later.
	Patience time.Duration `json:"patience,omitempty"`
}

// FindVMRequest asks for a VM.
type FindVMRequest struct {
	Touch
	VMPath string `json:"vm_path"`
}

// FoundVM is a VM as a listing tells it.
type FoundVM struct {
	VM providers.VM `json:"vm"`
}

// PowerRequest asks for a VM to be on or off.
type PowerRequest struct {
	Touch
	Want providers.Power `json:"want"`
	// Settle is how long to wait first for a shutdown that the guest was asked for to come about.
	Settle time.Duration `json:"settle,omitempty"`
}

// ShutDownRequest asks for a guest to shut down.
type ShutDownRequest struct {
	Touch
	Within time.Duration `json:"within"`
	// Again says that the VM is to run again when the job has ended, however it ends.
	Again bool `json:"again,omitempty"`
}

// Powered is the power state of a VM.
type Powered struct {
	Power providers.Power `json:"power"`
}

// DrivesRequest asks for drives to be removed or put back.
type DrivesRequest struct {
	Touch
	Drives []providers.Drive `json:"drives"`
	// Again says that they are to be put back when the job has ended.
	Again bool `json:"again,omitempty"`
}

// TakeSnapshotRequest asks for a snapshot.
type TakeSnapshotRequest struct {
	Touch
	Key string `json:"key"`
	job.SnapshotRequest
}

// DeleteSnapshotRequest asks for a snapshot to be deleted, by its id or name.
type DeleteSnapshotRequest struct {
	Touch
	Snapshot string `json:"snapshot"`
}

// CloneRequest asks for a VM to be cloned.
type CloneRequest struct {
	Touch
	Key string `json:"key"`
	job.CloneRequest
}

// TemplateRequest asks for a template, or for a VM.
type TemplateRequest struct {
	Touch
	Template bool `json:"template"`
}

// touch runs a short activity that changes a VM.
func touch[C, Out any](ctx context.Context, s *Site, t Touch, name string, do func(context.Context, C, *slog.Logger) (Out, error)) (Out, error) {
	return step(ctx, s, t.Job, name, func(ctx context.Context, log *slog.Logger) (Out, error) {
		var out Out
		_, c, err := open[C](ctx, s, t.Connection)
		if err == nil {
			out, err = do(ctx, c, log)
		}
		if err != nil && t.Patience > 0 && ctx.Err() == nil && time.Since(activity.GetInfo(ctx).ScheduledTime) > t.Patience {
			err = final(err)
		}
		return out, err
	})
}

// FindVM looks for a VM.
func (c *Control) FindVM(ctx context.Context, in FindVMRequest) (FoundVM, error) {
	return touch(ctx, c.Site, in.Touch, FindVMActivity, func(ctx context.Context, inv providers.Inventory, _ *slog.Logger) (FoundVM, error) {
		vm, err := inv.VM(ctx, in.VMPath)
		return FoundVM{VM: light(vm)}, err
	})
}

// light is a VM as a listing tells it: what a history needs of it.
func light(vm providers.VM) providers.VM {
	return providers.VM{
		ID: vm.ID, Name: vm.Name, Path: vm.Path, PowerState: vm.PowerState, GuestOS: vm.GuestOS, MemoryMB: vm.MemoryMB,
		NumCPU: vm.NumCPU, StorageBytes: vm.StorageBytes, Template: vm.Template,
	}
}

// Power switches a VM on or off.
func (c *Control) Power(ctx context.Context, in PowerRequest) (Powered, error) {
	return touch(ctx, c.Site, in.Touch, PowerActivity, func(ctx context.Context, p providers.PowerManager, log *slog.Logger) (Powered, error) {
		return c.power(ctx, p, in, log)
	})
}

func (s *Site) power(ctx context.Context, p providers.PowerManager, in PowerRequest, log *slog.Logger) (Powered, error) {
	if in.Settle > 0 {
		if _, err := untilOff(ctx, p, in.VM, in.Settle); err != nil {
			return Powered{}, err
		}
	}
	do := p.PowerOn
	if in.Want == providers.PowerOff {
		do = p.PowerOff
	}
	if err := do(ctx, in.VM); err != nil {
		return Powered{}, err
	}
	log.Info("power", "vm", in.VM, "state", in.Want)
	if in.Want == providers.PowerOn {
		return Powered{in.Want}, s.changeRecord(in.Job, func(r *record) { r.PowerOn = false })
	}
	return Powered{in.Want}, nil
}

// powerPace is how often a guest that shuts down is looked at.
const powerPace = 500 * time.Millisecond

// untilOff waits for a VM to be off, for so long. It answers the state that the VM is in then.
func untilOff(ctx context.Context, p providers.PowerManager, vm providers.VMID, within time.Duration) (providers.Power, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	tick := time.NewTicker(powerPace)
	defer tick.Stop()
	for {
		is, err := p.Power(ctx, vm)
		if err != nil || is == providers.PowerOff {
			return is, err
		}
		select {
		case <-tick.C:
		case <-late.C:
			return is, nil
		case <-ctx.Done():
			return is, ctx.Err()
		}
	}
}

// ShutDown asks a guest to shut down and waits until it has, or until its time, which counts from the
// first attempt, is over: that is no failure, the state tells.
func (c *Control) ShutDown(ctx context.Context, in ShutDownRequest) (Powered, error) {
	return touch(ctx, c.Site, in.Touch, ShutDownActivity, func(ctx context.Context, p providers.PowerManager, log *slog.Logger) (Powered, error) {
		info := activity.GetInfo(ctx)
		if in.Again {
			if err := c.changeRecord(in.Job, func(r *record) { r.PowerOn = true }); err != nil {
				return Powered{}, err
			}
		}
		err := p.ShutDown(ctx, in.VM)
		// A guest that an earlier attempt has asked is perhaps so far that it cannot be asked again.
		if err != nil && (info.Attempt == 1 || !errors.Is(err, providers.Precondition)) {
			return Powered{}, err
		}
		is, err := untilOff(ctx, p, in.VM, max(in.Within-time.Since(info.ScheduledTime), powerPace))
		if err == nil {
			log.Info("the guest was asked to shut down", "vm", in.VM, "state", is, "waited", time.Since(info.ScheduledTime).Round(time.Millisecond).String())
		}
		return Powered{is}, err
	})
}

// Drives describes the CD and DVD drives of a VM.
func (c *Control) Drives(ctx context.Context, in Touch) ([]providers.Drive, error) {
	return touch(ctx, c.Site, in, DrivesActivity, func(ctx context.Context, d providers.DriveManager, _ *slog.Logger) ([]providers.Drive, error) {
		return d.Drives(ctx, in.VM)
	})
}

// RemoveDrives takes drives out of a VM. What it takes to put them back is written down first, for a
// job that cannot do so itself any more.
func (c *Control) RemoveDrives(ctx context.Context, in DrivesRequest) error {
	_, err := touch(ctx, c.Site, in.Touch, RemoveDrivesActivity, func(ctx context.Context, d providers.DriveManager, log *slog.Logger) (struct{}, error) {
		if in.Again {
			if err := c.changeRecord(in.Job, func(r *record) { r.Drives = in.Drives }); err != nil {
				return struct{}{}, err
			}
		}
		err := d.RemoveDrives(ctx, in.VM, in.Drives)
		if err == nil {
			log.Info("CD drives removed", "vm", in.VM, "drives", len(in.Drives))
		}
		return struct{}{}, err
	})
	return err
}

// RestoreDrives puts drives back.
func (c *Control) RestoreDrives(ctx context.Context, in DrivesRequest) error {
	_, err := touch(ctx, c.Site, in.Touch, RestoreDrivesActivity, func(ctx context.Context, d providers.DriveManager, log *slog.Logger) (struct{}, error) {
		if err := d.RestoreDrives(ctx, in.VM, in.Drives); err != nil {
			return struct{}{}, err
		}
		log.Info("CD drives put back", "vm", in.VM, "drives", len(in.Drives))
		return struct{}{}, c.changeRecord(in.Job, func(r *record) { r.Drives = nil })
	})
	return err
}

// TakeSnapshot takes a snapshot that stays.
func (c *Control) TakeSnapshot(ctx context.Context, in TakeSnapshotRequest) (providers.Snapshot, error) {
	return touch(ctx, c.Site, in.Touch, TakeSnapshotActivity, func(ctx context.Context, src providers.Snapshotter, log *slog.Logger) (providers.Snapshot, error) {
		s, err := src.Snapshot(ctx, in.VM, providers.SnapshotOptions{
			Key: in.Key, Name: in.Name, Description: in.Description, Memory: in.Memory, Quiesce: in.Quiesce,
		})
		if err == nil {
			log.Info("snapshot taken", "vm", in.VM, "snapshot", s.ID)
		}
		return s, err
	})
}

// DeleteSnapshot deletes one snapshot, and answers it. One that is not there, any more or at all, is
// answered without an id.
func (c *Control) DeleteSnapshot(ctx context.Context, in DeleteSnapshotRequest) (providers.Snapshot, error) {
	return touch(ctx, c.Site, in.Touch, DeleteSnapshotActivity, func(ctx context.Context, src providers.Snapshotter, log *slog.Logger) (providers.Snapshot, error) {
		_, inv, err := open[providers.Inventory](ctx, c.Site, in.Connection)
		if err != nil {
			return providers.Snapshot{}, err
		}
		vm, err := inv.VM(ctx, string(in.VM))
		if err != nil {
			return providers.Snapshot{}, err
		}
		s, err := snapshotOf(vm, in.Snapshot)
		if errors.Is(err, providers.NotFound) && activity.GetInfo(ctx).Attempt > 1 {
			return providers.Snapshot{}, nil // an earlier attempt has done it
		}
		if err != nil {
			return s, err
		}
		if err := c.spared(ctx, s); err != nil {
			return s, err
		}
		if err := src.DeleteSnapshot(ctx, in.VM, s.ID); err != nil {
			return s, err
		}
		log.Info("snapshot deleted", "vm", in.VM, "snapshot", s.ID)
		return s, nil
	})
}

// snapshotOf finds the snapshot of a VM with an id, or the only one with a name.
func snapshotOf(vm providers.VM, ref string) (providers.Snapshot, error) {
	var found []providers.Snapshot
	for _, s := range vm.Snapshots {
		if string(s.ID) == ref {
			return s, nil
		}
		if s.Name == ref {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return providers.Snapshot{}, refuse(providers.NotFound, "%s has no snapshot with the id or name %q", vm.Name, ref)
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, s := range found {
		ids[i] = string(s.ID)
	}
	return providers.Snapshot{}, refuse(providers.Invalid, "%s has %d snapshots of the name %q; give an id: %s", vm.Name, len(found), ref, strings.Join(ids, ", "))
}

// jobKey is what the key of a job's own snapshot begins with, before the id of the job.
const jobKey = "hypersdk-"

// spared makes sure that no running job reads from a snapshot.
func (s *Site) spared(ctx context.Context, snap providers.Snapshot) error {
	_, id, ours := strings.Cut(snap.Name, jobKey)
	if !ours {
		return nil
	}
	ended, err := s.deps.Engine.Ended(ctx, id)
	if err != nil {
		return err
	}
	if !ended {
		return final(refuse(providers.Precondition, "job %s reads from this snapshot, and removes it at its end; cancel the job first", id))
	}
	return nil
}

// Clone clones a VM.
func (c *Control) Clone(ctx context.Context, in CloneRequest) (providers.VM, error) {
	return touch(ctx, c.Site, in.Touch, CloneActivity, func(ctx context.Context, p providers.Cloner, log *slog.Logger) (providers.VM, error) {
		vm, err := p.Clone(ctx, in.VM, providers.CloneOptions{
			Key: in.Key, Name: in.Name, Folder: in.Folder, Datastore: in.Datastore, ResourcePool: in.ResourcePool, Host: in.Host, Template: in.Template,
		})
		if err == nil {
			log.Info("cloned", "vm", in.VM, "clone", vm.ID, "path", vm.Path)
		}
		return light(vm), err
	})
}

// SetTemplate makes a template of a VM, or a VM of a template.
func (c *Control) SetTemplate(ctx context.Context, in TemplateRequest) error {
	_, err := touch(ctx, c.Site, in.Touch, SetTemplateActivity, func(ctx context.Context, p providers.Cloner, log *slog.Logger) (struct{}, error) {
		err := p.SetTemplate(ctx, in.VM, in.Template)
		if err == nil {
			log.Info("template", "vm", in.VM, "is one", in.Template)
		}
		return struct{}{}, err
	})
	return err
}

// restoreSource brings a VM back into the state in which a dead job found it.
func (s *Site) restoreSource(ctx context.Context, r record, log *slog.Logger) error {
	if len(r.Drives) > 0 {
		_, d, err := open[providers.DriveManager](ctx, s, r.Connection)
		if err != nil {
			return err
		}
		if err := d.RestoreDrives(ctx, r.VM, r.Drives); err != nil {
			return fmt.Errorf("put back the CD drives: %w", err)
		}
		log.Info("CD drives put back", "vm", r.VM, "drives", len(r.Drives))
	}
	if r.PowerOn {
		_, p, err := open[providers.PowerManager](ctx, s, r.Connection)
		if err != nil {
			return err
		}
		if err := p.PowerOn(ctx, r.VM); err != nil {
			return fmt.Errorf("power on again: %w", err)
		}
		log.Info("power", "vm", r.VM, "state", providers.PowerOn)
	}
	return nil
}
