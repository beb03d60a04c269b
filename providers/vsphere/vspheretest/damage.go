package vspheretest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// damage is all that happens to one read.
type damage struct {
	fail       *Fault // the answer, instead of the file
	delay      time.Duration
	cutAt      []int64
	cutAfter   []int64
	stall      bool
	short      int64
	wrongRange bool
	noRange    bool
	flipAt     []int64
	limits     []*limiter
}

func (d *damage) add(in *Injection) {
	f := in.fault
	d.delay += time.Duration(f.Delay)
	if d.fail == nil && f.fails() {
		d.fail = &f
	}
	if f.CutAt != nil {
		d.cutAt = append(d.cutAt, *f.CutAt)
	}
	if f.CutAfter != nil {
		d.cutAfter = append(d.cutAfter, *f.CutAfter)
	}
	if f.Stall && f.CutAt == nil && f.CutAfter == nil {
		d.cutAfter = append(d.cutAfter, 0)
	}
	if f.FlipAt != nil {
		d.flipAt = append(d.flipAt, *f.FlipAt)
	}
	if f.Rate > 0 && f.Shared {
		d.limits = append(d.limits, in.limit)
	} else if f.Rate > 0 {
		d.limits = append(d.limits, &limiter{rate: f.Rate})
	}
	d.stall = d.stall || f.Stall
	d.short += f.Short
	d.wrongRange = d.wrongRange || f.WrongRange
	d.noRange = d.noRange || f.NoRange
}

// damagedWriter sends a file with damage. It has no ReadFrom, so that every byte passes through Write.
type damagedWriter struct {
	http.ResponseWriter
	*damage
	ctx  context.Context
	off  int64 // in the file, of the next byte
	sent int64
	end  int64 // bytes of the body that are sent, the rest is swallowed; -1: all
}

func (w *damagedWriter) WriteHeader(status int) {
	h := w.Header()
	w.end = -1
	if start, ok := rangeStart(h); ok && status == http.StatusPartialContent {
		w.off = start
	}
	if length, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && w.short > 0 && status < 300 {
		w.end = max(0, length-w.short)
		h.Set("Content-Length", strconv.FormatInt(w.end, 10))
	}
	var start, end, size int64
	if n, _ := fmt.Sscanf(h.Get("Content-Range"), "bytes %d-%d/%d", &start, &end, &size); n == 3 && w.wrongRange {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start+sector, end+sector, size))
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *damagedWriter) Write(p []byte) (n int, err error) {
	const piece = 16 << 10 // how finely a rate is kept
	for len(p) > 0 && err == nil {
		var m int
		m, err = w.write(p[:min(piece, len(p))])
		n, p = n+m, p[m:]
	}
	return n, err
}

func (w *damagedWriter) write(p []byte) (int, error) {
	all := len(p)
	if w.end >= 0 {
		p = p[:min(int64(all), max(0, w.end-w.sent))]
	}
	left := int64(len(p)) + 1
	for _, at := range w.cutAt {
		if at >= w.off {
			left = min(left, at-w.off)
		}
	}
	for _, after := range w.cutAfter {
		left = min(left, after-w.sent)
	}
	cut := left < int64(len(p)) || left == 0 && all > 0
	p = slices.Clone(p[:min(left, int64(len(p)))])
	for _, at := range w.flipAt {
		if i := at - w.off; i >= 0 && i < int64(len(p)) {
			p[i] ^= 0xff
		}
	}
	for _, l := range w.limits {
		if !l.wait(w.ctx, len(p)) {
			return 0, context.Cause(w.ctx)
		}
	}
	n, err := w.ResponseWriter.Write(p)
	w.off, w.sent = w.off+int64(n), w.sent+int64(n)
	if err != nil {
		return n, err
	}
	if cut {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // what was sent is to arrive
		if w.stall {
			<-w.ctx.Done()
		}
		panic(http.ErrAbortHandler)
	}
	return all, nil
}

// rangeStart is the first byte that an answer has, from its Content-Range.
func rangeStart(h http.Header) (int64, bool) {
	spec, ok := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	if !ok {
		return 0, false
	}
	first, _, _ := strings.Cut(spec, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil
}
