package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math/bits"

	"hypersdk/formats"
)

const (
	maxBitmaps         = 65535
	maxBitmapDirectory = 16 << 20
	minGranularity     = 9
	maxGranularity     = 31

	bitmapInUse = 1 << 0
	bitmapAuto  = 1 << 1
)

// bitmapsExt is the bitmaps extension of the header.
type bitmapsExt struct {
	count int64
	size  int64 // of the directory, bytes
	off   int64
}

func (x *bitmapsExt) parse(b []byte) error {
	if len(b) < 24 {
		return corrupt("bitmaps extension of %d bytes", len(b))
	}
	size, off := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	x.count = int64(binary.BigEndian.Uint32(b))
	if x.count > maxBitmaps || size > maxBitmapDirectory || off > maxDiskSize {
		return corrupt("directory of %d bitmaps, %d bytes at %d", x.count, size, off)
	}
	x.size, x.off = int64(size), int64(off)
	return nil
}

// Bitmap is a persistent dirty bitmap: which stretches of the disk changed since it was made.
type Bitmap struct {
	Name        string `json:"name"`
	Granularity int64  `json:"granularity"` // bytes of the disk a bit stands for
	Enabled     bool   `json:"enabled"`     // it goes on recording
	InUse       bool   `json:"in_use"`      // it was not closed: what it says is not to be trusted

	table   int64
	entries int64
}

// Bitmaps lists the bitmaps. An image that was written by a program that does not know bitmaps has
// none: they would be stale.
func (m *Image) Bitmaps() ([]Bitmap, error) {
	x := m.bitmaps
	if m.autoclear&autoclearBitmaps == 0 || x.count == 0 {
		return nil, nil
	}
	if x.off%m.clusterSize() != 0 || x.off == 0 || x.off > m.file.size-x.size {
		return nil, corrupt("bitmap directory of %d bytes at %d", x.size, x.off)
	}
	dir := make([]byte, x.size)
	if n, err := m.file.r.ReadAt(dir, x.off); n < len(dir) {
		return nil, fmt.Errorf("qcow2: bitmap directory: %w", unexpected(err))
	}
	var all []Bitmap
	for i := range x.count {
		b, n, err := m.parseBitmap(dir)
		if err != nil {
			return nil, fmt.Errorf("bitmap %d: %w", i, err)
		}
		dir = dir[n:]
		all = append(all, b)
	}
	return all, nil
}

// parseBitmap takes one entry of the directory and answers its length.
func (m *Image) parseBitmap(dir []byte) (Bitmap, int64, error) {
	be := binary.BigEndian
	if len(dir) < 24 {
		return Bitmap{}, 0, corrupt("the directory ends early")
	}
	off, flags, kind, gran := be.Uint64(dir), be.Uint32(dir[12:]), dir[16], dir[17]
	name, extra := int64(be.Uint16(dir[18:])), int64(be.Uint32(dir[20:]))
	if extra > int64(len(dir)) || 24+extra+name > int64(len(dir)) {
		return Bitmap{}, 0, corrupt("the directory ends early")
	}
	if kind != 1 {
		return Bitmap{}, 0, unsupported("bitmap type %d", kind)
	}
	if gran < minGranularity || gran > maxGranularity || off > maxDiskSize {
		return Bitmap{}, 0, corrupt("granularity 2^%d, table at %d", gran, off)
	}
	b := Bitmap{
		Name:        string(dir[24+extra : 24+extra+name]),
		Granularity: 1 << gran,
		Enabled:     flags&bitmapAuto != 0,
		InUse:       flags&bitmapInUse != 0,
		table:       int64(off),
		entries:     int64(be.Uint32(dir[8:])),
	}
	if err := m.validTable("bitmap table", b.table, b.entries*8, m.file.size); err != nil {
		return Bitmap{}, 0, err
	}
	if need := m.bitmapNeed(b); b.entries < need {
		return Bitmap{}, 0, corrupt("a table of %d entries, %d are needed", b.entries, need)
	}
	return b, min((24+extra+name+7)&^7, int64(len(dir))), nil
}

// bitmapNeed is the number of clusters that the bits of a bitmap take.
func (m *Image) bitmapNeed(b Bitmap) int64 {
	cover := b.Granularity * 8 * m.clusterSize()
	return (m.header.size + cover - 1) / cover
}

// BitmapRanges yields the stretches of the disk that a bitmap has marked, ascending and apart from
// each other, as extents of Data.
func (m *Image) BitmapRanges(ctx context.Context, b Bitmap) iter.Seq2[formats.Extent, error] {
	return formats.Merged(func(yield func(formats.Extent, error) bool) {
		cover := b.Granularity * 8 * m.clusterSize()
		read := int64(0)
		for i := range m.bitmapNeed(b) {
			err := context.Cause(ctx)
			if err == nil {
				err = context.Cause(m.ctx)
			}
			var stop bool
			if err == nil {
				var n int64
				n, stop, err = m.bitmapCluster(b, i, cover, yield)
				read += n
			}
			if err == nil && read > m.file.size {
				err = corrupt("bitmap %q has more bits than the file can hold: some are used twice", b.Name)
			}
			if err != nil {
				yield(formats.Extent{}, err)
				return
			}
			if stop {
				return
			}
		}
	})
}

// bitmapCluster yields what one cluster of bits has marked, and answers how much of the file it read.
func (m *Image) bitmapCluster(b Bitmap, i, cover int64, yield func(formats.Extent, error) bool) (read int64, stop bool, err error) {
	at, err := m.tables.at(m.file, b.table+i*8)
	if err != nil {
		return 0, true, err
	}
	if len(at) < 8 {
		return 0, true, corrupt("bitmap table at %d reaches beyond the end of the file", b.table)
	}
	e := binary.BigEndian.Uint64(at)
	host := int64(e & offsetMask)
	mark := func(off, n int64) bool {
		n = min(n, m.header.size-off)
		return n <= 0 || yield(formats.Extent{Off: off, Len: n, Kind: formats.Data}, nil)
	}
	switch {
	case e&^(offsetMask|1) != 0 || host%m.clusterSize() != 0 || host != 0 && e&1 != 0:
		return 0, true, corrupt("bitmap table entry %#x", e)
	case e == 1:
		return 0, !mark(i*cover, cover), nil
	case host == 0:
		return 0, false, nil
	}
	if host > m.file.size-m.clusterSize() {
		return 0, true, corrupt("bitmap data at %d lies behind the end of the file", host)
	}
	r := io.NewSectionReader(m.file.r, host, m.clusterSize())
	var buf [4096]byte
	for off := i * cover; off < min((i+1)*cover, m.header.size); {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), m.clusterSize())])
		if err != nil {
			return 0, true, fmt.Errorf("qcow2: bitmap data at %d: %w", host, unexpected(err))
		}
		for w := 0; w < n; w += 8 {
			// Bit 0 of byte 0 is the first.
			for v := binary.LittleEndian.Uint64(buf[w:]); v != 0; {
				first := bits.TrailingZeros64(v)
				count := bits.TrailingZeros64(^(v >> first))
				if !mark(off+(int64(w)*8+int64(first))*b.Granularity, int64(count)*b.Granularity) {
					return 0, true, nil
				}
				if first+count == 64 {
					break
				}
				v = v >> (first + count) << (first + count)
			}
		}
		off += int64(n) * 8 * b.Granularity
	}
	return m.clusterSize(), false, nil
}
