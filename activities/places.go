package activities

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Places are the jobs that a host can take at once. A place that is free is reserved before anybody
// is asked for a job, taken by a job when one comes, and free again when the job leaves.
type Places struct {
	max      int
	mu       sync.Mutex
	reserved int
	jobs     map[string]bool
	freed    chan struct{} // closed and replaced when a place becomes free
}

// NewPlaces makes a host with n places. After a restart a job takes its place again with its next step.
func NewPlaces(n int) *Places {
	return &Places{max: n, jobs: map[string]bool{}, freed: make(chan struct{})}
}

// Reserve waits for a free place and keeps it for the next job.
func (p *Places) Reserve(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.reserved+len(p.jobs) < p.max {
			p.reserved++
			p.mu.Unlock()
			return nil
		}
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Release gives a reservation back. Whoever came for it has taken the place by then.
func (p *Places) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	p.changed()
}

// Max is how many places there are.
func (p *Places) Max() int { return p.max }

func (p *Places) take(job string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobs[job] = true
}

// enter takes a job in where there is room for it.
func (p *Places) enter(job string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.jobs[job] && len(p.jobs) >= p.max {
		return false
	}
	p.jobs[job] = true
	return true
}

// free is how many jobs more could come.
func (p *Places) free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.max-len(p.jobs))
}

func (p *Places) leave(job string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.jobs, job)
	p.changed()
}

// all lists the jobs that have a place.
func (p *Places) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.jobs))
}

func (p *Places) changed() {
	close(p.freed)
	p.freed = make(chan struct{})
}
