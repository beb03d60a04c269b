package vspheretest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// Content fills a new disk. w is all zeros before; size is 0 where the disk is to be as long as its
// content.
type Content func(w io.WriterAt, size int64) error

// FromFile is the content of a raw image. Blocks of zeros become holes.
func FromFile(path string) Content {
	return func(w io.WriterAt, size int64) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return FromReader(f)(w, size)
	}
}

// FromBytes is p, and zeros after it.
func FromBytes(p []byte) Content {
	return func(w io.WriterAt, size int64) error { return FromReader(bytes.NewReader(p))(w, size) }
}

// FromReader is what r reads, to its end. Blocks of zeros become holes.
func FromReader(r io.Reader) Content {
	return func(w io.WriterAt, size int64) error {
		buf, zero := make([]byte, 1<<20), make([]byte, grain)
		for off := int64(0); ; {
			n, err := io.ReadFull(r, buf)
			if size > 0 && off+int64(n) > size {
				return fmt.Errorf("the content is longer than the disk of %d bytes", size)
			}
			for i := 0; i < n; i += grain {
				block := buf[i:min(i+grain, n)]
				if bytes.Equal(block, zero[:len(block)]) {
					continue
				}
				if _, err := w.WriteAt(block, off+int64(i)); err != nil {
					return err
				}
			}
			off += int64(n)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return setLength(w, off)
			}
			if err != nil {
				return err
			}
		}
	}
}

// setLength keeps zeros at the end of a content, which were not written, in the length of the disk.
func setLength(w io.WriterAt, n int64) error {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() >= n {
		return err
	}
	return f.Truncate(n)
}

// stripe is the run of bytes that [Generated] writes or leaves out as a whole.
const stripe = 4 << 20

// Generated writes data bytes (rounded to stripes of 4 MiB; at most the disk), evenly spread over the
// disk with holes between, the same for the same seed. Half of the blocks of 64 KiB can be
// compressed well and half not at all, as on a disk in use.
func Generated(seed uint64, data int64) Content {
	return func(w io.WriterAt, size int64) error {
		all := (size + stripe - 1) / stripe
		full := min((data+stripe-1)/stripe, all)
		if all == 0 {
			return errors.New("generated content needs the size of the disk")
		}
		buf := make([]byte, stripe)
		for i := range all {
			if (i+1)*full/all == i*full/all {
				continue
			}
			off := i * stripe
			p := buf[:min(stripe, size-off)]
			generate(p, seed, off)
			if _, err := w.WriteAt(p, off); err != nil {
				return err
			}
		}
		return nil
	}
}

// generate fills p, which lies at off of its disk. It depends on seed and off alone.
func generate(p []byte, seed uint64, off int64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(off))
	r := rand.NewChaCha8(key)
	for i := 0; i < len(p); i += grain {
		block := p[i:min(i+grain, len(p))]
		if r.Uint64()&1 == 0 {
			_, _ = r.Read(block) // never fails
			continue
		}
		line := fmt.Appendf(nil, "seed %016x offset %016x: the quick brown fox jumps over the lazy dog\n", seed, off+int64(i))
		for n := 0; n < len(block); {
			n += copy(block[n:], line)
		}
	}
}
