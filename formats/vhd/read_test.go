package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhd"
)

// chs is a geometry as it is stored.
func chs(cylinders uint16, heads, sectors byte) [4]byte {
	return [4]byte{byte(cylinders >> 8), byte(cylinders), heads, sectors}
}

func TestSizeOfADiskIsWhatItsCreatorMeant(t *testing.T) {
	const current = 100*mib + 512
	small := chs(1000, 4, 17) // 34,816,000 bytes
	for name, c := range map[string]struct {
		creator  string
		geometry [4]byte
		size     int64
	}{
		"Virtual PC goes by the geometry":    {"vpc ", small, 1000 * 4 * 17 * 512},
		"so does qemu":                       {"qemu", small, 1000 * 4 * 17 * 512},
		"a geometry at its maximum says no":  {"vpc ", chs(65535, 16, 255), current},
		"nor does one beyond the disk":       {"vpc ", chs(60000, 16, 63), current},
		"nor does none":                      {"qemu", chs(0, 0, 0), current},
		"Hyper-V goes by the size":           {"win ", small, current},
		"Disk2vhd":                           {"d2v ", small, current},
		"XenServer":                          {"tap\x00", small, current},
		"XenConverter":                       {"CTXS", small, current},
		"Azure":                              {"wa\x00\x00", small, current},
		"VirtualBox":                         {"vbox", small, current},
		"qemu with force_size":               {"qem2", small, current},
		"somebody whom nobody has heard of":  {"\x01\xff?!", small, current},
		"a sector count that is no geometry": {"win ", chs(1, 1, 1), current},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec{kind: 3, size: current, creator: c.creator, geometry: c.geometry, blocks: map[int]stored{0: whole(7)}}
			img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{})
			require.Equal(t, c.size, img.Size())
			require.Equal(t, sectorOf(7), formatstest.Peek(t, img, 0, 512))
		})
	}
}

func TestFooterOf511Bytes(t *testing.T) {
	for name, s := range map[string]spec{
		"fixed":   {kind: 2, size: 3 * 512, fixed: bytes.Repeat([]byte{9}, 3*512), oldFooter: true},
		"dynamic": {kind: 3, size: 3 * 512, blocks: map[int]stored{0: whole(9)}, oldFooter: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := s.bytes()
			require.True(t, vhd.Format().Probe(b[:512], b[len(b)-512:]))
			require.Equal(t, bytes.Repeat([]byte{9}, 3*512), formatstest.Peek(t, inMemory.MustOpen(t, b, formats.OpenOptions{}), 0, 3*512))
			rep, err := vhd.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.Empty(t, rep.Errors)
			require.Contains(t, rep.Warnings[0], "511")
		})
	}
}

func TestCopyOfTheFooterStandsIn(t *testing.T) {
	s := spec{kind: 3, size: 4 * mib, blocks: map[int]stored{1: whole(5)}}
	good := s.bytes()
	s.noFooter = true
	missing := s.bytes()
	broken := bytes.Clone(good)
	broken[len(broken)-512+50] ^= 1
	for name, b := range map[string][]byte{"missing at the end": missing, "broken at the end": broken} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, sectorOf(5), formatstest.Peek(t, inMemory.MustOpen(t, b, formats.OpenOptions{}), 2*mib, 512))
			rep, err := vhd.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.Len(t, rep.Errors, 1)
			require.Contains(t, rep.Errors[0], "its copy at the beginning was used")
		})
	}
	t.Run("a good footer needs no copy", func(t *testing.T) {
		s := spec{kind: 3, size: 4 * mib, blocks: map[int]stored{1: whole(5)}, noCopy: true}
		require.Equal(t, sectorOf(5), formatstest.Peek(t, inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{}), 2*mib, 512))
		rep, err := vhd.Check(t.Context(), bytes.NewReader(s.bytes()), int64(len(s.bytes())))
		require.NoError(t, err)
		require.Len(t, rep.Errors, 1)
	})
}

// A guest may write into its first sector what looks like the copy of a footer, with parents of its
// choice.
func TestFirstSectorOfAFixedDiskIsTheGuests(t *testing.T) {
	evil := spec{kind: 4, size: 4 * mib, parentID: 1, parentName: "/etc/passwd"}.bytes()
	s := spec{kind: 2, size: 4 * mib, fixed: append(evil, make([]byte, 4*mib-len(evil))...)}
	img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{})
	require.Equal(t, []byte("conectix"), formatstest.Peek(t, img, 0, 8))
	require.Equal(t, []formats.Extent{{Len: 4 * mib, Kind: formats.Data}}, formatstest.Map(t, img, 0, img.Size()))
}

func TestSectorsThatWereNeverWrittenAreZeros(t *testing.T) {
	s := spec{kind: 3, size: 4 * mib, blocks: map[int]stored{1: {0: sectorOf(1), 1: sectorOf(2), 9: sectorOf(3)}}}
	b := s.bytes()
	// What lies in the place of a sector whose bit is clear is nobody's.
	copy(b[bytes.Index(b, sectorOf(2))+512:], "rubbish")
	img := inMemory.MustOpen(t, b, formats.OpenOptions{})
	require.Equal(t, append(sectorOf(2), make([]byte, 512)...), formatstest.Peek(t, img, 2*mib+512, 1024))
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 2 * mib, Kind: formats.Zero},
		{Off: 2 * mib, Len: 1024, Kind: formats.Data},
		{Off: 2*mib + 1024, Len: 7 * 512, Kind: formats.Zero},
		{Off: 2*mib + 9*512, Len: 512, Kind: formats.Data},
		{Off: 2*mib + 10*512, Len: 2*mib - 10*512, Kind: formats.Zero},
	}, formatstest.Map(t, img, 0, img.Size()))
}

func TestOtherBlockSizes(t *testing.T) {
	for _, block := range []int64{512, 4096, 512 * kib, 16 * mib} {
		s := spec{kind: 3, size: 3*block - 512, block: block, blocks: map[int]stored{0: {0: sectorOf(1)}}}
		last := int(block/512) - 2
		if last >= 0 {
			s.blocks[2] = stored{last: sectorOf(2)}
		}
		img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{})
		require.Equal(t, sectorOf(1), formatstest.Peek(t, img, 0, 512))
		if last >= 0 {
			require.Equal(t, sectorOf(2), formatstest.Peek(t, img, img.Size()-512, 512))
		}
	}
}

// chain is a base, a disk upon it, and one upon that.
func chain() files {
	return files{
		"base.vhd": spec{kind: 3, size: 8 * mib, id: 1, blocks: map[int]stored{0: whole(1), 2: whole(1)}}.bytes(),
		"mid.vhd": spec{kind: 4, size: 8 * mib, id: 2, parentID: 1, parentName: "base.vhd",
			relative: `.\base.vhd`, absolute: `C:\disks\base.vhd`,
			blocks: map[int]stored{0: {1: sectorOf(2), 3: sectorOf(2)}, 1: {0: sectorOf(2)}}}.bytes(),
		"top.avhd": spec{kind: 4, size: 10 * mib, id: 3, parentID: 2, parentName: `C:\disks\mid.vhd`,
			blocks: map[int]stored{0: {3: sectorOf(3), 4: make([]byte, 512)}}}.bytes(),
	}
}

func TestDifferencingDiskIsReadThroughItsParents(t *testing.T) {
	f := chain()
	img := inMemory.MustOpen(t, f["top.avhd"], formats.OpenOptions{Beside: f.Beside})
	for sector, want := range map[int64]byte{
		0: 1, 1: 2, 2: 1, 3: 3, 4: 0, 5: 1, // block 0: a bit of everything
		2 * mib / 512: 2, 2*mib/512 + 1: 0, // block 1: the middle's
		4 * mib / 512: 1, 6 * mib / 512: 0, // blocks 2 and 3: the base's, nobody's
		9 * mib / 512: 0, // behind the end of the parents
	} {
		require.Equal(t, sectorOf(want), formatstest.Peek(t, img, sector*512, 512), "sector %d", sector)
	}
	require.Equal(t, append(sectorOf(1), sectorOf(2)...), formatstest.Peek(t, img, 0, 1024))
	formatstest.Map(t, img, 0, img.Size())
	formatstest.Map(t, img, 511, 9*mib)
	var data int64
	for _, e := range formatstest.Map(t, img, 0, img.Size()) {
		if e.Kind == formats.Data {
			data += e.Len
		}
		require.NotEqual(t, formats.Absent, e.Kind)
	}
	require.EqualValues(t, 4*mib+512, data)
}

func TestOneLayerOfADifferencingDisk(t *testing.T) {
	img := inMemory.MustOpen(t, chain()["mid.vhd"], formats.OpenOptions{Layer: true})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 512, Kind: formats.Absent},
		{Off: 512, Len: 512, Kind: formats.Data},
		{Off: 1024, Len: 512, Kind: formats.Absent},
		{Off: 1536, Len: 512, Kind: formats.Data},
		{Off: 2048, Len: 2*mib - 2048, Kind: formats.Absent},
		{Off: 2 * mib, Len: 512, Kind: formats.Data},
		{Off: 2*mib + 512, Len: 6*mib - 512, Kind: formats.Absent},
	}, formatstest.Map(t, img, 0, img.Size()))
	_, err := img.ReadAt(make([]byte, 1024), 0)
	require.ErrorIs(t, err, formats.ErrAbsent)
	require.Equal(t, sectorOf(2), formatstest.Peek(t, img, 512, 512))
}

func TestParentThatCannotBeHadIsRefused(t *testing.T) {
	inMemory.Parents(t, chain, "top.avhd", map[string]formatstest.LostParent{
		"nothing may be opened": {Is: formats.ErrFormat, Says: "no file beside the image may be opened"},
		"it is not there":       {Beside: func(f files) files { return files{} }, Is: fs.ErrNotExist, Says: "mid.vhd"},
		"its own is not there":  {Beside: func(f files) files { delete(f, "base.vhd"); return f }, Is: fs.ErrNotExist, Says: "base.vhd"},
		"another has its name":  {Beside: func(f files) files { f["mid.vhd"] = f["base.vhd"]; return f }, Is: formats.ErrCorrupt, Says: "its unique id is 01010101-0101-0101-0101-010101010101: it is not the parent"},
		"it is no VHD":          {Beside: func(f files) files { f["mid.vhd"] = make([]byte, 4096); return f }, Is: formats.ErrFormat, Says: "footer"},
		"it is its own parent": {Beside: func(f files) files {
			f["mid.vhd"] = spec{kind: 4, size: 8 * mib, id: 2, parentID: 2, parentName: "mid.vhd"}.bytes()
			return f
		}, Is: formats.ErrCorrupt, Says: "leads back to itself"},
	})
}

func TestEndlessChainIsRefused(t *testing.T) {
	n := 0
	var beside func(string) (formats.Opened, error)
	beside = func(string) (formats.Opened, error) {
		n++
		b := spec{kind: 4, size: mib, id: 1, parentID: 1, parentName: "next.vhd"}.bytes()
		return formats.Opened{ReaderAt: bytes.NewReader(b), Closer: io.NopCloser(nil), Size: int64(len(b)),
			Name: string(binary.BigEndian.AppendUint32(nil, uint32(n))), Beside: beside}, nil
	}
	_, err := inMemory.Open(t.Context(), spec{kind: 4, size: mib, parentID: 1, parentName: "next.vhd"}.bytes(), formats.OpenOptions{Beside: beside})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "more than 64 parents")
}

func TestErrorsOfAParentSurface(t *testing.T) {
	f := chain()
	fault := errors.New("the cable was pulled")
	broken := false
	var beside func(name string) (formats.Opened, error)
	beside = func(name string) (formats.Opened, error) {
		opened, err := f.Beside(name)
		opened.Beside = beside
		opened.ReaderAt = readerFunc(func(p []byte, off int64) (int, error) {
			if broken {
				return 0, fault
			}
			return bytes.NewReader(f[name]).ReadAt(p, off)
		})
		return opened, err
	}
	img := inMemory.MustOpen(t, f["top.avhd"], formats.OpenOptions{Beside: beside})
	require.Equal(t, sectorOf(1), formatstest.Peek(t, img, 0, 512))
	broken = true
	_, err := img.ReadAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, fault)
	require.ErrorContains(t, err, "parent mid.vhd")
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestInspect(t *testing.T) {
	b := chain()["mid.vhd"]
	i, err := vhd.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.Equal(t, "differencing", i.Subformat)
	require.EqualValues(t, 8*mib, i.DiskSize)
	require.EqualValues(t, 2*mib, i.BlockSize)
	require.Equal(t, "win", i.Creator)
	require.Equal(t, "02020202-0202-0202-0202-020202020202", i.ID)
	require.Equal(t, []string{"base.vhd"}, i.Parent.Names)
	require.Equal(t, "01010101-0101-0101-0101-010101010101", i.Parent.ID)
}
