package formatstest

import (
	"hypersdk/formats"
)

// Fill writes d's [off, end) through w as a copy does: packed where w packs, zeros where there are
// zeros, several blocks at once where it can, and nothing where d is absent. off is a multiple of w's
// block size. It ends at the first error.
func Fill(w formats.Writer, d *Disk, off, end int64) error {
	f := filler{w: w, block: max(w.BlockSize(), page)}
	if f.packer, _ = w.(formats.PackedWriter); f.packer != nil {
		f.block = w.BlockSize()
	}
	for at := off; at < end; {
		p := d.parts[d.find(at)]
		n := (min(p.end, end) - at) / f.block * f.block
		if p.end >= end {
			n = end - at
		}
		switch {
		case p.style == absent:
			n = min(p.end, end) - at
		case p.style == hole && n > 0:
			if err := f.zeroes(at, n); err != nil {
				return err
			}
		default:
			n = min(f.block, end-at)
			b := make([]byte, n)
			if _, err := d.ReadAt(b, at); err != nil {
				return err
			}
			if err := f.put(b, at); err != nil {
				return err
			}
		}
		at += n
	}
	return f.flush()
}

type filler struct {
	w      formats.Writer
	packer formats.PackedWriter
	block  int64
	wait   []byte // plain blocks not written yet
	off    int64  // where they go
	out    []byte
}

func (f *filler) put(b []byte, off int64) error {
	if isZero(b) {
		return f.zeroes(off, int64(len(b)))
	}
	if f.packer != nil {
		if p, ok := f.packer.Pack(f.out[:0], b); ok {
			f.out = p.Bytes
			if err := f.flush(); err != nil {
				return err
			}
			return f.packer.WritePacked(off, int64(len(b)), p)
		}
	}
	if f.off+int64(len(f.wait)) != off || int64(len(f.wait)) >= 5*f.block {
		if err := f.flush(); err != nil {
			return err
		}
	}
	if len(f.wait) == 0 {
		f.off = off
	}
	f.wait = append(f.wait, b...)
	return nil
}

func (f *filler) zeroes(off, n int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.w.WriteZeroes(off, n)
}

func (f *filler) flush() error {
	if len(f.wait) == 0 {
		return nil
	}
	_, err := f.w.WriteAt(f.wait, f.off)
	f.wait = f.wait[:0]
	return err
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
