package vhdx

import (
	"context"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// Where a new image keeps what is no block. Everything begins on a MiB.
const (
	newLog      = 1 * mib
	newMetadata = 2 * mib
	newBAT      = 3 * mib
)

// creator is what a new image says that it was made by.
const creator = "HyperSDK"

// Create lays a disk out in f: [Dynamic] unless another subformat is asked for. Its identifiers are
// made of what it holds (see [blocks.Seed]), so that the same writes give the same bytes.
//
// Blocks have 32 MiB, as Hyper-V makes them; ClusterSize may be any power of two from 1 to 256 MiB.
// Small ones suit file systems that scatter what they write.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	sizes := []int64{32 * mib, 1 * mib, 2 * mib, 4 * mib, 8 * mib, 16 * mib, 64 * mib, 128 * mib, 256 * mib}
	sub, block, err := blocks.Choose("vhdx", o, []string{Dynamic, Fixed}, sizes)
	if err != nil {
		return nil, err
	}
	if size < 0 || size > maxSize {
		return nil, fmt.Errorf("vhdx: a disk of %d bytes: a VHDX holds up to 64 TiB: %w", size, formats.ErrFormat)
	}
	m := metadata{size: blocks.Up(size, blocks.Sector), block: block, fixed: sub == Fixed, logical: 512, physical: 4096}
	n := (size + block - 1) / block
	ratio := chunkRatio(m.logical, block)
	entries := tableLen(n, ratio)
	bat := blocks.Region{Off: newBAT, Len: max(mib, blocks.Up(entries*8, mib))}
	first := uint64(bat.End()) | fullyPresent
	commit := func(f formats.File, s blocks.Seed) ([]blocks.Mark, error) {
		m.id = s.ID("virtual disk")
		return describe(f, m, bat, s)
	}
	if sub == Fixed {
		return blocks.Fix(ctx, f, blocks.Plain{
			Name: "vhdx " + Fixed,
			Size: size,
			Head: headSize,
			Data: bat.End(),
			End:  bat.End() + n*block,
			Commit: func(f formats.File, s blocks.Seed) ([]blocks.Mark, error) {
				err := blocks.WriteTable(f, bat.Off, entries, 8, binary.LittleEndian, func(i int64) uint64 {
					if i%(ratio+1) == ratio {
						return notPresent // a bitmap
					}
					return first + uint64((i-i/(ratio+1))*block)
				})
				if err != nil {
					return nil, err
				}
				return commit(f, s)
			},
		}, from)
	}
	return blocks.Grow(ctx, f, blocks.Layout{
		Name:    "vhdx " + Dynamic,
		Size:    size,
		Block:   block,
		Head:    headSize,
		Table:   bat.Off,
		Entries: entries,
		Width:   8,
		Order:   binary.LittleEndian,
		Index:   func(b int64) int64 { return b + b/ratio },
		Free:    notPresent,
		First:   first,
		Step:    uint64(block),
		Data:    bat.End(),
		Stride:  block,
		Commit: func(f formats.File, _, _ int64, s blocks.Seed) ([]blocks.Mark, error) {
			return commit(f, s)
		},
	}, from)
}

// headSize is what of the file is zero until it is an image: more than the identifier.
const headSize = 4 * kib

// describe writes metadata, region tables and headers, and answers the identifier.
func describe(f formats.File, m metadata, bat blocks.Region, s blocks.Seed) ([]blocks.Mark, error) {
	regions := encodeRegions(bat, blocks.Region{Off: newMetadata, Len: mib})
	h := header{
		sequence:  1,
		fileWrite: s.ID("file write"),
		dataWrite: s.ID("data write"),
		version:   1,
		logLen:    mib,
		logOff:    newLog,
	}
	older := h.encode()
	h.sequence++
	for _, part := range []blocks.Mark{
		{Off: newMetadata, Bytes: m.encode()},
		{Off: regions1At, Bytes: regions},
		{Off: regions2At, Bytes: regions},
		{Off: header1At, Bytes: older},
		{Off: header2At, Bytes: h.encode()},
	} {
		if _, err := f.WriteAt(part.Bytes, part.Off); err != nil {
			return nil, err
		}
	}
	id := []byte(identifierSignature)
	for _, c := range utf16.Encode([]rune(creator)) {
		id = binary.LittleEndian.AppendUint16(id, c)
	}
	return []blocks.Mark{{Off: identifierAt, Bytes: id}}, nil
}
