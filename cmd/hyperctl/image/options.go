package image

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"hypersdk/formats"
)

// optionNames are what -o knows.
const optionNames = "subformat, compression_type, compression_level, cluster_size, backing_file, backing_fmt, preallocation, adapter_type"

// createOptions reads the values of -o, each a list "name=value,name=value" in which ",," is a comma.
func createOptions(lists []string, compress bool) (formats.CreateOptions, error) {
	var o formats.CreateOptions
	codec := ""
	for _, list := range lists {
		for _, item := range splitOptions(list) {
			name, value, ok := strings.Cut(item, "=")
			if !ok || value == "" {
				return o, usageError("-o %q: options are name=value", item)
			}
			var err error
			switch name {
			case "subformat":
				o.Subformat = value
			case "compression_type":
				codec = value
			case "compression_level":
				o.Level, err = strconv.Atoi(value)
			case "cluster_size":
				o.ClusterSize, err = ParseSize(value)
			case "backing_file":
				o.Backing = value
			case "backing_fmt":
				o.BackingFmt = value
			case "preallocation":
				o.Prealloc = value
			case "adapter_type":
				o.Adapter = value
			default:
				return o, usageError("-o %s: known are %s", name, optionNames)
			}
			if err != nil {
				return o, usageError("-o %s: %q is not a number", name, value)
			}
		}
	}
	switch {
	case compress && codec == "":
		codec = "zlib"
	case !compress && codec != "":
		return o, usageError("-o compression_type needs -c")
	}
	o.Compression = codec
	return o, nil
}

func splitOptions(list string) []string {
	var out []string
	cur := ""
	for len(list) > 0 {
		i := strings.IndexByte(list, ',')
		switch {
		case i < 0:
			cur, list = cur+list, ""
		case strings.HasPrefix(list[i:], ",,"):
			cur, list = cur+list[:i+1], list[i+2:]
		default:
			out, cur, list = append(out, cur+list[:i]), "", list[i+1:]
		}
	}
	return append(out, cur)
}

// ParseSize reads a number of bytes, with one of the suffixes that qemu-img knows.
func ParseSize(s string) (int64, error) {
	if s == "" {
		return 0, errors.New("it is empty")
	}
	shift := 0
	if i := strings.IndexByte("kmgt", s[len(s)-1]|0x20); i >= 0 {
		shift, s = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && (n < 0 || n > (1<<62)>>shift) {
		err = fmt.Errorf("%d is out of range", n)
	}
	return n << shift, err
}
