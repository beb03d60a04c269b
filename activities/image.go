package activities

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
)

// Image is a disk image in a file of a host, as it was when its job looked at it.
type Image struct {
	Format string           `json:"format"`
	Within string           `json:"within,omitempty"` // folder below which files that it names may be opened; empty: none
	File   local.Identity   `json:"file"`
	Beside []local.Identity `json:"beside,omitempty"` // files that it named
}

// unchanged says with an error, which is not tried again, that the image is not what the job looked at.
func (i Image) unchanged() error {
	for _, f := range append([]local.Identity{i.File}, i.Beside...) {
		if err := f.Unchanged(); err != nil {
			return final(refuse(providers.Precondition, "the source changed while it was converted: %w", err))
		}
	}
	return nil
}

// openSource opens the image that a job looked at, for a target in another format.
func (s *Site) openSource(ctx context.Context, in Image, target string, size int64) (formats.Image, func() error, error) {
	if err := in.unchanged(); err != nil {
		return nil, nil, err
	}
	o, err := s.openImage(ctx, in.File.Name, in.Format, in.Within)
	if err != nil {
		return nil, nil, err
	}
	if o.file.Identity != in.File {
		return nil, nil, errors.Join(final(refuse(providers.Precondition, "%s was replaced while it was opened", in.File.Name)), o.Close())
	}
	img := o.image
	if target != rawFormat {
		img = local.RoundUp(img)
	}
	if n := img.Size(); n != size {
		return nil, nil, errors.Join(final(refuse(providers.Precondition, "%s holds %d bytes and held %d when the job looked", in.File.Name, n, size)), o.Close())
	}
	return img, o.Close, nil
}

// rawFormat is the one that counts a disk in bytes, and that is never recognised.
const rawFormat = "raw"

// openedImage is an image with all that it holds open.
type openedImage struct {
	file   *local.File
	folder *local.Folder // nil: nothing beside it is opened
	format formats.Format
	image  formats.Image
}

func (o *openedImage) Close() error {
	var errs []error
	if o.image != nil {
		errs = append(errs, o.image.Close())
	}
	if o.folder != nil {
		errs = append(errs, o.folder.Close())
	}
	return errors.Join(append(errs, o.file.Close())...)
}

// openImage opens an image for reading. An empty format is recognised; files that the image names are
// opened below within only.
func (s *Site) openImage(ctx context.Context, path, format, within string) (_ *openedImage, err error) {
	o := &openedImage{}
	if o.file, err = s.openLocal(path); err != nil {
		return nil, pathError(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if format != "" {
		o.format, err = s.deps.Format(format)
	} else {
		o.format, err = s.deps.Probe(o.file, o.file.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if o.format.Open == nil {
		return nil, refuse(providers.Unsupported, "%s: %s cannot be read at random", path, o.format.Name)
	}
	var opt formats.OpenOptions
	if within != "" {
		if o.folder, err = s.openWithin(within, path); err != nil {
			return nil, err
		}
		opt.Beside = o.folder.Beside()
	}
	if o.image, err = o.format.Open(ctx, o.file, o.file.Bytes, opt); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// openLocal opens a file to read; where the operator has named the folders that jobs may work in, it is
// reached through one of them.
func (c Config) openLocal(path string) (*local.File, error) {
	switch {
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return nil, refuse(providers.Invalid, "source path %q is not absolute", path)
	case len(c.Roots) == 0:
		return local.Open(path)
	}
	for _, r := range c.Roots {
		below, err := filepath.Rel(r, filepath.Clean(path))
		if err != nil || !filepath.IsLocal(below) {
			continue
		}
		root, err := os.OpenRoot(r)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return local.OpenIn(root, below, path)
	}
	return nil, refuse(providers.Denied, "%s is not below a folder that jobs may work in (%s)", path, strings.Join(c.Roots, ", "))
}

// openWithin opens the folder that files named by an image may be in.
func (c Config) openWithin(dir, image string) (*local.Folder, error) {
	if !filepath.IsAbs(dir) {
		return nil, refuse(providers.Invalid, "folder %q is not absolute", dir)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, pathError(err)
	}
	allowed := len(c.Roots) == 0
	for _, r := range c.Roots {
		if r, err = filepath.EvalSymlinks(r); err != nil {
			continue
		}
		if below, err := filepath.Rel(r, real); err == nil && filepath.IsLocal(below) {
			allowed = true
		}
	}
	if !allowed {
		return nil, refuse(providers.Denied, "%s is not below a folder that jobs may work in (%s)", dir, strings.Join(c.Roots, ", "))
	}
	f, err := local.OpenFolder(real, image)
	return f, pathError(err)
}
