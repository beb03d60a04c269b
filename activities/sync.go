package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// NextSnapshot takes the snapshot of a round, after that of the round before is gone: so a VM has one of
// them at a time. What the disks' changes are counted from was recorded before.
func (c *Control) NextSnapshot(ctx context.Context, in NextSnapshotRequest) (providers.Snapshot, error) {
	c.places.take(in.Job)
	return step(ctx, c.Site, in.Job, NextSnapshotActivity, func(ctx context.Context, log *slog.Logger) (providers.Snapshot, error) {
		if in.Last != "" {
			if err := c.dropSnapshot(ctx, DropRequest{Job: in.Job, Connection: in.Connection, VM: in.VM, Key: in.Last}, log); err != nil {
				return providers.Snapshot{}, err
			}
		}
		if err := c.changeRecord(in.Job, func(r *record) { r.SnapshotKey = in.Key }); err != nil {
			return providers.Snapshot{}, err
		}
		return c.takeSnapshot(ctx, SnapshotRequest{Job: in.Job, Connection: in.Connection, VM: in.VM, Key: in.Key, Quiesce: in.Quiesce},
			"taken to copy the VM while it runs; removed with the next round of the copy", log)
	})
}

// SyncDisk brings the hidden file of a disk from the round before to this one, in place: it copies what
// the platform says has changed, or what differs by comparison where it cannot say; the first round, and
// one whose predecessor is not there, copies everything. An attempt that was cut off is gone on with from
// its journal.
func (d *Data) SyncDisk(ctx context.Context, in SyncRequest) (out SyncedDisk, err error) {
	d.places.take(in.Job)
	log := d.logger(in.Job).With("disk", in.Label, "file", in.File, "round", in.Round)
	attempt := activity.GetInfo(ctx).Attempt
	s := &syncing{in: in, log: log, attempt: attempt, transfer: &transfer{Site: d.Site, in: in.transfer(), m: newMeter(job.DiskProgress{
		Disk: string(in.Ref.Disk), File: in.File, Phase: job.Transfer, Total: in.Size, Attempt: attempt,
	})}}
	var leave func()
	s.limit, leave = d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, s.m)
	defer stop()

	began := time.Now()
	out, err = s.run(work)
	p := s.m.now()
	if err == nil {
		out.Attempts = attempt
		log.Info("copied", "attempt", attempt, "took", time.Since(began).Round(time.Millisecond).String(), "by", out.By, "why", out.Why,
			"changed", out.Changed, "read", out.Read, "written", p.Written, "digest", out.Digest)
		return out, nil
	}
	return out, d.failed(ctx, log.With("done", p.Done, "read", p.Read), SyncActivity, s.explain(ctx, work, err))
}

// syncing is one attempt to bring a disk to a round.
type syncing struct {
	*transfer
	in      SyncRequest
	log     *slog.Logger
	attempt int32
	looked  func() // ends the time in which no byte is expected to move
	asked   time.Duration
	began   time.Time // copying
}

func (s *syncing) run(ctx context.Context) (SyncedDisk, error) {
	free, err := s.slot(ctx, s.m)
	if err != nil {
		return SyncedDisk{}, err
	}
	defer free()
	s.looked = sync.OnceFunc(s.m.work())
	defer s.looked()
	format, err := s.deps.Format(s.in.Target.Format)
	if err != nil {
		return SyncedDisk{}, err
	}
	if format.Update == nil {
		return SyncedDisk{}, refuse(providers.Unsupported, "disks cannot be kept in sync in format %s, which is not written in place", format.Name)
	}
	f, err := s.openFolder(s.in.Target, false)
	if err != nil {
		return SyncedDisk{}, err
	}
	defer f.Close()
	if err := (&part{folder: f, job: s.in.Job, host: s.Host, name: s.in.File}).stillMine(); err != nil {
		return SyncedDisk{}, err
	}
	st, err := f.readRound(s.in.File)
	if err != nil {
		return SyncedDisk{}, err
	}
	here := f.holds(s.in.File, st)
	switch {
	case st.Round == s.in.Round && st.Whole && here:
		return *st.Result, nil // nobody heard of it
	case st.Round == s.in.Round && !st.Whole && st.By == SyncedInFull:
		return s.full(ctx, f, format, st.Why)
	case s.in.Round == 1:
		return s.full(ctx, f, format, "")
	case st.Round == 0 || !here:
		return s.full(ctx, f, format, "what the rounds before had copied is not on this host")
	case st.Size != s.in.Size:
		return s.full(ctx, f, format, fmt.Sprintf("the disk was resized from %d to %d bytes", st.Size, s.in.Size))
	case st.Round == s.in.Round, st.Round == s.in.Round-1 && st.Whole:
		return s.delta(ctx, f, format, st)
	}
	return s.full(ctx, f, format, fmt.Sprintf("its file holds round %d, and round %d was the one before", st.Round, s.in.Round-1))
}

// full copies the whole disk, as far as it is allocated.
func (s *syncing) full(ctx context.Context, f *folder, format formats.Format, why string) (SyncedDisk, error) {
	out := SyncedDisk{By: SyncedInFull, Why: why, Changed: s.in.Size}
	if err := f.writeRound(s.in.File, s.state(out, 0)); err != nil {
		return out, err
	}
	var err error
	if s.part, err = s.openPart(s.transfer.in); err != nil {
		return out, err
	}
	defer s.part.Close()
	sum := s.part.sealed
	s.began = time.Now()
	if !s.part.whole {
		src, release, err := s.source(ctx)
		if err != nil {
			return out, err
		}
		defer func() { _ = release() }() // it was only read
		if c, ok := src.(providers.Confirmer); ok {
			s.part.confirm = c.Confirm
		}
		img, err := s.allocated(ctx, src, &out)
		if err != nil {
			return out, err
		}
		s.log.Info("copying in full", "attempt", s.attempt, "size", s.in.Size, "allocated", out.Changed, "why", why,
			"from", s.part.from.Off, "transport", s.in.Ref.Transport)
		s.m.from(s.part.from.Off)
		s.looked()
		if sum, err = s.copy(ctx, format, img); err != nil {
			return out, err
		}
	}
	return s.whole(f, s.part.file, sum, out)
}

// allocated is a disk without what its platform knows to be zeros.
func (s *syncing) allocated(ctx context.Context, src formats.Image, out *SyncedDisk) (formats.Image, error) {
	defer s.time()()
	if s.in.Point == "" {
		return src, nil
	}
	c, err := s.changes(ctx, "")
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		s.log.Info("what is allocated is not known, so that all is read", "error", err)
		return src, nil
	}
	ranges := c.Ranges.Coalesce(mergeGap)
	out.Changed = ranges.Bytes()
	return mapped{src, ranges}, nil
}

// time measures how long it takes to find out what has changed.
func (s *syncing) time() func() {
	began := time.Now()
	return func() { s.asked, s.began = time.Since(began), time.Now() }
}

// state is what is known of the file while the round is under way.
func (s *syncing) state(d SyncedDisk, inode uint64) roundState {
	return roundState{Round: s.in.Round, By: d.By, Why: d.Why, Ref: s.in.Ref, Size: s.in.Size, Inode: inode}
}

// whole notes that the file holds the round.
func (s *syncing) whole(f *folder, file *os.File, sum formats.Digest, out SyncedDisk) (SyncedDisk, error) {
	st, err := file.Stat()
	if err != nil {
		return out, err
	}
	if !f.same(partName(s.in.File), file) {
		return out, refuse(providers.NotFound, "%s was removed or replaced while the disk was being written", filepath.Join(f.path, partName(s.in.File)))
	}
	p := s.m.now()
	out.Transferred = Transferred{
		Digest: sum.String(), Read: p.Read, Stored: st.Size(), Inode: inodeOf(st), Attempts: s.attempt, ResumedFrom: p.ResumedFrom,
	}
	out.Asked, out.Copied = s.asked, time.Since(s.began)
	done := s.state(out, out.Inode)
	done.Whole, done.Result = true, &out
	return out, errors.Join(f.writeRound(s.in.File, done), f.remove(freshName(s.in.File)))
}
