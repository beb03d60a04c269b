package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// options is what the command line says.
type options struct {
	// which VMs
	vms                   []string
	folder, filter, power string
	batch                 string
	// what becomes of them
	spec         job.Spec
	thick        bool
	metadata     []string
	skipExisting bool
	parallel     int
	// what to do
	dryRun, validate, list, info, json, quiet, ui bool
	// where from, and with what
	connection, passwordFile, profile, config, dataDir string
}

// mine are the keys of the daemon's configuration that count here: what platform to talk to, and how.
func mine() []string {
	return []string{"VCenterURL", "Username", "Password", "Insecure", "Thumbprint", "CAFile", "KnownHosts", "DefaultFormat", "DownloadWorkers", "SpacePace", "LogLevel"}
}

func (a *app) flags(root *cobra.Command) {
	o, f := &a.opt, root.Flags()
	a.known = pflag.NewFlagSet("", pflag.ContinueOnError)
	f.StringArrayVar(&o.vms, "vm", nil, "inventory path, id or name of a VM; may be repeated")
	f.StringVar(&o.folder, "folder", "", "all VMs below this inventory path")
	f.StringVar(&o.filter, "filter", "", "only VMs whose name matches: a part of it, or a pattern with * and ?")
	f.StringVar(&o.power, "power", "", "only VMs that are on, off or suspended")
	f.StringVar(&o.batch, "batch", "", "file with the exports: YAML, JSON, or the name of a VM on every line; - is the standard input")

	f.StringVarP(&o.spec.OutputPath, "output", "o", "", "folder to export to; each VM gets a folder of its name below it")
	f.StringVarP(&o.spec.Format, "format", "f", "", "disk format: "+strings.Join(daemon.FormatNames(), ", ")+" (default qcow2)")
	f.BoolVar(&o.spec.Compress, "compress", false, "store blocks compressed")
	f.BoolVar(&o.spec.Incremental, "incremental", false, "keep a chain of qcow2 files, a base and deltas, and copy only what changed since its newest point")
	f.BoolVar(&o.spec.Options.Full, "full", false, "with --incremental: copy all disks in full, whatever is known of their changes")
	f.BoolVar(&o.spec.Options.VerifyTracking, "verify-tracking", false, "with --incremental: read all disks in full to see whether the platform told every change")
	f.BoolVar(&o.thick, "thick", false, "allocate the whole disks on the target")
	f.BoolVar(&o.spec.Options.Overwrite, "overwrite", false, "replace an earlier export of the VM in the same place")
	f.BoolVar(&o.skipExisting, "skip-existing", false, "leave out VMs that have a complete export in the same place")
	f.StringVar(&o.spec.Options.Transport, "transport", "", "force a way to read the disks")
	f.BoolVar(&o.spec.Options.Quiesce, "quiesce", false, "bring the guest's file systems to rest for the snapshot")
	f.Float64Var(&o.spec.Options.LimitMBps, "limit", 0, "bandwidth limit of each export in MB/s; 0 is none")
	f.IntVar(&o.spec.Options.ParallelDownloads, "parallel-downloads", 0, "ranges of one disk that are read at once; 0: as many as are good")
	f.BoolVar(&o.spec.Options.NoVerify, "no-verify", false, "do not read the target again to compare it with what was received")
	f.BoolVar(&o.spec.Options.RemoveCDROM, "remove-cdrom", false, "take CD and DVD drives out of the VM before its snapshot, and put them back after")
	f.BoolVar(&o.spec.Options.KeepCDROMRemoved, "keep-cdrom-removed", false, "with --remove-cdrom: do not put them back after an export that succeeded")
	f.BoolVar(&o.spec.Options.Shutdown, "shutdown", false, "shut the guest down before the snapshot, and start the VM again as --power-on says")
	f.Var((*duration)(&o.spec.Options.ShutdownTimeout), "shutdown-timeout", "with --shutdown: what the guest has (default 5m)")
	f.StringVar((*string)(&o.spec.Options.ShutdownThen), "shutdown-then", "", "with --shutdown: what follows where the guest does not shut down in time: fail or poweroff (default fail)")
	f.StringVar(&o.spec.Options.PowerOn, "power-on", "", "with --shutdown: when the VM is started again: after_export (default), after_snapshot or never")
	f.IntVar(&o.spec.Options.Priority, "priority", 0, "0 to 100; of exports that wait for the same VM the higher one is first")
	f.StringArrayVar(&o.metadata, "metadata", nil, "key=value to keep with the export and in its manifest; may be repeated")
	f.IntVar(&o.parallel, "parallel", 2, "exports that run at once")

	f.BoolVar(&o.dryRun, "dry-run", false, "show the plan and do nothing")
	f.BoolVar(&o.validate, "validate-only", false, "check that it could be exported, and do nothing")
	f.BoolVar(&o.list, "list", false, "list VMs")
	f.BoolVar(&o.info, "vm-info", false, "describe VMs")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&o.ui, "ui", false, "serve the Temporal Web UI on a free port of this host, while it runs")

	p := root.PersistentFlags()
	p.BoolVar(&o.json, "json", false, "print JSON: an object per line")
	p.StringVar(&o.connection, "connection", "", "connection of the configuration file to use")
	p.StringVar(&o.passwordFile, "password-file", "", "file with the password; - is the standard input")
	p.StringVar(&o.profile, "profile", "", "set of flags from the configuration file to start from")
	p.StringVar(&o.config, "config", "", "configuration file")
	p.StringVar(&o.dataDir, "data-dir", "", "private folder for what is under way and for the history (HYPEREXPORT_DATA_DIR; default below $XDG_STATE_HOME)")
	a.settings = daemon.NewSettings(&a.cfg, mine()...)
	a.settings.AddFlags(p)
	_ = p.MarkHidden("default-format") // --format says it; the configuration file may
	a.known.AddFlagSet(f)
	a.known.AddFlagSet(p)
}

// configure reads the configuration and lays the profile under the flags.
func (a *app) configure(fs *pflag.FlagSet) error {
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	if err := a.settings.Load(fs, a.opt.config); err != nil {
		return &codeError{exitUsage, err}
	}
	if err := a.applyProfile(fs, given); err != nil {
		return err
	}
	if a.opt.dataDir == "" {
		a.opt.dataDir = a.Env("HYPEREXPORT_DATA_DIR")
	}
	if a.opt.dataDir == "" {
		a.opt.dataDir = a.defaultDataDir()
	}
	var err error
	if a.opt.dataDir, err = filepath.Abs(a.opt.dataDir); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if f := a.cfg.Exposed(); f != "" {
		a.complain("%s holds passwords and everybody on this host may read it; run chmod 600", f)
	}
	return nil
}

func (a *app) applyProfile(fs *pflag.FlagSet, given map[string]bool) error {
	if a.opt.profile == "" {
		return nil
	}
	p, ok := a.cfg.Profiles[a.opt.profile]
	if !ok {
		names := slices.Sorted(maps.Keys(a.cfg.Profiles))
		if len(names) == 0 {
			return usageError("there is no profile %q: the configuration file has none", a.opt.profile)
		}
		return usageError("there is no profile %q; there are: %s", a.opt.profile, strings.Join(names, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		flag := strings.ReplaceAll(name, "_", "-")
		if a.known.Lookup(flag) == nil || flag == "profile" || flag == "config" {
			return usageError("profile %s: there is no flag --%s", a.opt.profile, flag)
		}
		if given[flag] || fs.Lookup(flag) != a.known.Lookup(flag) {
			continue // said, or of no use to this command
		}
		for _, v := range p[name] {
			if err := fs.Set(flag, v); err != nil {
				return usageError("profile %s: %w", a.opt.profile, err)
			}
		}
	}
	return nil
}

func (a *app) defaultDataDir() string {
	if d := a.Env("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "hyperexport")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprint("hyperexport-", os.Getuid()))
	}
	return filepath.Join(home, ".local", "state", "hyperexport")
}

// inFormat is a job that names its format: that of chains, or the configured one.
func (a *app) inFormat(s job.Spec) job.Spec {
	switch {
	case s.Format != "":
	case s.Incremental:
		s.Format = chainFormat
	default:
		s.Format = a.cfg.DefaultFormat
	}
	return s
}

// template is the job that every VM gets, but for its name, and for a format where none was said.
func (a *app) template() (job.Spec, error) {
	s := a.opt.spec
	s.Format = strings.ToLower(s.Format)
	s.Options.PowerOn = strings.ReplaceAll(s.Options.PowerOn, "-", "_")
	if a.opt.thick {
		thin := false
		s.Thin = &thin
	}
	if s.OutputPath != "" {
		abs, err := filepath.Abs(s.OutputPath)
		if err != nil {
			return s, fmt.Errorf("output folder: %w", err)
		}
		s.OutputPath = abs
	}
	for _, p := range a.opt.metadata {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return s, usageError("--metadata %q is not key=value", p)
		}
		if s.Metadata == nil {
			s.Metadata = map[string]any{}
		}
		s.Metadata[k] = v
	}
	return s, nil
}

// check says what is wrong with a job, by the flags that say it.
func check(s job.Spec) error {
	faults := s.Validate(daemon.Caps())
	if len(faults) == 0 {
		return nil
	}
	var errs []error
	for _, f := range faults {
		switch f.Field {
		case "output_path":
			f.Field = "--output"
		case "format", "thin":
			f.Field = "--" + f.Field
		default:
			f.Field = "--" + strings.NewReplacer("options.", "", "_mbps", "", "_", "-").Replace(f.Field)
		}
		errs = append(errs, f)
	}
	return &codeError{exitUsage, errors.Join(errs...)}
}

// password finds a password where nobody else sees it: in a file, in the configuration or the
// environment, or by asking.
func (a *app) password(user string) (providers.Secret, error) {
	switch {
	case a.opt.passwordFile == "-":
		b, err := io.ReadAll(io.LimitReader(a.In, 64<<10))
		return providers.Secret(strings.TrimRight(string(b), "\r\n")), err
	case a.opt.passwordFile != "":
		b, err := os.ReadFile(a.opt.passwordFile)
		if err != nil {
			return "", usageError("password file: %w", err)
		}
		return providers.Secret(strings.TrimRight(string(b), "\r\n")), nil
	case a.cfg.Password != "":
		return a.cfg.Password, nil
	case a.Ask == nil:
		return "", usageError("a password for %s is needed: set GOVC_PASSWORD or give --password-file", user)
	}
	p, err := a.Ask("Password for " + user + ": ")
	return providers.Secret(p), err
}

// duration is a job.Duration as a flag.
type duration job.Duration

func (d *duration) Type() string       { return "duration" }
func (d *duration) Set(s string) error { return (*job.Duration)(d).UnmarshalText([]byte(s)) }

func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return job.Duration(*d).String()
}
