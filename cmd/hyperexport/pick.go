package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hypersdk/cmd/hyperexport/picker"
	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// pick lets somebody at a terminal choose what to export.
func (a *app) pick(ctx context.Context, p platform, pr providers.Provider, inv providers.Inventory) ([]job.Spec, error) {
	base, err := a.template()
	if err != nil {
		return nil, err
	}
	base = a.inFormat(base)
	specs := func(c picker.Choice) ([]job.Spec, error) {
		out, err := filepath.Abs(expandHome(c.Output))
		if err != nil {
			return nil, err
		}
		var all []job.Spec
		for _, vm := range c.VMs {
			s := base
			s.VMPath, s.Name, s.OutputPath, s.Format, s.Compress = vm.Path, job.Shorten(vm.Name, 200), out, c.Format.Name, c.Format.Compress
			if err := check(s); err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		return all, nil
	}
	src := picker.Source{
		Server: p.server, Formats: a.offered(base), Output: base.OutputPath, OutputFixed: base.OutputPath != "",
		VMs: func(ctx context.Context) ([]providers.VM, error) { return a.listed(ctx, inv) },
		Describe: func(ctx context.Context, vm providers.VM) ([][2]string, error) {
			full, err := inv.VM(ctx, string(vm.ID))
			rows := vmRows(full)
			for _, d := range full.Disks {
				rows = append(rows, [2]string{d.Label, terminal.BytesText(d.Size) + "  " + d.Path})
			}
			return rows, err
		},
		Plan: func(ctx context.Context, c picker.Choice) (lines []string, problem bool, _ error) {
			all, err := specs(c)
			if err != nil {
				return nil, true, err
			}
			for _, s := range all {
				pl, err := planOf(ctx, pr, s)
				if err != nil {
					return nil, true, fmt.Errorf("%s: %w", s.VMPath, err)
				}
				lines, problem = append(append(lines, pl.lines()...), ""), problem || pl.Problem != ""
			}
			return lines, problem, nil
		},
	}
	if src.Output == "" {
		src.Output = workingFolder()
	}
	c, err := picker.Run(ctx, a.In, a.Out, src)
	if errors.Is(err, picker.ErrQuit) {
		return nil, &codeError{code: exitCancelled}
	}
	if err != nil {
		return nil, err
	}
	return specs(c)
}

// offered are the formats to choose from: the one that a flag names, or all.
func (a *app) offered(base job.Spec) []picker.Format {
	if a.opt.spec.Format != "" || base.Incremental {
		return []picker.Format{{Name: base.Format, Compress: base.Compress}}
	}
	about := map[string]string{
		"qcow2": "QEMU, KVM, Proxmox, OpenStack", "raw": "anything; as large as the disk, with holes", "vmdk": "VMware", "vhd": "Hyper-V, Azure",
		"vhdx": "Hyper-V", "vdi": "VirtualBox", "ova": "one file for any platform", "ovf": "a folder for any platform",
	}
	names := daemon.FormatNames()
	names = append([]string{base.Format}, slices.DeleteFunc(names, func(n string) bool { return n == base.Format })...)
	var out []picker.Format
	for _, name := range names {
		out = append(out, picker.Format{Name: name, About: about[name]})
		if name == "qcow2" {
			out = append(out, picker.Format{Name: name, Compress: true, About: "the same, smaller"})
		}
	}
	if base.Compress { // asked for by a flag: first
		slices.SortStableFunc(out, func(a, b picker.Format) int { return rank(a) - rank(b) })
	}
	return out
}

func rank(f picker.Format) int {
	if f.Compress {
		return 0
	}
	return 1
}

func workingFolder() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
}

// expandHome is what a shell would make of a path that begins with ~/.
func expandHome(path string) string {
	rest, ok := strings.CutPrefix(path, "~/")
	home, err := os.UserHomeDir()
	if !ok || err != nil {
		return path
	}
	return filepath.Join(home, rest)
}
