package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"unicode/utf16"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// The metadata region, [MS-VHDX] 2.6: a table of 64 KiB and its items behind.
const (
	metadataSignature = "metadata"
	metadataTableSize = 64 * kib
	maxItem           = 1 * mib
)

var (
	fileParameters     = blocks.ID{0xca, 0xa1, 0x67, 0x37, 0xfa, 0x36, 0x4d, 0x43, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}
	virtualDiskSize    = blocks.ID{0x2f, 0xa5, 0x42, 0x24, 0xcd, 0x1b, 0x48, 0x76, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8}
	virtualDiskID      = blocks.ID{0xbe, 0xca, 0x12, 0xab, 0xb2, 0xe6, 0x45, 0x23, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46}
	logicalSectorSize  = blocks.ID{0x81, 0x41, 0xbf, 0x1d, 0xa9, 0x6f, 0x47, 0x09, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f}
	physicalSectorSize = blocks.ID{0xcd, 0xa3, 0x48, 0xc7, 0x44, 0x5d, 0x44, 0x71, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56}
	parentLocator      = blocks.ID{0xa8, 0xd3, 0x5f, 0x2d, 0xb3, 0x0b, 0x45, 0x4d, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c}

	// vhdxLocator is the type of the only parent locator that is defined.
	vhdxLocator = blocks.ID{0xb0, 0x4a, 0xef, 0xb7, 0xd1, 0x9e, 0x4a, 0x81, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13}
)

// itemNames are what errors call the items that are known.
var itemNames = map[blocks.ID]string{
	fileParameters:     "file parameters",
	virtualDiskSize:    "virtual disk size",
	virtualDiskID:      "virtual disk id",
	logicalSectorSize:  "logical sector size",
	physicalSectorSize: "physical sector size",
	parentLocator:      "parent locator",
}

// maxSize is the largest virtual disk, [MS-VHDX] 2.6.2.2.
const maxSize = 64 << 40

// metadata is what a VHDX says of its disk.
type metadata struct {
	size     int64 // of the disk
	block    int64
	fixed    bool // blocks stay allocated
	differs  bool // has a parent
	id       blocks.ID
	logical  int64 // sector sizes
	physical int64
	parent   map[string]string // entries of the parent locator
}

// readMetadata reads the table and the items that are known.
func readMetadata(r blocks.File, region blocks.Region) (metadata, error) {
	le := binary.LittleEndian
	t := make([]byte, metadataTableSize)
	if err := r.ReadFull(t, region.Off); err != nil {
		return metadata{}, fmt.Errorf("metadata table: %w", err)
	}
	if string(t[:8]) != metadataSignature {
		return metadata{}, fmt.Errorf("metadata table: no signature %q: %w", metadataSignature, formats.ErrCorrupt)
	}
	n := le.Uint16(t[10:])
	if n > maxEntries {
		return metadata{}, fmt.Errorf("metadata table: %d entries, at most %d fit: %w", n, maxEntries, formats.ErrCorrupt)
	}
	items := make(map[blocks.ID][]byte)
	for i := range int(n) {
		e := t[32+32*i:]
		id, required := blocks.GUID(e), le.Uint32(e[24:])&4 != 0
		name, known := itemNames[id]
		if !known && required {
			return metadata{}, fmt.Errorf("metadata table: item %s is required and not known: %w", id, formats.ErrFormat)
		}
		if !known {
			continue
		}
		if items[id] != nil {
			return metadata{}, fmt.Errorf("metadata table: two items are the %s: %w", name, formats.ErrCorrupt)
		}
		off, length := int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:]))
		if length == 0 || length > maxItem || off < metadataTableSize || off+length > region.Len {
			return metadata{}, fmt.Errorf("metadata table: the %s has %d bytes at %d of a region of %d: %w", name, length, off, region.Len, formats.ErrCorrupt)
		}
		items[id] = make([]byte, length)
		if err := r.ReadFull(items[id], region.Off+off); err != nil {
			return metadata{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return parseMetadata(items)
}

func parseMetadata(items map[blocks.ID][]byte) (metadata, error) {
	le := binary.LittleEndian
	for _, item := range []struct {
		id    blocks.ID
		least int
	}{{fileParameters, 8}, {virtualDiskSize, 8}, {logicalSectorSize, 4}} {
		if n := len(items[item.id]); n < item.least {
			return metadata{}, fmt.Errorf("metadata: the %s has %d bytes, it needs %d: %w", itemNames[item.id], n, item.least, formats.ErrCorrupt)
		}
	}
	flags := le.Uint32(items[fileParameters][4:])
	m := metadata{
		block:   int64(le.Uint32(items[fileParameters])),
		fixed:   flags&1 != 0,
		differs: flags&2 != 0,
		logical: int64(le.Uint32(items[logicalSectorSize])),
	}
	if b := items[virtualDiskID]; len(b) >= 16 {
		m.id = blocks.GUID(b)
	}
	if b := items[physicalSectorSize]; len(b) >= 4 {
		m.physical = int64(le.Uint32(b))
	}
	size := le.Uint64(items[virtualDiskSize])
	switch {
	case m.block < mib || m.block > 256*mib || bits.OnesCount64(uint64(m.block)) != 1:
		return m, fmt.Errorf("metadata: block size %d is not a power of two from 1 to 256 MiB: %w", m.block, formats.ErrCorrupt)
	case m.logical != 512 && m.logical != 4096:
		return m, fmt.Errorf("metadata: logical sector size %d is neither 512 nor 4096: %w", m.logical, formats.ErrCorrupt)
	case size > maxSize:
		return m, fmt.Errorf("metadata: virtual disk size %d is more than the %d that a VHDX can hold: %w", size, int64(maxSize), formats.ErrCorrupt)
	case size%uint64(m.logical) != 0:
		return m, fmt.Errorf("metadata: virtual disk size %d is no whole number of sectors of %d: %w", size, m.logical, formats.ErrCorrupt)
	}
	m.size = int64(size)
	if !m.differs {
		return m, nil
	}
	var err error
	if m.parent, err = parseLocator(items[parentLocator]); err != nil {
		return m, fmt.Errorf("parent locator: %w", err)
	}
	return m, nil
}

// Keys of a parent locator, [MS-VHDX] 2.6.2.6.3.
const (
	parentLinkage  = "parent_linkage"
	parentLinkage2 = "parent_linkage2"
	relativePath   = "relative_path"
	volumePath     = "volume_path"
	absolutePath   = "absolute_win32_path"
)

// maxLocator is how many entries of a parent locator are read; five are defined.
const maxLocator = 256

// parseLocator reads the entries of a parent locator that are known, [MS-VHDX] 2.6.2.6.
func parseLocator(b []byte) (map[string]string, error) {
	le := binary.LittleEndian
	if len(b) < 20 {
		return nil, fmt.Errorf("%d bytes: %w", len(b), formats.ErrCorrupt)
	}
	if id := blocks.GUID(b); id != vhdxLocator {
		return nil, fmt.Errorf("type %s: %w", id, formats.ErrFormat)
	}
	n := int(le.Uint16(b[18:]))
	if n > maxLocator || 20+12*n > len(b) {
		return nil, fmt.Errorf("%d entries in %d bytes: %w", n, len(b), formats.ErrCorrupt)
	}
	all := make(map[string]string)
	for i := range n {
		e := b[20+12*i:]
		key, err := text16(b, le.Uint32(e), le.Uint16(e[8:]))
		if err != nil {
			return nil, fmt.Errorf("key of entry %d: %w", i, err)
		}
		if !slices.Contains([]string{parentLinkage, parentLinkage2, relativePath, volumePath, absolutePath}, key) {
			continue
		}
		if _, twice := all[key]; twice {
			return nil, fmt.Errorf("two entries are %q: %w", key, formats.ErrCorrupt)
		}
		if all[key], err = text16(b, le.Uint32(e[4:]), le.Uint16(e[10:])); err != nil {
			return nil, fmt.Errorf("value of %q: %w", key, err)
		}
	}
	return all, nil
}

// text16 reads n bytes of UTF-16LE at off of b.
func text16(b []byte, off uint32, n uint16) (string, error) {
	if int64(off)+int64(n) > int64(len(b)) || n == 0 || n%2 != 0 {
		return "", fmt.Errorf("%d bytes at %d of %d: %w", n, off, len(b), formats.ErrCorrupt)
	}
	u := make([]uint16, n/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[int(off)+2*i:])
	}
	return string(utf16.Decode(u)), nil
}

// encode is the table and the items of a new image, as far as they are not zeros.
func (m metadata) encode() []byte {
	le := binary.LittleEndian
	const itemSpace = 64 // for each item, more than the largest of them
	t := make([]byte, metadataTableSize, metadataTableSize+5*itemSpace)
	copy(t, metadataSignature)
	add := func(id blocks.ID, flags uint32, item []byte) {
		n := int(le.Uint16(t[10:]))
		e := t[32+32*n:]
		blocks.PutGUID(e, id)
		le.PutUint32(e[16:], uint32(len(t)))
		le.PutUint32(e[20:], uint32(len(item)))
		le.PutUint32(e[24:], flags)
		le.PutUint16(t[10:], uint16(n+1))
		t = append(t, item...)
		t = append(t, make([]byte, itemSpace-len(item))...)
	}
	const virtualDisk, required = 2, 4
	var fixed uint32
	if m.fixed {
		fixed = 1
	}
	id := make([]byte, 16)
	blocks.PutGUID(id, m.id)
	add(fileParameters, required, le.AppendUint32(le.AppendUint32(nil, uint32(m.block)), fixed))
	add(virtualDiskSize, virtualDisk|required, le.AppendUint64(nil, uint64(m.size)))
	add(virtualDiskID, virtualDisk|required, id)
	add(logicalSectorSize, virtualDisk|required, le.AppendUint32(nil, uint32(m.logical)))
	add(physicalSectorSize, virtualDisk|required, le.AppendUint32(nil, uint32(m.physical)))
	return t
}
