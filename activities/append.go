package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const (
	// appendTries is how often one disk is taken up again in the same attempt, while the others go on.
	appendTries = 5
	// deltaWorkers is how many changed ranges of a disk are read at once where nobody says: they are short,
	// so that most of the time is that of asking.
	deltaWorkers = 8
)

// AppendPoint adds a point to the chain in the job's folder, which it begins where there is none: it finds
// what changed of each disk, copies that, reads it back, and commits. Disks come at the same time. Whatever
// ends an attempt, the next one goes on where it was; a point that was committed is not written again.
func (d *Data) AppendPoint(ctx context.Context, in AppendRequest) (Appended, error) {
	d.places.take(in.Job)
	a := d.newAppending(ctx, in)
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	a.limit = limit
	work, stop := a.watch(ctx)
	defer stop()
	defer a.noteRead()
	out, err := a.run(work)
	if err != nil {
		return Appended{}, d.failed(ctx, a.log, AppendActivity, a.explain(ctx, work, err))
	}
	return out, nil
}

// appending is one attempt to add a point.
type appending struct {
	*Site
	in      AppendRequest
	log     *slog.Logger
	stop    <-chan struct{} // the worker stops
	attempt int32
	limit   *throttle
	folder  *folder
	chain   *cbt.Chain
	tracker providers.ChangeTracker // nil: the platform tracks no changes
	disks   []*pointDisk
}

// pointDisk is one disk of it.
type pointDisk struct {
	in    AppendDisk
	ref   providers.DiskRef
	m     *meter
	rest  func() // ends the meter's rest; see [pointDisk.moving]
	log   *slog.Logger
	prior int64 // read by earlier attempts
	src   *tapped

	changes *cbt.Changes // nil: to be copied in full, because of why
	why     string
	said    said
	plan    cbt.Plan
	err     error
}

func (d *Data) newAppending(ctx context.Context, in AppendRequest) *appending {
	a := &appending{Site: d.Site, in: in, log: d.logger(in.Job), stop: activity.GetWorkerStopChannel(ctx), attempt: activity.GetInfo(ctx).Attempt}
	for _, one := range in.Disks {
		p := &pointDisk{in: one, log: a.log.With("disk", one.Label),
			ref: providers.DiskRef{VM: providers.VMID(in.VM.ID), Snapshot: in.Snapshot, Disk: one.Disk, Transport: in.Transport}}
		p.m = newMeter(job.DiskProgress{Disk: string(one.Disk), Phase: job.Transfer, Total: one.Size, Attempt: a.attempt})
		p.rest = p.m.work()
		p.prior = d.readBefore(a.noted(p))
		a.disks = append(a.disks, p)
	}
	return a
}

// noted names where it is noted how much of a disk was read.
func (a *appending) noted(p *pointDisk) TransferRequest {
	return TransferRequest{Job: a.in.Job, File: SafeName(string(p.in.Disk))}
}

// noteRead notes what all attempts have read of each disk.
func (a *appending) noteRead() {
	for _, p := range a.disks {
		t := transfer{Site: a.Site, in: a.noted(p), m: newMeter(job.DiskProgress{Read: p.read()})}
		t.noteRead()
	}
}

// read is what was read of the disk, by all attempts.
func (p *pointDisk) read() int64 {
	if p.src == nil {
		return p.prior
	}
	return p.prior + p.src.read.Load()
}

// moving says that bytes of the disk move until the answer is called: only then may it not stand still.
func (p *pointDisk) moving() func() {
	p.rest()
	return func() { p.rest = p.m.work() }
}

func (a *appending) run(ctx context.Context) (Appended, error) {
	if err := a.open(ctx); err != nil {
		return Appended{}, err
	}
	defer a.close()
	m := a.chain.Manifest()
	if s := m.ByKey(a.in.Job); s != nil {
		a.recall()
		return a.appended(m, s)
	}
	// The connection, and the disks, are lent for as long as the attempt lasts.
	lent, release := context.WithCancel(ctx)
	defer release()
	if err := a.connect(lent); err != nil {
		return Appended{}, err
	}
	if err := a.find(ctx, m); err != nil {
		return Appended{}, err
	}
	if err := a.write(ctx); err != nil {
		return Appended{}, err
	}
	m = a.chain.Manifest()
	return a.appended(m, m.ByKey(a.in.Job))
}

// open takes the chain, or begins it, in the folder that the job has claimed.
func (a *appending) open(ctx context.Context) (err error) {
	if a.folder, err = a.openOwned(a.in.Job, a.in.Target, chainFile); err != nil {
		return err
	}
	a.chain, _, err = a.openChain(ctx, a.in.Target, false)
	if errors.Is(err, providers.NotFound) {
		var o cbt.Options
		if a.in.Target.Compress {
			o.Compression = "zlib"
		}
		a.chain, _, err = a.foundChain(ctx, a.in.Target, a.in.VM, o)
	}
	if err == nil {
		err = a.folder.chainOf(a.chain.Manifest().VM, a.in.VM)
	}
	if err != nil {
		a.close()
	}
	return err
}

func (a *appending) close() {
	for _, p := range a.disks {
		if p.src != nil {
			_ = p.src.Close() // it was only read
		}
	}
	if a.chain != nil {
		if err := a.chain.Close(); err != nil {
			a.log.Warn("the chain could not be closed", "error", err)
		}
	}
	_ = a.folder.Close()
}

// connect opens all disks as of the snapshot.
func (a *appending) connect(ctx context.Context) error {
	p, src, err := open[providers.DiskSource](ctx, a.Site, a.in.Connection)
	if err != nil {
		return err
	}
	a.tracker, _ = p.(providers.ChangeTracker)
	for _, d := range a.disks {
		img, err := src.OpenDisk(ctx, d.ref)
		if err != nil {
			return d.named(err)
		}
		d.src = &tapped{Image: img, ctx: ctx, stop: a.stop, limit: a.limit, m: d.m}
		if n := img.Size(); n != d.in.Size {
			return final(refuse(providers.Precondition, "%s has %d bytes and had %d in its snapshot", d.in.Label, n, d.in.Size))
		}
	}
	return nil
}

// named is an error of a disk that says which.
func (p *pointDisk) named(err error) error {
	var decided *temporal.ApplicationError
	if err == nil || errors.As(err, &decided) || errors.Is(err, formats.ErrStopped) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%s: %w", p.in.Label, err)
}

// point is the point as the chain is told of it.
func (a *appending) point() cbt.NewPoint {
	p := cbt.NewPoint{Key: a.in.Job, Time: a.in.Time}
	for _, d := range a.disks {
		p.Disks = append(p.Disks, cbt.NewDisk{
			Disk: string(d.in.Disk), Size: d.in.Size, ChangeID: d.in.ChangeID, Changes: d.changes, Why: d.why,
		})
	}
	return p
}

// write copies the disks and commits. Where what a delta builds upon turns out to be damaged, its disk is
// copied in full instead, and the others go on where they were.
func (a *appending) write(ctx context.Context) error {
	for {
		again, err := a.tryWrite(ctx)
		if !again {
			return err
		}
	}
}

func (a *appending) tryWrite(ctx context.Context) (again bool, err error) {
	p, err := a.chain.Begin(ctx, a.point())
	switch {
	case err != nil && ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err != nil:
		return false, refusedPoint(chainError(err))
	}
	defer p.Close()
	for i, plan := range p.Plans() {
		a.disks[i].plan = plan
	}
	err = a.each(ctx, func(ctx context.Context, d *pointDisk) error { return a.disk(ctx, p, d) })
	for _, d := range a.disks {
		if why := d.damaged(p.Number()); why != "" && ctx.Err() == nil {
			d.log.Error("a delta would build upon damage, so that the disk is copied in full", "error", d.err)
			d.changes, d.why, d.said.Note, again = nil, why, "", true
		}
	}
	if again || err != nil {
		return again, err
	}
	for _, d := range a.disks {
		if err := d.src.confirm(ctx); err != nil {
			return false, d.named(err)
		}
	}
	if err := errors.Join(a.stillOwned(a.folder, a.in.Job, chainFile), a.say()); err != nil {
		return false, err
	}
	return false, chainError(p.Commit(ctx))
}

// refusedPoint is why a point was not begun. What neither the file system nor another process is to blame
// for does not get better by trying again: a chain that has all the points it can have.
func refusedPoint(err error) error {
	var errno syscall.Errno
	if reasonOf(err) != providers.Unavailable || errors.As(err, &errno) {
		return err
	}
	return final(refuse(providers.Unsupported, "%w", err))
}

// damaged says why the disk has to be copied in full instead of as a delta, after that has failed; "": that
// is not why.
func (p *pointDisk) damaged(point int64) string {
	var link *cbt.LinkError
	switch {
	case p.plan.Full || !errors.Is(p.err, formats.ErrCorrupt):
		return ""
	case errors.As(p.err, &link) && link.Point == point:
		return "" // what was just written is not what it should be: another copy would fare no better
	}
	return "a delta would build upon damage: " + clip(p.err.Error(), 400)
}

// each does something for all disks at once. The first that fails for good ends the others, which have
// their journals.
func (a *appending) each(ctx context.Context, do func(context.Context, *pointDisk) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, d := range a.disks {
		wg.Go(func() {
			if d.err = d.named(a.patiently(ctx, d, do)); d.err != nil {
				cancel(d.err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// patiently does something for a disk as one of those that are at work on the host, and tries again for a
// while what may do better.
func (a *appending) patiently(ctx context.Context, d *pointDisk, do func(context.Context, *pointDisk) error) error {
	free, err := a.slot(ctx, d.m)
	if err != nil {
		return err
	}
	defer free()
	for try, pause := 1, firstAnew; ; try, pause = try+1, min(2*pause, lastAnew) {
		err := do(ctx, d)
		switch reason := reasonOf(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, formats.ErrStopped), try == appendTries, reason != providers.Unavailable && reason != providers.Throttled:
			return err
		}
		d.log.Warn("the disk is taken up again, the others go on", "error", err, "read", d.src.read.Load())
		waited := d.m.wait("is taken up again: " + job.Shorten(err.Error(), 200))
		err = hold(ctx, a.stop, max(pause, min(providers.RetryAfter(err), time.Minute)), nil)
		waited()
		if err != nil {
			return err
		}
		if a.stopping() {
			return formats.ErrStopped
		}
	}
}

func (a *appending) stopping() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

// watch watches over all disks.
func (a *appending) watch(ctx context.Context) (context.Context, func()) {
	w := watching{stall: a.Stall, within: a.StopWithin, stops: "the worker stops"}
	for _, d := range a.disks {
		w.meters = append(w.meters, d.m)
	}
	return a.watchAll(ctx, w)
}

// explain finds out what an error of an attempt means.
func (a *appending) explain(ctx, work context.Context, err error) error {
	var decided *temporal.ApplicationError
	switch {
	case cancelled(ctx):
		return context.Canceled
	case errors.As(err, &decided):
		return err
	case errors.Is(err, formats.ErrStopped):
		return a.Paces.soon(refuse(providers.Unavailable, "the worker stops; what was copied of the point is safe"))
	case work.Err() != nil && ctx.Err() == nil:
		err = context.Cause(work)
	case a.folder != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)):
		return refuse(providers.Exhausted, "no space left in %s on host %s for the next point of its chain; the job goes on when there is room (%w)",
			a.folder.path, a.Name, err)
	}
	for _, d := range a.disks {
		if p := d.m.now(); p.Done > 0 && reasonOf(err) == providers.Unavailable {
			return a.Paces.soon(err) // it came further: no reason to hesitate
		}
	}
	return err
}

// appended is what became of the job.
func (a *appending) appended(m cbt.Manifest, s *cbt.State) (Appended, error) {
	out := Appended{Dir: a.folder.path, Point: job.PointResult{Chain: m.ID, Number: s.Number, Parent: s.Parent}}
	var names []string
	for _, d := range a.disks {
		if d.said.Alert != "" {
			out.Alerts = append(out.Alerts, d.said.Alert)
		}
		for _, is := range s.Disks {
			if is.Disk != string(d.in.Disk) {
				continue
			}
			r := job.DiskResult{
				Disk: is.Disk, File: is.File, Format: chainFormat, Size: is.Size, Stored: is.Stored, Digest: is.Digest,
				Read: d.read(), Retries: a.attempt - 1, Full: is.Full, Reason: is.Reason, By: string(is.By), Changed: is.Changed, Backing: is.Backing,
			}
			if r.Reason == "" {
				r.Reason = d.said.Note
			}
			out.Disks = append(out.Disks, r)
			out.Point.Changed += is.Changed
			names = append(names, is.File, is.Index)
		}
	}
	if len(out.Disks) != len(a.disks) {
		return Appended{}, final(refuse(providers.Invalid, "point %d of the chain in %s is of this job, and has other disks", s.Number, a.folder.path))
	}
	for _, n := range append(names, chainFile) {
		st, err := a.folder.root.Lstat(n)
		if err != nil {
			return Appended{}, pathError(err)
		}
		out.Files, out.Total = append(out.Files, filepath.Join(a.folder.path, n)), out.Total+st.Size()
	}
	a.log.Info("point is part of the chain", "dir", a.folder.path, "point", s.Number, "changed", out.Point.Changed, "bytes", out.Total)
	return out, nil
}
