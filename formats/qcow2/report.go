package qcow2

import (
	"context"
	"io"
	"strconv"

	"hypersdk/formats"
)

// info is Info in the words of all formats.
func info(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Info, error) {
	m, err := Open(ctx, r, size, formats.OpenOptions{Layer: true})
	if err != nil {
		return formats.Info{}, err
	}
	defer m.Close()
	i, err := m.Info()
	if err != nil {
		return formats.Info{}, err
	}
	out := formats.Info{Format: "qcow2", VirtualSize: i.DiskSize, ClusterSize: i.ClusterSize, Compression: i.Compression}
	if i.Backing != "" {
		out.Parent = &formats.ParentInfo{Name: i.Backing, Format: i.BackingFormat}
	}
	for _, s := range i.Snapshots {
		out.Snapshots = append(out.Snapshots, formats.SnapshotInfo{ID: s.ID, Name: s.Name, Time: s.Time, VirtualSize: s.DiskSize, StateSize: s.StateSize})
	}
	for _, b := range i.Bitmaps {
		out.Bitmaps = append(out.Bitmaps, formats.BitmapInfo{Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, InUse: b.InUse})
	}
	out.Details = []formats.Detail{
		{Name: "version", Value: strconv.Itoa(i.Version)},
		{Name: "refcount bits", Value: strconv.Itoa(i.RefcountBits)},
		{Name: "extended l2", Value: strconv.FormatBool(i.ExtendedL2)},
		{Name: "lazy refcounts", Value: strconv.FormatBool(i.LazyRefcounts)},
		{Name: "dirty", Value: strconv.FormatBool(i.Dirty)},
		{Name: "corrupt", Value: strconv.FormatBool(i.Corrupt)},
	}
	return out, nil
}

// check is Check in the words of all formats.
func check(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Report, error) {
	m, err := Open(ctx, r, size, formats.OpenOptions{Layer: true})
	if err != nil {
		return formats.Report{}, err
	}
	defer m.Close()
	c, err := m.Check(ctx)
	rep := formats.Report{
		Blocks:      (m.size + m.clusterSize() - 1) / m.clusterSize(),
		Allocated:   c.Allocated,
		Corruptions: c.Corruptions,
		Leaks:       c.Leaks,
		Problems:    c.Problems,
	}
	if m.header.incompat&incompatDirty != 0 {
		rep.Warnings = append(rep.Warnings, "header: the image was not closed by whoever wrote it last")
	}
	if m.header.incompat&incompatCorrupt != 0 {
		rep.Warnings = append(rep.Warnings, "header: marked as corrupt by a program that found contradictions in it")
	}
	return rep, err
}
