package main

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/cmd/hyperctl/image"
	"hypersdk/formats/all"
	"hypersdk/workflows/job"
)

// conversion is the flags of convert.
type conversion struct {
	job.Conversion
	from, output, cluster, key string
	follow                     bool
}

func (a *app) convertCommand() *cobra.Command {
	var v conversion
	c := &cobra.Command{
		Use: "convert SRC...", Short: "Convert disk images on the daemon's host, by a durable job",
		Long: `Converts disk images that lie on the daemon's host (or on a worker's), all of them at once, by a job that
goes on after any restart. "hyperctl image convert" does the same here and now, without a daemon.

The target is DST (-o). With several images, or where DST ends in a slash, it is a folder, in which the
targets are named after the images; without -o they go beside them. The folder must exist. A target gets
its name when it is whole and on the disk, and is not replaced without --overwrite. Relative paths are
those of this folder.

A format is recognised by its content; a raw disk has to be named so (-f raw). Nothing is opened beside an
image (a backing file, a parent, an extent) unless --allow-dir names a folder, and then only below that.

The id of the job is printed: "hyperctl watch", "logs", "pause", "resume", "limit" and "cancel" take it. With
--follow the progress is shown until the job has ended.`,
		Example: `  hyperctl convert /images/web-01.vmdk -O qcow2 -c --follow
  hyperctl convert a.vmdk b.vmdk -O vhdx -o /converted/
  hyperctl convert disk.img -f raw -O vmdk --subformat streamOptimized -o disk.vmdk
  hyperctl convert status 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11`,
		Args: someArgs("an image"),
		RunE: func(c *cobra.Command, args []string) error { return a.convert(c, &v, args) },
	}
	f := c.Flags()
	f.StringVarP(&v.from, "format", "f", "", "format of the images (default: recognised)")
	f.StringVarP(&v.TargetFormat, "target-format", "O", "", "format of the targets: raw, qcow2, vmdk, vhd (vpc), vhdx, vdi")
	f.StringVarP(&v.output, "output", "o", "", "file to make, or folder for the targets (default: beside the images)")
	f.BoolVarP(&v.Compress, "compress", "c", false, "compress the targets")
	f.StringVar(&v.CompressionType, "compression-type", "", "zlib or zstd, with -c (default: zlib)")
	f.IntVar(&v.CompressionLevel, "compression-level", 0, "level of the compression, with -c")
	f.StringVar(&v.Subformat, "subformat", "", "variant of the format")
	f.StringVar(&v.cluster, "cluster-size", "", "what the targets allocate at once, such as 64k")
	f.StringVar(&v.Preallocation, "preallocation", "", "off or metadata")
	f.StringVar(&v.AllowDir, "allow-dir", "", "folder below which files that an image names may be opened")
	f.BoolVar(&v.Overwrite, "overwrite", false, "replace targets that exist")
	f.BoolVar(&v.NoVerify, "no-verify", false, "do not read the targets again to compare them")
	f.Float64Var(&v.LimitMBps, "limit", 0, "bandwidth limit in MB/s; 0 is none")
	f.IntVar(&v.Priority, "priority", 0, "0 to 100; higher ones are admitted first")
	f.IntVarP(&v.Workers, "workers", "m", 0, "stretches of one disk that are worked on at once (default: the daemon's)")
	f.StringVar(&v.Name, "name", "", "free name for people")
	f.StringVar(&v.key, "key", "", "idempotency key: the same request under the same key is started once")
	f.BoolVarP(&v.follow, "follow", "w", false, "show the progress until the job has ended")
	_ = c.RegisterFlagCompletionFunc("target-format", words("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")) // the flag is there
	c.AddCommand(a.convertStatusCommand())
	return c
}

func (a *app) convert(c *cobra.Command, v *conversion, images []string) error {
	if err := v.request(images); err != nil {
		return err
	}
	out, err := a.client.Convert(c.Context(), v.key, api.ConvertRequest{Conversion: v.Conversion})
	if err != nil {
		return err
	}
	return a.started(c.Context(), out, out.ConversionID, v.follow)
}

// request is what the flags come to.
func (v *conversion) request(images []string) error {
	if v.TargetFormat == "" {
		return usageError("-O names the format of the targets")
	}
	target, err := all.ByName(v.TargetFormat)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	v.TargetFormat = target.Name
	if v.from != "" {
		f, err := all.ByName(v.from)
		if err != nil {
			return &codeError{exitUsage, err}
		}
		v.from = f.Name
	}
	if v.cluster != "" {
		if v.ClusterSize, err = image.ParseSize(v.cluster); err != nil {
			return usageError("--cluster-size %q is not a size such as 64k", clean(v.cluster))
		}
	}
	if v.AllowDir != "" {
		if v.AllowDir, err = filepath.Abs(v.AllowDir); err != nil {
			return err
		}
	}
	for _, img := range images {
		d := job.ConversionDisk{SourceFormat: v.from}
		if d.SourcePath, err = filepath.Abs(img); err != nil {
			return err
		}
		if d.OutputPath, err = v.target(d.SourcePath, target.Ext, len(images)); err != nil {
			return err
		}
		v.Disks = append(v.Disks, d)
	}
	return nil
}

// target is the path of the file that is made of an image.
func (v *conversion) target(source, ext string, images int) (string, error) {
	base := path.Base(source)
	named := strings.TrimSuffix(base, path.Ext(base)) + ext
	switch {
	case v.output == "":
		return path.Join(path.Dir(source), named), nil
	case images > 1 || strings.HasSuffix(v.output, "/"):
		return filepath.Abs(filepath.Join(v.output, named))
	}
	return filepath.Abs(v.output)
}

func (a *app) convertStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status JOB", Short: "Show where a conversion stands", Args: exactly(1, "the id of a conversion"),
		Example: "  hyperctl convert status 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11",
		RunE: func(c *cobra.Command, args []string) error {
			out, err := a.client.ConvertStatus(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			j, err := a.client.Job(c.Context(), args[0])
			if err == nil {
				a.printJob(j)
			}
			return err
		},
		ValidArgsFunction: first(a.completeJobs()),
	}
}
