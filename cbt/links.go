package cbt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
)

// openLink opens the file of a link and holds what it says of itself against the manifest.
func (c *Chain) openLink(ctx context.Context, l link) (*os.File, int64, error) {
	f, info, err := c.d.open(l.disk.File)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it is missing: %w", formats.ErrCorrupt)
	}
	if err != nil {
		return nil, 0, l.fail(err)
	}
	if err := c.matches(ctx, l, f, info.Size()); err != nil {
		return nil, 0, l.fail(errors.Join(err, f.Close()))
	}
	return f, info.Size(), nil
}

// matches holds the header of a file against what the manifest says, or against what it is about to
// say.
func (c *Chain) matches(ctx context.Context, l link, f *os.File, size int64) error {
	info, err := qcow2.Format().Info(ctx, f, size, formats.OpenOptions{})
	if err != nil {
		return err
	}
	want := l.disk
	if c.pending != nil && slices.Contains(c.pending.Renames, l.disk.File) {
		// A merge that was killed may have put the full disk in place of the delta already.
		if next := c.pending.Manifest.files()[l.disk.File].disk; next != nil && info.Parent == nil {
			want = next
		}
	}
	var parent formats.ParentInfo
	if info.Parent != nil {
		parent = *info.Parent
	}
	switch {
	case parent.Name != want.Backing || parent.Name != "" && parent.Format != "qcow2":
		return fmt.Errorf("its backing file is %q (%s) instead of %q: %w", parent.Name, parent.Format, want.Backing, formats.ErrCorrupt)
	case info.VirtualSize != want.Size:
		return fmt.Errorf("its disk has %d bytes instead of %d: %w", info.VirtualSize, want.Size, formats.ErrCorrupt)
	case size != want.Stored:
		return fmt.Errorf("it has %d bytes instead of %d: %w", size, want.Stored, formats.ErrCorrupt)
	}
	return nil
}

// readOnlyFile makes a formats.File of a file that nobody writes to.
type readOnlyFile struct{ *os.File }

func (readOnlyFile) WriteAt([]byte, int64) (int, error) { return 0, ErrReadOnly }
func (readOnlyFile) Truncate(int64) error               { return ErrReadOnly }
func (readOnlyFile) Sync() error                        { return ErrReadOnly }

// openIndex opens the index of a link, whose head must carry the digest of the manifest.
func (c *Chain) openIndex(l link) (*formats.Digests, func() error, error) {
	fail := func(err error) error {
		return &LinkError{Point: l.point.Number, Disk: l.disk.Disk, File: l.disk.Index, Err: err}
	}
	f, _, err := c.d.open(l.disk.Index)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it is missing: %w", formats.ErrCorrupt)
	}
	if err != nil {
		return nil, nil, fail(err)
	}
	d, err := formats.OpenDigests(readOnlyFile{f})
	if err == nil {
		if sum, ok := d.Sealed(); !ok || sum.String() != l.disk.Digest || d.Size() != l.disk.Size {
			err = fmt.Errorf("it is not that of the point: %w", formats.ErrCorrupt)
		}
	}
	if err != nil {
		return nil, nil, fail(errors.Join(err, f.Close()))
	}
	return d, f.Close, nil
}

// whole examines all files that a disk is read through at a point, without reading their data: they are
// there, and are what the manifest says.
func (c *Chain) whole(ctx context.Context, number int64, disk string) error {
	links, err := c.m.links(number, disk)
	if err != nil {
		return err
	}
	for _, l := range links {
		f, _, err := c.openLink(ctx, l)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
