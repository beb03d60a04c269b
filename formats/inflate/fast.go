package inflate

import "encoding/binary"

const (
	// srcSpare is how much input one turn of the fast loop may touch: the fill before a distance and
	// the one behind it take seven bytes at most, each by a load of eight.
	srcSpare = 16
	// dstSpare is how much output it may touch: three literals, the longest match, and what its copy
	// in steps of 16 bytes writes past its end.
	dstSpare = 3 + 258 + 15
)

// fast decodes symbols while both buffers have room to spare, and answers whether it met the end of
// the block. It is one long function so that its state stays in registers.
//
// The entry for the next symbol is always looked up before it is needed, in particular before a match
// is copied, so that the two run side by side. A fill leaves 56 bits or more: enough for two literals
// that the first table knows (11 bits each) and a length (20) with 14 bits to begin a distance, or for
// three literals and the look-up behind them.
func (d *Decoder) fast(s *stream) (done bool, err error) {
	dst, src := s.dst, s.src
	o, p, b, n := s.o, s.p, s.bits, s.nbits
	if o+dstSpare > len(dst) || p+srcSpare > len(src) {
		return false, nil
	}
	b, p, n = refill(src, p, b, n)
	e := d.lit[b&(1<<litBits-1)]
	for o+dstSpare <= len(dst) && p+srcSpare <= len(src) {
		if e&literal != 0 {
			b >>= e & 63
			n -= uint(e)
			dst[o] = byte(e >> 16)
			o++
			e = d.lit[b&(1<<litBits-1)]
			if e&literal != 0 {
				b >>= e & 63
				n -= uint(e)
				dst[o] = byte(e >> 16)
				o++
				e = d.lit[b&(1<<litBits-1)]
				if e&literal != 0 {
					b >>= e & 63
					n -= uint(e)
					dst[o] = byte(e >> 16)
					o++
					b, p, n = refill(src, p, b, n)
					e = d.lit[b&(1<<litBits-1)]
					continue
				}
			}
		}
		if e&special != 0 {
			if e&subtable != 0 {
				b >>= litBits
				n -= litBits
				e = d.lit[(uint64(e>>16)+b&(1<<(e>>8&15)-1))&(litSize-1)]
			}
			switch {
			case e&literal != 0:
				b >>= e & 63
				n -= uint(e)
				dst[o] = byte(e >> 16)
				o++
				b, p, n = refill(src, p, b, n)
				e = d.lit[b&(1<<litBits-1)]
				continue
			case e&endOfBlock != 0:
				s.o, s.p, s.bits, s.nbits = o, p, b>>(e&63), (n-uint(e))&63
				return true, nil
			case e&special != 0:
				return false, ErrCorrupt
			}
		}
		length := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&63))
		b >>= e & 63
		n -= uint(e)
		if n&63 < maxDistBits {
			b, p, n = refill(src, p, b, n)
		}
		e = d.dist[b&(1<<distBits-1)]
		if e&special != 0 {
			if e&subtable == 0 {
				return false, ErrCorrupt
			}
			b >>= distBits
			n -= distBits
			e = d.dist[(uint64(e>>16)+b&(1<<(e>>8&15)-1))&(distSize-1)]
			if e&special != 0 {
				return false, ErrCorrupt
			}
		}
		back := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&63))
		b >>= e & 63
		n -= uint(e)
		if back > o {
			return false, ErrCorrupt
		}
		b, p, n = refill(src, p, b, n)
		e = d.lit[b&(1<<litBits-1)]

		end := o + length
		from := o - back
		switch {
		case back >= 8:
			for ; o < end; o += 16 {
				to, at := (*[16]byte)(dst[o:o+16:o+16]), (*[16]byte)(dst[from:from+16:from+16])
				binary.LittleEndian.PutUint64(to[:8], binary.LittleEndian.Uint64(at[:8]))
				binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(at[8:]))
				from += 16
			}
		case back == 1:
			run := uint64(dst[from]) * 0x0101010101010101
			for ; o < end; o += 8 {
				binary.LittleEndian.PutUint64(dst[o:o+8:o+8], run)
			}
		default:
			for ; o < end; o++ {
				dst[o] = dst[o-back]
			}
		}
		o = end
	}
	s.o, s.p, s.bits, s.nbits = o, p, b, n&63
	return false, nil
}

// refill tops the bits up to 56 or more by one load. Of n only the low six bits count: what is
// subtracted from it is a whole table entry.
func refill(src []byte, p int, b uint64, n uint) (uint64, int, uint) {
	b |= binary.LittleEndian.Uint64(src[p:p+8:p+8]) << (n & 63)
	return b, p + int(^n&63>>3), n | 56
}
