package vmdk_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	sector = 512
	grain  = 64 << 10
)

var le = binary.LittleEndian

// head is the header of a sparse extent by its fields' offsets, as the specification has it.
func head(version, flags uint32, capacity, grainSectors, descriptor, descriptorSize uint64, entries uint32, rgd, gd, overhead uint64, algorithm uint16) []byte {
	b := make([]byte, sector)
	copy(b, "KDMV")
	le.PutUint32(b[4:], version)
	le.PutUint32(b[8:], flags)
	le.PutUint64(b[12:], capacity)
	le.PutUint64(b[20:], grainSectors)
	le.PutUint64(b[28:], descriptor)
	le.PutUint64(b[36:], descriptorSize)
	le.PutUint32(b[44:], entries)
	le.PutUint64(b[48:], rgd)
	le.PutUint64(b[56:], gd)
	le.PutUint64(b[64:], overhead)
	copy(b[73:], "\n \r\n")
	le.PutUint16(b[77:], algorithm)
	return b
}

// streamBuilder writes a stream by hand, sector by sector.
type streamBuilder struct {
	bytes.Buffer
	capacity uint64
	gd       uint64
	table    [512]uint32
}

func (b *streamBuilder) pad() {
	b.Write(make([]byte, -b.Len()&(sector-1)))
}

func (b *streamBuilder) at() uint32 { return uint32(b.Len() / sector) }

// begin writes the head of an ESXi stream, with a descriptor whose lines are ended by CR LF.
func (b *streamBuilder) begin(version uint32, size int64) {
	b.capacity = uint64(size / sector)
	b.Write(head(version, 0x30001, b.capacity, 128, 1, 20, 512, 0, ^uint64(0), 128, 1))
	fmt.Fprintf(b, "# Disk DescriptorFile\r\nversion=1\r\nCID=11223344\r\nparentCID=ffffffff\r\ncreateType=\"streamOptimized\"\r\n\r\n"+
		"# Extent description\r\nRW %d SPARSE \"call-me-stream.vmdk\"\r\n\r\n#DDB\r\nddb.adapterType = \"lsilogic\"\r\n", b.capacity)
	b.Write(make([]byte, 128*sector-b.Len()))
}

func deflate(plain []byte, level int) []byte {
	var z bytes.Buffer
	w, _ := zlib.NewWriterLevel(&z, level)
	_, _ = w.Write(plain) // into memory: cannot fail
	_ = w.Close()
	return z.Bytes()
}

// grain stores a grain of the disk, whatever is asked.
func (b *streamBuilder) grain(lba uint64, plain []byte, level int) {
	b.table[lba/128%512] = b.at()
	z := deflate(plain, level)
	b.Write(le.AppendUint32(le.AppendUint64(nil, lba), uint32(len(z))))
	b.Write(z)
	b.pad()
}

func (b *streamBuilder) marker(kind uint32, sectors uint64) {
	b.Write(le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, sectors), 0), kind))
	b.pad()
}

// tables writes the grain table and the directory of a disk of up to 32 MiB.
func (b *streamBuilder) tables() {
	b.marker(1, 4)
	gt := b.at()
	for _, v := range b.table {
		b.Write(le.AppendUint32(nil, v))
	}
	b.marker(2, 1)
	b.gd = uint64(b.at())
	b.Write(le.AppendUint32(nil, gt))
	b.pad()
}

func (b *streamBuilder) footer(version uint32) {
	b.marker(3, 1)
	b.Write(head(version, 0x30001, b.capacity, 128, 1, 20, 512, 0, b.gd, 128, 1))
}

func (b *streamBuilder) end() { b.marker(0, 0) }

func (b *streamBuilder) finish(version uint32) []byte {
	b.tables()
	b.footer(version)
	b.end()
	return b.Bytes()
}

// pattern is n bytes that differ from any other pattern.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i/7)*3 + byte(i>>11)
	}
	return p
}

// described writes a descriptor with one extent beside the extent's file, and answers its path.
func described(t testing.TB, createType, kind, extra string, sectors int64, extent []byte) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "extent.vmdk"), extent, 0o600))
	path := filepath.Join(dir, "disk.vmdk")
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"%s\"\n%s\n# Extent description\nRW %d %s \"extent.vmdk\"\n", createType, extra, sectors, kind)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// cowdExtent is a COWD of two tables, with a sector of the pattern at each of the offsets of the disk.
func cowdExtent(sectors int64, at ...int64) []byte {
	tables := (sectors + 4095) / 4096
	b := make([]byte, 2048)
	copy(b, "COWD")
	for i, v := range []uint32{1, 3, uint32(sectors), 1, 4, uint32(tables)} {
		le.PutUint32(b[4+4*i:], v)
	}
	directory := make([]byte, (tables*4+511)/512*512)
	next := int64(len(b)+len(directory)) / sector
	var gts, data []byte
	for i := range tables {
		table := make([]byte, 4096*4)
		used := false
		for j, off := range at {
			if off/sector/4096 != i {
				continue
			}
			used = true
			// The grains follow all tables; there are at most as many tables as the disk has.
			le.PutUint32(table[off/sector%4096*4:], uint32(next+tables*32+int64(len(data))/sector))
			data = append(data, pattern(byte(j), sector)...)
		}
		if used {
			le.PutUint32(directory[4*i:], uint32(next+int64(len(gts))/sector))
		}
		gts = append(gts, table...)
	}
	return bytes.Join([][]byte{b, directory, gts, data}, nil)
}

// seExtent is a seSparse extent with one table: grain i of the disk is what entries[i] says; stored
// grains hold the pattern of their number in the file.
func seExtent(sectors int64, entries map[int64]uint64, stored int) []byte {
	b := make([]byte, 16*sector)
	fields := map[int]uint64{0: 0xcafebabe, 1: 0x200000001, 2: uint64(sectors), 3: 8, 4: 64, 10: 1, 11: 1, 16: 8, 17: 1, 18: 16, 19: 64, 24: 80, 25: uint64(stored) * 8}
	for i, v := range fields {
		le.PutUint64(b[8*i:], v)
	}
	le.PutUint64(b[sector:], 0xcafecafe)
	le.PutUint64(b[8*sector:], 0x1000000000000000)
	table := make([]byte, 64*sector)
	for i, v := range entries {
		le.PutUint64(table[8*i:], v)
	}
	b = append(b, table...)
	for i := range stored {
		b = append(b, pattern(byte(i), 4096)...)
	}
	return b
}
