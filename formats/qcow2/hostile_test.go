package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

func TestExternalDataFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	formatstest.Qemu(t, "create", "-f", "qcow2", "-o", "data_file="+path+".data", path, "1M")
	_, err := open(t, path, formats.OpenOptions{})
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "external data file")
}

// small is an image of 64 KiB in clusters of 4 KiB: header, L1 table, refcount block, L2 table and data.
func small(t testing.TB, o formats.CreateOptions) []byte {
	t.Helper()
	o.ClusterSize = 4096
	f := formatstest.Harness{Format: qcow2.Format(), Options: o}.CreateDisk(t, formatstest.NewDisk(7, 64<<10)).(*formatstest.MemFile)
	b := make([]byte, f.Size())
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

// field is a number of the file that is replaced.
type field struct {
	off int64
	v   uint64
	n   int // bytes
}

func u32(off int64, v uint32) field { return field{off, uint64(v), 4} }
func u64(off int64, v uint64) field { return field{off, v, 8} }

func with(b []byte, fields ...field) []byte {
	b = bytes.Clone(b)
	for _, f := range fields {
		var v [8]byte
		binary.BigEndian.PutUint64(v[:], f.v)
		copy(b[f.off:], v[8-f.n:])
	}
	return b
}

const (
	l1At = 4096
	l2At = 3 * 4096
)

func TestLies(t *testing.T) {
	plain, zlib, zstd := small(t, formats.CreateOptions{}), small(t, formats.CreateOptions{Compression: "zlib"}), small(t, formats.CreateOptions{Compression: "zstd"})
	name := []byte("future")
	feature := with(plain, u64(72, 1<<60), u32(112, 0x6803f857), u32(116, 48), u32(120, 60<<16))
	copy(feature[122:], name)
	for says, c := range map[string]struct {
		file []byte
		err  error
	}{
		"no qcow2 image":                   {with(plain, u32(0, 0x514649fa)), formats.ErrFormat},
		"version 4":                        {with(plain, u32(4, 4)), formats.ErrFormat},
		"AES encryption":                   {with(plain, u32(32, 1)), formats.ErrFormat},
		"LUKS encryption":                  {with(plain, u32(32, 2)), formats.ErrFormat},
		"encryption method 3":              {with(plain, u32(32, 3)), formats.ErrFormat},
		"incompatible feature 60 \"future": {feature, formats.ErrFormat},
		"incompatible feature 61":          {with(plain, u64(72, 1<<61)), formats.ErrFormat},
		"compression type 2":               {with(zstd, field{104, 2, 1}), formats.ErrFormat},
		"compression type 1 contradicts":   {with(zstd, u64(72, 0)), formats.ErrCorrupt},
		"compression type 0 contradicts":   {with(zstd, field{104, 0, 1}), formats.ErrCorrupt},
		"cluster_bits is 8":                {with(plain, u32(20, 8)), formats.ErrCorrupt},
		"cluster_bits is 22":               {with(plain, u32(20, 22)), formats.ErrCorrupt},
		"cluster_bits is 4294967295":       {with(plain, u32(20, 0xffffffff)), formats.ErrCorrupt},
		"header_length is 96":              {with(plain, u32(100, 96)), formats.ErrCorrupt},
		"header_length is 4294967288":      {with(plain, u32(100, 0xfffffff8)), formats.ErrCorrupt},
		"refcount_order is 7":              {with(plain, u32(96, 7)), formats.ErrCorrupt},
		"size is 9223372036854775808":      {with(plain, u64(24, 1<<63)), formats.ErrCorrupt},
		"the L1 table has 1 entries":       {with(plain, u64(24, 3<<20)), formats.ErrCorrupt},
		"L1 table of 33554440 bytes":       {with(plain, u32(36, 4<<20+1)), formats.ErrCorrupt},
		"L1 table of 33554432 bytes":       {with(plain, u32(36, 4<<20)), formats.ErrCorrupt},
		"L1 table of 8 bytes at 4104":      {with(plain, u64(40, 4104)), formats.ErrCorrupt},
		"L1 table of 8 bytes at 0 ":        {with(plain, u64(40, 0)), formats.ErrCorrupt},
		"l1_table_offset":                  {with(plain, u64(40, 1<<63|4096)), formats.ErrCorrupt},
		"no refcount table":                {with(plain, u32(56, 0)), formats.ErrCorrupt},
		"refcount table of 17592186040320": {with(plain, u32(56, 0xffffffff)), formats.ErrCorrupt},
		"refcount table of 4096 bytes at":  {with(plain, u64(48, 1<<40)), formats.ErrCorrupt},
		"65537 snapshots":                  {with(plain, u32(60, 65537)), formats.ErrCorrupt},
		"snapshot table at 0":              {with(plain, u32(60, 1)), formats.ErrCorrupt},
		"backing file name of 1024 bytes":  {with(plain, u64(8, 200), u32(16, 1024)), formats.ErrCorrupt},
		"backing file name of 8 bytes":     {with(plain, u64(8, 1<<63), u32(16, 8)), formats.ErrCorrupt},
		"backing file name contains":       {with(plain, u64(8, 200), u32(16, 8)), formats.ErrCorrupt},
		"header extension 0x2 of 42949":    {with(plain, u32(112, 2), u32(116, 0xffffffff)), formats.ErrCorrupt},
		"bitmaps extension of 8 bytes":     {with(plain, u32(112, 0x23852875), u32(116, 8)), formats.ErrCorrupt},
		"extended L2 entries with":         {with(plain, u64(72, 16)), formats.ErrCorrupt},
		"L1 entry 0x8000000000003001":      {with(plain, u64(l1At, 1<<63|l2At|1)), formats.ErrCorrupt},
		"L1 entry 0x8000000000003200":      {with(plain, u64(l1At, 1<<63|l2At|512)), formats.ErrCorrupt},
		"behind the end of the file":       {with(plain, u64(l1At, 1<<63|1<<40)), formats.ErrCorrupt},
		"L2 entry 0x8000000000004200":      {with(plain, u64(l2At, 1<<63|4<<12|512)), formats.ErrCorrupt},
		"L2 entry 0x100000000004000":       {with(plain, u64(l2At, 1<<56|4<<12)), formats.ErrCorrupt},
		"stored at 1099511627776":          {with(plain, u64(l2At, 1<<63|1<<40)), formats.ErrCorrupt},
		"zero flag":                        {with(plain, u32(4, 2), u64(l2At, 1)), formats.ErrCorrupt},
		"inflate":                          {with(zlib, u64(l2At, 1<<62|4096)), formats.ErrCorrupt},
		"zstd: no whole frame":             {with(zstd, u64(l2At, 1<<62|4096)), formats.ErrCorrupt},
		"stored at 288230376151711743":     {with(zlib, u64(l2At, 1<<62|1<<58-1)), formats.ErrCorrupt},
	} {
		t.Run(says, func(t *testing.T) {
			err := readWhole(t.Context(), c.file)
			require.ErrorIs(t, err, c.err)
			require.ErrorContains(t, err, says)
		})
	}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return b
}

func TestLiesOfSnapshotsAndBitmaps(t *testing.T) {
	snapshots, bitmaps := testdata(t, "snapshots.qcow2"), testdata(t, "bitmaps.qcow2")
	require.NoError(t, readWhole(t.Context(), snapshots))
	require.NoError(t, readWhole(t.Context(), bitmaps))
	table := int64(binary.BigEndian.Uint64(snapshots[64:]))
	ext := int64(bytes.Index(bitmaps, []byte{0x23, 0x85, 0x28, 0x75}))
	dir := int64(binary.BigEndian.Uint64(bitmaps[ext+8+16:]))
	for says, file := range map[string][]byte{
		"L1 table of a snapshot of 16 bytes at 7": with(snapshots, u64(table, 7)),
		"disk of 65536 bytes, L1 table at 922337": with(snapshots, u64(table, 1<<63-1)),
		"L1 table of a snapshot of 34359738360":   with(snapshots, u32(table+8, 0xffffffff)),
		"the L1 table has 0 entries":              with(snapshots, u32(table+8, 0)),
		"1025 bytes of extra data":                with(snapshots, u32(table+36, 1025)),
		"disk of 4611686018427387905 bytes":       with(snapshots, u64(table+48, 1<<62+1)),
		"the table ends early":                    with(snapshots, u32(60, 65536), u64(64, uint64(len(snapshots)-len(snapshots)%512))),
		"snapshot table at 1099511627776":         with(snapshots, u64(64, 1<<40)),
		"directory of 65536 bitmaps":              with(bitmaps, u32(ext+8, 65536)),
		"bitmap directory of":                     with(bitmaps, u64(ext+8+16, uint64(dir+8))),
		"the directory ends early":                with(bitmaps, u32(ext+8, 100)),
		"a table of 0 entries":                    with(bitmaps, u32(dir+8, 0)),
		"bitmap table of 34359738360 bytes":       with(bitmaps, u32(dir+8, 0xffffffff)),
		"bitmap table of 8 bytes at 515":          with(bitmaps, u64(dir, 512+3)),
		"granularity 2^32":                        with(bitmaps, field{dir + 17, 32, 1}),
	} {
		t.Run(says, func(t *testing.T) {
			err := readWhole(t.Context(), file)
			require.ErrorIs(t, err, formats.ErrCorrupt)
			require.ErrorContains(t, err, says)
		})
	}
	err := readWhole(t.Context(), with(bitmaps, field{dir + 16, 2, 1}))
	require.ErrorIs(t, err, formats.ErrFormat)
	require.ErrorContains(t, err, "bitmap type 2")
}

// readWhole opens an image, maps it, and reads some of each extent.
func readWhole(ctx context.Context, file []byte) error {
	img, err := qcow2.Open(ctx, bytes.NewReader(file), int64(len(file)), formats.OpenOptions{})
	if err != nil {
		return err
	}
	defer img.Close()
	if _, err := img.Info(); err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for e, err := range img.Extents(ctx, 0, img.Size()) {
		if err != nil {
			return err
		}
		if e.Kind != formats.Data {
			continue
		}
		for _, off := range []int64{e.Off, max(e.End()-int64(len(b)), e.Off)} {
			if _, err := img.ReadAt(b[:min(e.End()-off, int64(len(b)))], off); err != nil {
				return err
			}
			if _, _, err := img.ReadPacked(ctx, off, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// A small file with large tables that say the same again and again.
func TestEndlessDisks(t *testing.T) {
	const bits, cluster = 21, 2 << 20
	file := make([]byte, 5*cluster)
	be := binary.BigEndian
	copy(file, with(small(t, formats.CreateOptions{})[:112], u32(20, bits), u64(40, cluster), u64(48, 3*cluster), u32(56, 1),
		u32(36, cluster/8), u64(24, cluster/8*(cluster/8)<<bits)))
	for at := range int64(cluster / 8) {
		be.PutUint64(file[cluster+at*8:], 2*cluster)
	}
	fill := func(e uint64) {
		for at := range int64(cluster / 8) {
			be.PutUint64(file[2*cluster+at*8:], e)
		}
	}
	for name, e := range map[string]uint64{"zeros": 1, "plain": 4 * cluster, "packed": 1<<62 | 4*cluster, "nothing": 0} {
		fill(e)
		start := time.Now()
		img, err := qcow2.Open(t.Context(), bytes.NewReader(file), int64(len(file)), formats.OpenOptions{})
		require.NoError(t, err)
		var failed error
		for _, failed = range img.Extents(t.Context(), 0, img.Size()) {
			if failed != nil {
				break
			}
		}
		require.ErrorIs(t, failed, formats.ErrCorrupt, name)
		r, err := img.Check(t.Context())
		require.NoError(t, err)
		require.Positive(t, r.Corruptions)
		require.LessOrEqual(t, len(r.Problems), 100)
		require.Less(t, time.Since(start), time.Minute, name)
	}
}

// FuzzImage changes numbers of good images, and reads them in every way.
func FuzzImage(f *testing.F) {
	seeds := [][]byte{small(f, formats.CreateOptions{}), small(f, formats.CreateOptions{Compression: "zlib"}), small(f, formats.CreateOptions{Compression: "zstd"})}
	for _, name := range []string{"snapshots.qcow2", "extended.qcow2", "bitmaps.qcow2"} {
		seeds = append(seeds, testdata(f, name))
	}
	for i := range seeds {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 0, 0, 36, 8, 0, 0, 0, 1, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, seed uint8, changes []byte) {
		file := bytes.Clone(seeds[int(seed)%len(seeds)])
		// A change is a place (4 bytes), a width and a value (8 bytes); a cut is one of width 0.
		for ; len(changes) >= 13; changes = changes[13:] {
			at := int(binary.BigEndian.Uint32(changes)) % (len(file) + 1)
			n := int(changes[4]) % 9
			if n == 0 {
				file = file[:at]
				continue
			}
			copy(file[at:], changes[13-n:13])
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := readWhole(ctx, file)
		require.False(t, errors.Is(err, context.DeadlineExceeded), "takes too long")
		img, err := qcow2.Open(ctx, bytes.NewReader(file), int64(len(file)), formats.OpenOptions{Layer: true})
		if err != nil {
			return
		}
		defer img.Close()
		info, err := img.Info()
		if err == nil {
			for _, b := range info.Bitmaps {
				for _, err := range img.BitmapRanges(ctx, b) {
					if err != nil {
						break
					}
				}
			}
			for _, s := range info.Snapshots[:min(len(info.Snapshots), 3)] {
				if img, err := qcow2.Open(ctx, bytes.NewReader(file), int64(len(file)), formats.OpenOptions{Layer: true, Snapshot: s.ID}); err == nil {
					img.ReadAt(make([]byte, 4096), 0)
				}
			}
		}
		_, err = img.Check(ctx)
		require.False(t, errors.Is(err, context.DeadlineExceeded), "check takes too long")
	})
}
