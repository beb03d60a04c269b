package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const (
	// leaseTries is how often one disk is begun anew under the same lease, while the others go on.
	leaseTries = 5
	// firstAnew and lastAnew are how long is waited before that.
	firstAnew = time.Second
	lastAnew  = 15 * time.Second
)

// LeaseDisks copies disks of a VM under one lease, each into its hidden file, all at the same time. A
// disk comes front to back and cannot be taken up in its middle: whatever ends an attempt costs the
// disks that are not whole yet, and those only. A connection that is cut costs its own disk alone,
// which begins anew under the same lease.
func (d *Data) LeaseDisks(ctx context.Context, in LeaseRequest) (Leased, error) {
	d.places.take(in.Job)
	r := d.newLeasing(ctx, in)
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	for _, c := range r.disks {
		c.limit = limit
		defer c.noteRead()
	}
	work, stop := r.watch(ctx)
	defer stop()
	if err := r.run(work); err != nil {
		return Leased{}, d.failed(ctx, r.log, LeaseActivity, r.explain(ctx, work, err))
	}
	var out Leased
	for _, c := range r.disks {
		out.Disks = append(out.Disks, c.out)
	}
	return out, nil
}

// leasing is one attempt to copy disks under a lease.
type leasing struct {
	*Site
	in    LeaseRequest
	log   *slog.Logger
	stop  <-chan struct{} // the worker stops
	disks []*leasedCopy
	fresh bool // a disk has become whole in this attempt
}

// leasedCopy is one disk of it.
type leasedCopy struct {
	*transfer
	log   *slog.Logger
	out   Transferred
	whole bool
	tries int32
	err   error
}

func (d *Data) newLeasing(ctx context.Context, in LeaseRequest) *leasing {
	attempt := activity.GetInfo(ctx).Attempt
	r := &leasing{Site: d.Site, in: in, log: d.logger(in.Job), stop: activity.GetWorkerStopChannel(ctx)}
	for _, one := range in.Disks {
		t := &transfer{Site: d.Site, in: TransferRequest{
			Job: in.Job, Connection: in.Connection, Label: one.Label, Size: one.Size, Need: one.Need, Target: in.Target, File: one.File,
			Ref:     providers.DiskRef{VM: in.Ref.VM, Snapshot: in.Ref.Snapshot, Disk: one.Disk, Transport: in.Transport},
			Workers: in.Workers, Limits: in.Limits,
		}}
		t.m = newMeter(job.DiskProgress{Disk: string(one.Disk), File: one.File, Phase: job.Transfer, Total: one.Size, Attempt: attempt})
		t.prior = d.readBefore(t.in)
		r.disks = append(r.disks, &leasedCopy{transfer: t, tries: attempt, log: r.log.With("disk", one.Label, "file", one.File)})
	}
	return r
}

func (r *leasing) run(ctx context.Context) error {
	var left []*leasedCopy
	for _, c := range r.disks {
		if err := c.look(); err != nil {
			return err
		}
		if !c.whole {
			left = append(left, c)
		}
	}
	if len(left) == 0 {
		return nil
	}
	// The connection is lent for as long as the lease has to be ended, also when the attempt was not.
	held, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	l, err := r.lease(ctx, held, release, left)
	if err != nil {
		return err
	}
	defer func() {
		if err := l.Close(); err != nil {
			r.log.Warn("the lease could not be ended; it ends by itself", "error", err)
		}
	}()
	if err := r.copyAll(ctx, l, left); err != nil {
		return err
	}
	err = l.Commit(ctx)
	if errors.Is(err, providers.Corrupt) {
		return err
	}
	if err != nil { // every disk is whole and was checked when it came
		r.log.Warn("the lease did not end as it should", "error", err)
	}
	return nil
}

// lease gets the lease.
func (r *leasing) lease(ctx, held context.Context, release func(), left []*leasedCopy) (providers.Lease, error) {
	for _, c := range left {
		defer c.m.wait("the lease on the VM's disks")()
	}
	unlink := context.AfterFunc(ctx, release)
	_, src, err := open[providers.DiskLeaser](held, r.Site, r.in.Connection)
	unlink()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	l, err := src.Lease(ctx, r.in.Ref)
	if err != nil {
		return nil, err
	}
	r.log.Info("copying under a lease", "disks", len(left), "of", len(r.disks), "transport", r.in.Transport, "why", r.in.Why,
		"attempt", left[0].tries, "took", time.Since(began).Round(time.Millisecond).String())
	return l, nil
}

// copyAll copies the disks that are left. One that fails for good stops the others; one that may do
// better under another lease lets them come to their ends.
func (r *leasing) copyAll(ctx context.Context, l providers.Lease, left []*leasedCopy) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, c := range left {
		wg.Go(func() {
			if c.err = r.disk(ctx, l, c); c.err != nil && !again(r.Paces.fail(ctx, c.err)) {
				cancel(c.err)
			}
		})
	}
	wg.Wait()
	var first error
	for _, c := range left {
		r.fresh = r.fresh || c.whole
		if c.err == nil {
			continue
		}
		if first == nil || again(r.Paces.fail(ctx, first)) && !again(r.Paces.fail(ctx, c.err)) && !errors.Is(c.err, context.Canceled) {
			first = c.err
		}
	}
	if ctx.Err() != nil && first != nil {
		return context.Cause(ctx)
	}
	if lost := l.Err(); lost != nil && first != nil {
		return lost
	}
	return first
}

// disk copies one disk, from its beginning each time.
func (r *leasing) disk(ctx context.Context, l providers.Lease, c *leasedCopy) error {
	free, err := r.slot(ctx, c.m)
	if err != nil {
		return err
	}
	defer free()
	for try, pause := 1, firstAnew; ; try, pause = try+1, min(2*pause, lastAnew) {
		err := c.copy(ctx, l, r.stop)
		switch reason := reasonOf(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, formats.ErrStopped), l.Err() != nil:
			return err
		case try == leaseTries, reason != providers.Unavailable && reason != providers.Throttled:
			return &sentence{reason, fmt.Errorf("%s (%s): %w", c.in.Label, c.in.File, err)}
		}
		c.log.Warn("the disk begins anew, the others go on", "error", err, "read", c.m.now().Read)
		c.anew()
		waited := c.m.wait("begins anew: " + job.Shorten(err.Error(), 200))
		err = hold(ctx, r.stop, max(pause, min(providers.RetryAfter(err), time.Minute)), nil)
		waited()
		if err != nil {
			return err
		}
		select {
		case <-r.stop:
			return formats.ErrStopped
		default:
		}
	}
}

// anew forgets what the last try did.
func (c *leasedCopy) anew() {
	c.prior += c.m.now().Read
	c.tries++
	c.m.anew(c.tries)
}

// look finds out whether an earlier attempt left the disk whole.
func (c *leasedCopy) look() error {
	out, ok, err := c.inArchive()
	if err != nil {
		return err
	}
	if ok {
		c.out, c.whole = out, true
		c.m.from(c.in.Size)
		return nil
	}
	if c.part, err = c.openPart(c.in); err != nil {
		return err
	}
	defer c.part.Close()
	if c.part.whole {
		return c.done(c.part.sealed)
	}
	return nil
}

// done notes that the disk is whole.
func (c *leasedCopy) done(sum formats.Digest) error {
	st, err := c.part.file.Stat()
	if err != nil {
		return err
	}
	c.out = Transferred{Digest: sum.String(), Read: c.prior + c.m.now().Read, Stored: st.Size(), Inode: inode(c.part.file), Attempts: c.tries}
	c.whole = true
	c.m.from(c.in.Size)
	return nil
}

// copy copies the disk once.
func (c *leasedCopy) copy(ctx context.Context, l providers.Lease, stop <-chan struct{}) (err error) {
	format, err := c.deps.Format(c.in.Target.Format)
	if err != nil {
		return err
	}
	if c.part, err = c.openPart(c.in); err != nil {
		return err
	}
	defer c.part.Close()
	if err := c.part.restart(c.in.Size); err != nil {
		return err
	}
	began := time.Now()
	tap := &wire{ctx: ctx, stop: stop, limit: c.limit, m: c.m}
	keep := c.keeps(l)
	if keep {
		tap.file = c.part.file
	}
	src, err := l.Open(ctx, c.in.Ref.Disk, tap)
	if err != nil {
		return err
	}
	defer src.Close()
	if n := src.Size(); n != c.in.Size {
		return final(refuse(providers.Precondition, "the disk has %d bytes and had %d in its snapshot", n, c.in.Size))
	}
	c.log.Info("copying", "attempt", c.tries, "size", c.in.Size, "transport", c.in.Ref.Transport, "kept as it comes", keep)
	workers := c.in.Workers
	if workers == 0 {
		workers = c.Workers
	}
	sum, err := c.part.streamTo(ctx, format, c.in, src, keep, formats.CopyOptions{Workers: workers, Buffers: c.streams, Progress: func(p formats.Progress) {
		p.Read = c.m.now().Read // what came, rather than what the copy took of it
		c.m.progress(p)
	}}, c.m.work)
	if err != nil {
		return err
	}
	p := c.m.now()
	if err := c.done(sum); err != nil {
		return err
	}
	c.log.Info("copied", "attempt", c.tries, "took", time.Since(began).Round(time.Millisecond).String(),
		"read", p.Read, "written", p.Written, "stored", c.out.Stored, "digest", c.out.Digest)
	return nil
}

// watch watches over all disks. Connections have a clock of their own, so that a disk may stand still; when
// the worker stops, the attempt gets a little time to end its lease.
func (r *leasing) watch(ctx context.Context) (context.Context, func()) {
	w := watching{within: r.StopWithin, stops: "the worker stops"}
	for _, c := range r.disks {
		w.meters = append(w.meters, c.m)
	}
	return r.watchAll(ctx, w)
}

// explain says what an error of the attempt means, and what it costs.
func (r *leasing) explain(ctx, work context.Context, err error) error {
	whole := 0
	var at *leasedCopy
	for _, c := range r.disks {
		if c.whole {
			whole++
		} else if at == nil || errors.Is(c.err, syscall.ENOSPC) || errors.Is(c.err, syscall.EDQUOT) {
			at = c
		}
	}
	var decided *temporal.ApplicationError
	switch {
	case cancelled(ctx):
		return context.Canceled
	case errors.As(err, &decided):
		return err
	case errors.Is(err, formats.ErrStopped):
		err = refuse(providers.Unavailable, "the worker stops")
	case work.Err() != nil && ctx.Err() == nil:
		err = context.Cause(work)
	case at != nil && at.part != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)):
		err = at.part.noRoom(at.in, r.Name, 0, err)
	}
	reason := reasonOf(err)
	if !again(r.Paces.fail(ctx, err)) {
		return err
	}
	err = &sentence{reason, fmt.Errorf("%w; %d of %d disks are whole, what is not begins anew", err, whole, len(r.disks))}
	if r.fresh && reason == providers.Unavailable {
		return r.Paces.soon(err)
	}
	return err
}

// refused is an error of OpenDisk. Where the job can go on with another transport, what that one would
// not suffer from is final, and says so.
func (t *transfer) refused(err error) error {
	if t.in.Else == "" {
		return err
	}
	switch reason := reasonOf(err); reason {
	case providers.Precondition, providers.Unsupported, providers.Denied, providers.NotFound:
		return temporal.NewApplicationErrorWithOptions(clip(err.Error(), maxMessage), string(reason), temporal.ApplicationErrorOptions{
			NonRetryable: true, Category: temporal.ApplicationErrorCategoryBenign,
			Details: []any{Refused{Transport: t.in.Ref.Transport, Why: clip(err.Error(), maxMessage)}},
		})
	}
	return err
}
