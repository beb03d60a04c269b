package cbt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
)

// Merge makes a point the oldest of the chain: the deltas up to it become part of its base, and the
// points before it are given up.
//
// The data goes into a copy, never into the base in place. For each disk that is a delta at the point,
// the disk as of the point is written in full into a hidden file; that file is read back and proved by
// the digest of the point; when all are, the change is decided (see intent), and each takes the name of
// the delta that it replaces, which is the backing name in the next one. That rename is the only moment
// at which anything changes for a reader, and he reads the same bytes before and after: the point and all
// later ones through either file, the points before it from their own files, which are untouched and are
// removed only when the manifest no longer names them. Writing into the base in place would spoil every
// point before from the first byte on, would prove nothing before it is too late, and would need a file
// that is right after half a write. The price is room for one more base, and the time to write it.
//
// Killed before it is decided, it leaves the chain as it was, and goes on where it came to when it is
// called again; killed later, it is carried out when the chain is next opened for writing. From, Digests
// and Trust of opt are the chain's own affair. A disk counts twice in Progress: it is written and read
// back.
func (c *Chain) Merge(ctx context.Context, upTo int64, opt formats.CopyOptions) error {
	done, err := c.begin("merge")
	if err != nil {
		return err
	}
	defer done()
	if err := c.merge(ctx, upTo, opt); err != nil {
		return fmt.Errorf("merge up to point %d: %w", upTo, err)
	}
	return nil
}

func (c *Chain) merge(ctx context.Context, upTo int64, opt formats.CopyOptions) error {
	i := c.m.index(upTo)
	if i < 0 {
		return ErrNotFound
	}
	if i == 0 {
		return nil
	}
	in := &intent{Manifest: *c.m.clone(), Renames: []string{}, Removes: []string{}}
	for j := range in.Manifest.Points[i].Disks {
		d := &in.Manifest.Points[i].Disks[j]
		if d.Full {
			continue
		}
		full, err := c.flat(ctx, upTo, *d, opt)
		if err != nil {
			return fmt.Errorf("disk %q: %w", d.Disk, err)
		}
		full.Reason = fmt.Sprintf("merged from points %d to %d", c.oldest(upTo, d.Disk), upTo)
		*d = full
		in.Renames = append(in.Renames, d.File)
		in.Removes = append(in.Removes, journalName(d.File))
	}
	in.Removes = append(in.Removes, filesOf(c.m.Points[:i])...)
	in.Manifest.Points = in.Manifest.Points[i:]
	in.Manifest.Points[0].Parent = 0
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.decide(in)
}

// oldest is the number of the point that holds the base of a disk.
func (c *Chain) oldest(number int64, disk string) int64 {
	links, err := c.m.links(number, disk)
	if err != nil {
		return number
	}
	return links[len(links)-1].point.Number
}

func filesOf(points []State) []string {
	var all []string
	for _, p := range points {
		for _, d := range p.Disks {
			all = append(all, d.File, d.Index)
		}
	}
	return all
}

// flat writes a disk at a point in full into a part, and proves it.
func (c *Chain) flat(ctx context.Context, number int64, d Disk, opt formats.CopyOptions) (Disk, error) {
	src, err := c.Open(ctx, number, d.Disk)
	if err != nil {
		return d, err
	}
	defer src.Close()
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]any{c.m.ID, c.m.Compression, c.m.ClusterSize, d.File, d.Digest})
	p := &part{c: c, file: d.File, id: "merge " + hex.EncodeToString(h.Sum(nil)), size: d.Size, options: c.createOptions("")}
	defer p.close()
	full := d
	if whole, err := p.open(&full); err != nil || whole {
		return full, err
	}
	if _, err := p.copy(ctx, src, opt); err != nil {
		return d, err
	}
	if err := c.prove(ctx, number, p, opt); err != nil {
		return d, err
	}
	full.Full, full.Backing, full.By = true, "", ""
	if full.Stored, err = p.image.size(); err != nil {
		return d, err
	}
	return full, p.finish(full)
}

// prove reads a part back and compares it with the index of the point.
func (c *Chain) prove(ctx context.Context, number int64, p *part, opt formats.CopyOptions) error {
	i := c.m.index(number)
	var l link
	for j := range c.m.Points[i].Disks {
		if d := &c.m.Points[i].Disks[j]; d.File == p.file {
			l = link{&c.m.Points[i], d}
		}
	}
	index, closeIndex, err := c.openIndex(l)
	if err != nil {
		return err
	}
	defer func() { _ = closeIndex() }()
	size, err := p.image.size()
	if err != nil {
		return err
	}
	img, err := qcow2.Open(ctx, p.image.File, size, formats.OpenOptions{})
	if err != nil {
		return err
	}
	defer img.Close()
	v := formats.VerifyOptions{Workers: opt.Workers, Pace: opt.Pace}
	if opt.Progress != nil {
		v.Progress = func(n formats.Progress) { n.Done += p.size; opt.Progress(n) }
	}
	got, err := formats.Verify(ctx, img, index, v)
	if err == nil && got.String() != l.disk.Digest {
		err = fmt.Errorf("the digest is %s instead of %s: %w", got, l.disk.Digest, formats.ErrCorrupt)
	}
	if errors.Is(err, formats.ErrCorrupt) {
		// What is written is not trusted again; a proof that was cut off says nothing against it.
		return errors.Join(err, p.restart())
	}
	return err
}

// Delete gives up a point that no other builds upon: the newest, or one whose successor holds all disks
// in full. Others are refused (ErrNeeded); [Chain.Merge] gives them up.
func (c *Chain) Delete(ctx context.Context, number int64) error {
	done, err := c.begin("delete a point")
	if err != nil {
		return err
	}
	defer done()
	if err := c.delete(ctx, number); err != nil {
		return fmt.Errorf("delete point %d: %w", number, err)
	}
	return nil
}

// DeleteNewest gives up the newest point.
func (c *Chain) DeleteNewest(ctx context.Context) error {
	m := c.Manifest()
	newest := m.Newest()
	if newest == nil {
		return fmt.Errorf("delete the newest point: there is none: %w", ErrNotFound)
	}
	return c.Delete(ctx, newest.Number)
}

func (c *Chain) delete(ctx context.Context, number int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	i := c.m.index(number)
	if i < 0 {
		return ErrNotFound
	}
	in := &intent{Manifest: *c.m.clone(), Renames: []string{}, Removes: filesOf(c.m.Points[i : i+1])}
	m := &in.Manifest
	if i+1 < len(m.Points) {
		next := &m.Points[i+1]
		for _, d := range next.Disks {
			if !d.Full {
				return fmt.Errorf("point %d reads disk %q through it, merge up to that point instead: %w", next.Number, d.Disk, ErrNeeded)
			}
		}
		next.Parent = m.Points[i].Parent
	}
	m.Points = append(m.Points[:i], m.Points[i+1:]...)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.decide(in)
}
