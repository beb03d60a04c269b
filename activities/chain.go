package activities

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
)

// A chain lies in the folder of its VM, as an export in full does: <output>/<SafeName of the VM>. It is
// reached through the same door, so that no name and no link leads out of what jobs may touch.

// openChain opens the chain in the folder of a target, and names it by its path.
func (c Config) openChain(ctx context.Context, t Target, readOnly bool) (_ *cbt.Chain, path string, err error) {
	f, err := c.openFolder(t, false)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	chain, err := cbt.Open(ctx, f.path, cbt.Options{ReadOnly: readOnly, Root: f.root})
	return chain, f.path, chainError(err)
}

// foundChain begins a chain in the folder of a target, which has to be there.
func (c Config) foundChain(ctx context.Context, t Target, vm cbt.VM, o cbt.Options) (*cbt.Chain, string, error) {
	f, err := c.openFolder(t, false)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	o.Root = f.root
	chain, err := cbt.Create(ctx, f.path, vm, o)
	return chain, f.path, chainError(err)
}

// chainError gives an error of a chain its reason.
func chainError(err error) error {
	var link *cbt.LinkError
	reason := providers.Reason("")
	switch {
	case err == nil:
		return nil
	case errors.As(err, &link) && errors.Is(err, formats.ErrCorrupt):
		reason = providers.Corrupt
	case errors.Is(err, cbt.ErrInUse):
		reason = providers.Precondition
	case errors.Is(err, cbt.ErrNeeded):
		reason = providers.Invalid
	case errors.Is(err, cbt.ErrExists):
		reason = providers.Exists
	case errors.Is(err, cbt.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		reason = providers.NotFound
	default:
		return pathError(err)
	}
	return &sentence{reason, fmt.Errorf("chain: %w", err)}
}
