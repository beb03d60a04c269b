package nbd

import (
	"fmt"
	"math"
	"math/bits"
)

// Transmission flags of an export ("Transmission flags").
const (
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagMultiConn   = 1 << 8
)

const (
	// usualMax is the longest request that every server takes ("Block size constraints").
	usualMax = 32 << 20
	maxMin   = 64 << 10
)

// export is what a server says of what it exports.
type export struct {
	size  int64
	flags uint16
	// min and max are the lengths of requests that the server takes, in bytes.
	min, max int64
	// structured says whether replies are; contexts are the ids of the metadata contexts by name.
	structured bool
	contexts   map[string]uint32
}

func (e export) has(flag uint16) bool { return e.flags&flag != 0 }

func (e export) same(o export) bool {
	return e.size == o.size && e.flags == o.flags && e.min == o.min && e.max == o.max && e.structured == o.structured
}

// setSize takes the size from what the server says.
func (e *export) setSize(size uint64) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: an export of %d bytes", ErrProtocol, size)
	}
	e.size = int64(size)
	return nil
}

// limit takes the lengths of requests from what the server says.
func (e *export) limit(least, preferred, most uint32) error {
	switch {
	case bits.OnesCount32(least) != 1 || least > maxMin:
		return fmt.Errorf("%w: a minimum block size of %d", ErrProtocol, least)
	case bits.OnesCount32(preferred) != 1 || preferred < least:
		return fmt.Errorf("%w: a preferred block size of %d where the minimum is %d", ErrProtocol, preferred, least)
	case most < least || most != math.MaxUint32 && most%least != 0:
		return fmt.Errorf("%w: a maximum block size of %d where the minimum is %d", ErrProtocol, most, least)
	}
	e.min, e.max = int64(least), min(int64(most), usualMax)
	return nil
}

// whole checks what is known only once all is said.
func (e *export) whole() error {
	if e.size%e.min != 0 {
		return fmt.Errorf("%w: %d bytes in blocks of %d", ErrProtocol, e.size, e.min)
	}
	return nil
}
