package vmdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
	"hypersdk/formats/raw"
)

// Open reads the disk stored in r.
func Open(ctx context.Context, r io.ReaderAt, size int64, o formats.OpenOptions) (formats.Image, error) {
	d, err := load(blocks.File{ReaderAt: r, Size: size})
	if err != nil {
		return nil, fmt.Errorf("vmdk: %w", err)
	}
	return d.open(ctx, o, nil)
}

// disk is a VMDK whose descriptor, or header, is read.
type disk struct {
	file       blocks.File
	descriptor *Descriptor // nil: a stream that has none
	header     header      // of the extent in this file
	grains     *grains     // likewise; nil: the extents are other files
}

// load reads what a file says of the disk that begins in it.
func load(f blocks.File) (*disk, error) {
	head := make([]byte, min(max(f.Size, 0), sector))
	if err := f.ReadFull(head, 0); err != nil {
		return nil, err
	}
	switch {
	case isSparse(head):
		return loadSparse(f)
	case isCOWD(head), isSE(head):
		return nil, fmt.Errorf("this is an extent of a disk, open the descriptor that names it: %w", formats.ErrFormat)
	case !beginsDescriptor(head):
		return nil, fmt.Errorf("neither a descriptor nor an extent begins here: %w", formats.ErrFormat)
	}
	if f.Size > maxDescriptor {
		return nil, fmt.Errorf("descriptor: %d bytes long: %w", f.Size, formats.ErrCorrupt)
	}
	d, err := readDescriptor(f, 0, f.Size)
	if err != nil {
		return nil, err
	}
	return &disk{file: f, descriptor: d}, nil
}

func readDescriptor(f blocks.File, off, n int64) (*Descriptor, error) {
	b := make([]byte, min(n, maxDescriptor))
	if err := f.ReadFull(b, off); err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	return parseDescriptor(b)
}

// loadSparse reads a sparse extent that has its descriptor inside.
func loadSparse(f blocks.File) (*disk, error) {
	g, h, err := sparse(f)
	if err != nil {
		return nil, err
	}
	d := &disk{file: f, header: h, grains: g}
	if h.descriptor != 0 && h.descriptorSz != 0 {
		if d.descriptor, err = readDescriptor(f, int64(h.descriptor)*sector, int64(h.descriptorSz)*sector); err != nil {
			return nil, err
		}
	}
	switch {
	case d.descriptor == nil && (g == nil || !g.packed):
		return nil, fmt.Errorf("this is an extent of a disk, open the descriptor that names it: %w", formats.ErrFormat)
	case g != nil && d.descriptor != nil && len(d.descriptor.Extents) > 1:
		return nil, fmt.Errorf("descriptor: %d extents, and it is inside one of them: %w", len(d.descriptor.Extents), formats.ErrFormat)
	}
	return d, nil
}

func (d *disk) hasParent() bool { return d.descriptor != nil && d.descriptor.HasParent() }

// open makes an Image; above are the names of the files that led to this one.
func (d *disk) open(ctx context.Context, o formats.OpenOptions, above []string) (formats.Image, error) {
	if o.Snapshot != "" {
		return nil, fmt.Errorf("vmdk: snapshot %q: a VMDK has none inside, a snapshot is a file of its own: %w", o.Snapshot, formats.ErrFormat)
	}
	m := &image{ctx: ctx, delta: d.hasParent()}
	if err := d.extents(ctx, m, o); err != nil {
		return nil, errors.Join(fmt.Errorf("vmdk: %w", err), m.Close())
	}
	if m.delta && !o.Layer {
		p, err := d.parent(ctx, o, above)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.parent = p
	}
	for _, e := range m.extents {
		if e.grains != nil && e.grains.packed {
			return packedImage{m}, nil
		}
	}
	return m, nil
}

func (d *disk) parent(ctx context.Context, o formats.OpenOptions, above []string) (*blocks.Parent, error) {
	c := d.descriptor
	return blocks.FindParent(blocks.Search{
		Format: "vmdk",
		Names:  blocks.Names([]string{c.Parent}, nil),
		What:   fmt.Sprintf("%q with content id %08x", c.Parent, c.ParentCID),
		Open: func(f formats.Opened, o formats.OpenOptions, above []string) (formats.Image, error) {
			p, err := load(blocks.File{ReaderAt: f, Size: f.Size})
			if err != nil {
				return nil, err
			}
			if p.descriptor == nil || p.descriptor.CID != c.ParentCID {
				return nil, fmt.Errorf("its content id is another one, it was changed or replaced: %w", blocks.ErrStranger)
			}
			return p.open(ctx, o, above)
		},
	}, o, above)
}

// extents opens the files that the disk is made of.
func (d *disk) extents(ctx context.Context, m *image, o formats.OpenOptions) error {
	if d.grains != nil {
		m.add(extent{grains: d.grains}, d.grains.size)
		return nil
	}
	for i, e := range d.descriptor.Extents {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		x, err := openExtent(ctx, e, o)
		if err != nil {
			return fmt.Errorf("extent %d (%s %q): %w", i+1, e.Type, e.Name, err)
		}
		m.add(x, e.Sectors*sector)
	}
	return nil
}

// extent is a stretch of a disk that one file holds.
type extent struct {
	off, end int64 // of the disk
	grains   *grains
	// Of a flat one: its file as a disk, and where in it the extent begins. Neither this nor grains:
	// zeros.
	flat   formats.Image
	flatAt int64
	file   io.Closer // nil: the caller's
}

func openExtent(ctx context.Context, e Extent, o formats.OpenOptions) (extent, error) {
	if e.Access == "NOACCESS" && e.Type != "ZERO" {
		return extent{}, fmt.Errorf("the descriptor says that it must not be read: %w", formats.ErrFormat)
	}
	switch e.Type {
	case "ZERO":
		return extent{}, nil
	case "FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE":
	default:
		return extent{}, fmt.Errorf("a type that is not known, or a device: %w", formats.ErrFormat)
	}
	if o.Beside == nil {
		return extent{}, fmt.Errorf("no file beside the image may be opened: %w", formats.ErrFormat)
	}
	f, err := o.Beside(e.Name)
	if err != nil {
		return extent{}, err
	}
	x, err := e.in(ctx, f)
	if err != nil {
		return extent{}, errors.Join(err, f.Close())
	}
	x.file = f
	return x, nil
}

// in reads the extent in its file.
func (e Extent) in(ctx context.Context, f formats.Opened) (x extent, err error) {
	file := blocks.File{ReaderAt: f.ReaderAt, Size: f.Size}
	switch e.Type {
	case "FLAT", "VMFS":
		if !file.Holds(e.Offset*sector, e.Sectors*sector) {
			return x, fmt.Errorf("%d sectors from sector %d on, the file has %d bytes: %w", e.Sectors, e.Offset, f.Size, formats.ErrCorrupt)
		}
		x.flatAt = e.Offset * sector
		x.flat, err = raw.Open(ctx, f.ReaderAt, f.Size, formats.OpenOptions{})
		return x, err
	case "SESPARSE":
		x.grains, err = seSparse(file)
	default:
		head := make([]byte, min(f.Size, 4))
		if err := file.ReadFull(head, 0); err != nil {
			return x, err
		}
		if isCOWD(head) {
			x.grains, err = cowd(file)
		} else if x.grains, _, err = sparse(file); err == nil && x.grains == nil {
			err = fmt.Errorf("header: capacity of 0 sectors: %w", formats.ErrCorrupt)
		}
	}
	if err == nil && x.grains.size < e.Sectors*sector {
		err = fmt.Errorf("header: %d sectors, the descriptor has %d: %w", x.grains.size/sector, e.Sectors, formats.ErrCorrupt)
	}
	return x, err
}

// image is a disk that is open.
type image struct {
	ctx     context.Context
	extents []extent // tile the disk
	size    int64
	delta   bool           // what it does not hold is the parent's
	parent  *blocks.Parent // nil: this is one layer, or there is none

	unpackers sync.Pool // of *unpacker

	mu     sync.Mutex
	recent []*grains // whose tables are in memory, where there are many
}

func (m *image) add(e extent, n int64) {
	e.off, e.end = m.size, m.size+n
	m.size += n
	m.extents = append(m.extents, e)
}

func (m *image) Size() int64 { return m.size }

// Close closes the parents and the files that were opened beside the image.
func (m *image) Close() error {
	var err error
	if m.parent != nil {
		err = m.parent.Close()
	}
	for _, e := range m.extents {
		if e.file != nil {
			err = errors.Join(err, e.file.Close())
		}
	}
	return err
}

// at is the extent that holds byte off of the disk.
func (m *image) at(off int64) *extent {
	i := sort.Search(len(m.extents), func(i int) bool { return m.extents[i].end > off })
	e := &m.extents[i]
	if e.grains != nil && len(m.extents) > keepTables {
		m.use(e.grains)
	}
	return e
}

// keepTables is how many extents may keep pages of their tables in memory, a quarter of a MiB each.
const keepTables = 32

// use notes that an extent is used now, and gives up the tables of the one that was not for longest.
func (m *image) use(g *grains) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.recent)
	if n > 0 && m.recent[n-1] == g {
		return
	}
	for i, r := range m.recent {
		if r == g {
			copy(m.recent[i:], m.recent[i+1:])
			m.recent[n-1] = g
			return
		}
	}
	if n == keepTables {
		m.recent[0].pages.Store(nil)
		m.recent = append(m.recent[:0], m.recent[1:]...)
	}
	m.recent = append(m.recent, g)
}

// name says which extent something is wrong with, where there are several.
func (m *image) name(e *extent, err error) error {
	if len(m.extents) == 1 {
		return fmt.Errorf("vmdk: %w", err)
	}
	return fmt.Errorf("vmdk: extent of [%d, %d): %w", e.off, e.end, err)
}
