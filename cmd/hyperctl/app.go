package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/cmd/hyperctl/image"
	"hypersdk/cmd/terminal"
)

// Exit codes. They are a contract with scripts.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitJobFailed   = 4
	exitCancelled   = 5
	exitUnreachable = 6
	exitInterrupted = 130
)

const about = `hyperctl talks to the HyperSDK daemon: it submits exports, follows and steers them, and lists and operates VMs.

Exit codes:
  0    done
  1    it failed
  2    the command line is wrong
  3    there is no such job, VM or connection
  4    a job that was watched failed
  5    a job that was watched was cancelled
  6    no daemon answers
  130  interrupted

Environment:
  HYPERSDK_SERVER               the daemon, where --server is not given
  GOVC_USERNAME, GOVC_PASSWORD  the login for --vcenter
  NO_COLOR                      no colours`

// app is one call of the program.
type app struct {
	terminal.Streams
	server string
	json   bool
	began  bool // the command line was understood
	client *client.Client
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

// run is the program: its command line in, its exit code out.
func run(ctx context.Context, args []string, s terminal.Streams) int {
	a := &app{Streams: s}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err == nil {
		return 0
	}
	code := a.exitCode(ctx, err)
	if msg := a.explain(err); msg != "" && code != exitInterrupted {
		fmt.Fprintf(s.Err, "hyperctl: %s\n", clean(msg))
		if code == exitUsage {
			fmt.Fprintln(s.Err, `See "hyperctl --help".`)
		}
	}
	return code
}

func (a *app) exitCode(ctx context.Context, err error) int {
	var own *codeError
	var ofImage *image.ExitError
	var away *client.UnreachableError
	switch {
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &ofImage):
		return ofImage.Code
	case !a.began:
		return exitUsage
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &away):
		return exitUnreachable
	case client.IsNotFound(err):
		return exitNotFound
	}
	return exitFailure
}

// explain is an error in words that say what to do.
func (a *app) explain(err error) string {
	var away *client.UnreachableError
	if errors.As(err, &away) {
		var system syscall.Errno
		if errors.As(err, &system) {
			away.Err = system // "connection refused" says it all
		}
		return fmt.Sprintf("no daemon answers at %s (%v)\nStart one with \"hypervisord\", or name another with --server or HYPERSDK_SERVER.", away.Server, away.Err)
	}
	return err.Error()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "hyperctl", Short: "Export virtual machines", Long: about, Version: programVersion(),
		SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			a.began = true
			if a.server == "" {
				a.server = a.Env("HYPERSDK_SERVER")
			}
			var err error
			if a.client, err = client.New(a.server, "hyperctl/"+programVersion()); err != nil {
				return &codeError{exitUsage, err}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &codeError{exitUsage, err} })
	f := root.PersistentFlags()
	f.StringVarP(&a.server, "server", "s", "", "URL of the daemon (default $HYPERSDK_SERVER or "+client.DefaultServer+")")
	f.BoolVar(&a.json, "json", false, "print JSON")
	root.SetVersionTemplate("hyperctl {{.Version}}\n")
	root.AddCommand(
		a.submitCommand(), a.queryCommand(), a.statusCommand(), a.watchCommand(), a.logsCommand(), a.cancelCommand(),
		a.pauseCommand(), a.resumeCommand(), a.limitCommand(), a.vmsCommand(), a.tuiCommand(), a.inventoryCommand(), a.cbtCommand(), a.incrementalCommand(), a.syncCommand(), a.convertCommand(), image.Command(), a.versionCommand(),
	)
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("%s takes no %q%s", c.CommandPath(), clean(args[0]), suggestion(c, args[0]))
	}
	return nil
}

func someArgs(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError("%s needs %s", c.CommandPath(), what)
		}
		return nil
	}
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError("%s needs %s", c.CommandPath(), what)
		}
		return nil
	}
}

func suggestion(c *cobra.Command, word string) string {
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(word); len(near) > 0 {
		return fmt.Sprintf("; did you mean %q?", near[0])
	}
	return ""
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.Out, format, args...) }

func (a *app) complain(format string, args ...any) {
	fmt.Fprintf(a.Err, "hyperctl: "+format+"\n", args...)
}

// printJSON prints a value, indented.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := a.Out.Write(b.Bytes())
	return err
}

// password finds a password where nobody else sees it: in a file, in the environment, or by asking.
func (a *app) password(file, what string) (string, error) {
	switch {
	case file == "-":
		b, err := io.ReadAll(io.LimitReader(a.In, 64<<10))
		return strings.TrimRight(string(b), "\r\n"), err
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("password file: %w", err)
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	if p := a.Env("GOVC_PASSWORD"); p != "" {
		return p, nil
	}
	if a.Ask == nil {
		return "", usageError("a password for %s is needed: set GOVC_PASSWORD or give --password-file", what)
	}
	return a.Ask("Password for " + clean(what) + ": ")
}

// vcenter are the flags that name a vCenter instead of a connection.
type vcenter struct {
	server, username, passwordFile, thumbprint, connection string
	insecure                                               bool
}

func (v *vcenter) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&v.connection, "connection", "", "configured connection of the daemon (default: its default one)")
	f.StringVar(&v.server, "vcenter", "", "vCenter or ESXi host to use instead of a connection")
	f.StringVar(&v.username, "username", "", "user name for --vcenter (default $GOVC_USERNAME)")
	f.StringVar(&v.passwordFile, "password-file", "", "file with the password for --vcenter; - is the standard input (default $GOVC_PASSWORD, or asked for)")
	f.BoolVar(&v.insecure, "insecure", false, "trust any certificate of --vcenter")
	f.StringVar(&v.thumbprint, "thumbprint", "", "SHA-256 or SHA-1 of the only certificate of --vcenter to trust")
}

// credentials are those of the flags; nil where they name no vCenter.
func (v *vcenter) credentials(a *app) (*api.Credentials, error) {
	if v.server == "" {
		if v.username != "" || v.passwordFile != "" || v.insecure || v.thumbprint != "" {
			return nil, usageError("--username, --password-file, --insecure and --thumbprint belong to --vcenter")
		}
		return nil, nil
	}
	if v.connection != "" {
		return nil, usageError("--vcenter and --connection exclude each other")
	}
	c := &api.Credentials{Server: v.server, Username: v.username, Insecure: v.insecure, Thumbprint: v.thumbprint}
	if c.Username == "" {
		c.Username = a.Env("GOVC_USERNAME")
	}
	if c.Username == "" {
		return nil, usageError("--vcenter needs --username or GOVC_USERNAME")
	}
	var err error
	c.Password, err = a.password(v.passwordFile, c.Username+" at "+v.server)
	return c, err
}
