package vmdk

import (
	"context"
	"fmt"
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
	out := formats.Info{Format: "vmdk", VirtualSize: i.Size, Variant: i.Subformat, ClusterSize: i.GrainSize}
	if i.Compressed {
		out.Compression = "zlib"
	}
	add := func(name, value string) { out.Details = append(out.Details, formats.Detail{Name: name, Value: value}) }
	if i.Version > 0 {
		add("version", strconv.FormatUint(uint64(i.Version), 10))
		add("tables at the end", strconv.FormatBool(i.TablesAtEnd))
		add("not closed", strconv.FormatBool(i.NotClosed))
		add("zeroed grains", strconv.FormatBool(i.ZeroedGrains))
	}
	d := i.Descriptor
	if d == nil {
		return out, nil
	}
	if d.HasParent() {
		out.Parent = &formats.ParentInfo{Name: d.Parent, Format: "vmdk"}
		add("parent content id", fmt.Sprintf("%08x", d.ParentCID))
	}
	add("content id", fmt.Sprintf("%08x", d.CID))
	for n, e := range d.Extents {
		add(fmt.Sprintf("extent %d", n+1), fmt.Sprintf("%s %d %s %q", e.Access, e.Sectors, e.Type, e.Name))
	}
	for _, f := range d.Fields {
		add(f.Name, f.Value)
	}
	return out, nil
}

func check(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Report, error) {
	rep, err := Check(ctx, r, size, o)
	return rep.Shared(), err
}
