package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// The header section, [MS-VHDX] 2.2: each part has 64 KiB.
const (
	identifierAt = 0
	header1At    = 64 * kib
	header2At    = 128 * kib
	regions1At   = 192 * kib
	regions2At   = 256 * kib
	sectionEnd   = 1 * mib
)

const (
	identifierSignature = "vhdxfile"
	headerSignature     = "head"
	headerSize          = 4 * kib
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of b with the four bytes at off taken for zeros.
func checksum(b []byte, off int) uint32 {
	var none [4]byte
	sum := crc32.Update(0, castagnoli, b[:off])
	sum = crc32.Update(sum, castagnoli, none[:])
	return crc32.Update(sum, castagnoli, b[off+4:])
}

// header is [MS-VHDX] 2.2.2.
type header struct {
	sequence   uint64
	fileWrite  blocks.ID
	dataWrite  blocks.ID
	log        blocks.ID // zero: the log is empty
	logVersion uint16
	version    uint16
	logLen     int64
	logOff     int64
}

func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if string(b[:4]) != headerSignature {
		return header{}, fmt.Errorf("no signature %q: %w", headerSignature, formats.ErrCorrupt)
	}
	if got, want := le.Uint32(b[4:]), checksum(b, 4); got != want {
		return header{}, fmt.Errorf("checksum is %#x, its bytes give %#x: %w", got, want, formats.ErrCorrupt)
	}
	return header{
		sequence:   le.Uint64(b[8:]),
		fileWrite:  blocks.GUID(b[16:]),
		dataWrite:  blocks.GUID(b[32:]),
		log:        blocks.GUID(b[48:]),
		logVersion: le.Uint16(b[64:]),
		version:    le.Uint16(b[66:]),
		logLen:     int64(le.Uint32(b[68:])),
		logOff:     int64(le.Uint64(b[72:])),
	}, nil
}

func (h header) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	copy(b, headerSignature)
	le.PutUint64(b[8:], h.sequence)
	blocks.PutGUID(b[16:], h.fileWrite)
	blocks.PutGUID(b[32:], h.dataWrite)
	blocks.PutGUID(b[48:], h.log)
	le.PutUint16(b[64:], h.logVersion)
	le.PutUint16(b[66:], h.version)
	le.PutUint32(b[68:], uint32(h.logLen))
	le.PutUint64(b[72:], uint64(h.logOff))
	le.PutUint32(b[4:], checksum(b, 4))
	return b
}

// findHeader answers the current header: of the valid ones that with the higher sequence number. Two
// of one number must be the same (Disk2vhd writes such).
func findHeader(r blocks.File) (header, error) {
	if r.Size < sectionEnd {
		return header{}, fmt.Errorf("a file of %d bytes is shorter than its header section: %w", r.Size, formats.ErrCorrupt)
	}
	var (
		b   [2][]byte
		h   [2]header
		err [2]error
	)
	for i, at := range []int64{header1At, header2At} {
		b[i] = make([]byte, headerSize)
		if err := r.ReadFull(b[i], at); err != nil {
			return header{}, fmt.Errorf("header %d: %w", i+1, err)
		}
		h[i], err[i] = parseHeader(b[i])
	}
	current := 0
	switch {
	case err[0] != nil && err[1] != nil:
		return header{}, fmt.Errorf("header 1: %w; header 2: %w", err[0], err[1])
	case err[0] != nil:
		current = 1
	case err[1] != nil:
	case h[1].sequence > h[0].sequence:
		current = 1
	case h[1].sequence == h[0].sequence && !bytes.Equal(b[0], b[1]):
		return header{}, fmt.Errorf("headers: both have sequence number %d and differ: %w", h[0].sequence, formats.ErrCorrupt)
	}
	return h[current], h[current].valid()
}

func (h header) valid() error {
	switch {
	case h.version != 1:
		return fmt.Errorf("header: version %d: %w", h.version, formats.ErrFormat)
	case h.log != (blocks.ID{}) && h.logVersion != 0:
		return fmt.Errorf("header: log version %d: %w", h.logVersion, formats.ErrFormat)
	case h.logLen%mib != 0:
		return fmt.Errorf("header: log length %d is no multiple of 1 MiB: %w", h.logLen, formats.ErrCorrupt)
	case h.logLen > 0 && (h.logOff < sectionEnd || h.logOff%mib != 0 || h.logOff > maxOffset):
		return fmt.Errorf("header: log offset %d: %w", h.logOff, formats.ErrCorrupt)
	case h.log != (blocks.ID{}) && h.logLen == 0:
		return fmt.Errorf("header: log length 0, but the log is in use: %w", formats.ErrCorrupt)
	}
	return nil
}

// maxOffset is above every offset in a real file, and far from what does not fit into an int64.
const maxOffset = 1 << 60
