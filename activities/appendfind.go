package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/workflows/job"
)

// find finds out of every disk what changed since the newest point of the chain, or why it is to be copied
// in full:
//
//   - where that is asked for, and where the newest point does not have the disk: in full;
//   - where nobody tracked the changes since the newest point, because the platform cannot, because
//     tracking is off now, or because it was off then: the disk is read and compared with the chain;
//   - where tracking has lost the changes (reset, reverted, another disk), or a disk that is tracked was
//     resized: in full, because of the operators' rule that doubt about a tracker is a full copy;
//   - else what the tracker says, which an audit holds against a comparison first.
//
// A question that failed is no answer: it is asked again.
func (a *appending) find(ctx context.Context, m cbt.Manifest) error {
	return a.each(ctx, func(ctx context.Context, d *pointDisk) error {
		old := newestOf(m, d.in.Disk)
		d.changes, d.why, d.said = nil, "", said{}
		switch {
		case old == nil:
			return nil // the chain says why
		case a.in.Full:
			d.why = "it was asked for"
			return nil
		}
		got, err := seek(ctx, a.tracker, d.ref, d.in, *old)
		if err != nil {
			return err
		}
		d.changes, d.why = got.changes, got.full
		var full *cbt.FullError
		switch {
		case got.untracked != "":
			d.said.Note = "compared with the chain: " + got.untracked
			err = a.compare(ctx, d)
		case got.full != "":
			d.log.Warn("the disk is copied in full", "why", got.full)
		case a.in.Audit:
			err = a.audit(ctx, d)
		}
		if errors.As(err, &full) {
			d.changes, d.why, d.said = nil, full.Reason, said{}
			return nil
		}
		return err
	})
}

// compare reads the disk and compares it with the newest point of the chain.
func (a *appending) compare(ctx context.Context, d *pointDisk) error {
	defer d.moving()()
	d.log.Info("comparing", "attempt", a.attempt, "size", d.in.Size, "why", d.said.Note)
	c, err := a.chain.Compare(ctx, a.bare(), string(d.in.Disk), d.src, a.reading(d, job.Transfer, d.in.Size))
	if err == nil {
		d.changes = &c
		d.log.Info("compared", "changed", c.Ranges.Bytes(), "read", d.src.read.Load())
	}
	return err
}

// audit holds what the tracker says against a comparison, which is what counts where they differ.
func (a *appending) audit(ctx context.Context, d *pointDisk) error {
	defer d.moving()()
	d.log.Info("auditing the tracking of changes", "attempt", a.attempt, "size", d.in.Size, "claimed", d.changes.Ranges.Bytes())
	missed, truth, err := a.chain.Audit(ctx, a.bare(), string(d.in.Disk), *d.changes, d.src, a.reading(d, job.Transfer, d.in.Size))
	if err != nil {
		return err
	}
	if missed.Len() == 0 {
		d.log.Info("the tracking of changes told all of them", "claimed", d.changes.Ranges.Bytes(), "read", d.src.read.Load())
		return nil
	}
	d.said.Note = fmt.Sprintf("the platform's tracking missed changes of %s in %d places, so that the disk was compared with the chain",
		bytesText(missed.Bytes()), missed.Len())
	for r := range missed.All() {
		d.log.Error("the tracking of changes cannot be trusted: "+d.said.Note, "first", r.Off, "length", r.Len)
		break
	}
	d.said.Alert = d.in.Label + ": " + d.said.Note + "; reset change tracking, and see what is wrong with it before it is used without verify_tracking"
	d.changes = &truth
	return nil
}

// bare is the point without what is to be found out: what comparisons go on with after a kill.
func (a *appending) bare() cbt.NewPoint {
	p := cbt.NewPoint{Key: a.in.Job, Time: a.in.Time}
	for _, d := range a.disks {
		p.Disks = append(p.Disks, cbt.NewDisk{Disk: string(d.in.Disk), Size: d.in.Size, ChangeID: d.in.ChangeID})
	}
	return p
}

// reading is how a disk, or what was written of it, is read in whole. It ends when the worker stops.
func (a *appending) reading(d *pointDisk, phase job.Phase, total int64) formats.VerifyOptions {
	d.m.stage(phase, d.plan.File, total)
	return formats.VerifyOptions{Workers: a.workers(0), Pace: a.pace(d), Progress: func(p formats.Progress) {
		p.Read = d.read() - d.prior
		d.m.progress(p)
	}}
}

// pace holds a disk back while the job is paused; the limit on its bytes is where they come from.
func (a *appending) pace(d *pointDisk) func(context.Context, int64) error {
	return func(ctx context.Context, _ int64) error {
		if a.stopping() {
			return formats.ErrStopped
		}
		d.m.touch()
		return a.limit.wait(ctx, a.stop, d.m, 0)
	}
}

// workers is how many ranges of a disk are read at once.
func (a *appending) workers(usual int) int {
	switch {
	case a.in.Workers > 0:
		return a.in.Workers
	case a.Workers > 0:
		return a.Workers
	}
	return usual
}

// said is what is to be known of a disk of a point beside what its chain keeps. It is written before the
// point is committed, for when nobody hears that it was.
type said struct {
	Note  string `json:"note,omitempty"`  // how its changes were found
	Alert string `json:"alert,omitempty"` // what somebody has to know
}

func (a *appending) saidPath() string {
	return filepath.Join(jobDir(a.logs.dir, a.in.Job), "point.json")
}

func (a *appending) say() error {
	all := map[string]said{}
	for _, d := range a.disks {
		all[string(d.in.Disk)] = d.said
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.saidPath()), 0o700); err != nil {
		return err
	}
	return WriteFile(a.saidPath(), b)
}

// recall knows again what the attempt said that committed the point.
func (a *appending) recall() {
	var all map[string]said
	b, err := os.ReadFile(a.saidPath())
	if err != nil || json.Unmarshal(b, &all) != nil {
		return
	}
	for _, d := range a.disks {
		d.said = all[string(d.in.Disk)]
	}
}
