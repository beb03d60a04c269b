package activities

import (
	"context"
	"slices"
	"sync"
	"time"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/workflows/job"
)

// disk copies one disk of the point, and reads back what it has written.
func (a *appending) disk(ctx context.Context, p *cbt.Append, d *pointDisk) error {
	defer d.moving()()
	src, err := a.source(ctx, d)
	if err != nil {
		return err
	}
	usual, total := 0, d.in.Size
	if !d.plan.Full {
		usual, total = deltaWorkers, d.plan.Ranges.Bytes()
	}
	d.m.stage(job.Transfer, d.plan.File, total)
	log := d.log.With("file", d.plan.File)
	log.Info("copying", "attempt", a.attempt, "size", d.in.Size, "full", d.plan.Full, "why", d.plan.Reason,
		"changed", total, "ranges", d.plan.Ranges.Len(), "transport", d.ref.Transport)
	began := time.Now()
	progress, end := d.progress()
	_, err = p.Copy(ctx, string(d.in.Disk), src, formats.CopyOptions{
		Workers: a.workers(usual), Buffers: a.buffers, Progress: progress, Stop: a.stop,
		// It hears of the end of the worker through Stop, and makes durable what it has then.
		Pace: func(ctx context.Context, _ int64) error { d.m.touch(); return a.limit.wait(ctx, a.stop, d.m, 0) },
	})
	end()
	if err != nil {
		return chainError(err)
	}
	is := d.m.now()
	log.Info("copied", "attempt", a.attempt, "took", time.Since(began).Round(time.Millisecond).String(), "read", is.Read, "written", is.Written)
	if a.in.NoVerify {
		return nil
	}
	began = time.Now()
	if err := p.Verify(ctx, string(d.in.Disk), a.reading(d, job.Verify, d.in.Size)); err != nil {
		return chainError(err)
	}
	log.Info("verified", "took", time.Since(began).Round(time.Millisecond).String())
	return nil
}

// source is what the disk is copied from. Of a full copy only what is allocated is read, where the platform
// can tell; of a delta what changed, in ranges that are joined where that is cheaper.
func (a *appending) source(ctx context.Context, d *pointDisk) (formats.Image, error) {
	switch {
	case !d.plan.Full:
		return gather(d.src, d.plan.Ranges), nil
	case a.tracker == nil, d.in.ChangeID == "", a.in.Audit:
		return d.src, nil
	}
	c, err := a.tracker.Changes(ctx, d.ref, "")
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		d.log.Info("what is allocated is not known, so that all is read", "error", err)
		return d.src, nil
	case c.To != d.in.ChangeID:
		d.log.Warn("what is allocated is told of another state of the disk, so that all is read", "told", c.To, "wanted", d.in.ChangeID)
		return d.src, nil
	}
	return mapped{d.src, c.Ranges.Coalesce(mergeGap)}, nil
}

// progress tells the meter how far a copy is: of a delta, how much of what changed. end is called when the
// copy has ended.
func (d *pointDisk) progress() (told func(formats.Progress), end func()) {
	var ranges []cbt.Range
	if !d.plan.Full {
		ranges = slices.Collect(d.plan.Ranges.All())
	}
	passed := int64(0) // bytes of the ranges that lie before those left
	ended := func() {}
	finishing := sync.OnceFunc(func() { ended = d.m.work() })
	return func(p formats.Progress) {
		if p.Done >= d.in.Size {
			finishing() // it makes the file durable, and moves no byte meanwhile
		}
		if !d.plan.Full {
			for len(ranges) > 0 && ranges[0].End() <= p.Done {
				passed, ranges = passed+ranges[0].Len, ranges[1:]
			}
			at := p.Done
			if p.Done = passed; len(ranges) > 0 {
				p.Done += max(at-ranges[0].Off, 0)
			}
		}
		p.Read = d.read() - d.prior
		d.m.progress(p)
	}, func() { ended() }
}
