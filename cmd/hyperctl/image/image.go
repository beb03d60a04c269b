// Package image is `hyperctl image`: disk images on this host looked at, compared and converted,
// without a daemon. Its flags and exit codes are those that users of qemu-img know.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
)

// Exit codes that all commands share; check and compare have their own.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// ExitError is an error with the exit code that it ends the program with.
type ExitError struct {
	Code int
	Err  error // nil: all has been said
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the exit code.
func (e *ExitError) ExitCode() int { return e.Code }

func usageError(format string, args ...any) error {
	return &ExitError{exitUsage, fmt.Errorf(format, args...)}
}

// cli is what the commands share.
type cli struct {
	json   bool
	allow  string
	member string // of a package: the disk that is meant
}

// Command is `image`. Every error of it is an [ExitError].
func Command() *cobra.Command {
	var l cli
	c := &cobra.Command{
		Use: "image", Short: "Look at disk images on this host, compare and convert them",
		Long: `Looks at disk images on this host, compares and converts them. No daemon is needed.

A format is recognised by its content; a raw disk has to be named so (-f raw), since a guest can write
the beginning of any format into it. Nothing is opened beside an image (a backing file, a parent, an
extent) unless --allow-dir names a folder, and then only below that.

Of a package, an OVA file or an OVF descriptor with its disks beside it, the disk that --disk names is used.`,
		SilenceErrors: true, SilenceUsage: true,
		Args: arguments(0, 0, exitUsage),
		// Nothing of what other commands prepare is needed here.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := c.PersistentFlags()
	f.BoolVar(&l.json, "json", false, "print JSON")
	f.StringVar(&l.allow, "allow-dir", "", "folder below which files that an image names may be opened")
	f.StringVar(&l.member, "disk", "", "disk of an OVA or OVF: its number, from 1, or the name of its file")
	// The flag of the commands that talk to the daemon, whose shorthand compare needs, is not for these.
	f.String("server", "", "")
	_ = f.MarkHidden("server") // fails for unknown flags only
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &ExitError{exitUsage, err} })
	c.AddCommand(l.infoCommand(), l.checkCommand(), l.mapCommand(), l.compareCommand(), l.convertCommand(), l.digestCommand(), l.chainCommand())
	return c
}

// arguments wants from low to high of them; high < 0: any number.
func arguments(low, high, code int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case high == 0 && len(args) > 0:
			return &ExitError{code, fmt.Errorf("%s takes no %q", c.CommandPath(), args[0])}
		case len(args) < low, high >= 0 && len(args) > high:
			return &ExitError{code, fmt.Errorf("%s takes %s, see --help", c.CommandPath(), strings.TrimPrefix(c.Use, c.Name()+" "))}
		}
		return nil
	}
}

// run gives the errors of a command their exit code.
func run(code int, do func(c *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := do(c, args)
		var own *ExitError
		switch {
		case err == nil || errors.As(err, &own):
			return err
		case c.Context().Err() != nil && errors.Is(err, context.Cause(c.Context())):
			return &ExitError{exitInterrupted, err}
		}
		return &ExitError{code, err}
	}
}

// printJSON prints a value, indented.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printable makes text from an image fit for a terminal: what could move the cursor or turn the
// direction of writing becomes visible.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// bytesText is a size for people: "1.5 GiB".
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), 0
	for ; f >= 1024 && unit < 6; unit++ {
		f /= 1024
	}
	return fmt.Sprintf("%.3g %s", f, [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}[unit])
}
