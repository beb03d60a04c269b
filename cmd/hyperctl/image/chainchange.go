package image

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"hypersdk/cbt"
	"hypersdk/formats"
)

func (l *cli) chainMergeCommand() *cobra.Command {
	var (
		upTo    int64
		workers int
		bar     bool
	)
	c := &cobra.Command{
		Use: "merge DIR --up-to POINT", Short: "Make a point the oldest of a chain", Args: arguments(1, 1, exitUsage),
		Long: `Makes a point the oldest of a chain: its deltas and its base become one full file, and the points before it are
given up. The data goes into a copy, which is read back and compared with the digest of the point before anything
is given up, so it needs room for one more base. Killed at any moment, the chain is whole.`,
		Example: "  hyperctl image chain merge /backups/web-01 --up-to 7",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			switch {
			case upTo <= 0:
				return usageError("--up-to names the point that becomes the oldest")
			case workers < 0 || workers > 256:
				return usageError("-m %d: 1 to 256", workers)
			}
			return l.change(c, args[0], func(ctx context.Context, ch *cbt.Chain) error {
				p := newProgress(nil, 0, 0)
				if m := ch.Manifest(); bar || onTerminal(c.ErrOrStderr()) {
					p = newProgress(c.ErrOrStderr(), mergeSize(m, upTo), 0)
				}
				opt := formats.CopyOptions{Workers: workers, Buffers: formats.NewBuffers(copyMemory), Progress: oneAfterAnother(p)}
				err := ch.Merge(ctx, upTo, opt)
				p.finish(err == nil)
				return err
			})
		}),
	}
	c.Flags().Int64Var(&upTo, "up-to", 0, "the point that becomes the oldest")
	c.Flags().IntVarP(&workers, "workers", "m", 0, "how much is read and compressed at once (default: one a core)")
	progressFlag(c, &bar)
	return c
}

// mergeSize is how many bytes a merge deals with: each disk that is a delta is written and read back.
func mergeSize(m cbt.Manifest, upTo int64) (n int64) {
	for _, p := range m.Points {
		for _, d := range p.Disks {
			if p.Number == upTo && !d.Full {
				n += 2 * d.Size
			}
		}
	}
	return n
}

// oneAfterAnother sums up the progress of disks, each of which begins at its beginning.
func oneAfterAnother(p *progress) func(formats.Progress) {
	var before, last int64
	return func(now formats.Progress) {
		if now.Done < last {
			before += last
		}
		last = now.Done
		now.Done += before
		p.at(now)
	}
}

func (l *cli) chainDeleteCommand() *cobra.Command {
	var point int64
	c := &cobra.Command{
		Use: "delete DIR", Short: "Delete a point of a chain that no other builds upon", Args: arguments(1, 1, exitUsage),
		Long: `Deletes the newest point of a chain, or one that no other builds upon. A point that others build upon is refused:
"chain merge" gives up old points.`,
		Example: "  hyperctl image chain delete /backups/web-01\n  hyperctl image chain delete /backups/web-01 -p 4",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("point") && point <= 0 {
				return usageError("-p %d: points are numbered from 1", point)
			}
			return l.change(c, args[0], func(ctx context.Context, ch *cbt.Chain) error {
				if point == 0 {
					return ch.DeleteNewest(ctx)
				}
				return ch.Delete(ctx, point)
			})
		}),
	}
	c.Flags().Int64VarP(&point, "point", "p", 0, "the point (default: the newest)")
	return c
}

func (l *cli) chainCleanCommand() *cobra.Command {
	return &cobra.Command{
		Use: "clean DIR", Short: "Remove what interrupted changes of a chain have left", Args: arguments(1, 1, exitUsage),
		Long: `Ends a change of a chain that was decided and interrupted, and removes what other interrupted changes have left to
be gone on with. No point is lost; what is begun again begins anew.`,
		Example: "  hyperctl image chain clean /backups/web-01",
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			return l.change(c, args[0], func(ctx context.Context, ch *cbt.Chain) error { return ch.Clean(ctx) })
		}),
	}
}

// change opens a chain alone, changes it, and prints what it is then for programs.
func (l *cli) change(c *cobra.Command, dir string, do func(context.Context, *cbt.Chain) error) error {
	ch, err := cbt.Open(c.Context(), dir, cbt.Options{})
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := do(c.Context(), ch); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if l.json {
		return l.printChain(c.OutOrStdout(), dir, ch.Manifest())
	}
	return nil
}
