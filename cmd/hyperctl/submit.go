package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const maxFile = 10 << 20

// submission is the flags of submit.
type submission struct {
	api.Submission
	vcenter  vcenter
	vms      []string
	thick    bool
	metadata []string
	file     string
	key      string
	watch    bool

	shutdownTimeout time.Duration
}

func (a *app) submitCommand() *cobra.Command {
	var s submission
	c := &cobra.Command{
		Use:   "submit [VM...]",
		Short: "Submit exports",
		Long: `Submits an export of every VM named, or the jobs in a file.

The ids of the jobs are printed, one on a line. With --watch their progress is shown until they have
ended.`,
		Example: `  hyperctl submit /datacenter/vm/web-01 --output /exports --format qcow2 --compress --watch
  hyperctl submit web-01 --output /backups --incremental
  hyperctl submit -f jobs.yaml
  generate-jobs | hyperctl submit -f - --key nightly-2026-03-01`,
		RunE:              func(c *cobra.Command, args []string) error { return a.submit(c, &s, append(s.vms, args...)) },
		ValidArgsFunction: a.completeVMs,
	}
	f := c.Flags()
	f.StringVarP(&s.file, "file", "f", "", "file with one job or many, in YAML or JSON; - is the standard input")
	f.StringVar(&s.key, "key", "", "idempotency key: the same jobs under the same key are started once")
	f.BoolVarP(&s.watch, "watch", "w", false, "show the progress until the jobs have ended")
	f.StringArrayVar(&s.vms, "vm", nil, "inventory path, id or name of a VM; may be repeated")
	f.StringVarP(&s.OutputPath, "output", "o", "", "folder on the worker's host to export to")
	f.StringVar(&s.Format, "format", "", "qcow2, raw, vmdk, vhd, vhdx, vdi, or a package: ova, ovf (default: the daemon's)")
	f.BoolVar(&s.Compress, "compress", false, "store blocks compressed")
	f.BoolVar(&s.thick, "thick", false, "allocate the whole disks on the target")
	f.BoolVar(&s.Incremental, "incremental", false, "keep a chain of qcow2 files, a base and deltas, and copy only what changed since its newest point")
	f.BoolVar(&s.Options.Full, "full", false, "with --incremental: copy all disks in full, whatever is known of their changes")
	f.BoolVar(&s.Options.VerifyTracking, "verify-tracking", false, "with --incremental: read all disks in full to see whether the platform told every change")
	f.StringVar(&s.Name, "name", "", "free name for people")
	f.StringArrayVar(&s.metadata, "metadata", nil, "key=value to keep with the job; may be repeated")
	f.BoolVar(&s.Options.Overwrite, "overwrite", false, "replace an earlier export of the VM in the same place")
	f.StringVar(&s.Options.Transport, "transport", "", "force a way to read the disks: datastore, vddk or nfc (default: the best that is safe)")
	f.BoolVar(&s.Options.Quiesce, "quiesce", false, "bring the guest's file systems to rest for the snapshot")
	f.BoolVar(&s.Options.RemoveCDROM, "remove-cdrom", false, "take CD and DVD drives out of the VM meanwhile (of one that runs: empty and disconnect them)")
	f.BoolVar(&s.Options.KeepCDROMRemoved, "keep-cdrom-removed", false, "with --remove-cdrom: do not put them back after a success")
	f.BoolVar(&s.Options.Shutdown, "shutdown", false, "shut the guest down before the snapshot, and start the VM again")
	f.DurationVar(&s.shutdownTimeout, "shutdown-timeout", 0, "with --shutdown: what the guest has (default 5m)")
	f.StringVar((*string)(&s.Options.ShutdownThen), "shutdown-then", "", "with --shutdown: what follows where it does not: fail (default) or poweroff")
	f.StringVar(&s.Options.PowerOn, "power-on", "", "with --shutdown: when to start the VM again: after_export (default), after_snapshot or never")
	f.Float64Var(&s.Options.LimitMBps, "limit", 0, "bandwidth limit in MB/s; 0 is none")
	f.IntVar(&s.Options.Priority, "priority", 0, "0 to 100; higher ones are admitted first")
	f.IntVar(&s.Options.ParallelDownloads, "parallel", 0, "ranges of one disk that are read at once")
	f.BoolVar(&s.Options.NoVerify, "no-verify", false, "do not read the target again to compare it")
	s.vcenter.flags(c)
	_ = c.RegisterFlagCompletionFunc("vm", a.completeVMs) // the flag is there
	return c
}

func (a *app) submit(c *cobra.Command, s *submission, vms []string) error {
	var out api.Submitted
	var err error
	if s.file != "" {
		out, err = a.submitFile(c, s, vms)
	} else {
		out, err = a.submitVMs(c, s, vms)
	}
	if err != nil && out.Rejected == 0 {
		return err
	}
	if a.json && !s.watch {
		if err := a.printJSON(out); err != nil {
			return err
		}
	}
	for _, e := range out.Errors {
		a.complain("%s", clean(e))
	}
	if !a.json {
		for _, id := range out.JobIDs {
			a.printf("%s\n", clean(id))
		}
	}
	if s.watch && out.Accepted > 0 {
		err = a.watch(c.Context(), out.JobIDs, 0)
	}
	if err == nil && out.Rejected > 0 || out.Accepted == 0 {
		return &codeError{code: exitFailure} // its reasons are printed
	}
	return err
}

// submitFile sends a file as it is: the server knows best what is wrong with it.
func (a *app) submitFile(c *cobra.Command, s *submission, vms []string) (out api.Submitted, err error) {
	if len(vms) > 0 {
		return out, usageError("name VMs or a file, not both")
	}
	var body []byte
	kind := map[string]string{".json": "application/json", ".yaml": "application/yaml", ".yml": "application/yaml"}[strings.ToLower(filepath.Ext(s.file))]
	if s.file == "-" {
		if s.vcenter.passwordFile == "-" {
			return out, usageError("the standard input cannot be both the jobs and the password")
		}
		body, err = io.ReadAll(io.LimitReader(a.In, maxFile+1))
	} else {
		body, err = readFile(s.file)
	}
	if err != nil {
		return out, err
	}
	if len(body) > maxFile {
		return out, fmt.Errorf("%s is larger than %s", s.file, bytesText(maxFile))
	}
	for _, flag := range []string{"output", "format", "compress", "thick", "incremental", "full", "verify-tracking", "name", "metadata", "overwrite", "transport", "quiesce",
		"remove-cdrom", "keep-cdrom-removed", "shutdown", "shutdown-timeout", "shutdown-then", "power-on", "limit", "priority", "parallel", "no-verify", "vcenter", "connection"} {
		if c.Flags().Changed(flag) {
			return out, usageError("--%s cannot be used with --file: write it into the file", flag)
		}
	}
	return a.client.SubmitBody(c.Context(), s.key, kind, body)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// submitVMs makes a job of every VM.
func (a *app) submitVMs(c *cobra.Command, s *submission, vms []string) (out api.Submitted, err error) {
	if len(vms) == 0 {
		return out, usageError("name a VM to export, or a file with jobs (-f)")
	}
	if s.OutputPath == "" {
		return out, usageError("say where to export to (--output)")
	}
	if s.thick {
		thin := false
		s.Thin = &thin
	}
	s.Options.ShutdownTimeout = job.Duration(s.shutdownTimeout)
	if s.Metadata, err = pairs(s.metadata); err != nil {
		return out, err
	}
	if s.VCenter, err = s.vcenter.credentials(a); err != nil {
		return out, err
	}
	s.Connection = s.vcenter.connection
	jobs := make([]api.Submission, len(vms))
	for i, vm := range vms {
		jobs[i] = s.Submission
		jobs[i].VMPath = vm
	}
	return a.client.Submit(c.Context(), s.key, jobs...)
}

// pairs reads key=value.
func pairs(list []string) (map[string]any, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]any, len(list))
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usageError("--metadata %q is not key=value", clean(p))
		}
		m[k] = v
	}
	return m, nil
}
