// Package vmdk reads and writes VMDK, VMware's disk format ("Virtual Disk Format 5.0").
//
// Read are monolithicSparse and streamOptimized disks (versions 1 to 3, in each of the layouts that
// qemu, ESXi and open-vmdk give a stream), monolithicFlat and vmfs disks, disks split into extents of
// 2 GB, and the deltas of snapshots: vmfsSparse (COWD), seSparse, and sparse extents with a parent.
// Extents and parents are opened through [formats.OpenOptions.Beside] only. A streamOptimized disk is
// also read front to back.
//
// Written are monolithicSparse, streamOptimized (into a file, with checkpoints, or a pipe) and
// monolithicFlat disks. A VMDK counts in sectors: a disk that is no whole number of them gets zeros up
// to the next one.
package vmdk

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"hypersdk/formats"
)

// Subformats that can be written.
const (
	MonolithicSparse = "monolithicSparse"
	StreamOptimized  = "streamOptimized"
	// MonolithicFlat is the bytes of the disk as they are; a descriptor beside them makes it a VMDK,
	// see [WriteDescriptor].
	MonolithicFlat = "monolithicFlat"
)

// Format is VMDK.
func Format() formats.Format {
	return formats.Format{
		Name:   "vmdk",
		Ext:    ".vmdk",
		Probe:  probe,
		Open:   Open,
		Stream: Stream,
		Create: Create,
		Encode: Encode,
		Info:   info,
		Check:  check,
	}
}

// probe finds the magic of an extent, or the beginning of a descriptor.
func probe(head, _ []byte) bool {
	return isSparse(head) || isCOWD(head) || isSE(head) || beginsDescriptor(head)
}

// Create lays a disk out in f: monolithicSparse unless another subformat, or compression, is asked for.
func Create(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
	sub, err := choose(o)
	if err != nil {
		return nil, err
	}
	switch sub {
	case StreamOptimized:
		return newResumable(ctx, f, size, o, from)
	case MonolithicFlat:
		return createFlat(ctx, f, size, from)
	}
	return createSparse(ctx, f, size, o, from)
}

// choose checks the options of a new disk and answers its subformat.
func choose(o formats.CreateOptions) (string, error) {
	sub := o.Subformat
	packed := o.Compression != "" && o.Compression != "none"
	if sub == "" {
		sub = MonolithicSparse
		if packed {
			sub = StreamOptimized
		}
	}
	known := []string{MonolithicSparse, StreamOptimized, MonolithicFlat}
	i := slices.IndexFunc(known, func(s string) bool { return strings.EqualFold(s, sub) })
	switch {
	case i < 0:
		return "", fmt.Errorf("vmdk: subformat %q, which is not one of %q: %w", sub, known, formats.ErrFormat)
	case packed && known[i] != StreamOptimized:
		return "", fmt.Errorf("vmdk: compression %q: only subformat %q is compressed: %w", o.Compression, StreamOptimized, formats.ErrFormat)
	case packed && o.Compression != "zlib" && o.Compression != "deflate":
		return "", fmt.Errorf("vmdk: compression %q, only \"zlib\" is known: %w", o.Compression, formats.ErrFormat)
	case o.Level != 0 && known[i] != StreamOptimized:
		return "", fmt.Errorf("vmdk: compression level %d: only subformat %q is compressed: %w", o.Level, StreamOptimized, formats.ErrFormat)
	case o.ClusterSize != 0 && o.ClusterSize != grainSize:
		return "", fmt.Errorf("vmdk: cluster size %d: grains of %d bytes are what every VMware product reads: %w", o.ClusterSize, grainSize, formats.ErrFormat)
	case o.Backing != "":
		return "", fmt.Errorf("vmdk: writing a delta upon %q: %w", o.Backing, formats.ErrFormat)
	case o.Prealloc != "" && o.Prealloc != "off":
		return "", fmt.Errorf("vmdk: preallocation %q (subformat %q stores every byte): %w", o.Prealloc, MonolithicFlat, formats.ErrFormat)
	}
	return known[i], nil
}
