package vhdx_test

import (
	"bytes"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

// entry is a log entry to be written, by the letter of [MS-VHDX] 2.3.1.
type entry struct {
	at       int64 // offset in the log
	sequence uint64
	tail     int64
	id       string // log GUID; "": that of the header
	flushed  int64
	last     int64
	writes   []logged
}

// logged is a write: 4 KiB of data, or zeros.
type logged struct {
	off   int64
	data  []byte
	zeros int64
}

func (e entry) bytes() []byte {
	heads := (64 + 32*len(e.writes) + 4095) / 4096
	b := make([]byte, heads*4096)
	for i, w := range e.writes {
		d := b[64+32*i:]
		le.PutUint64(d[16:], uint64(w.off))
		le.PutUint64(d[24:], e.sequence)
		if w.data == nil {
			copy(d, "zero")
			le.PutUint64(d[8:], uint64(w.zeros))
			continue
		}
		copy(d, "desc")
		copy(d[4:8], w.data[4092:])
		copy(d[8:16], w.data[:8])
		sector := bytes.Clone(w.data)
		copy(sector, "data")
		le.PutUint32(sector[4:], uint32(e.sequence>>32))
		le.PutUint32(sector[4092:], uint32(e.sequence))
		b = append(b, sector...)
	}
	id := e.id
	if id == "" {
		id = logID
	}
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(e.tail))
	le.PutUint64(b[16:], e.sequence)
	le.PutUint32(b[24:], uint32(len(e.writes)))
	copy(b[32:], guid(id))
	le.PutUint64(b[48:], uint64(e.flushed))
	le.PutUint64(b[56:], uint64(e.last))
	le.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// useLog writes entries into the log of an image, around its end where they reach it, and tells the
// headers that the log is in use. Lengths of the file that are not given are those of the image.
func useLog(img []byte, entries ...entry) []byte {
	img = bytes.Clone(img)
	for i := range 2 {
		header(img, i, func(h []byte) { copy(h[48:], guid(logID)) })
	}
	for _, e := range entries {
		if e.flushed == 0 {
			e.flushed = int64(len(img))
		}
		if e.last == 0 {
			e.last = int64(len(img))
		}
		for i, c := range e.bytes() {
			img[logAt+(e.at+int64(i))%mib] = c
		}
	}
	return img
}

// twoBlocks is a disk of three blocks, the first and the last of which are stored.
func twoBlocks() []byte {
	return spec{size: 3 * mib, blocks: map[int]stored{0: whole(1), 2: whole(2)}}.bytes()
}

const (
	block0 = dataAt       // where twoBlocks has its blocks
	block2 = dataAt + mib //
)

func page(b byte) []byte { return fill(b, 4096) }

func TestLogIsReplayedInMemory(t *testing.T) {
	// The first sector of the table with one entry changed: block 1 begins where block 0 does now.
	table := func(img []byte, block int, off int64, state uint64) []byte {
		b := bytes.Clone(img[batAt:][:4096])
		le.PutUint64(b[8*block:], uint64(off)|state)
		return b
	}
	odd := append([]byte("12345678"), append(fill('x', 4084), "abcd"...)...)
	base := twoBlocks()
	many := make([]logged, 200)
	for i := range many {
		many[i] = logged{off: block0 + int64(i)*4096, data: page(byte(i))}
	}
	for name, c := range map[string]struct {
		log  []entry
		want map[int64][]byte // of the disk
		qemu string           // why qemu 7.2 is not asked
	}{
		"data keeps its first and last bytes": {
			[]entry{{sequence: 1, writes: []logged{{off: block0 + 4096, data: odd}}}},
			map[int64][]byte{4096: odd, 0: page(1), 8192: page(1)},
			"",
		},
		"zeros": {
			[]entry{{sequence: 1, writes: []logged{{off: block0 + 8192, zeros: 12288}}}},
			map[int64][]byte{4096: page(1), 8192: fill(0, 12288), 20480: page(1)},
			"",
		},
		"the table": {
			[]entry{{sequence: 7, writes: []logged{{off: batAt, data: table(base, 1, block0, 6)}}}},
			map[int64][]byte{mib: page(1), 2 * mib: page(2)},
			"",
		},
		"the later write counts": {
			[]entry{
				{at: 0, sequence: 1, writes: []logged{{off: block0, data: page(8)}, {off: block0 + 4096, data: page(8)}, {off: block0 + 8192, zeros: 8192}}},
				{at: 12288, sequence: 2, writes: []logged{{off: block0, data: page(9)}, {off: block0 + 12288, data: page(7)}}},
			},
			map[int64][]byte{0: page(9), 4096: page(8), 8192: fill(0, 4096), 12288: page(7), 16384: page(1)},
			"",
		},
		"around the end of the log": {
			[]entry{{at: mib - 4096, sequence: 5, tail: mib - 4096, writes: []logged{{off: block0, data: page(8)}, {off: block0 + 4096, data: page(9)}}}},
			map[int64][]byte{0: page(8), 4096: page(9), 8192: page(1)},
			"",
		},
		"more descriptors than fit a sector": {
			[]entry{{sequence: 1, writes: many}},
			map[int64][]byte{0: page(0), 126 * 4096: page(126), 127 * 4096: page(127), 199 * 4096: page(199), 200 * 4096: page(1)},
			"it reads every sector of descriptors into the first",
		},
		"what the tail has left behind": {
			[]entry{
				{at: 0, sequence: 1, writes: []logged{{off: block0, data: page(8)}}},
				{at: 8192, sequence: 2, tail: 8192, writes: []logged{{off: block0 + 4096, data: page(9)}}},
			},
			map[int64][]byte{0: page(1), 4096: page(9)},
			"it replays from the first entry of the sequence on, wherever the tail is",
		},
		"of two sequences that with the higher number": {
			[]entry{
				{at: 0, sequence: 10, tail: 0, writes: []logged{{off: block0, data: page(8)}}},
				{at: 16384, sequence: 4, tail: 16384, writes: []logged{{off: block0 + 4096, data: page(9)}}},
				{at: 24576, sequence: 5, tail: 16384, writes: []logged{{off: block0 + 8192, data: page(9)}}},
			},
			map[int64][]byte{0: page(8), 4096: page(1), 8192: page(1)},
			"",
		},
		"not another file's entries": {
			[]entry{
				{at: 0, sequence: 1, writes: []logged{{off: block0, data: page(8)}}},
				{at: 8192, sequence: 2, id: parentID, writes: []logged{{off: block0, data: page(9)}}},
				{at: 65536, sequence: 99, tail: 65536, id: parentID, writes: []logged{{off: block0, data: page(9)}}},
			},
			map[int64][]byte{0: page(8)},
			"",
		},
		"an entry without a write": {
			[]entry{{sequence: 3}},
			map[int64][]byte{0: page(1), mib: page(0), 2 * mib: page(2)},
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := useLog(base, c.log...)
			before := bytes.Clone(b)
			img := inMemory.MustOpen(t, b, formats.OpenOptions{})
			for off, want := range c.want {
				require.True(t, bytes.Equal(want, formatstest.Peek(t, img, off, len(want))), "at %d", off)
			}
			formatstest.Map(t, img, 0, img.Size())
			require.True(t, bytes.Equal(before, b), "the file is not written")
			i, err := vhdx.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.True(t, i.LogInUse)
			rep, err := vhdx.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.Contains(t, rep.Warnings[0], "replayed")
			if c.qemu == "" {
				requireQemuReplays(t, b, img)
			}
		})
	}
}

// requireQemuReplays lets qemu replay the log for good, and compares.
func requireQemuReplays(t *testing.T, b []byte, img formats.Image) {
	t.Helper()
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-io is not installed: nothing to compare with (package qemu-utils)")
	}
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "vhdx", "-c", "read 0 512", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	formatstest.QemuConvert(t, "vhdx", path, "raw", raw)
	want, err := os.ReadFile(raw)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "qemu replays it otherwise")
}

func TestTornEntriesAreNoPartOfTheLog(t *testing.T) {
	first := entry{at: 0, sequence: 1, writes: []logged{{off: block0, data: page(8)}}}
	second := entry{at: 8192, sequence: 2, writes: []logged{{off: block0, data: page(9)}, {off: block0 + 4096, data: page(9)}}}
	for name, off := range map[string]int{
		"in its header":         8192 + 50,
		"in its signature":      8192,
		"in a descriptor":       8192 + 64 + 20,
		"in what follows them":  8192 + 2000,
		"in a sector of data":   8192 + 4096 + 700,
		"in a sector's number":  8192 + 2*4096 + 4095,
		"in a sector's head":    8192 + 2*4096 + 5,
		"in the last signature": 8192 + 2*4096,
	} {
		t.Run(name, func(t *testing.T) {
			b := useLog(twoBlocks(), first, second)
			require.Equal(t, page(9), formatstest.Peek(t, inMemory.MustOpen(t, b, formats.OpenOptions{}), 0, 4096))
			b[logAt+off] ^= 0x10
			img := inMemory.MustOpen(t, b, formats.OpenOptions{})
			require.Equal(t, page(8), formatstest.Peek(t, img, 0, 4096))
			require.Equal(t, page(1), formatstest.Peek(t, img, 4096, 4096))
		})
	}
}

func TestFileThatTheLogExtends(t *testing.T) {
	base := twoBlocks()
	table := bytes.Clone(base[batAt:][:4096])
	le.PutUint64(table[8:], uint64(len(base))|6)
	b := useLog(base, entry{sequence: 1, last: int64(len(base)) + mib, writes: []logged{
		{off: batAt, data: table}, {off: int64(len(base)) + 8192, data: page(5)}}})
	img := inMemory.MustOpen(t, b, formats.OpenOptions{})
	require.Equal(t, append(page(0), append(page(5), page(0)...)...), formatstest.Peek(t, img, mib+4096, 3*4096))
	require.Equal(t, page(0), formatstest.Peek(t, img, 2*mib-4096, 4096))
}

func TestLogsThatCannotBeReplayedAreRefused(t *testing.T) {
	base := twoBlocks()
	write := []logged{{off: block0, data: page(8)}}
	for name, c := range map[string]struct {
		image []byte
		is    error
		says  string
	}{
		"no entry":                 {useLog(base), formats.ErrCorrupt, "holds no valid sequence"},
		"only another file's":      {useLog(base, entry{sequence: 1, id: parentID, writes: write}), formats.ErrCorrupt, "holds no valid sequence"},
		"a tail that is gone":      {useLog(base, entry{sequence: 1, tail: 65536, writes: write}), formats.ErrCorrupt, "holds no valid sequence"},
		"a file cut short":         {useLog(base, entry{sequence: 1, flushed: 100 * mib, writes: write}), formats.ErrCorrupt, "it was cut short"},
		"a write at an odd place":  {useLog(base, entry{sequence: 1, writes: []logged{{off: block0 + 512, data: page(1)}}}), formats.ErrCorrupt, "a descriptor of 4096 bytes at 4194816"},
		"a write behind the end":   {useLog(base, entry{sequence: 1, writes: []logged{{off: 100 * mib, data: page(1)}}}), formats.ErrCorrupt, "a descriptor of 4096 bytes at 104857600"},
		"zeros behind the end":     {useLog(base, entry{sequence: 1, writes: []logged{{off: block0, zeros: 1 << 40}}}), formats.ErrCorrupt, "a descriptor of 1099511627776 bytes"},
		"zeros that overflow":      {useLog(base, entry{sequence: 1, writes: []logged{{off: block0, zeros: -4096}}}), formats.ErrCorrupt, "a descriptor of"},
		"zeros of an odd length":   {useLog(base, entry{sequence: 1, writes: []logged{{off: block0, zeros: 100}}}), formats.ErrCorrupt, "a descriptor of 100 bytes"},
		"a version not known":      {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint16(h[64:], 1) }), formats.ErrFormat, "log version 1"},
		"no room":                  {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint32(h[68:], 0) }), formats.ErrCorrupt, "log length 0"},
		"an odd length":            {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint32(h[68:], 4096) }), formats.ErrCorrupt, "log length 4096"},
		"longer than any":          {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint32(h[68:], 4095*mib) }), formats.ErrFormat, "log: 4293918720 bytes, at most"},
		"behind the end":           {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint64(h[72:], 100*mib) }), formats.ErrCorrupt, "log: 1048576 bytes at 104857600"},
		"an offset that overflows": {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint64(h[72:], 1<<64-mib) }), formats.ErrCorrupt, "log offset"},
		"in the header section":    {with(useLog(base, entry{sequence: 1, writes: write}), func(h []byte) { le.PutUint64(h[72:], 0) }), formats.ErrCorrupt, "log offset 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := inMemory.Open(t.Context(), c.image, formats.OpenOptions{})
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// with changes both headers.
func with(b []byte, change func(h []byte)) []byte {
	header(b, 0, change)
	header(b, 1, change)
	return b
}

// Whatever a log does, in whatever order, comes to what doing it comes to.
func TestAnyLogComesToWhatItsWritesComeTo(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		base := spec{size: 2 * mib, blocks: map[int]stored{0: whole(1), 1: whole(2)}}.bytes()
		want := bytes.Clone(base)
		var log []entry
		next := r.Int64N(256) * 4096
		tail := next
		for i := range 1 + r.IntN(8) {
			e := entry{at: next, sequence: uint64(100 + i), tail: tail}
			for range r.IntN(8) {
				page := int64(r.IntN(64))
				if r.IntN(3) == 0 {
					n := int64(r.IntN(20))
					e.writes = append(e.writes, logged{off: dataAt + page*4096, zeros: n * 4096})
					clear(want[dataAt+page*4096:][:n*4096])
					continue
				}
				data := make([]byte, 4096)
				for j := range data {
					data[j] = byte(r.Uint32())
				}
				e.writes = append(e.writes, logged{off: dataAt + page*4096, data: data})
				copy(want[dataAt+page*4096:], data)
			}
			next = (next + int64(len(e.bytes()))) % mib
			log = append(log, e)
		}
		img := inMemory.MustOpen(t, useLog(base, log...), formats.OpenOptions{})
		got := formatstest.Peek(t, img, 0, 2*mib)
		require.True(t, bytes.Equal(want[dataAt:][:2*mib], got))
		for range 20 { // and in pieces of any size
			off := r.IntN(2 * mib)
			n := r.IntN(2*mib - off)
			require.True(t, bytes.Equal(want[dataAt+off:][:n], formatstest.Peek(t, img, int64(off), n)))
		}
	}
}
