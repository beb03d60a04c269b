package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
)

// delta writes what changed since the round before into the file that holds that.
func (s *syncing) delta(ctx context.Context, f *folder, format formats.Format, st roundState) (SyncedDisk, error) {
	out := SyncedDisk{By: SyncedTracked}
	p, err := s.openRound(f)
	if err != nil {
		return out, err
	}
	s.part = p
	defer p.Close()
	src, release, err := s.source(ctx)
	if err != nil {
		return out, err
	}
	defer func() { _ = release() }() // it was only read
	if c, ok := src.(providers.Confirmer); ok {
		p.confirm = c.Confirm
	}
	var changes cbt.Set
	cutOff := st.Round == s.in.Round
	if cutOff && st.By == SyncedComparing {
		out.By, out.Why = st.By, st.Why // what it wrote, the tracker need not know of
		s.began = time.Now()
	} else if changes, err = s.ask(ctx, &out); err != nil {
		return out, err
	}
	if out.By == SyncedTracked {
		if p.digests, err = formats.OpenDigests(p.digestsFile); err != nil || p.digests.Size() != s.in.Size {
			out.By, out.Why = SyncedComparing, "the digests of its blocks were damaged"
		}
	}
	if err := f.writeRound(s.in.File, s.state(out, inode(p.file))); err != nil {
		return out, err
	}
	var sum formats.Digest
	if out.By == SyncedTracked {
		out.Changed = changes.Bytes()
		sum, err = s.tracked(ctx, format, src, changes)
	} else {
		sum, err = s.compared(ctx, format, src, cutOff, &out)
	}
	if err != nil {
		return out, err
	}
	return s.whole(f, p.file, sum, out)
}

// openRound opens the hidden file of a disk that is there, with its journal and its digests.
func (s *syncing) openRound(f *folder) (_ *part, err error) {
	own, err := s.openFolder(s.in.Target, false)
	if err != nil {
		return nil, err
	}
	p := s.newPart(own, s.in.Job, s.in.File)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.file, err = p.open(partName(p.name), os.O_RDWR); err != nil {
		return nil, err
	}
	if err := p.lock(p.file, partName(p.name)); err != nil {
		return nil, err
	}
	if p.digestsFile, err = p.open(digestsName(p.name), os.O_RDWR|os.O_CREATE); err != nil {
		return nil, err
	}
	p.journalFile, err = p.open(journalName(p.name), os.O_RDWR|os.O_CREATE)
	return p, err
}

// ask finds out what changed since the round before. Where nobody can tell, it says why the disk is to be
// compared.
func (s *syncing) ask(ctx context.Context, out *SyncedDisk) (cbt.Set, error) {
	defer s.time()()
	compare := func(why string) (cbt.Set, error) {
		out.By, out.Why = SyncedComparing, why
		return cbt.Set{}, nil
	}
	switch {
	case s.in.Point == "":
		return compare("its changes are not tracked")
	case s.in.Since == "":
		return compare("its changes were not tracked yet in the round before")
	}
	c, err := s.changes(ctx, s.in.Since)
	switch {
	case errors.Is(err, providers.TrackingLost):
		s.log.Warn("changes are lost, so that the disk is compared", "error", err)
		return compare("its changes cannot be told: " + clip(sentenceOf(err), 300))
	case errors.Is(err, providers.Unsupported):
		return compare("the platform does not track its changes")
	}
	return c.Ranges, err
}

// changes asks the tracker what changed up to the snapshot of the round.
func (s *syncing) changes(ctx context.Context, since cbt.Point) (cbt.Changes, error) {
	_, tracker, err := open[providers.ChangeTracker](ctx, s.Site, s.in.Connection)
	if err != nil {
		return cbt.Changes{}, err
	}
	c, err := tracker.Changes(ctx, s.in.Ref, since)
	if err == nil && c.To != s.in.Point {
		err = refuse(providers.TrackingLost, "the platform tells of another state of the disk, %q, than that of the snapshot, %q", c.To, s.in.Point)
	}
	return c, err
}

// tracked copies ranges of the disk, and brings the digests up to date. Blocks that the ranges touch in
// part are read back from the target.
func (s *syncing) tracked(ctx context.Context, format formats.Format, src formats.Image, ranges cbt.Set) (formats.Digest, error) {
	id, err := json.Marshal(struct {
		Round int
		Ref   providers.DiskRef
		Since cbt.Point
		Size  int64
		Inode uint64
	}{s.in.Round, s.in.Ref, s.in.Since, s.in.Size, inode(s.part.file)})
	if err != nil {
		return formats.Digest{}, err
	}
	h := sha256.Sum256(id)
	if s.part.journal, s.part.from, err = formats.OpenJournal(s.part.journalFile, hex.EncodeToString(h[:])); err != nil {
		return formats.Digest{}, err
	}
	s.log.Info("copying what changed", "attempt", s.attempt, "changed", ranges.Bytes(), "ranges", ranges.Len(), "from", s.part.from.Off)
	s.m.from(s.part.from.Off)
	s.looked()
	err = s.overwrite(ctx, format, src, ranges, formats.CopyOptions{
		From: s.part.from, Digests: s.part.digests, Durable: s.part.durable, Progress: s.m.progress,
	})
	if err != nil {
		return formats.Digest{}, err
	}
	defer s.m.work()()
	err = s.reread(ctx, format, func(ctx context.Context, img formats.Image) error {
		return redigest(ctx, img, s.part.digests, partly(ranges, s.in.Size))
	})
	if err != nil {
		return formats.Digest{}, err
	}
	return s.part.digests.Seal()
}

// overwrite copies ranges of the disk over what the file holds, and makes that durable.
func (s *syncing) overwrite(ctx context.Context, format formats.Format, src formats.Image, ranges cbt.Set, opt formats.CopyOptions) error {
	if ranges.Len() == 0 {
		return s.part.confirm(ctx)
	}
	st, err := s.part.file.Stat()
	if err != nil {
		return err
	}
	target := local.NewTarget(s.part.file, false)
	defer target.Wait()
	w, err := format.Update(ctx, target, st.Size())
	if err != nil {
		return err
	}
	defer w.Close()
	ranges = ranges.Align(w.BlockSize(), s.in.Size)
	stop := activity.GetWorkerStopChannel(ctx)
	opt.Workers, opt.Buffers, opt.Stop = s.workers(deltaWorkers), s.buffers, stop
	tap := &tapped{Image: src, ctx: ctx, stop: stop, limit: s.limit, m: s.m}
	told, read := opt.Progress, s.m.now().Read // gaps that are read along count, too
	opt.Progress = func(p formats.Progress) {
		p.Read = read + tap.read.Load()
		told(p)
	}
	if _, err := formats.Copy(ctx, w, cbt.View(gather(tap, ranges), ranges), opt); err != nil {
		return err
	}
	defer s.m.work()()
	if err := s.part.confirm(ctx); err != nil {
		return err
	}
	if err := w.Commit(ctx); err != nil {
		return err
	}
	if err := s.part.file.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// workers is how many ranges are read at once.
func (s *syncing) workers(usual int) int {
	switch {
	case s.in.Workers > 0:
		return s.in.Workers
	case s.Workers > 0:
		return s.Workers
	}
	return usual
}

// reread does something with the disk as the file holds it.
func (s *syncing) reread(ctx context.Context, format formats.Format, do func(context.Context, formats.Image) error) error {
	st, err := s.part.file.Stat()
	if err != nil {
		return err
	}
	img, err := format.Open(ctx, s.part.file, st.Size(), formats.OpenOptions{})
	if err != nil {
		return err
	}
	defer img.Close()
	return do(ctx, img)
}

// partly is the blocks of digests that ranges of a disk touch and do not cover.
func partly(ranges cbt.Set, size int64) []formats.Extent {
	var out []formats.Extent
	last := int64(-1)
	for r := range ranges.All() {
		for _, at := range []int64{r.Off, r.End() - 1} {
			i := at / formats.BlockSize
			off := i * formats.BlockSize
			n := min(formats.BlockSize, size-off)
			if i > last && n > 0 && !ranges.Covers(off, n) {
				out = append(out, formats.Extent{Off: off, Len: n, Kind: formats.Data})
				last = i
			}
		}
	}
	return out
}

// redigest is [formats.Redigest] on all cores.
func redigest(ctx context.Context, img formats.Image, d *formats.Digests, blocks []formats.Extent) error {
	n := min(runtime.GOMAXPROCS(0), len(blocks))
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = formats.Redigest(ctx, img, d, blocks[i*len(blocks)/n:(i+1)*len(blocks)/n]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// compared reads the whole disk, and copies the blocks whose digests are not those of the round before.
// Where an attempt was cut off that had begun to write, the digests of what the file holds now are taken
// first: what it held before no longer says anything.
func (s *syncing) compared(ctx context.Context, format formats.Format, src formats.Image, cutOff bool, out *SyncedDisk) (formats.Digest, error) {
	p := s.part
	var err error
	if p.digests, err = formats.OpenDigests(p.digestsFile); err != nil || p.digests.Size() != s.in.Size {
		cutOff = true
	}
	opt := formats.VerifyOptions{Workers: s.workers(0), Pace: func(ctx context.Context, _ int64) error {
		s.m.touch()
		return s.limit.wait(ctx, activity.GetWorkerStopChannel(ctx), s.m, 0)
	}}
	s.looked()
	if cutOff {
		s.log.Info("taking the digests of the target", "attempt", s.attempt)
		if p.digests, err = formats.CreateDigests(p.digestsFile, s.in.Size); err != nil {
			return formats.Digest{}, err
		}
		err = s.reread(ctx, format, func(ctx context.Context, img formats.Image) error {
			_, err := formats.DigestOf(ctx, img, p.digests, opt)
			return errors.Join(err, p.digests.Sync())
		})
		if err != nil {
			return formats.Digest{}, err
		}
	}
	file, err := p.open(freshName(p.name), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return formats.Digest{}, err
	}
	defer file.Close()
	fresh, err := formats.CreateDigests(file, s.in.Size)
	if err != nil {
		return formats.Digest{}, err
	}
	s.log.Info("comparing", "attempt", s.attempt, "size", s.in.Size, "why", out.Why)
	opt.Progress = s.m.progress
	stop := activity.GetWorkerStopChannel(ctx)
	opt.Pace = func(ctx context.Context, n int64) error {
		select {
		case <-stop:
			return formats.ErrStopped
		default:
			return s.limit.wait(ctx, stop, s.m, n)
		}
	}
	changed, _, err := cbt.Compare(ctx, src, p.digests, fresh, opt)
	if err != nil {
		return formats.Digest{}, err
	}
	out.Changed = changed.Bytes()
	err = s.overwrite(ctx, format, src, changed, formats.CopyOptions{Progress: func(p formats.Progress) {
		p.Done = s.in.Size
		s.m.progress(p)
	}})
	if err != nil {
		return formats.Digest{}, err
	}
	sum, err := fresh.Seal()
	if err == nil {
		err = p.root.Rename(freshName(p.name), digestsName(p.name))
	}
	return sum, errors.Join(err, syncDir(p.root))
}
