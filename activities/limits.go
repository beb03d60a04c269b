package activities

import (
	"context"
	"sync"
	"time"

	"hypersdk/workflows/job"
)

// throttles keep the jobs of this process to their limits. While activities of a job run, its workflow
// is asked every now and then what they are; all disks of the job share them.
type throttles struct {
	ask   func(ctx context.Context, job string) (job.Limits, error)
	every time.Duration
	mu    sync.Mutex
	jobs  map[string]*throttle
}

func newThrottles(ask func(context.Context, string) (job.Limits, error), every time.Duration) *throttles {
	return &throttles{ask: ask, every: every, jobs: map[string]*throttle{}}
}

// throttle is the limits of one job and its account of bytes.
type throttle struct {
	users int
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex
	limits  job.Limits
	changed chan struct{} // closed and replaced when the limits change
	free    time.Time     // when all that was let through so far has been paid for
}

// burst is how much time's worth of bytes may go at once after a quiet moment.
const burst = 100 * time.Millisecond

// join makes an activity keep to the limits of its job until it leaves.
func (t *throttles) join(id string, first job.Limits) (th *throttle, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	th = t.jobs[id]
	if th == nil {
		ctx, stop := context.WithCancel(context.Background())
		th = &throttle{stop: stop, done: make(chan struct{}), limits: first, changed: make(chan struct{})}
		t.jobs[id] = th
		go t.poll(ctx, id, th)
	}
	th.users++
	return th, func() { t.leave(id, th) }
}

func (t *throttles) leave(id string, th *throttle) {
	t.mu.Lock()
	th.users--
	last := th.users == 0
	if last {
		delete(t.jobs, id)
	}
	t.mu.Unlock()
	if last {
		th.stop()
		<-th.done
	}
}

// poll asks until the last activity has left. What cannot be asked stays as it was.
func (t *throttles) poll(ctx context.Context, id string, th *throttle) {
	defer close(th.done)
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	for {
		one, stop := context.WithTimeout(ctx, 5*t.every)
		l, err := t.ask(one, id)
		stop()
		if err == nil {
			th.set(l)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (th *throttle) set(l job.Limits) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if l == th.limits {
		return
	}
	th.limits = l
	th.free = time.Time{} // what was owed at the old rate is forgiven
	close(th.changed)
	th.changed = make(chan struct{})
}

// wait lets n bytes through when the limits allow it, at once when stop is closed: who is to end must
// be able to. Of 0 bytes, work that uses no link, only a pause is the limit. It notes why on the meter.
func (th *throttle) wait(ctx context.Context, stop <-chan struct{}, m *meter, n int64) error {
	for {
		why, pause, changed := th.take(n)
		if why == "" {
			return context.Cause(ctx)
		}
		done := m.wait(why)
		err := hold(ctx, stop, pause, changed)
		done()
		if err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// take answers "" when the bytes may go, and otherwise why not and for how long; 0 is until something
// changes.
func (th *throttle) take(n int64) (why string, pause time.Duration, changed <-chan struct{}) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.limits.Paused {
		return paused, 0, th.changed
	}
	if th.limits.MBps <= 0 || n == 0 {
		return "", 0, nil
	}
	now := time.Now()
	if d := th.free.Sub(now); d > burst {
		return "bandwidth limit", d - burst, th.changed
	}
	if th.free.Before(now) {
		th.free = now
	}
	th.free = th.free.Add(time.Duration(float64(n) / (th.limits.MBps * 1e6) * float64(time.Second)))
	return "", 0, nil
}

func hold(ctx context.Context, stop <-chan struct{}, pause time.Duration, changed <-chan struct{}) error {
	var timer <-chan time.Time
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer:
	case <-changed:
	case <-stop:
	}
	return nil
}
