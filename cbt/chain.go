package cbt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"sync"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
)

// Chain is a folder that holds the disks of a VM at several points: for each disk a base, and then
// deltas, each a qcow2 file whose backing file is that of the point before, by a relative name, so that
// any tool reads a point by opening its file. The files are:
//
//	chain.json               the manifest (see Manifest)
//	disk0-000001.qcow2       disk0 at point 1: in full, or what changed of it since the point before
//	disk0-000001.digests     the index of disk0 at point 1 (see formats.Digests)
//	.lock                    taken shared to read, and alone to change the chain
//	.intent.json             a change that is decided and not carried out yet (see intent)
//	.disk0-000002.qcow2.part a file that is being written, and its journal
//	.disk0-000002.compared.part what a comparison knows so far of disk0 at point 2, and its journal
//
// A file that has its name is never written to again. Changes go through an intent, so that the chain is
// whole at every moment and survives a kill or a crash at any.
//
// A Chain may be used from several goroutines. Images that it opened stay right while it changes; one
// change is made at a time.
type Chain struct {
	d        *folder
	lockFile *os.File
	readOnly bool

	mu      sync.RWMutex    // of what follows, and of the names of files: opening an image holds it to read
	m       *Manifest       // never changed, only replaced
	pending *intent         // of a chain opened to be read: what somebody decided and did not finish
	busy    string          // the change that is being made
	compare map[string]bool // the disks that are being compared
	closed  bool
}

// Options say how a chain is opened or made. Compression and ClusterSize are those of the files that
// will be written; what is there already stays as it is.
type Options struct {
	// ReadOnly takes the chain together with other readers, and changes nothing.
	ReadOnly bool
	// Compression is "zlib", "zstd", or "" for plain. Only Create asks for it.
	Compression string
	// ClusterSize is what a change is rounded to, in bytes; 0: 64 KiB. Only Create asks for it.
	ClusterSize int64
	// Root is the folder, where it was opened already: then dir only names it. It stays the caller's.
	Root *os.Root

	step func(op, name string) error // see folder
}

// Create makes a chain without points in a folder that is there and holds none.
func Create(ctx context.Context, dir string, vm VM, o Options) (*Chain, error) {
	c, err := enter(ctx, dir, o, func(c *Chain) error { return c.found(vm, o) })
	if err != nil {
		return nil, fmt.Errorf("create a chain in %s: %w", dir, err)
	}
	return c, nil
}

// Open opens a chain. Unless it is opened to be read only, a change that was interrupted when it had
// been decided is carried out first.
func Open(ctx context.Context, dir string, o Options) (*Chain, error) {
	c, err := enter(ctx, dir, o, func(c *Chain) (err error) {
		if !o.ReadOnly {
			return c.recover()
		}
		if c.m, err = c.load(); err == nil {
			c.pending, err = c.d.readIntent(c.m)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the chain in %s: %w", dir, err)
	}
	return c, nil
}

func enter(ctx context.Context, dir string, o Options, load func(*Chain) error) (*Chain, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	open := func() (*os.Root, error) { return os.OpenRoot(dir) }
	if o.Root != nil {
		open = func() (*os.Root, error) { return o.Root.OpenRoot(".") }
	}
	root, err := open()
	if err != nil {
		return nil, err
	}
	c := &Chain{d: &folder{root: root, step: o.step}, readOnly: o.ReadOnly}
	if c.lockFile, err = c.d.lock(!o.ReadOnly); err == nil {
		err = load(c)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Chain) found(vm VM, o Options) error {
	if o.ReadOnly {
		return ErrReadOnly
	}
	for _, name := range []string{manifestName, intentName} {
		if is, err := c.d.exists(name); err != nil || is {
			return errors.Join(err, fmt.Errorf("%s: %w", name, ErrExists))
		}
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	m := &Manifest{ID: hex.EncodeToString(id[:]), Generation: 1, VM: vm, Next: 1,
		Compression: o.Compression, ClusterSize: o.ClusterSize, Labels: []Label{}, Points: []State{}}
	if err := m.validate(); err != nil {
		return err
	}
	b, err := seal(m)
	if err != nil {
		return err
	}
	c.m = m
	return c.d.replace(manifestName, b)
}

// Close gives the chain back. Images that it opened stay open.
func (c *Chain) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var err error
	if c.lockFile != nil {
		err = unlock(c.lockFile)
	}
	return errors.Join(err, c.d.root.Close())
}

// Manifest is what the chain is made of. It is the caller's.
func (c *Chain) Manifest() Manifest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return *c.m.clone()
}

// begin takes the chain for a change; done gives it back. A change that failed halfway is finished
// first.
func (c *Chain) begin(what string) (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.take(what); err != nil {
		return nil, err
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy = ""
	}, nil
}

// take is begin with c.mu held to write.
func (c *Chain) take(what string) error {
	switch {
	case c.closed:
		return fmt.Errorf("%s: %w", what, os.ErrClosed)
	case c.readOnly:
		return fmt.Errorf("%s: the chain was %w", what, ErrReadOnly)
	case c.busy != "":
		return fmt.Errorf("%s: the chain is busy, somebody is to %s: %w", what, c.busy, ErrInUse)
	}
	if err := c.recover(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	c.busy = what
	return nil
}

// createOptions are those of a file that the chain writes.
func (c *Chain) createOptions(backing string) formats.CreateOptions {
	o := formats.CreateOptions{Compression: c.m.Compression, ClusterSize: c.m.ClusterSize}
	if backing != "" {
		o.Backing, o.BackingFmt = backing, "qcow2"
	}
	return o
}

// Open opens a disk at a point; ctx bounds the life of the image. An error that is a [LinkError] names
// the file that is missing or damaged.
func (c *Chain) Open(ctx context.Context, number int64, disk string) (formats.Image, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	img, err := c.open(ctx, number, disk)
	if err != nil {
		return nil, fmt.Errorf("open point %d of disk %q: %w", number, disk, err)
	}
	return img, nil
}

func (c *Chain) open(ctx context.Context, number int64, disk string) (formats.Image, error) {
	if c.closed {
		return nil, os.ErrClosed
	}
	links, err := c.m.links(number, disk)
	if err != nil {
		return nil, err
	}
	return c.stack(ctx, links, nil)
}

// stack opens links, the newest first, read through one another; over them lies top, if it is there.
func (c *Chain) stack(ctx context.Context, links []link, top *os.File) (_ formats.Image, err error) {
	var (
		open   qcow2.Layers
		layers []formats.Image
	)
	defer func() {
		for _, l := range layers {
			if err != nil {
				_ = l.Close()
			}
		}
	}()
	for _, l := range slices.Backward(links) {
		f, size, err := c.openLink(ctx, l)
		if err != nil {
			return nil, err
		}
		img, err := open.Open(ctx, f, size)
		if err != nil {
			return nil, l.fail(errors.Join(err, f.Close()))
		}
		layers = append(layers, &layer{img, f, l})
	}
	if top != nil {
		info, err := top.Stat()
		if err != nil {
			return nil, err
		}
		img, err := open.Open(ctx, top, info.Size())
		if err != nil {
			return nil, err
		}
		layers = append(layers, img)
	}
	return Stack(layers...)
}

// layer is a link and its file. What cannot be read names it.
type layer struct {
	*qcow2.Image
	file *os.File
	link link
}

func (l *layer) Close() error { return errors.Join(l.Image.Close(), l.file.Close()) }

func (l *layer) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.Image.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = l.link.fail(err)
	}
	return n, err
}

func (l *layer) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		for e, err := range l.Image.Extents(ctx, off, n) {
			if err != nil {
				err = l.link.fail(err)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (l *layer) ReadPacked(ctx context.Context, off int64, buf []byte) (formats.Packed, int64, error) {
	p, n, err := l.Image.ReadPacked(ctx, off, buf)
	if err != nil {
		err = l.link.fail(err)
	}
	return p, n, err
}

// Index opens the sums of the blocks of a disk at a point: what [Compare] compares with. They must not
// be changed. close gives the file back.
func (c *Chain) Index(number int64, disk string) (index *formats.Digests, close func() error, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	links, err := c.m.links(number, disk)
	if err == nil {
		index, close, err = c.openIndex(links[0])
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the index of point %d of disk %q: %w", number, disk, err)
	}
	return index, close, nil
}
