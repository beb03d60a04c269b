package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"hypersdk/formats/ovf"
)

// The disk that is converted: a file system of that size with files that fill about 60 % of it.
const (
	imageSize = 2 << 30
	imageData = imageSize / 100 * 58
)

// conversion is one line of the table. Of the files src is one of the sources, out an extension.
type conversion struct {
	name   string
	src    string
	with   string // what qemu-img converts instead, which reads no archives; "": src
	out    string
	ours   string // arguments of hyperctl image convert, between -f and the names
	theirs string
	floor  float64 // of their time divided by ours; 0: none is asked for
	target float64
	size   bool // ours is to be no more than 5 % larger
}

// conversions are the lines of the table. qemu-img packs a streamOptimized disk in one thread whatever
// it is told, so of -m and -W only the compressed qcow2 gains.
func conversions() []conversion {
	const stream, packed = "-O vmdk -o subformat=streamOptimized", "-O qcow2 -c"
	all := []conversion{
		{name: "streamOptimized → qcow2 compressed", src: "stream.vmdk", out: "qcow2", ours: packed, theirs: packed, floor: 7, target: 15},
		{name: "the same, `--no-verify`", src: "stream.vmdk", out: "qcow2", ours: packed + " --no-verify", theirs: packed, floor: 25, target: 35},
		{name: "qcow2 compressed → streamOptimized", src: "zlib.qcow2", out: "vmdk", ours: stream, theirs: stream, floor: 10, target: 20},
		{name: "streamOptimized → streamOptimized", src: "stream.vmdk", out: "vmdk", ours: stream, theirs: stream, floor: 10, target: 20},
		{name: "OVA → OVA", src: "vm.ova", with: "stream.vmdk", out: "ova", ours: "-O ova", theirs: stream, floor: 10, target: 20},
		{name: "raw → streamOptimized", src: "raw", out: "vmdk", ours: stream, theirs: stream, floor: 5, target: 6.5, size: true},
		{name: "the same, `compression_level=1`", src: "raw", out: "vmdk", ours: stream + ",compression_level=1", theirs: stream},
		{name: "raw → qcow2 zlib", src: "raw", out: "qcow2", ours: packed, theirs: packed, floor: 2.5, target: 3.2, size: true},
		{name: "raw → qcow2 zstd", src: "raw", out: "qcow2", ours: packed + " -o compression_type=zstd", theirs: packed + " -o compression_type=zstd", floor: 0.9, target: 1.2},
		{name: "streamOptimized → raw", src: "stream.vmdk", out: "raw", ours: "-O raw", theirs: "-O raw", floor: 1.5, target: 2.5},
	}
	plain := []string{"qcow2", "vpc", "vhdx", "vdi"}
	for _, f := range plain {
		all = append(all, conversion{name: "streamOptimized → " + f, src: "stream.vmdk", out: f, ours: "-O " + f, theirs: "-O " + f, floor: 1.5, target: 2.5})
	}
	all = append(all, conversion{name: "qcow2 zlib → raw", src: "zlib.qcow2", out: "raw", ours: "-O raw", theirs: "-O raw", floor: 1, target: 1.5})
	for _, f := range append([]string{"raw"}, plain...) {
		all = append(all, conversion{name: "sparse VMDK → " + f, src: "sparse.vmdk", out: f, ours: "-O " + f, theirs: "-O " + f, floor: 1, target: 1.2})
	}
	for _, f := range append(plain, "vmdk") {
		all = append(all, conversion{name: "raw → " + f, src: "raw", out: f, ours: "-O " + f, theirs: "-O " + f, floor: 1, target: 1.2})
	}
	return all
}

// runCost is what one run of a program took.
type runCost struct {
	wall, cpu time.Duration
	peak      int64 // bytes resident
	size      int64 // of what it wrote
}

// convert measures conversions beside qemu-img's, in turns.
func (b *bench) convert(ctx context.Context) error {
	dir := b.disks
	if dir == "" {
		dir = filepath.Join(b.dir, "convert")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := sources(ctx, dir); err != nil {
		return err
	}
	b.add("**conversion** (median of "+fmt.Sprint(b.rounds)+")", "`qemu-img convert`'s time / ours; CPU of both; peak memory of ours", "floor / target of the ratio")
	for _, c := range conversions() {
		if !b.match.MatchString(c.name) {
			continue
		}
		if err := b.conversion(ctx, dir, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// conversion measures one line: ours when it does not wait for the disk, which qemu-img does not either,
// qemu-img's, and ours as it is by default, when the target is on the disk at the end.
func (b *bench) conversion(ctx context.Context, dir string, c conversion) error {
	ours := slices.Concat([]string{filepath.Join(b.bin, "hyperctl"), "image", "convert", "-f", formatOf(c.src)}, strings.Fields(c.ours))
	theirs := slices.Concat([]string{"qemu-img", "convert", "-f", formatOf(cmp.Or(c.with, c.src))}, strings.Fields(c.theirs))
	src, with := filepath.Join(dir, c.src), filepath.Join(dir, cmp.Or(c.with, c.src))
	// What it gains from its best flags depends on the machine: the first round tells.
	best := append(slices.Clone(theirs), "-W", "-m", "16")
	fast, err := b.once(ctx, best, with, nil)
	if err != nil {
		return err
	}
	var runs [3][]runCost
	for round := range b.rounds {
		for turn := range runs {
			which := (turn + round) % len(runs)
			command := [][]string{append(slices.Clone(ours), "-t", "unsafe"), theirs, ours}[which]
			from, look := []string{src, with, src}[which], func(string) error { return nil }
			if round == 0 && which == 0 {
				look = func(dst string) error { return b.same(ctx, filepath.Join(dir, "raw"), dst, c.out) }
			}
			cost, err := b.once(ctx, command, from, look)
			if err != nil {
				return err
			}
			if which == 1 && round == 0 && cost.wall > fast.wall {
				cost, theirs = fast, best
			}
			runs[which] = append(runs[which], cost)
		}
	}
	b.report(c, runs[0], runs[1], runs[2])
	return nil
}

func (b *bench) report(c conversion, mine, other, durable []runCost) {
	ratio := func(ours []runCost) float64 {
		var all []float64
		for i := range ours {
			all = append(all, other[i].wall.Seconds()/ours[i].wall.Seconds())
		}
		return median(all)
	}
	wall := func(r runCost) float64 { return r.wall.Seconds() }
	cpu := func(r runCost) float64 { return r.cpu.Seconds() }
	got := fmt.Sprintf("**%.2f**, durable %.2f (%.2f s, %.2f s; theirs %.2f s); CPU %.2f s against %.2f; %d MiB", ratio(mine), ratio(durable),
		median(each(mine, wall)), median(each(durable, wall)), median(each(other, wall)),
		median(each(mine, cpu)), median(each(other, cpu)),
		slices.Max(each(append(mine, durable...), func(r runCost) int64 { return r.peak }))>>20)
	wanted := fmt.Sprintf("%g / %g", c.floor, c.target)
	if c.floor == 0 {
		wanted = ""
	}
	if c.size || c.floor == 0 {
		got += fmt.Sprintf("; size %.3f of theirs", float64(mine[0].size)/float64(other[0].size))
	}
	if c.size {
		wanted += ", size within 1.05"
	}
	b.add(c.name, got, wanted)
	fmt.Fprintln(os.Stderr, c.name, got, wanted)
}

func each[T any](all []runCost, f func(runCost) T) []T {
	var out []T
	for _, r := range all {
		out = append(out, f(r))
	}
	return out
}

// once runs a program that converts src, looks at what it wrote, and removes that: so what was written
// before is not on its way to the disk meanwhile.
func (b *bench) once(ctx context.Context, args []string, src string, look func(dst string) error) (_ runCost, err error) {
	dst := filepath.Join(b.dir, "converted")
	if err := b.warm(); err != nil {
		return runCost{}, err
	}
	defer func() { err = errors.Join(err, os.Remove(dst)) }()
	c := exec.CommandContext(ctx, args[0], append(slices.Clone(args[1:]), src, dst)...)
	began := time.Now()
	out, err := c.CombinedOutput()
	cost := runCost{wall: time.Since(began)}
	if err != nil {
		return cost, fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, out)
	}
	st, err := os.Stat(dst)
	if err != nil {
		return cost, err
	}
	cost.size, cost.cpu = st.Size(), c.ProcessState.UserTime()+c.ProcessState.SystemTime()
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		cost.peak = u.Maxrss << 10
	}
	if look != nil {
		err = look(dst)
	}
	return cost, err
}

// warm has the machine touch as much memory as what is measured will: on a virtual one the first touch of what
// it had given back to its host takes seconds, and whoever comes first would pay for it. Memory is given back every
// two seconds, and no turn is to keep time with that.
func (b *bench) warm() error {
	<-time.After(rand.N(2 * time.Second)) //nolint:gosec // any moment will do
	name := filepath.Join(b.dir, "warm")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for n := int64(0); n < imageSize && err == nil; n += int64(len(buf)) {
		_, err = f.Write(buf)
	}
	return errors.Join(err, f.Close(), os.Remove(name))
}

// formatOf is the format of one of the sources.
func formatOf(name string) string {
	return cmp.Or(strings.TrimPrefix(filepath.Ext(name), "."), name)
}

// same fails where dst is not the disk, as qemu-img reads it. Archives it does not read.
func (b *bench) same(ctx context.Context, disk, dst, format string) error {
	compare := []string{"qemu-img"}
	if format == "ova" {
		compare = []string{filepath.Join(b.bin, "hyperctl"), "image"}
	}
	compare = append(compare, "compare", "-f", "raw", "-F", format, disk, dst)
	if out, err := exec.CommandContext(ctx, compare[0], compare[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", compare, err, out)
	}
	return nil
}

// sources makes the disk, in the formats that are converted, by qemu-img; what is there already stays.
func sources(ctx context.Context, dir string) error {
	made := func(name string, do func(path string) error) error {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if err := do(path + ".new"); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return os.Rename(path+".new", path)
	}
	image := filepath.Join(dir, "raw")
	err := made("raw", func(path string) error { return fileSystem(ctx, dir, path) })
	for _, s := range [][2]string{
		{"stream.vmdk", "-O vmdk -o subformat=streamOptimized"}, {"sparse.vmdk", "-O vmdk"}, {"zlib.qcow2", "-O qcow2 -c -m 16"},
	} {
		err = errors.Join(err, made(s[0], func(path string) error {
			args := slices.Concat([]string{"convert", "-f", "raw"}, strings.Fields(s[1]), []string{image, path})
			if out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
	}
	err = errors.Join(err, made("vm.ova", func(path string) error { return archive(ctx, filepath.Join(dir, "stream.vmdk"), path) }))
	syscall.Sync()
	return err
}

// archive makes an OVA of a streamOptimized disk.
func archive(ctx context.Context, disk, ova string) (err error) {
	st, err := os.Stat(disk)
	if err != nil {
		return err
	}
	f, err := os.Create(ova)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return ovf.WriteFile(ctx, f, ovf.Content{
		Name: "vm",
		Envelope: ovf.Envelope{
			Files: []ovf.File{{ID: "file1", Href: "disk.vmdk", Size: st.Size()}},
			Disks: []ovf.Disk{{ID: "disk1", File: "file1", Capacity: imageSize}},
			Systems: []ovf.System{{
				Name: "vm", CPUs: 1, Memory: 1 << 30, HardwareVersion: "vmx-19",
				Controllers: []ovf.Controller{{ID: "3", Bus: ovf.SCSI}},
				Drives:      []ovf.Drive{{Kind: ovf.HardDisk, Disk: "disk1", Controller: "3"}},
			}},
		},
		Write: func(_ context.Context, _ ovf.File, w io.Writer) error {
			in, err := os.Open(disk)
			if err != nil {
				return err
			}
			defer in.Close()
			_, err = io.Copy(w, in)
			return err
		},
	})
}

// fileSystem makes an ext4 file system of files that are on this machine: the Go distribution, then
// libraries, programs and what they share.
func fileSystem(ctx context.Context, dir, image string) error {
	stage := filepath.Join(dir, "stage")
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	left := int64(imageData)
	for i, from := range []string{strings.TrimSpace(string(root)), "/usr/share", "/usr/bin", "/usr/lib", "/usr/local"} {
		if err := stageFiles(from, filepath.Join(stage, fmt.Sprint(i)), &left); err != nil {
			return err
		}
	}
	if left > imageData/10 {
		return fmt.Errorf("there are not enough files on this machine to fill a file system: %d bytes are missing", left)
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(imageSize), f.Close()); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", stage, image)
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if c.Path == "mkfs.ext4" {
		c.Path, c.Err = "/usr/sbin/mkfs.ext4", nil
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return os.RemoveAll(stage)
}

// stageFiles copies files of up to 64 MiB until left bytes are there. What may not be read is left out.
func stageFiles(from, to string, left *int64) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		st, err := e.Info()
		if err != nil || st.Size() > 64<<20 || st.Size() > *left {
			return nil
		}
		in, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer in.Close()
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		name := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := os.Create(name)
		if err != nil {
			return err
		}
		n, err := io.Copy(out, in)
		*left -= (n + 4095) &^ 4095
		return errors.Join(err, out.Close())
	})
}
