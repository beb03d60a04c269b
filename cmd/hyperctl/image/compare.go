package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"runtime"
	"sync"

	"github.com/spf13/cobra"

	"hypersdk/formats"
)

// Exit codes of compare, as qemu-img has them.
const (
	exitDiffer     = 1
	exitNoCompared = 2
)

// comparison is what is printed of a comparison.
type comparison struct {
	Identical bool     `json:"identical"`
	Offset    *int64   `json:"offset,omitempty"` // of the first byte that differs
	Sizes     [2]int64 `json:"sizes"`
}

func (l *cli) compareCommand() *cobra.Command {
	var (
		formatA, formatB string
		strict, quiet    bool
	)
	c := &cobra.Command{
		Use: "compare FILE1 FILE2", Short: "Say whether two disk images hold the same disk", Args: arguments(2, 2, exitNoCompared),
		Long: `Says whether two disk images hold the same disk, whatever their formats, and names the first offset at which they
differ. A longer disk is equal to a shorter one where the rest of it is zeros, unless --strict is given.

Exit codes:
  0  they are the same
  1  they differ
  2  they could not be compared`,
		RunE: run(exitNoCompared, func(c *cobra.Command, args []string) error {
			a, err := l.disk(c.Context(), args[0], formatA)
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := l.disk(c.Context(), args[1], formatB)
			if err != nil {
				return err
			}
			defer b.Close()
			res, err := compare(c.Context(), a.Image, b.Image, strict)
			if err != nil {
				return err
			}
			if !quiet {
				if err := l.printComparison(c, res, strict); err != nil {
					return err
				}
			}
			if !res.Identical {
				return &ExitError{Code: exitDiffer}
			}
			return nil
		}),
	}
	f := c.Flags()
	f.StringVarP(&formatA, "format", "f", "", "format of the first image (default: recognised)")
	f.StringVarP(&formatB, "second-format", "F", "", "format of the second image (default: recognised)")
	f.BoolVarP(&strict, "strict", "s", false, "disks of different sizes differ")
	f.BoolVarP(&quiet, "quiet", "q", false, "answer by the exit code only")
	return c
}

func (l *cli) printComparison(c *cobra.Command, res comparison, strict bool) error {
	w := c.OutOrStdout()
	switch {
	case l.json:
		return printJSON(w, res)
	case res.Offset != nil:
		fmt.Fprintf(w, "Content mismatch at offset %d!\n", *res.Offset)
	case !res.Identical:
		fmt.Fprintf(w, "Strict mode: the disks have %d and %d bytes!\n", res.Sizes[0], res.Sizes[1])
	default:
		if res.Sizes[0] != res.Sizes[1] {
			fmt.Fprintf(c.ErrOrStderr(), "Warning: the disks have %d and %d bytes, the rest of the longer one is zeros.\n", res.Sizes[0], res.Sizes[1])
		}
		fmt.Fprintln(w, "Images are identical.")
	}
	return nil
}

// disk is an image and the file it is in.
type disk struct {
	formats.Image
	*stored
}

func (d disk) Close() error { return errors.Join(d.Image.Close(), d.stored.Close()) }

func (l *cli) disk(ctx context.Context, name, format string) (disk, error) {
	s, err := l.openFile(ctx, name, format)
	if err != nil {
		return disk{}, err
	}
	if s.pkg != nil { // the other one may be none
		if err := s.into(ctx, s.pkg, l.member, format); err != nil {
			return disk{}, errors.Join(fmt.Errorf("%s: %w", name, err), s.Close())
		}
	}
	img, err := s.image(ctx, formats.OpenOptions{})
	if err != nil {
		return disk{}, errors.Join(err, s.Close())
	}
	return disk{img, s}, nil
}

// compare reads two disks side by side.
func compare(ctx context.Context, a, b formats.Image, strict bool) (comparison, error) {
	res := comparison{Sizes: [2]int64{a.Size(), b.Size()}}
	if strict && a.Size() != b.Size() {
		return res, nil
	}
	c := comparer{a: a, b: b, at: math.MaxInt64}
	if err := c.run(ctx); err != nil {
		return res, err
	}
	if c.at < math.MaxInt64 {
		res.Offset = &c.at
		return res, nil
	}
	res.Identical = true
	return res, nil
}

// compareAt is how much of both disks is read at once.
const compareAt = 1 << 20

// stretch is a part of two disks that have the same kind all over it.
type stretch struct {
	off, n int64
	a, b   bool // there is data to read; else zeros
}

// comparer finds the first byte that differs. Stretches are handed out in the order of the disk, so
// that when a difference ends it, all before has been looked at.
type comparer struct {
	a, b formats.Image

	mu    sync.Mutex
	at    int64 // of the first difference
	err   error
	errAt int64 // of what could not be read
}

func (c *comparer) run(ctx context.Context) error {
	work := make(chan stretch)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var bufs [2][]byte
			for i := range bufs {
				bufs[i] = make([]byte, compareAt)
			}
			for s := range work {
				c.look(s, bufs)
			}
		})
	}
	err := c.plan(ctx, work)
	close(work)
	wg.Wait()
	// A difference found is the answer, whatever went wrong behind it.
	if c.at < math.MaxInt64 && (c.err == nil || c.at < c.errAt) {
		return nil
	}
	if c.err != nil {
		return c.err
	}
	return err
}

// done says whether there is nothing left to find out.
func (c *comparer) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.at < math.MaxInt64
}

// plan walks the maps of both disks; behind the end of a disk it is zeros.
func (c *comparer) plan(ctx context.Context, work chan<- stretch) error {
	nextA, stopA := iter.Pull2(padded(ctx, c.a, c.b.Size()))
	defer stopA()
	nextB, stopB := iter.Pull2(padded(ctx, c.b, c.a.Size()))
	defer stopB()
	var a, b formats.Extent
	for off, end := int64(0), max(c.a.Size(), c.b.Size()); off < end && !c.done(); {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := advance(nextA, &a, off); err != nil {
			return err
		}
		if err := advance(nextB, &b, off); err != nil {
			return err
		}
		n := min(a.End(), b.End()) - off
		s := stretch{off: off, n: n, a: a.Kind != formats.Zero, b: b.Kind != formats.Zero}
		if s.a || s.b {
			s.n = min(n, compareAt)
			work <- s
		}
		off += s.n
	}
	return nil
}

// advance makes e the extent that holds off.
func advance(next func() (formats.Extent, error, bool), e *formats.Extent, off int64) error {
	for e.End() <= off {
		got, err, ok := next()
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("the map of the disk ends at %d: %w", off, formats.ErrCorrupt)
		}
		*e = got
	}
	return nil
}

// padded is the map of a disk, followed by zeros up to end.
func padded(ctx context.Context, img formats.Image, end int64) iter.Seq2[formats.Extent, error] {
	return formats.Merged(func(yield func(formats.Extent, error) bool) {
		for e, err := range img.Extents(ctx, 0, img.Size()) {
			if !yield(e, err) {
				return
			}
		}
		if end > img.Size() {
			yield(formats.Extent{Off: img.Size(), Len: end - img.Size(), Kind: formats.Zero}, nil)
		}
	})
}

func (c *comparer) look(s stretch, bufs [2][]byte) {
	at, err := int64(-1), error(nil)
	a, b := bufs[0][:s.n], bufs[1][:s.n]
	for _, side := range []struct {
		img  formats.Image
		data bool
		buf  []byte
	}{{c.a, s.a, a}, {c.b, s.b, b}} {
		if !side.data {
			clear(side.buf)
		} else if n, e := side.img.ReadAt(side.buf, s.off); n < len(side.buf) && err == nil {
			if err = e; err == nil || errors.Is(err, io.EOF) {
				err = fmt.Errorf("read of %d bytes at %d gave %d: %w", len(side.buf), s.off, n, formats.ErrCorrupt)
			}
		}
	}
	if err == nil && !bytes.Equal(a, b) {
		for at = 0; a[at] == b[at]; at++ {
		}
		at += s.off
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil && (c.err == nil || s.off < c.errAt):
		c.err, c.errAt = err, s.off
	case at >= 0:
		c.at = min(c.at, at)
	}
}
