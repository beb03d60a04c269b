package cbt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"hypersdk/formats"
)

// Compare finds what changed of a disk since the newest point by reading all of img, the disk at the point
// that is to be written, and comparing it with the index: for sources without tracking. What it answers is
// the Changes of the disk. Several disks may be compared at once, and nothing else done with the chain
// meanwhile but reading.
//
// The sums of img are kept in a hidden file that belongs to the key of the point. Killed and called again
// with the same key, which promises the same img, it goes on and has lost what it read last, 48 MiB at
// most; once it is done it reads nothing. Another key, or the empty one, starts anew. The file goes when
// the point is committed, or by [Chain.Clean].
//
// A [FullError] says that there is nothing to compare with, and why the disk has to be copied in full.
func (c *Chain) Compare(ctx context.Context, p NewPoint, disk string, img formats.Image, opt formats.VerifyOptions) (Changes, error) {
	m, err := c.comparison(ctx, p, disk, &Changes{By: Compared}, img)
	if err == nil {
		defer m.close()
		_, err = m.run(ctx, opt)
	}
	if err != nil {
		return Changes{}, fmt.Errorf("compare disk %q with the newest point: %w", disk, err)
	}
	return m.changes, nil
}

// Audit holds what a tracker says changed of a disk since the newest point against a comparison, which is
// made as [Chain.Compare] makes it. It answers what changed and was not claimed, exact to 4 KiB and empty
// for a tracker that can be trusted, and the truth, which is the Changes of the disk where it cannot be.
func (c *Chain) Audit(ctx context.Context, p NewPoint, disk string, claim Changes, img formats.Image, opt formats.VerifyOptions) (missed Set, truth Changes, err error) {
	m, err := c.comparison(ctx, p, disk, &claim, img)
	if err == nil {
		defer m.close()
		missed, err = m.audit(ctx, claim, opt)
	}
	if err != nil {
		return Set{}, Changes{}, fmt.Errorf("audit the tracking of disk %q: %w", disk, err)
	}
	return missed, m.changes, nil
}

// comparison is a disk that is being compared with the newest point.
type comparison struct {
	c      *Chain
	done   func()
	id     string // see formats.OpenJournal
	name   string // of the file of the fresh sums
	fresh  bool   // what is there of them is of no use
	img    formats.Image
	before link

	index      *formats.Digests
	closeIndex func() error
	sums, log  *file

	changes Changes
}

// comparison begins to compare a disk of a point that is to be written. changes are those that would have
// to be good for a delta.
func (c *Chain) comparison(ctx context.Context, p NewPoint, disk string, changes *Changes, img formats.Image) (*comparison, error) {
	done, err := c.share(disk)
	if err != nil {
		return nil, err
	}
	m := &comparison{c: c, done: done, img: img}
	if err := m.prepare(ctx, p, disk, changes); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// share takes the chain for the comparison of a disk, which goes on beside those of others.
func (c *Chain) share(disk string) (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.compare[disk]:
		return nil, fmt.Errorf("it is being compared: %w", ErrInUse)
	case len(c.compare) == 0:
		if err := c.take("compare disks"); err != nil {
			return nil, err
		}
		c.compare = make(map[string]bool)
	}
	c.compare[disk] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.compare, disk); len(c.compare) == 0 {
			c.busy = ""
		}
	}, nil
}

func (m *comparison) prepare(ctx context.Context, p NewPoint, disk string, changes *Changes) error {
	c := m.c
	i := slices.IndexFunc(p.Disks, func(d NewDisk) bool { return d.Disk == disk })
	switch s := c.m.ByKey(p.Key); {
	case i < 0:
		return fmt.Errorf("it is not part of the point: %w", ErrNotFound)
	case s != nil:
		return fmt.Errorf("point %d has the key %q: %w", s.Number, s.Key, ErrExists)
	case m.img.Size() != p.Disks[i].Size:
		return fmt.Errorf("it has %d bytes instead of %d", m.img.Size(), p.Disks[i].Size)
	}
	n := &newDisk{NewDisk: p.Disks[i]}
	n.Changes = changes
	a := &Append{c: c, point: p}
	why, err := a.fullBecause(ctx, n)
	if err != nil {
		return err
	}
	if why = plain(why); why != "" {
		return &FullError{why}
	}
	m.before = *n.before
	m.changes = Changes{From: m.before.disk.ChangeID, To: n.ChangeID, By: Compared, Since: m.before.point.Number}
	m.name = comparedName(c.m.clone().label(disk), c.m.Next)
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]any{c.m.ID, c.m.Next, p.Key, disk, n.Size, n.ChangeID})
	m.id, m.fresh = "compare "+hex.EncodeToString(h.Sum(nil)), p.Key == ""
	if m.sums, err = c.d.edit(partName(m.name)); err != nil {
		return err
	}
	if m.log, err = c.d.edit(journalName(m.name)); err != nil {
		return err
	}
	m.index, m.closeIndex, err = c.openIndex(m.before)
	return err
}

func (m *comparison) close() {
	for _, f := range []*file{m.sums, m.log} {
		if f != nil {
			_ = f.Close()
		}
	}
	if m.closeIndex != nil {
		_ = m.closeIndex()
	}
	m.done()
}

// run reads what has not been read yet, finds the changes, and answers the index of the disk.
func (m *comparison) run(ctx context.Context, opt formats.VerifyOptions) (*formats.Digests, error) {
	now, err := m.open()
	if err != nil {
		return nil, err
	}
	if _, done := now.Sealed(); !done {
		if _, err := formats.ResumeDigest(ctx, m.img, now, opt); err != nil {
			return nil, err
		}
		if _, err := now.Seal(); err != nil {
			return nil, err
		}
	} else if opt.Progress != nil {
		opt.Progress(formats.Progress{Done: m.img.Size()})
	}
	m.changes.Ranges, err = Differ(ctx, m.index, now)
	return now, err
}

func (m *comparison) audit(ctx context.Context, claim Changes, opt formats.VerifyOptions) (Set, error) {
	now, err := m.run(ctx, opt)
	if err != nil {
		return Set{}, err
	}
	old, err := m.c.Open(ctx, m.before.point.Number, m.before.disk.Disk)
	if err != nil {
		return Set{}, err
	}
	defer old.Close()
	return Audit(ctx, Claim{Ranges: claim.Ranges, Before: m.index, Now: now, Old: old, New: m.img})
}

// begun is what the journal of a comparison says once its file is one of sums.
const begun = "begun"

// open opens the sums that are known of the disk, or begins them.
func (m *comparison) open() (*formats.Digests, error) {
	journal, at, err := formats.OpenJournal(m.log, m.id)
	if err != nil {
		return nil, err
	}
	if at.Token == begun && !m.fresh {
		d, err := formats.OpenDigests(m.sums)
		if err == nil {
			err = m.sound(d)
		}
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, formats.ErrFormat) {
			return nil, err
		}
	}
	if err := journal.Record(formats.Checkpoint{}); err != nil {
		return nil, err
	}
	d, err := formats.CreateDigests(m.sums, m.img.Size())
	if err == nil {
		err = d.Sync()
	}
	if err == nil {
		err = journal.Record(formats.Checkpoint{Token: begun})
	}
	return d, err
}

// sound reads all sums that are known: damage is to be found before anything is built upon it.
func (m *comparison) sound(d *formats.Digests) error {
	if d.Size() != m.img.Size() {
		return fmt.Errorf("they are of %d bytes: %w", d.Size(), formats.ErrCorrupt)
	}
	for i := range d.Blocks() {
		if _, _, err := d.Sum(i); err != nil {
			return err
		}
	}
	if sealed, ok := d.Sealed(); ok {
		if root, err := d.Root(); err != nil || root != sealed {
			return fmt.Errorf("they do not make the digest that they were sealed with: %w", formats.ErrCorrupt)
		}
	}
	return nil
}

// comparedLeft are the files that comparisons have left of a disk of a point that is to be written.
func (c *Chain) comparedLeft(label string, number int64) ([]string, error) {
	var left []string
	for _, name := range []string{partName(comparedName(label, number)), journalName(comparedName(label, number))} {
		is, err := c.d.exists(name)
		if err != nil {
			return nil, err
		}
		if is {
			left = append(left, name)
		}
	}
	return left, nil
}
