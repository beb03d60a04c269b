// Package raw is the disk as it is: byte n of the file is byte n of the disk. Whatever has no format is
// raw, so a file is taken for it only when someone says so.
package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"syscall"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

// Format is raw. A disk may have any size in bytes, and writes may be of any length.
func Format() formats.Format {
	return formats.Format{
		Name:   "raw",
		Alias:  []string{"img"},
		Ext:    ".raw",
		Open:   Open,
		Create: Create,
		Update: Update,
		Encode: Encode,
		Info: func(_ context.Context, _ io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Info, error) {
			return formats.Info{Format: "raw", VirtualSize: size}, nil
		},
	}
}

// descriptor is what is asked of a file beyond reading and writing: what [os.File] has, and whatever
// embeds one.
type descriptor interface {
	io.Seeker
	syscall.Conn
	Name() string
	Stat() (fs.FileInfo, error)
}

// Open reads the size bytes of r as a disk. Holes are known where r is an [os.File] or embeds one.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	if size < 0 {
		return nil, fmt.Errorf("raw: a disk of %d bytes: %w", size, formats.ErrFormat)
	}
	if o.Snapshot != "" {
		return nil, fmt.Errorf("raw: snapshot %q: raw disks have no snapshots: %w", o.Snapshot, formats.ErrFormat)
	}
	img := &image{ctx: ctx, r: r, size: size}
	img.file, _ = r.(descriptor)
	return img, nil
}

type image struct {
	ctx  context.Context
	r    io.ReaderAt
	file descriptor // nil: holes are not known
	size int64
}

func (m *image) Size() int64  { return m.size }
func (m *image) Close() error { return nil }

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	if err := context.Cause(m.ctx); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("raw: read at %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	b := p[:min(int64(len(p)), m.size-off)]
	n, err := m.r.ReadAt(b, off)
	switch {
	case n == len(p):
		return n, nil
	case n == len(b):
		return n, io.EOF
	case err == nil || errors.Is(err, io.EOF):
		err = fmt.Errorf("raw: the file ends at %d of %d bytes: %w", off+int64(n), m.size, formats.ErrCorrupt)
	}
	return n, err
}

// Extents asks the file system where data is (lseek(2), SEEK_DATA). Where it cannot tell, all is data.
func (m *image) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	if off < 0 || n < 0 || off > m.size-n {
		return func(yield func(formats.Extent, error) bool) {
			yield(formats.Extent{}, fmt.Errorf("raw: map of [%d, %d) of %d bytes", off, off+n, m.size))
		}
	}
	return func(yield func(formats.Extent, error) bool) {
		for end := off + n; off < end; {
			err := context.Cause(ctx)
			if err == nil {
				err = context.Cause(m.ctx)
			}
			var e formats.Extent
			if err == nil {
				e, err = m.extent(off, end)
			}
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
			off = e.End()
		}
	}
}

// extent is the stretch that begins at off and ends at end or before.
func (m *image) extent(off, end int64) (formats.Extent, error) {
	e := formats.Extent{Off: off, Len: end - off, Kind: formats.Data}
	if m.file == nil {
		return e, nil
	}
	// Nobody else uses the file's position, and the answer does not depend on it.
	data, err := m.file.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here on
		// A file that has become shorter has no data there either: that is for ReadAt to find.
		if last, err := m.file.Seek(0, io.SeekEnd); err == nil && last >= end {
			e.Kind = formats.Zero
		}
		return e, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ESPIPE):
		return e, nil
	case err != nil:
		return e, fmt.Errorf("raw: find data from %d on: %w", off, err)
	case data > off:
		e.Kind, e.Len = formats.Zero, min(data, end)-off
		return e, nil
	}
	hole, err := m.file.Seek(off, unix.SEEK_HOLE)
	if err != nil {
		return e, fmt.Errorf("raw: find a hole from %d on: %w", off, err)
	}
	if hole > off {
		e.Len = min(hole, end) - off
	}
	return e, nil
}
