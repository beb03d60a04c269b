package ovf

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"

	"github.com/klauspost/compress/gzip"

	"hypersdk/formats"
)

// Package is a package whose files can be read at random: a folder, or an OVA in a file.
type Package struct {
	Envelope *Envelope
	Manifest Manifest // nil: there is none

	name        string // of the descriptor, without its extension
	descriptor  []byte
	rawManifest []byte
	certificate []byte
	open        func(name string) (formats.Opened, error)
}

// Open reads a package that lies in a folder; beside opens its files by name, name is that of the
// descriptor.
func Open(name string, beside func(name string) (formats.Opened, error)) (*Package, error) {
	if !isDescriptor(name) {
		return nil, fmt.Errorf("ovf: %q is not the name of a descriptor: %w", name, formats.ErrFormat)
	}
	p := &Package{name: name[:len(name)-len(".ovf")], open: beside}
	var err error
	if p.descriptor, err = p.read(name, maxEnvelope); err != nil {
		return nil, err
	}
	return p, p.load()
}

// Index reads an OVA that is stored in r, which holds size bytes, and notes where its files are.
func Index(ctx context.Context, r io.ReaderAt, size int64) (*Package, error) {
	all, err := Places(ctx, r, size)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("ovf: archive: it is empty: %w", formats.ErrFormat)
	}
	if name := all[0].Name; !isDescriptor(name) {
		return nil, fmt.Errorf("ovf: archive: its first member is %q, not a descriptor: %w", name, formats.ErrFormat)
	}
	p := &Package{name: all[0].Name[:len(all[0].Name)-len(".ovf")]}
	where := make(map[string]*io.SectionReader)
	for _, m := range all {
		where[m.Name] = io.NewSectionReader(r, m.Off, m.Size)
	}
	p.open = func(name string) (formats.Opened, error) {
		s, ok := where[name]
		if !ok {
			return formats.Opened{}, fmt.Errorf("ovf: archive: %q: %w", name, fs.ErrNotExist)
		}
		return formats.Opened{ReaderAt: s, Closer: io.NopCloser(nil), Size: s.Size(), Name: name, Beside: p.open}, nil
	}
	if p.descriptor, err = p.read(all[0].Name, maxEnvelope); err != nil {
		return nil, err
	}
	return p, p.load()
}

// counter knows how far it was read. It seeks, so that contents are passed over.
type counter struct {
	r   *io.SectionReader
	off int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.off += int64(n)
	return n, err
}

func (c *counter) Seek(off int64, whence int) (int64, error) {
	n, err := c.r.Seek(off, whence)
	if err == nil {
		c.off = n
	}
	return n, err
}

// load reads the descriptor, and the manifest and the certificate, which may be missing.
func (p *Package) load() error {
	missing := func(err error) bool { return errors.Is(err, fs.ErrNotExist) }
	var err error
	if p.Envelope, err = ReadEnvelope(bytes.NewReader(p.descriptor)); err != nil {
		return err
	}
	p.rawManifest, err = p.read(p.name+".mf", maxManifest)
	switch {
	case err == nil:
		if p.Manifest, err = ReadManifest(bytes.NewReader(p.rawManifest)); err != nil {
			return err
		}
	case !missing(err):
		return err
	}
	if p.certificate, err = p.read(p.name+".cert", maxCertificate); err != nil && !missing(err) {
		return err
	}
	return nil
}

// read reads a small file of the package.
func (p *Package) read(name string, limit int64) ([]byte, error) {
	f, err := p.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size > limit {
		return nil, fmt.Errorf("ovf: %q of %d bytes: %w", name, f.Size, formats.ErrFormat)
	}
	b := make([]byte, f.Size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("ovf: %q: %w", name, err)
	}
	return b, nil
}

// Beside opens a file of the package, and nothing else: it is made for [formats.OpenOptions].
func (p *Package) Beside(name string) (formats.Opened, error) {
	if err := checkName(name); err != nil {
		return formats.Opened{}, fmt.Errorf("ovf: %w", err)
	}
	f, err := p.open(name)
	f.Beside = p.Beside
	return f, err
}

// OpenFile opens a file that is not compressed, its chunks joined, to be read at random.
func (p *Package) OpenFile(f File) (formats.Opened, error) {
	if f.Gzip {
		return formats.Opened{}, fmt.Errorf("ovf: %q is compressed, it can only be read front to back: %w", f.Href, formats.ErrFormat)
	}
	return p.stored(f)
}

// stored opens a file as it is stored, its chunks joined.
func (p *Package) stored(f File) (formats.Opened, error) {
	if f.ChunkSize == 0 {
		o, err := p.Beside(f.Href)
		if err == nil && f.Size > 0 && o.Size != f.Size {
			err = errors.Join(fmt.Errorf("ovf: %q has %d bytes, the descriptor says %d: %w", f.Href, o.Size, f.Size, formats.ErrCorrupt), o.Close())
		}
		return o, err
	}
	c := &chunks{size: f.ChunkSize}
	if err := p.join(c, f); err != nil {
		return formats.Opened{}, errors.Join(err, c.Close())
	}
	return formats.Opened{ReaderAt: c, Closer: c, Size: c.total, Name: f.Href, Beside: p.Beside}, nil
}

// join opens the chunks of a file, up to the first that is not there.
func (p *Package) join(c *chunks, f File) error {
	for {
		o, err := p.Beside(chunkName(f, int64(len(c.all))))
		if errors.Is(err, fs.ErrNotExist) && len(c.all) > 0 {
			break
		}
		if err != nil {
			return err
		}
		c.all = append(c.all, o)
		c.total += o.Size
		if n := len(c.all); n > 1 && c.all[n-2].Size != c.size || o.Size > c.size || n > maxMembers {
			return fmt.Errorf("ovf: the chunks of %q are not of %d bytes: %w", f.Href, c.size, formats.ErrCorrupt)
		}
	}
	if f.Size > 0 && c.total != f.Size {
		return fmt.Errorf("ovf: the chunks of %q have %d bytes, the descriptor says %d: %w", f.Href, c.total, f.Size, formats.ErrCorrupt)
	}
	return nil
}

// chunks are the parts of a file that is split, one file again.
type chunks struct {
	all   []formats.Opened
	size  int64 // of all but the last
	total int64
}

func (c *chunks) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ovf: read at %d", off)
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		if at >= c.total {
			return done, io.EOF
		}
		in := at % c.size
		part := c.all[at/c.size]
		to := b[done:][:min(int64(len(b)-done), part.Size-in)]
		n, err := part.ReadAt(to, in)
		done += n
		if n < len(to) {
			return done, err
		}
	}
	return done, nil
}

func (c *chunks) Close() error {
	var err error
	for _, o := range c.all {
		err = errors.Join(err, o.Close())
	}
	return err
}

// Stream reads what a file holds front to back: chunks joined, unpacked where it is compressed.
func (p *Package) Stream(f File) (io.ReadCloser, error) {
	o, err := p.stored(f)
	if err != nil {
		return nil, err
	}
	r := io.NewSectionReader(o, 0, o.Size)
	if !f.Gzip {
		return struct {
			io.Reader
			io.Closer
		}{r, o}, nil
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ovf: %q: %w", f.Href, unzipped(err)), o.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{unzip{z, f.Href}, o}, nil
}

// Verify reads all files and compares them with the manifest, and the manifest with its signature. It
// answers the certificates of who signed it, if anyone did. A package without a manifest is refused.
func (p *Package) Verify(ctx context.Context) ([]*x509.Certificate, error) {
	if p.Manifest == nil {
		return nil, fmt.Errorf("ovf: %s: there is no manifest to compare with: %w", p.name, formats.ErrFormat)
	}
	names := []string{p.name + ".ovf"}
	for _, f := range p.Envelope.Files {
		if f.ChunkSize == 0 {
			names = append(names, f.Href)
		} else {
			names = append(names, p.chunkNames(f)...)
		}
	}
	for _, s := range p.Manifest {
		names = append(names, s.Name)
	}
	done := make(map[string]bool)
	for _, name := range names {
		if done[name] {
			continue
		}
		done[name] = true
		if err := p.verify(ctx, name); err != nil {
			return nil, err
		}
	}
	if p.certificate == nil {
		return nil, nil
	}
	return VerifyCertificate(p.certificate, p.name+".mf", p.rawManifest)
}

// chunkNames are those of the chunks that the manifest names; a chunk that it does not name is then
// found missing by its neighbours.
func (p *Package) chunkNames(f File) []string {
	var out []string
	n := int64(1)
	if f.Size > 0 {
		n = min((f.Size+f.ChunkSize-1)/f.ChunkSize, maxMembers)
	}
	for i := range n {
		out = append(out, chunkName(f, i))
	}
	for _, s := range p.Manifest {
		if strings.HasPrefix(s.Name, f.Href+".") {
			out = append(out, s.Name)
		}
	}
	return out
}

func (p *Package) verify(ctx context.Context, name string) error {
	f, err := p.Beside(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var all []hash.Hash
	kinds := hashesOf(p.Manifest.of(name))
	to := []io.Writer{}
	for _, k := range kinds {
		h := k.New()
		all, to = append(all, h), append(to, h)
	}
	buf := make([]byte, 1<<20)
	w := io.MultiWriter(to...)
	for off := int64(0); off < f.Size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), f.Size-off)]
		n, err := f.ReadAt(b, off)
		if n < len(b) {
			return fmt.Errorf("ovf: %q: %w", name, errors.Join(err, formats.ErrCorrupt))
		}
		_, _ = w.Write(b) // hashes do not fail
		off += int64(n)
	}
	var got []Sum
	for i, h := range all {
		got = append(got, Sum{Hash: kinds[i], Sum: h.Sum(nil)})
	}
	return p.Manifest.check(name, got)
}
