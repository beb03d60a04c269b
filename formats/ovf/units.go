package ovf

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"hypersdk/formats"
)

// bytesOf is a quantity of allocation units in bytes: "byte * 2^20" (DSP0004, annex C.1), or the words
// of OVF 0.9.
func bytesOf(quantity, units string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(quantity), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("a quantity of %q: %w", quantity, formats.ErrCorrupt)
	}
	factor := int64(1)
	for _, term := range strings.Split(units, "*") {
		f, err := unit(strings.ToLower(strings.TrimSpace(term)))
		if err != nil {
			return 0, fmt.Errorf("units %q: %w", units, err)
		}
		if factor, err = times(factor, f); err != nil {
			return 0, fmt.Errorf("units %q: %w", units, err)
		}
	}
	if n, err = times(n, factor); err != nil {
		return 0, fmt.Errorf("%s of %q: %w", quantity, units, err)
	}
	return n, nil
}

// unit is one term of a product of units.
func unit(s string) (int64, error) {
	switch s {
	case "", "byte", "bytes":
		return 1, nil
	case "kilobytes":
		return 1 << 10, nil
	case "megabytes":
		return 1 << 20, nil
	case "gigabytes":
		return 1 << 30, nil
	case "terabytes":
		return 1 << 40, nil
	}
	base, exponent, power := strings.Cut(s, "^")
	b, err := strconv.ParseInt(strings.TrimSpace(base), 10, 64)
	e := int64(1)
	if err == nil && power {
		e, err = strconv.ParseInt(strings.TrimSpace(exponent), 10, 64)
	}
	if err != nil || b <= 0 || e < 0 || e > 62 {
		return 0, fmt.Errorf("%q is none: %w", s, formats.ErrFormat)
	}
	n := int64(1)
	for range e {
		if n, err = times(n, b); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func times(a, b int64) (int64, error) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, fmt.Errorf("%d times %d is too much: %w", a, b, formats.ErrCorrupt)
	}
	return int64(lo), nil
}
