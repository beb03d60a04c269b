package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"hypersdk/formats"
)

const (
	maxSnapshots     = 65536
	maxSnapshotTable = 16 << 20
	maxSnapshotExtra = 1024
)

// Snapshot is an internal snapshot.
type Snapshot struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Time      time.Time `json:"time"`
	DiskSize  int64     `json:"disk_size"`  // bytes
	StateSize int64     `json:"state_size"` // bytes of the machine's memory that are stored with it
	l1        int64
	l1Entries int64
	end       int64 // of its entry in the table
}

// Snapshots lists the internal snapshots.
func (m *Image) Snapshots() ([]Snapshot, error) {
	var all []Snapshot
	for s, err := range m.eachSnapshot() {
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// enter makes the disk that of a snapshot, found by id or else by name.
func (m *Image) enter(want string) error {
	var found *Snapshot
	for s, err := range m.eachSnapshot() {
		if err != nil {
			return err
		}
		if s.ID == want {
			found = &s
			break
		}
		if s.Name == want && found == nil {
			found = &s
		}
	}
	if found == nil {
		return fmt.Errorf("qcow2: there is no snapshot %q: %w", want, formats.ErrFormat)
	}
	m.l1, m.l1Entries, m.size = found.l1, found.l1Entries, found.DiskSize
	return nil
}

func (m *Image) eachSnapshot() iter.Seq2[Snapshot, error] {
	return func(yield func(Snapshot, error) bool) {
		table := io.NewSectionReader(m.file.r, m.snapshotsOff, min(m.file.size-m.snapshotsOff, maxSnapshotTable))
		r := bufio.NewReader(table)
		at := m.snapshotsOff
		for i := range m.snapshots {
			s, n, err := m.readSnapshot(r)
			if err != nil {
				yield(Snapshot{}, fmt.Errorf("snapshot %d: %w", i, err))
				return
			}
			at += n
			s.end = at
			if !yield(s, nil) {
				return
			}
		}
	}
}

// readSnapshot reads one entry of the snapshot table and answers its length.
func (m *Image) readSnapshot(r *bufio.Reader) (Snapshot, int64, error) {
	be := binary.BigEndian
	var b [40]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Snapshot{}, 0, tableEnd(err)
	}
	l1Off := be.Uint64(b[0:])
	s := Snapshot{
		l1Entries: int64(be.Uint32(b[8:])),
		Time:      time.Unix(int64(be.Uint32(b[16:])), int64(be.Uint32(b[20:]))).UTC(),
		StateSize: int64(be.Uint32(b[32:])),
		DiskSize:  m.header.size,
	}
	extra := int(be.Uint32(b[36:]))
	if extra > maxSnapshotExtra {
		return Snapshot{}, 0, corrupt("%d bytes of extra data", extra)
	}
	idLen, nameLen := int(be.Uint16(b[12:])), int(be.Uint16(b[14:]))
	n := extra + idLen + nameLen
	pad := (8 - (len(b)+n)%8) % 8
	rest := make([]byte, n+pad)
	if m, err := io.ReadFull(r, rest); err != nil && m < n {
		return Snapshot{}, 0, tableEnd(err)
	}
	if extra >= 8 {
		s.StateSize = int64(be.Uint64(rest))
	}
	if extra >= 16 {
		s.DiskSize = int64(be.Uint64(rest[8:]))
	}
	s.ID, s.Name = string(rest[extra:extra+idLen]), string(rest[extra+idLen:n])
	if s.DiskSize < 0 || s.DiskSize > maxDiskSize || s.StateSize < 0 || l1Off > maxDiskSize {
		return Snapshot{}, 0, corrupt("disk of %d bytes, L1 table at %d", s.DiskSize, l1Off)
	}
	s.l1 = int64(l1Off)
	if err := m.validTable("L1 table of a snapshot", s.l1, s.l1Entries*8, maxL1Bytes); err != nil {
		return Snapshot{}, 0, err
	}
	if need := m.l1Need(s.DiskSize); s.l1Entries < need {
		return Snapshot{}, 0, corrupt("the L1 table has %d entries, a disk of %d bytes takes %d", s.l1Entries, s.DiskSize, need)
	}
	return s, int64(len(b) + n + pad), nil
}

func tableEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("the table ends early")
	}
	return err
}
