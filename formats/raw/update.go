package raw

import (
	"context"
	"fmt"

	"hypersdk/formats"
)

// Update opens the disk in f, which has size bytes, to be overwritten in place. Zeros become holes where
// the file system can make them, otherwise they are written. There is nothing but the bytes of the disk,
// so that a crash cannot leave anything that contradicts itself.
func Update(ctx context.Context, f formats.File, size int64) (formats.Writer, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("raw: a disk of %d bytes: %w", size, formats.ErrFormat)
	}
	w := &writer{f: f, size: size}
	w.file, _ = f.(descriptor)
	if _, err := w.device(); err != nil {
		return nil, err
	}
	if err := w.reaches(size); err != nil {
		return nil, err
	}
	w.written.add(0, size)
	return w, nil
}
