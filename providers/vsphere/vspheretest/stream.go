package vspheretest

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// What follows is the stream-optimized form of VMDK, as export leases send it (Virtual Disk Format
// 5.0, "Stream-Optimized Compressed Sparse Extents"). It is written on its own, so that a fault in
// the product's does not hide here.

// sparseHeader is the first sector of a sparse extent, and with the directory's place again its footer.
type sparseHeader struct {
	Magic            [4]byte
	Version, Flags   uint32
	Capacity         uint64 // this and what follows in sectors
	GrainSize        uint64
	DescriptorOffset uint64
	DescriptorSize   uint64
	EntriesPerTable  uint32
	SecondDirectory  uint64
	Directory        uint64
	Overhead         uint64
	UncleanShutdown  uint8
	LineEnds         [4]byte // to notice a transfer that takes it for text
	Compression      uint16
	_                [433]byte
}

const (
	grainSectors    = grain / sector
	entriesPerTable = 512
	directoryAtEnd  = 0xffffffffffffffff

	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

func newSparseHeader(size int64) sparseHeader {
	return sparseHeader{
		Magic: [4]byte{'K', 'D', 'M', 'V'}, Version: 3, Flags: 1<<0 | 1<<16 | 1<<17, Capacity: uint64(size+sector-1) / sector,
		GrainSize: grainSectors, DescriptorOffset: 1, DescriptorSize: 20, EntriesPerTable: entriesPerTable,
		Directory: directoryAtEnd, Overhead: grainSectors, LineEnds: [4]byte{'\n', ' ', '\r', '\n'}, Compression: 1,
	}
}

// streamWriter writes sectors and remembers where it is.
type streamWriter struct {
	w  *bufio.Writer
	at uint64 // sectors
}

// put writes the parts, filled up to whole sectors.
func (s *streamWriter) put(parts ...any) error {
	n := 0
	for _, p := range parts {
		if err := binary.Write(s.w, binary.LittleEndian, p); err != nil {
			return err
		}
		n += binary.Size(p)
	}
	pad := -n & (sector - 1)
	if _, err := s.w.Write(make([]byte, pad)); err != nil {
		return err
	}
	s.at += uint64(n+pad) / sector
	return nil
}

// marker announces metadata of so many sectors.
func (s *streamWriter) marker(kind uint32, sectors uint64) error {
	return s.put(sectors, uint32(0), kind)
}

// writeStream writes the disk of size bytes that r reads. It answers how many bytes of grains that
// are not all zeros there were.
func writeStream(w io.Writer, r io.ReaderAt, size int64, name string) (populated int64, err error) {
	header := newSparseHeader(size)
	s := &streamWriter{w: bufio.NewWriterSize(w, 1<<20)}
	descriptor := make([]byte, (header.Overhead-1)*sector)
	copy(descriptor, fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=7e5bd1a0\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n"+
		"# Extent description\nRW %d SPARSE %q\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n"+
		"ddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\nddb.virtualHWVersion = \"19\"\n",
		header.Capacity, name, size/(255*63*sector)))
	if err := s.put(header, descriptor); err != nil {
		return 0, err
	}
	var directory, table []uint32
	endTable := func() error {
		directory = append(directory, 0)
		if bytes.Equal(binaryBytes(table), make([]byte, 4*len(table))) { // a table of holes is left out
			table = table[:0]
			return nil
		}
		table = append(table, make([]uint32, entriesPerTable-len(table))...)
		if err := s.marker(markerTable, entriesPerTable*4/sector); err != nil {
			return err
		}
		directory[len(directory)-1] = uint32(s.at)
		err := s.put(table)
		table = table[:0]
		return err
	}
	g := grainWriter{streamWriter: s}
	for off := int64(0); off < size; off += grain {
		at, err := g.put(r, off, min(grain, size-off))
		if err != nil {
			return 0, err
		}
		if at != 0 {
			populated += min(grain, size-off)
		}
		if table = append(table, at); len(table) == entriesPerTable {
			if err := endTable(); err != nil {
				return 0, err
			}
		}
	}
	if len(table) > 0 {
		if err := endTable(); err != nil {
			return 0, err
		}
	}
	if err := s.marker(markerDirectory, uint64(len(directory)*4+sector-1)/sector); err != nil {
		return 0, err
	}
	header.Directory = s.at
	return populated, errors.Join(
		s.put(directory), s.marker(markerFooter, 1), s.put(header), s.marker(markerEnd, 0), s.w.Flush())
}

func binaryBytes(v []uint32) []byte {
	out, _ := binary.Append(nil, binary.LittleEndian, v) // of a fixed size
	return out
}

// grainWriter writes compressed grains.
type grainWriter struct {
	*streamWriter
	buf    [grain]byte
	packed bytes.Buffer
	z      *zlib.Writer
}

// put writes the grain at off and answers the sector where it is, 0 for one of zeros, which is left out.
func (g *grainWriter) put(r io.ReaderAt, off, n int64) (uint32, error) {
	clear(g.buf[n:])
	if _, err := r.ReadAt(g.buf[:n], off); err != nil {
		return 0, err
	}
	if g.buf == [grain]byte{} {
		return 0, nil
	}
	if g.z == nil {
		g.z, _ = zlib.NewWriterLevel(nil, zlib.BestSpeed) // a level that there is
	}
	g.packed.Reset()
	g.z.Reset(&g.packed)
	if _, err := g.z.Write(g.buf[:]); err != nil {
		return 0, err
	}
	if err := g.z.Close(); err != nil {
		return 0, err
	}
	at := uint32(g.at)
	return at, g.streamWriter.put(uint64(off/sector), uint32(g.packed.Len()), g.packed.Bytes())
}

// readStream writes what a stream-optimized VMDK holds into f, which is as long as the disk.
func readStream(f *os.File, r io.Reader) error {
	in := bufio.NewReaderSize(r, 1<<20)
	var header sparseHeader
	if err := binary.Read(in, binary.LittleEndian, &header); err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	size := uint64(fi.Size())
	if header.Magic != [4]byte{'K', 'D', 'M', 'V'} || header.Compression != 1 || header.Overhead == 0 || header.Overhead > 1<<20 || header.Capacity > size/sector+1 {
		return errors.New("it is no stream-optimized VMDK of this disk")
	}
	if _, err := in.Discard(int(header.Overhead-1) * sector); err != nil {
		return err
	}
	for {
		var m struct {
			Value uint64
			Size  uint32
		}
		if err := binary.Read(in, binary.LittleEndian, &m); err != nil {
			return err
		}
		if m.Size > 0 {
			if err := readGrain(f, in, m.Value, m.Size, size); err != nil {
				return err
			}
			continue
		}
		var kind uint32
		if err := binary.Read(in, binary.LittleEndian, &kind); err != nil {
			return err
		}
		if kind == markerEnd {
			_, err := io.Copy(io.Discard, in)
			return err
		}
		if m.Value > 1<<24 {
			return fmt.Errorf("metadata of %d sectors", m.Value)
		}
		if _, err := in.Discard(sector - 16 + int(m.Value)*sector); err != nil {
			return err
		}
	}
}

// readGrain reads a grain of n packed bytes that belongs at sector at of a disk of size bytes.
func readGrain(f *os.File, in *bufio.Reader, at uint64, n uint32, size uint64) error {
	if n > 2*grain || at >= size/sector {
		return fmt.Errorf("grain of %d bytes at sector %d", n, at)
	}
	packed := io.LimitReader(in, int64(n))
	z, err := zlib.NewReader(packed)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(z, grain+1))
	if err != nil || len(data) > grain {
		return fmt.Errorf("grain at sector %d: %d bytes, %w", at, len(data), err)
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if _, err := in.Discard(int(-(n + 12) & (sector - 1))); err != nil {
		return err
	}
	data = data[:min(uint64(len(data)), size-at*sector)]
	_, err = f.WriteAt(data, int64(at*sector))
	return err
}
