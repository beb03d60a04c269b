package activities

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// meter knows how far a disk has come, and when a byte last moved.
type meter struct {
	mu      sync.Mutex
	p       job.DiskProgress
	last    formats.Progress
	moved   time.Time
	waits   int // who waits on purpose: paused, limited, in a queue
	paused  bool
	busy    int // what takes its time without moving bytes that can be counted
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

// paused is why a job waits that was told to.
const paused = "paused"

// rateWindow is how far back a rate looks.
const rateWindow = 10 * time.Second

func newMeter(p job.DiskProgress) *meter {
	now := time.Now()
	return &meter{p: p, moved: now, samples: []sample{{now, p.Done}}}
}

// progress is what a copy or a verification reports to.
func (m *meter) progress(p formats.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p == m.last {
		return
	}
	m.last, m.moved = p, time.Now()
	m.p.Done, m.p.Read, m.p.Written = p.Done, p.Read, p.Written
}

// from notes where the attempt took up an earlier one; rates count from there.
func (m *meter) from(off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.ResumedFrom, m.p.Done = off, off
	m.moved = time.Now()
	m.samples = []sample{{m.moved, off}}
}

// stage notes that the disk is worked on in another way from here on, or on another stretch of it: what is
// done, and rates, count from its beginning.
func (m *meter) stage(phase job.Phase, file string, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Phase, m.p.Total, m.p.Done = phase, total, 0
	if file != "" {
		m.p.File = file
	}
	m.last, m.moved = formats.Progress{}, time.Now()
	m.samples = []sample{{m.moved, 0}}
}

// advance notes that n more bytes of the file were read.
func (m *meter) advance(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Done, m.p.Read, m.moved = m.p.Done+n, m.p.Read+n, time.Now()
}

// name names the file that is written now.
func (m *meter) name(file string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.File = file
}

// anew notes that the disk begins anew, for the attempt-th time.
func (m *meter) anew(attempt int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Attempt, m.p.Done, m.p.Read, m.p.Written = attempt, 0, 0, 0
	m.last, m.moved = formats.Progress{}, time.Now()
	m.samples = []sample{{m.moved, 0}}
}

// wait says why nothing moves until the answer is called.
func (m *meter) wait(why string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waits++
	m.p.Waiting, m.paused = why, why == paused
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.waits--; m.waits == 0 {
			m.p.Waiting, m.paused = "", false
		}
		m.moved = time.Now()
	}
}

// work is like wait for what is not waiting: a sync, a look at the source.
func (m *meter) work() func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.busy--
		m.moved = time.Now()
	}
}

// came notes bytes of the source as they come.
func (m *meter) came(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Read += n
	m.moved = time.Now()
}

// touch notes that bytes moved which are not counted.
func (m *meter) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved = time.Now()
}

// now is the progress with its rate.
func (m *meter) now() job.DiskProgress {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := time.Now()
	if m.paused { // what comes after a pause is not slower for it
		m.samples, m.p.RateMBps = []sample{{at, m.p.Done}}, 0
		return m.p
	}
	for len(m.samples) > 1 && at.Sub(m.samples[1].at) >= rateWindow {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	if d := at.Sub(first.at); d > 0 {
		m.p.RateMBps = float64(int64(float64(m.p.Done-first.done)/d.Seconds()/1e4)) / 100
	}
	if n := len(m.samples); at.Sub(m.samples[n-1].at) >= rateWindow/20 {
		m.samples = append(m.samples, sample{at, m.p.Done})
	}
	return m.p
}

// idle is how long nothing moved although it should have.
func (m *meter) idle() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waits > 0 || m.busy > 0 {
		return 0
	}
	return time.Since(m.moved)
}

// watching is how an activity that moves bytes is watched over.
type watching struct {
	meters []*meter // a heartbeat has a line for each
	// stall is how long one of them may stand still though nobody asked it to wait; 0: for ever.
	stall time.Duration
	// within is the time that the attempt has to come to a durable end when the worker stops.
	within time.Duration
	stops  string // what the attempt is told then
}

// watch watches over an activity that moves one thing.
func (c Config) watch(ctx context.Context, m *meter) (context.Context, func()) {
	return c.watchAll(ctx, watching{meters: []*meter{m}, stall: c.Stall, within: c.StopWithin, stops: "the worker stops"})
}

// watchAll beats for an activity that moves bytes, until the answer is called. An attempt that stalls, or
// does not come to its end when the worker stops, is cut off: its context ends with a precise cause, and so
// do its heartbeats.
func (c Config) watchAll(ctx context.Context, w watching) (context.Context, func()) {
	ctx, cut := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(min(time.Second/2, c.Heartbeat/4))
		defer tick.Stop()
		stop := activity.GetWorkerStopChannel(ctx)
		var late <-chan time.Time
		w.beat(ctx)
		for {
			select {
			case <-ctx.Done():
				return
			case <-stop:
				stop = nil
				late = time.After(w.within)
			case <-late:
				cut(refuse(providers.Unavailable, "%s", w.stops))
				return
			case <-tick.C:
				if err := w.stalled(); err != nil {
					cut(err)
					return
				}
				w.beat(ctx)
			}
		}
	}()
	return ctx, func() { cut(nil); <-done }
}

func (w watching) beat(ctx context.Context) {
	lines := make([]any, len(w.meters))
	for i, m := range w.meters {
		lines[i] = m.now()
	}
	activity.RecordHeartbeat(ctx, lines...)
}

// stalled says what stands still, if anything does.
func (w watching) stalled() error {
	for _, m := range w.meters {
		switch {
		case w.stall == 0 || m.idle() <= w.stall:
		case len(w.meters) > 1:
			return refuse(providers.Unavailable, "%s: no byte has moved for %s", m.now().File, w.stall)
		default:
			return refuse(providers.Unavailable, "no byte has moved for %s", w.stall)
		}
	}
	return nil
}

// alive beats for a short activity, so that it hears when it is cancelled and its worker's death is
// noticed, until the answer is called.
func (c Config) alive(ctx context.Context) func() {
	ctx, cut := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(min(time.Second, c.Heartbeat/4))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				activity.RecordHeartbeat(ctx)
			}
		}
	}()
	return func() { cut(); <-done }
}

// bytesText is a size for people.
func bytesText(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

// broken is an error of an attempt that was watched over: where the attempt was cancelled or cut off, what
// else is said of its end is only the echo.
func broken(ctx, work context.Context, err error) error {
	switch {
	case err == nil:
	case cancelled(ctx):
		return context.Canceled
	case work.Err() != nil && ctx.Err() == nil:
		return context.Cause(work)
	}
	return err
}
