package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

// What is asked for of the daemon, for what was said on the command line.
func TestConversionRequest(t *testing.T) {
	here, err := filepath.Abs(".")
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		flags  conversion
		images []string
		disks  []job.ConversionDisk
	}{
		{"beside the image", conversion{}, []string{"/in/a.vmdk"}, []job.ConversionDisk{{SourcePath: "/in/a.vmdk", OutputPath: "/in/a.qcow2"}}},
		{"a file", conversion{output: "/out/b"}, []string{"/in/a.vmdk"}, []job.ConversionDisk{{SourcePath: "/in/a.vmdk", OutputPath: "/out/b"}}},
		{"a folder", conversion{output: "/out/"}, []string{"/in/a.vmdk"}, []job.ConversionDisk{{SourcePath: "/in/a.vmdk", OutputPath: "/out/a.qcow2"}}},
		{"several", conversion{output: "/out", from: "VPC"}, []string{"/in/a.vhd", "b"}, []job.ConversionDisk{
			{SourcePath: "/in/a.vhd", SourceFormat: "vhd", OutputPath: "/out/a.qcow2"},
			{SourcePath: here + "/b", SourceFormat: "vhd", OutputPath: "/out/b.qcow2"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.flags.TargetFormat, c.flags.cluster = "QCOW2", "64k"
			require.NoError(t, c.flags.request(c.images))
			require.Equal(t, c.disks, c.flags.Disks)
			require.Equal(t, "qcow2", c.flags.TargetFormat)
			require.EqualValues(t, 65536, c.flags.ClusterSize)
		})
	}
	for name, v := range map[string]conversion{
		"no format": {}, "an unknown format": {Conversion: job.Conversion{TargetFormat: "floppy"}},
		"an unknown source format": {Conversion: job.Conversion{TargetFormat: "raw"}, from: "floppy"},
		"no size":                  {Conversion: job.Conversion{TargetFormat: "raw"}, cluster: "many"},
	} {
		t.Run(name, func(t *testing.T) {
			var usage *codeError
			require.ErrorAs(t, v.request([]string{"a"}), &usage)
			require.Equal(t, exitUsage, usage.code)
		})
	}
}
