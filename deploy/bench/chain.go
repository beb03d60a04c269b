package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/raw"
)

const (
	chainSize   = 1 << 30
	chainDeltas = 30
	chainGrain  = 64 << 10
)

// chain reads a disk at the newest point of a base and 30 deltas, beside a flat file of the same disk,
// and plans 100,000 changes.
func (b *bench) chain(ctx context.Context) error {
	if err := b.plan(); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "chain")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	flat, err := os.Create(filepath.Join(dir, "flat.raw"))
	if err != nil {
		return err
	}
	defer flat.Close()
	c, err := cbt.Create(ctx, dir, cbt.VM{ID: "bench"}, cbt.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := fillChain(ctx, c, flat); err != nil {
		return err
	}
	file, err := raw.Open(ctx, flat, chainSize, formats.OpenOptions{})
	if err != nil {
		return err
	}
	// From the page cache, reading is nothing but work of the processor, which is told from what else the
	// machine does by its time.
	var took [2][]time.Duration
	for range max(b.rounds, 5) {
		newest, err := c.Open(ctx, chainDeltas+1, "disk")
		if err != nil {
			return err
		}
		for i, img := range []formats.Image{file, newest} {
			t, err := readDisk(ctx, img)
			if err != nil {
				return errors.Join(err, newest.Close())
			}
			took[i] = append(took[i], t)
		}
		if err := newest.Close(); err != nil {
			return err
		}
	}
	flatTook, chainTook := median(took[0]), median(took[1])
	b.add("reading 1 GiB at the newest point of a base and 30 deltas of 1 % each, from the page cache, processor time",
		fmt.Sprintf("%s: %.2f of the rate of a flat file", chainTook.Round(time.Millisecond), flatTook.Seconds()/chainTook.Seconds()), "at least 0.7")
	return nil
}

// fillChain writes a base and deltas from a disk that lies in a file.
func fillChain(ctx context.Context, c *cbt.Chain, flat *os.File) error {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // what it writes is no secret
	buf := make([]byte, chainGrain)
	fill := func(off int64) error {
		for i := 0; i < len(buf); i += 8 {
			v := r.Uint64()
			for j := range 8 {
				buf[i+j] = byte(v >> (8 * j))
			}
		}
		_, err := flat.WriteAt(buf, off)
		return err
	}
	for off := int64(0); off < chainSize; off += chainGrain {
		if err := fill(off); err != nil {
			return err
		}
	}
	for n := range chainDeltas + 1 {
		id := cbt.Point(fmt.Sprint(n))
		d := cbt.NewDisk{Disk: "disk", Size: chainSize, ChangeID: id}
		if n > 0 {
			changes := cbt.Changes{From: cbt.Point(fmt.Sprint(n - 1)), To: id, By: cbt.Tracked}
			for range chainSize / 100 / chainGrain {
				off := r.Int64N(chainSize/chainGrain) * chainGrain
				if err := fill(off); err != nil {
					return err
				}
				if err := changes.Ranges.Add(off, chainGrain); err != nil {
					return err
				}
			}
			d.Changes = &changes
		}
		if err := appendPoint(ctx, c, d, flat); err != nil {
			return err
		}
	}
	return nil
}

func appendPoint(ctx context.Context, c *cbt.Chain, d cbt.NewDisk, flat *os.File) error {
	a, err := c.Begin(ctx, cbt.NewPoint{Key: string(d.ChangeID), Time: time.Now(), Disks: []cbt.NewDisk{d}})
	if err != nil {
		return err
	}
	defer a.Close()
	img, err := raw.Open(ctx, flat, chainSize, formats.OpenOptions{})
	if err != nil {
		return err
	}
	if _, err := a.Copy(ctx, d.Disk, img, formats.CopyOptions{}); err != nil {
		return err
	}
	return a.Commit(ctx)
}

// processor is the time that this process has had of the processor.
func processor() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// readDisk reads all that is data, in windows as a copy does, and says what processor time it took.
func readDisk(ctx context.Context, img formats.Image) (time.Duration, error) {
	buf := make([]byte, 2<<20)
	begin, err := processor()
	if err != nil {
		return 0, err
	}
	for e, err := range formats.Merged(img.Extents(ctx, 0, img.Size())) {
		if err != nil {
			return 0, err
		}
		for off := e.Off; off < e.End(); {
			n := min(int64(len(buf)), e.End()-off)
			if m, err := img.ReadAt(buf[:n], off); int64(m) < n {
				return 0, err
			}
			off += n
		}
	}
	end, err := processor()
	return end - begin, err
}

// plan collects and aligns 100,000 scattered changes of a disk of 64 GiB.
func (b *bench) plan() error {
	const size, changes = 64 << 30, 100_000
	r := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // where changes lie is no secret
	all := make([]cbt.Range, changes)
	for i := range all {
		all[i] = cbt.Range{Off: r.Int64N(size/chainGrain) * chainGrain, Len: chainGrain}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	s, err := cbt.Collect(slices.Values(all))
	if err != nil {
		return err
	}
	s = s.Align(chainGrain, size).Coalesce(0)
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	b.add(fmt.Sprintf("planning 100,000 scattered changes of a 64 GiB disk (%d ranges)", s.Len()),
		fmt.Sprintf("%s, %d MiB", took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20), "under 2 s and 64 MiB")
	return nil
}
