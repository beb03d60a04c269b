package inflate

import "encoding/binary"

// Adler32 is the checksum of RFC 1950 over b.
//
// Of n bytes b0, b1, … it needs their sum and the sum of (n-i)*bi. Both are gathered for 128 bytes at
// a time in 16-bit lanes, four to a word: per lane the running sum of its bytes, and the sum of those
// running sums, which counts the bytes of word j 16-j times. The remainders are taken once in a while:
// the sums have 64 bits.
func Adler32(b []byte) uint32 {
	const (
		mod   = 65521
		run   = 1 << 20 // 2^20 * 2^20 * 255 / 2 and what is left of the runs before fit easily
		step  = 128
		lanes = 0x00ff00ff00ff00ff
	)
	first, second := uint64(1), uint64(0)
	for len(b) > 0 {
		part := b[:min(len(b), run)]
		b = b[len(part):]
		for ; len(part) >= step; part = part[step:] {
			words := (*[step]byte)(part)
			var even, odd, evens, odds uint64
			for i := 0; i < step; i += 8 {
				w := binary.LittleEndian.Uint64(words[i : i+8])
				even += w & lanes
				odd += w >> 8 & lanes
				evens += even
				odds += odd
			}
			// Byte k of a word counts k less than the word; k is 2j in the even lanes, 2j+1 in the odd.
			sum := laneSum(even) + laneSum(odd)
			second += step*first + 8*(wideSum(evens)+wideSum(odds)) -
				2*(rankSum(even)+rankSum(odd)) - laneSum(odd)
			first += sum
		}
		for _, c := range part {
			first += uint64(c)
			second += first
		}
		first %= mod
		second %= mod
	}
	return uint32(second<<16 | first)
}

// laneSum adds four lanes that together fit one: the top lane of the product is their sum.
func laneSum(v uint64) uint64 { return v * 0x0001_0001_0001_0001 >> 48 }

// rankSum is 0, 1, 2 and 3 times the lanes, likewise.
func rankSum(v uint64) uint64 { return v * 0x0000_0001_0002_0003 >> 48 }

// wideSum adds four lanes whose sum needs more than 16 bits.
func wideSum(v uint64) uint64 {
	const pairs = 0x0000ffff_0000ffff
	v = v&pairs + v>>16&pairs
	return v&0xffffffff + v>>32
}
