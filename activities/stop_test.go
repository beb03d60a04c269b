package activities

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/providers"
)

// A cancelled copy stops at once, also when the source does not answer or the job is paused.
func TestTransferIsCancelled(t *testing.T) {
	for _, c := range []struct {
		name   string
		paused bool
		hang   bool
	}{{name: "copying"}, {name: "paused", paused: true}, {name: "hanging", hang: true}} {
		t.Run(c.name, func(t *testing.T) {
			b := newLargeBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			var cancel context.CancelCauseFunc
			set := cancellable(&cancel)
			var at time.Time
			stop := sync.OnceFunc(func() { at = time.Now(); cancel(temporal.NewCanceledError()) })
			b.engine.limits.Paused = c.paused
			b.engine.onAsked = func(e *engine) {
				if c.paused && e.asked == 2 {
					stop()
				}
			}
			b.platform.fault = func(ctx context.Context, off, _ int64) error {
				if off >= 10*mib {
					stop()
					if c.hang {
						<-ctx.Done()
					}
				}
				return nil
			}
			in := b.request()
			in.Limits.Paused = c.paused
			_, err = call(b, b.data.TransferDisk, in, set)
			require.True(t, temporal.IsCanceledError(err), "%v", err)
			require.Less(t, time.Since(at), 10*time.Second)
		})
	}
}

// A stopping worker is not a cancelled job: what was copied is safe, and the next attempt goes on.
func TestWorkerStops(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	stop := make(chan struct{})
	var once atomic.Bool
	b.platform.fault = func(_ context.Context, off, _ int64) error {
		if off >= 30*mib && once.CompareAndSwap(false, true) {
			close(stop)
		}
		return nil
	}
	_, err = b.transfer(func(env *testsuite.TestActivityEnvironment) { env.SetWorkerStopChannel(stop) })
	app := failure(t, err)
	require.False(t, app.NonRetryable())
	require.Equal(t, string(providers.Unavailable), app.Type())
	require.Equal(t, b.site.Paces.Again, app.NextRetryDelay())
	require.Contains(t, app.Message(), "the worker stops")
	read := b.platform.read
	got, err := b.transfer()
	require.NoError(t, err)
	require.GreaterOrEqual(t, got.ResumedFrom, int64(30*mib), "the segment was finished")
	require.Equal(t, b.platform.disk.Size()-got.ResumedFrom, b.platform.read-read)
}

// A source that does not answer while the worker stops does not hold it up.
func TestWorkerStopsWhileTheSourceHangs(t *testing.T) {
	b := newLargeBench(t, func(c *Config) { c.StopWithin = 50 * time.Millisecond })
	_, err := b.prepare()
	require.NoError(t, err)
	stop := make(chan struct{})
	closing := sync.OnceFunc(func() { close(stop) })
	b.platform.fault = func(ctx context.Context, off, _ int64) error {
		if off >= 30*mib {
			closing()
			<-ctx.Done()
		}
		return nil
	}
	_, err = b.transfer(func(env *testsuite.TestActivityEnvironment) { env.SetWorkerStopChannel(stop) })
	require.Contains(t, failure(t, err).Message(), "the worker stops")
}

// A source that stops answering is asked anew.
func TestStalledSource(t *testing.T) {
	b := newLargeBench(t, func(c *Config) { c.Stall, c.Heartbeat = 100*time.Millisecond, 100*time.Millisecond })
	_, err := b.prepare()
	require.NoError(t, err)
	b.platform.fault = func(ctx context.Context, off, _ int64) error {
		if off >= 10*mib {
			<-ctx.Done()
		}
		return nil
	}
	_, err = b.transfer()
	app := failure(t, err)
	require.False(t, app.NonRetryable())
	require.Contains(t, app.Message(), "no byte has moved for 100ms")
}

// A pause is longer than a stall, and none.
func TestPausedTransfer(t *testing.T) {
	const stall = time.Second
	b := newBench(t, func(c *Config) { c.Stall, c.Heartbeat = stall, stall/4 })
	began := time.Now()
	_, err := b.prepare()
	require.NoError(t, err)
	b.engine.limits.Paused = true
	var read int64
	b.engine.onAsked = func(e *engine) {
		if e.limits.Paused && time.Since(began) > 2*stall {
			b.platform.mu.Lock()
			read = b.platform.read
			b.platform.mu.Unlock()
			e.limits.Paused = false
		}
	}
	in := b.request()
	in.Limits.Paused = true
	_, err = call(b, b.data.TransferDisk, in)
	require.NoError(t, err)
	require.Zero(t, read, "nothing is read while the job is paused")
	b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
}
