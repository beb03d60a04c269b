package raw

import "slices"

// maxSpans bounds the memory of spans. A copy in order has one; a few more per goroutine when they
// overtake each other.
const maxSpans = 4096

// spans is a set of offsets: what was written. It may hold more than was added, never less.
type spans struct {
	all []span // ascending, not touching
}

type span struct{ off, end int64 }

// add takes [off, end) in.
func (s *spans) add(off, end int64) {
	if off >= end {
		return
	}
	i := s.at(off)
	j := i
	for ; j < len(s.all) && s.all[j].off <= end; j++ {
		off, end = min(off, s.all[j].off), max(end, s.all[j].end)
	}
	s.all = slices.Replace(s.all, i, j, span{off, end})
	if len(s.all) > maxSpans {
		s.all[1].off = s.all[0].off
		s.all = slices.Delete(s.all, 0, 1)
	}
}

// touch says whether some of [off, end) may be in the set.
func (s *spans) touch(off, end int64) bool {
	i := s.at(off)
	for ; i < len(s.all) && s.all[i].off < end; i++ {
		if s.all[i].end > off {
			return true
		}
	}
	return false
}

// at is the index of the first span that ends at off or behind it.
func (s *spans) at(off int64) int {
	i, _ := slices.BinarySearchFunc(s.all, off, func(a span, off int64) int {
		switch {
		case a.end < off:
			return -1
		case a.end > off:
			return 1
		}
		return 0
	})
	return i
}
