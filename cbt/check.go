package cbt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
)

// Depth is how much of a chain a check reads.
type Depth int

const (
	// CheckLinks: every file is there, is a regular file of its own and of the right size, and its
	// header names the right backing file.
	CheckLinks Depth = iota
	// CheckTables: and the tables of every file do not contradict themselves, and every index is whole.
	CheckTables
	// CheckData: and every point of every disk has its digest. Each stored block is read once.
	CheckData
)

// CheckOptions say how a chain is checked. The zero value is the quickest.
type CheckOptions struct {
	Depth    Depth
	Workers  int // blocks read at once; 0: one a core
	Pace     func(ctx context.Context, n int64) error
	Progress func(CheckProgress)
}

// CheckProgress is how far a check has come.
type CheckProgress struct {
	Links, Of int   // files
	Read      int64 // bytes
}

// CheckReport is what a check found.
type CheckReport struct {
	Points   int       `json:"points"`
	Links    int       `json:"links"` // files that hold disks
	Read     int64     `json:"read"`  // bytes of disks
	Problems []Problem `json:"problems,omitempty"`
	// Strays are files with names of the chain that no point has. They do no harm.
	Strays []string `json:"strays,omitempty"`
	// Pending: a change is decided and not carried out yet. The chain is whole all the same.
	Pending bool `json:"pending,omitempty"`
}

// Problem is a file that is missing or damaged. All later points of the disk that build upon it cannot
// be trusted.
type Problem struct {
	Point int64  `json:"point"`
	Disk  string `json:"disk"`
	File  string `json:"file"`
	What  string `json:"what"`
}

// Err is nil where nothing was found; otherwise it wraps formats.ErrCorrupt and names the first problem.
func (r CheckReport) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	p := r.Problems[0]
	return fmt.Errorf("%d problems, the first: %w", len(r.Problems),
		&LinkError{Point: p.Point, Disk: p.Disk, File: p.File, Err: fmt.Errorf("%s: %w", p.What, formats.ErrCorrupt)})
}

// Check examines the chain. The error is for what keeps it from looking; what it found is in the report.
// No change is made while it looks.
func (c *Chain) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	if !c.readOnly {
		done, err := c.begin("check the chain")
		if err != nil {
			return CheckReport{}, err
		}
		defer done()
	}
	k := checker{c: c, o: o, report: CheckReport{Points: len(c.m.Points), Pending: c.pending != nil},
		seen: make(map[inode]string), bad: make(map[string]bool)}
	if err := k.run(ctx); err != nil {
		return k.report, fmt.Errorf("check the chain: %w", err)
	}
	return k.report, nil
}

type checker struct {
	c      *Chain
	o      CheckOptions
	report CheckReport
	seen   map[inode]string
	bad    map[string]bool // files that cannot be read through
	at, of int
	read   atomic.Int64
}

type inode struct{ dev, ino uint64 }

func (k *checker) run(ctx context.Context) error {
	for _, p := range k.c.m.Points {
		k.of += len(p.Disks)
	}
	for i := range k.c.m.Points {
		p := &k.c.m.Points[i]
		for j := range p.Disks {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := k.link(ctx, link{p, &p.Disks[j]}); err != nil {
				return err
			}
			k.at++
			k.progress()
		}
	}
	k.report.Links, k.report.Read = k.of, k.read.Load()
	return k.strays()
}

func (k *checker) progress() {
	if k.o.Progress != nil {
		k.o.Progress(CheckProgress{Links: k.at, Of: k.of, Read: k.read.Load()})
	}
}

// found notes what is wrong with a file. What keeps it from looking is answered.
func (k *checker) found(ctx context.Context, l link, file string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p := Problem{Point: l.point.Number, Disk: l.disk.Disk, File: file, What: err.Error()}
	var le *LinkError
	if errors.As(err, &le) {
		p = Problem{Point: le.Point, Disk: le.Disk, File: le.File, What: le.Err.Error()}
	}
	if !slices.Contains(k.report.Problems, p) {
		k.report.Problems = append(k.report.Problems, p)
	}
	return nil
}

// link checks a file and its index. It comes after the link that it builds upon.
func (k *checker) link(ctx context.Context, l link) error {
	f, info, err := k.c.d.open(l.disk.File)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it is missing: %w", formats.ErrCorrupt)
	}
	if err == nil {
		defer f.Close()
		err = errors.Join(k.own(l.disk.File, info), k.c.matches(ctx, l, f, info.Size()))
	}
	if err != nil {
		k.bad[l.disk.File] = true
		return k.found(ctx, l, l.disk.File, err)
	}
	if k.o.Depth >= CheckTables {
		if err := k.tables(ctx, f, info.Size()); err != nil {
			k.bad[l.disk.File] = true
			return k.found(ctx, l, l.disk.File, err)
		}
	}
	if err := k.index(ctx, l); err != nil {
		return k.found(ctx, l, l.disk.Index, err)
	}
	if l.disk.Backing != "" && k.bad[l.disk.Backing] {
		k.bad[l.disk.File] = true // it says so of the one below already
		return nil
	}
	if k.o.Depth < CheckData {
		return nil
	}
	if err := k.data(ctx, l); err != nil {
		k.bad[l.disk.File] = true
		return k.found(ctx, l, l.disk.File, err)
	}
	return nil
}

// own says whether a file is nobody else's.
func (k *checker) own(name string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	id := inode{st.Dev, st.Ino}
	if other, ok := k.seen[id]; ok {
		return fmt.Errorf("it is the same file as %s: %w", other, formats.ErrCorrupt)
	}
	k.seen[id] = name
	return nil
}

func (k *checker) tables(ctx context.Context, f *os.File, size int64) error {
	r, err := qcow2.Format().Check(ctx, f, size, formats.OpenOptions{Layer: true})
	if err == nil && r.Corruptions > 0 {
		what := "its tables contradict themselves"
		if len(r.Problems) > 0 {
			what = r.Problems[0]
		}
		err = fmt.Errorf("%d corruptions, the first: %s: %w", r.Corruptions, what, formats.ErrCorrupt)
	}
	return err
}

// index checks the index of a link: its head, and from CheckTables on all of its pages.
func (k *checker) index(ctx context.Context, l link) error {
	d, closeIndex, err := k.c.openIndex(l)
	if err != nil {
		return err
	}
	if k.o.Depth >= CheckTables {
		var root formats.Digest
		if root, err = d.Root(); err == nil && root.String() != l.disk.Digest {
			err = fmt.Errorf("its sums make the digest %s: %w", root, formats.ErrCorrupt)
		}
		if err != nil {
			err = &LinkError{Point: l.point.Number, Disk: l.disk.Disk, File: l.disk.Index, Err: err}
		}
	}
	return errors.Join(err, closeIndex())
}

// data reads what a link holds itself and compares it with the index of its point. Of what it does not
// hold it is enough that the index has the sums of the point before.
func (k *checker) data(ctx context.Context, l link) error {
	img, err := k.c.Open(ctx, l.point.Number, l.disk.Disk)
	if err != nil {
		return err
	}
	defer img.Close()
	index, closeIndex, err := k.c.openIndex(l)
	if err != nil {
		return err
	}
	defer func() { _ = closeIndex() }()
	touched := Whole(l.disk.Size)
	if !l.disk.Full {
		if touched, err = k.touched(ctx, l, index); err != nil {
			return err
		}
	}
	b := blockCheck{img: img, index: index, workers: k.o.Workers, pace: k.o.Pace, read: func(n int64) { k.read.Add(n) }}
	return b.run(ctx, touched, k.progress)
}

// touched are the blocks of which a delta holds something, and those whose sum is not that of the point
// before.
func (k *checker) touched(ctx context.Context, l link, index *formats.Digests) (Set, error) {
	i := k.c.m.index(l.point.Number)
	before := link{&k.c.m.Points[i-1], k.c.m.Points[i-1].disk(l.disk.Disk)}
	old, closeOld, err := k.c.openIndex(before)
	if err != nil {
		return Whole(l.disk.Size), nil // the index of that link has been reported; all is read
	}
	differ, err := Differ(ctx, old, index)
	if err = errors.Join(err, closeOld()); err != nil {
		return Set{}, err
	}
	f, info, err := k.c.d.open(l.disk.File)
	if err != nil {
		return Set{}, err
	}
	defer f.Close()
	layer, err := qcow2.Open(ctx, f, info.Size(), formats.OpenOptions{Layer: true})
	if err != nil {
		return Set{}, err
	}
	defer layer.Close()
	var held Set
	for e, err := range layer.Extents(ctx, 0, layer.Size()) {
		if err == nil && e.Kind != formats.Absent {
			err = held.Add(e.Off, e.Len)
		}
		if err != nil {
			return Set{}, err
		}
	}
	return held.Align(formats.BlockSize, l.disk.Size).Union(differ), nil
}

// strays finds files with names of the chain that no point has.
func (k *checker) strays() error {
	names, err := k.c.d.names()
	if err != nil {
		return err
	}
	known := k.c.m.files()
	for _, name := range names {
		if _, ok := known[name]; !ok && fileForm.MatchString(name) {
			k.report.Strays = append(k.report.Strays, name)
		}
	}
	return nil
}
