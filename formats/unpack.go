package formats

import (
	"bytes"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// unpacker unpacks blocks, one after the other; its state is reused.
type unpacker struct {
	in      bytes.Reader
	deflate io.ReadCloser
	zstd    *zstd.Decoder
}

// unpack fills dst with the bytes of p, which must be exactly as many, and checks their sum if it is
// known.
func (u *unpacker) unpack(dst []byte, p Packed) error {
	var err error
	switch p.Codec {
	case Deflate:
		err = u.inflate(dst, p.Bytes)
	case Zstd:
		err = u.unzstd(dst, p.Bytes)
	default:
		return fmt.Errorf("codec %d: %w", p.Codec, ErrFormat)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if p.HasSum && adler32.Checksum(dst) != p.Sum {
		return fmt.Errorf("adler-32 of the block does not match: %w", ErrCorrupt)
	}
	return nil
}

func (u *unpacker) inflate(dst, src []byte) error {
	u.in.Reset(src)
	if u.deflate == nil {
		u.deflate = flate.NewReader(&u.in)
	} else if err := u.deflate.(flate.Resetter).Reset(&u.in, nil); err != nil {
		return err
	}
	if n, err := io.ReadFull(u.deflate, dst); err != nil {
		return fmt.Errorf("inflate: %d of %d bytes: %w", n, len(dst), err)
	}
	return nil
}

func (u *unpacker) unzstd(dst, src []byte) error {
	if u.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return err
		}
		u.zstd = d
	}
	u.in.Reset(src)
	if err := u.zstd.Reset(&u.in); err != nil {
		return err
	}
	n, err := io.ReadFull(u.zstd, dst)
	if err != nil && (!errors.Is(err, io.EOF) || n < len(dst)) {
		return fmt.Errorf("zstd: %d of %d bytes: %w", n, len(dst), err)
	}
	return nil
}

// close gives back what the state holds.
func (u *unpacker) close() {
	if u.zstd != nil {
		u.zstd.Close()
	}
}
