package vdi

import (
	"context"
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

const mib = 1 << 20

// blockSize is the only one that qemu reads, and the one that VirtualBox makes.
const blockSize = 1 * mib

// tableAt is where VirtualBox puts the block map; the data begins on the next multiple behind it.
const tableAt = 1 * mib

// maxBlocks keeps the offset of the data below 4 GiB, as the header wants it: almost 1 PiB.
const maxBlocks = (4<<30 - 2*mib) / 4

// Create lays a disk out in f: [Dynamic] unless another subformat is asked for. Its UUIDs are made of
// what it holds (see [blocks.Seed]), so that the same writes give the same bytes.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	sub, block, err := blocks.Choose("vdi", o, []string{Dynamic, Static}, []int64{blockSize})
	if err != nil {
		return nil, err
	}
	h := header{
		kind:   typeDynamic,
		table:  tableAt,
		size:   blocks.Up(size, blocks.Sector),
		block:  block,
		blocks: (size + block - 1) / block,
	}
	if size < 0 || h.blocks > maxBlocks {
		return nil, fmt.Errorf("vdi: a disk of %d bytes: a VDI holds up to %d: %w", size, int64(maxBlocks*blockSize), formats.ErrFormat)
	}
	h.data = blocks.Up(h.table+h.blocks*4, mib)
	if sub == Static {
		return createStatic(ctx, f, size, h, from)
	}
	return blocks.Grow(ctx, f, blocks.Layout{
		Name:    "vdi " + Dynamic,
		Size:    size,
		Block:   block,
		Head:    headerBuffer,
		Table:   h.table,
		Entries: h.blocks,
		Width:   4,
		Order:   binary.LittleEndian,
		Index:   func(b int64) int64 { return b },
		Free:    entryFree,
		First:   0,
		Step:    1,
		Data:    h.data,
		Stride:  block,
		Commit: func(_ formats.File, stored, _ int64, s blocks.Seed) ([]blocks.Mark, error) {
			h.allocated = stored
			return h.marks(s), nil
		},
	}, from)
}

// createStatic stores every block, in the order of the disk.
func createStatic(ctx context.Context, f formats.File, size int64, h header, from formats.Checkpoint) (formats.Writer, error) {
	h.kind, h.allocated = typeStatic, h.blocks
	return blocks.Fix(ctx, f, blocks.Plain{
		Name: "vdi " + Static,
		Size: size,
		Head: headerBuffer,
		Data: h.data,
		End:  h.data + h.blocks*h.block,
		Commit: func(f formats.File, s blocks.Seed) ([]blocks.Mark, error) {
			err := blocks.WriteTable(f, h.table, h.blocks, 4, binary.LittleEndian, func(i int64) uint64 { return uint64(i) })
			return h.marks(s), err
		},
	}, from)
}

func (h header) marks(s blocks.Seed) []blocks.Mark {
	h.id, h.modified = s.ID("image"), s.ID("modification")
	return []blocks.Mark{{Off: 0, Bytes: h.encode()}}
}
