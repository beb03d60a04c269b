package vhd

import (
	"context"
	"io"
	"strconv"
	"time"

	"hypersdk/formats"
)

// info is Inspect in the words of all formats.
func info(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Info, error) {
	i, err := Inspect(ctx, r, size)
	if err != nil {
		return formats.Info{}, err
	}
	out := formats.Info{Format: "vhd", VirtualSize: i.DiskSize, Variant: i.Subformat, ClusterSize: i.BlockSize}
	if i.Parent != nil {
		out.Parent = &formats.ParentInfo{Format: "vhd"}
		if len(i.Parent.Names) > 0 {
			out.Parent.Name = i.Parent.Names[0]
		}
	}
	out.Details = []formats.Detail{
		{Name: "current size", Value: strconv.FormatInt(i.CurrentSize, 10)},
		{Name: "original size", Value: strconv.FormatUint(i.OriginalSize, 10)},
		{Name: "creator", Value: i.Creator},
		{Name: "creator version", Value: i.CreatorVersion},
		{Name: "creator host", Value: i.CreatorOS},
		{Name: "created", Value: i.Created.UTC().Format(time.RFC3339)},
		{Name: "unique id", Value: i.ID},
		{Name: "saved state", Value: strconv.FormatBool(i.SavedState)},
	}
	if i.Parent != nil {
		out.Details = append(out.Details, formats.Detail{Name: "parent unique id", Value: i.Parent.ID})
	}
	return out, nil
}

func check(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Report, error) {
	rep, err := Check(ctx, r, size)
	return rep.Shared(), err
}
