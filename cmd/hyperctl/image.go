package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"hypersdk/formats"
	"hypersdk/formats/all"
)

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "image", Short: "Look at disk images on this host", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.imageDigestCommand())
	return c
}

// imageDigest is what is printed of an image.
type imageDigest struct {
	File   string `json:"file"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
}

func (a *app) imageDigestCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "digest FILE...", Short: "Print the content digest of disk images", Args: someArgs("a file"),
		Long: `Prints the content digest of disk images: that of the disk in them, whatever the format, as the result and
the manifest of an export have it. The format is recognised by its content; a raw disk has to be named so.`,
		Example: "  hyperctl image digest /exports/web-01/web-01-disk-0.qcow2\n  hyperctl image digest --format raw disk.img",
		RunE: func(c *cobra.Command, args []string) error {
			out := make([]imageDigest, 0, len(args))
			for _, name := range args {
				d, err := digestFile(c.Context(), name, format)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				out = append(out, d)
				if !a.json {
					a.printf("%s  %s\n", d.Digest, clean(d.File))
				}
			}
			if a.json {
				return a.printJSON(out)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "format of the files (default: recognised)")
	return c
}

func digestFile(ctx context.Context, name, format string) (d imageDigest, err error) {
	f, err := os.Open(name)
	if err != nil {
		return d, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return d, err
	}
	if !st.Mode().IsRegular() {
		return d, errors.New("is not a file")
	}
	img, err := openImage(ctx, f, st.Size(), format)
	if err != nil {
		return d, err
	}
	defer img.Close()
	sum, err := contentDigest(ctx, img)
	return imageDigest{File: name, Size: img.Size(), Digest: sum}, err
}

func openImage(ctx context.Context, f *os.File, size int64, format string) (formats.Image, error) {
	if format == "" {
		return all.Open(ctx, f, size, formats.OpenOptions{})
	}
	kind, err := all.ByName(format)
	if err != nil {
		return nil, usageError("%s", err)
	}
	if kind.Open == nil {
		return nil, fmt.Errorf("%s cannot be read at random", kind.Name)
	}
	return kind.Open(ctx, f, size, formats.OpenOptions{})
}

// contentDigest needs room for the sums of all blocks, 32 bytes a MiB: a file that nobody sees.
func contentDigest(ctx context.Context, img formats.Image) (string, error) {
	sums, err := os.CreateTemp("", "hyperctl-*")
	if err != nil {
		return "", err
	}
	defer sums.Close()
	if err := os.Remove(sums.Name()); err != nil {
		return "", err
	}
	d, err := formats.CreateDigests(sums, img.Size())
	if err != nil {
		return "", err
	}
	sum, err := formats.DigestOf(ctx, img, d, formats.VerifyOptions{})
	if err != nil {
		return "", err
	}
	return sum.String(), nil
}
