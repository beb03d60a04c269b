package vspheretest

import (
	"errors"
	"os"
	"syscall"
)

const (
	seekData = 3 // lseek(2): SEEK_DATA
	seekHole = 4 // SEEK_HOLE
)

// dataOf is the grains of a file of size bytes that are no holes.
func dataOf(f *os.File, size int64) (bitmap, error) {
	out := make(bitmap, ((size+grain-1)/grain+7)/8)
	for off := int64(0); off < size; {
		data, err := f.Seek(off, seekData)
		if errors.Is(err, syscall.ENXIO) { // only a hole is left
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		hole, err := f.Seek(data, seekHole)
		if err != nil {
			return nil, err
		}
		for g := data / grain; g <= (min(hole, size)-1)/grain; g++ {
			out[g/8] |= 1 << (g % 8)
		}
		off = hole
	}
	return out, nil
}
