package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/local"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
)

// copyMemory bounds what a conversion has under way.
const copyMemory = 24 << 20

// memory is what the whole program is to stay under, beside its own code: the collector works harder
// before it lets the heap grow beyond.
const memory = 40 << 20

// checkpoints is how many bytes are copied between two points that a conversion can be gone on
// from. Waiting for the disk at each takes longer than copying as much again.
const checkpoints = 128 << 20

// pipe is the name of the standard input or output.
const pipe = "-"

// conversion is one call of convert.
type conversion struct {
	*cli
	from, to           string // formats as they were named
	options            []string
	compress, progress bool
	force, trust       bool
	cache              string
	unsafe             bool // nothing waits for the disk
	workers            int
	snapshot           string

	src, dst string
	create   formats.CreateOptions
	target   formats.Format // of the disk, or of those of a package
	packed   bool           // DST is a package
	in       io.Reader
	out, err io.Writer
}

// converted is what is printed of a conversion.
type converted struct {
	File        string  `json:"file"`
	Format      string  `json:"format"`
	VirtualSize int64   `json:"virtual_size"`
	Digest      string  `json:"digest,omitempty"` // of the disk; absent where not every block of it was looked at
	ResumedAt   int64   `json:"resumed_at"`       // 0: written from the beginning
	Read        int64   `json:"read"`             // by this run, bytes
	Written     int64   `json:"written"`
	Seconds     float64 `json:"seconds"`
}

func (l *cli) convertCommand() *cobra.Command {
	v := &conversion{cli: l}
	c := &cobra.Command{
		Use: "convert SRC DST", Short: "Convert a disk image into another format", Args: arguments(2, 2, exitUsage),
		Long: `Converts a disk image into another format. The target gets its name when it is whole and on the disk; until
then it is a hidden file beside it, .DST.part. A conversion that was interrupted or killed goes on where it was
when it is started again with the same source and options. A target that exists is not replaced without --force.

- stands for the standard input (a streamOptimized VMDK, with -f vmdk) or output (raw, streamOptimized VMDK).

Blocks that are compressed alike on both sides are moved as they are, after a look whether they are whole;
--no-verify saves the look.

What qemu-img does unless it is told otherwise, not to wait until the target is on the disk, is -t unsafe: if
the machine (not just this program) fails soon after, the target may be lost.

A VMDK with -o subformat=monolithicFlat is two files: DST, which describes the disk, and beside it the disk
as it is, in disk-flat.vmdk where DST is disk.vmdk.

SRC may be a disk of a package (OVA or OVF; --disk says which where it has several). A package becomes another
one with -O ova: all its disks as streamOptimized VMDK, with -o compression_level=N, or with -o disk_format=raw
as they are. It is written anew where it was interrupted; into a pipe, disks that have to be compressed are
compressed twice, since an archive says beforehand how long they are.

Options of -o: ` + optionNames + `.
With backing_file, only what SRC holds itself is written; the rest is the backing file's.`,
		Example: `  hyperctl image convert -p -O qcow2 -c disk.vmdk disk.qcow2
  hyperctl image convert -f raw -O vmdk -o subformat=streamOptimized disk.img disk.vmdk
  curl -s https://host/disk.vmdk | hyperctl image convert -f vmdk -O qcow2 - disk.qcow2
  hyperctl image convert --disk 2 -O qcow2 vm.ova data.qcow2
  hyperctl image convert -O ova -o compression_level=9 vm.ova smaller.ova`,
		RunE: run(exitFailure, func(c *cobra.Command, args []string) error {
			v.src, v.dst = args[0], args[1]
			v.in, v.out, v.err = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
			return v.run(c.Context())
		}),
	}
	f := c.Flags()
	v.targetFlags(f, "DST", "raw, qcow2, vmdk, vhd (vpc), vhdx, vdi, ova")
	f.StringVarP(&v.from, "format", "f", "", "format of SRC (default: recognised)")
	f.BoolVarP(&v.progress, "progress", "p", false, "show the progress")
	f.StringVarP(&v.snapshot, "snapshot", "l", "", "convert an internal snapshot, by name or id")
	f.BoolVar(&v.trust, "no-verify", false, "move compressed blocks without a look whether they are whole")
	return c
}

// targetFlags are those that say how a target is written.
func (v *conversion) targetFlags(f *pflag.FlagSet, target, known string) {
	f.StringVarP(&v.to, "target-format", "O", "", "format of "+target+": "+known)
	f.StringArrayVarP(&v.options, "options", "o", nil, "name=value,... of the target")
	f.BoolVarP(&v.compress, "compress", "c", false, "compress the target")
	f.IntVarP(&v.workers, "workers", "m", 0, "how much is read and compressed at once (default: one a core)")
	f.StringVarP(&v.cache, "cache", "t", "writeback", "writeback: wait at the end until all is on the disk; unsafe: do not")
	f.BoolVar(&v.force, "force", false, "replace "+target)
}

func (v *conversion) run(ctx context.Context) (err error) {
	if err := v.choose(); err != nil {
		return err
	}
	if err := v.unused(); err != nil {
		return err
	}
	began := time.Now()
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(memory))
	res, err := v.convert(ctx)
	if err != nil {
		return err
	}
	res.Seconds = time.Since(began).Seconds()
	switch {
	case !v.json:
		return nil
	case v.dst == pipe:
		return printJSON(v.err, res)
	}
	return printJSON(v.out, res)
}

// unused says whether the target may be written.
func (v *conversion) unused() error {
	for _, name := range []string{v.dst, v.disk()} {
		if _, err := os.Lstat(name); err == nil && v.dst != pipe && !v.force {
			return existsError(name)
		}
	}
	return nil
}

func (v *conversion) convert(ctx context.Context) (converted, error) {
	if v.packed {
		return v.repack(ctx)
	}
	s, err := v.open(ctx)
	if err != nil {
		return converted{}, err
	}
	defer s.Close()
	if v.dst == pipe {
		return v.encode(ctx, s)
	}
	return v.write(ctx, s)
}

// choose reads the flags.
func (v *conversion) choose() (err error) {
	switch {
	case v.to == "":
		return usageError("-O names the format of the target")
	case v.workers < 0 || v.workers > 256:
		return usageError("-m %d: 1 to 256", v.workers)
	case v.cache != "writeback" && v.cache != "unsafe":
		return usageError("-t %s: writeback and unsafe are known", v.cache)
	}
	v.unsafe = v.cache == "unsafe"
	if strings.EqualFold(v.to, formatOVA) {
		return v.choosePackage()
	}
	if v.target, err = all.ByName(v.to); err != nil {
		return &ExitError{exitUsage, err}
	}
	if v.create, err = createOptions(v.options, v.compress); err != nil {
		return err
	}
	if v.dst == pipe && v.target.Name == "vmdk" && v.create.Subformat == "" {
		v.create.Subformat = vmdk.StreamOptimized // the only one that streams
	}
	return nil
}

// source is the disk to convert.
type source struct {
	formats.Source
	stored *stored // nil: a pipe
}

func (s *source) Close() error {
	err := s.Source.Close()
	if s.stored != nil {
		err = errors.Join(err, s.stored.Close())
	}
	return err
}

func (v *conversion) open(ctx context.Context) (*source, error) {
	if v.src == pipe {
		return v.openPipe(ctx)
	}
	s, err := v.cli.open(ctx, v.src, v.from)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{v.dst, v.disk()} {
		if there, err := os.Stat(name); err == nil && os.SameFile(there, s.Info) {
			return nil, errors.Join(fmt.Errorf("%s is the source itself", name), s.Close())
		}
	}
	// The life of the image is not the context's: an interrupted conversion ends what it has begun.
	img, err := s.image(context.WithoutCancel(ctx), formats.OpenOptions{Layer: v.create.Backing != "", Snapshot: v.snapshot})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if v.target.Name != raw.Format().Name {
		img = local.RoundUp(img)
	}
	return &source{img, s}, nil
}

func (v *conversion) openPipe(ctx context.Context) (*source, error) {
	if v.from == "" {
		return nil, usageError("what comes through a pipe has to be named: -f vmdk")
	}
	f, err := all.ByName(v.from)
	if err != nil {
		return nil, &ExitError{exitUsage, err}
	}
	if f.Stream == nil {
		return nil, usageError("%s cannot be read front to back, name a file", f.Name)
	}
	if v.snapshot != "" {
		return nil, usageError("-l: a pipe has no snapshots")
	}
	s, err := f.Stream(ctx, v.in)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return &source{Source: s}, nil
}

// id is everything that the bytes of the target depend on.
func (v *conversion) id(s *source) any {
	type id struct {
		Source   local.Identity
		Member   string // of a package
		Beside   []local.Identity
		From, To string
		Snapshot string
		Size     int64
		Create   formats.CreateOptions
		Trust    bool
		Digested bool
		Boot     string // what is not waited for is lost when the machine starts again
	}
	out := id{From: s.stored.format.Name, To: v.target.Name, Snapshot: v.snapshot, Size: s.Size(), Create: v.create, Trust: v.trust, Digested: v.digested()}
	if v.unsafe {
		out.Boot = bootID()
	}
	out.Source, out.Member = local.Identify("", s.stored.Info), s.stored.member
	if s.stored.beside != nil {
		out.Beside = s.stored.beside.Opened()
	}
	return out
}

// bootID is another one each time that the machine was started, or each time where it cannot be known.
func bootID() string {
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		return string(id)
	}
	return rand.Text()
}

// encode writes the target into the standard output.
func (v *conversion) encode(ctx context.Context, s *source) (converted, error) {
	res := converted{File: v.dst, Format: v.target.Name, VirtualSize: s.Size()}
	if v.target.Encode == nil {
		return res, usageError("%s cannot be written front to back, name a file", v.target.Name)
	}
	if _, ok := s.Source.(formats.Stream); ok {
		return res, usageError("only one side may be a pipe: what a stream delivers late has to be put in its place")
	}
	w, err := v.target.Encode(ctx, v.out, s.Size(), v.create)
	if err != nil {
		return res, err
	}
	defer w.Close()
	p := v.newProgress(s.Size(), 0)
	got, err := formats.Copy(ctx, w, s.Source, v.copyOptions(p))
	if err == nil {
		err = w.Commit(ctx)
	}
	p.finish(err == nil)
	res.Read, res.Written = got.Read, got.Written
	return res, err
}

func (v *conversion) newProgress(size, from int64) *progress {
	if v.progress {
		return newProgress(v.err, size, from)
	}
	return newProgress(nil, size, from)
}

func (v *conversion) copyOptions(p *progress) formats.CopyOptions {
	return formats.CopyOptions{Workers: v.workers, Trust: v.trust, Buffers: formats.NewBuffers(copyMemory), Progress: p.at}
}

func (v *conversion) say(format string, args ...any) {
	fmt.Fprintf(v.err, "%s: %s\n", printable(v.dst), printable(fmt.Sprintf(format, args...)))
}
