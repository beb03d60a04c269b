package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ChainLine is the id of the line of progress that a job on a chain has, which is about all its disks.
const ChainLine = "chain"

// labour is an activity that works on a chain for long.
type labour struct {
	*Site
	in    ChainRequest
	m     *meter
	limit *throttle
	stop  <-chan struct{}
	log   *slog.Logger
}

// labours runs an activity that works on a chain for long: it beats, keeps to the job's limits, and takes a
// turn among the disks at work.
func (d *Data) labours(ctx context.Context, in ChainRequest, name string, phase job.Phase, do func(context.Context, *labour) (ChainDone, error)) (out ChainDone, err error) {
	d.places.take(in.Job)
	attempt := activity.GetInfo(ctx).Attempt
	l := &labour{Site: d.Site, in: in, stop: activity.GetWorkerStopChannel(ctx), log: d.logger(in.Job), m: newMeter(job.DiskProgress{
		Disk: ChainLine, File: filepath.Base(in.Work.Path), Phase: phase, Total: in.Seen.Weight, Attempt: attempt,
	})}
	var leave func()
	l.limit, leave = d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, l.m)
	defer stop()
	began := time.Now()
	out, err = l.run(work, do)
	if err == nil {
		l.log.Info(name+" is done", "attempt", attempt, "took", time.Since(began).Round(time.Millisecond).String(), "points", out.Points)
		return out, nil
	}
	if errors.Is(err, formats.ErrStopped) && !cancelled(ctx) {
		err = d.Paces.soon(refuse(providers.Unavailable, "the worker stops; the job goes on with the next one"))
	}
	return out, d.failed(ctx, l.log, name, broken(ctx, work, err))
}

func (l *labour) run(ctx context.Context, do func(context.Context, *labour) (ChainDone, error)) (ChainDone, error) {
	free, err := l.slot(ctx, l.m)
	if err != nil {
		return ChainDone{}, err
	}
	defer free()
	if err := l.deps.durable(ctx); err != nil {
		return ChainDone{}, err
	}
	return do(ctx, l)
}

// pace lets n bytes through.
func (l *labour) pace(ctx context.Context, n int64) error { return l.limit.wait(ctx, l.stop, l.m, n) }

// stopped says whether the worker stops.
func (l *labour) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// openSeen opens the chain of the job, which must be the one that it looked at.
func (c Config) openSeen(ctx context.Context, in ChainRequest, readOnly bool) (*cbt.Chain, string, error) {
	chain, path, err := c.openChain(ctx, PlaceOf(in.Work.Path), readOnly)
	if err != nil {
		return nil, path, err
	}
	if m := chain.Manifest(); m.ID != in.Seen.ID {
		return nil, path, errors.Join(final(refuse(providers.Precondition, "%s holds another chain than when the job looked", path)), chain.Close())
	}
	return chain, path, nil
}

// CheckChain examines a chain. What it finds is its answer: it fails only where it cannot look.
func (d *Data) CheckChain(ctx context.Context, in ChainRequest) (ChainDone, error) {
	return d.labours(ctx, in, CheckChainActivity, job.Verify, func(ctx context.Context, l *labour) (ChainDone, error) {
		chain, _, err := l.openSeen(ctx, in, true)
		if err != nil {
			return ChainDone{}, err
		}
		defer chain.Close()
		o := cbt.CheckOptions{Depth: depthOf(in.Work.Depth), Workers: l.Workers, Progress: l.checked}
		o.Pace = func(ctx context.Context, n int64) error {
			if l.stopped() { // nothing is lost that a longer look would keep
				return formats.ErrStopped
			}
			return l.pace(ctx, n)
		}
		report, err := chain.Check(ctx, o)
		if err != nil {
			return ChainDone{}, chainError(err)
		}
		l.log.Info("chain checked", "depth", in.Work.Depth, "links", report.Links, "read", report.Read, "problems", len(report.Problems))
		return toldReport(in.Work, report), nil
	})
}

func depthOf(depth string) cbt.Depth {
	return map[string]cbt.Depth{job.CheckDepthTables: cbt.CheckTables, job.CheckDepthData: cbt.CheckData}[depth]
}

// checked notes how far a check has come: of all data in bytes, else in files.
func (l *labour) checked(p cbt.CheckProgress) {
	done := min(p.Read, l.in.Seen.Weight)
	if depthOf(l.in.Work.Depth) != cbt.CheckData && p.Of > 0 {
		done = int64(float64(l.in.Seen.Weight) * float64(p.Links) / float64(p.Of))
	}
	l.m.progress(formats.Progress{Done: done, Read: p.Read})
	l.m.touch()
}

// toldReport is what is told of a report.
func toldReport(w job.ChainWork, r cbt.CheckReport) ChainDone {
	depth := w.Depth
	if depth == "" {
		depth = job.CheckDepthLinks
	}
	check := &job.ChainCheck{Depth: depth, Links: r.Links, Read: r.Read, Damage: len(r.Problems), Pending: r.Pending}
	for _, p := range r.Problems[:min(len(r.Problems), maxToldProblems)] {
		p.Disk, p.What = clip(p.Disk, 200), clip(strings.TrimSuffix(p.What, ": "+formats.ErrCorrupt.Error()), 300)
		check.Problems = append(check.Problems, p)
	}
	check.Strays = r.Strays[:min(len(r.Strays), maxToldProblems)]
	out := ChainDone{Points: r.Points, Check: check}
	if len(check.Problems) > 0 {
		p, many := check.Problems[0], ""
		if check.Damage > 1 {
			many = fmt.Sprintf("%d problems, the first: ", check.Damage)
		}
		out.First = fmt.Sprintf("the chain is damaged: %spoint %d of disk %q: %s: %s", many, p.Point, p.Disk, p.File, p.What)
	}
	return out
}

// MergeChain makes a point the oldest of its chain. Where an attempt was cut off, the next goes on at its last
// checkpoint; one whose end was not heard of finds it done.
func (d *Data) MergeChain(ctx context.Context, in ChainRequest) (ChainDone, error) {
	return d.labours(ctx, in, MergeChainActivity, job.Transfer, func(ctx context.Context, l *labour) (ChainDone, error) {
		chain, path, err := l.openSeen(ctx, in, false)
		if err != nil {
			return ChainDone{}, err
		}
		defer chain.Close()
		if m := chain.Manifest(); len(m.Points) > 0 && m.Points[0].Number == in.Seen.Point {
			return mergedAs(chain, path, in.Seen), nil // an earlier attempt was cut off behind its decision
		}
		begun, err := l.roomToMerge()
		if err != nil {
			return ChainDone{}, err
		}
		m := &merging{labour: l, begun: begun}
		err = chain.Merge(ctx, in.Seen.Point, formats.CopyOptions{
			Workers: l.Workers, Buffers: l.buffers, Stop: l.stop, Progress: m.progress, Pace: m.pace,
		})
		if err != nil {
			return ChainDone{}, chainError(err)
		}
		l.log.Info("merged", "up to point", in.Seen.Point)
		return mergedAs(chain, path, in.Seen), nil
	})
}

// roomToMerge checks that there is room for another base, and says whether an earlier attempt has begun it.
func (l *labour) roomToMerge() (begun bool, err error) {
	f, err := l.openFolder(PlaceOf(l.in.Work.Path), false)
	if err != nil {
		return false, err
	}
	defer f.Close()
	free, err := f.free()
	if err != nil {
		return false, err
	}
	var need int64
	files := make([]string, len(l.in.Seen.Disks))
	for i, d := range l.in.Seen.Disks {
		files[i] = d.File
		need += min(d.Size, d.Held)
	}
	have := f.held(files)
	if need > free+have {
		return false, final(refuse(providers.Exhausted, "not enough space in %s: a merge writes another base of about %s, and %s is free", f.path, bytesText(need), bytesText(free)))
	}
	return have > 0, nil
}

// merging follows a merge, which tells of one disk after the other: of each how much is written, then how much
// of it was read again.
type merging struct {
	*labour
	begun   bool // by an earlier attempt
	seen    bool
	proving atomic.Bool
	disk    int   // index of the one at work
	base    int64 // weight of those before
	last    int64
}

func (m *merging) progress(p formats.Progress) {
	disks := m.in.Seen.Disks
	if len(disks) == 0 {
		return
	}
	for p.Done < m.last && m.disk < len(disks)-1 {
		m.base += 2 * disks[m.disk].Size
		m.last, m.disk = 0, m.disk+1
	}
	m.last = p.Done
	m.proving.Store(p.Done > disks[m.disk].Size)
	if p.Done = min(m.base+p.Done, m.in.Seen.Weight); !m.seen && m.begun {
		m.m.from(p.Done)
	}
	m.seen = true
	m.m.name(disks[m.disk].File)
	m.m.progress(p)
}

// pace ends the reading again at once when the worker stops; a copy ends by itself, at a checkpoint.
func (m *merging) pace(ctx context.Context, n int64) error {
	if m.proving.Load() && m.stopped() {
		return formats.ErrStopped
	}
	return m.labour.pace(ctx, n)
}

// mergedAs is what a merge has made.
func mergedAs(chain *cbt.Chain, path string, seen ChainSeen) ChainDone {
	m := chain.Manifest()
	out := ChainDone{Points: len(m.Points)}
	if len(m.Points) == 0 {
		return out
	}
	for _, d := range m.Points[0].Disks {
		for _, s := range seen.Disks {
			if s.Disk == d.Disk {
				d.ChangeID = ""
				out.Disks = append(out.Disks, d)
				out.Files = append(out.Files, filepath.Join(path, d.File))
				out.Total += d.Stored
			}
		}
	}
	return out
}

// DiscardMerge removes what a merge that was given up has hidden. It touches nothing that another change is
// being made of.
func (c *Control) DiscardMerge(ctx context.Context, in ChainRequest) error {
	_, err := step(ctx, c.Site, in.Job, DiscardMergeActivity, func(ctx context.Context, log *slog.Logger) (struct{}, error) {
		chain, _, err := c.openSeen(ctx, in, false) // so that nobody else goes on with it meanwhile
		if err != nil && elsewhere(err) {
			return struct{}{}, nil
		}
		if err != nil {
			return struct{}{}, err
		}
		defer chain.Close()
		f, err := c.openFolder(PlaceOf(in.Work.Path), false)
		if err != nil {
			return struct{}{}, err
		}
		defer f.Close()
		for _, d := range in.Seen.Disks {
			err = errors.Join(err, f.remove(journalName(d.File)), f.remove(partName(d.File)))
		}
		if err != nil {
			return struct{}{}, fmt.Errorf("discard the merge: %w", err)
		}
		log.Info("removed what the merge has hidden", "dir", f.path)
		return struct{}{}, syncDir(f.root)
	})
	return err
}

// DeletePoint gives up a point that no other builds upon.
func (c *Control) DeletePoint(ctx context.Context, in ChainRequest) (ChainDone, error) {
	return step(ctx, c.Site, in.Job, DeletePointActivity, func(ctx context.Context, log *slog.Logger) (ChainDone, error) {
		chain, _, err := c.openSeen(ctx, in, false)
		if err != nil {
			return ChainDone{}, err
		}
		defer chain.Close()
		err = chain.Delete(ctx, in.Seen.Point)
		if errors.Is(err, cbt.ErrNotFound) && activity.GetInfo(ctx).Attempt > 1 {
			err = nil // an earlier attempt has done it
		}
		if err != nil {
			return ChainDone{}, chainError(err)
		}
		log.Info("point deleted", "point", in.Seen.Point)
		return ChainDone{Points: len(chain.Manifest().Points)}, nil
	})
}
