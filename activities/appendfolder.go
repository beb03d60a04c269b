package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// The files of a chain that are not of a disk, and the format of those that are.
const (
	chainFile   = "chain.json"
	chainLock   = ".lock"
	chainFormat = "qcow2"
)

// FindChain looks whether this host has the chain of a VM.
func (c *Control) FindChain(ctx context.Context, in FindChainRequest) (ChainFound, error) {
	return step(ctx, c.Site, in.Job, FindChainActivity, func(ctx context.Context, _ *slog.Logger) (ChainFound, error) {
		out := ChainFound{Host: Host{ID: c.Host, Name: c.Name}, Free: c.places.free()}
		f, err := c.openFolder(Target{Output: in.Output, Folder: in.Folder}, false)
		switch {
		case errors.Is(err, providers.NotFound):
			return out, nil
		case errors.Is(err, providers.Denied): // not this host's to write to, whatever is there
			return out, nil
		case err != nil:
			return out, err
		}
		defer f.Close()
		if out.Has, err = f.exists(chainFile); err != nil || !out.Has {
			return out, pathError(err)
		}
		m, err := cbt.ReadManifest(ctx, f.path, cbt.Options{Root: f.root})
		if err != nil {
			return out, nil //nolint:nilerr // it is damaged, but here, and who writes to it finds out
		}
		if out.Ours = m.VM.ID == string(in.VM); out.Ours && m.Newest() != nil {
			out.Newest = m.Newest().Time
		}
		return out, nil
	})
}

// chainOf makes sure that the chain in the folder is of this VM.
func (f *folder) chainOf(is, want cbt.VM) error {
	if is.ID == want.ID && is.Provider == want.Provider {
		return nil
	}
	return refuse(providers.Exists, "%s holds the chain of another VM (%s, %s %s); a chain is never replaced: export to another folder, or move it away",
		f.path, is.Name, is.Provider, is.ID)
}

// prepareChain checks that a point can be added to the chain in the folder, where there is one, and notes
// in the claim that the job may write to it. It answers the space that has to be there: what is hidden
// already is, and how much a point takes that is not the first nobody knows.
func (f *folder) prepareChain(ctx context.Context, job string, vm cbt.VM, need int64) (int64, error) {
	there, err := f.exists(chainFile)
	if err != nil {
		return 0, pathError(err)
	}
	if there {
		m, err := cbt.ReadManifest(ctx, f.path, cbt.Options{Root: f.root})
		if err != nil {
			return 0, chainError(err)
		}
		if err := f.chainOf(m.VM, vm); err != nil {
			return 0, err
		}
		if need -= f.hidden(); need < 0 || len(m.Points) > 0 {
			need = 0
		}
	}
	c, err := f.readClaim()
	if err == nil && c.Job == job && !c.Chain {
		c.Chain = true
		err = f.putClaim(c)
	}
	return need, err
}

// hidden is the space that the files of a chain take which have no name yet.
func (f *folder) hidden() (n int64) {
	dir, err := f.root.Open(".")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what cannot be listed is not counted
	for _, name := range names {
		if !strings.HasPrefix(name, ".disk") || !strings.HasSuffix(name, ".part") {
			continue
		}
		if st, err := f.root.Lstat(name); err == nil {
			n += allocated(st)
		}
	}
	return n
}

// FinishPoint ends the claim on the folder of a chain. Doing it again changes nothing.
func (c *Control) FinishPoint(ctx context.Context, in FinishPointRequest) error {
	c.places.take(in.Job)
	_, err := step(ctx, c.Site, in.Job, FinishPointActivity, func(_ context.Context, log *slog.Logger) (struct{}, error) {
		f, err := c.openFolder(in.Target, false)
		if err != nil {
			return struct{}{}, err
		}
		defer f.Close()
		if _, mine, err := f.mine(in.Job, c.Host); err != nil || !mine {
			return struct{}{}, err // an earlier attempt has done it
		}
		if err := errors.Join(f.remove(f.claimFile), syncDir(f.root)); err != nil {
			return struct{}{}, err
		}
		log.Info("incremental export is complete", "dir", f.path, "point", in.Number)
		return struct{}{}, nil
	})
	return err
}

// discardPoint removes what a job has written into the chain of a folder that is its own: what it has
// hidden, and the point, should it have been committed and nobody heard of it. A chain that has no point
// then is removed too: the job had begun it.
func (f *folder) discardPoint(ctx context.Context, job string) error {
	there, err := f.exists(chainFile)
	if err != nil {
		return pathError(err)
	}
	if !there {
		return f.remove(chainLock)
	}
	chain, err := cbt.Open(ctx, f.path, cbt.Options{Root: f.root})
	if err != nil {
		return chainError(err)
	}
	defer chain.Close()
	m := chain.Manifest()
	if s, newest := m.ByKey(job), m.Newest(); s != nil && s.Number == newest.Number {
		if err := chain.Delete(ctx, s.Number); err != nil {
			return chainError(err)
		}
	}
	if err := chain.Clean(ctx); err != nil {
		return chainError(err)
	}
	if m = chain.Manifest(); len(m.Points) > 0 {
		return nil
	}
	if err := errors.Join(f.remove(chainFile), syncDir(f.root), f.remove(chainLock)); err != nil {
		return fmt.Errorf("chain: %w", err)
	}
	return nil
}
