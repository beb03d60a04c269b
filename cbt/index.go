package cbt

import (
	"bytes"
	"context"
	"fmt"

	"hypersdk/formats"
)

// The index of a disk is its digest sidecar ([formats.Digests]): a head with magic, version and the
// sealed content digest, and pages of sums with a checksum each, of which a few are in memory at a time.

// Compare finds what changed since the index was made by reading all of img and comparing digests: for
// sources without tracking. It notes the sums of img in fresh, which must be new and of img's size, and
// answers whole blocks of 1 MiB, and the content digest of img. All that lies behind the end of a disk
// that was shorter is changed, and so is a block that the index does not know.
func Compare(ctx context.Context, img formats.Image, index, fresh *formats.Digests, opt formats.VerifyOptions) (Set, formats.Digest, error) {
	d, err := formats.DigestOf(ctx, img, fresh, opt)
	if err != nil {
		return Set{}, d, fmt.Errorf("compare with the index: %w", err)
	}
	changed, err := Differ(ctx, index, fresh)
	return changed, d, err
}

// Differ is the blocks of now that are not those of before.
func Differ(ctx context.Context, before, now *formats.Digests) (Set, error) {
	var changed Set
	for i := range now.Blocks() {
		if err := context.Cause(ctx); err != nil && i%1024 == 0 {
			return Set{}, err
		}
		same, err := sameBlock(before, now, i)
		if err != nil {
			return Set{}, fmt.Errorf("compare block %d: %w", i, err)
		}
		if !same {
			if err := changed.Add(i*formats.BlockSize, now.BlockLen(i)); err != nil {
				return Set{}, err
			}
		}
	}
	return changed, nil
}

// sameBlock says whether both know block i, as long and with the same sum.
func sameBlock(a, b *formats.Digests, i int64) (bool, error) {
	if i >= a.Blocks() || a.BlockLen(i) != b.BlockLen(i) {
		return false, nil
	}
	x, xok, err := a.Sum(i)
	if err != nil {
		return false, err
	}
	y, yok, err := b.Sum(i)
	return err == nil && xok && yok && x == y, err
}

// Claim is what a tracker said of a disk, and the truth to hold it against.
type Claim struct {
	Ranges Set // that the tracker says changed
	// Before and Now are the indexes of both points, Now from reading the whole disk.
	Before, Now *formats.Digests
	// Old and New are the disk at both points; nil: blocks are only told apart by their digest, and
	// one that the claim touches anywhere passes.
	Old, New formats.Image
}

// Audit answers what changed and was not claimed; it is empty for a tracker that can be trusted. A
// tracker may well claim what did not change. With Old and New the answer is exact to 4 KiB.
func Audit(ctx context.Context, c Claim) (missed Set, err error) {
	changed, err := Differ(ctx, c.Before, c.Now)
	if err != nil {
		return Set{}, fmt.Errorf("audit: %w", err)
	}
	var a auditor
	for r := range changed.All() {
		for off := r.Off; off < r.End(); off += formats.BlockSize {
			n := min(formats.BlockSize, r.End()-off)
			if c.Ranges.Covers(off, n) {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return Set{}, err
			}
			if err := a.block(c, off, n, &missed); err != nil {
				return Set{}, fmt.Errorf("audit: block at %d: %w", off, err)
			}
		}
	}
	return missed, nil
}

const auditGrain = 4 << 10

type auditor struct{ old, now [formats.BlockSize]byte }

// block adds to missed what of a changed block was not claimed.
func (a *auditor) block(c Claim, off, n int64, missed *Set) error {
	if c.Old == nil || c.New == nil || off+n > c.Old.Size() {
		if c.Old == nil && c.Ranges.Touches(off, n) {
			return nil
		}
		return addAll(missed, Whole(off+n).Clip(off, n).Subtract(c.Ranges))
	}
	if err := readFull(c.Old, a.old[:n], off); err != nil {
		return err
	}
	if err := readFull(c.New, a.now[:n], off); err != nil {
		return err
	}
	for at := int64(0); at < n; at += auditGrain {
		end := min(at+auditGrain, n)
		if bytes.Equal(a.old[at:end], a.now[at:end]) {
			continue
		}
		grain := Set{[]Range{{off + at, end - at}}}
		for r := range grain.Subtract(c.Ranges).All() {
			lo, hi := r.Off-off, r.End()-off
			if !bytes.Equal(a.old[lo:hi], a.now[lo:hi]) {
				if err := missed.Add(r.Off, r.Len); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func addAll(to *Set, s Set) error {
	for r := range s.All() {
		if err := to.Add(r.Off, r.Len); err != nil {
			return err
		}
	}
	return nil
}
