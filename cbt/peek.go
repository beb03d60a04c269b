package cbt

import (
	"context"
	"fmt"
	"os"
)

// ReadManifest is what a chain is made of, at a moment at which somebody may be changing it: unlike [Open] it
// takes no lock and waits for nobody. A manifest is replaced as a whole, so that this is always one that was
// true; the files that it names may be gone by the time that they are looked for.
func ReadManifest(ctx context.Context, dir string, o Options) (Manifest, error) {
	m, err := readManifest(ctx, dir, o)
	if err != nil {
		return Manifest{}, fmt.Errorf("read the manifest of the chain in %s: %w", dir, err)
	}
	return *m, nil
}

func readManifest(ctx context.Context, dir string, o Options) (*Manifest, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	root := o.Root
	if root == nil {
		var err error
		if root, err = os.OpenRoot(dir); err != nil {
			return nil, err
		}
		defer root.Close()
	}
	c := &Chain{d: &folder{root: root, step: o.step}, readOnly: true}
	return c.load()
}
