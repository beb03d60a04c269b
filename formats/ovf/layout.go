package ovf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"hypersdk/formats"
)

// Layout is where everything is in an OVA whose files have known sizes. It lets the files be put into
// their places one by one, by whoever has them and in any order; [Seal] puts the manifest into the room
// that was kept for it.
type Layout struct {
	p    *packer
	head []byte  // descriptor, and a manifest of no sums
	at   []int64 // where the content of each file begins
	size int64
}

// NewLayout lays an archive out. The files of c must say their sizes; c.Write is not used.
func NewLayout(c Content) (*Layout, error) {
	p, err := newPacker(c, true)
	if err != nil {
		return nil, err
	}
	l := &Layout{p: p}
	if l.head, err = p.head(); err != nil {
		return nil, err
	}
	l.size = int64(len(l.head))
	for _, f := range p.files {
		if f.Size < 0 || f.Size > 1<<62-l.size {
			return nil, fmt.Errorf("ovf: %q of %d bytes: %w", f.Href, f.Size, formats.ErrFormat)
		}
		l.at = append(l.at, l.size+block)
		l.size += block + up(f.Size)
	}
	l.size += 2 * block
	return l, nil
}

// Size is the size of the archive in bytes.
func (l *Layout) Size() int64 { return l.size }

// Begin makes f the archive but for the contents of its files and their sums. f must be empty.
func (l *Layout) Begin(f formats.File) error {
	if err := f.Truncate(l.size); err != nil {
		return fmt.Errorf("ovf: length %d: %w", l.size, err)
	}
	for i, file := range l.p.files {
		h, err := ustar(file.Href, file.Size, l.p.Time)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(h, l.at[i]-block); err != nil {
			return fmt.Errorf("ovf: header of %q: %w", file.Href, err)
		}
	}
	if _, err := f.WriteAt(l.head, 0); err != nil {
		return fmt.Errorf("ovf: descriptor: %w", err)
	}
	return nil
}

// Place is where a member of an archive is.
type Place struct {
	Name      string
	Off, Size int64 // of its content, in bytes
}

// Places lists the members of the archive in r, which holds size bytes, in their order.
func Places(ctx context.Context, r io.ReaderAt, size int64) ([]Place, error) {
	at := &counter{r: io.NewSectionReader(r, 0, size)}
	all := newMembers(at)
	var out []Place
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		name, n, err := all.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		// A header is read to its end and no further: what follows is the content.
		if n > size-at.off {
			return nil, fmt.Errorf("ovf: archive: member %q of %d bytes at %d, the file has %d: %w", name, n, at.off, size, formats.ErrCorrupt)
		}
		out = append(out, Place{Name: name, Off: at.off, Size: n})
	}
}

// Seal writes the sums of the files into the manifest of an archive that [Layout.Begin] began, in the
// order of its files, and signs it where it is to be signed.
func Seal(ctx context.Context, f formats.File, size int64, sums Manifest, sign *Signer) error {
	all, err := Places(ctx, f, size)
	if err != nil {
		return err
	}
	if len(all) < 2 || !isDescriptor(all[0].Name) || !isManifest(all[1].Name) || len(sums) == 0 {
		return fmt.Errorf("ovf: seal: the archive does not begin with a descriptor and a manifest: %w", formats.ErrCorrupt)
	}
	h := sums[0].Hash.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, all[0].Off, all[0].Size)); err != nil {
		return fmt.Errorf("ovf: seal: descriptor: %w", err)
	}
	var m bytes.Buffer
	if _, err := append(Manifest{{Name: all[0].Name, Hash: sums[0].Hash, Sum: h.Sum(nil)}}, sums...).WriteTo(&m); err != nil {
		return err
	}
	small := [][]byte{m.Bytes()}
	if sign != nil {
		c, err := sign.Certificate(all[1].Name, m.Bytes())
		if err != nil {
			return err
		}
		small = append(small, c)
	}
	for i, b := range small {
		p := all[1+i]
		if p.Size != int64(len(b)) {
			return fmt.Errorf("ovf: seal: %d bytes do not fit into %q, which has %d: %w", len(b), p.Name, p.Size, formats.ErrCorrupt)
		}
		if _, err := f.WriteAt(b, p.Off); err != nil {
			return fmt.Errorf("ovf: seal: %q: %w", p.Name, err)
		}
	}
	return nil
}

// WriteOnce writes an OVA into a pipe in one pass, which it can since the files of c say their sizes. The
// manifest comes last, and the certificate behind it: the other order that DSP0243 allows.
func WriteOnce(ctx context.Context, w io.Writer, c Content) error {
	p, err := newPacker(c, true)
	if err != nil {
		return err
	}
	front, err := p.front()
	if err != nil {
		return err
	}
	if err := p.member(w, front[0]); err != nil {
		return err
	}
	for i, f := range p.files {
		h, err := ustar(f.Href, f.Size, p.Time)
		if err != nil {
			return err
		}
		if _, err := w.Write(h); err != nil {
			return fmt.Errorf("ovf: %w", err)
		}
		got, err := p.write(ctx, f.File, w)
		if err != nil {
			return err
		}
		if got.Size != f.Size {
			return fmt.Errorf("ovf: %q has %d bytes, not the %d that were announced: %w", f.Href, got.Size, f.Size, formats.ErrCorrupt)
		}
		p.files[i] = got
		if _, err := w.Write(make([]byte, up(f.Size)-f.Size)); err != nil {
			return fmt.Errorf("ovf: %w", err)
		}
	}
	if front, err = p.front(); err != nil {
		return err
	}
	for _, m := range front[1:] {
		if err := p.member(w, m); err != nil {
			return err
		}
	}
	if _, err := w.Write(make([]byte, 2*block)); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	return nil
}

// member writes a small member.
func (p *packer) member(w io.Writer, m member) error {
	h, err := ustar(m.name, int64(len(m.b)), p.Time)
	if err != nil {
		return err
	}
	b := append(h, m.b...)
	if _, err := w.Write(append(b, make([]byte, -len(b)&(block-1))...)); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	return nil
}
