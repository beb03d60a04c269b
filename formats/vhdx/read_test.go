package vhdx_test

import (
	"bytes"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

func TestStatesOfABlock(t *testing.T) {
	b := spec{size: 7 * mib, blocks: map[int]stored{0: {state: 0}, 1: {state: 1}, 2: {state: 2}, 3: {state: 3}, 5: whole(5)}}.bytes()
	// An unmapped block may still say where it was.
	le.PutUint64(b[batAt+8*3:], 4*mib|3)
	img := inMemory.MustOpen(t, b, formats.OpenOptions{})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 5 * mib, Kind: formats.Zero},
		{Off: 5 * mib, Len: mib, Kind: formats.Data},
		{Off: 6 * mib, Len: mib, Kind: formats.Zero},
	}, formatstest.Map(t, img, 0, img.Size()))
	require.Equal(t, append(fill(0, 512), fill(5, 512)...), formatstest.Peek(t, img, 5*mib-512, 1024))
	require.Equal(t, fill(0, 512), formatstest.Peek(t, img, 3*mib, 512))
}

// Behind every chunk of blocks the table has the entry of their bitmaps.
func TestChunks(t *testing.T) {
	for name, s := range map[string]spec{
		"512-byte sectors":  {size: 8193*mib + 512, logical: 512, blocks: map[int]stored{4095: whole(1), 4096: whole(2), 8192: whole(3), 8193: whole(4)}},
		"4096-byte sectors": {size: 32769*mib + 4096, logical: 4096, blocks: map[int]stored{4095: whole(1), 4096: whole(2), 32767: whole(5), 32768: whole(3), 32769: whole(4)}},
	} {
		t.Run(name, func(t *testing.T) {
			img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{})
			require.Equal(t, s.size, img.Size())
			var data int64
			for _, e := range formatstest.Map(t, img, 0, img.Size()) {
				if e.Kind == formats.Data {
					data += e.Len
				}
			}
			require.Equal(t, int64(len(s.blocks)-1)*mib+s.size%mib, data)
			for i, blk := range s.blocks {
				require.Equal(t, blk.data[:512], formatstest.Peek(t, img, int64(i)*mib, 512), "block %d", i)
			}
			require.Equal(t, append(fill(1, 512), fill(2, 512)...), formatstest.Peek(t, img, 4096*mib-512, 1024))
		})
	}
}

func TestHeaderWithTheHigherNumberCounts(t *testing.T) {
	good := spec{size: mib, blocks: map[int]stored{0: whole(1)}}.bytes()
	for name, c := range map[string]struct {
		change func(b []byte)
		is     error
		says   string
	}{
		"the second":               {func(b []byte) { header(b, 0, func(h []byte) { le.PutUint16(h[66:], 9) }) }, nil, ""},
		"the second is torn":       {func(b []byte) { b[2*headersAt+100] ^= 1 }, nil, ""},
		"the first is torn":        {func(b []byte) { b[headersAt] = 0 }, nil, ""},
		"both are torn":            {func(b []byte) { b[headersAt+100] ^= 1; b[2*headersAt+100] ^= 1 }, formats.ErrCorrupt, "header 1: checksum"},
		"two the same":             {func(b []byte) { copy(b[2*headersAt:], b[headersAt:headersAt+4*kib]) }, nil, ""},
		"two of the same number":   {func(b []byte) { header(b, 0, func(h []byte) { le.PutUint64(h[8:], 8); h[100] = 1 }) }, formats.ErrCorrupt, "both have sequence number 8"},
		"the one that counts lies": {func(b []byte) { header(b, 1, func(h []byte) { le.PutUint16(h[66:], 9) }) }, formats.ErrFormat, "version 9"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.change(b)
			img, err := inMemory.Open(t.Context(), b, formats.OpenOptions{})
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			require.Equal(t, fill(1, 512), formatstest.Peek(t, img, 0, 512))
		})
	}
}

// header changes one of the two headers and makes its checksum right.
func header(b []byte, i int, change func(h []byte)) {
	h := b[headersAt*(1+i):][:4*kib]
	change(h)
	resum(h)
}

// tables changes both region tables.
func tables(b []byte, change func(r []byte)) {
	for i := range 2 {
		r := b[regionsAt+64*kib*i:][:64*kib]
		change(r)
		resum(r)
	}
}

func TestSecondRegionTableStandsIn(t *testing.T) {
	b := spec{size: mib, blocks: map[int]stored{0: whole(1)}}.bytes()
	b[regionsAt+100] ^= 1
	require.Equal(t, fill(1, 512), formatstest.Peek(t, inMemory.MustOpen(t, b, formats.OpenOptions{}), 0, 512))
	rep, err := vhdx.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.Len(t, rep.Errors, 1)
	require.Contains(t, rep.Errors[0], "region table 1: checksum")
}

func TestWhatIsNotRequiredNeedNotBeKnown(t *testing.T) {
	b := spec{size: mib, blocks: map[int]stored{0: whole(1)}}.bytes()
	tables(b, func(r []byte) {
		le.PutUint32(r[8:], 3)
		region(r[80:], "00000000-1111-2222-3333-444444444444", 100*mib, mib, 0)
	})
	meta := b[metadataAt:]
	le.PutUint16(meta[10:], 6)
	copy(meta[32+32*5:], guid("00000000-1111-2222-3333-444444444444"))
	require.Equal(t, fill(1, 512), formatstest.Peek(t, inMemory.MustOpen(t, b, formats.OpenOptions{}), 0, 512))
}

// chain is a base, a disk upon it, and one upon that.
func chain() files {
	const midID = "deadbeef-0000-0000-0000-000000000001"
	return files{
		"base.vhdx": spec{size: 8 * mib, writeID: parentID, blocks: map[int]stored{0: whole(1), 2: whole(1), 3: whole(1), 4: whole(1)}}.bytes(),
		"mid.avhdx": spec{size: 8 * mib, writeID: midID, differs: true,
			locator: map[string]string{"parent_linkage": "{" + parentID + "}", "relative_path": `.\base.vhdx`, "absolute_win32_path": `C:\disks\base.vhdx`},
			blocks:  map[int]stored{0: partly(map[int]byte{1: 2, 3: 2}), 1: partly(map[int]byte{2047: 2}), 3: {state: 2}, 4: whole(2)}}.bytes(),
		"top.avhdx": spec{size: 10 * mib, differs: true,
			locator: map[string]string{"parent_linkage": "{00000000-0000-0000-0000-000000000000}", "parent_linkage2": "{" + midID + "}", "volume_path": `\\?\Volume{1}\x\mid.avhdx`},
			blocks:  map[int]stored{0: partly(map[int]byte{3: 3, 4: 0}), 5: {state: 3}}}.bytes(),
	}
}

func TestDifferencingDiskIsReadThroughItsParents(t *testing.T) {
	f := chain()
	img := inMemory.MustOpen(t, f["top.avhdx"], formats.OpenOptions{Beside: f.Beside})
	const block = mib / 512
	for sector, want := range map[int64]byte{
		0: 1, 1: 2, 2: 1, 3: 3, 4: 0, 5: 1,
		block: 0, block + 2047: 2,
		2 * block: 1, 3 * block: 0, 4 * block: 2, 5 * block: 0, 7 * block: 0, 9 * block: 0,
	} {
		require.Equal(t, fill(want, 512), formatstest.Peek(t, img, sector*512, 512), "sector %d", sector)
	}
	var data int64
	for _, e := range formatstest.Map(t, img, 0, img.Size()) {
		require.NotEqual(t, formats.Absent, e.Kind)
		if e.Kind == formats.Data {
			data += e.Len
		}
	}
	require.EqualValues(t, 3*mib+512, data)
}

func TestOneLayerOfADifferencingDisk(t *testing.T) {
	img := inMemory.MustOpen(t, chain()["mid.avhdx"], formats.OpenOptions{Layer: true})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 512, Kind: formats.Absent},
		{Off: 512, Len: 512, Kind: formats.Data},
		{Off: 1024, Len: 512, Kind: formats.Absent},
		{Off: 1536, Len: 512, Kind: formats.Data},
		{Off: 2048, Len: 2*mib - 512 - 2048, Kind: formats.Absent},
		{Off: 2*mib - 512, Len: 512, Kind: formats.Data},
		{Off: 2 * mib, Len: mib, Kind: formats.Absent},
		{Off: 3 * mib, Len: mib, Kind: formats.Zero},
		{Off: 4 * mib, Len: mib, Kind: formats.Data},
		{Off: 5 * mib, Len: 3 * mib, Kind: formats.Absent},
	}, formatstest.Map(t, img, 0, img.Size()))
	_, err := img.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, formats.ErrAbsent)
}

func TestBitmapsOf4096ByteSectors(t *testing.T) {
	s := spec{size: 4 * mib, logical: 4096, differs: true,
		locator: map[string]string{"parent_linkage": "{" + parentID + "}", "relative_path": `base.vhdx`},
		blocks:  map[int]stored{2: {state: 7, sectors: map[int][]byte{0: fill(7, 4096), 255: fill(8, 4096)}}}}
	img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{Layer: true})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 2 * mib, Kind: formats.Absent},
		{Off: 2 * mib, Len: 4096, Kind: formats.Data},
		{Off: 2*mib + 4096, Len: mib - 8192, Kind: formats.Absent},
		{Off: 3*mib - 4096, Len: 4096, Kind: formats.Data},
		{Off: 3 * mib, Len: mib, Kind: formats.Absent},
	}, formatstest.Map(t, img, 0, img.Size()))
	require.Equal(t, fill(8, 100), formatstest.Peek(t, img, 3*mib-100, 100))
}

func TestParentThatCannotBeHadIsRefused(t *testing.T) {
	inMemory.Parents(t, chain, "top.avhdx", map[string]formatstest.LostParent{
		"nothing may be opened": {Is: formats.ErrFormat, Says: "no file beside the image may be opened"},
		"it is not there":       {Beside: func(files) files { return files{} }, Is: fs.ErrNotExist, Says: "mid.avhdx"},
		"its own is not there":  {Beside: func(f files) files { delete(f, "base.vhdx"); return f }, Is: fs.ErrNotExist, Says: "base.vhdx"},
		"another has its name":  {Beside: func(f files) files { f["mid.avhdx"] = f["base.vhdx"]; return f }, Is: formats.ErrCorrupt, Says: "its write identifier is " + parentID},
	})
}

func TestInspect(t *testing.T) {
	b := chain()["top.avhdx"]
	i, err := vhdx.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.Equal(t, vhdx.Info{
		Subformat: "differencing", DiskSize: 10 * mib, Creator: "by hand", BlockSize: mib, LogicalSector: 512, PhysicalSector: 4096,
		ID: "12345678-9abc-def0-1234-56789abcdef0", DataWriteID: writeID,
		Parent: &vhdx.Parent{
			DataWriteIDs: []string{"00000000-0000-0000-0000-000000000000", "deadbeef-0000-0000-0000-000000000001"},
			Names:        []string{"mid.avhdx"},
		},
	}, i)
}

func TestCheckFindsNothingInGoodImages(t *testing.T) {
	for name, b := range chain() {
		rep, err := vhdx.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		require.Empty(t, rep.Errors, name)
		require.Empty(t, rep.Warnings, name)
	}
}
