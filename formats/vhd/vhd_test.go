package vhd_test

import (
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vhd"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// most is the largest disk that a VHD can hold.
const most = 2040 * gib

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"dynamic": {},
		"dynamic in blocks of 512 KiB": {
			Options: formats.CreateOptions{ClusterSize: 512 * kib},
			MaxSize: 2000 * gib,
		},
		"fixed": {
			Options:     formats.CreateOptions{Subformat: vhd.Fixed},
			QemuOptions: []string{"-o", "subformat=fixed,force_size=on"},
			Dense:       true,
		},
		"fixed for Azure": {
			Options:     formats.CreateOptions{Subformat: vhd.Azure},
			QemuOptions: []string{"-o", "subformat=fixed,force_size=on"},
			Unit:        mib,
			Dense:       true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format = vhd.Format()
			h.Qemu = "vpc"
			if h.MaxSize == 0 {
				h.MaxSize = most
			}
			h.Sizes = []int64{2*mib - 512, 2 * mib, 127 * gib}
			if h.QemuOptions == nil {
				h.QemuOptions = []string{"-o", "force_size=on"}
			}
			formatstest.Run(t, h)
		})
	}
}
