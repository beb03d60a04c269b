package formats

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Journal is what is durable of a copy in progress: its last checkpoint, in a small file beside the
// target. It has two slots that take turns, so a crash in the middle of one leaves the other.
//
// A slot is 4096 bytes: CRC-32C of the rest, sequence number (8 bytes), length (4) and that many
// bytes of JSON; numbers are big-endian.
type Journal struct {
	f   File
	id  string
	seq uint64
}

const (
	slotSize = 4096
	slotHead = 16
)

type journalEntry struct {
	ID         string     `json:"id"`
	Checkpoint Checkpoint `json:"checkpoint"`
}

// OpenJournal opens or begins the journal of the copy that id names: everything that the bytes
// already written depend on (the source and its snapshot, the size, the options of the target). It
// answers the last durable checkpoint of that copy, or the zero Checkpoint where there is none, or
// where the journal is of another copy: then everything is written again.
func OpenJournal(f File, id string) (*Journal, Checkpoint, error) {
	j := &Journal{f: f, id: id}
	var best journalEntry
	for i := range int64(2) {
		e, seq, err := readSlot(f, i)
		if err != nil {
			return nil, Checkpoint{}, fmt.Errorf("journal: %w", err)
		}
		if seq > j.seq {
			j.seq, best = seq, e
		}
	}
	if best.ID == id {
		return j, best.Checkpoint, nil
	}
	// The file gets its full size now, so that recording moves no metadata of the file system.
	if err := f.Truncate(0); err != nil {
		return nil, Checkpoint{}, fmt.Errorf("journal: %w", err)
	}
	j.seq = 0
	for range 2 {
		if err := j.Record(Checkpoint{}); err != nil {
			return nil, Checkpoint{}, err
		}
	}
	return j, Checkpoint{}, nil
}

// readSlot reads slot i; sequence 0 is an empty or torn one.
func readSlot(f File, i int64) (journalEntry, uint64, error) {
	var (
		b [slotSize]byte
		e journalEntry
	)
	n, err := f.ReadAt(b[:], i*slotSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return e, 0, err
	}
	if n < slotSize || binary.BigEndian.Uint32(b[:]) != crc32.Checksum(b[4:], castagnoli) {
		return e, 0, nil
	}
	size := binary.BigEndian.Uint32(b[12:])
	if size > slotSize-slotHead || json.Unmarshal(b[slotHead:slotHead+size], &e) != nil {
		return journalEntry{}, 0, nil
	}
	return e, binary.BigEndian.Uint64(b[4:]), nil
}

// Record makes cp durable. What it covers must be durable already.
func (j *Journal) Record(cp Checkpoint) error {
	data, err := json.Marshal(journalEntry{ID: j.id, Checkpoint: cp})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if len(data) > slotSize-slotHead {
		return fmt.Errorf("journal: an entry of %d bytes does not fit", len(data))
	}
	j.seq++
	var b [slotSize]byte
	binary.BigEndian.PutUint64(b[4:], j.seq)
	binary.BigEndian.PutUint32(b[12:], uint32(len(data)))
	copy(b[slotHead:], data)
	binary.BigEndian.PutUint32(b[:], crc32.Checksum(b[4:], castagnoli))
	if _, err := j.f.WriteAt(b[:], int64(j.seq%2)*slotSize); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
