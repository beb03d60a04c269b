package ovf

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"hypersdk/formats"
)

// Content is what an OVA is made of.
type Content struct {
	// Name is that of the package: its descriptor is Name.ovf.
	Name string
	// Envelope describes the machines. Files are not split and not compressed. [Write] and [WriteFile]
	// fill their sizes in; [WriteOnce] and [NewLayout] need to be told.
	Envelope Envelope
	// Write writes a file of the envelope, front to back. Written twice, it must give the same bytes.
	Write func(ctx context.Context, f File, w io.Writer) error
	Hash  crypto.Hash // of the manifest; 0: SHA-256
	Sign  *Signer     // nil: not signed
	Time  time.Time   // of all members; zero: the beginning of 1970, so that the same content gives the same bytes
}

// unknownSize stands for the size of a file that is not known yet: no real one has more digits.
const unknownSize = 1 << 62

// packer lays an OVA out: descriptor, manifest and certificate, whose lengths are known before what
// they say is, then the files.
type packer struct {
	Content
	room  int64 // for the descriptor: it is filled up with blank lines
	files []packed
}

// packed is a file that went by.
type packed struct {
	File
	sum []byte
}

// newPacker begins an archive; known says that the sizes of its files are what the envelope says.
func newPacker(c Content, known bool) (*packer, error) {
	if c.Hash == 0 {
		c.Hash = crypto.SHA256
	}
	if hashName(c.Hash) == "" {
		return nil, fmt.Errorf("ovf: a manifest with %v: %w", c.Hash, formats.ErrFormat)
	}
	p := &packer{Content: c}
	for _, f := range c.Envelope.Files {
		if f.ChunkSize != 0 || f.Gzip {
			return nil, fmt.Errorf("ovf: write %q split or compressed: %w", f.Href, formats.ErrFormat)
		}
		if isDescriptor(f.Href) || isManifest(f.Href) || isCertificate(f.Href) {
			return nil, fmt.Errorf("ovf: a file called %q: the name is that of a part of the package: %w", f.Href, formats.ErrFormat)
		}
		if !known {
			f.Size = unknownSize
		}
		p.files = append(p.files, packed{File: f, sum: make([]byte, c.Hash.Size())})
	}
	if c.Sign != nil {
		if err := c.Sign.check(); err != nil {
			return nil, err
		}
	}
	d, err := p.descriptor()
	p.room = int64(len(d))
	return p, err
}

func (p *packer) descriptor() ([]byte, error) {
	e := p.Envelope
	e.Files = nil
	for _, f := range p.files {
		e.Files = append(e.Files, f.File)
	}
	var b bytes.Buffer
	_, err := e.WriteTo(&b)
	if n := p.room - int64(b.Len()); err == nil && n > 0 {
		b.Write(bytes.Repeat([]byte{'\n'}, int(n)))
	}
	return b.Bytes(), err
}

// front are the members before the files, in their order.
func (p *packer) front() ([]member, error) {
	d, err := p.descriptor()
	if err != nil {
		return nil, err
	}
	h := p.Hash.New()
	h.Write(d)
	m := Manifest{{Name: p.Name + ".ovf", Hash: p.Hash, Sum: h.Sum(nil)}}
	for _, f := range p.files {
		m = append(m, Sum{Name: f.Href, Hash: p.Hash, Sum: f.sum})
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		return nil, err
	}
	all := []member{{p.Name + ".ovf", d}, {p.Name + ".mf", b.Bytes()}}
	if p.Sign != nil {
		c, err := p.Sign.Certificate(p.Name+".mf", b.Bytes())
		if err != nil {
			return nil, err
		}
		all = append(all, member{p.Name + ".cert", c})
	}
	return all, nil
}

// member is a small file of the archive.
type member struct {
	name string
	b    []byte
}

// head is the beginning of the archive: the members of front as they are stored.
func (p *packer) head() ([]byte, error) {
	all, err := p.front()
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, s := range all {
		h, err := ustar(s.name, int64(len(s.b)), p.Time)
		if err != nil {
			return nil, err
		}
		out = append(append(out, h...), s.b...)
		out = append(out, make([]byte, -len(out)&(block-1))...)
	}
	return out, nil
}

// meter counts and hashes what goes through it.
type meter struct {
	w io.Writer
	n int64
	h hash.Hash
}

func (m *meter) Write(b []byte) (int, error) {
	n, err := m.w.Write(b)
	m.n += int64(n)
	m.h.Write(b[:n])
	return n, err
}

// write has a file written to w.
func (p *packer) write(ctx context.Context, f File, w io.Writer) (packed, error) {
	f.Size = 0
	out := bufio.NewWriterSize(w, 256<<10)
	m := &meter{w: out, h: p.Hash.New()}
	if err := p.Write(ctx, f, m); err != nil {
		return packed{}, fmt.Errorf("ovf: %q: %w", f.Href, err)
	}
	if err := out.Flush(); err != nil {
		return packed{}, fmt.Errorf("ovf: %q: %w", f.Href, err)
	}
	f.Size = m.n
	return packed{File: f, sum: m.h.Sum(nil)}, nil
}

// Write writes an OVA into a pipe. Every file is written twice: what goes before it needs its size and
// its sum.
func Write(ctx context.Context, w io.Writer, c Content) error {
	p, err := newPacker(c, false)
	if err != nil {
		return err
	}
	for i, f := range p.files {
		if p.files[i], err = p.write(ctx, f.File, io.Discard); err != nil {
			return err
		}
	}
	head, err := p.head()
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	for _, f := range p.files {
		h, err := ustar(f.Href, f.Size, p.Time)
		if err != nil {
			return err
		}
		if _, err := w.Write(h); err != nil {
			return fmt.Errorf("ovf: %w", err)
		}
		again, err := p.write(ctx, f.File, w)
		if err != nil {
			return err
		}
		if again.Size != f.Size || !slices.Equal(again.sum, f.sum) {
			return fmt.Errorf("ovf: %q was not the same the second time: %w", f.Href, formats.ErrCorrupt)
		}
		if _, err := w.Write(make([]byte, up(f.Size)-f.Size)); err != nil {
			return fmt.Errorf("ovf: %w", err)
		}
	}
	if _, err := w.Write(make([]byte, 2*block)); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	return nil
}

// WriteFile writes an OVA into a file, in one pass: the same bytes that Write gives. The beginning
// comes last, so that an archive that was not completed is none.
func WriteFile(ctx context.Context, f formats.File, c Content) error {
	p, err := newPacker(c, false)
	if err != nil {
		return err
	}
	head, err := p.head() // as long as it will be
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	at := int64(len(head))
	for i, file := range p.files {
		w := io.NewOffsetWriter(f, at+block)
		if p.files[i], err = p.write(ctx, file.File, w); err != nil {
			return err
		}
		n := p.files[i].Size
		h, err := ustar(file.Href, n, p.Time)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(h, at); err != nil {
			return fmt.Errorf("ovf: header of %q: %w", file.Href, err)
		}
		at += block + up(n)
	}
	if err := f.Truncate(at + 2*block); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	last, err := p.head()
	if err != nil {
		return err
	}
	if len(last) != len(head) {
		return fmt.Errorf("ovf: the beginning became %d bytes instead of %d", len(last), len(head))
	}
	if _, err := f.WriteAt(last, 0); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("ovf: %w", err)
	}
	return nil
}
