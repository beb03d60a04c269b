package vdi

import (
	"context"
	"io"
	"strconv"

	"hypersdk/formats"
)

// info is Inspect in the words of all formats.
func info(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Info, error) {
	i, err := Inspect(ctx, r, size)
	if err != nil {
		return formats.Info{}, err
	}
	out := formats.Info{Format: "vdi", VirtualSize: i.DiskSize, Variant: i.Subformat, ClusterSize: i.BlockSize}
	out.Details = []formats.Detail{
		{Name: "version", Value: i.Version},
		{Name: "banner", Value: i.Banner},
		{Name: "comment", Value: i.Comment},
		{Name: "bytes before each block", Value: strconv.FormatInt(i.BlockExtra, 10)},
		{Name: "allocated blocks", Value: strconv.FormatInt(i.Allocated, 10)},
		{Name: "image id", Value: i.ID},
		{Name: "modification id", Value: i.Modification},
	}
	if p := i.Parent; p != nil {
		out.Parent = &formats.ParentInfo{Name: p.Name, Format: "vdi"}
		out.Details = append(out.Details,
			formats.Detail{Name: "parent image id", Value: p.ID}, formats.Detail{Name: "parent modification id", Value: p.Modification})
	}
	return out, nil
}

func check(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Report, error) {
	rep, err := Check(ctx, r, size)
	return rep.Shared(), err
}
