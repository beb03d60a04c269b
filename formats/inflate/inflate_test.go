package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	"github.com/stretchr/testify/require"

	"hypersdk/formats/inflate"
)

// samples are blocks of every character: what a disk holds, and what a codec finds hard.
func samples(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, grain)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	skewed := make([]byte, grain) // a code with very long and very short members
	for i := range skewed {
		for b := byte(0); b < 40 && r.Uint32()&1 == 0; b++ {
			skewed[i] = b + 1
		}
	}
	periods := make([]byte, 0, grain) // every short distance, and lengths around the copy loop's steps
	for d := 1; d <= 40; d++ {
		for n := 1; n <= 40 && len(periods) < grain-80; n++ {
			periods = append(periods, random[n:n+d]...)
			for range n {
				periods = append(periods, periods[len(periods)-d])
			}
		}
	}
	m := map[string][]byte{
		"empty": {}, "one byte": {7}, "zeros": make([]byte, grain), "random": random, "skewed": skewed,
		"periods": periods, "text": []byte(strings.Repeat("a line of text, and another; ", 2000)),
		"far": append(bytes.Clone(random[:32768]), random[:32768]...),
	}
	for i, b := range corpus(t, 12) {
		m[fmt.Sprint("file ", i)] = b
	}
	return m
}

func TestInflateReadsWhatEncodersWrite(t *testing.T) {
	var d inflate.Decoder
	for name, plain := range samples(t) {
		for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
			for encoder, open := range map[string]func(io.Writer) io.WriteCloser{
				"stdlib":    func(w io.Writer) io.WriteCloser { z, _ := flate.NewWriter(w, level); return z },
				"klauspost": func(w io.Writer) io.WriteCloser { z, _ := kflate.NewWriter(w, level); return z },
			} {
				var packed bytes.Buffer
				w := open(&packed)
				_, err := w.Write(plain)
				require.NoError(t, err)
				require.NoError(t, w.Close())
				size := packed.Len()

				out := make([]byte, len(plain))
				for _, behind := range []int{0, 3, 100} {
					src := append(bytes.Clone(packed.Bytes()), bytes.Repeat([]byte{0xff}, behind)...)
					n, used, err := d.Inflate(out, src)
					require.NoError(t, err, "%s, %s level %d", name, encoder, level)
					require.True(t, bytes.Equal(plain, out[:n]), "%s, %s level %d", name, encoder, level)
					require.Equal(t, size, used)
				}
			}
		}
	}
}

func TestInflateTellsFullFromCorrupt(t *testing.T) {
	var d inflate.Decoder
	plain := samples(t)["file 0"]
	packed := deflated(t, [][]byte{plain}, 6)[0]
	for _, room := range []int{0, 1, 7, 300, 5000, len(plain) - 1} {
		n, _, err := d.Inflate(make([]byte, room), packed)
		require.ErrorIs(t, err, inflate.ErrFull)
		require.Equal(t, room, n)
	}
	out := make([]byte, len(plain)+1000)
	n, _, err := d.Inflate(out, packed)
	require.NoError(t, err)
	require.Equal(t, len(plain), n)
	for cut := range len(packed) {
		_, _, err := d.Inflate(out, packed[:cut])
		require.ErrorIs(t, err, inflate.ErrCorrupt, "cut at %d", cut)
	}
}

func TestInflateWritesOnlyWhatItSays(t *testing.T) {
	var d inflate.Decoder
	for name, plain := range samples(t) {
		packed := deflated(t, [][]byte{plain}, 6)[0]
		out := bytes.Repeat([]byte{0xa5}, len(plain)+4096)
		n, _, err := d.Inflate(out[:len(plain)], packed)
		require.NoError(t, err, name)
		require.Equal(t, len(plain), n, name)
		require.Equal(t, bytes.Repeat([]byte{0xa5}, 4096), out[len(plain):], name)
	}
}

// bitString packs a string of bits, first bit first, as deflate numbers them; blanks are ignored.
func bitString(s string) []byte {
	var out []byte
	i := 0
	for _, c := range s {
		if c == ' ' {
			continue
		}
		if i%8 == 0 {
			out = append(out, 0)
		}
		if c == '1' {
			out[i/8] |= 1 << (i % 8)
		}
		i++
	}
	return out
}

// dynamic is a block whose symbols have the lengths lit and dist, given by the code of lengths in which
// 0, 1, 2 and 15 have two bits each, or one in which a length that is missing is refused.
func dynamic(nlit, ndist int, lens []uint8, body string) []byte {
	rev := func(v, n int) (s string) {
		for i := range n {
			s += string(rune('0' + v>>i&1))
		}
		return s
	}
	// Lengths of the code of lengths in stored order: 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1 15.
	pre := map[int]int{0: 2, 1: 2, 2: 2, 15: 2}
	code := map[uint8]string{0: "00", 1: "01", 2: "10", 15: "11"}
	s := "1 01 " + rev(nlit-257, 5) + rev(ndist-1, 5) + rev(15, 4)
	for _, at := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		s += rev(pre[at], 3)
	}
	for _, n := range lens {
		s += code[n]
	}
	return bitString(s + body)
}

func TestInflateIsAsStrictAsZlib(t *testing.T) {
	lens := func(nlit, ndist int, set map[int]uint8) []uint8 {
		l := make([]uint8, nlit+ndist)
		for i, n := range set {
			l[i] = n
		}
		return l
	}
	for _, c := range []struct {
		name  string
		src   []byte
		valid bool
	}{
		{"nothing", nil, false},
		{"reserved kind of block", bitString("1 11 00000"), false},
		{"empty fixed block", bitString("1 10 0000000"), true},
		{"fixed literal symbol 286", bitString("1 10 11000110 00000000"), false},
		{"fixed distance 30", bitString("1 10 00110000 0000001 11110 0000000"), false},
		{"distance before the beginning", bitString("1 10 00110000 0000001 00001 0000000"), false},
		{"stored, its length contradicted", []byte{1, 1, 0, 0xff, 0xff, 9}, false},
		{"stored, cut short", []byte{1, 0, 1, 0xff, 0xfe, 9}, false},
		{"stored", []byte{1, 1, 0, 0xfe, 0xff, 9}, true},
		{"two codes", dynamic(257, 1, lens(257, 1, map[int]uint8{7: 1, 256: 1}), "0 0 1"), true},
		{"one code of one bit, the end", dynamic(257, 1, lens(257, 1, map[int]uint8{256: 1}), "0"), true},
		{"the bit that is no code", dynamic(257, 1, lens(257, 1, map[int]uint8{256: 1}), "1"), false},
		{"no end of block", dynamic(257, 1, lens(257, 1, map[int]uint8{1: 1, 2: 1}), "0 0 1 00000000"), false},
		{"incomplete literal code", dynamic(257, 1, lens(257, 1, map[int]uint8{7: 2, 256: 1}), "0"), false},
		{"incomplete literal code of one", dynamic(257, 1, lens(257, 1, map[int]uint8{256: 2}), "00"), false},
		{"over-subscribed", dynamic(257, 1, lens(257, 1, map[int]uint8{1: 1, 2: 1, 256: 1}), "1"), false},
		{"distance code of one bit", dynamic(258, 1, lens(258, 1, map[int]uint8{7: 1, 256: 2, 257: 2, 258: 1}), "0 11 0 10"), true},
		{"distance code of one bit, the other", dynamic(258, 1, lens(258, 1, map[int]uint8{7: 1, 256: 2, 257: 2, 258: 1}), "0 11 1 10"), false},
		{"incomplete distance code", dynamic(258, 1, lens(258, 1, map[int]uint8{7: 1, 256: 2, 257: 2, 258: 2}), "0 10"), false},
		{"no distance code, not used", dynamic(258, 1, lens(258, 1, map[int]uint8{7: 1, 256: 2, 257: 2}), "0 10"), true},
		{"no distance code, used", dynamic(258, 1, lens(258, 1, map[int]uint8{7: 1, 256: 2, 257: 2}), "0 11 0 10"), false},
		{"over-subscribed distances", dynamic(258, 3, lens(258, 3, map[int]uint8{256: 1, 257: 1, 258: 1, 259: 1, 260: 1}), "0"), false},
		{"too many literal symbols", dynamic(287, 1, lens(287, 1, map[int]uint8{7: 1, 256: 1}), "1"), false},
		{"too many distances", dynamic(257, 31, lens(257, 31, map[int]uint8{7: 1, 256: 1}), "1"), false},
	} {
		var d inflate.Decoder
		for _, behind := range []int{0, 64} { // the careful path, and the fast one
			src := append(bytes.Clone(c.src), make([]byte, behind)...)
			if c.src == nil {
				src = nil
			}
			n, _, err := d.Inflate(make([]byte, 1024), src)
			plain, stdErr := io.ReadAll(flate.NewReader(bytes.NewReader(src)))
			require.Equal(t, c.valid, stdErr == nil, "%s: the standard library says %v", c.name, stdErr)
			if !c.valid {
				require.ErrorIs(t, err, inflate.ErrCorrupt, c.name)
				continue
			}
			require.NoError(t, err, c.name)
			require.Equal(t, len(plain), n, c.name)
		}
	}
}

func TestZlibChecksHeadAndSum(t *testing.T) {
	plain := []byte(strings.Repeat("grain after grain ", 500))
	var packed bytes.Buffer
	w := zlib.NewWriter(&packed)
	_, err := w.Write(plain)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	good := packed.Bytes()

	var d inflate.Decoder
	out := make([]byte, len(plain))
	n, used, err := d.Zlib(out, append(bytes.Clone(good), 1, 2, 3))
	require.NoError(t, err)
	require.Equal(t, plain, out[:n])
	require.Equal(t, len(good), used)

	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   error
	}{
		"no head":             {func(b []byte) []byte { return b[:1] }, inflate.ErrCorrupt},
		"head check":          {func(b []byte) []byte { b[1] ^= 1; return b }, inflate.ErrCorrupt},
		"another method":      {func(b []byte) []byte { b[0], b[1] = 0x79, 0x9d; return b }, inflate.ErrCorrupt},
		"window above 32 KiB": {func(b []byte) []byte { b[0], b[1] = 0x88, 0x1c; return b }, inflate.ErrCorrupt},
		"a dictionary":        {func(b []byte) []byte { b[1] = 0xbb; return b }, inflate.ErrCorrupt},
		"sum cut":             {func(b []byte) []byte { return b[:len(b)-1] }, inflate.ErrCorrupt},
		"sum wrong":           {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, inflate.ErrSum},
	} {
		_, _, err := d.Zlib(out, c.change(bytes.Clone(good)))
		require.ErrorIs(t, err, c.want, name)
	}
}

func TestAdler32(t *testing.T) {
	all := bytes.Repeat([]byte{0xff}, 70000) // the sums' worst case
	for _, n := range []int{0, 1, 15, 16, 17, 5551, 5552, 5553, 5568, 65536, 70000} {
		require.Equal(t, adler32.Checksum(all[:n]), inflate.Adler32(all[:n]), n)
	}
	for name, b := range samples(t) {
		require.Equal(t, adler32.Checksum(b), inflate.Adler32(b), name)
	}
}

func TestInflateDoesNotAllocate(t *testing.T) {
	packed := deflated(t, [][]byte{samples(t)["file 0"]}, 6)[0]
	out := make([]byte, grain)
	var d inflate.Decoder
	require.Zero(t, testing.AllocsPerRun(20, func() { _, _, _ = d.Inflate(out, packed) }))
}

// FuzzInflate: accepts what the standard library accepts, with the same bytes; refuses the rest.
func FuzzInflate(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(deflated(f, [][]byte{b[:min(len(b), 3000)]}, 6)[0])
	}
	f.Add(bitString("1 10 00110000 0000001 00000 0000000"))
	var d inflate.Decoder
	f.Fuzz(func(t *testing.T, src []byte) {
		const room = 1 << 20
		in := bytes.NewReader(src)
		want, stdErr := io.ReadAll(io.LimitReader(flate.NewReader(in), room+1))
		out := make([]byte, min(len(want), room))
		n, used, err := d.Inflate(out, src)
		switch {
		case len(want) > room:
			if !errors.Is(err, inflate.ErrFull) || !bytes.Equal(out, want[:room]) {
				t.Fatalf("more than %d bytes: %v", room, err)
			}
		case stdErr != nil:
			if err == nil {
				t.Fatalf("accepted what the standard library refuses: %v", stdErr)
			}
		default:
			if err != nil || !bytes.Equal(out[:n], want) || used != len(src)-in.Len() {
				t.Fatalf("%v, %d bytes of %d, used %d of %d", err, n, len(want), used, len(src)-in.Len())
			}
			// With room behind both ends the fast loop decodes what the careful one did.
			wide := make([]byte, len(want)+512)
			n, _, err = d.Inflate(wide, append(bytes.Clone(src), make([]byte, 64)...))
			if err != nil || !bytes.Equal(wide[:n], want) {
				t.Fatalf("with room: %v", err)
			}
		}
	})
}

// FuzzAdler32 compares with the standard library.
func FuzzAdler32(f *testing.F) {
	f.Add([]byte("adler"), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, times uint16) {
		b = bytes.Repeat(b, int(times%512))
		sum := adler32.Checksum(b)
		if got := inflate.Adler32(b); got != sum {
			t.Fatalf("%x, not %x", binary.BigEndian.AppendUint32(nil, got), binary.BigEndian.AppendUint32(nil, sum))
		}
	})
}
