// Package qcow2 reads and writes QEMU's copy-on-write images.
//
// Reading: versions 2 and 3, clusters of 512 bytes to 2 MiB, extended L2 entries, zlib and zstd
// clusters, backing files, internal snapshots, bitmaps. Encryption and external data files are refused.
//
// Writing: version 3 with refcounts of 16 bits, plain, zlib or zstd, with or without a backing file; in
// place, into images of plain clusters that stand alone.
package qcow2

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/raw"
)

// Format is qcow2.
func Format() formats.Format {
	return formats.Format{
		Name:  "qcow2",
		Ext:   ".qcow2",
		Probe: func(head, _ []byte) bool { return isQcow2(head) },
		Open: func(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
			img, err := Open(ctx, r, size, o)
			if err != nil {
				return nil, err
			}
			return img, nil
		},
		Create: Create,
		Update: Update,
		Info:   info,
		Check:  check,
	}
}

// maxChain bounds the number of files behind an image.
const maxChain = 200

// Open reads a disk stored in r, which holds size bytes, together with the chain of files behind it,
// unless o.Layer is set. Backing files are qcow2 or raw.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (*Image, error) {
	return open(ctx, r, size, o, &shared{tables: newTables()})
}

func open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions, s *shared) (*Image, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	m := &Image{
		mapping: mapping{header: h, file: &file{r: r, size: size, id: len(s.names)}, tables: s.tables, l1: h.l1Off, l1Entries: h.l1Entries},
		ctx:     ctx, size: h.size, layer: o.Layer, shared: s,
	}
	if o.Snapshot != "" {
		if err := m.enter(o.Snapshot); err != nil {
			return nil, err
		}
	}
	if err := m.keepL1(); err != nil {
		return nil, err
	}
	if h.backing == "" || o.Layer {
		return m, nil
	}
	if err := m.openBacking(ctx, o); err != nil {
		return nil, fmt.Errorf("qcow2: backing file %q: %w", h.backing, err)
	}
	return m, nil
}

func (m *Image) openBacking(ctx context.Context, o formats.OpenOptions) error {
	name, err := fileName(m.header.backing)
	if err != nil {
		return err
	}
	if o.Beside == nil {
		return fmt.Errorf("opening it is not allowed here: %w", formats.ErrFormat)
	}
	if len(m.shared.names) >= maxChain {
		return corrupt("more than %d files behind one another", maxChain)
	}
	f, err := o.Beside(name)
	if err != nil {
		return err
	}
	m.closer = f.Closer
	if f.Name != "" && slices.Contains(m.shared.names, f.Name) {
		err = corrupt("%q is behind itself", f.Name)
	} else {
		m.shared.names = append(m.shared.names, f.Name)
		m.backing, err = m.openAs(ctx, f)
	}
	if err != nil && m.closer != nil {
		f.Close()
	}
	return err
}

// openAs opens a backing file in the format that the image names. Where it names none, the file must
// be qcow2: a guest could write any header into a raw disk.
func (m *Image) openAs(ctx context.Context, f formats.Opened) (formats.Image, error) {
	o := formats.OpenOptions{Beside: f.Beside}
	switch m.backingFmt {
	case "raw":
		return raw.Open(ctx, f.ReaderAt, f.Size, o)
	case "qcow2", "":
		img, err := open(ctx, f.ReaderAt, f.Size, o, m.shared)
		if err != nil {
			return nil, err
		}
		return img, nil
	}
	return nil, unsupported("backing format %q", m.backingFmt)
}

// fileName is the name of a file as a backing name gives it. What names something else is refused: an
// image from anywhere could reach out to anything.
func fileName(name string) (string, error) {
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		return rest, nil
	}
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		return "", unsupported("only names of files are")
	}
	return name, nil
}
