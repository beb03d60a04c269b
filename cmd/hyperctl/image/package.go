package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/local"
	"hypersdk/formats/ovf"
)

// Names of packages where a format is named.
const (
	formatOVA = "ova"
	formatOVF = "ovf"
)

// packaged is a package of disks: an OVA, or the folder of a descriptor.
type packaged struct {
	*ovf.Package
	format string
	root   *os.Root // of a folder
}

func (p *packaged) Close() error {
	if p.root != nil {
		return p.root.Close()
	}
	return nil
}

// openPackage reads the package in a file; nil where it is none. A file is read as the disk image that it
// was named as, unless a disk of a package was asked for.
func (l *cli) openPackage(ctx context.Context, f *local.File, format string) (*packaged, error) {
	named := strings.EqualFold(format, formatOVA) || strings.EqualFold(format, formatOVF)
	if format != "" && !named && l.member == "" {
		return nil, nil
	}
	head := make([]byte, min(f.Bytes, 512))
	if n, err := f.ReadAt(head, 0); n < len(head) {
		return nil, err
	}
	switch {
	case ovf.IsArchive(head):
		p, err := ovf.Index(ctx, f, f.Bytes)
		return &packaged{Package: p, format: formatOVA}, err
	case strings.EqualFold(filepath.Ext(f.Path), ".ovf"):
		return openFolder(f.Path)
	case named:
		return nil, fmt.Errorf("it is neither an OVA nor an OVF descriptor: %w", formats.ErrFormat)
	}
	return nil, nil
}

// openFolder reads a package whose files lie beside its descriptor; no link leads out of the folder.
func openFolder(path string) (*packaged, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	p, err := ovf.Open(filepath.Base(path), func(name string) (formats.Opened, error) {
		f, err := local.OpenIn(root, name, filepath.Join(filepath.Dir(path), name))
		if err != nil {
			return formats.Opened{}, err
		}
		return formats.Opened{ReaderAt: f, Closer: f, Size: f.Bytes, Name: name}, nil
	})
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &packaged{Package: p, format: formatOVF, root: root}, nil
}

// member is a disk of a package.
type member struct {
	file     ovf.File
	capacity int64
}

// members are the disks of a package that are in a file, each file once.
func (p *packaged) members() []member {
	var out []member
	seen := map[string]bool{}
	for _, d := range p.Envelope.Disks {
		if f, ok := p.Envelope.File(d.File); ok && !seen[f.ID] {
			seen[f.ID] = true
			out = append(out, member{f, d.Capacity})
		}
	}
	return out
}

// choose finds the disk that was asked for: by its number, from 1, or the name of its file.
func (p *packaged) choose(want string) (member, error) {
	all := p.members()
	var names []string
	for i, m := range all {
		if want == strconv.Itoa(i+1) || want == m.file.Href || want == "" && len(all) == 1 {
			return m, nil
		}
		names = append(names, fmt.Sprintf("%d (%s)", i+1, m.file.Href))
	}
	switch {
	case len(all) == 0:
		return member{}, errors.New("the package has no disk in it")
	case want == "":
		return member{}, fmt.Errorf("the package has %d disks, choose one with --disk: %s", len(all), strings.Join(names, ", "))
	}
	return member{}, fmt.Errorf("the package has no disk %q, it has %s", want, strings.Join(names, ", "))
}

// open opens a disk of the package, as it is stored. One that is compressed as a whole is unpacked into a
// file that nobody sees.
func (p *packaged) open(ctx context.Context, m member) (formats.Opened, error) {
	if !m.file.Gzip {
		return p.OpenFile(m.file)
	}
	r, err := p.Stream(m.file)
	if err != nil {
		return formats.Opened{}, err
	}
	defer r.Close()
	f, err := os.CreateTemp("", "hyperctl-*")
	if err != nil {
		return formats.Opened{}, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return formats.Opened{}, errors.Join(err, f.Close())
	}
	// No format needs more than this for a disk: what goes on beyond is no disk, but fills ours.
	limit := m.capacity + m.capacity/8 + 64<<20
	n, err := io.Copy(f, &stoppable{ctx, io.LimitReader(r, limit+1)})
	if err == nil && n > limit {
		err = fmt.Errorf("%q is unpacked more than %d bytes, for a disk of %d: %w", m.file.Href, limit, m.capacity, formats.ErrCorrupt)
	}
	if err != nil {
		return formats.Opened{}, errors.Join(err, f.Close())
	}
	return formats.Opened{ReaderAt: f, Closer: f, Size: n, Name: m.file.Href}, nil
}

// stoppable is a reader that ends with a context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(b []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	return s.r.Read(b)
}

// into makes s the disk of the package that was asked for.
func (s *stored) into(ctx context.Context, p *packaged, want, format string) error {
	m, err := p.choose(want)
	if err != nil {
		return err
	}
	o, err := p.open(ctx, m)
	if err != nil {
		return err
	}
	if format != "" && !strings.EqualFold(format, formatOVA) && !strings.EqualFold(format, formatOVF) {
		s.format, err = all.ByName(format)
	} else {
		s.format, err = all.Probe(o, o.Size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%q: %w", m.file.Href, err), o.Close())
	}
	s.member, s.inside, s.data, s.length = m.file.Href, o, o, o.Size
	return nil
}
