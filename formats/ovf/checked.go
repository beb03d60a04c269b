package ovf

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/klauspost/compress/gzip"

	"hypersdk/formats"
)

// Name is that of the package: its descriptor is Name.ovf.
func (p *Package) Name() string { return p.name }

// Descriptor is the text of the descriptor.
func (p *Package) Descriptor() []byte { return p.descriptor }

// Vouched says whether the manifest has a sum of a file.
func (p *Package) Vouched(name string) bool { return len(p.Manifest.of(name)) > 0 }

// CheckDescriptor compares the descriptor with the manifest, and the manifest with its signature, as far
// as there are any. It answers the certificates of who signed it.
func (p *Package) CheckDescriptor() ([]*x509.Certificate, error) {
	if p.Manifest != nil {
		if err := p.Manifest.check(p.name+".ovf", sumsOf(p.descriptor)); err != nil {
			return nil, err
		}
	}
	switch {
	case p.certificate == nil:
		return nil, nil
	case p.Manifest == nil:
		return nil, fmt.Errorf("ovf: %s: a certificate without a manifest: %w", p.name, formats.ErrCorrupt)
	}
	return VerifyCertificate(p.certificate, p.name+".mf", p.rawManifest)
}

// Checked reads what a file holds front to back, as Stream does, and compares what is stored with the
// manifest, if there is one, as it goes by: it answers io.EOF only where all of it is right. came is told
// how many stored bytes were read.
func (p *Package) Checked(f File, came func(n int64)) (io.ReadCloser, error) {
	c := &checked{p: p, file: f, came: came}
	if err := c.open(); err != nil {
		return nil, err
	}
	if !f.Gzip {
		return c, nil
	}
	z, err := gzip.NewReader(c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ovf: %q: %w", f.Href, unzipped(err)), c.Close())
	}
	return unzippedFile{unzip{z, f.Href}, c}, nil
}

// unzippedFile is a compressed file. Its end is believed only when what is stored has come to its own.
type unzippedFile struct {
	unzip
	*checked
}

func (u unzippedFile) Read(b []byte) (int, error) {
	n, err := u.unzip.Read(b)
	if errors.Is(err, io.EOF) && !errors.Is(u.ended, io.EOF) {
		_, err = io.Copy(io.Discard, struct{ io.Reader }{u.checked})
		if err == nil {
			err = io.EOF
		}
	}
	return n, err
}

// checked reads the members that a file is stored in.
type checked struct {
	p     *Package
	file  File
	came  func(n int64)
	chunk int64
	name  string // of the member
	cur   formats.Opened
	off   int64 // in the member
	total int64
	taken []crypto.Hash
	hash  []hash.Hash
	ended error
}

// open begins the next member.
func (c *checked) open() (err error) {
	if c.name = c.file.Href; c.file.ChunkSize > 0 {
		c.name = chunkName(c.file, c.chunk)
	}
	if c.cur, err = c.p.Beside(c.name); err != nil {
		return err
	}
	c.off, c.hash = 0, nil
	c.taken = hashesOf(c.p.Manifest.of(c.name))
	for _, k := range c.taken {
		c.hash = append(c.hash, k.New())
	}
	return nil
}

func (c *checked) Read(b []byte) (int, error) {
	if c.ended != nil {
		return 0, c.ended
	}
	n, err := c.read(b)
	c.ended = err
	return n, err
}

func (c *checked) read(b []byte) (int, error) {
	for len(b) > 0 {
		if left := c.cur.Size - c.off; left > 0 {
			n, err := c.cur.ReadAt(b[:min(int64(len(b)), left)], c.off)
			for _, h := range c.hash {
				h.Write(b[:n])
			}
			c.off, c.total = c.off+int64(n), c.total+int64(n)
			c.came(int64(n))
			if n > 0 {
				return n, nil
			}
			return 0, fmt.Errorf("ovf: %q: %w", c.name, errors.Join(err, formats.ErrCorrupt))
		}
		if err := c.leave(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// leave ends a member: io.EOF where the file ends with it.
func (c *checked) leave() error {
	var got []Sum
	for i, h := range c.hash {
		got = append(got, Sum{Hash: c.taken[i], Sum: h.Sum(nil)})
	}
	if c.p.Manifest != nil {
		if err := c.p.Manifest.check(c.name, got); err != nil {
			return err
		}
	}
	if c.file.ChunkSize == 0 {
		return c.whole()
	}
	size := c.cur.Size
	if size > c.file.ChunkSize {
		return fmt.Errorf("ovf: %q has %d bytes, the chunks of its file have %d: %w", c.name, size, c.file.ChunkSize, formats.ErrCorrupt)
	}
	if err := c.cur.Close(); err != nil {
		return err
	}
	c.cur.Closer = nil
	if c.chunk++; c.chunk > maxMembers {
		return fmt.Errorf("ovf: %q is split into more than %d chunks: %w", c.file.Href, maxMembers, formats.ErrCorrupt)
	}
	err := c.open()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c.whole()
	case err == nil && size != c.file.ChunkSize:
		err = fmt.Errorf("ovf: the chunks of %q are not of %d bytes: %w", c.file.Href, c.file.ChunkSize, formats.ErrCorrupt)
	}
	return err
}

// whole says whether all of the file came.
func (c *checked) whole() error {
	if c.file.Size > 0 && c.total != c.file.Size {
		return fmt.Errorf("ovf: %q has %d bytes, the descriptor says %d: %w", c.file.Href, c.total, c.file.Size, formats.ErrCorrupt)
	}
	return io.EOF
}

func (c *checked) Close() error {
	if c.cur.Closer == nil {
		return nil
	}
	err := c.cur.Closer.Close()
	c.cur.Closer = nil
	return err
}
