package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"hypersdk/formats"
)

// Numbers of the specification ("The QCOW2 Image Format", QEMU docs/interop/qcow2.txt), and limits
// that qemu keeps too. All numbers in a file are big-endian.
const (
	magic = 0x514649fb // "QFI\xfb"

	minClusterBits = 9
	maxClusterBits = 21

	headerLenV2  = 72
	headerLenMin = 104 // version 3
	headerLen    = 112 // as written: with the compression type

	maxL1Bytes       = 32 << 20
	maxReftableBytes = 8 << 20
	maxBackingName   = 1023
	maxDiskSize      = 1 << 62

	extEnd        = 0
	extBackingFmt = 0xe2792aca
	extFeatures   = 0x6803f857
	extBitmaps    = 0x23852875

	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = incompatDirty | incompatCorrupt | incompatDataFile | incompatCompression | incompatExtendedL2

	compatLazyRefcounts = 1 << 0
	autoclearBitmaps    = 1 << 0

	compressionZlib = 0
	compressionZstd = 1
)

// header is the header of a file, examined.
type header struct {
	version     uint32
	clusterBits uint
	size        int64 // of the disk

	l1Entries     int64
	l1Off         int64
	reftableOff   int64
	reftableBytes int64
	refcountOrder uint // refcounts are 1<<order bits wide
	snapshots     uint32
	snapshotsOff  int64
	incompat      uint64
	compat        uint64
	autoclear     uint64
	length        int64
	compression   uint8
	backing       string
	backingFmt    string
	bitmaps       bitmapsExt
	featureNames  map[featureKey]string
	fileSize      int64
}

type featureKey struct{ kind, bit uint8 }

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }
func (h *header) extendedL2() bool   { return h.incompat&incompatExtendedL2 != 0 }

// l2EntryBits is the width of an L2 entry: 8 bytes, or 16 where each cluster has 32 subclusters.
func (h *header) l2EntryBits() uint {
	if h.extendedL2() {
		return 4
	}
	return 3
}

// l2Entries is the number of clusters that one L2 table maps.
func (h *header) l2Entries() int64 { return h.clusterSize() >> h.l2EntryBits() }

// l2Cover is the number of bytes of the disk that one L2 table maps.
func (h *header) l2Cover() int64 { return h.l2Entries() << h.clusterBits }

func (h *header) codec() formats.Codec {
	if h.compression == compressionZstd {
		return formats.Zstd
	}
	return formats.Deflate
}

// l1Need is the number of L1 entries that a disk of size bytes takes.
func (h *header) l1Need(size int64) int64 {
	cover := h.l2Cover()
	return (size + cover - 1) / cover
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("qcow2: "+format+": %w", append(args, formats.ErrCorrupt)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("qcow2: "+format+": %w", append(args, formats.ErrFormat)...)
}

func isQcow2(head []byte) bool {
	return len(head) >= 8 && binary.BigEndian.Uint32(head) == magic && slices.Contains([]uint32{2, 3}, binary.BigEndian.Uint32(head[4:]))
}

// readHeader reads and examines the first cluster of a file of size bytes.
func readHeader(r io.ReaderAt, size int64) (*header, error) {
	var fixed [headerLen]byte
	n, err := r.ReadAt(fixed[:min(headerLen, size)], 0)
	if err != nil && (!errors.Is(err, io.EOF) || int64(n) < min(headerLen, size)) {
		return nil, fmt.Errorf("qcow2: read the header: %w", err)
	}
	b := fixed[:]
	if n < 8 || binary.BigEndian.Uint32(b) != magic {
		return nil, unsupported("no qcow2 image")
	}
	if n < headerLenV2 {
		return nil, corrupt("the header ends after %d bytes", n)
	}
	h := &header{fileSize: size}
	if err := h.parseFixed(b, int64(n)); err != nil {
		return nil, err
	}
	first := make([]byte, min(h.clusterSize(), size))
	if m, err := r.ReadAt(first, 0); m < len(first) {
		return nil, fmt.Errorf("qcow2: read the first cluster: %w", unexpected(err))
	}
	if err := h.parseBacking(first); err != nil {
		return nil, err
	}
	if err := h.parseExtensions(first); err != nil {
		return nil, err
	}
	return h, h.validate()
}

// unexpected is the error of a read that came out short.
func unexpected(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the file ends early: %w", formats.ErrCorrupt)
	}
	return err
}

// parseFixed takes the fields of the header itself from its first n bytes.
func (h *header) parseFixed(b []byte, n int64) error {
	be := binary.BigEndian
	h.version = be.Uint32(b[4:])
	h.clusterBits = uint(be.Uint32(b[20:]))
	size := be.Uint64(b[24:])
	h.l1Entries = int64(be.Uint32(b[36:]))
	l1Off, refOff, snapOff := be.Uint64(b[40:]), be.Uint64(b[48:]), be.Uint64(b[64:])
	h.snapshots = be.Uint32(b[60:])
	h.refcountOrder, h.length = 4, headerLenV2
	switch h.version {
	case 2:
	case 3:
		if n < headerLenMin {
			return corrupt("the header ends after %d bytes", n)
		}
		h.incompat, h.compat, h.autoclear = be.Uint64(b[72:]), be.Uint64(b[80:]), be.Uint64(b[88:])
		h.refcountOrder = uint(be.Uint32(b[96:]))
		h.length = int64(be.Uint32(b[100:]))
	default:
		return unsupported("version %d", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return corrupt("cluster_bits is %d, not in %d to %d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	if h.version >= 3 && (h.length < headerLenMin || h.length > min(h.clusterSize(), h.fileSize) || h.length%8 != 0) {
		return corrupt("header_length is %d", h.length)
	}
	if h.length > headerLenMin && n > headerLenMin {
		h.compression = b[104]
	}
	switch crypt := be.Uint32(b[32:]); crypt {
	case 0:
	case 1:
		return unsupported("AES encryption")
	case 2:
		return unsupported("LUKS encryption")
	default:
		return unsupported("encryption method %d", crypt)
	}
	h.reftableBytes = int64(be.Uint32(b[56:])) << h.clusterBits
	for _, f := range []struct {
		name string
		v    uint64
		to   *int64
	}{{"size", size, &h.size}, {"l1_table_offset", l1Off, &h.l1Off}, {"refcount_table_offset", refOff, &h.reftableOff},
		{"snapshots_offset", snapOff, &h.snapshotsOff}} {
		if f.v > maxDiskSize {
			return corrupt("%s is %d", f.name, f.v)
		}
		*f.to = int64(f.v)
	}
	return nil
}

func (h *header) parseBacking(first []byte) error {
	off, n := binary.BigEndian.Uint64(first[8:]), binary.BigEndian.Uint32(first[16:])
	if off == 0 {
		return nil
	}
	if n == 0 || n > maxBackingName || off < uint64(h.length) || off > uint64(len(first)) || uint64(n) > uint64(len(first))-off {
		return corrupt("backing file name of %d bytes at %d", n, off)
	}
	name := first[off : off+uint64(n)]
	if bytes.IndexByte(name, 0) >= 0 {
		return corrupt("backing file name contains a NUL")
	}
	h.backing = string(name)
	return nil
}

// parseExtensions walks the header extensions, which follow the header within the first cluster.
// Unknown ones may be ignored.
func (h *header) parseExtensions(first []byte) error {
	be := binary.BigEndian
	for at := h.length; ; {
		if at == int64(len(first)) {
			return nil
		}
		if at+8 > int64(len(first)) {
			return corrupt("header extension at %d reaches beyond the first cluster", at)
		}
		kind, n := be.Uint32(first[at:]), int64(be.Uint32(first[at+4:]))
		if kind == extEnd {
			return nil
		}
		at += 8
		if n > int64(len(first))-at {
			return corrupt("header extension %#x of %d bytes at %d", kind, n, at-8)
		}
		data := first[at : at+n]
		switch kind {
		case extBackingFmt:
			h.backingFmt = string(data)
		case extFeatures:
			h.featureNames = make(map[featureKey]string)
			for ; len(data) >= 48; data = data[48:] {
				name, _, _ := bytes.Cut(data[2:48], []byte{0})
				h.featureNames[featureKey{data[0], data[1]}] = string(name)
			}
		case extBitmaps:
			if err := h.bitmaps.parse(data); err != nil {
				return err
			}
		}
		at += (n + 7) &^ 7
		at = min(at, int64(len(first)))
	}
}

// validate examines what needs the whole header.
func (h *header) validate() error {
	if unknown := h.incompat &^ incompatKnown; unknown != 0 {
		bit := uint8(bits.TrailingZeros64(unknown))
		name := h.featureNames[featureKey{0, bit}]
		return unsupported("incompatible feature %d %q", bit, name)
	}
	if h.incompat&incompatDataFile != 0 {
		return unsupported("external data file")
	}
	switch set := h.incompat&incompatCompression != 0; {
	case h.compression > compressionZstd:
		return unsupported("compression type %d", h.compression)
	case set != (h.compression != compressionZlib):
		return corrupt("compression type %d contradicts the feature bits", h.compression)
	}
	if h.extendedL2() && h.clusterBits < 14 {
		return corrupt("extended L2 entries with clusters of %d bytes", h.clusterSize())
	}
	if h.refcountOrder > 6 {
		return corrupt("refcount_order is %d", h.refcountOrder)
	}
	if err := h.validTable("L1 table", h.l1Off, h.l1Entries*8, maxL1Bytes); err != nil {
		return err
	}
	if need := h.l1Need(h.size); h.l1Entries < need {
		return corrupt("the L1 table has %d entries, a disk of %d bytes takes %d", h.l1Entries, h.size, need)
	}
	if h.reftableBytes == 0 {
		return corrupt("there is no refcount table")
	}
	if err := h.validTable("refcount table", h.reftableOff, h.reftableBytes, maxReftableBytes); err != nil {
		return err
	}
	if h.snapshots > maxSnapshots {
		return corrupt("%d snapshots", h.snapshots)
	}
	if h.snapshots > 0 && (h.snapshotsOff%h.clusterSize() != 0 || h.snapshotsOff == 0 || h.snapshotsOff >= h.fileSize) {
		return corrupt("snapshot table at %d", h.snapshotsOff)
	}
	return nil
}

// validTable examines where a table of n bytes lies.
func (h *header) validTable(name string, off, n, limit int64) error {
	if n > limit {
		return corrupt("%s of %d bytes", name, n)
	}
	if n > 0 && (off == 0 || off%h.clusterSize() != 0 || off > h.fileSize-n) {
		return corrupt("%s of %d bytes at %d in a file of %d", name, n, off, h.fileSize)
	}
	return nil
}
