package vhdx_test

import (
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhdx"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"dynamic": {
			Sizes: []int64{32*mib - 512, 32*mib + 512},
			Dense: true, // 32 MiB around each byte written
		},
		"dynamic in blocks of 1 MiB": {
			Options:     formats.CreateOptions{ClusterSize: mib},
			Sizes:       []int64{4 * gib, 4*gib + 512},
			QemuOptions: []string{"-o", "block_size=1M"},
		},
		"fixed": {
			Options:     formats.CreateOptions{Subformat: vhdx.Fixed},
			QemuOptions: []string{"-o", "subformat=fixed"},
			Dense:       true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format, h.Qemu = vhdx.Format(), "vhdx"
			if h.MaxSize == 0 {
				h.MaxSize = 64 * tib
			}
			formatstest.Run(t, h)
		})
	}
}
