package cbt

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"
)

// Range is a stretch of a disk, in bytes.
type Range struct{ Off, Len int64 }

// End is the offset of the first byte behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Set is a set of bytes of a disk, kept as ranges that ascend and do not touch. The zero Set is empty.
// Methods that answer a Set leave their own alone and share nothing with it; a copy of the struct shares
// its ranges, so only one of both may be added to ([Set.Clone]). Memory is 16 bytes a range.
type Set struct{ ranges []Range }

// Collect is the set of ranges that come in any order and may overlap.
func Collect(ranges iter.Seq[Range]) (Set, error) {
	var all []Range
	for r := range ranges {
		if err := r.valid(); err != nil {
			return Set{}, err
		}
		if r.Len > 0 {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	return Set{joined(all, 0)}, nil
}

// Whole is the set of all bytes of a disk of size bytes.
func Whole(size int64) Set {
	if size <= 0 {
		return Set{}
	}
	return Set{[]Range{{0, size}}}
}

func (r Range) valid() error {
	if r.Off < 0 || r.Len < 0 || r.Off > math.MaxInt64-r.Len {
		return fmt.Errorf("no range of a disk: %d bytes at %d", r.Len, r.Off)
	}
	return nil
}

// joined joins ranges that ascend and are at most gap bytes apart, in place.
func joined(all []Range, gap int64) []Range {
	out := all[:0]
	for _, r := range all {
		if l := len(out); l > 0 && r.Off-out[l-1].End() <= gap {
			out[l-1].Len = max(out[l-1].Len, r.End()-out[l-1].Off)
			continue
		}
		out = append(out, r)
	}
	return slices.Clip(out)
}

// Add adds n bytes from off on. It is cheap where ranges ascend; of many that do not, use [Collect]. A
// range that cannot be is an error, never ignored: what is missing in a set of changes is lost.
func (s *Set) Add(off, n int64) error {
	r := Range{off, n}
	if err := r.valid(); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	// Those that r touches become one with it.
	lo := sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].End() >= off })
	hi := lo
	for end := r.End(); hi < len(s.ranges) && s.ranges[hi].Off <= end; hi++ {
		r.Off = min(r.Off, s.ranges[hi].Off)
		end = max(end, s.ranges[hi].End())
		r.Len = end - r.Off
	}
	s.ranges = slices.Replace(s.ranges, lo, hi, r)
	return nil
}

// Clone is a set of its own.
func (s Set) Clone() Set { return Set{slices.Clone(s.ranges)} }

// All yields the ranges, ascending.
func (s Set) All() iter.Seq[Range] { return slices.Values(s.ranges) }

// Len is the number of ranges.
func (s Set) Len() int { return len(s.ranges) }

// Bytes is the number of bytes in the set.
func (s Set) Bytes() int64 {
	var n int64
	for _, r := range s.ranges {
		n += r.Len
	}
	return n
}

// End is the offset of the first byte behind the last range.
func (s Set) End() int64 {
	if len(s.ranges) == 0 {
		return 0
	}
	return s.ranges[len(s.ranges)-1].End()
}

// Equal says whether both hold the same bytes.
func (s Set) Equal(o Set) bool { return slices.Equal(s.ranges, o.ranges) }

// find is the index of the first range that ends behind off.
func (s Set) find(off int64) int {
	return sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].End() > off })
}

// within yields the parts of the ranges that lie in [off, end).
func (s Set) within(off, end int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for i := s.find(off); i < len(s.ranges) && s.ranges[i].Off < end; i++ {
			lo, hi := max(s.ranges[i].Off, off), min(s.ranges[i].End(), end)
			if !yield(Range{lo, hi - lo}) {
				return
			}
		}
	}
}

// Covers says whether all n bytes from off on are in the set.
func (s Set) Covers(off, n int64) bool {
	if n <= 0 {
		return true
	}
	i := s.find(off)
	return i < len(s.ranges) && s.ranges[i].Off <= off && s.ranges[i].End()-off >= n
}

// Touches says whether any of the n bytes from off on is in the set.
func (s Set) Touches(off, n int64) bool {
	i := s.find(off)
	return n > 0 && i < len(s.ranges) && s.ranges[i].Off < off+n
}

// Clip is what lies among the n bytes from off on.
func (s Set) Clip(off, n int64) Set {
	if n <= 0 || off > math.MaxInt64-n {
		return Set{}
	}
	return Set{slices.Collect(s.within(off, off+n))}
}

// Union is what is in either.
func (s Set) Union(o Set) Set {
	all := make([]Range, 0, len(s.ranges)+len(o.ranges))
	a, b := s.ranges, o.ranges
	for len(a) > 0 && len(b) > 0 {
		if a[0].Off <= b[0].Off {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return Set{joined(append(append(all, a...), b...), 0)}
}

// Subtract is what is in s and not in o.
func (s Set) Subtract(o Set) Set {
	var out []Range
	j := 0
	for _, r := range s.ranges {
		at := r.Off
		for ; j < len(o.ranges) && o.ranges[j].End() <= at; j++ {
		}
		for k := j; k < len(o.ranges) && o.ranges[k].Off < r.End(); k++ {
			if o.ranges[k].Off > at {
				out = append(out, Range{at, o.ranges[k].Off - at})
			}
			at = o.ranges[k].End()
		}
		if at < r.End() {
			out = append(out, Range{at, r.End() - at})
		}
	}
	return Set{out}
}

// Coalesce joins ranges that are at most gap bytes apart: where asking once more costs more than
// reading what lies between.
func (s Set) Coalesce(gap int64) Set { return Set{joined(slices.Clone(s.ranges), max(gap, 0))} }

// Align widens the ranges to whole blocks of a disk of size bytes, whose last block may be short; what
// lies behind its end falls away. A View is aligned to the blocks of what it is written to.
func (s Set) Align(block, size int64) Set {
	if block <= 0 || size <= 0 {
		return Set{}
	}
	out := make([]Range, 0, len(s.ranges))
	for r := range s.within(0, size) {
		lo, hi := r.Off-r.Off%block, r.End()
		if rest := hi % block; rest > 0 {
			hi = min(hi-rest+min(block, math.MaxInt64-(hi-rest)), size)
		}
		out = append(out, Range{lo, hi - lo})
	}
	return Set{joined(out, 0)}
}
