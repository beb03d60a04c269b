package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

// Folder is a folder below which files that an image names (a backing file, a parent, an extent) may be
// opened, and no others. Symbolic links are resolved, and the folder is held open, so that what is named
// cannot be moved out of it while it is looked at.
type Folder struct {
	root   *os.Root
	dir    string // of root, resolved
	home   string // the folder of the image, resolved
	opened []Identity
}

// OpenFolder opens the folder dir for an image.
func OpenFolder(dir, image string) (*Folder, error) {
	b := &Folder{}
	var err error
	if b.dir, err = resolve(dir); err != nil {
		return nil, err
	}
	file, err := resolve(image)
	if err != nil {
		return nil, err
	}
	b.home = filepath.Dir(file)
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

// Close closes the folder; files that were opened in it stay open.
func (b *Folder) Close() error { return b.root.Close() }

// Opened are the files that were opened so far.
func (b *Folder) Opened() []Identity { return b.opened }

// Beside opens names as the image has them: it is what formats.OpenOptions wants.
func (b *Folder) Beside() func(name string) (formats.Opened, error) { return b.from(b.home) }

// from opens names relative to a folder.
func (b *Folder) from(folder string) func(string) (formats.Opened, error) {
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

func (b *Folder) below(path, name string) error {
	rel, err := filepath.Rel(b.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("%q is outside of the folder allowed, %s: %w", name, b.dir, formats.ErrFormat)
	}
	return nil
}

func (b *Folder) open(rel, path string) (_ formats.Opened, err error) {
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
	b.opened = append(b.opened, Identify(path, info))
	return formats.Opened{ReaderAt: f, Closer: f, Size: info.Size(), Name: path, Beside: b.from(filepath.Dir(path))}, nil
}
