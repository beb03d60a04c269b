package blocks

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"hypersdk/formats"
)

// maxChain is how many parents an image may have. Hyper-V and VirtualBox stop earlier.
const maxChain = 64

// Parent is an image that another one builds upon.
type Parent struct {
	formats.Image
	Name string
	file formats.Opened
}

// Close closes the parent, its own parents, and its file.
func (p *Parent) Close() error { return errors.Join(p.Image.Close(), p.file.Close()) }

// Search says how the parent of an image is found.
type Search struct {
	Format string
	Names  []string // as stored, the best first
	What   string   // what the parent is known by, for errors: "unique id 0a1b…"
	// Open opens a candidate and says whether it is the one: its error is ErrStranger where it is not.
	Open func(f formats.Opened, o formats.OpenOptions, above []string) (formats.Image, error)
}

// ErrStranger: a file that has the parent's name and is not the parent.
var ErrStranger = errors.New("it is not the parent")

// FindParent opens the parent of an image that was itself opened with o; above are the names of the
// files that led here. A parent that cannot be had is an error, never zeros.
func FindParent(s Search, o formats.OpenOptions, above []string) (*Parent, error) {
	if o.Beside == nil {
		return nil, fmt.Errorf("%s: it builds upon a parent (%s) and no file beside the image may be opened: %w", s.Format, s.What, formats.ErrFormat)
	}
	if len(above) >= maxChain {
		return nil, fmt.Errorf("%s: a chain of more than %d parents: %w", s.Format, maxChain, formats.ErrCorrupt)
	}
	var first error
	for _, name := range s.Names {
		p, err := s.try(name, o, above)
		if err == nil {
			return p, nil
		}
		// A name that leads nowhere says less than a file that is there and is not right.
		if first == nil || errors.Is(err, formats.ErrCorrupt) && !errors.Is(first, formats.ErrCorrupt) {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("its name is not stored: %w", formats.ErrCorrupt)
	}
	return nil, fmt.Errorf("%s: parent (%s): %w", s.Format, s.What, first)
}

func (s Search) try(name string, o formats.OpenOptions, above []string) (*Parent, error) {
	f, err := o.Beside(name)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	if slices.Contains(above, f.Name) {
		return nil, errors.Join(fmt.Errorf("%q: a chain of parents that leads back to itself: %w", f.Name, formats.ErrCorrupt), f.Close())
	}
	img, err := s.Open(f, formats.OpenOptions{Beside: f.Beside}, append(slices.Clip(above), f.Name))
	if err != nil {
		if errors.Is(err, ErrStranger) {
			err = fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
		}
		return nil, fmt.Errorf("%q: %w", name, errors.Join(err, f.Close()))
	}
	return &Parent{Image: img, Name: f.Name, file: f}, nil
}

// Names makes candidates of stored Windows paths: relative ones as they are but with slashes, of
// every one its last element, each once.
func Names(relative []string, absolute []string) []string {
	var out []string
	add := func(s string) {
		if s != "" && s != "." && s != ".." && s != "/" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, s := range relative {
		s = strings.ReplaceAll(s, `\`, "/")
		if !path.IsAbs(s) && !(len(s) > 1 && s[1] == ':') {
			add(path.Clean(s))
		}
	}
	for _, s := range slices.Concat(relative, absolute) {
		add(path.Base(strings.ReplaceAll(s, `\`, "/")))
	}
	return out
}
