package vmdk

import (
	"context"
	"fmt"
	"io"

	"hypersdk/formats/blocks"
)

// Info is what a VMDK says of itself.
type Info struct {
	Subformat string `json:"subformat"`
	Size      int64  `json:"size"` // of the disk, bytes
	// Of the sparse extent that the descriptor is in:
	Version      uint32 `json:"version,omitempty"`
	GrainSize    int64  `json:"grain_size,omitempty"` // bytes
	Compressed   bool   `json:"compressed,omitempty"`
	TablesAtEnd  bool   `json:"tables_at_end,omitempty"` // the stream was written front to back
	NotClosed    bool   `json:"not_closed,omitempty"`    // whoever wrote it last did not finish
	ZeroedGrains bool   `json:"zeroed_grains,omitempty"` // a grain of zeros can be told from one of the parent
	// Descriptor is absent in some streams.
	Descriptor *Descriptor `json:"descriptor,omitempty"`
}

// Inspect reads what the VMDK stored in r says of itself. Nothing beside it is opened.
func Inspect(_ context.Context, r io.ReaderAt, size int64) (Info, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return Info{}, fmt.Errorf("vmdk: %w", err)
	}
	i := Info{Subformat: d.subformat(), Descriptor: d.descriptor}
	if d.grains == nil {
		i.Size = d.descriptor.size()
		return i, nil
	}
	h := d.header
	i.Size, i.GrainSize, i.Version, i.Compressed = d.grains.size, d.grains.grain, h.version, h.compressed()
	i.TablesAtEnd, i.NotClosed, i.ZeroedGrains = h.gd == gdAtEnd, h.unclean, h.flags&flagZeroGrain != 0
	return i, nil
}

// subformat is what the disk is, in VMware's words.
func (d *disk) subformat() string {
	switch {
	case d.grains != nil && d.grains.packed:
		return StreamOptimized
	case d.descriptor != nil:
		return d.descriptor.CreateType
	}
	return ""
}
