package vspheretest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

// Image is the content of a disk: as the guest sees it now, or as a snapshot has frozen it. It stays
// valid while there is the VM, or the snapshot.
type Image struct {
	vm       *machine
	disk     *disk
	snapshot *snapshot // nil: now
}

// Disk is the content of disk number i (from 0) of a VM as its guest sees it.
func (s *Server) Disk(vm string, i int) (*Image, error) {
	m, err := s.machine(vm)
	if err != nil {
		return nil, err
	}
	d, err := m.disk(i)
	return &Image{vm: m, disk: d}, err
}

// DiskAt is the content of a disk at the moment of a snapshot, which is named by its id or name.
func (s *Server) DiskAt(vm string, i int, snapshot string) (*Image, error) {
	m, err := s.machine(vm)
	if err != nil {
		return nil, err
	}
	d, err := m.disk(i)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	snap, err := m.findSnapshot(snapshot)
	if err != nil {
		return nil, err
	}
	if snap.layers[d.key] == nil {
		return nil, fmt.Errorf("vspheretest: disk %d of VM %q has no part in snapshot %q", i, m.spec.Name, snapshot)
	}
	return &Image{vm: m, disk: d, snapshot: snap}, nil
}

func (m *machine) disk(i int) (*disk, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if i < 0 || i >= len(m.disks) {
		return nil, fmt.Errorf("vspheretest: VM %q has no disk %d, it has %d disks", m.spec.Name, i, len(m.disks))
	}
	return m.disks[i], nil
}

// Size is that of the disk in bytes.
func (i *Image) Size() int64 { return i.disk.layers[0].size }

// Key is the key of the disk among the devices of its VM.
func (i *Image) Key() int32 { return i.disk.key }

// layer is the one that the content is read through. The VM is locked.
func (i *Image) layer() *layer {
	if i.snapshot != nil {
		return i.snapshot.layers[i.disk.key]
	}
	return i.disk.live
}

// used is the space that the content takes.
func (i *Image) used() (n int64) {
	i.vm.mu.RLock()
	defer i.vm.mu.RUnlock()
	for l := i.layer(); l != nil; l = l.parent {
		n += l.used()
	}
	return n
}

// version is a name that changes whenever the content may have changed.
func (i *Image) version() string {
	i.vm.mu.RLock()
	defer i.vm.mu.RUnlock()
	sum := sha256.New()
	for l := i.layer(); l != nil; l = l.parent {
		modified := ""
		if fi, err := os.Stat(l.path()); err == nil {
			modified = fi.ModTime().String()
		}
		fmt.Fprintf(sum, "%s\x00%s\x00%d\x00", l.path(), modified, l.writes)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// ReadAt is io.ReaderAt.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vspheretest: read at the negative offset %d", off)
	}
	i.vm.mu.RLock()
	defer i.vm.mu.RUnlock()
	if i.snapshot != nil && !i.vm.holds(i.snapshot) {
		return 0, fmt.Errorf("vspheretest: snapshot %s has been removed", i.snapshot.ref.Value)
	}
	l := i.layer()
	n := min(int64(len(p)), max(0, l.size-off))
	if err := l.readAt(p[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (m *machine) holds(snap *snapshot) bool {
	for _, s := range m.snapshots {
		if s == snap {
			return true
		}
	}
	return false
}

// GuestWrite is the guest of a VM writing p at off of disk number i: into the delta while there is a
// snapshot, into the base otherwise.
func (s *Server) GuestWrite(vm string, i int, off int64, p []byte) error {
	m, err := s.machine(vm)
	if err != nil {
		return err
	}
	d, err := m.disk(i)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off+int64(len(p)) > d.live.size {
		return fmt.Errorf("vspheretest: guest write of %d bytes at %d: the disk has %d bytes", len(p), off, d.live.size)
	}
	if err := d.live.writeAt(p, off); err != nil {
		return fmt.Errorf("vspheretest: guest write: %w", err)
	}
	d.wrote(off, int64(len(p)))
	return nil
}

// Snapshot is a snapshot that a VM has.
type Snapshot struct {
	VM          string `json:"vm"`
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Parent      string `json:"parent,omitempty"` // id
	Quiesced    bool   `json:"quiesced,omitempty"`
}

// Snapshots is the snapshots of a VM, parents before children; of all VMs for "".
func (s *Server) Snapshots(vm string) ([]Snapshot, error) {
	machines, err := s.some(vm)
	if err != nil {
		return nil, err
	}
	out := []Snapshot{}
	for _, m := range machines {
		m.mu.RLock()
		for _, snap := range m.snapshots {
			one := Snapshot{VM: m.spec.Name, ID: snap.ref.Value, Name: snap.name, Description: snap.description, Quiesced: snap.quiesced}
			if snap.parent != nil {
				one.Parent = snap.parent.ref.Value
			}
			out = append(out, one)
		}
		m.mu.RUnlock()
	}
	return out, nil
}

// some is the machine of a VM, or all for "", in the order of their ids.
func (s *Server) some(vm string) ([]*machine, error) {
	if vm != "" {
		m, err := s.machine(vm)
		return []*machine{m}, err
	}
	return s.all(), nil
}
