package vdi_test

import (
	"bytes"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vdi"
)

func TestVariants(t *testing.T) {
	for name, s := range map[string]spec{
		"as VirtualBox lays it out":   {table: mib, data: 2 * mib},
		"as qemu does":                {},
		"a header without geometry":   {version: 0x10000, headerLen: 0x180},
		"a header of a later version": {version: 0x10002, headerLen: 500},
		"blocks of 4 KiB":             {block: 4 * kib},
		"blocks of 64 KiB":            {block: 64 * kib, data: 8 * kib},
		"blocks of 32 MiB":            {block: 32 * mib},
		"data before each block":      {extra: 512},
		"and much of it":              {extra: mib, data: mib},
		"at odd places":               {table: 601, data: 100*kib + 3},
	} {
		t.Run(name, func(t *testing.T) {
			s.kind = 1
			if s.block == 0 {
				s.block = mib
			}
			s.size = 5*s.block - 512
			s.blocks = map[int]int{0: 1, 2: zeroed, 3: 2, 4: 3}
			img := inMemory.MustOpen(t, s.bytes(), formats.OpenOptions{})
			require.Equal(t, []formats.Extent{
				{Off: 0, Len: s.block, Kind: formats.Data},
				{Off: s.block, Len: 2 * s.block, Kind: formats.Zero},
				{Off: 3 * s.block, Len: 2*s.block - 512, Kind: formats.Data},
			}, formatstest.Map(t, img, 0, img.Size()))
			require.Equal(t, append(fill(1, 512), fill(0, 512)...), formatstest.Peek(t, img, s.block-512, 1024))
			require.Equal(t, append(fill(0, 512), fill(2, 512)...), formatstest.Peek(t, img, 3*s.block-512, 1024))
			require.Equal(t, append(fill(2, 512), fill(3, 512)...), formatstest.Peek(t, img, 4*s.block-512, 1024))
			require.Equal(t, fill(3, 512), formatstest.Peek(t, img, 5*s.block-1024, 512))
		})
	}
}

func TestStaticImage(t *testing.T) {
	img := inMemory.MustOpen(t, spec{kind: 2, size: 2 * mib, blocks: map[int]int{0: 1, 1: 2}}.bytes(), formats.OpenOptions{})
	require.Equal(t, append(fill(1, 512), fill(2, 512)...), formatstest.Peek(t, img, mib-512, 1024))
}

// chain is a base, an image upon it, and one upon that.
func chain() files {
	return files{
		"{" + uuid(1) + "}.vdi": spec{kind: 1, size: 6 * mib, id: 1, modified: 0x11, blocks: map[int]int{0: 1, 2: 1, 3: 1, 4: 1}}.bytes(),
		"{" + uuid(2) + "}.vdi": spec{kind: 4, size: 6 * mib, id: 2, modified: 0x22, parent: 1, parentMod: 0x11, blocks: map[int]int{1: 2, 2: 2, 3: zeroed}}.bytes(),
		"top":                   spec{kind: 4, size: 8 * mib, id: 3, parent: 2, parentMod: 0x22, blocks: map[int]int{2: 3}}.bytes(),
	}
}

func TestDifferencingImageIsReadThroughItsParents(t *testing.T) {
	f := chain()
	img := inMemory.MustOpen(t, f["top"], formats.OpenOptions{Beside: f.Beside})
	for block, want := range []byte{1, 2, 3, 0, 1, 0, 0, 0} {
		require.Equal(t, fill(want, mib), formatstest.Peek(t, img, int64(block)*mib, mib), "block %d", block)
	}
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: 3 * mib, Kind: formats.Data},
		{Off: 3 * mib, Len: mib, Kind: formats.Zero},
		{Off: 4 * mib, Len: mib, Kind: formats.Data},
		{Off: 5 * mib, Len: 3 * mib, Kind: formats.Zero},
	}, formatstest.Map(t, img, 0, img.Size()))
}

func TestOneLayerOfADifferencingImage(t *testing.T) {
	img := inMemory.MustOpen(t, chain()["{"+uuid(2)+"}.vdi"], formats.OpenOptions{Layer: true})
	require.Equal(t, []formats.Extent{
		{Off: 0, Len: mib, Kind: formats.Absent},
		{Off: mib, Len: 2 * mib, Kind: formats.Data},
		{Off: 3 * mib, Len: mib, Kind: formats.Zero},
		{Off: 4 * mib, Len: 2 * mib, Kind: formats.Absent},
	}, formatstest.Map(t, img, 0, img.Size()))
	_, err := img.ReadAt(make([]byte, 1024), mib-512)
	require.ErrorIs(t, err, formats.ErrAbsent)
}

func TestParentThatCannotBeHadIsRefused(t *testing.T) {
	mid := "{" + uuid(2) + "}.vdi"
	inMemory.Parents(t, chain, "top", map[string]formatstest.LostParent{
		"nothing may be opened": {Is: formats.ErrFormat, Says: "no file beside the image may be opened"},
		"it is not there":       {Beside: func(files) files { return files{} }, Is: fs.ErrNotExist, Says: mid},
		"its own is not there":  {Beside: func(f files) files { delete(f, "{"+uuid(1)+"}.vdi"); return f }, Is: fs.ErrNotExist, Says: "{" + uuid(1) + "}.vdi"},
		"another has its name":  {Beside: func(f files) files { f[mid] = f["{"+uuid(1)+"}.vdi"]; return f }, Is: formats.ErrCorrupt, Says: "its UUID is " + uuid(1)},
		"it has been written to": {Beside: func(f files) files {
			f[mid] = spec{kind: 1, size: 6 * mib, id: 2, modified: 0x23}.bytes()
			return f
		}, Is: formats.ErrCorrupt, Says: "it was written to after this image was made upon it"},
	})
}

func TestInspect(t *testing.T) {
	b := spec{kind: 4, size: 5 * mib, comment: "before the upgrade", id: 2, modified: 3, parent: 1, parentMod: 9, extra: 512, blocks: map[int]int{1: 1}}.bytes()
	i, err := vdi.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	require.Equal(t, vdi.Info{
		Subformat: "differencing", DiskSize: 5 * mib, Version: "1.1", Banner: "<<< by hand >>>", Comment: "before the upgrade",
		BlockSize: mib, BlockExtra: 512, Blocks: 5, Allocated: 1, ID: uuid(2), Modification: uuid(3),
		Parent: &vdi.Parent{ID: uuid(1), Modification: uuid(9), Name: "{" + uuid(1) + "}.vdi"},
	}, i)
}

func TestCheck(t *testing.T) {
	b := spec{kind: 1, size: 5 * mib, blocks: map[int]int{0: 1, 1: 1, 4: 1}}.bytes()
	check := func() ([]string, []string) {
		rep, err := vdi.Check(t.Context(), bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		return rep.Errors, rep.Warnings
	}
	errs, warnings := check()
	require.Empty(t, errs)
	require.Empty(t, warnings)
	le.PutUint32(b[0x184:], 2)
	errs, warnings = check()
	require.Empty(t, errs)
	require.Equal(t, []string{"header: 2 allocated blocks, the block map has 3"}, warnings)
	le.PutUint32(b[512+4:], 0)
	errs, _ = check()
	require.Len(t, errs, 1)
	require.Contains(t, errs[0], "blocks 0 and 1 are stored in the same bytes")
	le.PutUint32(b[512+4:], 3)
	errs, _ = check()
	require.Len(t, errs, 1)
	require.Contains(t, errs[0], "block map: entry 1 is at byte")
}
