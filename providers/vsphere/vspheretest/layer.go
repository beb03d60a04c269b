package vspheretest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// grain is the unit in which a delta holds what was written since its parent was frozen.
const grain = 64 << 10

// layer is one link of a disk's chain of files: a base (name.vmdk and name-flat.vmdk, the content as
// it is) or a delta on a parent (name-000001.vmdk and name-000001-delta.vmdk). A delta's file has
// each grain at its offset in the disk, holes where the parent counts, and a bitmap of the grains
// that it holds after the last one; on a real host it would be in a sparse format of VMware's, which
// nobody reads over HTTP.
//
// Nothing here is kept in memory but the bitmap: 2 MiB for a disk of 1 TiB.
type layer struct {
	dir    string
	name   string // of the descriptor
	size   int64  // of the disk in bytes
	parent *layer // nil: a base
	have   []byte // bitmap of the grains that a delta holds
	writes int    // since it was loaded
}

// extent is the name of the file with the bytes.
func (l *layer) extent() string {
	kind := "-flat.vmdk"
	if l.parent != nil {
		kind = "-delta.vmdk"
	}
	return strings.TrimSuffix(l.name, ".vmdk") + kind
}

func (l *layer) path() string { return filepath.Join(l.dir, l.extent()) }

func (l *layer) grains() int64 { return (l.size + grain - 1) / grain }

// newDelta makes an empty delta on top of parent.
func newDelta(name string, parent *layer) (*layer, error) {
	l := &layer{dir: parent.dir, name: name, size: parent.size, parent: parent}
	l.have = make([]byte, (l.grains()+7)/8)
	f, err := os.OpenFile(l.path(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(l.grains()*grain + int64(len(l.have))); err != nil {
		return nil, err
	}
	return l, writeDescriptor(l)
}

// load reads the bitmap of a delta that is on the disk already.
func (l *layer) load() error {
	if l.parent == nil {
		return nil
	}
	f, err := os.Open(l.path())
	if err != nil {
		return err
	}
	defer f.Close()
	l.have = make([]byte, (l.grains()+7)/8)
	if _, err := f.ReadAt(l.have, l.grains()*grain); err != nil {
		return fmt.Errorf("bitmap of %s: %w", l.extent(), err)
	}
	return nil
}

func (l *layer) remove() error {
	if err := os.Remove(l.path()); err != nil {
		return err
	}
	return os.Remove(filepath.Join(l.dir, l.name))
}

// holds says whether the bytes of grain g are in this layer, rather than in its parent.
func (l *layer) holds(g int64) bool {
	return l.parent == nil || l.have[g/8]&(1<<(g%8)) != 0
}

// holder finds the layer that has the byte at off, and for how many of the n bytes from there it is
// the same one.
func (l *layer) holder(off, n int64) (*layer, int64) {
	find := func(g int64) *layer {
		h := l
		for !h.holds(g) {
			h = h.parent
		}
		return h
	}
	h := find(off / grain)
	end := (off/grain + 1) * grain
	for end < off+n && find(end/grain) == h {
		end += grain
	}
	return h, min(end-off, n)
}

// readAt reads through the chain. p lies within the disk.
func (l *layer) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		h, n := l.holder(off, int64(len(p)))
		if err := h.readFile(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (l *layer) readFile(p []byte, off int64) error {
	f, err := os.Open(l.path())
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(p, off)
	return err
}

// writeAt writes into this layer alone. What p covers only in part of a grain is completed from the
// chain below. p lies within the disk.
func (l *layer) writeAt(p []byte, off int64) error {
	f, err := os.OpenFile(l.path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	l.writes++
	if l.parent == nil {
		_, err = f.WriteAt(p, off)
		return err
	}
	for len(p) > 0 {
		g := off / grain
		n := min((g+1)*grain-off, int64(len(p)))
		if !l.holds(g) && n < grain {
			if err := l.copyUp(f, g); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(p[:n], off); err != nil {
			return err
		}
		if err := l.hold(f, g); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// copyUp copies grain g from the chain below into f, the layer's own file.
func (l *layer) copyUp(f *os.File, g int64) error {
	buf := make([]byte, min(grain, l.size-g*grain))
	if err := l.parent.readAt(buf, g*grain); err != nil {
		return err
	}
	_, err := f.WriteAt(buf, g*grain)
	return err
}

// hold marks grain g as held, in memory and in f, after its bytes are there.
func (l *layer) hold(f *os.File, g int64) error {
	l.have[g/8] |= 1 << (g % 8)
	_, err := f.WriteAt(l.have[g/8:g/8+1], l.grains()*grain+g/8)
	return err
}

// merge copies all that child, a delta on l, holds into l. To do it again after an interruption gives
// the same bytes, and what is read through child never changes meanwhile.
func (l *layer) merge(child *layer) error {
	src, err := os.Open(child.path())
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(l.path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	l.writes++
	buf := make([]byte, grain)
	for g := range child.grains() {
		if !child.holds(g) {
			continue
		}
		p := buf[:min(grain, l.size-g*grain)]
		if _, err := src.ReadAt(p, g*grain); err != nil {
			return err
		}
		if _, err := dst.WriteAt(p, g*grain); err != nil {
			return err
		}
		if l.parent != nil {
			if err := l.hold(dst, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// used is the space that the layer's file takes.
func (l *layer) used() int64 {
	fi, err := os.Stat(l.path())
	if err != nil {
		return 0
	}
	return allocated(fi)
}

// createBase makes a base of size bytes with a content. A size of 0 is that of the content.
func createBase(dir, name string, size int64, content Content) (*layer, error) {
	l := &layer{dir: dir, name: name}
	f, err := os.OpenFile(l.path(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if content != nil {
		if err := content(f, size); err != nil {
			return nil, fmt.Errorf("content of %s: %w", l.extent(), err)
		}
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	// The capacity of a disk is counted in KiB.
	if l.size = (max(size, end) + 1023) &^ 1023; l.size == 0 || size > 0 && end > size {
		return nil, fmt.Errorf("size of %s: %d bytes asked for, %d bytes of content", l.extent(), size, end)
	}
	if err := f.Truncate(l.size); err != nil {
		return nil, err
	}
	return l, writeDescriptor(l)
}

// grow makes a base longer.
func (l *layer) grow(size int64) error {
	if err := os.Truncate(l.path(), size); err != nil {
		return err
	}
	l.size = size
	l.writes++
	return writeDescriptor(l)
}
