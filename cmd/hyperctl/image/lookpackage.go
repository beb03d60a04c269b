package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/ovf"
)

// packageInfo is what is printed of a package.
type packageInfo struct {
	File     string        `json:"file"`
	Format   string        `json:"format"`
	Size     int64         `json:"size"`     // of the file; of an OVF its descriptor
	Manifest bool          `json:"manifest"` // there is one
	Envelope *ovf.Envelope `json:"envelope"`
	Disks    []diskInfo    `json:"disks"`
}

// diskInfo is a disk of a package.
type diskInfo struct {
	File   string        `json:"file"`
	Stored int64         `json:"stored"`
	Gzip   bool          `json:"gzip,omitempty"` // compressed as a whole
	Info   *formats.Info `json:"info,omitempty"` // absent of what is compressed as a whole, or not recognised
}

// describe says what is in a package.
func (s *stored) describe(ctx context.Context) (packageInfo, error) {
	i := packageInfo{File: s.name, Format: s.pkg.format, Size: s.Bytes, Manifest: s.pkg.Manifest != nil, Envelope: s.pkg.Envelope, Disks: []diskInfo{}}
	for _, m := range s.pkg.members() {
		d := diskInfo{File: m.file.Href, Stored: m.file.Size, Gzip: m.file.Gzip}
		if !d.Gzip {
			if err := s.pkg.look(ctx, m, &d); err != nil {
				return i, err
			}
		}
		i.Disks = append(i.Disks, d)
	}
	return i, nil
}

func (p *packaged) look(ctx context.Context, m member, d *diskInfo) error {
	o, err := p.OpenFile(m.file)
	if err != nil {
		return err
	}
	defer o.Close()
	d.Stored = o.Size
	f, err := all.Probe(o, o.Size)
	if errors.Is(err, formats.ErrFormat) || err == nil && f.Info == nil {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Info(ctx, o, o.Size, formats.OpenOptions{})
	if err != nil {
		return fmt.Errorf("%q: %w", m.file.Href, err)
	}
	d.Info = &info
	return nil
}

func printPackage(w io.Writer, i packageInfo) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s: %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("package", "%s", i.File)
	line("file format", "%s", i.Format)
	manifest := "none"
	if i.Manifest {
		manifest = "yes"
	}
	line("manifest", "%s", manifest)
	for _, s := range i.Envelope.Systems {
		line("virtual machine", "%s", s.Name)
		line("  guest", "%s", strings.Join(strings.Fields(s.OS.Description+" "+s.OS.Type), " "))
		line("  hardware", "%s, %d processors, %s of memory, %s", s.HardwareVersion, s.CPUs, bytesText(s.Memory), s.Firmware)
		for _, n := range s.NICs {
			line("  network", "%s (%s)", n.Network, n.Model)
		}
	}
	for n, d := range i.Disks {
		what := "not recognised"
		switch {
		case d.Gzip:
			what = "compressed with gzip"
		case d.Info != nil:
			what = strings.TrimSpace(d.Info.Format+" "+d.Info.Variant) + " of " + bytesText(d.Info.VirtualSize)
		}
		line(fmt.Sprintf("disk %d", n+1), "%s, %s, %s stored", d.File, what, bytesText(d.Stored))
	}
}

// audit compares a package with its manifest, and looks for contradictions in each of its disks.
func (s *stored) audit(ctx context.Context) (formats.Report, error) {
	var rep formats.Report
	if s.pkg.Manifest == nil {
		rep.Warnings = append(rep.Warnings, "there is no manifest to compare with")
	} else if _, err := s.pkg.Verify(ctx); errors.Is(err, formats.ErrCorrupt) {
		rep.Corruptions++
		rep.Problems = append(rep.Problems, err.Error())
	} else if err != nil {
		return rep, err
	}
	for _, m := range s.pkg.members() {
		if err := s.pkg.audit(ctx, m, &rep); err != nil {
			return rep, fmt.Errorf("%q: %w", m.file.Href, err)
		}
	}
	return rep, nil
}

func (p *packaged) audit(ctx context.Context, m member, rep *formats.Report) error {
	o, err := p.open(ctx, m)
	if err != nil {
		return err
	}
	defer o.Close()
	f, err := all.Probe(o, o.Size)
	if errors.Is(err, formats.ErrFormat) || err == nil && f.Check == nil {
		rep.Warnings = append(rep.Warnings, fmt.Sprintf("%s: not in a format that can be checked", m.file.Href))
		return nil
	}
	if err != nil {
		return err
	}
	one, err := f.Check(ctx, o, o.Size, formats.OpenOptions{})
	if errors.Is(err, formats.ErrCorrupt) {
		one, err = formats.Report{Corruptions: 1, Problems: []string{err.Error()}}, nil
	}
	if err != nil {
		return err
	}
	rep.Corruptions, rep.Leaks = rep.Corruptions+one.Corruptions, rep.Leaks+one.Leaks
	rep.Blocks, rep.Allocated = rep.Blocks+one.Blocks, rep.Allocated+one.Allocated
	for _, t := range one.Problems {
		rep.Problems = append(rep.Problems, m.file.Href+": "+t)
	}
	for _, t := range one.Warnings {
		rep.Warnings = append(rep.Warnings, m.file.Href+": "+t)
	}
	return nil
}
