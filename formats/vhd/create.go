package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

const mib = 1 << 20

// alignment is what the bytes of each stored block begin on, so that writing them needs no reading of
// a page or a large sector first. The specification asks for sectors only.
const alignment = 4 << 10

// Create lays a disk out in f: [Dynamic] unless another subformat is asked for.
//
// What a VHD says of its origin does not depend on when and where it was written, so that the same
// writes give the same bytes: its time is the beginning of 2000, its unique id is made of what it
// holds (see [blocks.Seed]). It names Windows as its creator: Virtual PC's successors, Azure, qemu
// and libvhdi take the current size of such a disk for its size and not its geometry, which cannot
// express most sizes.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	sub, block, err := blocks.Choose("vhd", o, []string{Dynamic, Fixed, Azure}, []int64{2 * mib, mib / 2})
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("vhd: a disk of %d bytes: %w", size, formats.ErrFormat)
	}
	if size > maxSize {
		return nil, fmt.Errorf("vhd: a disk of %d bytes is larger than the 2040 GiB that a VHD can hold (a VHDX holds 64 TiB): %w", size, formats.ErrFormat)
	}
	stored := blocks.Up(size, sector)
	if sub == Azure {
		stored = blocks.Up(size, mib)
	}
	ft := footer{
		features:       2, // reserved, always set
		header:         noOffset,
		creator:        "win ",
		creatorVersion: 0x000a0000,
		creatorOS:      "Wi2k",
		originalSize:   uint64(stored),
		currentSize:    uint64(stored),
		geometry:       geometryOf(stored),
		kind:           typeFixed,
	}
	if sub == Dynamic {
		return createDynamic(ctx, f, size, block, ft, from)
	}
	return blocks.Fix(ctx, f, blocks.Plain{
		Name: "vhd " + sub,
		Size: size,
		End:  stored,
		Commit: func(_ formats.File, s blocks.Seed) ([]blocks.Mark, error) {
			ft.id = s.ID("unique id")
			return []blocks.Mark{{Off: stored, Bytes: ft.encode()}}, nil
		},
	}, from)
}

// createDynamic lays out: the copy of the footer, the dynamic header, the table, the blocks, and the
// footer. Before each block is its bitmap, all ones: what was not written of a block is zeros.
func createDynamic(ctx context.Context, f formats.File, size, block int64, ft footer, from formats.Checkpoint) (formats.Writer, error) {
	h := header{
		table:   footerSize + headerSize,
		entries: (size + block - 1) / block,
		block:   block,
	}
	bitmap := bytes.Repeat([]byte{0xff}, int(h.bitmap()))
	end := h.table + blocks.Up(h.entries*4, sector) // of the table
	first := blocks.Up(end+h.bitmap(), alignment) - h.bitmap()
	stride := blocks.Up(h.bitmap()+block, alignment)
	if first+h.entries*stride > sector*free {
		return nil, fmt.Errorf("vhd: %d blocks of %d bytes are more than a dynamic VHD can hold, use larger ones: %w", h.entries, block, formats.ErrFormat)
	}
	return blocks.Grow(ctx, f, blocks.Layout{
		Name:    "vhd " + Dynamic,
		Size:    size,
		Block:   block,
		Head:    footerSize,
		Table:   h.table,
		Entries: h.entries,
		Width:   4,
		Order:   binary.BigEndian,
		Index:   func(b int64) int64 { return b },
		Free:    free,
		First:   uint64(first / sector),
		Step:    uint64(stride / sector),
		Data:    first,
		Stride:  stride,
		Before:  bitmap,
		Commit: func(f formats.File, _, fileEnd int64, s blocks.Seed) ([]blocks.Mark, error) {
			ft.id = s.ID("unique id")
			ft.kind, ft.header = typeDynamic, footerSize
			// What is left of the table's last sector is free, too.
			rest := bytes.Repeat([]byte{0xff}, int(end-h.table-h.entries*4))
			if _, err := f.WriteAt(rest, h.table+h.entries*4); err != nil {
				return nil, err
			}
			if _, err := f.WriteAt(h.encode(), footerSize); err != nil {
				return nil, err
			}
			b := ft.encode()
			return []blocks.Mark{{Off: fileEnd, Bytes: b}, {Off: 0, Bytes: b}}, nil
		},
	}, from)
}
