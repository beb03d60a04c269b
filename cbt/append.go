package cbt

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hypersdk/formats"
)

// NewPoint is a point that is to be written.
type NewPoint struct {
	// Key names this attempt: whoever begins a point with the same key, disks and changes again goes on
	// where the last attempt came to a checkpoint.
	Key   string
	Time  time.Time // of the point; kept to the second, in UTC
	Disks []NewDisk // all of the VM; a disk that is not among them is not part of the point
}

// NewDisk is a disk of a point that is to be written.
type NewDisk struct {
	Disk     string // as the provider calls it
	Size     int64  // bytes
	ChangeID Point  // of this point; "": unknown, the next point will be full
	// Changes since the point before; nil: not known, and the copy is full. Why says why.
	Changes *Changes
	Why     string
}

// Plan is what will be copied of a disk.
type Plan struct {
	Disk   string
	Full   bool
	Reason string // for being full
	Ranges Set    // to read, in whole clusters; of a full copy all of the disk
	Done   bool   // an earlier attempt has copied it already
	File   string // that it will be in
}

// Append is a new point being written. Disks are copied in any order, several at once; the chain shows
// the point when Commit returns, and not before.
type Append struct {
	c     *Chain
	done  func()
	point NewPoint
	state State
	all   []*newDisk

	mu     sync.Mutex // of what newDisk says of its progress, and of closed
	closed bool
}

type newDisk struct {
	NewDisk
	label  string
	full   bool
	reason string
	ranges Set
	before *link // of a delta: the newest link

	busy  bool
	ready *Disk     // copied; nil: not yet
	got   *received // by this attempt, of a delta; nil: not known
}

// Begin begins a new point, or goes on with one, and decides what is copied in full. A delta is written
// only where it can be proved right; all else is a full copy, and says why. Where a point with the same
// key is part of the chain already, that is an error wrapping ErrExists (see [Manifest.ByKey]): so what
// was done and not heard of is not done again.
func (c *Chain) Begin(ctx context.Context, p NewPoint) (*Append, error) {
	done, err := c.begin("append a point")
	if err != nil {
		return nil, err
	}
	a := &Append{c: c, done: done, point: p}
	if err = a.prepare(ctx); err == nil {
		err = a.clear(ctx)
	}
	if err != nil {
		done()
		return nil, fmt.Errorf("append a point: %w", err)
	}
	return a, nil
}

// Plan says what Begin would decide, and changes nothing.
func (c *Chain) Plan(ctx context.Context, p NewPoint) ([]Plan, error) {
	if !c.readOnly {
		done, err := c.begin("plan a point")
		if err != nil {
			return nil, err
		}
		defer done()
	}
	a := &Append{c: c, point: p}
	if err := a.prepare(ctx); err != nil {
		return nil, fmt.Errorf("plan a point: %w", err)
	}
	return a.Plans(), nil
}

// prepare makes the plan.
func (a *Append) prepare(ctx context.Context) error {
	// Names of disks that were never seen are noted in a copy, which becomes the manifest at the end.
	m := a.c.m.clone()
	a.state = State{Number: m.Next, Key: a.point.Key, Time: a.point.Time.UTC().Truncate(time.Second)}
	if n := m.Newest(); n != nil {
		a.state.Parent = n.Number
	}
	switch {
	case !text(a.point.Key):
		return errors.New("its key is no text of at most a kilobyte")
	case len(m.Points) >= maxPoints || m.Next >= maxNumber:
		return fmt.Errorf("the chain has %d points; merge old ones first", len(m.Points))
	case len(a.point.Disks) > maxDisks:
		return fmt.Errorf("%d disks", len(a.point.Disks))
	}
	if p := m.ByKey(a.point.Key); p != nil {
		return fmt.Errorf("point %d has the key %q: %w", p.Number, p.Key, ErrExists)
	}
	for _, d := range a.point.Disks {
		if d.Disk == "" || d.Size < 0 || !text(d.Disk) || !text(string(d.ChangeID)) || slices.ContainsFunc(a.all, func(o *newDisk) bool { return o.Disk == d.Disk }) {
			return fmt.Errorf("disk %q of %d bytes cannot be, or is here twice", d.Disk, d.Size)
		}
		n := &newDisk{NewDisk: d, label: m.label(d.Disk)}
		if err := a.plan(ctx, n); err != nil {
			return err
		}
		for _, name := range []string{n.file(a), n.index(a)} {
			if is, err := a.c.d.exists(name); err != nil || is {
				return errors.Join(err, fmt.Errorf("%s is there and no point has it: %w", name, ErrExists))
			}
		}
		a.all = append(a.all, n)
	}
	if len(m.Labels) > maxDisks {
		return fmt.Errorf("the chain would have seen %d disks, %d are the most; begin a new one", len(m.Labels), maxDisks)
	}
	return nil
}

// clear removes what another attempt at this point has left: it is of no use. What a merge that was
// interrupted has left is.
func (a *Append) clear(ctx context.Context) error {
	known, mine := a.c.m.files(), make(map[string]bool)
	for _, n := range a.all {
		mine[n.file(a)], mine[n.index(a)], mine[comparedName(n.label, a.state.Number)] = true, true, true
	}
	return a.c.sweep(ctx, func(file string) bool { _, ok := known[file]; return ok || mine[file] })
}

func (n *newDisk) file(a *Append) string  { return imageName(n.label, a.state.Number) }
func (n *newDisk) index(a *Append) string { return indexName(n.label, a.state.Number) }

// plan decides whether a disk is copied in full.
func (a *Append) plan(ctx context.Context, n *newDisk) error {
	var err error
	if n.reason, err = a.fullBecause(ctx, n); err != nil {
		return err
	}
	n.reason = plain(n.reason)
	if n.reason != "" {
		n.full, n.ranges, n.before = true, Whole(n.Size), nil
		return nil
	}
	ranges := n.Changes.Ranges
	if old := n.before.disk.Size; n.Size > old {
		// The file below ends there, whoever wrote to what came after.
		ranges = ranges.Union(Set{[]Range{{old, n.Size - old}}})
	}
	block := a.c.m.ClusterSize
	if block == 0 {
		block = defaultCluster
	}
	n.ranges = ranges.Align(block, n.Size)
	return nil
}

const defaultCluster = 64 << 10

// fullBecause answers why a disk has to be copied in full; "": it has not.
func (a *Append) fullBecause(ctx context.Context, n *newDisk) (string, error) {
	newest := a.c.m.Newest()
	if newest == nil {
		return "first point of the chain", nil
	}
	old := newest.disk(n.Disk)
	if old == nil {
		return fmt.Sprintf("the disk was not there at point %d", newest.Number), nil
	}
	n.before = &link{newest, old}
	ch := n.Changes
	switch {
	case ch == nil && n.Why != "":
		return n.Why, nil
	case ch == nil:
		return "what changed is not known", nil
	case ch.By != Tracked && ch.By != Compared:
		return fmt.Sprintf("how the changes were found is not known: %q", ch.By), nil
	case ch.Since != 0 && ch.Since != newest.Number:
		return fmt.Sprintf("the changes are those since point %d, the newest point is %d", ch.Since, newest.Number), nil
	case ch.By == Tracked && (old.ChangeID == "" || ch.From != old.ChangeID):
		return fmt.Sprintf("changes are known since %q, the newest point is %q", ch.From, old.ChangeID), nil
	case ch.By == Tracked && ch.To != n.ChangeID:
		return fmt.Sprintf("changes are known up to %q, the point is %q", ch.To, n.ChangeID), nil
	case ch.By == Tracked && old.Size != n.Size:
		return fmt.Sprintf("the disk was resized from %d to %d bytes", old.Size, n.Size), nil
	}
	links, err := a.c.m.links(newest.Number, n.Disk)
	if err != nil {
		return "", err
	}
	if len(links) >= maxLinks {
		return fmt.Sprintf("the disk is read through %d files already", len(links)), nil
	}
	err = a.c.whole(ctx, newest.Number, n.Disk)
	if err == nil {
		var closeIndex func() error
		if _, closeIndex, err = a.c.openIndex(links[0]); err == nil {
			err = closeIndex()
		}
	}
	switch {
	case errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrFormat):
		return fmt.Sprintf("a delta would build upon damage: %s", err), nil
	case err != nil:
		return "", err
	}
	return "", nil
}

// Number is the number of the new point.
func (a *Append) Number() int64 { return a.state.Number }

// Plans say what will be copied, disk by disk.
func (a *Append) Plans() []Plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Plan
	for _, n := range a.all {
		all = append(all, Plan{n.Disk, n.full, n.reason, n.ranges.Clone(), n.ready != nil, n.file(a)})
	}
	return all
}

// Commit makes the point part of the chain, for good. All its disks must have been copied.
func (a *Append) Commit(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.commit(ctx); err != nil {
		return fmt.Errorf("append point %d: %w", a.state.Number, err)
	}
	return nil
}

func (a *Append) commit(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if a.closed {
		return errors.New("it is closed")
	}
	in := &intent{Manifest: *a.c.m.clone(), Renames: []string{}, Removes: []string{}}
	m := &in.Manifest
	a.state.Disks = []Disk{}
	for _, n := range a.all {
		if n.ready == nil {
			return fmt.Errorf("disk %q has not been copied", n.Disk)
		}
		m.label(n.Disk)
		a.state.Disks = append(a.state.Disks, *n.ready)
		in.Renames = append(in.Renames, n.ready.File, n.ready.Index)
		in.Removes = append(in.Removes, journalName(n.ready.File))
		left, err := a.c.comparedLeft(n.label, a.state.Number)
		if err != nil {
			return err
		}
		in.Removes = append(in.Removes, left...)
	}
	m.Points = append(m.Points, a.state)
	m.Next++
	a.c.mu.Lock()
	err := a.c.decide(in)
	a.c.mu.Unlock()
	if err != nil {
		return err
	}
	return a.close()
}

// Close ends the attempt. What it copied stays hidden in the folder for one with the same key, unless it
// was committed; [Chain.Clean] removes it.
func (a *Append) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.close()
}

func (a *Append) close() error {
	if !a.closed {
		a.closed = true
		a.done()
	}
	return nil
}

// id names everything that the bytes of a file that is being written depend on.
func (a *Append) id(n *newDisk) string {
	h := sha256.New()
	parent := ""
	if n.before != nil {
		parent = n.before.disk.File + " " + n.before.disk.Digest
	}
	_ = json.NewEncoder(h).Encode([]any{a.c.m.ID, a.c.m.Compression, a.c.m.ClusterSize, a.state.Number, a.point.Key,
		n.Disk, n.Size, n.ChangeID, n.full, parent})
	for r := range n.ranges.All() {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], uint64(r.Off))
		binary.BigEndian.PutUint64(b[8:], uint64(r.Len))
		h.Write(b[:])
	}
	return "append " + hex.EncodeToString(h.Sum(nil))
}

// Copy copies a disk of the new point from src, which is the whole disk at that point: of a delta only
// the ranges that changed are read. It goes on where an earlier attempt with the same key came to.
// From, Digests and Trust of opt are the chain's own affair. What it answers counts this attempt.
func (a *Append) Copy(ctx context.Context, disk string, src formats.Source, opt formats.CopyOptions) (formats.Result, error) {
	n, err := a.take(disk)
	if err != nil {
		return formats.Result{}, fmt.Errorf("append point %d: disk %q: %w", a.state.Number, disk, err)
	}
	res, ready, err := a.copy(ctx, n, src, opt)
	a.mu.Lock()
	defer a.mu.Unlock()
	n.busy, n.ready = false, ready
	if err != nil {
		return res, fmt.Errorf("append point %d: disk %q: %w", a.state.Number, disk, err)
	}
	return res, nil
}

func (a *Append) take(disk string) (*newDisk, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.all, func(n *newDisk) bool { return n.Disk == disk })
	switch {
	case a.closed:
		return nil, errors.New("the attempt is closed")
	case i < 0:
		return nil, fmt.Errorf("it is not part of the point: %w", ErrNotFound)
	case a.all[i].busy:
		return nil, fmt.Errorf("it is being copied or verified: %w", ErrInUse)
	}
	a.all[i].busy = true
	return a.all[i], nil
}

func (a *Append) copy(ctx context.Context, n *newDisk, src formats.Source, opt formats.CopyOptions) (formats.Result, *Disk, error) {
	if src.Size() != n.Size {
		return formats.Result{}, nil, fmt.Errorf("the source has %d bytes instead of %d", src.Size(), n.Size)
	}
	if img, ok := src.(formats.Image); ok && !n.full {
		src = View(img, n.ranges)
	} else if !n.full {
		return formats.Result{}, nil, errors.New("a delta is read from an image, not from a stream")
	}
	p := a.part(n)
	defer p.close()
	var ready Disk
	if whole, err := p.open(&ready); err != nil || whole {
		return formats.Result{Progress: formats.Progress{Done: n.Size}}, &ready, err
	}
	if err := p.openIndex(func(d *formats.Digests) error { return a.inherit(n, d) }); err != nil {
		return formats.Result{}, nil, err
	}
	b, err := a.below(ctx, n)
	if err != nil {
		return formats.Result{}, nil, err
	}
	defer b.close()
	sums := &redigest{now: p.digests, workers: opt.Workers, pace: opt.Pace, below: b}
	n.got = nil
	if _, packed := src.(formats.PackedReader); !n.full && !packed {
		sums.coming = newArrivals()
		n.got = &received{Image: src.(formats.Image), told: sums.arrive}
		src = n.got
	}
	var res formats.Result
	err = sums.during(ctx, func(ctx context.Context) error {
		res, err = p.copy(ctx, src, opt)
		return err
	})
	if err != nil {
		return res, nil, err
	}
	digest, err := a.digest(ctx, sums, p)
	if err != nil {
		return res, nil, err
	}
	stored, err := p.image.size()
	if err != nil {
		return res, nil, err
	}
	ready = Disk{Disk: n.Disk, Size: n.Size, ChangeID: n.ChangeID, Full: n.full, Reason: n.reason, File: p.file, Backing: p.options.Backing,
		Stored: stored, Changed: n.ranges.Bytes(), Index: p.index, Digest: digest.String()}
	if !n.full {
		ready.By = n.Changes.By
	}
	return res, &ready, p.finish(ready)
}

// part is the file of a disk that is to be written.
func (a *Append) part(n *newDisk) *part {
	backing := ""
	if n.before != nil {
		backing = n.before.disk.File
	}
	return &part{c: a.c, file: n.file(a), index: n.index(a), id: a.id(n), size: n.Size, options: a.c.createOptions(backing)}
}

// inherit notes the sums of the blocks that the delta does not touch.
func (a *Append) inherit(n *newDisk, d *formats.Digests) error {
	if n.before == nil {
		return nil
	}
	old, closeOld, err := a.c.openIndex(*n.before)
	if err != nil {
		return err
	}
	for i := range d.Blocks() {
		if i >= old.Blocks() || old.BlockLen(i) != d.BlockLen(i) || n.ranges.Touches(i*formats.BlockSize, d.BlockLen(i)) {
			continue
		}
		s, ok, err := old.Sum(i)
		if err == nil && ok {
			err = d.Put(i, s)
		}
		if err != nil {
			return errors.Join(err, closeOld())
		}
	}
	return closeOld()
}

// digest completes the index of the new point, and answers the content digest. Blocks of which the copy
// has not seen all are read back: of a delta those that lie partly in the file below, which must still be
// what they were.
func (a *Append) digest(ctx context.Context, sums *redigest, p *part) (d formats.Digest, err error) {
	if sums.img, err = a.c.stack(ctx, sums.links, p.image.File); err != nil {
		return d, err
	}
	defer sums.img.Close()
	if err := sums.run(ctx); err != nil {
		return d, err
	}
	return p.digests.Seal()
}
