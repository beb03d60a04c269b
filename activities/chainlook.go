package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// AskChain puts a job on a chain into the queue of admission: one for a folder at a time. Whether it is the
// same folder on another host is not asked; that only costs patience.
func (c *Control) AskChain(ctx context.Context, in AskChainRequest) (Asked, error) {
	return step(ctx, c.Site, in.Job, AskChainActivity, func(ctx context.Context, _ *slog.Logger) (Asked, error) {
		sum := sha256.Sum256([]byte(in.Path))
		name := clip(in.Path, 200)
		err := c.deps.Engine.Ask(ctx, Ticket{Job: in.Job, Key: ChainKey + hex.EncodeToString(sum[:10]), VM: name, Priority: in.Priority})
		return Asked{VM: name, Terms: c.terms()}, err
	})
}

// elsewhere says whether an error may be that the chain is on another host.
func elsewhere(err error) bool {
	return errors.Is(err, providers.NotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, providers.Denied) || errors.Is(err, fs.ErrPermission)
}

// LookAtChain says whether this host has a chain, and what a job on it has to know. That a job cannot be done
// with the chain as it is, is said here, before anything is touched.
func (c *Control) LookAtChain(ctx context.Context, in LookAtChainRequest) (Looked, error) {
	return step(ctx, c.Site, in.Job, LookAtChainActivity, func(ctx context.Context, _ *slog.Logger) (Looked, error) {
		out := Looked{Host: Host{ID: c.Host, Name: c.Name}, Free: c.places.free()}
		chain, _, err := c.openChain(ctx, PlaceOf(in.Work.Path), true)
		if err != nil && elsewhere(err) {
			out.Missing, out.Reason = err.Error(), reasonOf(err)
			return out, nil
		}
		if err != nil {
			return out, err
		}
		defer chain.Close()
		m := chain.Manifest()
		if out.Chain, err = seeChain(&m, in.Work); err != nil || in.Work.Action != job.FlattenChain {
			return out, err
		}
		out.Format, err = c.flattens(ctx, in.Work, out.Chain.Disks)
		return out, err
	})
}

// seeChain is what a job on a chain has to know of it.
func seeChain(m *cbt.Manifest, w job.ChainWork) (*ChainSeen, error) {
	seen := &ChainSeen{ID: m.ID, VM: m.VM, Points: len(m.Points)}
	if w.Action == job.CheckChain {
		seen.Weight = weigh(m)
		return seen, nil
	}
	number := w.Point
	if w.Action == job.MergeChain {
		number = w.UpTo
	}
	i, err := pointOf(m, number)
	if err != nil {
		return nil, err
	}
	seen.Point = m.Points[i].Number
	for _, d := range m.Points[i].Disks {
		if w.Action == job.DeletePoint || w.Action == job.MergeChain && (i == 0 || d.Full) || w.Disk != "" && d.Disk != w.Disk {
			continue
		}
		n := 1 + slices.IndexFunc(m.Labels, func(l cbt.Label) bool { return l.Disk == d.Disk })
		seen.Disks = append(seen.Disks, DiskSeen{Disk: d.Disk, Number: n, Size: d.Size, Held: held(m, i, d.Disk), File: d.File, Digest: d.Digest})
		seen.Weight += d.Size
	}
	if w.Action == job.MergeChain {
		seen.Weight *= 2 // it is written, and read again
	}
	if len(seen.Disks) > maxChainDisks {
		return nil, refuse(providers.Unsupported, "point %d has %d disks to %s, one job may work on %d", seen.Point, len(seen.Disks), w.Action, maxChainDisks)
	}
	if w.Action == job.FlattenChain && len(seen.Disks) == 0 {
		return nil, refuse(providers.NotFound, "point %d has no disk %q; it has %s", seen.Point, w.Disk, diskNames(m.Points[i].Disks))
	}
	return seen, nil
}

// pointOf is the index of a point; 0 is the number of the newest.
func pointOf(m *cbt.Manifest, number int64) (int, error) {
	switch {
	case len(m.Points) == 0:
		return 0, refuse(providers.NotFound, "the chain of %s has no points yet", m.VM.Name)
	case number == 0:
		return len(m.Points) - 1, nil
	}
	i := slices.IndexFunc(m.Points, func(p cbt.State) bool { return p.Number == number })
	if i < 0 {
		return 0, refuse(providers.NotFound, "the chain of %s has no point %d; it has %d, from %d to %d",
			m.VM.Name, number, len(m.Points), m.Points[0].Number, m.Newest().Number)
	}
	return i, nil
}

func diskNames(disks []cbt.Disk) string {
	const most = 20
	said := ""
	for i, d := range disks[:min(len(disks), most)] {
		if i > 0 {
			said += ", "
		}
		said += fmt.Sprintf("%q", clip(d.Disk, 60))
	}
	if len(disks) > most {
		said += fmt.Sprintf(" and %d more", len(disks)-most)
	}
	return said
}

// weigh is the bytes that a check of all data reads, about.
func weigh(m *cbt.Manifest) (n int64) {
	for _, p := range m.Points {
		for _, d := range p.Disks {
			n += linkWeight(d)
		}
	}
	return n
}

func linkWeight(d cbt.Disk) int64 {
	if d.Full {
		return d.Size
	}
	return min(d.Changed, d.Size)
}

// held is the bytes of the files that a disk is read through at a point.
func held(m *cbt.Manifest, i int, disk string) (n int64) {
	for ; i >= 0; i-- {
		at := slices.IndexFunc(m.Points[i].Disks, func(d cbt.Disk) bool { return d.Disk == disk })
		if at < 0 {
			return n
		}
		d := m.Points[i].Disks[at]
		if n += d.Stored; d.Full {
			return n
		}
	}
	return n
}

// flattens tries whether the target format can do what was asked for, and whether the images may go there.
func (c *Control) flattens(ctx context.Context, w job.ChainWork, disks []DiskSeen) (FormatFacts, error) {
	f, err := c.deps.Format(w.TargetFormat)
	if err != nil {
		return FormatFacts{}, err
	}
	facts := FormatFacts{Name: f.Name, Ext: f.Ext}
	if f.Create == nil || f.Open == nil {
		return facts, refuse(providers.Unsupported, "format %s can only be read", f.Name)
	}
	for _, d := range disks {
		if err := layable(ctx, f, d.Size, ChainLayout(w)); err != nil {
			return facts, fmt.Errorf("disk %q cannot be written as asked: %w", d.Disk, err)
		}
	}
	dir := w.OutputPath
	if w.Disk != "" {
		dir = PlaceOf(w.OutputPath).Output
	}
	of, err := os.Stat(w.Path)
	if err != nil {
		return facts, pathError(err)
	}
	to, err := os.Stat(dir)
	if err == nil && os.SameFile(of, to) {
		return facts, refuse(providers.Invalid, "%s is the folder of the chain, which is no place for other files", dir)
	}
	return facts, nil // what is wrong with the folder is found when it is claimed
}

// DescribeChain tells what a chain is made of, also while somebody works on it.
func (c *Control) DescribeChain(ctx context.Context, in DescribeChainRequest) (DescribedChain, error) {
	defer c.alive(ctx)()
	m, path, err := c.readChain(ctx, in.Target)
	if err != nil && elsewhere(err) {
		return DescribedChain{Missing: err.Error(), Reason: reasonOf(err)}, nil
	}
	if err != nil {
		return DescribedChain{}, c.Paces.fail(ctx, err)
	}
	view := viewOf(&m, in.Newest)
	view.Path, view.Host = path, c.Host
	return DescribedChain{View: view}, nil
}

// readChain reads what the chain in the folder of a target is made of.
func (c Config) readChain(ctx context.Context, t Target) (cbt.Manifest, string, error) {
	f, err := c.openFolder(t, false)
	if err != nil {
		return cbt.Manifest{}, "", err
	}
	defer f.Close()
	m, err := cbt.ReadManifest(ctx, f.path, cbt.Options{Root: f.root})
	return m, f.path, chainError(err)
}

// viewOf is a chain for people: its newest points, as many as may be told at once, or only the newest.
func viewOf(m *cbt.Manifest, newest bool) *job.ChainView {
	v := &job.ChainView{ID: m.ID, VM: job.ChainVM(m.VM), Total: len(m.Points), Points: []job.ChainPoint{}}
	for _, p := range m.Points {
		for _, d := range p.Disks {
			v.Stored += d.Stored
		}
	}
	lines := 0
	for _, p := range slices.Backward(m.Points) {
		if lines += len(p.Disks); len(v.Points) > 0 && (lines > maxToldDisks || newest) {
			break
		}
		told := job.ChainPoint{Number: p.Number, Parent: p.Parent, Time: job.Time{Time: p.Time.Round(time.Millisecond)}, Disks: []job.ChainDisk{}}
		for _, d := range p.Disks[:min(len(p.Disks), maxToldDisks)] {
			told.Disks = append(told.Disks, job.ChainDisk{
				Disk: clip(d.Disk, 100), Size: d.Size, Full: d.Full, Reason: clip(d.Reason, 100), By: d.By,
				Changed: d.Changed, Stored: d.Stored, File: d.File, Digest: d.Digest,
			})
		}
		v.Points = append(v.Points, told)
	}
	slices.Reverse(v.Points)
	return v
}

// openPoint opens a disk of a chain to be copied, and what it is read through.
func (s *Site) openPoint(ctx context.Context, in ChainSource, size int64) (formats.Image, func() error, error) {
	chain, _, err := s.openChain(ctx, PlaceOf(in.Path), true)
	if err != nil {
		return nil, nil, err
	}
	if m := chain.Manifest(); m.ID != in.ID {
		return nil, nil, errors.Join(final(refuse(providers.Precondition, "%s holds another chain than when the job looked", in.Path)), chain.Close())
	}
	img, err := chain.Open(ctx, in.Point, in.Disk)
	if err != nil {
		return nil, nil, errors.Join(chainError(err), chain.Close())
	}
	release := func() error { return errors.Join(img.Close(), chain.Close()) }
	if n := img.Size(); n != size {
		return nil, nil, errors.Join(final(refuse(providers.Precondition, "disk %q holds %d bytes at point %d and held %d when the job looked", in.Disk, n, in.Point, size)), release())
	}
	return img, release, nil
}
