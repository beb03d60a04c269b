package activities

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/workflows/job"
)

// ruler answers limits that a test changes.
type ruler struct {
	mu    sync.Mutex
	l     job.Limits
	err   error
	asked int
}

func (r *ruler) ask(context.Context, string) (job.Limits, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	return r.l, r.err
}

func (r *ruler) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

func (r *ruler) set(l job.Limits, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.l, r.err = l, err
}

// rate lets disks copy for a while and answers the rate of all of them in MB/s.
func rate(t *testing.T, th *throttle, disks int, d time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var mu sync.Mutex
	var total int64
	var wg sync.WaitGroup
	for range disks {
		wg.Go(func() {
			for th.wait(ctx, nil, newMeter(job.DiskProgress{}), 2*mib) == nil {
				mu.Lock()
				total += 2 * mib
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return float64(total) / d.Seconds() / 1e6
}

func TestBandwidthLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ruler{l: job.Limits{MBps: 50}}
		ts := newThrottles(r.ask, time.Second)
		th, leave := ts.join("job-1", r.l)
		defer leave()
		require.InEpsilon(t, 50, rate(t, th, 1, 20*time.Second), 0.03)
		require.InEpsilon(t, 50, rate(t, th, 8, 20*time.Second), 0.03, "all disks of a job share one limit")

		r.set(job.Limits{MBps: 200}, nil)
		pass(2 * time.Second)
		require.InEpsilon(t, 200, rate(t, th, 4, 20*time.Second), 0.03, "it can be changed while it runs")
	})
}

// busyLink is a limit that a window has just gone through, so that the next has to wait for minutes.
func busyLink(t *testing.T) (*ruler, *throttle, func()) {
	r := &ruler{l: job.Limits{MBps: 0.01}}
	th, leave := newThrottles(r.ask, time.Second).join("job-1", r.l)
	require.NoError(t, th.wait(t.Context(), nil, newMeter(job.DiskProgress{}), 2*mib))
	return r, th, leave
}

// A limit so low that a window takes minutes is lifted within a poll.
func TestLimitIsLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, th, leave := busyLink(t)
		defer leave()
		m := newMeter(job.DiskProgress{})
		began := time.Now()
		time.AfterFunc(5*time.Second, func() { r.set(job.Limits{}, nil) })
		require.NoError(t, th.wait(t.Context(), nil, m, 2*mib))
		require.Less(t, time.Since(began), 7*time.Second)
	})
}

// What is read back from the own file system has no part in the limit of a link, and is held by a pause alone.
func TestWorkThatUsesNoLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, th, leave := busyLink(t)
		defer leave()
		began := time.Now()
		require.NoError(t, th.wait(t.Context(), nil, newMeter(job.DiskProgress{}), 0))
		require.Zero(t, time.Since(began))
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ruler{l: job.Limits{Paused: true}}
		ts := newThrottles(r.ask, time.Second)
		th, leave := ts.join("job-1", r.l)
		defer leave()
		m := newMeter(job.DiskProgress{})
		began := time.Now()
		time.AfterFunc(time.Hour, func() { r.set(job.Limits{}, nil) })
		done := make(chan error)
		go func() { done <- th.wait(t.Context(), nil, m, mib) }()
		synctest.Wait()
		require.Equal(t, "paused", m.now().Waiting)
		pass(30 * time.Minute)
		require.Zero(t, m.idle(), "who is told to wait does not stall")
		require.NoError(t, <-done)
		require.InDelta(t, time.Hour.Seconds(), time.Since(began).Seconds(), 1.1)
		require.Empty(t, m.now().Waiting)
	})
}

func TestPauseEndsWithTheWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newThrottles((&ruler{l: job.Limits{Paused: true}}).ask, time.Second)
		th, leave := ts.join("job-1", job.Limits{Paused: true})
		defer leave()
		stop := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(stop) })
		require.NoError(t, th.wait(t.Context(), stop, newMeter(job.DiskProgress{}), mib), "the copy is to come to its end")

		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("cancelled")
		time.AfterFunc(time.Minute, func() { cancel(why) })
		require.ErrorIs(t, th.wait(ctx, nil, newMeter(job.DiskProgress{}), mib), why)
	})
}

// One poller for a job, however many disks; it ends with the last of them. What cannot be asked stays.
func TestPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ruler{l: job.Limits{MBps: 10}}
		ts := newThrottles(r.ask, time.Second)
		a, leaveA := ts.join("job-1", r.l)
		b, leaveB := ts.join("job-1", r.l)
		require.Same(t, a, b)
		pass(10*time.Second + time.Millisecond)
		require.Equal(t, 11, r.count())
		r.set(job.Limits{}, errors.New("no answer"))
		pass(10 * time.Second)
		a.mu.Lock()
		require.Equal(t, job.Limits{MBps: 10}, a.limits)
		a.mu.Unlock()
		leaveA()
		pass(time.Second)
		asked := r.count()
		leaveB()
		pass(time.Minute)
		require.Equal(t, asked, r.count())
		require.Empty(t, ts.jobs)
	})
}

func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(job.DiskProgress{Total: 1000 * mib})
		m.from(100e6)
		for i := range int64(100) {
			pass(100 * time.Millisecond)
			m.progress(formats.Progress{Done: 100e6 + (i+1)*5e6, Read: (i + 1) * 5e6})
			m.now()
		}
		p := m.now()
		require.InEpsilon(t, 50, p.RateMBps, 0.02)
		require.Equal(t, int64(600e6), p.Done)
		require.Equal(t, int64(100e6), p.ResumedFrom)
		require.Zero(t, m.idle())

		pass(3 * time.Second)
		require.Equal(t, 3*time.Second, m.idle())
		m.progress(formats.Progress{Done: 600e6, Read: 500e6})
		require.Equal(t, 3*time.Second, m.idle(), "saying the same again is no progress")
		done := m.work()
		require.Zero(t, m.idle())
		pass(time.Minute)
		done()
		require.Zero(t, m.idle())

		resume := m.wait(paused)
		pass(time.Hour)
		require.Zero(t, m.now().RateMBps)
		resume()
		pass(time.Second)
		m.progress(formats.Progress{Done: 650e6})
		require.InEpsilon(t, 50, m.now().RateMBps, 0.02, "a pause does not count")
	})
}

func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPlaces(2)
		require.NoError(t, p.Reserve(t.Context()))
		p.take("a")
		p.Release()
		require.NoError(t, p.Reserve(t.Context()))
		third := make(chan error)
		go func() { third <- p.Reserve(t.Context()) }()
		synctest.Wait()
		select {
		case <-third:
			t.Fatal("there are two places")
		default:
		}
		p.take("a") // the same job again takes no second one
		p.leave("a")
		require.NoError(t, <-third)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.Reserve(ctx), context.Canceled)
	})
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1.0 KiB", 5 << 30: "5.0 GiB", 1<<63 - 1: "8192.0 PiB"} {
		require.Equal(t, want, bytesText(n))
	}
}
