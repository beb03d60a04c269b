// Package all lists the disk formats.
package all

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
	"hypersdk/formats/vdi"
	"hypersdk/formats/vhd"
	"hypersdk/formats/vhdx"
	"hypersdk/formats/vmdk"
)

// edge is how much of both ends of a file is looked at to recognise its format.
const edge = 512

// Formats are all formats.
func Formats() []formats.Format {
	return []formats.Format{
		qcow2.Format(),
		vmdk.Format(),
		vhdx.Format(),
		vdi.Format(),
		vhd.Format(),
		raw.Format(),
	}
}

// ByName finds a format by its name or an alias of it, in any case.
func ByName(name string) (formats.Format, error) {
	var known []string
	for _, f := range Formats() {
		for _, n := range append([]string{f.Name}, f.Alias...) {
			if strings.EqualFold(n, name) {
				return f, nil
			}
		}
		known = append(known, f.Name)
	}
	return formats.Format{}, fmt.Errorf("format %q: %s are: %w", name, strings.Join(known, ", "), formats.ErrFormat)
}

// Probe recognises the format of a file of size bytes by its content. Raw is never the answer: a guest
// can write whatever it likes into a raw disk, and must not choose how it is read. For the same reason
// a file that looks like two formats is refused: the first bytes of a fixed VHD, and the last ones of
// many images, are the guest's.
func Probe(r io.ReaderAt, size int64) (formats.Format, error) {
	n := min(max(size, 0), edge)
	head, tail := make([]byte, n), make([]byte, n)
	for _, end := range []struct {
		b   []byte
		off int64
	}{{head, 0}, {tail, size - n}} {
		if m, err := r.ReadAt(end.b, end.off); m < len(end.b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = fmt.Errorf("it has not %d bytes: %w", size, formats.ErrCorrupt)
			}
			return formats.Format{}, fmt.Errorf("recognise a file: %w", err)
		}
	}
	var found []formats.Format
	for _, f := range Formats() {
		if f.Probe != nil && f.Probe(slices.Clone(head), slices.Clone(tail)) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 0:
		return formats.Format{}, fmt.Errorf("the file is in no known disk format (a raw disk has to be named so): %w", formats.ErrFormat)
	case 1:
		return found[0], nil
	}
	return formats.Format{}, fmt.Errorf("the file begins or ends like %s and like %s, name the format with -f: %w", found[0].Name, found[1].Name, formats.ErrFormat)
}

// Open recognises and opens a file of size bytes.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	f, err := Probe(r, size)
	if err != nil {
		return nil, err
	}
	if f.Open == nil {
		return nil, fmt.Errorf("%s cannot be read at random: %w", f.Name, formats.ErrFormat)
	}
	return f.Open(ctx, r, size, o)
}
