package vdi_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vdi"
)

// write lays a disk out and answers the file.
func write(t *testing.T, d *formatstest.Disk, o formats.CreateOptions) []byte {
	t.Helper()
	h := formatstest.Harness{Format: vdi.Format(), Options: o}
	f := h.CreateDisk(t, d).(*formatstest.MemFile)
	b := make([]byte, f.Size())
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

// requireLayout reads a VDI field by field, with nothing of the package, as strictly as VirtualBox
// does, and answers its disk.
func requireLayout(t *testing.T, b []byte, kind uint32, size int64) []byte {
	t.Helper()
	require.Equal(t, "<<< Oracle VM VirtualBox Disk Image >>>\n", string(b[:40]))
	require.EqualValues(t, 0xbeda107f, le.Uint32(b[0x40:]))
	require.EqualValues(t, 0x10001, le.Uint32(b[0x44:]), "version")
	require.EqualValues(t, 400, le.Uint32(b[0x48:]), "size of the header")
	require.Equal(t, kind, le.Uint32(b[0x4c:]), "image type")
	require.Zero(t, le.Uint32(b[0x50:]), "flags")
	table, data := int64(le.Uint32(b[0x154:])), int64(le.Uint32(b[0x158:]))
	require.EqualValues(t, 512, le.Uint32(b[0x168:]), "sectors of the legacy geometry")
	require.EqualValues(t, 512, le.Uint32(b[0x1d4:]), "sectors of the logical geometry")
	require.EqualValues(t, size, le.Uint64(b[0x170:]), "size of the disk")
	require.EqualValues(t, mib, le.Uint32(b[0x178:]), "block size")
	require.Zero(t, le.Uint32(b[0x17c:]), "extra data")
	n := int64(le.Uint32(b[0x180:]))
	require.Equal(t, (size+mib-1)/mib, n, "blocks")
	require.NotEqual(t, make([]byte, 16), b[0x188:0x198], "UUID")
	require.NotEqual(t, make([]byte, 16), b[0x198:0x1a8], "modification UUID")
	require.Equal(t, make([]byte, 32), b[0x1a8:0x1c8], "UUIDs of a parent")
	require.Zero(t, table%mib)
	require.Zero(t, data%mib)
	require.GreaterOrEqual(t, data, table+4*n)

	disk := make([]byte, n*mib)
	seen := map[uint32]bool{}
	for i := range n {
		v := le.Uint32(b[table+4*i:])
		if v == 0xffffffff && kind == 1 {
			continue
		}
		require.False(t, seen[v], "block %d is stored twice", v)
		seen[v] = true
		if kind == 2 {
			require.EqualValues(t, i, v)
		}
		at := data + int64(v)*mib
		copy(disk[i*mib:], b[at:at+mib])
	}
	require.EqualValues(t, len(seen), le.Uint32(b[0x184:]), "allocated blocks")
	require.Len(t, b, int(data)+len(seen)*mib, "the file ends with the last block")
	require.Equal(t, make([]byte, int64(len(disk))-size), disk[size:], "what the last block has behind the disk")
	return disk[:size]
}

func TestWhatIsWrittenIsAsVirtualBoxWantsIt(t *testing.T) {
	for _, size := range []int64{512, mib, 9*mib + 512, 40 * mib} {
		for sub, kind := range map[string]uint32{vdi.Dynamic: 1, vdi.Static: 2} {
			t.Run(fmt.Sprintf("%s %d", sub, size), func(t *testing.T) {
				d := formatstest.NewDisk(uint64(size), size)
				want := make([]byte, size)
				_, err := d.ReadAt(want, 0)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, requireLayout(t, write(t, d, formats.CreateOptions{Subformat: sub}), kind, size)))
			})
		}
	}
}

func TestSizesInHalfSectorsAreRoundedUp(t *testing.T) {
	for sub, kind := range map[string]uint32{vdi.Dynamic: 1, vdi.Static: 2} {
		f := formatstest.NewMemFile()
		w, err := vdi.Create(t.Context(), f, mib+1, formats.CreateOptions{Subformat: sub}, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = w.WriteAt(fill(7, mib+1), 0)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
		b := make([]byte, f.Size())
		_, err = f.ReadAt(b, 0)
		require.NoError(t, err)
		require.Equal(t, append(fill(7, mib+1), fill(0, 511)...), requireLayout(t, b, kind, mib+512))
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		o    formats.CreateOptions
		says string
	}{
		"a PiB":          {1 << 50, formats.CreateOptions{}, "a VDI holds up to"},
		"a subformat":    {mib, formats.CreateOptions{Subformat: "fixed"}, `subformat "fixed", which is not one of ["dynamic" "static"]`},
		"a cluster size": {mib, formats.CreateOptions{ClusterSize: 64 * kib}, "cluster size 65536"},
		"compression":    {mib, formats.CreateOptions{Compression: "zlib"}, `compression "zlib"`},
		"a parent":       {mib, formats.CreateOptions{Backing: "base.vdi"}, `upon "base.vdi"`},
		"preallocation":  {mib, formats.CreateOptions{Prealloc: "full"}, `preallocation "full"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vdi.Create(t.Context(), formatstest.NewMemFile(), c.size, c.o, formats.Checkpoint{})
			require.ErrorIs(t, err, formats.ErrFormat)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// VirtualBox refuses two disks of one UUID.
func TestUUIDsAreMadeOfTheDisk(t *testing.T) {
	id := func(seed uint64) string {
		b := write(t, formatstest.NewDisk(seed, 4*mib), formats.CreateOptions{})
		i, err := vdi.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		require.NotEqual(t, i.ID, i.Modification)
		return i.ID
	}
	require.Equal(t, id(1), id(1), "same disk")
	require.NotEqual(t, id(1), id(2), "another disk")
}
