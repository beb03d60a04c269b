package vspheretest

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// maxRequests bounds the record of requests; the oldest fall out.
const maxRequests = 100_000

// recorder remembers what was asked and served.
type recorder struct {
	mu       sync.Mutex
	calls    map[string]int
	requests []Request
	served   map[string]*Coverage // by datastore path
	active   map[string]int
}

// Request is a request for a file in a datastore that has ended.
type Request struct {
	Time   time.Time `json:"time"` // of its end
	Method string    `json:"method"`
	File   string    `json:"file"`            // datastore path
	Range  string    `json:"range,omitempty"` // as it was asked for
	Status int       `json:"status"`
	Off    int64     `json:"off"`  // of the first byte that was sent; -1 for several ranges in one answer
	Sent   int64     `json:"sent"` // bytes of the body given to the network; a client that was cut off had fewer
	// Received is the bytes of an upload that came.
	Received int64 `json:"received,omitempty"`
}

// Span is a run of bytes of a file that were all sent equally often.
type Span struct {
	Off   int64 `json:"off"`
	Len   int64 `json:"len"`
	Times int   `json:"times"`
}

// Coverage is what was sent of a file.
type Coverage struct {
	Requests int    `json:"requests"`
	Peak     int    `json:"peak"`  // the most that were answered at once
	Spans    []Span `json:"spans"` // ascending, without overlap; what was never sent is not in it
}

// Sent is the bytes that were sent, each as often as it was.
func (c Coverage) Sent() (n int64) {
	for _, s := range c.Spans {
		n += s.Len * int64(s.Times)
	}
	return n
}

// Distinct is the bytes that were sent at least once.
func (c Coverage) Distinct() (n int64) {
	for _, s := range c.Spans {
		n += s.Len
	}
	return n
}

// Again is the bytes that were sent although they had been sent before.
func (c Coverage) Again() int64 { return c.Sent() - c.Distinct() }

// add counts n bytes from off.
func (c *Coverage) add(off, n int64) {
	if n <= 0 {
		return
	}
	end := off + n
	var out []Span
	put := func(from, to int64, times int) {
		if from >= to {
			return
		}
		if k := len(out) - 1; k >= 0 && out[k].Times == times && out[k].Off+out[k].Len == from {
			out[k].Len += to - from
			return
		}
		out = append(out, Span{Off: from, Len: to - from, Times: times})
	}
	at := off // what of the new run is not in out yet
	for _, s := range c.Spans {
		last := s.Off + s.Len
		put(at, min(end, s.Off), 1) // before s
		at = max(at, min(end, s.Off))
		put(s.Off, min(last, max(s.Off, off)), s.Times) // of s, before the run
		lo, hi := max(s.Off, off), min(last, end)
		put(lo, hi, s.Times+1)
		put(max(s.Off, min(last, end)), last, s.Times) // of s, after the run
		at = max(at, min(hi, end))
	}
	put(at, end, 1)
	c.Spans = out
}

func (r *recorder) call(method string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls == nil {
		r.calls = map[string]int{}
	}
	r.calls[method]++
}

// coverage is that of a file; r is locked.
func (r *recorder) coverage(file string) *Coverage {
	if r.served == nil {
		r.served = map[string]*Coverage{}
	}
	c := r.served[file]
	if c == nil {
		c = &Coverage{Spans: []Span{}}
		r.served[file] = c
	}
	return c
}

// begin counts a read that is being answered.
func (r *recorder) begin(file string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active == nil {
		r.active = map[string]int{}
	}
	r.active[file]++
	c := r.coverage(file)
	c.Peak = max(c.Peak, r.active[file])
}

// end takes down a request for a file that has ended.
func (r *recorder) end(q Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active[q.File]--
	if len(r.requests) == maxRequests {
		r.requests = slices.Delete(r.requests, 0, maxRequests/10)
	}
	r.requests = append(r.requests, q)
	c := r.coverage(q.File)
	c.Requests++
	if q.Off >= 0 {
		c.add(q.Off, q.Sent)
	}
}

// Calls is how often each method of the API was called.
func (s *Server) Calls() map[string]int {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	out := maps.Clone(s.record.calls)
	if out == nil {
		out = map[string]int{}
	}
	return out
}

// Requests is the requests for files that have ended, the last 100,000.
func (s *Server) Requests() []Request {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return slices.Clone(s.record.requests)
}

// Served is what was sent of each file, by datastore path: "[datastore1] web-01/web-01-flat.vmdk".
func (s *Server) Served() map[string]Coverage {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	out := map[string]Coverage{}
	for file, c := range s.record.served {
		out[file] = Coverage{Requests: c.Requests, Peak: c.Peak, Spans: slices.Clone(c.Spans)}
	}
	return out
}

// ServedDisk is what was sent of the base of disk number i of a VM.
func (s *Server) ServedDisk(vm string, i int) (Coverage, error) {
	m, err := s.machine(vm)
	if err != nil {
		return Coverage{}, err
	}
	d, err := m.disk(i)
	if err != nil {
		return Coverage{}, err
	}
	return s.Served()[m.path(d.layers[0].extent())], nil
}

// ResetRecord forgets calls, requests and what was served.
func (s *Server) ResetRecord() {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.record.calls, s.record.requests, s.record.served = nil, nil, nil
}
