package qcow2_test

import (
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"plain":         {Overlay: true},
		"zlib":          {Options: formats.CreateOptions{Compression: "zlib"}, QemuOptions: []string{"-c"}, Overlay: true},
		"zstd":          {Options: formats.CreateOptions{Compression: "zstd"}, QemuOptions: []string{"-c", "-o", "compression_type=zstd"}},
		"metadata":      {Options: formats.CreateOptions{Prealloc: "metadata"}, QemuOptions: []string{"-o", "preallocation=metadata"}, Dense: true, MaxSize: 300 << 20},
		"512 bytes":     {Options: formats.CreateOptions{ClusterSize: 512}, QemuOptions: []string{"-o", "cluster_size=512"}, MaxSize: 64 << 30, Overlay: true},
		"512 zlib":      {Options: formats.CreateOptions{ClusterSize: 512, Compression: "zlib"}, QemuOptions: []string{"-c", "-o", "cluster_size=512"}, MaxSize: 64 << 30, Overlay: true},
		"4 KiB zstd":    {Options: formats.CreateOptions{ClusterSize: 4096, Compression: "zstd"}, QemuOptions: []string{"-c", "-o", "cluster_size=4k,compression_type=zstd"}, MaxSize: 1 << 40},
		"2 MiB":         {Options: formats.CreateOptions{ClusterSize: 2 << 20}, QemuOptions: []string{"-o", "cluster_size=2M"}},
		"2 MiB zlib":    {Options: formats.CreateOptions{ClusterSize: 2 << 20, Compression: "zlib"}, QemuOptions: []string{"-c", "-o", "cluster_size=2M"}},
		"512 metadata":  {Options: formats.CreateOptions{ClusterSize: 512, Prealloc: "metadata"}, Dense: true, MaxSize: 20 << 20, QemuOptions: []string{"-o", "extended_l2=on"}},
		"1 bit version": {MaxSize: 1 << 30, QemuOptions: []string{"-o", "refcount_bits=1"}},
		"compat 0.10":   {MaxSize: 1 << 30, QemuOptions: []string{"-o", "compat=0.10"}},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format, h.Qemu = qcow2.Format(), "qcow2"
			formatstest.Run(t, h)
		})
	}
}
