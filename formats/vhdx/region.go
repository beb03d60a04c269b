package vhdx

import (
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// Region tables, [MS-VHDX] 2.2.3.
const (
	regionSignature = "regi"
	regionTableSize = 64 * kib
	maxEntries      = 2047 // of this table, and of that of the metadata
)

var (
	batRegion      = blocks.ID{0x2d, 0xc2, 0x77, 0x66, 0xf6, 0x23, 0x42, 0x00, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}
	metadataRegion = blocks.ID{0x8b, 0x7c, 0xa2, 0x06, 0x47, 0x90, 0x4b, 0x9a, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
)

// regions is where in the file everything but the blocks is.
type regions struct {
	bat, metadata blocks.Region
	all           []blocks.Region // with the header section, the log, and what is not known
}

// findRegions reads the first region table, or the second where the first is broken.
func findRegions(r blocks.File, h header) (regions, error) {
	var first error
	for i, at := range []int64{regions1At, regions2At} {
		b := make([]byte, regionTableSize)
		if err := r.ReadFull(b, at); err != nil {
			return regions{}, fmt.Errorf("region table %d: %w", i+1, err)
		}
		if err := intact(b); err != nil {
			if first == nil {
				first = fmt.Errorf("region table %d: %w", i+1, err)
			}
			continue
		}
		rs, err := parseRegions(b, h)
		if err != nil {
			return regions{}, fmt.Errorf("region table %d: %w", i+1, err)
		}
		return rs, nil
	}
	return regions{}, first
}

// intact checks signature and checksum of a region table.
func intact(b []byte) error {
	if string(b[:4]) != regionSignature {
		return fmt.Errorf("no signature %q: %w", regionSignature, formats.ErrCorrupt)
	}
	if got, want := binary.LittleEndian.Uint32(b[4:]), checksum(b, 4); got != want {
		return fmt.Errorf("checksum is %#x, its bytes give %#x: %w", got, want, formats.ErrCorrupt)
	}
	return nil
}

func parseRegions(b []byte, h header) (regions, error) {
	le := binary.LittleEndian
	n := le.Uint32(b[8:])
	if n > maxEntries {
		return regions{}, fmt.Errorf("%d entries, at most %d fit: %w", n, maxEntries, formats.ErrCorrupt)
	}
	rs := regions{all: []blocks.Region{{Name: "header section", Len: sectionEnd}}}
	if h.logLen > 0 {
		rs.all = append(rs.all, blocks.Region{Name: "log", Off: h.logOff, Len: h.logLen})
	}
	for i := range int(n) {
		e := b[16+32*i:]
		id, required := blocks.GUID(e), le.Uint32(e[28:])&1 == 1
		off, length := le.Uint64(e[16:]), int64(le.Uint32(e[24:]))
		reg := blocks.Region{Name: "region " + id.String()}
		switch {
		case id == batRegion:
			reg.Name = "block allocation table"
		case id == metadataRegion:
			reg.Name = "metadata region"
		case required:
			return regions{}, fmt.Errorf("entry %d: region %s is required and not known: %w", i, id, formats.ErrFormat)
		}
		if off > maxOffset || off%mib != 0 || off < sectionEnd || length%mib != 0 || length == 0 {
			return regions{}, fmt.Errorf("entry %d: the %s has %d bytes at %d, which must be multiples of 1 MiB behind the first: %w", i, reg.Name, length, off, formats.ErrCorrupt)
		}
		reg.Off, reg.Len = int64(off), length
		if o, ok := blocks.Overlap(rs.all, reg.Off, reg.Len); ok {
			return regions{}, fmt.Errorf("entry %d: the %s shares bytes of the file with the %s: %w", i, reg.Name, o.Name, formats.ErrCorrupt)
		}
		rs.all = append(rs.all, reg)
		switch id {
		case batRegion:
			rs.bat = reg
		case metadataRegion:
			rs.metadata = reg
		}
	}
	for _, need := range []struct {
		blocks.Region
		name string
	}{{rs.bat, "block allocation table"}, {rs.metadata, "metadata region"}} {
		if need.Len == 0 {
			return regions{}, fmt.Errorf("no %s: %w", need.name, formats.ErrCorrupt)
		}
	}
	return rs, nil
}

// encodeRegions is the table of a new image.
func encodeRegions(bat, metadata blocks.Region) []byte {
	le := binary.LittleEndian
	b := make([]byte, regionTableSize)
	copy(b, regionSignature)
	le.PutUint32(b[8:], 2)
	for i, r := range []struct {
		blocks.Region
		id blocks.ID
	}{{bat, batRegion}, {metadata, metadataRegion}} {
		e := b[16+32*i:]
		blocks.PutGUID(e, r.id)
		le.PutUint64(e[16:], uint64(r.Off))
		le.PutUint32(e[24:], uint32(r.Len))
		le.PutUint32(e[28:], 1)
	}
	le.PutUint32(b[4:], checksum(b, 4))
	return b
}
