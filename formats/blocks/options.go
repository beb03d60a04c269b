package blocks

import (
	"fmt"
	"slices"

	"hypersdk/formats"
)

// Choose checks the options of a new image: which subformat (the first where none is named), and
// nothing that these formats cannot store. cluster are the block sizes allowed, the usual one first.
func Choose(format string, o formats.CreateOptions, subformats []string, cluster []int64) (string, int64, error) {
	sub, block := o.Subformat, o.ClusterSize
	if sub == "" {
		sub = subformats[0]
	}
	if block == 0 {
		block = cluster[0]
	}
	switch {
	case !slices.Contains(subformats, sub):
		return "", 0, fmt.Errorf("%s: subformat %q, which is not one of %q: %w", format, sub, subformats, formats.ErrFormat)
	case !slices.Contains(cluster, block):
		return "", 0, fmt.Errorf("%s: cluster size %d, which is not one of %d: %w", format, block, cluster, formats.ErrFormat)
	case o.Compression != "":
		return "", 0, fmt.Errorf("%s: compression %q: %w", format, o.Compression, formats.ErrFormat)
	case o.Backing != "":
		return "", 0, fmt.Errorf("%s: writing a differencing disk upon %q: %w", format, o.Backing, formats.ErrFormat)
	case o.Prealloc != "" && o.Prealloc != "off":
		return "", 0, fmt.Errorf("%s: preallocation %q (subformat %q stores every block): %w", format, o.Prealloc, subformats[1], formats.ErrFormat)
	}
	return sub, block, nil
}

// Up is n rounded up to a multiple of unit.
func Up(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
