package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
	"hypersdk/formats/all"
)

// stored is a file that an image is in, with the format that it was named or recognised as.
type stored struct {
	name   string
	file   *os.File
	size   int64 // of the file or device
	info   fs.FileInfo
	format formats.Format
	named  bool
	beside *beside
}

// open opens the file of an image. format "" recognises it.
func (l *cli) open(name, format string) (_ *stored, err error) {
	s := &stored{name: name}
	if format != "" {
		s.named = true
		if s.format, err = all.ByName(format); err != nil {
			return nil, &ExitError{exitUsage, err}
		}
	}
	// Without O_NONBLOCK a named pipe would keep us waiting for somebody to write.
	if s.file, err = os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, errors.Join(err, s.Close()))
		}
	}()
	if s.info, err = s.file.Stat(); err != nil {
		return s, err
	}
	if s.size, err = fileSize(s.file, s.info); err != nil {
		return s, err
	}
	if !s.named {
		if s.format, err = all.Probe(s.file, s.size); err != nil {
			return s, err
		}
	}
	if l.allow != "" {
		s.beside, err = newBeside(l.allow, name)
	}
	return s, err
}

// fileSize is the size of a file or a block device; all else is no image.
func fileSize(f *os.File, info fs.FileInfo) (int64, error) {
	switch {
	case info.Mode().IsRegular():
		return info.Size(), nil
	case info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		return f.Seek(0, io.SeekEnd)
	}
	return 0, errors.New("is not a file")
}

func (s *stored) Close() error {
	var err error
	if s.beside != nil {
		err = s.beside.Close()
	}
	return errors.Join(err, s.file.Close())
}

func (s *stored) options(o formats.OpenOptions) formats.OpenOptions {
	if s.beside != nil {
		o.Beside = s.beside.opener()
	}
	return o
}

// image opens the disk in the file.
func (s *stored) image(ctx context.Context, o formats.OpenOptions) (formats.Image, error) {
	if s.format.Open == nil {
		return nil, fmt.Errorf("%s: %s cannot be read at random", s.name, s.format.Name)
	}
	img, err := s.format.Open(ctx, s.file, s.size, s.options(o))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return img, nil
}

// beside opens files that an image names, below one folder only. Symbolic links are resolved, and the
// folder is held open, so that what is named cannot be moved out of it while it is looked at.
type beside struct {
	root   *os.Root
	dir    string // of root, resolved
	folder string // of the image, resolved
	opened []identity
}

// identity is what a file is known by: whoever changes it changes this.
type identity struct {
	Name     string
	Dev, Ino uint64
	Size     int64
	Changed  int64 // nanoseconds
}

func identify(name string, info fs.FileInfo) identity {
	id := identity{Name: name, Size: info.Size(), Changed: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.Dev, id.Ino = st.Dev, st.Ino
	}
	return id
}

func newBeside(dir, image string) (*beside, error) {
	b := &beside{}
	var err error
	if b.dir, err = resolve(dir); err != nil {
		return nil, err
	}
	file, err := resolve(image)
	if err != nil {
		return nil, err
	}
	b.folder = filepath.Dir(file)
	if b.root, err = os.OpenRoot(b.dir); err != nil {
		return nil, err
	}
	return b, nil
}

func resolve(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func (b *beside) Close() error { return b.root.Close() }

func (b *beside) opener() func(string) (formats.Opened, error) { return b.from(b.folder) }

// from opens names relative to a folder.
func (b *beside) from(folder string) func(string) (formats.Opened, error) {
	return func(name string) (formats.Opened, error) {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(folder, path)
		}
		// What lies outside is refused before it is looked at: not even whether it exists is told.
		if err := b.below(filepath.Clean(path), name); err != nil {
			return formats.Opened{}, err
		}
		path, err := filepath.EvalSymlinks(path)
		if err != nil {
			return formats.Opened{}, err
		}
		if err := b.below(path, name); err != nil {
			return formats.Opened{}, err
		}
		rel, err := filepath.Rel(b.dir, path)
		if err != nil {
			return formats.Opened{}, err
		}
		return b.open(rel, path)
	}
}

func (b *beside) below(path, name string) error {
	rel, err := filepath.Rel(b.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("%q is outside of the folder allowed, %s: %w", name, b.dir, formats.ErrFormat)
	}
	return nil
}

func (b *beside) open(rel, path string) (_ formats.Opened, err error) {
	f, err := b.root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return formats.Opened{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return formats.Opened{}, err
	}
	if !info.Mode().IsRegular() {
		return formats.Opened{}, fmt.Errorf("%q is not a file: %w", path, formats.ErrFormat)
	}
	b.opened = append(b.opened, identify(path, info))
	return formats.Opened{ReaderAt: f, Closer: f, Size: info.Size(), Name: path, Beside: b.from(filepath.Dir(path))}, nil
}
