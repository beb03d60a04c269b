package cbt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"hypersdk/formats"
)

const (
	manifestName = "chain.json"
	intentName   = ".intent.json"
	lockName     = ".lock"
)

// intent is a change of the chain that is decided: everything it needs is on the disk. Once it is
// durable the change is carried out, if need be by whoever opens the chain next.
//
// Its steps are, each durable before the next begins: give the finished files their names; replace the
// manifest; remove what the manifest no longer names; remove the intent. All can be done again. The
// chain is whole in between: a new point's files mean nothing until the manifest names them, and a file
// that takes the place of a delta holds the same disk in full, so whoever reads it, or reads through
// it, reads the same bytes; what it no longer needs is removed only when no manifest names it.
type intent struct {
	Renames  []string `json:"renames"` // to these names, from their parts
	Manifest Manifest `json:"manifest"`
	Removes  []string `json:"removes"`
}

// readIntent answers the intent that is pending; nil: none is.
func (d *folder) readIntent(m *Manifest) (*intent, error) {
	b, err := d.read(intentName, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	in := new(intent)
	if err := unseal(b, in); err != nil {
		return nil, fmt.Errorf("%s: %w", intentName, err)
	}
	if err := in.validate(m); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", intentName, err, formats.ErrCorrupt)
	}
	return in, nil
}

// validate examines whether the intent is one of the chain that m describes, and names nothing else.
func (in *intent) validate(m *Manifest) error {
	if err := in.Manifest.validate(); err != nil {
		return err
	}
	if in.Manifest.ID != m.ID {
		return fmt.Errorf("it is of chain %s", in.Manifest.ID)
	}
	if g := in.Manifest.Generation; g != m.Generation && g != m.Generation+1 {
		return fmt.Errorf("it is of generation %d, the chain is of %d", g, m.Generation)
	}
	named := in.Manifest.files()
	for _, name := range in.Renames {
		if _, ok := named[name]; !ok {
			return fmt.Errorf("its manifest does not name %q", name)
		}
	}
	for _, name := range in.Removes {
		if _, ok := named[name]; ok || !fileForm.MatchString(name) {
			return fmt.Errorf("%q may not be removed", name)
		}
	}
	return nil
}

// decide makes a change durable, and carries it out. c.mu is held to write.
func (c *Chain) decide(in *intent) error {
	in.Manifest.Generation = c.m.Generation + 1
	if err := in.Manifest.validate(); err != nil {
		return err
	}
	b, err := seal(in)
	if err != nil {
		return err
	}
	// Whether a write that failed is seen by the next reader is not known: it counts as decided.
	c.pending = in
	if err := c.d.replace(intentName, b); err != nil {
		return err
	}
	return c.carryOut(in)
}

// carryOut does what is left to do of an intent. What fails is done by the next recovery.
func (c *Chain) carryOut(in *intent) error {
	for _, name := range in.Renames {
		ready, err := c.d.exists(partName(name))
		if err == nil && ready {
			err = c.d.rename(partName(name), name)
		}
		if err != nil {
			return fmt.Errorf("name %s: %w", name, err)
		}
	}
	if err := c.d.sync(); err != nil {
		return err
	}
	if c.m.Generation < in.Manifest.Generation {
		if err := c.ready(in); err != nil {
			return err
		}
		b, err := seal(&in.Manifest)
		if err != nil {
			return err
		}
		if err := c.d.replace(manifestName, b); err != nil {
			return fmt.Errorf("replace %s: %w", manifestName, err)
		}
	}
	c.m, c.pending = &in.Manifest, nil
	for _, name := range append(in.Removes, intentName) {
		if name == intentName {
			if err := c.d.sync(); err != nil {
				return err
			}
		}
		if err := c.d.remove(name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return c.d.sync()
}

// ready examines the files that an intent has named: were one not what the new manifest says, because
// somebody removed its part, what it replaces must not be given up.
func (c *Chain) ready(in *intent) error {
	named := in.Manifest.files()
	for _, name := range in.Renames {
		l := named[name]
		if name == l.disk.Index {
			_, closeIndex, err := c.openIndex(l)
			if err != nil {
				return err
			}
			if err := closeIndex(); err != nil {
				return err
			}
			continue
		}
		f, _, err := c.openLink(context.Background(), l)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// recover finishes a change that was interrupted, and removes what cannot be used again. c.mu is held
// to write.
func (c *Chain) recover() error {
	m, err := c.load()
	if err != nil {
		return err
	}
	c.m, c.pending = m, nil
	in, err := c.d.readIntent(m)
	if err != nil {
		return err
	}
	c.pending = in
	if in != nil {
		if err := c.carryOut(in); err != nil {
			return fmt.Errorf("finish an interrupted change: %w", err)
		}
	}
	for _, name := range []string{manifestName + ".new", intentName + ".new"} {
		if err := c.d.remove(name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Chain) load() (*Manifest, error) {
	b, err := c.d.read(manifestName, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: %w", manifestName, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return parseManifest(b)
}

// Clean removes what interrupted operations left for being gone on with. What a change that is decided
// still needs is not among it: that change has been carried out when the chain was opened.
func (c *Chain) Clean(ctx context.Context) error {
	done, err := c.begin("clean up")
	if err != nil {
		return err
	}
	defer done()
	return c.sweep(ctx, func(string) bool { return false })
}

// sweep removes the hidden files of disks that nobody keeps.
func (c *Chain) sweep(ctx context.Context, keep func(file string) bool) error {
	names, err := c.d.names()
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if !strings.HasPrefix(name, ".") || !fileForm.MatchString(name) {
			continue
		}
		file := strings.TrimSuffix(strings.TrimSuffix(name[1:], ".part"), ".journal")
		if keep(file) {
			continue
		}
		if err := c.d.remove(name); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}
