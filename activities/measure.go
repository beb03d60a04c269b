package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"hypersdk/cbt"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Measure tells what an incremental copy of a VM would read now, disk by disk, as its chain itself decides:
// by the changes up to a snapshot, or, where there is none, without them. It changes nothing.
func (c *Control) Measure(ctx context.Context, in MeasureRequest) (Measured, error) {
	return touch(ctx, c.Site, in.Touch, MeasureActivity, func(ctx context.Context, inv providers.Inventory, _ *slog.Logger) (Measured, error) {
		vm, err := inv.VM(ctx, string(in.VM))
		if err != nil {
			return Measured{}, err
		}
		m := measure{in: in, vm: vm}
		if in.Target != nil {
			chain, _, err := c.openChain(ctx, *in.Target, true)
			if err != nil {
				return Measured{}, err
			}
			defer chain.Close()
			m.chain = chain
		}
		if in.Snapshot != "" {
			if _, m.tracker, err = open[providers.ChangeTracker](ctx, c.Site, in.Connection); err != nil {
				return Measured{}, err
			}
		}
		return m.run(ctx)
	})
}

// measure is one look at what would be read.
type measure struct {
	in      MeasureRequest
	vm      providers.VM
	chain   *cbt.Chain              // nil: there is none
	tracker providers.ChangeTracker // nil: there is no snapshot to ask up to
}

func (m *measure) run(ctx context.Context) (Measured, error) {
	out := Measured{Disks: []job.AnalyzedDisk{}}
	point := cbt.NewPoint{Key: "analysis " + m.in.Job}
	for _, d := range m.vm.Disks {
		a := job.AnalyzedDisk{Disk: string(d.ID), Label: d.Label, Size: d.Size}
		n, err := m.disk(ctx, d, &a)
		if err != nil {
			return out, fmt.Errorf("%s: %w", d.Label, err)
		}
		point.Disks, out.Disks = append(point.Disks, n), append(out.Disks, a)
	}
	if m.chain == nil {
		for i := range out.Disks {
			a := &out.Disks[i]
			a.Reason, a.ChangedBytes = "there is no point to start from", full(*a)
		}
		return out, nil
	}
	plans, err := m.chain.Plan(ctx, point)
	if err != nil {
		return out, chainError(err)
	}
	for i, p := range plans {
		decided(&out.Disks[i], p, point.Disks[i].Changes)
	}
	return out, nil
}

// full is what a copy in full reads of a disk.
func full(d job.AnalyzedDisk) int64 {
	if d.AllocatedBytes > 0 {
		return d.AllocatedBytes
	}
	return d.Size
}

// decided notes what the chain decided about a disk.
func decided(a *job.AnalyzedDisk, p cbt.Plan, changes *cbt.Changes) {
	switch {
	case p.Full:
		a.Reason, a.ChangedBytes = clip(p.Reason, 300), full(*a)
	case changes.By == cbt.Tracked:
		a.CanIncremental, a.By, a.ChangedBytes = true, cbt.Tracked, p.Ranges.Bytes()
	default:
		a.By, a.ChangedBytes = cbt.Compared, a.Size
	}
}

// disk finds out what changed of a disk since the newest point of the chain, and what it holds at all.
func (m *measure) disk(ctx context.Context, d providers.Disk, a *job.AnalyzedDisk) (cbt.NewDisk, error) {
	n := cbt.NewDisk{Disk: string(d.ID), Size: d.Size}
	if strings.Contains(strings.ToLower(d.Mode), "independent") {
		n.Why = "it is an independent disk, which has no part in snapshots; change its mode to export the VM"
		return n, nil
	}
	if m.tracker == nil {
		// Without tracking the disk is read and compared; whether the chain would take that, it says itself.
		n.Changes = &cbt.Changes{By: cbt.Compared}
		a.Reason = m.in.Why
		return n, nil
	}
	ref := providers.DiskRef{VM: m.in.VM, Snapshot: m.in.Snapshot, Disk: d.ID}
	held, err := m.tracker.Changes(ctx, ref, "")
	switch {
	case err == nil:
		a.AllocatedBytes = held.Ranges.Clip(0, d.Size).Bytes()
	case !errors.Is(err, providers.TrackingLost) && !errors.Is(err, providers.Unsupported):
		return n, err
	}
	if m.chain == nil {
		return n, nil
	}
	old := newestOf(m.chain.Manifest(), d.ID)
	if old == nil {
		return n, nil // the chain says why
	}
	got, err := seek(ctx, m.tracker, ref, AppendDisk{Disk: d.ID, Label: d.Label, Size: d.Size, ChangeID: m.in.Points[d.ID]}, *old)
	switch {
	case err != nil:
		return n, err
	case got.untracked != "":
		n.Changes, a.Reason = &cbt.Changes{By: cbt.Compared}, got.untracked
	case got.full != "":
		n.Why = clip(got.full, 300)
	default:
		n.ChangeID, n.Changes = got.changes.To, got.changes
	}
	return n, nil
}
