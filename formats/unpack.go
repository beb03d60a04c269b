package formats

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"hypersdk/formats/inflate"
)

// unpacker unpacks blocks, one after the other; its state is reused.
type unpacker struct {
	in      bytes.Reader
	deflate inflate.Decoder
	zstd    *zstd.Decoder
}

// unpack fills dst with the bytes of p, which must be exactly as many, and checks their sum if it is
// known. What a format stores behind the end of a deflate stream to fill a sector is cut off: where the
// block goes, it may not be allowed there.
func (u *unpacker) unpack(dst []byte, p *Packed) error {
	var err error
	switch p.Codec {
	case Deflate:
		err = u.inflate(dst, p)
	case Zstd:
		err = u.unzstd(dst, p.Bytes)
	default:
		return fmt.Errorf("codec %d: %w", p.Codec, ErrFormat)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if p.HasSum && inflate.Adler32(dst) != p.Sum {
		return fmt.Errorf("adler-32 of the block does not match: %w", ErrCorrupt)
	}
	return nil
}

func (u *unpacker) inflate(dst []byte, p *Packed) error {
	n, used, err := u.deflate.Inflate(dst, p.Bytes)
	switch {
	case err != nil:
		return err
	case n < len(dst):
		return fmt.Errorf("inflate: %d of %d bytes", n, len(dst))
	}
	p.Bytes = p.Bytes[:used]
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
