package vmdk

import (
	"context"
	"fmt"
	"io"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
	"hypersdk/formats/raw"
)

// createFlat writes the one extent of a monolithicFlat disk, which is the disk as it is.
func createFlat(ctx context.Context, f formats.File, size int64, from formats.Checkpoint) (formats.Writer, error) {
	if err := fits(size); err != nil {
		return nil, err
	}
	return raw.Create(ctx, f, up(size, sector), formats.CreateOptions{}, from)
}

// fits refuses sizes that no VMDK has.
func fits(size int64) error {
	if size <= 0 || (size-1)/sector >= maxSectors {
		return fmt.Errorf("vmdk: a disk of %d bytes: %w", size, formats.ErrFormat)
	}
	return nil
}

// WriteDescriptor writes the descriptor of a monolithicFlat disk to w. Its extent, which [Create] wrote
// into flat, is a file of size bytes beside the descriptor and has that name. The convention is
// "disk.vmdk" for the descriptor of "disk-flat.vmdk". The content id is made of the first MiB of the
// disk.
func WriteDescriptor(w io.Writer, flat io.ReaderAt, size int64, name string, o formats.CreateOptions) error {
	if err := fits(size); err != nil {
		return err
	}
	id, err := identify(MonolithicFlat, flat, size)
	if err != nil {
		return fmt.Errorf("vmdk: %w", err)
	}
	d, err := describe(MonolithicFlat, Extent{Access: "RW", Sectors: up(size, sector) / sector, Type: "FLAT", Name: name}, id, o.Adapter)
	if err != nil {
		return err
	}
	if _, err := parseDescriptor(d.text()); err != nil || d.Extents[0].Name != name {
		return fmt.Errorf("vmdk: a file name %q cannot stand in a descriptor: %w", name, formats.ErrFormat)
	}
	if _, err := w.Write(d.text()); err != nil {
		return fmt.Errorf("vmdk: descriptor: %w", err)
	}
	return nil
}

// identity is how much of a disk goes into its content id: partition tables and their identifiers.
const identity = 1 << 20

// identify makes a content id of the beginning of a disk.
func identify(kind string, disk io.ReaderAt, size int64) (uint32, error) {
	key := fmt.Appendf(nil, "%s %d ", kind, size)
	b := make([]byte, min(size, identity))
	if err := (blocks.File{ReaderAt: disk, Size: size}).ReadFull(b, 0); err != nil {
		return 0, err
	}
	return contentID(append(key, b...)), nil
}
