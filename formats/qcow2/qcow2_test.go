package qcow2_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/qcow2"
)

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"plain": {Overlay: true},
		"zlib":  {Options: formats.CreateOptions{Compression: "zlib"}, QemuOptions: []string{"-c"}, Overlay: true},
		"zstd":  {Options: formats.CreateOptions{Compression: "zstd"}, QemuOptions: []string{"-c", "-o", "compression_type=zstd"}},
		"preallocated": {
			Options: formats.CreateOptions{Prealloc: "metadata"}, QemuOptions: []string{"-o", "preallocation=metadata"},
			Dense: true, MaxSize: 300 << 20,
		},
		"clusters of 512 bytes, plain": {
			Options: formats.CreateOptions{ClusterSize: 512}, QemuOptions: []string{"-o", "cluster_size=512"},
			MaxSize: 64 << 30, Overlay: true,
		},
		"clusters of 512 bytes, zlib": {
			Options:     formats.CreateOptions{ClusterSize: 512, Compression: "zlib"},
			QemuOptions: []string{"-c", "-o", "cluster_size=512"}, MaxSize: 64 << 30, Overlay: true,
		},
		"clusters of 512 bytes, preallocated": {
			Options: formats.CreateOptions{ClusterSize: 512, Prealloc: "metadata"}, Dense: true, MaxSize: 20 << 20,
		},
		"clusters of 4 KiB, zstd": {
			Options:     formats.CreateOptions{ClusterSize: 4096, Compression: "zstd"},
			QemuOptions: []string{"-c", "-o", "cluster_size=4k,compression_type=zstd"}, MaxSize: 1 << 40,
		},
		"clusters of 2 MiB, plain": {
			Options: formats.CreateOptions{ClusterSize: 2 << 20}, QemuOptions: []string{"-o", "cluster_size=2M"},
		},
		"clusters of 2 MiB, zlib": {
			Options:     formats.CreateOptions{ClusterSize: 2 << 20, Compression: "zlib"},
			QemuOptions: []string{"-c", "-o", "cluster_size=2M"}, MaxSize: 100 << 20,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format, h.Qemu = qcow2.Format(), "qcow2"
			if h.Options.ClusterSize <= 64<<10 {
				h.ExamSize = 3 << 19
			}
			formatstest.Run(t, h)
		})
	}
}

func TestWritesWhatLibqcowReads(t *testing.T) {
	d := formatstest.NewDisk(4, 70<<20)
	for name, o := range map[string]formats.CreateOptions{
		"plain": {}, "zlib": {Compression: "zlib"}, "clusters of 4 KiB": {ClusterSize: 4096}, "preallocated": {Prealloc: "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			f, err := os.Create(path)
			require.NoError(t, err)
			defer f.Close()
			w, err := qcow2.Create(t.Context(), f, d.Size(), o, formats.Checkpoint{})
			require.NoError(t, err)
			_, err = formats.Copy(t.Context(), w, d, formats.CopyOptions{})
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			formatstest.Libyal(t, formatstest.Libqcow, d, d.Size(), path)
		})
	}
}

func TestReadsWhatQemuWrites(t *testing.T) {
	for name, options := range map[string][]string{
		"version 2":             {"-o", "compat=0.10"},
		"version 2, zlib":       {"-c", "-o", "compat=0.10"},
		"refcounts of 1 bit":    {"-o", "refcount_bits=1"},
		"refcounts of 64 bits":  {"-o", "refcount_bits=64"},
		"lazy refcounts":        {"-o", "lazy_refcounts=on"},
		"extended L2":           {"-o", "extended_l2=on"},
		"extended L2, zstd":     {"-c", "-o", "extended_l2=on,compression_type=zstd,cluster_size=16k"},
		"2 MiB, zstd":           {"-c", "-o", "cluster_size=2M,compression_type=zstd"},
		"preallocated in full":  {"-o", "preallocation=full"},
		"nothing taken as zero": {"-S", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			formatstest.ReadsQemu(t, formatstest.Harness{Format: qcow2.Format(), Qemu: "qcow2", QemuOptions: options, MaxSize: 40 << 20})
		})
	}
}
