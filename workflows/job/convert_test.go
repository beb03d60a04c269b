package job_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

func TestConversionFaults(t *testing.T) {
	disk := job.ConversionDisk{SourcePath: "/in/a.vmdk", OutputPath: "/out/a.qcow2"}
	caps := job.Caps{Formats: []string{"qcow2", "raw", "vmdk"}}
	for _, c := range []struct {
		name   string
		change func(*job.Conversion)
		fields []string
	}{
		{"good", func(*job.Conversion) {}, nil},
		{"all of it", func(c *job.Conversion) {
			c.Compress, c.CompressionType, c.CompressionLevel, c.ClusterSize, c.Preallocation = true, "zstd", 3, 65536, "metadata"
			c.AllowDir, c.LimitMBps, c.Priority, c.Workers = "/in", 10, 100, 4
		}, nil},
		{"no format", func(c *job.Conversion) { c.TargetFormat = "" }, []string{"target_format"}},
		{"unknown formats", func(c *job.Conversion) { c.TargetFormat, c.Disks[0].SourceFormat = "img", "dmg" }, []string{"target_format", "disks[0].source_format"}},
		{"no disks", func(c *job.Conversion) { c.Disks = nil }, []string{"disks"}},
		{"too many disks", func(c *job.Conversion) { c.Disks = make([]job.ConversionDisk, 65) }, []string{"disks"}},
		{"relative paths", func(c *job.Conversion) { c.Disks[0] = job.ConversionDisk{SourcePath: "a", OutputPath: "../b"} },
			[]string{"disks[0].source_path", "disks[0].output_path"}},
		{"a path that leads upwards", func(c *job.Conversion) { c.Disks[0].SourcePath = "/in/../etc/a" }, []string{"disks[0].source_path"}},
		{"a root for a file", func(c *job.Conversion) { c.Disks[0].OutputPath = "/" }, []string{"disks[0].output_path"}},
		{"a name without room for hidden ones", func(c *job.Conversion) { c.Disks[0].OutputPath = "/" + strings.Repeat("a", 231) }, []string{"disks[0].output_path"}},
		{"a target that is read", func(c *job.Conversion) { c.Disks[0].OutputPath = "/in/a.vmdk" }, []string{"disks[0].output_path"}},
		{"a target that another disk reads", func(c *job.Conversion) {
			c.Disks = append(c.Disks, job.ConversionDisk{SourcePath: "/out/a.qcow2", OutputPath: "/out/c"})
		}, []string{"disks[0].output_path"}},
		{"the same twice", func(c *job.Conversion) { c.Disks = append(c.Disks, c.Disks[0]) }, []string{"disks[1].source_path", "disks[1].output_path"}},
		{"a codec without compression", func(c *job.Conversion) { c.CompressionType, c.CompressionLevel = "zstd", 1 }, []string{"compression_type", "compression_level"}},
		{"an unknown codec", func(c *job.Conversion) { c.Compress, c.CompressionType = true, "lzma" }, []string{"compression_type"}},
		{"two files", func(c *job.Conversion) { c.Subformat = "monolithicFlat" }, []string{"subformat"}},
		{"clusters", func(c *job.Conversion) { c.ClusterSize = 65537 }, []string{"cluster_size"}},
		{"a relative folder", func(c *job.Conversion) { c.AllowDir = "images" }, []string{"allow_dir"}},
		{"numbers", func(c *job.Conversion) { c.Priority, c.Workers, c.LimitMBps = 101, -1, -1 }, []string{"priority", "workers", "limit_mbps"}},
		{"long paths", func(c *job.Conversion) {
			for i := range 20 {
				c.Disks = append(c.Disks, job.ConversionDisk{
					SourcePath: "/" + strings.Repeat("a/", 1900) + string(rune('a'+i)), OutputPath: "/out/" + string(rune('a'+i)),
				})
			}
		}, []string{"disks"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := job.Conversion{TargetFormat: "qcow2", Disks: []job.ConversionDisk{disk}}
			c.change(&v)
			var fields []string
			for _, f := range v.Validate(caps) {
				fields = append(fields, f.Field)
			}
			require.ElementsMatch(t, c.fields, fields)
		})
	}
}

func TestConversionAsDefinition(t *testing.T) {
	c := job.Conversion{TargetFormat: "qcow2", Compress: true, Priority: 7, Disks: []job.ConversionDisk{{SourcePath: "/in/a.vmdk", OutputPath: "/out/a.qcow2"}}}
	require.Equal(t, job.Spec{
		Name: "a.vmdk", OutputPath: "/out/a.qcow2", Format: "qcow2", Compress: true, Options: job.Options{Priority: 7},
	}, c.Definition())
	require.Equal(t, "zlib", c.Codec())
	c.Name = "nightly"
	require.Equal(t, "nightly", c.Title())
	require.Empty(t, job.Conversion{CompressionType: "zstd"}.Codec())
}
