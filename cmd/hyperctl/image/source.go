package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/local"
)

// stored is a file that an image is in, with the format that it was named or recognised as.
type stored struct {
	*local.File
	name   string
	format formats.Format
	named  bool
	beside *local.Folder // nil: nothing is opened beside the image

	// data is where the image is stored: the file, or in a package the disk that was asked for, whose
	// name is member.
	data   io.ReaderAt
	length int64
	member string
	pkg    *packaged // nil: the file is none
	inside io.Closer // of the disk in a package
}

// open opens the file of an image, or of a package the disk that was asked for. format "" recognises it.
func (l *cli) open(ctx context.Context, name, format string) (*stored, error) {
	s, err := l.openEither(ctx, name, format)
	if err == nil && s.pkg != nil {
		if err = s.into(ctx, s.pkg, l.member, format); err != nil {
			err = fmt.Errorf("%s: %w", name, errors.Join(err, s.Close()))
		}
	}
	return s, err
}

// openEither opens the file of an image or of a package. Where a disk of a package was asked for, it has
// to be one.
func (l *cli) openEither(ctx context.Context, name, format string) (*stored, error) {
	s, err := l.openFile(ctx, name, format)
	if err == nil && s.pkg == nil && l.member != "" {
		err = errors.Join(usageError("%s: --disk %s: it is neither an OVA nor an OVF descriptor", name, l.member), s.Close())
	}
	return s, err
}

// openFile opens the file of an image or of a package.
func (l *cli) openFile(ctx context.Context, name, format string) (_ *stored, err error) {
	s := &stored{name: name}
	if format != "" && !strings.EqualFold(format, formatOVA) && !strings.EqualFold(format, formatOVF) {
		s.named = true
		if s.format, err = all.ByName(format); err != nil {
			return nil, &ExitError{exitUsage, err}
		}
	}
	if s.File, err = local.Open(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, errors.Join(err, s.Close()))
		}
	}()
	s.data, s.length = s.File, s.Bytes
	if s.pkg, err = l.openPackage(ctx, s.File, format); err != nil || s.pkg != nil {
		return s, err
	}
	if !s.named {
		if s.format, err = all.Probe(s.File, s.Bytes); err != nil {
			return s, err
		}
	}
	if l.allow != "" {
		s.beside, err = local.OpenFolder(l.allow, name)
	}
	return s, err
}

func (s *stored) Close() error {
	var err error
	if s.beside != nil {
		err = s.beside.Close()
	}
	if s.inside != nil {
		err = errors.Join(err, s.inside.Close())
	}
	if s.pkg != nil {
		err = errors.Join(err, s.pkg.Close())
	}
	return errors.Join(err, s.File.Close())
}

func (s *stored) options(o formats.OpenOptions) formats.OpenOptions {
	if s.beside != nil {
		o.Beside = s.beside.Beside()
	}
	return o
}

// image opens the disk in the file.
func (s *stored) image(ctx context.Context, o formats.OpenOptions) (formats.Image, error) {
	if s.format.Open == nil {
		return nil, fmt.Errorf("%s: %s cannot be read at random", s.name, s.format.Name)
	}
	img, err := s.format.Open(ctx, s.data, s.length, s.options(o))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return img, nil
}
