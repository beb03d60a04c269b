package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"hypersdk/apiserver/api"
	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
)

// Exit codes. They are a contract with scripts.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitLogin       = 4
	exitCancelled   = 5
	exitUnreachable = 6
	exitExists      = 7
	exitSpace       = 8
	exitCorrupt     = 9
	exitRefused     = 10
	exitInterrupted = 130
)

const about = `hyperexport exports VMs to disk images on this machine, without a daemon.

Without a VM, on a terminal, it shows the inventory to choose from. An export that was stopped, by Ctrl-C,
a kill or a reboot, goes on with the same command; "hyperexport unfinished" lists what is under way and
"hyperexport cancel" gives it up.

The vCenter or ESXi host comes from GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_INSECURE, from flags,
or from the configuration file that hypervisord reads ($XDG_CONFIG_HOME/hypersdk/config.yaml or
/etc/hypersdk/config.yaml). A password is never a flag: it is in the environment, a file, or asked for.

Exit codes:
  0    done
  1    it failed, or several did for different reasons
  2    the command line, the configuration or the batch file is wrong
  3    there is no such VM, folder, connection or export
  4    the login was refused, or a privilege is missing
  5    the export was cancelled
  6    the vCenter cannot be reached
  7    there is an earlier export in the same place (--overwrite)
  8    there is not enough space
  9    bytes are not what they should be
  10   the VM cannot be exported like this
  130  interrupted; what was copied is kept`

const examples = `  hyperexport
  hyperexport web-01 --output /exports --format qcow2 --compress
  hyperexport --vm /DC0/vm/web-01 --output /exports --dry-run
  hyperexport web-01 --output /backups --incremental
  hyperexport --folder /DC0/vm/shop --filter 'web-*' --output /exports --parallel 2
  hyperexport --batch vms.yaml --output /exports --json
  hyperexport --list --filter db`

// showCursor is what makes a terminal show its cursor, which live bars hide.
func showCursor(f *os.File) string {
	if term.IsTerminal(int(f.Fd())) {
		return "\x1b[?25h"
	}
	return ""
}

// app is one call of the program.
type app struct {
	terminal.Streams
	version  string
	began    bool // the command line was understood
	cfg      daemon.Config
	settings *daemon.Settings
	opt      options
	known    *pflag.FlagSet // the flags of an export, which profiles name
}

// codeError is an error with an exit code of its own.
type codeError struct {
	code int
	err  error // nil: all has been said
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// execute is the program: its command line in, its exit code out.
func execute(ctx context.Context, version string, args []string, s terminal.Streams) int {
	a := &app{Streams: s, version: version, cfg: daemon.Default()}
	a.cfg.Version = version
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := a.exitCode(ctx, err)
	if msg := err.Error(); msg != "" && !errors.Is(err, context.Canceled) {
		for line := range strings.SplitSeq(strings.TrimRight(msg, "\n"), "\n") {
			fmt.Fprintf(s.Err, "hyperexport: %s\n", terminal.Clean(line))
		}
		if code == exitUsage {
			fmt.Fprintln(s.Err, `See "hyperexport --help".`)
		}
	}
	return code
}

func (a *app) exitCode(ctx context.Context, err error) int {
	var own *codeError
	var known *providers.Error
	var answer *api.Error
	switch {
	case errors.As(err, &own):
		return own.code
	case !a.began:
		return exitUsage
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &known):
		return reasonCode(known.Reason)
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return exitNotFound
	}
	return exitFailure
}

// reasonCode is the exit code of a kind of failure.
func reasonCode(r providers.Reason) int {
	switch r {
	case providers.NotFound:
		return exitNotFound
	case providers.Auth, providers.Denied:
		return exitLogin
	case providers.Canceled:
		return exitCancelled
	case providers.Unavailable, providers.Throttled:
		return exitUnreachable
	case providers.Exists:
		return exitExists
	case providers.Exhausted:
		return exitSpace
	case providers.Corrupt:
		return exitCorrupt
	case providers.Invalid, providers.Unsupported, providers.Precondition:
		return exitRefused
	}
	return exitFailure
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "hyperexport [VM...]", Short: "Export VMs without a daemon", Long: about, Example: examples, Version: a.version,
		SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		PersistentPreRun: func(*cobra.Command, []string) { a.began = true },
		RunE:             a.main,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &codeError{exitUsage, err} })
	root.SetVersionTemplate("hyperexport {{.Version}}\n")
	root.Flags().SortFlags, root.PersistentFlags().SortFlags = false, false
	a.flags(root)
	root.AddCommand(a.historyCommand(), a.reportCommand(), a.unfinishedCommand(), a.cancelCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.opt.json {
				return a.printJSON(map[string]string{"version": a.version})
			}
			a.printf("hyperexport %s\n", a.version)
			return nil
		},
	}
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.Out, format, args...) }

func (a *app) complain(format string, args ...any) {
	fmt.Fprintf(a.Err, "hyperexport: %s\n", terminal.Clean(fmt.Sprintf(format, args...)))
}

// printJSON prints a value on one line, or indented where people may read it.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if _, _, terminal := a.Size(); terminal {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := a.Out.Write(b.Bytes())
	return err
}
