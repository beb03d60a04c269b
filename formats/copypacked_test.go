package formats_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

func TestCopyMovesPackedBlocks(t *testing.T) {
	const size = 10<<20 + 1000
	src := content(7, size)
	for _, sums := range []bool{false, true} {
		dst := newPackingWriter(size)
		dst.sums = sums
		res, err := formats.Copy(t.Context(), dst, packedImage{&memImage{b: src}, -1}, formats.CopyOptions{Digests: digests(t, size)})
		require.NoError(t, err)
		require.True(t, bytes.Equal(src, dst.b))
		require.Equal(t, truth(t, src), res.Digest)
		p := pack(src[:64<<10])
		if got, ok := dst.moved[0]; ok {
			require.Equal(t, p.Bytes, got.Bytes, "the block travelled as it was")
		}
	}
	t.Run("rotten", func(t *testing.T) {
		img := packedImage{&memImage{b: bytes.Repeat([]byte("some text "), size/10)}, 640 << 10}
		_, err := formats.Copy(t.Context(), newPackingWriter(img.Size()), img, formats.CopyOptions{})
		require.ErrorIs(t, err, formats.ErrCorrupt, "a rotten block fails, it does not travel")
		require.ErrorContains(t, err, "655360")
	})
	t.Run("to a plain target", func(t *testing.T) {
		dst := newWriter(size, 512)
		_, err := formats.Copy(t.Context(), dst, packedImage{&memImage{b: src}, -1}, formats.CopyOptions{})
		require.NoError(t, err)
		require.True(t, bytes.Equal(src, dst.b))
	})
}

// What lies behind the end of a packed block does not travel with it: where it goes, as in a VMDK,
// something else has to follow the block at once.
func TestCopyTrimsPackedBlocks(t *testing.T) {
	src := bytes.Repeat([]byte("some text of "), 640<<10/13+1)[:640<<10]
	padded := paddedImage{packedImage{&memImage{b: src}, -1}}
	stream := func() formats.Source {
		s := &chunkStream{size: int64(len(src)), end: io.EOF}
		for off := int64(0); off < s.size; off += 64 << 10 {
			p, n, err := padded.ReadPacked(t.Context(), off, nil)
			require.NoError(t, err)
			s.chunks = append(s.chunks, formats.Chunk{Off: off, Len: n, Packed: p})
		}
		return s
	}
	for name, from := range map[string]formats.Source{"an image": padded, "a stream": stream()} {
		t.Run(name, func(t *testing.T) {
			dst := newPackingWriter(int64(len(src)))
			_, err := formats.Copy(t.Context(), dst, from, formats.CopyOptions{})
			require.NoError(t, err)
			require.Len(t, dst.moved, 10)
			for off, got := range dst.moved {
				require.Equal(t, pack(src[off:off+64<<10]).Bytes, got.Bytes, "block at %d", off)
			}
		})
	}
}

// A stream may bring one block again and again, in more pieces than a window is kept in.
func TestCopyKeepsLittleOfAStreamThatRepeatsItself(t *testing.T) {
	s := &chunkStream{size: 4 << 20, end: io.EOF}
	for i := range 20000 {
		s.chunks = append(s.chunks, formats.Chunk{Off: int64(i%3) << 20, Len: 512, Data: bytes.Repeat([]byte{byte(i)}, 512)})
	}
	dst := newWriter(s.size, 512)
	res, err := formats.Copy(t.Context(), dst, s, formats.CopyOptions{})
	require.NoError(t, err)
	last := [3]byte{byte(19998 % 256), byte(19999 % 256), byte(19997 % 256)}
	for i, b := range last {
		require.Equal(t, bytes.Repeat([]byte{b}, 512), dst.b[i<<20:][:512])
		require.Equal(t, make([]byte, 512), dst.b[i<<20+512:][:512])
	}
	require.Less(t, len(res.Late), 10000)
}

func TestCopyStream(t *testing.T) {
	const size = 20<<20 + 65536*3
	src := content(8, size)
	other := content(9, size)
	r := rand.New(rand.NewPCG(1, 2))
	cases := map[string]func() []formats.Chunk{
		"in order": func() []formats.Chunk { return chunksOf(src) },
		"shuffled": func() []formats.Chunk {
			c := chunksOf(src)
			r.Shuffle(len(c), func(i, j int) { c[i], c[j] = c[j], c[i] })
			return c
		},
		"some twice, the last counts": func() []formats.Chunk {
			wrong := chunksOf(other)
			keep := wrong[:0]
			have := map[int64]bool{}
			for _, c := range chunksOf(src) {
				have[c.Off] = true
			}
			for _, c := range wrong {
				if have[c.Off] {
					keep = append(keep, c)
				}
			}
			return append(keep, chunksOf(src)...)
		},
	}
	for name, chunks := range cases {
		for _, dst := range []interface {
			formats.Writer
			bytes() []byte
		}{view{newWriter(size, 512)}, packingView{newPackingWriter(size)}, parallelView{parallelWriter{newWriter(size, 1)}}} {
			t.Run(fmt.Sprintf("%s/%T", name, dst), func(t *testing.T) {
				if _, parallel := dst.(parallelView); parallel && name != "in order" {
					t.Skip("the last chunk counts: such a target takes a stream only in order")
				}
				d := digests(t, size)
				res, err := formats.Copy(t.Context(), dst, &chunkStream{size, chunks(), io.EOF}, formats.CopyOptions{Digests: d})
				require.NoError(t, err)
				require.True(t, bytes.Equal(src, dst.bytes()))
				if len(res.Late) > 0 {
					require.Zero(t, res.Digest)
					require.NoError(t, formats.Redigest(t.Context(), &memImage{b: dst.bytes()}, d, res.Late))
					res.Digest, err = d.Root()
					require.NoError(t, err)
				}
				require.Equal(t, truth(t, src), res.Digest)
			})
		}
	}
	for name, s := range map[string]*chunkStream{
		"ends early":        {size, chunksOf(src)[:3], fmt.Errorf("no end marker: %w", formats.ErrCorrupt)},
		"behind the disk":   {1 << 20, []formats.Chunk{{Off: 1 << 20, Len: 512, Data: make([]byte, 512)}}, io.EOF},
		"negative":          {1 << 20, []formats.Chunk{{Off: -512, Len: 512, Data: make([]byte, 512)}}, io.EOF},
		"length overflow":   {1 << 20, []formats.Chunk{{Off: 512, Len: 1<<63 - 1}}, io.EOF},
		"shorter than said": {1 << 20, []formats.Chunk{{Off: 0, Len: 65536, Packed: pack(make([]byte, 100))}}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := formats.Copy(t.Context(), newWriter(s.size, 512), s, formats.CopyOptions{})
			require.ErrorIs(t, err, formats.ErrCorrupt)
		})
	}
}
