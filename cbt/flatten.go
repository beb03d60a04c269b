package cbt

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hypersdk/formats"
)

// Flatten writes a disk at a point into dst, a writer of any format, and commits it once what was read
// has the digest of the point. A copy that stopped is gone on with from opt.From, with a writer that was
// opened with it; what lies before was proved, or is not, by whoever wrote it. Digests and Trust of opt
// are the chain's own affair. dst stays the caller's to close.
func (c *Chain) Flatten(ctx context.Context, number int64, disk string, dst formats.Writer, opt formats.CopyOptions) (formats.Result, error) {
	res, err := c.flatten(ctx, number, disk, dst, opt)
	if err != nil {
		return res, fmt.Errorf("flatten point %d of disk %q: %w", number, disk, err)
	}
	return res, nil
}

func (c *Chain) flatten(ctx context.Context, number int64, disk string, dst formats.Writer, opt formats.CopyOptions) (formats.Result, error) {
	src, err := c.Open(ctx, number, disk)
	if err != nil {
		return formats.Result{}, err
	}
	defer src.Close()
	index, closeIndex, err := c.Index(number, disk)
	if err != nil {
		return formats.Result{}, err
	}
	defer func() { _ = closeIndex() }()
	sums, err := scratch()
	if err != nil {
		return formats.Result{}, err
	}
	defer sums.Close()
	opt.Trust = false
	if opt.Digests, err = formats.CreateDigests(sums, src.Size()); err != nil {
		return formats.Result{}, err
	}
	for i := range min((opt.From.Off+formats.BlockSize-1)/formats.BlockSize, index.Blocks()) {
		s, _, err := index.Sum(i)
		if err == nil {
			err = opt.Digests.Put(i, s)
		}
		if err != nil {
			return formats.Result{}, err
		}
	}
	res, err := formats.Copy(ctx, dst, src, opt)
	if err != nil {
		return res, err
	}
	if want, _ := index.Sealed(); res.Digest != want {
		return res, fmt.Errorf("what was read has the digest %s, the point has %s (a check of the chain names the link): %w", res.Digest, want, formats.ErrCorrupt)
	}
	return res, dst.Commit(ctx)
}

// scratch is a file without a name.
func scratch() (*os.File, error) {
	f, err := os.CreateTemp("", "hypersdk-digests")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
