package inflate

import "math/bits"

const (
	maxLit  = 288 // literal and length symbols, with the two that only the fixed code names
	maxDist = 32  // likewise distances
	maxCode = 15  // bits of the longest code

	maxDistBits = 15 + 13 // of the longest distance, extra bits included

	// A table is looked up with this many bits; longer codes go on in a subtable behind it. The sizes
	// are powers of two above the largest sum of tables (2,342 for 288 symbols and 11 bits, 592 for 32
	// and 9, both as zlib's `enough` counts them), so that a masked index is known to be inside.
	litBits, litSize   = 11, 4096
	distBits, distSize = 9, 1024
	preBits, preSize   = 7, 128
)

// A table entry holds all that there is to know of the code that it was looked up with:
//
//	bits 0-5    how many bits to take, extra bits included
//	bits 8-11   how many of them are the code; in a pointer to a subtable, the bits of its index
//	bits 16-30  the literal, the base of the length or distance, or the index of the subtable
//
// and four flags. An entry that is special and nothing else is a code that does not exist.
const (
	literal    = 1 << 31
	special    = 1 << 15
	subtable   = 1 << 14
	endOfBlock = 1 << 13
)

// Entries by symbol, but for the length of its code.
var (
	litEntry  = litEntries()
	distEntry = distEntries()
	preEntry  = preEntries()
)

// preOrder is the order in which the lengths of the code of lengths are stored.
var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

func litEntries() (t [maxLit]uint32) {
	for i := range 256 {
		t[i] = literal | uint32(i)<<16
	}
	t[256] = special | endOfBlock
	base := uint32(3)
	for i := range 28 {
		n := uint32(max(i/4-1, 0))
		t[257+i] = base<<16 | n
		base += 1 << n
	}
	t[285] = 258 << 16
	t[286], t[287] = special, special
	return t
}

func distEntries() (t [maxDist]uint32) {
	base := uint32(1)
	for i := range 30 {
		n := uint32(max(i/2-1, 0))
		t[i] = base<<16 | n
		base += 1 << n
	}
	t[30], t[31] = special, special
	return t
}

func preEntries() (t [19]uint32) {
	for i := range t {
		t[i] = uint32(i) << 16
	}
	return t
}

// fixedCodes builds the tables of RFC 1951, 3.2.6, unless they are there.
func (d *Decoder) fixedCodes() {
	if d.fixed {
		return
	}
	l := &d.lens
	for i := range maxLit {
		switch {
		case i < 144, i >= 280:
			l[i] = 8
		case i < 256:
			l[i] = 9
		default:
			l[i] = 7
		}
	}
	for i := range maxDist {
		l[maxLit+i] = 5
	}
	d.build(d.lit[:], litBits, l[:maxLit], litEntry[:])
	d.build(d.dist[:], distBits, l[maxLit:maxLit+maxDist], distEntry[:])
	d.fixed = true
}

// codes reads the codes that a dynamic block begins with (RFC 1951, 3.2.7) and builds their tables.
func (d *Decoder) codes(s *stream) error {
	d.fixed = false
	s.fill()
	if s.nbits < 14 {
		return ErrCorrupt
	}
	nlit, ndist, npre := int(s.bits&31)+257, int(s.bits>>5&31)+1, int(s.bits>>10&15)+4
	s.drop(14)
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	var lens [19]uint8
	for _, at := range preOrder[:npre] {
		if s.nbits < 3 {
			if s.fill(); s.nbits < 3 {
				return ErrCorrupt
			}
		}
		lens[at] = uint8(s.bits & 7)
		s.drop(3)
	}
	if d.build(d.pre[:], preBits, lens[:], preEntry[:]) != complete {
		return ErrCorrupt
	}
	if err := d.lengths(s, nlit+ndist); err != nil {
		return err
	}
	lit, dist := d.lens[:nlit], d.lens[nlit:nlit+ndist]
	if lit[256] == 0 || d.build(d.lit[:], litBits, lit, litEntry[:]) == refused ||
		d.build(d.dist[:], distBits, dist, distEntry[:]) == refused {
		return ErrCorrupt
	}
	return nil
}

// lengths reads n code lengths into d.lens.
func (d *Decoder) lengths(s *stream, n int) error {
	for i := 0; i < n; {
		if s.nbits < 7+7 {
			s.fill()
		}
		e := d.pre[s.bits&(1<<preBits-1)]
		take := uint(e & 63)
		sym := e >> 16
		saved := s.bits >> take
		var value uint8
		var run int
		switch sym {
		default:
			if take > s.nbits {
				return ErrCorrupt
			}
			s.drop(take)
			d.lens[i] = uint8(sym)
			i++
			continue
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, run, take = d.lens[i-1], 3+int(saved&3), take+2
		case 17:
			run, take = 3+int(saved&7), take+3
		case 18:
			run, take = 11+int(saved&127), take+7
		}
		if take > s.nbits || run > n-i {
			return ErrCorrupt
		}
		s.drop(take)
		for j := range run {
			d.lens[i+j] = value
		}
		i += run
	}
	return nil
}

// fullness says how much of its space a set of code lengths uses.
type fullness uint8

const (
	refused  fullness = iota // too much, or too little
	complete                 // all of it
	single                   // none, or half of it by one code of one bit
)

// build makes the decoding table of the canonical code with these lengths (RFC 1951, 3.2.2). Codes
// are visited in their own order, shortest first, and a table grows by doubling: the entries of all
// codes of up to n bits fill its first 2^n places, and their copy the next.
func (d *Decoder) build(table []uint32, tableBits uint, lens []uint8, entries []uint32) fullness {
	var count [maxCode + 1]uint16
	for _, n := range lens {
		count[n&15]++
	}
	longest := uint(maxCode)
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	var next [maxCode + 1]uint16 // where in order the symbols of a length go
	space := 0
	for n := uint(1); n <= longest; n++ {
		next[n] = next[n-1] + count[n-1]
		space = space<<1 + int(count[n])
	}
	for sym, n := range lens {
		d.order[next[n&15]&511] = uint16(sym)
		next[n&15]++
	}
	order := d.order[count[0]:len(lens)]
	switch {
	case space == 1<<longest && longest > 0:
		fill(table, tableBits, longest, &count, order, entries)
		return complete
	case space == 0, longest == 1 && space == 1:
		for i := range table[:1<<tableBits] {
			table[i] = special
			if space == 1 && i&1 == 0 {
				table[i] = entries[order[0]] + 1<<8 + 1
			}
		}
		return single
	}
	return refused
}

// fill lays out a complete code: order holds its symbols by length and then by value.
func fill(table []uint32, tableBits, longest uint, count *[maxCode + 1]uint16, order []uint16, entries []uint32) {
	code, end := uint(0), 0 // code is bit-reversed, as deflate stores it; end: what is filled
	n := uint(1)
	for end = 2; n <= min(tableBits, longest); n++ {
		step := uint32(n<<8 | n)
		for range count[n] {
			table[code] = entries[order[0]] + step
			order = order[1:]
			code = following(code, n)
		}
		if n < tableBits {
			copy(table[end:2*end], table[:end])
			end *= 2
		}
	}
	for ; end < 1<<tableBits; end *= 2 {
		copy(table[end:2*end], table[:end])
	}
	// Codes longer than the table share a prefix of tableBits, which points to a subtable.
	prefix, start, size := ^uint(0), uint(1)<<tableBits, uint(0)
	left := uint(0)
	for ; n <= longest; n++ {
		step := uint32((n-tableBits)<<8 | (n - tableBits))
		for left = uint(count[n]); left > 0; left-- {
			if p := code & (1<<tableBits - 1); p != prefix {
				prefix = p
				start += size
				wide := subBits(n, tableBits, left, count)
				size = 1 << wide
				table[prefix] = uint32(start<<16|wide<<8|tableBits) | special | subtable
			}
			e := entries[order[0]] + step
			order = order[1:]
			for i := code >> tableBits; i < size; i += 1 << (n - tableBits) {
				table[start+i] = e
			}
			code = following(code, n)
		}
	}
}

// subBits is how many bits index a subtable whose first code has n bits, with left codes of that
// length still to come: as many as the longest code that shares its prefix.
func subBits(n, tableBits, left uint, count *[maxCode + 1]uint16) uint {
	wide := n - tableBits
	for used := left; used < 1<<wide; {
		wide++
		used = used<<1 + uint(count[tableBits+wide])
	}
	return wide
}

// following is the canonical code after code, both of n bits and reversed: the highest bit that is
// clear is set, and those above it cleared. After the last one it is 0.
func following(code, n uint) uint {
	clear := ^code & (1<<n - 1)
	if clear == 0 {
		return 0
	}
	bit := uint(1) << (bits.Len(clear) - 1)
	return code&(bit-1) | bit
}
