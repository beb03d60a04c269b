package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/formats/ovf"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
)

// openedPackage is a package on this host, with all that it holds open.
type openedPackage struct {
	*ovf.Package
	file *local.File // of an archive
	root *os.Root    // of a folder
}

func (p *openedPackage) Close() error {
	if p.file != nil {
		return p.file.Close()
	}
	return p.root.Close()
}

// openPackage opens an archive, or a descriptor and the files beside it; where the operator has named the
// folders that jobs may work in, it is reached through one of them.
func (s *Site) openPackage(ctx context.Context, path string) (*openedPackage, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".ova":
		file, err := s.openLocal(path)
		if err != nil {
			return nil, pathError(err)
		}
		p, err := ovf.Index(ctx, file, file.Bytes)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
		}
		return &openedPackage{Package: p, file: file}, nil
	case ".ovf":
		root, err := s.openOutput(filepath.Dir(path), false)
		if err != nil {
			return nil, pathError(err)
		}
		p, err := ovf.Open(filepath.Base(path), besideIn(root, filepath.Dir(path)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, pathError(err)), root.Close())
		}
		return &openedPackage{Package: p, root: root}, nil
	}
	return nil, refuse(providers.Invalid, "%s is not the name of a package: it ends in neither .ova nor .ovf", path)
}

// besideIn opens files of one folder.
func besideIn(root *os.Root, dir string) func(string) (formats.Opened, error) {
	return func(name string) (formats.Opened, error) {
		f, err := local.OpenIn(root, name, filepath.Join(dir, name))
		if err != nil {
			return formats.Opened{}, err
		}
		return formats.Opened{ReaderAt: f, Closer: f, Size: f.Bytes, Name: name}, nil
	}
}

// vmName is the name that a package gives its VM.
func (p *openedPackage) vmName() string {
	if len(p.Envelope.Systems) > 0 {
		if s := p.Envelope.Systems[0]; s.Name != "" || s.ID != "" {
			return cmp.Or(s.Name, s.ID)
		}
	}
	return p.Name()
}

// restated is the descriptor as it fits the files that go up.
func (p *openedPackage) restated(files []PackedFile) (string, error) {
	other := map[string]bool{}
	for i, f := range p.Envelope.Files {
		if files[i].Convert || files[i].Said != 0 || f.Gzip || f.ChunkSize > 0 {
			other[f.ID] = true
		}
	}
	b, err := ovf.Restate(p.Descriptor(), other)
	return string(b), err
}

// sized is a file of the envelope whose size need not be the one that the descriptor says: some tools write
// what they thought before they had the file. A manifest, or the disk itself, tells better.
func sized(f ovf.File) ovf.File {
	if f.ChunkSize == 0 {
		f.Size = 0
	}
	return f
}

// files looks at every file of a package, in the order of its envelope: disks that no importer would take
// as they are have to be converted.
func (s *Site) files(ctx context.Context, p *openedPackage) ([]PackedFile, error) {
	capacity := map[string]int64{}
	for _, d := range p.Envelope.Disks {
		if d.Parent != "" {
			return nil, refuse(providers.Unsupported, "disk %s of the package is a delta of disk %s; only packages of whole disks are imported", d.ID, d.Parent)
		}
		capacity[d.File] = d.Capacity
	}
	var out []PackedFile
	for _, f := range p.Envelope.Files {
		one, head, err := peek(p, f)
		if err != nil {
			return nil, err
		}
		want, isDisk := capacity[f.ID]
		switch {
		case isDisk && !vmdk.EndsInFooter(head):
			one.Convert, one.Said = true, 0
			if one.Size, err = s.converted(ctx, p, f, want); err != nil {
				return nil, err
			}
		case isDisk && one.Said != 0 && !p.Vouched(f.Href):
			if err := whole(ctx, p, f); err != nil {
				return nil, fmt.Errorf("%s has %d bytes, the descriptor says %d: %w", f.Href, one.Size, one.Said, err)
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// sectorSize is what VMware counts disks in.
const sectorSize = 512

// peek reads the beginning of what a file holds, and how long it is as it is stored.
func peek(p *openedPackage, f ovf.File) (one PackedFile, head []byte, err error) {
	one = PackedFile{Name: f.Href, Size: f.Size}
	r, err := p.Stream(sized(f))
	if err != nil {
		return one, nil, err
	}
	defer r.Close()
	head = make([]byte, sectorSize)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return one, nil, err
	}
	if f.ChunkSize == 0 {
		o, err := p.Beside(f.Href)
		if err != nil {
			return one, nil, err
		}
		defer o.Close()
		if one.Size = o.Size; f.Size > 0 && f.Size != o.Size {
			one.Said = f.Size
		}
	}
	return one, head[:n], nil
}

// converted is the size of a disk that has to be converted.
func (s *Site) converted(ctx context.Context, p *openedPackage, f ovf.File, want int64) (int64, error) {
	disk, err := s.disk(ctx, p, f)
	if err != nil {
		return 0, err
	}
	defer disk.Close()
	size := disk.Size()
	if up := (size + sectorSize - 1) &^ (sectorSize - 1); up != want {
		return 0, refuse(providers.Corrupt, "%s holds a disk of %d bytes, the descriptor says %d", f.Href, size, want)
	}
	return size, nil
}

// whole reads a disk to its end, which tells whether it is whole.
func whole(ctx context.Context, p *openedPackage, f ovf.File) error {
	r, err := p.Stream(sized(f))
	if err != nil {
		return err
	}
	defer r.Close()
	disk, err := vmdk.Stream(ctx, r)
	if err != nil {
		return err
	}
	defer disk.Close()
	for err == nil {
		_, err = disk.Next(ctx)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// disk opens a disk of a package that is not stored as importers want it: at random, or what is compressed
// front to back.
func (s *Site) disk(ctx context.Context, p *openedPackage, f ovf.File) (formats.Source, error) {
	if f.Gzip {
		r, err := p.Checked(sized(f), func(int64) {})
		if err != nil {
			return nil, err
		}
		src, err := vmdk.Stream(ctx, r)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s is compressed, so that it can only be read front to back: %w", f.Href, err), r.Close())
		}
		return heldStream{src, r}, nil
	}
	o, err := p.OpenFile(sized(f))
	if err != nil {
		return nil, err
	}
	format, err := s.deps.Probe(o, o.Size)
	if ext := strings.ToLower(filepath.Ext(f.Href)); err != nil && (ext == ".raw" || ext == ".img") {
		format, err = s.deps.Format(rawFormat)
	}
	var img formats.Image
	if err == nil {
		img, err = format.Open(ctx, o, o.Size, formats.OpenOptions{Beside: p.Beside})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", f.Href, err), o.Close())
	}
	return heldImage{local.RoundUp(img), o}, nil
}

// heldImage is an image with the file below it.
type heldImage struct {
	formats.Image
	file io.Closer
}

func (h heldImage) Close() error { return errors.Join(h.Image.Close(), h.file.Close()) }

// heldStream is a stream with the file below it.
type heldStream struct {
	formats.Stream
	file io.Closer
}

func (h heldStream) Close() error { return errors.Join(h.Stream.Close(), h.file.Close()) }

// unpackedFile is a file on its way up.
type unpackedFile struct {
	PackedFile
	m    *meter
	mu   sync.Mutex
	rest func() // ends a time in which nothing has to move
}

// moving says that bytes are to move from now on, and idle that they are not.
func (f *unpackedFile) moving() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rest != nil {
		f.rest()
		f.rest = nil
	}
}

func (f *unpackedFile) idle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rest == nil {
		f.rest = f.m.work()
	}
}

// file is a file as the provider gets it.
func (u *unpacking) file(p *openedPackage, f *unpackedFile) providers.PackageFile {
	var in ovf.File
	for _, one := range p.Envelope.Files {
		if one.Href == f.Name {
			in = one
		}
	}
	out := providers.PackageFile{Name: f.Name}
	if !f.Convert && !in.Gzip {
		out.Size = f.Size
	}
	out.Open = func(ctx context.Context) (io.ReadCloser, error) {
		f.m.from(0)
		f.moving()
		up := &upload{u: u, f: f, ctx: ctx}
		var err error
		if f.Convert {
			up.r, err = u.convert(ctx, p, in, f)
		} else {
			up.r, err = p.Checked(sized(in), func(n int64) { f.m.advance(n) })
		}
		if err != nil {
			f.idle()
			return nil, err
		}
		return up, nil
	}
	return out
}

// upload is what the provider reads: at the pace of the job.
type upload struct {
	u   *unpacking
	f   *unpackedFile
	ctx context.Context
	r   io.ReadCloser
}

func (o *upload) Read(b []byte) (int, error) {
	const most = 1 << 20 // so that a limit is kept evenly
	b = b[:min(len(b), most)]
	if err := o.u.limit.wait(o.ctx, o.u.stop, o.f.m, int64(len(b))); err != nil {
		return 0, err
	}
	n, err := o.r.Read(b)
	o.f.m.touch()
	if errors.Is(err, io.EOF) {
		o.f.idle() // the platform may take its time to say that it has all
	}
	return n, err
}

func (o *upload) Close() error {
	o.f.idle()
	return o.r.Close()
}

// convert makes a streamOptimized VMDK of a disk while it is read. The manifest speaks of the file as it is
// stored: it is read once before, to be compared.
func (u *unpacking) convert(ctx context.Context, p *openedPackage, in ovf.File, f *unpackedFile) (io.ReadCloser, error) {
	if p.Manifest != nil && !in.Gzip {
		r, err := p.Checked(sized(in), func(int64) { f.m.touch() })
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, interrupted{ctx, r})
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
	}
	src, err := u.disk(ctx, p, in)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	out, to := io.Pipe()
	c := &converting{PipeReader: out, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		err := u.encode(ctx, to, src, f)
		_ = to.CloseWithError(errors.Join(err, src.Close())) // nil is io.EOF; it never fails
	}()
	return c, nil
}

func (u *unpacking) encode(ctx context.Context, to io.Writer, src formats.Source, f *unpackedFile) error {
	w, err := vmdk.Encode(ctx, to, src.Size(), formats.CreateOptions{})
	if err != nil {
		return err
	}
	defer w.Close()
	_, err = formats.Copy(ctx, w, src, formats.CopyOptions{Workers: u.Workers, Buffers: u.buffers, Progress: f.m.progress})
	if err != nil {
		return err
	}
	return w.Commit(ctx)
}

// converting is a disk that is converted while it is read.
type converting struct {
	*io.PipeReader
	stop context.CancelFunc
	done chan struct{}
}

func (c *converting) Close() error {
	c.stop()
	err := c.PipeReader.Close()
	<-c.done
	return err
}

// interrupted reads until its context ends.
type interrupted struct {
	ctx context.Context
	r   io.Reader
}

func (i interrupted) Read(b []byte) (int, error) {
	if err := context.Cause(i.ctx); err != nil {
		return 0, err
	}
	return i.r.Read(b)
}
