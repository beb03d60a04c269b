package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/local"
	"hypersdk/formats/ovf"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
)

// rawDisk names raw disks in a descriptor. There is no name that all agree on; this one tells people.
const rawDisk = "https://en.wikipedia.org/wiki/IMG_(file_format)"

// choosePackage reads the flags of a conversion into a package.
func (v *conversion) choosePackage() error {
	v.packed, v.target = true, vmdk.Format()
	level := 0
	for _, list := range v.options {
		for _, item := range splitOptions(list) {
			name, value, _ := strings.Cut(item, "=")
			var err error
			switch {
			case name == "compression_level":
				level, err = strconv.Atoi(value)
			case name == "disk_format" && strings.EqualFold(value, v.target.Name):
			case name == "disk_format" && strings.EqualFold(value, raw.Format().Name):
				v.target = raw.Format()
			default:
				return usageError("-o %q: of a package, disk_format=vmdk, disk_format=raw and compression_level=N are known", item)
			}
			if err != nil {
				return usageError("-o %s: %q is not a number", name, value)
			}
		}
	}
	switch {
	case v.member != "":
		return usageError("--disk: a package is made of all disks of another one")
	case v.snapshot != "":
		return usageError("-l: the disks of a package have no snapshots")
	case v.target.Name == raw.Format().Name && (v.compress || level != 0):
		return usageError("raw disks are not compressed")
	}
	if v.target.Name == vmdk.Format().Name {
		v.create = formats.CreateOptions{Subformat: vmdk.StreamOptimized, Compression: "zlib", Level: level}
	}
	return nil
}

// repacking is a package that is made of another one.
type repacking struct {
	*conversion
	from  *packaged
	disks map[string]member // by the name in the new package
	bar   *progress
	done  int64 // of the disks that are written
	res   converted
}

// repack makes a package of a package.
func (v *conversion) repack(ctx context.Context) (converted, error) {
	if v.src == pipe {
		return converted{}, usageError("a package is read from a file")
	}
	s, err := v.openFile(ctx, v.src, v.from)
	if err != nil {
		return converted{}, err
	}
	defer s.Close()
	if s.pkg == nil {
		return converted{}, fmt.Errorf("%s: a package describes a VM, and only a package says what that is: name an OVA or an OVF", s.name)
	}
	r := &repacking{conversion: v, from: s.pkg, disks: map[string]member{}, res: converted{File: v.dst, Format: formatOVA}}
	c, err := r.content(ctx)
	if err != nil {
		return r.res, fmt.Errorf("%s: %w", s.name, err)
	}
	r.bar = v.newProgress(r.res.VirtualSize, 0)
	if v.dst == pipe {
		write := ovf.Write
		if v.target.Name == raw.Format().Name {
			write = ovf.WriteOnce
		}
		err = write(ctx, v.out, c)
	} else {
		err = r.file(ctx, c)
	}
	r.bar.finish(err == nil)
	return r.res, err
}

// file writes the package into its part and gives it its name.
func (r *repacking) file(ctx context.Context, c ovf.Content) error {
	p, err := openPart(r.dst, formatOVA, 0, false, r.unsafe)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.stale {
		r.say("starting anew: a package cannot be gone on with")
	}
	if err := ovf.WriteFile(ctx, p.target, c); err != nil {
		return errors.Join(err, p.discard())
	}
	return p.finish(r.force)
}

// content is the new package: the machines of the old one, its disks under names of the new format, and
// its other files as they are.
func (r *repacking) content(ctx context.Context) (ovf.Content, error) {
	e := *r.from.Envelope
	e.Files = nil
	byID := map[string]member{}
	for _, m := range r.from.members() {
		byID[m.file.ID] = m
	}
	for _, f := range r.from.Envelope.Files {
		if m, ok := byID[f.ID]; ok {
			size, err := r.measure(ctx, m)
			if err != nil {
				return ovf.Content{}, err
			}
			f.Href = strings.TrimSuffix(f.Href, filepath.Ext(f.Href)) + r.target.Ext
			f.Size = size // of a raw disk; of another it is found out
			r.disks[f.Href] = m
			r.res.VirtualSize += size
		} else if err := r.plain(&f); err != nil {
			return ovf.Content{}, err
		}
		f.Gzip, f.ChunkSize = false, 0
		e.Files = append(e.Files, f)
	}
	e.Disks = nil
	for _, d := range r.from.Envelope.Disks {
		if _, ok := byID[d.File]; ok {
			d.Format = ovf.StreamVMDK
			if r.target.Name == raw.Format().Name {
				d.Format = rawDisk
			}
			if d.Parent != "" {
				return ovf.Content{}, fmt.Errorf("disk %q has a parent: %w", d.ID, formats.ErrFormat)
			}
		}
		e.Disks = append(e.Disks, d)
	}
	name := strings.TrimSuffix(filepath.Base(r.dst), filepath.Ext(r.dst))
	if r.dst == pipe {
		name = strings.TrimSuffix(filepath.Base(r.src), filepath.Ext(r.src))
	}
	return ovf.Content{Name: name, Envelope: e, Write: r.write}, nil
}

// plain finds out how large a file is that is no disk.
func (r *repacking) plain(f *ovf.File) error {
	if f.Gzip {
		return fmt.Errorf("%q is compressed and no disk: %w", f.Href, formats.ErrFormat)
	}
	o, err := r.from.OpenFile(*f)
	if err != nil {
		return err
	}
	f.Size = o.Size
	return o.Close()
}

// measure opens a disk once before anything is written: what cannot be read is found now.
func (r *repacking) measure(ctx context.Context, m member) (int64, error) {
	var size int64
	err := r.with(ctx, m, func(img formats.Image) error { size = img.Size(); return nil })
	return size, err
}

// with opens a disk of the old package.
func (r *repacking) with(ctx context.Context, m member, do func(formats.Image) error) error {
	o, err := r.from.open(ctx, m)
	if err != nil {
		return err
	}
	defer o.Close()
	f, err := all.Probe(o, o.Size)
	if err != nil {
		return fmt.Errorf("%q: %w", m.file.Href, err)
	}
	img, err := f.Open(ctx, o, o.Size, formats.OpenOptions{})
	if err != nil {
		return fmt.Errorf("%q: %w", m.file.Href, err)
	}
	defer img.Close()
	if r.target.Name != raw.Format().Name {
		img = local.RoundUp(img)
	}
	if r.create.Level != 0 {
		img = unpacked{img} // who asks for a level does not want what is compressed at another one
	}
	return do(img)
}

// unpacked is a disk that does not show how it is compressed.
type unpacked struct{ formats.Image }

// write writes a file of the new package.
func (r *repacking) write(ctx context.Context, f ovf.File, w io.Writer) error {
	m, ok := r.disks[f.Href]
	if !ok {
		o, err := r.from.Stream(ovf.File{ID: f.ID, Href: f.Href, ChunkSize: r.chunks(f.ID)})
		if err != nil {
			return err
		}
		defer o.Close()
		_, err = io.Copy(w, &stoppable{ctx, o})
		return err
	}
	return r.with(ctx, m, func(img formats.Image) error {
		out, err := r.target.Encode(ctx, w, img.Size(), r.create)
		if err != nil {
			return err
		}
		defer out.Close()
		opt := r.copyOptions(r.bar)
		opt.Progress = func(p formats.Progress) {
			p.Done += r.done
			r.bar.at(p)
		}
		got, err := formats.Copy(ctx, out, img, opt)
		if err != nil {
			return err
		}
		r.done += img.Size()
		r.res.Read, r.res.Written = r.res.Read+got.Read, r.res.Written+got.Written
		return out.Commit(ctx)
	})
}

// chunks is the size of the parts that a file of the old package is split into.
func (r *repacking) chunks(id string) int64 {
	f, _ := r.from.Envelope.File(id)
	return f.ChunkSize
}
