package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"hypersdk/cbt"
	"hypersdk/formats"
)

func (l *cli) chainCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "chain", Short: "Look at chains of a base and deltas, flatten and merge them",
		Long: `Looks at the chain in a folder of this host: a base and deltas that keep the disks of a VM at several points,
as incremental exports write them. Nothing outside the folder is opened. A chain that another process changes can
be listed, and is refused as in use by all other commands.

What was interrupted goes on where it was when the same command is given again.`,
		Example: `  hyperctl image chain list /backups/web-01
  hyperctl image chain check /backups/web-01
  hyperctl image chain flatten /backups/web-01 -p 3 -O vmdk web-01.vmdk
  hyperctl image chain merge /backups/web-01 --up-to 7`,
		Args: arguments(0, 0, exitUsage),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			for name, why := range map[string]string{"allow-dir": "no file outside of the folder of a chain is opened", "disk": "all disks are meant"} {
				if f := c.Flags().Lookup(name); f != nil && f.Changed && f.Hidden {
					return usageError("--%s: %s", name, why)
				}
			}
			return nil
		},
	}
	// The flags of images are not for chains.
	f := c.PersistentFlags()
	for _, name := range []string{"allow-dir", "disk"} {
		f.String(name, "", "")
		_ = f.MarkHidden(name) // fails for unknown flags only
	}
	c.AddCommand(l.chainListCommand(), l.chainCheckCommand(), l.chainFlattenCommand(), l.chainMergeCommand(), l.chainDeleteCommand(), l.chainCleanCommand())
	return c
}

// listedChain is what is printed of a chain.
type listedChain struct {
	Folder string `json:"folder"`
	cbt.Manifest
}

func (l *cli) chainListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list DIR", Short: "List the points of a chain", Args: arguments(1, 1, exitUsage),
		Long: `Lists the points of a chain, and for each disk its size, what its file takes, how much was taken from the source,
and how the changes were found, or why the disk was copied in full.`,
		Example: "  hyperctl image chain list /backups/web-01\n  hyperctl image chain list --json /backups/web-01 | jq '.points[-1].number'",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			m, err := cbt.ReadManifest(c.Context(), args[0], cbt.Options{})
			if err != nil {
				return err
			}
			return l.printChain(c.OutOrStdout(), args[0], m)
		}),
	}
}

func (l *cli) printChain(w io.Writer, dir string, m cbt.Manifest) error {
	if l.json {
		return printJSON(w, listedChain{dir, m})
	}
	var stored int64
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POINT\tTIME\tDISK\tSIZE\tSTORED\tCHANGED\tHOW")
	for _, p := range m.Points {
		for _, d := range p.Disks {
			stored += d.Stored
			how := string(d.By)
			if d.Full {
				how = "full: " + d.Reason
			}
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Number, p.Time.Format(time.RFC3339), printable(d.Disk),
				bytesText(d.Size), bytesText(d.Stored), bytesText(d.Changed), printable(how))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %s of %s in %s\n", printable(dir), count(len(m.Points), "point"), printable(vmName(m.VM)), bytesText(stored))
	return err
}

func vmName(vm cbt.VM) string {
	if vm.Name != "" {
		return vm.Name
	}
	return vm.ID
}

// checkedChain is what is printed of a check.
type checkedChain struct {
	Folder string `json:"folder"`
	cbt.CheckReport
}

var depths = map[string]cbt.Depth{"links": cbt.CheckLinks, "tables": cbt.CheckTables, "data": cbt.CheckData}

func (l *cli) chainCheckCommand() *cobra.Command {
	depth, bar := "data", false
	c := &cobra.Command{
		Use: "check DIR", Short: "Look for what is missing or damaged in a chain", Args: arguments(1, 1, exitFailure),
		Long: `Examines a chain, and names point, disk and file of what is missing or damaged.

Depths:
  links   every file is there, has its size and names the right backing file; every index is that of its point
  tables  and no qcow2 file contradicts itself, and every index makes the digest of its point
  data    and every point of every disk has its digest; each stored block is read once

Exit codes:
  0  nothing is wrong
  1  it could not be checked
  2  something is missing or damaged
  3  there are files that no point has: what an interrupted change left to be gone on with, or else space that
     nothing uses ("chain clean" removes what changes have left)`,
		Example: "  hyperctl image chain check /backups/web-01\n  hyperctl image chain check --depth links --json /backups/web-01 | jq .problems",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			d, ok := depths[depth]
			if !ok {
				return &ExitError{exitFailure, fmt.Errorf("--depth %s: links, tables and data are known", depth)}
			}
			ch, err := cbt.Open(c.Context(), args[0], cbt.Options{ReadOnly: true})
			if errors.Is(err, formats.ErrCorrupt) {
				return &ExitError{exitCorrupt, err}
			}
			if err != nil {
				return err
			}
			defer ch.Close()
			line := newLiveLine(c.ErrOrStderr(), bar)
			r, err := ch.Check(c.Context(), cbt.CheckOptions{Depth: d, Progress: func(p cbt.CheckProgress) {
				line.show("%d of %d files, %s read", p.Links, p.Of, bytesText(p.Read))
			}})
			line.clear()
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return l.printChainReport(c.OutOrStdout(), checkedChain{args[0], r})
		}),
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &ExitError{exitFailure, err} })
	c.Flags().StringVar(&depth, "depth", depth, "how much is read: links, tables, data")
	progressFlag(c, &bar)
	return c
}

func progressFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "progress", false, "show the progress, even where there is no terminal")
}

func (l *cli) printChainReport(w io.Writer, r checkedChain) error {
	if l.json {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		for _, p := range r.Problems {
			fmt.Fprintf(w, "problem: point %d, disk %s, %s: %s\n", p.Point, printable(p.Disk), p.File, printable(p.What))
		}
		for _, name := range r.Strays {
			fmt.Fprintf(w, "left over: %s\n", printable(name))
		}
		if r.Pending {
			fmt.Fprintln(w, "A change is decided and was interrupted: whoever changes the chain next ends it.")
		}
		if len(r.Problems) == 0 {
			fmt.Fprintf(w, "No errors were found in the chain: %s in %s, %s of disks read.\n", count(r.Points, "point"), count(r.Links, "file"), bytesText(r.Read))
		} else {
			fmt.Fprintf(w, "%s found: those points, and what builds upon them, cannot be trusted.\n", count(len(r.Problems), "error"))
		}
	}
	switch {
	case len(r.Problems) > 0:
		return &ExitError{exitCorrupt, nil}
	case len(r.Strays) > 0:
		return &ExitError{exitLeaks, nil}
	}
	return nil
}

// count is a number of things: "1 point", "2 points".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}

// pick finds a disk at a point; point 0 is the newest, and of a point with one disk it need not be named.
// The disk is what the provider calls it, or what its files are called.
func pick(m cbt.Manifest, point int64, disk string) (*cbt.State, *cbt.Disk, error) {
	at := m.Newest()
	for i := range m.Points {
		if m.Points[i].Number == point {
			at = &m.Points[i]
		}
	}
	if at == nil || point != 0 && at.Number != point {
		return nil, nil, fmt.Errorf("there is no point %d: %w", point, cbt.ErrNotFound)
	}
	for _, l := range m.Labels {
		if l.Name == disk {
			disk = l.Disk
			break
		}
	}
	var names []string
	for i := range at.Disks {
		if at.Disks[i].Disk == disk || disk == "" && len(at.Disks) == 1 {
			return at, &at.Disks[i], nil
		}
		names = append(names, at.Disks[i].Disk)
	}
	if disk == "" {
		return nil, nil, usageError("point %d has %d disks, name one of them with -d: %s", at.Number, len(names), printable(strings.Join(names, ", ")))
	}
	return nil, nil, fmt.Errorf("point %d has no disk %q, but %s: %w", at.Number, disk, printable(strings.Join(names, ", ")), cbt.ErrNotFound)
}

// liveLine is a line on a terminal that changes.
type liveLine struct {
	w        io.Writer // nil: nobody wants to know
	terminal bool
	last     time.Time
}

// newLiveLine is a line on a terminal; where there is none, nothing is shown unless it is wanted.
func newLiveLine(w io.Writer, wanted bool) *liveLine {
	l := &liveLine{w: w, terminal: onTerminal(w)}
	if !l.terminal && !wanted {
		l.w = nil
	}
	return l
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (l *liveLine) show(format string, args ...any) {
	now := time.Now()
	pause := 5 * time.Second
	if l.terminal {
		pause = 100 * time.Millisecond
	}
	if l.w == nil || now.Sub(l.last) < pause {
		return
	}
	l.last = now
	if l.terminal {
		fmt.Fprintf(l.w, "\r\x1b[K"+format, args...)
		return
	}
	fmt.Fprintf(l.w, format+"\n", args...)
}

func (l *liveLine) clear() {
	if l.w != nil && l.terminal {
		fmt.Fprint(l.w, "\r\x1b[K")
	}
}
