package vsphere

import (
	"context"
	"sync"
	"time"

	"hypersdk/providers"
)

// checkEvery is how often a long copy makes sure that the disk is still frozen: it need not read for
// hours what is worth nothing. What counts is Confirm after the last read.
const checkEvery = 30 * time.Second

// guard watches over an image that somebody else could let change.
type guard struct {
	check func(context.Context) error // says whether what is read is still the frozen disk

	mu      sync.Mutex
	broken  error     // once the disk was seen to change, no byte of it is trusted
	checked time.Time // when the last check began
}

// trusted says whether the disk may still be read, and now and then makes sure of it. Whoever finds a
// check due makes it; the others read on.
func (g *guard) trusted(ctx context.Context) error {
	g.mu.Lock()
	broken, due := g.broken, time.Since(g.checked) > checkEvery
	if due {
		g.checked = time.Now()
	}
	g.mu.Unlock()
	if broken != nil || !due {
		return broken
	}
	if err := g.check(ctx); final(err) {
		return g.condemn(err)
	}
	return nil // frozen, or nobody could tell: the next check will
}

// Confirm looks once more whether the disk is frozen. The id of a snapshot is never used again, so that
// one which is there now was there all the time.
func (g *guard) Confirm(ctx context.Context) error {
	g.mu.Lock()
	broken := g.broken
	g.mu.Unlock()
	if broken != nil {
		return broken
	}
	err := g.check(ctx)
	if final(err) {
		return g.condemn(err)
	}
	return err
}

// final says whether a failed check is an answer, rather than the lack of one.
func final(err error) bool {
	switch reason(err) {
	case "", providers.Unavailable, providers.Throttled, providers.Canceled:
		return false
	}
	return true
}

// condemn lets every read from now on fail.
func (g *guard) condemn(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = err
	return err
}
