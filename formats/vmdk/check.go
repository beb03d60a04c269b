package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// Check reads all that describes the disk stored in r, its extents included, and reports where it
// contradicts itself. Of packed grains it reads the markers, not the contents. The error is for what
// keeps it from looking; parents are not opened.
func Check(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (blocks.Report, error) {
	var rep blocks.Report
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return rep, fmt.Errorf("vmdk: %w", err)
	}
	m := &image{ctx: ctx}
	defer m.Close()
	if err := d.extents(ctx, m, o); err != nil {
		return rep, fmt.Errorf("vmdk: %w", err)
	}
	if d.header.unclean {
		rep.Warnf("header: the disk was not closed by whoever wrote it last")
	}
	if t := d.descriptor; d.grains != nil && t != nil && t.size() != d.grains.size {
		rep.Warnf("descriptor: %d bytes in all, the header has %d", t.size(), d.grains.size)
	}
	for i, e := range m.extents {
		if e.grains == nil {
			continue
		}
		c := checker{grains: e.grains, rep: &rep}
		if len(m.extents) > 1 {
			c.prefix = fmt.Sprintf("extent %d: ", i+1)
		}
		if err := c.run(ctx); err != nil {
			return rep, m.name(&m.extents[i], err)
		}
	}
	return rep, nil
}

// checkWindow is how many sectors of the file are looked at in one pass: 64 GiB, in 16 MiB of memory.
const checkWindow = 1 << 27

// checker looks at one sparse extent, a window of its file after the other, and marks the sectors in
// use.
type checker struct {
	*grains
	rep    *blocks.Report
	prefix string

	low, high int64 // of the window, sectors
	marks     []uint64
	first     bool // pass: what does not depend on the window is told now
}

func (c *checker) run(ctx context.Context) error {
	c.rep.Blocks += (c.size + c.grain - 1) / c.grain
	sectors := (c.file.Size + sector - 1) / sector
	if c.width == 4 {
		sectors = min(sectors, 1<<32+maxGrain) // what lies behind, no entry can name
	}
	for c.low = 0; c.low < sectors && !c.rep.Full(); c.low = c.high {
		c.first = c.low == 0
		c.high = min(c.low+checkWindow, sectors)
		c.marks = slices.Grow(c.marks[:0], int((c.high-c.low+63)/64))[:(c.high-c.low+63)/64]
		clear(c.marks)
		for _, m := range c.meta {
			c.mark(m.Name, m.Off, m.Len)
		}
		if err := c.copies(ctx); err != nil {
			return err
		}
		if err := c.pass(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) errorf(format string, args ...any) { c.rep.Errorf(c.prefix+format, args...) }

// mark notes that [off, off+n) of the file is used.
func (c *checker) mark(what string, off, n int64) {
	from, to := max(off/sector, c.low), min((off+n+sector-1)/sector, c.high)
	for s := from; s < to; s++ {
		i := s - c.low
		if c.marks[i/64]>>(i%64)&1 == 1 {
			c.errorf("the %s at byte %d shares sector %d of the file with something else", what, off, s)
			return
		}
		c.marks[i/64] |= 1 << (i % 64)
	}
}

// pass walks the tables.
func (c *checker) pass(ctx context.Context) error {
	for i := int64(0); i < c.tables() && !c.rep.Full(); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		at, run, err := c.tableOf(i)
		switch {
		case err != nil:
			c.once("%v", err)
			i++
		case at == 0:
			i += run
		default:
			c.mark(fmt.Sprintf("grain table %d", i), at, c.entries*c.width)
			c.table(i, at)
			i++
		}
	}
	return nil
}

// once reports what would be found in every pass.
func (c *checker) once(format string, args ...any) {
	if c.first {
		c.errorf(format, args...)
	}
}

// table looks at the grains of one table.
func (c *checker) table(i, at int64) {
	last := (c.size + c.grain - 1) / c.grain
	for no := i * c.entries; no < min((i+1)*c.entries, last); {
		o, place, run, err := c.entry(no, at, (i+1)*c.entries-no)
		if err == nil && o == blocks.Here {
			err, run = c.admit(no, place), 1
		}
		if err != nil {
			c.once("%v", err)
			no++
			continue
		}
		if o == blocks.Here {
			if c.first {
				c.rep.Allocated++
			}
			// One that begins before the window may reach into it.
			if place >= c.low*sector-max(c.grain, c.largest+sector) && place < c.high*sector {
				c.stored(no, place)
			}
		}
		no += run
	}
}

// stored marks a grain; of a packed one it looks at the marker.
func (c *checker) stored(no, at int64) {
	n := min(c.grain, c.file.Size-at)
	if c.packed {
		if !c.marked {
			return // how long it is only unpacking it would tell
		}
		var err error
		if n, err = c.packedSize(no, at); err != nil {
			if at >= c.low*sector {
				c.errorf("%v", err)
			}
			return
		}
	}
	c.mark(fmt.Sprintf("grain %d", no), at, n)
}

// packedSize reads the marker of a grain.
func (c *checker) packedSize(no, at int64) (int64, error) {
	var b [16]byte
	if err := c.file.ReadFull(b[:], at); err != nil {
		return 0, fmt.Errorf("grain %d: %w", no, err)
	}
	m := parseMarker(b[:])
	if int64(m.value)*sector != no*c.grain || m.size == 0 || int64(m.size) > c.largest {
		return 0, fmt.Errorf("grain %d: the marker at byte %d is of %d bytes for sector %d", no, at, m.size, m.value)
	}
	n := grainHead + int64(m.size)
	if !c.file.Holds(at, n) {
		return 0, fmt.Errorf("grain %d: %d bytes at byte %d, the file ends at %d", no, n, at, c.file.Size)
	}
	return n, nil
}

// copies compares the second directory and its tables with the first.
func (c *checker) copies(ctx context.Context) error {
	if c.rgd == 0 {
		return nil
	}
	if !c.file.Holds(c.rgd, c.tables()*4) {
		c.once("redundant grain directory: at byte %d, the file ends at %d", c.rgd, c.file.Size)
		return nil
	}
	c.mark("redundant grain directory", c.rgd, c.tables()*4)
	n := c.entries * 4
	one, two := make([]byte, n), make([]byte, n)
	var entry [4]byte
	for i := int64(0); i < c.tables() && !c.rep.Full(); i++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := c.file.ReadFull(entry[:], c.rgd+4*i); err != nil {
			return err
		}
		copyAt := int64(binary.LittleEndian.Uint32(entry[:])) * sector
		at, _, err := c.tableOf(i)
		if err != nil || copyAt == 0 && at == 0 {
			continue // told by pass, or not there
		}
		if copyAt == at {
			continue // one table for both
		}
		if at == 0 || !c.file.Holds(copyAt, n) {
			c.once("redundant grain table %d: at byte %d, the file ends at %d", i, copyAt, c.file.Size)
			continue
		}
		c.mark(fmt.Sprintf("redundant grain table %d", i), copyAt, n)
		if !c.first {
			continue
		}
		if err := c.file.ReadFull(one, at); err != nil {
			return err
		}
		if err := c.file.ReadFull(two, copyAt); err != nil {
			return err
		}
		if !bytes.Equal(one, two) {
			c.errorf("redundant grain table %d is not what grain table %d is", i, i)
		}
	}
	return nil
}
