package ovf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"hypersdk/formats"
)

// Reader reads an OVA front to back, without unpacking it anywhere. What it hands on is compared with
// the manifest as it goes by; the last Next, which answers io.EOF, says that all was there and right.
type Reader struct {
	members *members
	name    string // of the descriptor, without its extension
	env     *Envelope

	manifest    Manifest
	rawManifest []byte
	certificate []byte
	chain       []*x509.Certificate

	sums    map[string][]Sum // of the members that went by
	came    map[string]bool  // ids of the files that were handed on
	cur     *content         // handed out last
	waiting *waiting         // a header that was read too early
	ended   error
}

type waiting struct {
	name string
	size int64
}

// Part is a file of the package as its content goes by.
type Part struct {
	File  File
	Disks []Disk // those that are in it
	// Reader reads what the file holds: chunks joined, unpacked where it is compressed.
	io.Reader
}

// maxCertificate is how long a certificate file may be.
const maxCertificate = 1 << 20

// NewReader reads the descriptor, which must come first.
func NewReader(r io.Reader) (*Reader, error) {
	o := &Reader{members: newMembers(r), sums: make(map[string][]Sum), came: make(map[string]bool)}
	name, size, err := o.members.next()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("ovf: archive: it is empty: %w", formats.ErrFormat)
	}
	if err != nil {
		return nil, err
	}
	if !isDescriptor(name) {
		return nil, fmt.Errorf("ovf: archive: its first member is %q, not a descriptor: %w", name, formats.ErrFormat)
	}
	b, err := o.members.small(name, size, maxEnvelope)
	if err != nil {
		return nil, err
	}
	if o.env, err = ReadEnvelope(bytes.NewReader(b)); err != nil {
		return nil, err
	}
	o.name = name[:len(name)-len(".ovf")]
	o.sums[name] = sumsOf(b)
	return o, nil
}

// Envelope is the descriptor.
func (o *Reader) Envelope() *Envelope { return o.env }

// Manifest is that of the package as far as it is known; nil: it has not come yet, or there is none.
func (o *Reader) Manifest() Manifest { return o.manifest }

// Signer are the certificates of who signed the manifest, once it was verified.
func (o *Reader) Signer() []*x509.Certificate { return o.chain }

// everyHash is what sums are taken with of files that come before their manifest.
var everyHash = []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA512}

func sumsOf(b []byte) []Sum {
	var out []Sum
	for _, k := range everyHash {
		h := k.New()
		h.Write(b)
		out = append(out, Sum{Hash: k, Sum: h.Sum(nil)})
	}
	return out
}

// Next goes on to the next file that the descriptor names; what is left of the one before is read and
// checked.
func (o *Reader) Next(ctx context.Context) (*Part, error) {
	if o.ended != nil {
		return nil, o.ended
	}
	p, err := o.next(ctx)
	o.ended = err
	return p, err
}

func (o *Reader) next(ctx context.Context) (*Part, error) {
	if o.cur != nil {
		if err := o.cur.drain(ctx); err != nil {
			return nil, err
		}
		o.cur = nil
	}
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		name, size, err := o.header()
		if errors.Is(err, io.EOF) {
			return nil, o.finish()
		}
		if err != nil {
			return nil, err
		}
		if name == o.name+".mf" || name == o.name+".cert" {
			if err := o.about(name, size); err != nil {
				return nil, err
			}
			continue
		}
		if p, ok := o.part(name); ok {
			return o.begin(ctx, p, name, size)
		}
		// Of no concern to the descriptor, but perhaps to the manifest.
		c := &content{o: o, ctx: ctx}
		c.enter(name, size)
		if err := c.drain(ctx); err != nil {
			return nil, err
		}
	}
}

func (o *Reader) header() (string, int64, error) {
	if w := o.waiting; w != nil {
		o.waiting = nil
		return w.name, w.size, nil
	}
	return o.members.next()
}

// about reads the manifest or the certificate.
func (o *Reader) about(name string, size int64) error {
	if isCertificate(name) {
		b, err := o.members.small(name, size, maxCertificate)
		o.certificate = b
		return err
	}
	b, err := o.members.small(name, size, maxManifest)
	if err != nil {
		return err
	}
	o.rawManifest = b
	if o.manifest, err = ReadManifest(bytes.NewReader(b)); err != nil {
		return err
	}
	for name, got := range o.sums {
		if len(o.manifest.of(name)) == 0 && !o.due(name) {
			continue
		}
		if err := o.manifest.check(name, got); err != nil {
			return err
		}
	}
	return nil
}

// due says whether a manifest has to name a member: the descriptor and all that belongs to its files.
func (o *Reader) due(name string) bool {
	if name == o.name+".ovf" {
		return true
	}
	for _, f := range o.env.Files {
		if name == f.Href || f.ChunkSize > 0 && strings.HasPrefix(name, f.Href+".") {
			return true
		}
	}
	return false
}

// part finds the file that a member, or its first chunk, is.
func (o *Reader) part(name string) (*Part, bool) {
	for _, f := range o.env.Files {
		if f.Href == name && f.ChunkSize == 0 || f.ChunkSize > 0 && chunkName(f, 0) == name {
			p := &Part{File: f}
			for _, d := range o.env.Disks {
				if d.File == f.ID {
					p.Disks = append(p.Disks, d)
				}
			}
			return p, true
		}
	}
	return nil, false
}

// chunkName is the name of the i-th part of a file that is split.
func chunkName(f File, i int64) string { return fmt.Sprintf("%s.%09d", f.Href, i) }

func (o *Reader) begin(ctx context.Context, p *Part, name string, size int64) (*Part, error) {
	if p.File.ChunkSize == 0 && p.File.Size > 0 && size != p.File.Size {
		return nil, fmt.Errorf("ovf: %q has %d bytes, the descriptor says %d: %w", name, size, p.File.Size, formats.ErrCorrupt)
	}
	o.came[p.File.ID] = true
	o.cur = &content{o: o, ctx: ctx, file: p.File}
	o.cur.enter(name, size)
	p.Reader = o.cur
	if p.File.Gzip {
		z, err := gzip.NewReader(o.cur)
		if err != nil {
			return nil, fmt.Errorf("ovf: %q: %w", name, unzipped(err))
		}
		p.Reader = unzip{z, name}
	}
	return p, nil
}

// unzip makes the errors of gzip what they are.
type unzip struct {
	z    *gzip.Reader
	name string
}

func (u unzip) Read(b []byte) (int, error) {
	n, err := u.z.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("ovf: %q: %w", u.name, unzipped(err))
	}
	return n, err
}

func unzipped(err error) error {
	var bad flate.CorruptInputError
	if errors.As(err, &bad) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("gzip: %w: %w", err, formats.ErrCorrupt)
	}
	return err
}

// finish says whether all was there.
func (o *Reader) finish() error {
	for _, f := range o.env.Files {
		if !o.came[f.ID] {
			return fmt.Errorf("ovf: archive: it ends without %q: %w", f.Href, formats.ErrCorrupt)
		}
	}
	for _, s := range o.manifest {
		if o.sums[s.Name] == nil && s.Name != o.name+".ovf" {
			return fmt.Errorf("ovf: archive: it ends without %q, which the manifest names: %w", s.Name, formats.ErrCorrupt)
		}
	}
	if o.certificate != nil {
		if o.manifest == nil {
			return fmt.Errorf("ovf: archive: a certificate without a manifest: %w", formats.ErrCorrupt)
		}
		chain, err := VerifyCertificate(o.certificate, o.name+".mf", o.rawManifest)
		if err != nil {
			return err
		}
		o.chain = chain
	}
	return io.EOF
}

// content reads one file of the package, chunk after chunk, and takes its sums.
type content struct {
	o     *Reader
	ctx   context.Context
	file  File
	name  string // of the member
	size  int64
	left  int64
	chunk int64
	total int64
	taken []crypto.Hash
	hash  []hash.Hash
	ended error
}

// enter begins a member.
func (c *content) enter(name string, size int64) {
	c.name, c.size, c.left = name, size, size
	c.taken, c.hash = everyHash, nil
	if c.o.manifest != nil {
		c.taken = hashesOf(c.o.manifest.of(name))
	}
	for _, k := range c.taken {
		c.hash = append(c.hash, k.New())
	}
}

func (c *content) Read(b []byte) (int, error) {
	if c.ended != nil {
		return 0, c.ended
	}
	n, err := c.read(b)
	c.ended = err
	return n, err
}

func (c *content) read(b []byte) (int, error) {
	for {
		if err := context.Cause(c.ctx); err != nil {
			return 0, err
		}
		n, err := c.o.members.r.Read(b)
		for _, h := range c.hash {
			h.Write(b[:n])
		}
		c.left -= int64(n)
		c.total += int64(n)
		switch {
		case n > 0 || len(b) == 0 && err == nil:
			return n, nil
		case err != nil && !errors.Is(err, io.EOF):
			return 0, fmt.Errorf("ovf: archive: member %q: %w", c.name, cut(err))
		case err == nil:
			continue
		}
		if err := c.leave(); err != nil {
			return 0, err
		}
	}
}

// leave ends a member: io.EOF where the file ends with it.
func (c *content) leave() error {
	if c.left != 0 {
		return fmt.Errorf("ovf: archive: member %q ends %d bytes early: %w", c.name, c.left, formats.ErrCorrupt)
	}
	sums := []Sum{}
	for i, h := range c.hash {
		sums = append(sums, Sum{Hash: c.taken[i], Sum: h.Sum(nil)})
	}
	c.o.sums[c.name] = sums
	if c.o.manifest != nil && (c.file.ID != "" || len(c.taken) > 0) {
		if err := c.o.manifest.check(c.name, sums); err != nil {
			return err
		}
	}
	if c.file.ChunkSize == 0 {
		return io.EOF
	}
	return c.nextChunk()
}

func (c *content) nextChunk() error {
	name, size, err := c.o.header()
	if err == nil && name == chunkName(c.file, c.chunk+1) {
		if c.size != c.file.ChunkSize {
			return fmt.Errorf("ovf: %q has %d bytes, the chunks of its file have %d: %w", c.name, c.size, c.file.ChunkSize, formats.ErrCorrupt)
		}
		c.chunk++
		c.enter(name, size)
		return nil
	}
	if err == nil {
		c.o.waiting = &waiting{name, size}
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if c.file.Size > 0 && c.total != c.file.Size {
		return fmt.Errorf("ovf: the chunks of %q have %d bytes, the descriptor says %d: %w", c.file.Href, c.total, c.file.Size, formats.ErrCorrupt)
	}
	return io.EOF
}

// drain reads what is left.
func (c *content) drain(ctx context.Context) error {
	c.ctx = ctx
	_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err == nil && !errors.Is(c.ended, io.EOF) {
		err = c.ended
	}
	return err
}
