package vmdk_test

import (
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vmdk"
)

func TestMonolithicSparse(t *testing.T) {
	formatstest.Run(t, formatstest.Harness{
		Format:  sparseOnly(),
		Qemu:    "vmdk",
		Sizes:   []int64{32 << 20, 32<<20 + 512, 97<<20 - 512},
		MaxSize: 1 << 40,
	})
}

// sparseOnly is the format without what a monolithicSparse disk cannot do.
func sparseOnly() formats.Format {
	f := vmdk.Format()
	f.Stream, f.Encode = nil, nil
	return f
}

func TestStreamOptimized(t *testing.T) {
	formatstest.Run(t, formatstest.Harness{
		Format:      vmdk.Format(),
		Options:     formats.CreateOptions{Subformat: vmdk.StreamOptimized},
		Qemu:        "vmdk",
		QemuOptions: []string{"-o", "subformat=streamOptimized"},
		Sizes:       []int64{32<<20 + 512},
		Ascending:   true,
	})
}
