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
	if err := b.plan(ctx); err != nil {
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
	for _, how := range []struct {
		what, wanted string
		read         func(context.Context, formats.Image) error
	}{
		{"reading 1 GiB at the newest point of a base and 30 deltas of 1 % each", "at least 0.7", readDisk},
		{"the same, copied into nothing with digests, as a restore reads it", "at least 0.9", copyDisk},
	} {
		row, err := b.newest(ctx, c, file, how.read)
		if err != nil {
			return err
		}
		b.add(how.what+", from the page cache, processor time", row, how.wanted)
	}
	return nil
}

// newest reads the newest point and a flat file in turns. From the page cache that is nothing but work of
// the processor, which is told from what else the machine does by its time; what that does to the memory
// still shows, so the least disturbed round of each counts.
func (b *bench) newest(ctx context.Context, c *cbt.Chain, flat formats.Image, read func(context.Context, formats.Image) error) (string, error) {
	var took [2]time.Duration
	for range max(b.rounds, 15) {
		img, err := c.Open(ctx, chainDeltas+1, "disk")
		if err != nil {
			return "", err
		}
		for i, img := range []formats.Image{flat, img} {
			begin, err := processor()
			if err == nil {
				err = read(ctx, img)
			}
			end, perr := processor()
			if err = errors.Join(err, perr); err != nil {
				return "", err
			}
			if t := end - begin; took[i] == 0 || t < took[i] {
				took[i] = t
			}
		}
		if err := img.Close(); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s: %.2f of the rate of a flat file", took[1].Round(time.Millisecond), took[0].Seconds()/took[1].Seconds()), nil
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
	img, err := raw.Open(ctx, flat, d.Size, formats.OpenOptions{})
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

// readDisk reads all that is data, in windows as a copy does.
func readDisk(ctx context.Context, img formats.Image) error {
	buf := make([]byte, 2<<20)
	for e, err := range formats.MergedAhead(img.Extents(ctx, 0, img.Size())) {
		if err != nil {
			return err
		}
		for off := e.Off; off < e.End(); {
			n := min(int64(len(buf)), e.End()-off)
			if m, err := img.ReadAt(buf[:n], off); int64(m) < n {
				return err
			}
			off += n
		}
	}
	return nil
}

// copyDisk copies a disk into nothing.
func copyDisk(ctx context.Context, img formats.Image) error {
	f, err := os.CreateTemp("", "hypersdk-bench")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	d, err := formats.CreateDigests(f, img.Size())
	if err != nil {
		return err
	}
	_, err = formats.Copy(ctx, nothing{}, img, formats.CopyOptions{Digests: d})
	return err
}

// nothing is a target that keeps nothing.
type nothing struct{}

func (nothing) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nothing) WriteZeroes(int64, int64) error         { return nil }
func (nothing) BlockSize() int64                       { return 512 }
func (nothing) Checkpoint(off int64) (formats.Checkpoint, error) {
	return formats.Checkpoint{Off: off}, nil
}
func (nothing) Sync(context.Context) error   { return nil }
func (nothing) Commit(context.Context) error { return nil }
func (nothing) Close() error                 { return nil }

// plan begins a point with 100,000 scattered changes of a disk of 64 GiB.
func (b *bench) plan(ctx context.Context) error {
	const size, changes = 64 << 30, 100_000
	dir := filepath.Join(b.dir, "plan")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sparse, err := os.Create(filepath.Join(dir, "sparse.raw"))
	if err != nil {
		return err
	}
	defer sparse.Close()
	if err := sparse.Truncate(size); err != nil {
		return err
	}
	c, err := cbt.Create(ctx, dir, cbt.VM{ID: "bench"}, cbt.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	d := cbt.NewDisk{Disk: "disk", Size: size, ChangeID: "0"}
	if err := appendPoint(ctx, c, d, sparse); err != nil {
		return err
	}
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
	d.ChangeID, d.Changes = "1", &cbt.Changes{From: "0", To: "1", By: cbt.Tracked, Ranges: s.Coalesce(0)}
	a, err := c.Begin(ctx, cbt.NewPoint{Key: "1", Time: time.Now(), Disks: []cbt.NewDisk{d}})
	if err != nil {
		return err
	}
	defer a.Close()
	plan := a.Plans()[0]
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	if plan.Full {
		return fmt.Errorf("the plan is a full copy: %s", plan.Reason)
	}
	b.add(fmt.Sprintf("planning 100,000 scattered changes of a sparse disk of 64 GiB (%d ranges), until a point is begun", plan.Ranges.Len()),
		fmt.Sprintf("%s, %d MiB", took.Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20), "under 2 s and 64 MiB")
	return nil
}
