package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/formats/all"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func (a *app) incrementalCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "incremental", Short: "Look at incremental exports, and work on their chains", Args: noArgs,
		Long: `An export with --incremental keeps a chain in the folder of its VM: a base, and deltas that hold what
changed. These commands say what the next run would do, and check, merge, flatten and thin out chains on the
daemon's host (or a worker's), by jobs that go on after any restart. "hyperctl image chain" does the same here
and now, without a daemon.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.analyzeCommand(), a.chainListCommand(), a.chainCheckCommand(), a.chainMergeCommand(), a.chainFlattenCommand(), a.chainDeleteCommand())
	return c
}

func (a *app) analyzeCommand() *cobra.Command {
	var v vcenter
	var r api.AnalyzeRequest
	var noWait bool
	c := &cobra.Command{
		Use: "analyze VM", Short: "Show what the next incremental export of a VM would do",
		Long: `Finds the chain of a VM, and asks the platform what changed since its newest point, up to a snapshot that
is taken for this and removed. Where the changes of the VM are not tracked no snapshot is taken.

The chain is looked for where the last incremental export that the daemon knows of went, or below --output,
which is what exports of the VM are given as their output folder. How long it would take is told where an
earlier export of the VM, or --limit, says how fast it would be.`,
		Example: "  hyperctl incremental analyze web-01\n  hyperctl incremental analyze web-01 --output /backups --limit 100",
		Args:    exactly(1, "the path, id or name of a VM"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if r.VCenter, err = v.credentials(a); err != nil {
				return err
			}
			if r.OutputPath, err = absolute(r.OutputPath); err != nil {
				return err
			}
			r.VMPath, r.Connection = args[0], v.connection
			out, err := a.client.AnalyzeIncremental(c.Context(), r)
			if err != nil {
				return err
			}
			return a.analyzed(c.Context(), out, noWait)
		},
		ValidArgsFunction: first(a.completeVMs),
	}
	v.flags(c)
	c.Flags().StringVarP(&r.OutputPath, "output", "o", "", "folder of the exports of the VM (default: that of the last one)")
	c.Flags().Float64Var(&r.LimitMBps, "limit", 0, "bandwidth limit of the next export in MB/s, for the estimates")
	c.Flags().BoolVar(&noWait, "no-wait", false, "do not wait for what takes more than 100 seconds: print its id")
	return c
}

// absolute makes a path that is there absolute.
func absolute(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	return filepath.Abs(p)
}

// analyzed waits for the end of an analysis and shows it.
func (a *app) analyzed(ctx context.Context, out api.Analyzed, noWait bool) error {
	if out.Status == job.Running && noWait {
		if a.json {
			return a.printJSON(out)
		}
		a.printf("%s\n", clean(out.OperationID))
		return nil
	}
	for told := false; out.Status == job.Running; told = true {
		if !told {
			fmt.Fprintf(a.Err, "It takes its time; %s goes on if this is interrupted.\n", clean(out.OperationID))
		}
		select {
		case <-time.After(operatePace):
		case <-ctx.Done():
			return ctx.Err()
		}
		o, err := a.client.Operation(ctx, out.OperationID)
		switch {
		case err != nil:
			return err
		case o.Status == job.Running:
			continue
		case !o.Success || o.Analysis == nil:
			code := exitFailure
			if o.Reason == string(providers.NotFound) {
				code = exitNotFound
			}
			return &codeError{code, errors.New(o.Error)}
		}
		out.Status, out.Analysis, out.Timestamp = o.Status, *o.Analysis, o.Timestamp
	}
	if a.json {
		return a.printJSON(out)
	}
	a.printAnalysis(out.Analysis)
	return nil
}

func (a *app) printAnalysis(n job.Analysis) {
	t := newTable("DISK", "LABEL", ">SIZE", "?>HOLDS", ">WOULD READ", "HOW", "?REASON")
	for _, d := range n.Disks {
		how, holds := "in full", ""
		switch {
		case d.CanIncremental:
			how = "what changed"
		case d.By != "":
			how = "compared"
		}
		if d.AllocatedBytes > 0 {
			holds = bytesText(d.AllocatedBytes)
		}
		t.add(d.Disk, d.Label, bytesText(d.Size), holds, bytesText(d.ChangedBytes), how, d.Reason)
	}
	a.printTable(t)
	can := "no"
	if n.CanIncremental {
		can = "yes"
	}
	last := ""
	if p := n.LastPoint; p != nil {
		last = fmt.Sprintf("%d of %s, in %s on host %s", p.Number, p.Time.Local().Format("2006-01-02 15:04:05"), p.Folder, p.Host)
	}
	took := func(n int64, in string) string {
		if in != "" {
			return bytesText(n) + " in " + in
		}
		return bytesText(n)
	}
	whole := n.TotalBytes
	if n.AllocatedBytes > 0 {
		whole = n.AllocatedBytes
	}
	a.printf("\n")
	a.printRows([][2]string{
		{"VM", n.VMName}, {"Incremental", can}, {"Because", n.Reason}, {"Last point", last},
		{"Would read", took(n.ChangedBytes, n.EstimatedDuration)}, {"In full", took(whole, n.EstimatedFullDuration)},
		{"Saved", bytesText(n.EstimatedSavingsBytes)}, {"Beware", strings.Join(n.Warnings, "\n")},
	})
}

func (a *app) chainListCommand() *cobra.Command {
	var v vcenter
	var r api.ChainListRequest
	c := &cobra.Command{
		Use: "list [PATH]", Aliases: []string{"ls"}, Short: "Show what a chain is made of",
		Long: `Shows the points of a chain, by its folder, or by a VM (--vm) and the folder of its exports (--output).
Of a long chain the newest points are shown.`,
		Example: "  hyperctl incremental list /backups/web-01\n  hyperctl incremental list --vm web-01 --output /backups",
		Args: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (r.VMPath != "" || r.OutputPath != "") || len(args) > 1 {
				return usageError("%s needs the folder of a chain, or --vm and --output", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				r.Path, err = absolute(args[0])
			} else if r.OutputPath, err = absolute(r.OutputPath); err == nil {
				r.Connection = v.connection
				r.VCenter, err = v.credentials(a)
			}
			if err != nil {
				return err
			}
			out, err := a.client.Chain(c.Context(), r)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			a.printChain(out.ChainView)
			return nil
		},
	}
	v.flags(c)
	c.Flags().StringVar(&r.VMPath, "vm", "", "path, id or name of a VM, with --output")
	c.Flags().StringVarP(&r.OutputPath, "output", "o", "", "folder of the exports of the VM, with --vm")
	c.Flags().StringVar(&r.Host, "host", "", "id of the host that has the chain (default: any)")
	_ = c.RegisterFlagCompletionFunc("vm", a.completeVMs) // the flag is there
	return c
}

func (a *app) printChain(v job.ChainView) {
	a.printRows([][2]string{
		{"Chain", v.ID}, {"VM", v.VM.Name}, {"In", v.Path}, {"Host", v.Host}, {"Points", fmt.Sprint(v.Total)}, {"Stored", bytesText(v.Stored)},
	})
	a.printf("\n")
	t := newTable(">POINT", "TIME", "DISK", ">SIZE", "HOLDS", ">CHANGED", ">STORED", "FILE", "?REMARK")
	for _, p := range v.Points {
		number, at := fmt.Sprint(p.Number), p.Time.Local().Format("2006-01-02 15:04:05")
		for _, d := range p.Disks {
			holds, remark := "changes", string(d.By)
			if d.Full {
				holds, remark = "all", d.Reason
			}
			t.add(number, at, d.Disk, bytesText(d.Size), holds, bytesText(d.Changed), bytesText(d.Stored), d.File, remark)
			number, at = "", ""
		}
		if len(p.Disks) == 0 {
			t.add(number, at)
		}
	}
	a.printTable(t)
	if n := v.Total - len(v.Points); n > 0 {
		a.printf("%d older points are not shown.\n", n)
	}
}

// chainJob is what all commands that start a job on a chain have in common.
type chainJob struct {
	place  api.ChainPlace
	limit  float64
	key    string
	follow bool
	yes    bool
}

// chainCommand is a command that starts a job on a chain; question, if it is not empty, is asked before.
func (a *app) chainCommand(c *cobra.Command, v *chainJob, question string, send func(context.Context) (api.Started, error)) *cobra.Command {
	c.Args = exactly(1, "the folder of a chain")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if v.place.Path, err = absolute(args[0]); err != nil {
			return err
		}
		if err := a.confirm(&operation{question: question, yes: v.yes}, v.place.Path); err != nil {
			return err
		}
		out, err := send(c.Context())
		if err != nil {
			return err
		}
		err = a.started(c.Context(), out, out.JobID, v.follow)
		if v.follow && !a.json && c.Context().Err() == nil {
			a.printFindings(c.Context(), out.JobID)
		}
		return err
	}
	f := c.Flags()
	f.IntVar(&v.place.Priority, "priority", 0, "0 to 100; higher ones are admitted first")
	f.StringVar(&v.place.Name, "name", "", "free name for people")
	f.StringVar(&v.key, "key", "", "idempotency key: the same request under the same key is started once")
	f.BoolVarP(&v.follow, "follow", "w", false, "show the progress until the job has ended")
	if question != "" {
		f.BoolVarP(&v.yes, "yes", "y", false, "do not ask")
	}
	return c
}

// printFindings shows what a check that was followed has found.
func (a *app) printFindings(ctx context.Context, id string) {
	j, err := a.client.Job(ctx, id)
	if err != nil || j.Result == nil || j.Result.Chain == nil || j.Result.Chain.Check == nil {
		return
	}
	a.printCheck(*j.Result.Chain.Check)
}

func (a *app) printCheck(k job.ChainCheck) {
	what := map[string]string{
		job.CheckDepthLinks: "links were looked at", job.CheckDepthTables: "links and their tables were looked at",
		job.CheckDepthData: "links were looked at and all that they hold was compared",
	}[k.Depth]
	damage := fmt.Sprintf("%d problems", k.Damage)
	if k.Damage == 1 {
		damage = "1 problem"
	}
	a.printf("%d %s: %s.\n", k.Links, what, damage)
	if len(k.Problems) == 0 {
		return
	}
	t := newTable(">POINT", "DISK", "FILE", "WHAT")
	for _, p := range k.Problems {
		t.add(fmt.Sprint(p.Point), p.Disk, p.File, p.What)
	}
	a.printTable(t)
	if n := k.Damage - len(k.Problems); n > 0 {
		a.printf("%d more.\n", n)
	}
}

func (a *app) limitFlag(c *cobra.Command, v *chainJob) *cobra.Command {
	c.Flags().Float64Var(&v.limit, "limit", 0, "bandwidth limit in MB/s; 0 is none")
	return c
}

func (a *app) chainCheckCommand() *cobra.Command {
	var v chainJob
	var depth string
	c := a.limitFlag(a.chainCommand(&cobra.Command{
		Use: "check PATH", Short: "Check a chain, by a durable job",
		Long: `Checks a chain: that every file is there and names the right backing file (--depth links), that its tables
are sound, too (tables), or that all that is stored has its digests (data). What is missing or damaged is
named. Where something is, the job has failed: with --follow the exit code is 4.`,
		Example: "  hyperctl incremental check /backups/web-01 --depth data --follow",
	}, &v, "", func(ctx context.Context) (api.Started, error) {
		return a.client.CheckChain(ctx, v.key, api.ChainCheckRequest{ChainPlace: v.place, Depth: depth, LimitMBps: v.limit})
	}), &v)
	c.Flags().StringVar(&depth, "depth", job.CheckDepthLinks, "links, tables or data")
	_ = c.RegisterFlagCompletionFunc("depth", words(job.CheckDepthLinks, job.CheckDepthTables, job.CheckDepthData)) // the flag is there
	return c
}

func (a *app) chainMergeCommand() *cobra.Command {
	var v chainJob
	var upTo int64
	c := a.limitFlag(a.chainCommand(&cobra.Command{
		Use: "merge PATH", Short: "Make a later point the oldest of a chain, by a durable job",
		Long: `Makes a point the oldest of a chain: its deltas and its base become one full file, and the points before it
are given up. That needs room for one more base. The chain is whole before, during and after.`,
		Example: "  hyperctl incremental merge /backups/web-01 --up-to 7 --follow",
	}, &v, "Give up the older points of the chain in %s?", func(ctx context.Context) (api.Started, error) {
		return a.client.MergeChain(ctx, v.key, api.ChainMergeRequest{ChainPlace: v.place, UpTo: upTo, LimitMBps: v.limit})
	}), &v)
	c.Flags().Int64Var(&upTo, "up-to", 0, "the point that becomes the oldest (required)")
	c.PreRunE = func(*cobra.Command, []string) error {
		if upTo < 1 {
			return usageError("--up-to names the point that becomes the oldest")
		}
		return nil
	}
	return c
}

func (a *app) chainFlattenCommand() *cobra.Command {
	var v chainJob
	var r api.ChainFlattenRequest
	c := a.limitFlag(a.chainCommand(&cobra.Command{
		Use: "flatten PATH", Short: "Write disks at a point of a chain as images, by a durable job",
		Long: `Writes one disk (--disk), or all disks, at a point of a chain as images of their own, in any format. Without
--disk the output is a folder that exists, in which the images are named after the VM. An image gets its name
when it is whole and was compared with the digest of the point.`,
		Example: `  hyperctl incremental flatten /backups/web-01 -O vmdk -o /restored/
  hyperctl incremental flatten /backups/web-01 --point 3 --disk 2000 -O raw -o /restored/web-01.img --follow`,
	}, &v, "", func(ctx context.Context) (api.Started, error) {
		r.ChainPlace, r.LimitMBps = v.place, v.limit
		return a.client.FlattenChain(ctx, v.key, r)
	}), &v)
	c.PreRunE = func(*cobra.Command, []string) error {
		if r.TargetFormat == "" || r.OutputPath == "" {
			return usageError("-O names the format of the images, and -o where they go")
		}
		f, err := all.ByName(r.TargetFormat)
		if err != nil {
			return &codeError{exitUsage, err}
		}
		r.TargetFormat = f.Name
		r.OutputPath, err = absolute(r.OutputPath)
		return err
	}
	f := c.Flags()
	f.Int64Var(&r.Point, "point", 0, "point to write (default: the newest)")
	f.StringVar(&r.Disk, "disk", "", "id of the disk to write (default: all)")
	f.StringVarP(&r.TargetFormat, "target-format", "O", "", "format of the images: raw, qcow2, vmdk, vhd (vpc), vhdx, vdi")
	f.StringVarP(&r.OutputPath, "output", "o", "", "file to make of --disk, or folder for the images of all")
	f.BoolVarP(&r.Compress, "compress", "c", false, "compress the images")
	f.BoolVar(&r.Overwrite, "overwrite", false, "replace images that exist")
	_ = c.RegisterFlagCompletionFunc("target-format", words("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")) // the flag is there
	return c
}

func (a *app) chainDeleteCommand() *cobra.Command {
	var v chainJob
	var point int64
	c := a.chainCommand(&cobra.Command{
		Use: "delete PATH", Short: "Delete a point of a chain, by a durable job",
		Long: `Deletes a point that no other builds upon: the newest, or one whose successor holds all disks in full. For
others, merge up to the point after them instead.`,
		Example: "  hyperctl incremental delete /backups/web-01 --point 9 --yes --follow",
	}, &v, "Delete a point of the chain in %s?", func(ctx context.Context) (api.Started, error) {
		return a.client.DeletePoint(ctx, v.key, api.ChainDeleteRequest{ChainPlace: v.place, Point: point})
	})
	c.Flags().Int64Var(&point, "point", 0, "point to delete (default: the newest)")
	return c
}
