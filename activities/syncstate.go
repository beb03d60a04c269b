package activities

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"hypersdk/providers"
)

// roundName and freshName are hidden beside a target that is kept in sync: what it holds, and the digests
// of the round that is under way while the disk is compared.
func roundName(final string) string { return "." + final + ".round" }
func freshName(final string) string { return digestsName(final) + ".new" }

// roundState says what the hidden file of a disk holds. It is durable before the first byte of a round is
// written, and again once the last one is: what was cut off between is known to be a mixture.
type roundState struct {
	Round int               `json:"round"`
	Whole bool              `json:"whole,omitempty"` // the file and its digests are those of the round
	By    string            `json:"by"`
	Why   string            `json:"why,omitempty"`
	Ref   providers.DiskRef `json:"ref"`
	Size  int64             `json:"size"`
	Inode uint64            `json:"inode,omitempty"` // of the file; 0: it was not opened yet
	// Result is set where Whole is.
	Result *SyncedDisk `json:"result,omitempty"`
}

const maxRoundState = 64 << 10

// readRound reads what the file of a disk holds; what cannot be read is nothing.
func (f *folder) readRound(final string) (roundState, error) {
	var s roundState
	file, err := f.open(roundName(final), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxRoundState))
	if err != nil {
		return s, err
	}
	if json.Unmarshal(b, &s) != nil || s.Whole && s.Result == nil {
		return roundState{}, nil
	}
	return s, nil
}

// writeRound replaces what is known of the file of a disk, durably.
func (f *folder) writeRound(final string, s roundState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	name := roundName(final)
	file, err := f.open(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = f.root.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("state of the round: %w", err)
	}
	return syncDir(f.root)
}

// removeRound removes what is known of the rounds of a disk.
func (f *folder) removeRound(final string) error {
	name := roundName(final)
	return errors.Join(f.remove(name), f.remove(name+".new"), f.remove(freshName(final)))
}

// holds says whether the hidden file of a disk is the one that a state speaks of.
func (f *folder) holds(final string, s roundState) bool {
	st, err := f.root.Lstat(partName(final))
	return err == nil && s.Inode != 0 && inodeOf(st) == s.Inode
}
