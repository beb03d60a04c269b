package blocks

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// ID is a UUID in the order of its text.
type ID [16]byte

func (id ID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// ParseID reads a UUID, with or without braces.
func ParseID(s string) (ID, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "{"), "}")
	b, err := hex.DecodeString(strings.ReplaceAll(bare, "-", ""))
	if err != nil || len(b) != 16 {
		return ID{}, fmt.Errorf("%q is no UUID", s)
	}
	return ID(b), nil
}

// GUID reads a UUID as Microsoft and VirtualBox store it: its first three parts are little-endian.
func GUID(b []byte) ID {
	return ID{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// PutGUID stores what GUID reads.
func PutGUID(b []byte, id ID) {
	stored := GUID(id[:])
	copy(b, stored[:])
}
