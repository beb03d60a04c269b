package vhdx

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"

	"hypersdk/formats/blocks"
)

// Info is what a VHDX says of itself.
type Info struct {
	Subformat      string  `json:"subformat"`
	DiskSize       int64   `json:"disk_size"` // of the disk, bytes
	Creator        string  `json:"creator,omitempty"`
	BlockSize      int64   `json:"block_size"`
	LogicalSector  int64   `json:"logical_sector_size"`
	PhysicalSector int64   `json:"physical_sector_size,omitempty"`
	ID             string  `json:"id"`               // of the disk, as a guest sees it
	DataWriteID    string  `json:"data_write_id"`    // by which children know it
	LogInUse       bool    `json:"log_in_use"`       // the file was not closed properly
	LogEntries     int     `json:"log_entries"`      // replayed in memory to read it
	Parent         *Parent `json:"parent,omitempty"` //
}

// Parent is what a differencing disk knows of its parent.
type Parent struct {
	DataWriteIDs []string `json:"data_write_ids"` // either of which it must have
	Names        []string `json:"names"`          // in the order they are tried
}

func (m metadata) subformat() string {
	switch {
	case m.differs:
		return Differencing
	case m.fixed:
		return Fixed
	}
	return Dynamic
}

// Inspect reads what the VHDX stored in r says of itself. Its parent is not opened.
func Inspect(ctx context.Context, r io.ReaderAt, size int64) (Info, error) {
	d, err := load(ctx, blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return Info{}, fmt.Errorf("vhdx: %w", err)
	}
	i := Info{
		Subformat:      d.meta.subformat(),
		DiskSize:       d.meta.size,
		Creator:        d.creator,
		BlockSize:      d.meta.block,
		LogicalSector:  d.meta.logical,
		PhysicalSector: d.meta.physical,
		ID:             d.meta.id.String(),
		DataWriteID:    d.header.dataWrite.String(),
		LogInUse:       d.header.log != (blocks.ID{}),
		LogEntries:     d.replayed,
	}
	if !d.meta.differs {
		return i, nil
	}
	ids, err := d.parentIDs()
	if err != nil {
		return Info{}, fmt.Errorf("vhdx: %w", err)
	}
	i.Parent = &Parent{Names: d.parentNames()}
	for _, id := range ids {
		i.Parent.DataWriteIDs = append(i.Parent.DataWriteIDs, id.String())
	}
	return i, nil
}

// Check reads all that describes the disk stored in r and reports where it contradicts itself. The
// error is for what keeps it from looking; its parent is not opened.
func Check(ctx context.Context, r io.ReaderAt, size int64) (blocks.Report, error) {
	var rep blocks.Report
	file := blocks.File{ReaderAt: r, Size: size}
	d, err := load(ctx, file)
	if err != nil {
		return rep, fmt.Errorf("vhdx: %w", err)
	}
	if d.header.log != (blocks.ID{}) {
		rep.Warnf("log: in use, its %d entries were replayed in memory", d.replayed)
	}
	if err := d.checkCopies(&rep); err != nil {
		return rep, fmt.Errorf("vhdx: %w", err)
	}
	if err := d.checkBlocks(ctx, &rep); err != nil {
		return rep, fmt.Errorf("vhdx: %w", err)
	}
	return rep, nil
}

// checkCopies looks at the header and the region table that were not used.
func (d *disk) checkCopies(rep *blocks.Report) error {
	for i, at := range []int64{header1At, header2At} {
		b := make([]byte, headerSize)
		if err := d.file.ReadFull(b, at); err != nil {
			return err
		}
		if _, err := parseHeader(b); err != nil {
			rep.Warnf("header %d: %v", i+1, err)
		}
	}
	var tables [2][]byte
	for i, at := range []int64{regions1At, regions2At} {
		tables[i] = make([]byte, regionTableSize)
		if err := d.file.ReadFull(tables[i], at); err != nil {
			return err
		}
		if err := intact(tables[i]); err != nil {
			rep.Errorf("region table %d: %v", i+1, err)
			return nil
		}
	}
	if string(tables[0]) != string(tables[1]) {
		rep.Errorf("region tables: they differ")
	}
	return nil
}

// checkBlocks walks the table: every state known, every block within the file, none in what describes
// the disk, none in another.
func (d *disk) checkBlocks(ctx context.Context, rep *blocks.Report) error {
	rep.Blocks = (d.meta.size + d.meta.block - 1) / d.meta.block
	err := d.walk(ctx, func(i int64, v uint64) bool {
		switch {
		case i < 0:
			if _, err := d.bitmapAt(^i, v); err != nil {
				rep.Errorf("%v", err)
			}
		case v&7 == 4 || v&7 == 5 || v&7 == partiallyPresent && !d.meta.differs:
			rep.Errorf("block allocation table: block %d has state %d", i, v&7)
		case v&7 >= fullyPresent:
			rep.Allocated++
			d.checkBlock(rep, i, v)
		}
		return !rep.Full()
	})
	if err != nil || len(rep.Errors) > 0 {
		return err
	}
	return d.disjoint(ctx, rep)
}

func (d *disk) checkBlock(rep *blocks.Report, i int64, v uint64) {
	if _, err := d.place(i, v); err != nil {
		rep.Errorf("%v", err)
		return
	}
	if v&7 != partiallyPresent {
		return
	}
	if _, err := d.partial(i, 0, d.meta.logical, blocks.Piece{}); err != nil {
		rep.Errorf("%v", err)
	}
}

// disjoint looks for blocks of the disk that share bytes, then for bitmaps that do.
func (d *disk) disjoint(ctx context.Context, rep *blocks.Report) error {
	stored := func(bitmaps bool) func(yield func(int64, int64) bool) error {
		return func(yield func(block, off int64) bool) error {
			return d.walk(ctx, func(i int64, v uint64) bool {
				if v&7 < fullyPresent || bitmaps != (i < 0) {
					return true
				}
				return yield(max(i, ^i), offsetOf(v))
			})
		}
	}
	err := blocks.Disjoint(ctx, rep, d.file.Size, d.meta.block, stored(false))
	if err != nil || !d.meta.differs {
		return err
	}
	return blocks.Disjoint(ctx, rep, d.file.Size, mib, stored(true))
}

// walk yields every entry of the table that is not zero: those of block i, and as ^i those of the
// bitmaps of chunk i that are present.
func (d *disk) walk(ctx context.Context, yield func(i int64, v uint64) bool) error {
	for e, n := int64(0), d.entries(); e < n; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		v, run, err := d.table.Run(e, n-e)
		if err != nil {
			return fmt.Errorf("block allocation table: %w", err)
		}
		if v == 0 {
			e += run
			continue
		}
		for ; run > 0; run, e = run-1, e+1 {
			chunk, in := e/(d.ratio+1), e%(d.ratio+1)
			i := chunk*d.ratio + in
			switch {
			case in == d.ratio && v&7 != fullyPresent:
				continue
			case in == d.ratio:
				i = ^chunk
			case i*d.meta.block >= d.meta.size:
				continue
			}
			if !yield(i, v) {
				return nil
			}
		}
	}
	return nil
}

// decode16 reads UTF-16LE up to a NUL or the end.
func decode16(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
