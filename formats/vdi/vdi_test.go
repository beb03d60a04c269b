package vdi_test

import (
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vdi"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"dynamic": {},
		"static": {
			Options:     formats.CreateOptions{Subformat: vdi.Static},
			QemuOptions: []string{"-o", "static=on"},
			Dense:       true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format, h.Qemu = vdi.Format(), "vdi"
			h.Sizes = []int64{mib - 512, mib + 512}
			formatstest.Run(t, h)
		})
	}
}
