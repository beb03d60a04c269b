package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/cbt"
	"hypersdk/formats"
)

// flattening is one call of chain flatten.
type flattening struct {
	conversion
	point int64
	name  string // of the disk
}

// flattened is what is printed of it.
type flattened struct {
	converted
	Point int64  `json:"point"`
	Disk  string `json:"disk"`
}

func (l *cli) chainFlattenCommand() *cobra.Command {
	f := &flattening{conversion: conversion{cli: l}}
	c := &cobra.Command{
		Use: "flatten DIR OUT", Short: "Write a disk at a point into one file of any format", Args: arguments(2, 2, exitUsage),
		Long: `Writes a disk as it was at a point into one file, of any format. What is read has to have the digest of the point,
or no file appears. OUT gets its name when it is whole and on the disk; until then it is a hidden file beside it,
.OUT.part, which the same command goes on with after an interruption. A file that exists is not replaced without
--force.

-o takes what "image convert" takes, but for backing_file: what is flat has none.`,
		Example: `  hyperctl image chain flatten /backups/web-01 -O qcow2 -c web-01.qcow2
  hyperctl image chain flatten /backups/web-01 -p 3 -d scsi0:1 -O vmdk -o subformat=streamOptimized data.vmdk`,
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			f.src, f.dst = args[0], args[1]
			f.out, f.err = c.OutOrStdout(), c.ErrOrStderr()
			return f.run(c.Context())
		}),
	}
	flags := c.Flags()
	f.targetFlags(flags, "OUT", "raw, qcow2, vmdk, vhd (vpc), vhdx, vdi")
	flags.Int64VarP(&f.point, "point", "p", 0, "the point (default: the newest)")
	flags.StringVarP(&f.name, "disk", "d", "", "the disk, as the list has it (default: the only one)")
	progressFlag(c, &f.progress)
	return c
}

func (f *flattening) run(ctx context.Context) error {
	if err := f.choose(); err != nil {
		return err
	}
	switch {
	case f.packed:
		return usageError("-O ova: a chain has the disks of a VM and not what describes it")
	case f.dst == pipe:
		return usageError("OUT is a file: what is written is proved before it is one")
	case f.create.Backing != "":
		return usageError("-o backing_file: what is flat has none")
	}
	if err := f.unused(); err != nil {
		return err
	}
	f.progress = f.progress || onTerminal(f.err)
	began := time.Now()
	ch, err := cbt.Open(ctx, f.src, cbt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer ch.Close()
	res, err := f.flatten(ctx, ch)
	if err != nil || !f.json {
		return err
	}
	res.Seconds = time.Since(began).Seconds()
	return printJSON(f.out, res)
}

func (f *flattening) flatten(ctx context.Context, ch *cbt.Chain) (res flattened, err error) {
	m := ch.Manifest()
	at, d, err := pick(m, f.point, f.name)
	if err != nil {
		return res, err
	}
	res = flattened{converted{File: f.dst, Format: f.target.Name, VirtualSize: d.Size}, at.Number, d.Disk}
	if f.target.Create == nil {
		return res, usageError("%s cannot be written", f.target.Name)
	}
	if here, err := within(f.src, f.dst); err != nil || here {
		return res, errors.Join(err, errors.New("OUT lies in the folder of the chain, where no other files belong"))
	}
	id := []any{m.ID, at.Number, d.Disk, d.Digest, d.Size, f.target.Name, f.create}
	if f.unsafe {
		id = append(id, bootID())
	}
	p, err := openPart(f.conversion.disk(), id, d.Size, false, f.unsafe)
	if err != nil {
		return res, err
	}
	defer p.Close()
	w, err := f.begin(ctx, p, d.Size, false)
	if err != nil {
		return res, err
	}
	defer w.Close()
	res.ResumedAt = p.from.Off
	got, err := f.goOn(ctx, p, d.Size, true, func(ctx context.Context, opt formats.CopyOptions) (formats.Result, error) {
		return ch.Flatten(ctx, at.Number, d.Disk, w, opt)
	})
	res.Read, res.Written, res.Digest = got.Read, got.Written, got.Digest.String()
	if err != nil {
		return res, err
	}
	return res, f.finish(p, d.Size)
}

// within says whether a file lies right in a folder.
func within(dir, file string) (bool, error) {
	a, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	b, err := os.Stat(filepath.Dir(file))
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}
