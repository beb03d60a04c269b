package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/formats"
)

// Exit codes of check, as qemu-img has them.
const (
	exitCorrupt     = 2
	exitLeaks       = 3
	exitUncheckable = 63
)

func formatFlag(c *cobra.Command, to *string) {
	c.Flags().StringVarP(to, "format", "f", "", "format of the file (default: recognised)")
}

// imageInfo is what is printed of an image.
type imageInfo struct {
	File       string `json:"file"`
	ActualSize int64  `json:"actual_size"` // that the file takes on its file system, bytes
	formats.Info
}

func (l *cli) infoCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "info FILE", Short: "Say how a disk image is stored", Args: arguments(1, 1, exitUsage),
		Example: "  hyperctl image info disk.vmdk\n  hyperctl image info --json disk.qcow2 | jq .virtual_size\n  hyperctl image info vm.ova",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			s, err := l.openEither(c.Context(), args[0], format)
			if err != nil {
				return err
			}
			defer s.Close()
			if s.pkg != nil && l.member == "" {
				return l.packageInfo(c, s)
			}
			i := imageInfo{File: s.name, ActualSize: s.Allocated()}
			if s.pkg != nil {
				if err := s.into(c.Context(), s.pkg, l.member, format); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				i.File, i.ActualSize = s.name+":"+s.member, s.length
			}
			if s.format.Info == nil {
				return fmt.Errorf("%s: of a %s disk nothing is known but its bytes", i.File, s.format.Name)
			}
			if i.Info, err = s.format.Info(c.Context(), s.data, s.length, formats.OpenOptions{}); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if l.json {
				return printJSON(c.OutOrStdout(), i)
			}
			return printInfo(c.OutOrStdout(), i)
		}),
	}
	formatFlag(c, &format)
	return c
}

// packageInfo prints what is in a package.
func (l *cli) packageInfo(c *cobra.Command, s *stored) error {
	i, err := s.describe(c.Context())
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if l.json {
		return printJSON(c.OutOrStdout(), i)
	}
	printPackage(c.OutOrStdout(), i)
	return nil
}

func printInfo(w io.Writer, i imageInfo) error {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s: %s\n", printable(name), printable(fmt.Sprintf(format, args...)))
	}
	line("image", "%s", i.File)
	line("file format", "%s", i.Format)
	if i.Variant != "" {
		line("variant", "%s", i.Variant)
	}
	line("virtual size", "%s (%d bytes)", bytesText(i.VirtualSize), i.VirtualSize)
	line("disk size", "%s", bytesText(i.ActualSize))
	if i.ClusterSize > 0 {
		line("cluster size", "%d", i.ClusterSize)
	}
	if i.Compression != "" {
		line("compression type", "%s", i.Compression)
	}
	if p := i.Parent; p != nil {
		line("backing file", "%s", p.Name)
		if p.Format != "" {
			line("backing file format", "%s", p.Format)
		}
	}
	for _, s := range i.Snapshots {
		line("snapshot", "%s %q of %s, %s", s.ID, s.Name, s.Time.UTC().Format(time.RFC3339), bytesText(s.VirtualSize))
	}
	for _, b := range i.Bitmaps {
		line("bitmap", "%q, granularity %d, recording %t, in use %t", b.Name, b.Granularity, b.Enabled, b.InUse)
	}
	for _, d := range i.Details {
		if d.Value != "" {
			line(d.Name, "%s", d.Value)
		}
	}
	return nil
}

// checked is what is printed of a check.
type checked struct {
	File   string `json:"file"`
	Format string `json:"format"`
	formats.Report
}

func (l *cli) checkCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "check FILE", Short: "Look for contradictions in a disk image", Args: arguments(1, 1, exitFailure),
		Long: `Reads all that describes a disk image, and none of its data, and reports where it contradicts itself. A package
(OVA, OVF) is also read in full and compared with its manifest.

Exit codes:
  0   nothing is wrong
  1   it could not be checked
  2   it is corrupt
  3   there are leaks: space that nothing uses
  63  the format has nothing to check`,
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			s, err := l.openEither(c.Context(), args[0], format)
			if err != nil {
				var usage *ExitError
				if errors.As(err, &usage) {
					usage.Code = exitFailure // 2 says corrupt here
				}
				return err
			}
			defer s.Close()
			if s.pkg != nil && l.member == "" {
				rep, err := s.audit(c.Context())
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				return l.printReport(c.OutOrStdout(), checked{s.name, s.pkg.format, rep})
			}
			if s.pkg != nil {
				if err := s.into(c.Context(), s.pkg, l.member, format); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
			if s.format.Check == nil {
				return &ExitError{exitUncheckable, fmt.Errorf("%s: a %s disk has nothing to check", s.name, s.format.Name)}
			}
			rep, err := s.format.Check(c.Context(), s.data, s.length, s.options(formats.OpenOptions{}))
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return l.printReport(c.OutOrStdout(), checked{s.name, s.format.Name, rep})
		}),
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &ExitError{exitFailure, err} })
	formatFlag(c, &format)
	return c
}

func (l *cli) printReport(w io.Writer, r checked) error {
	if l.json {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		for _, p := range r.Problems {
			fmt.Fprintf(w, "problem: %s\n", printable(p))
		}
		for _, p := range r.Warnings {
			fmt.Fprintf(w, "warning: %s\n", printable(p))
		}
		if r.Corruptions+r.Leaks == 0 {
			fmt.Fprintln(w, "No errors were found on the image.")
		}
		if r.Corruptions > 0 {
			fmt.Fprintf(w, "%d errors were found: the disk cannot be trusted.\n", r.Corruptions)
		}
		if r.Leaks > 0 {
			fmt.Fprintf(w, "%d leaked clusters were found: space is lost, nothing else.\n", r.Leaks)
		}
		if r.Blocks > 0 {
			fmt.Fprintf(w, "%d of %d blocks are allocated.\n", r.Allocated, r.Blocks)
		}
	}
	switch {
	case r.Corruptions > 0:
		return &ExitError{Code: exitCorrupt}
	case r.Leaks > 0:
		return &ExitError{Code: exitLeaks}
	}
	return nil
}

func (l *cli) mapCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "map FILE", Short: "Say where a disk holds data and where zeros", Args: arguments(1, 1, exitUsage),
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			s, err := l.open(c.Context(), args[0], format)
			if err != nil {
				return err
			}
			defer s.Close()
			img, err := s.image(c.Context(), formats.OpenOptions{})
			if err != nil {
				return err
			}
			defer img.Close()
			if err := l.printMap(c.Context(), c.OutOrStdout(), img); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return nil
		}),
	}
	formatFlag(c, &format)
	return c
}

// printMap prints as it goes: the map of a large disk need not fit into memory.
func (l *cli) printMap(ctx context.Context, w io.Writer, img formats.Image) error {
	head, between, tail := fmt.Sprintf("%-20s%-20s%s\n", "Start", "Length", "Kind"), "", ""
	if l.json {
		head, between, tail = "[", ",\n ", "]\n"
	}
	if _, err := io.WriteString(w, head); err != nil {
		return err
	}
	glue := ""
	for e, err := range formats.Merged(img.Extents(ctx, 0, img.Size())) {
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%-20d%-20d%s\n", e.Off, e.Len, e.Kind)
		if l.json {
			line = glue + `{ "start": ` + strconv.FormatInt(e.Off, 10) + `, "length": ` + strconv.FormatInt(e.Len, 10) + `, "kind": "` + e.Kind.String() + `" }`
			glue = between
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, tail)
	return err
}

// digested is what is printed of a digest.
type digested struct {
	File   string `json:"file"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
}

func (l *cli) digestCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "digest FILE...", Short: "Print the content digest of disk images", Args: arguments(1, -1, exitUsage),
		Long: `Prints the content digest of disk images: that of the disk in them, whatever the format, as the result and
the manifest of an export have it.`,
		Example: "  hyperctl image digest /exports/web-01/web-01-disk-0.qcow2\n  hyperctl image digest --format raw disk.img",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			out := make([]digested, 0, len(args))
			for _, name := range args {
				all, err := l.digests(c.Context(), name, format)
				if err != nil {
					return err
				}
				out = append(out, all...)
				for _, d := range all {
					if !l.json {
						fmt.Fprintf(c.OutOrStdout(), "%s  %s\n", d.Digest, printable(d.File))
					}
				}
			}
			if l.json {
				return printJSON(c.OutOrStdout(), out)
			}
			return nil
		}),
	}
	formatFlag(c, &format)
	return c
}

// digests are that of an image, or those of the disks of a package.
func (l *cli) digests(ctx context.Context, name, format string) ([]digested, error) {
	s, err := l.openEither(ctx, name, format)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.pkg == nil {
		d, err := s.digest(ctx)
		return []digested{d}, err
	}
	want := []string{l.member}
	if l.member == "" {
		want = nil
		for _, m := range s.pkg.members() {
			want = append(want, m.file.Href)
		}
	}
	var out []digested
	for _, w := range want {
		d, err := s.digestIn(ctx, w, format)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// digestIn is the digest of a disk in a package.
func (s *stored) digestIn(ctx context.Context, member, format string) (digested, error) {
	one := stored{File: s.File, name: s.name}
	if err := one.into(ctx, s.pkg, member, format); err != nil {
		return digested{}, fmt.Errorf("%s: %w", s.name, err)
	}
	defer one.inside.Close()
	one.name += ":" + one.member
	return one.digest(ctx)
}

func (s *stored) digest(ctx context.Context) (digested, error) {
	img, err := s.image(ctx, formats.OpenOptions{})
	if err != nil {
		return digested{}, err
	}
	defer img.Close()
	sum, err := contentDigest(ctx, img)
	if err != nil {
		return digested{}, fmt.Errorf("%s: %w", s.name, err)
	}
	return digested{File: s.name, Size: img.Size(), Digest: sum.String()}, nil
}

// contentDigest needs room for the sums of all blocks, 32 bytes a MiB: a file that nobody sees.
func contentDigest(ctx context.Context, img formats.Image) (formats.Digest, error) {
	sums, err := os.CreateTemp("", "hyperctl-*")
	if err != nil {
		return formats.Digest{}, err
	}
	defer sums.Close()
	if err := os.Remove(sums.Name()); err != nil {
		return formats.Digest{}, err
	}
	d, err := formats.CreateDigests(sums, img.Size())
	if err != nil {
		return formats.Digest{}, err
	}
	return formats.DigestOf(ctx, img, d, formats.VerifyOptions{})
}
