package qcow2

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"hypersdk/formats"
	"hypersdk/formats/inflate"
)

// unpacker unpacks clusters, from many goroutines at once.
type unpacker struct {
	inflaters sync.Pool // of *inflate.Decoder
	buffers   sync.Pool // of *[]byte
	once      sync.Once
	zstd      *zstd.Decoder
	zstdErr   error
}

// unpack fills dst with what src begins with. Behind that there may be rubbish: the length of a packed
// cluster is known in sectors only.
func (u *unpacker) unpack(c formats.Codec, dst, src []byte) error {
	var err error
	switch c {
	case formats.Deflate:
		err = u.inflate(dst, src)
	case formats.Zstd:
		err = u.unzstd(dst, src)
	default:
		return unsupported("codec %d", c)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
	}
	return nil
}

// inflate fills dst from a raw deflate stream. One that goes on behind dst is taken as qemu takes it.
func (u *unpacker) inflate(dst, src []byte) error {
	d, _ := u.inflaters.Get().(*inflate.Decoder)
	if d == nil {
		d = new(inflate.Decoder)
	}
	defer u.inflaters.Put(d)
	n, _, err := d.Inflate(dst, src)
	if n < len(dst) {
		return fmt.Errorf("inflate: %d of %d bytes: %w", n, len(dst), err)
	}
	return nil
}

// unzstd fills dst from one or more zstd frames.
func (u *unpacker) unzstd(dst, src []byte) error {
	u.once.Do(func() {
		u.zstd, u.zstdErr = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(1<<(maxClusterBits+2)))
	})
	if u.zstdErr != nil {
		return u.zstdErr
	}
	out := dst[:0]
	for len(out) < len(dst) {
		n, err := frameLen(src)
		if err != nil {
			return err
		}
		had := len(out)
		out, err = u.zstd.DecodeAll(src[:n], out[:had:len(dst)])
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		if len(out) == had && n == 0 {
			return errFrame
		}
		src = src[n:]
	}
	return nil
}

var errFrame = errors.New("zstd: no whole frame")

// frameLen is the length of the zstd frame that src begins with (RFC 8878, section 3.1).
func frameLen(src []byte) (int, error) {
	const frameMagic, skipMagic = 0xfd2fb528, 0x184d2a50
	if len(src) < 8 {
		return 0, errFrame
	}
	m := uint32(src[0]) | uint32(src[1])<<8 | uint32(src[2])<<16 | uint32(src[3])<<24
	if m&^0xf == skipMagic {
		n := int64(src[4]) | int64(src[5])<<8 | int64(src[6])<<16 | int64(src[7])<<24
		if n > int64(len(src)-8) {
			return 0, errFrame
		}
		return 8 + int(n), nil
	}
	if m != frameMagic {
		return 0, errFrame
	}
	d := src[4]
	single := d>>5&1 != 0
	at := 5
	if !single {
		at++ // window
	}
	at += [4]int{0, 1, 2, 4}[d&3] // dictionary
	switch d >> 6 {               // content size
	case 0:
		if single {
			at++
		}
	default:
		at += 1 << (d >> 6)
	}
	for last := false; !last; {
		if at+3 > len(src) {
			return 0, errFrame
		}
		b := int(src[at]) | int(src[at+1])<<8 | int(src[at+2])<<16
		last = b&1 != 0
		at += 3
		if b>>1&3 == 1 { // a run of one byte
			at++
		} else {
			at += b >> 3
		}
	}
	if d>>2&1 != 0 {
		at += 4 // checksum
	}
	if at > len(src) {
		return 0, errFrame
	}
	return at, nil
}

// framesLen is the length of the frames that src begins with and that unpack to n bytes at most; the
// rest is rubbish. Where src is no frame, it is len(src).
func framesLen(src []byte) int {
	at := 0
	for {
		n, err := frameLen(src[at:])
		if err != nil {
			break
		}
		at += n
	}
	if at == 0 {
		return len(src)
	}
	return at
}

// buffer lends n bytes.
func (u *unpacker) buffer(n int64) *[]byte {
	b, _ := u.buffers.Get().(*[]byte)
	if b == nil || int64(cap(*b)) < n {
		b = new([]byte)
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}
