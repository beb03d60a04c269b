package formats_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// byDefinition computes the content digest as its comment defines it.
func byDefinition(b []byte) formats.Digest {
	var leaves [][]byte
	for at := 0; at < len(b); at += 1 << 20 {
		s := sha256.Sum256(b[at:min(at+1<<20, len(b))])
		leaves = append(leaves, s[:])
	}
	for len(leaves) > 1 {
		var up [][]byte
		for i := 0; i < len(leaves); i += 2 {
			if i+1 == len(leaves) {
				up = append(up, leaves[i])
				continue
			}
			s := sha256.Sum256(append(append([]byte{1}, leaves[i]...), leaves[i+1]...))
			up = append(up, s[:])
		}
		leaves = up
	}
	top := make([]byte, 32)
	if len(leaves) == 1 {
		top = leaves[0]
	}
	in := binary.BigEndian.AppendUint64([]byte("hypersdk disk\x00"), uint64(len(b)))
	return sha256.Sum256(append(in, top...))
}

func TestDigestIsWhatItsDefinitionSays(t *testing.T) {
	for _, size := range []int64{0, 1, 1 << 20, 1<<20 + 1, 3 << 20, 7<<20 + 5, 13 << 20, 130 << 20} {
		b := content(uint64(size), size)
		got := truth(t, b)
		require.Equal(t, byDefinition(b), got, "%d bytes", size)
		back, err := formats.ParseDigest(got.String())
		require.NoError(t, err)
		require.Equal(t, got, back)
	}
	for _, s := range []string{"", "sha256-1m:", "sha256-1m:zz", "sha256:" + fmt.Sprintf("%064d", 0), "sha256-1m:" + fmt.Sprintf("%066d", 0)} {
		_, err := formats.ParseDigest(s)
		require.Error(t, err, s)
	}
}

func TestDigestsSurviveACrashAndTellRot(t *testing.T) {
	const size = 50_000<<20 + 1 // more pages than are held in memory
	f := &memFile{}
	d, err := formats.CreateDigests(f, size)
	require.NoError(t, err)
	sum := func(i int64) formats.Sum { return sha256.Sum256(fmt.Append(nil, i)) }
	for i := range d.Blocks() {
		require.NoError(t, d.Put(i, sum(i)))
	}
	_, ok, err := d.Sum(7)
	require.NoError(t, err)
	require.True(t, ok)
	require.Error(t, d.Put(d.Blocks(), sum(1)))
	root, err := d.Seal()
	require.NoError(t, err)

	again, err := formats.OpenDigests(f.crash())
	require.NoError(t, err)
	sealed, ok := again.Sealed()
	require.True(t, ok)
	require.Equal(t, root, sealed)
	for _, i := range []int64{0, 126, 127, 25_000, again.Blocks() - 1} {
		s, ok, err := again.Sum(i)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, sum(i), s)
	}

	rotten := f.crash()
	rotten.b[4096*3+100] ^= 1
	again, err = formats.OpenDigests(rotten)
	require.NoError(t, err)
	_, err = again.Root()
	require.ErrorIs(t, err, formats.ErrCorrupt)

	head := f.crash()
	head.b[13] ^= 1
	_, err = formats.OpenDigests(head)
	require.ErrorIs(t, err, formats.ErrCorrupt)
	_, err = formats.OpenDigests(&memFile{b: f.b[:100]})
	require.ErrorIs(t, err, formats.ErrCorrupt)
}

func TestDigestsKnowWhatIsMissing(t *testing.T) {
	d := digests(t, 3<<20)
	require.NoError(t, d.Put(0, formats.Sum{1}))
	require.NoError(t, d.Put(2, formats.Sum{1}))
	_, ok, err := d.Sum(1)
	require.NoError(t, err)
	require.False(t, ok)
	_, err = d.Seal()
	require.ErrorIs(t, err, formats.ErrAbsent)
}

func TestJournal(t *testing.T) {
	f := &memFile{}
	j, from, err := formats.OpenJournal(f, "snapshot-1 raw 100")
	require.NoError(t, err)
	require.Zero(t, from)
	for i := range int64(5) {
		require.NoError(t, j.Record(formats.Checkpoint{Off: i, Token: fmt.Sprint("t", i)}))
	}

	_, from, err = formats.OpenJournal(f.crash(), "snapshot-1 raw 100")
	require.NoError(t, err)
	require.Equal(t, formats.Checkpoint{Off: 4, Token: "t4"}, from)

	t.Run("a torn slot costs one checkpoint", func(t *testing.T) {
		for slot := range 2 {
			torn := f.crash()
			torn.b[slot*4096+30] ^= 1
			_, from, err := formats.OpenJournal(torn, "snapshot-1 raw 100")
			require.NoError(t, err)
			require.Contains(t, []int64{3, 4}, from.Off)
		}
	})
	t.Run("both slots gone: from the beginning", func(t *testing.T) {
		torn := f.crash()
		torn.b[30] ^= 1
		torn.b[4096+30] ^= 1
		_, from, err := formats.OpenJournal(torn, "snapshot-1 raw 100")
		require.NoError(t, err)
		require.Zero(t, from)
	})
	t.Run("another copy: from the beginning, for good", func(t *testing.T) {
		other := f.crash()
		_, from, err := formats.OpenJournal(other, "snapshot-2 raw 100")
		require.NoError(t, err)
		require.Zero(t, from)
		_, from, err = formats.OpenJournal(other, "snapshot-1 raw 100")
		require.NoError(t, err)
		require.Zero(t, from, "the file was given away")
	})
	t.Run("an entry that does not fit is refused", func(t *testing.T) {
		require.Error(t, j.Record(formats.Checkpoint{Token: fmt.Sprintf("%5000d", 1)}))
	})
}

func FuzzJournal(f *testing.F) {
	f.Add(make([]byte, 8192))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, err := formats.OpenJournal(&memFile{b: b}, "x")
		require.NoError(t, err)
	})
}

func FuzzDigests(f *testing.F) {
	m := &memFile{}
	d, err := formats.CreateDigests(m, 5<<20)
	require.NoError(f, err)
	require.NoError(f, d.Put(1, formats.Sum{1}))
	require.NoError(f, d.Flush())
	f.Add(m.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := formats.OpenDigests(&memFile{b: b})
		if err == nil && d.Blocks() < 1000 {
			_, _ = d.Root()
		}
	})
}
