package vhdx

import (
	"context"
	"io"
	"strconv"
	"strings"

	"hypersdk/formats"
)

// info is Inspect in the words of all formats.
func info(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Info, error) {
	i, err := Inspect(ctx, r, size)
	if err != nil {
		return formats.Info{}, err
	}
	out := formats.Info{Format: "vhdx", VirtualSize: i.DiskSize, Variant: i.Subformat, ClusterSize: i.BlockSize}
	out.Details = []formats.Detail{
		{Name: "creator", Value: i.Creator},
		{Name: "logical sector size", Value: strconv.FormatInt(i.LogicalSector, 10)},
		{Name: "physical sector size", Value: strconv.FormatInt(i.PhysicalSector, 10)},
		{Name: "virtual disk id", Value: i.ID},
		{Name: "data write id", Value: i.DataWriteID},
		{Name: "log in use", Value: strconv.FormatBool(i.LogInUse)},
		{Name: "log entries", Value: strconv.Itoa(i.LogEntries)},
	}
	if i.Parent != nil {
		out.Parent = &formats.ParentInfo{Format: "vhdx"}
		if len(i.Parent.Names) > 0 {
			out.Parent.Name = i.Parent.Names[0]
		}
		out.Details = append(out.Details, formats.Detail{Name: "parent data write ids", Value: strings.Join(i.Parent.DataWriteIDs, " ")})
	}
	return out, nil
}

func check(ctx context.Context, r io.ReaderAt, size int64, _ formats.OpenOptions) (formats.Report, error) {
	rep, err := Check(ctx, r, size)
	return rep.Shared(), err
}
