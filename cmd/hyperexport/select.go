package main

import (
	"context"
	"path"
	"strconv"
	"strings"

	"hypersdk/cmd/terminal"
	"hypersdk/providers"
)

// filter is what --folder, --filter and --power say.
func (a *app) filter() (f providers.Filter, match func(name string) bool, err error) {
	f.Folder = a.opt.folder
	if a.opt.power != "" {
		f.Power = map[string]providers.Power{
			"on": providers.PowerOn, "off": providers.PowerOff, "suspended": providers.PowerSuspended,
		}[strings.ToLower(a.opt.power)]
		if f.Power == "" {
			return f, nil, usageError("--power %q is none of on, off, suspended", a.opt.power)
		}
	}
	pattern := strings.ToLower(a.opt.filter)
	if !strings.ContainsAny(pattern, "*?[") {
		f.Name = a.opt.filter
		return f, func(string) bool { return true }, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return f, nil, usageError("--filter %q is not a pattern: %w", a.opt.filter, err)
	}
	return f, func(name string) bool {
		// A slash in a name is no end of a folder here.
		ok, _ := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(strings.ToLower(name), "/", "\x00"))
		return ok
	}, nil
}

// listed are the VMs that the filter lets through.
func (a *app) listed(ctx context.Context, inv providers.Inventory) ([]providers.VM, error) {
	f, match, err := a.filter()
	if err != nil {
		return nil, err
	}
	var vms []providers.VM
	for vm, err := range inv.VMs(ctx, f) {
		if err != nil {
			return nil, err
		}
		if match(vm.Name) {
			vms = append(vms, vm)
		}
	}
	return vms, nil
}

func (a *app) printVMs(vms []providers.VM) error {
	if a.opt.json {
		for _, vm := range vms {
			if err := a.printJSON(vm); err != nil {
				return err
			}
		}
		return nil
	}
	if len(vms) == 0 {
		a.printf("No VMs.\n")
		return nil
	}
	t := terminal.NewTable("NAME", "POWER", "?>CPUS", "?>MEMORY", "?>STORAGE", "?GUEST", "PATH")
	for _, vm := range vms {
		t.Add(vm.Name, vm.PowerState.Word(), strconv.Itoa(vm.NumCPU), terminal.BytesText(vm.MemoryMB<<20),
			terminal.BytesText(vm.StorageBytes), terminal.Cut(vm.GuestOS, 30), vm.Path)
	}
	a.Screen().PrintTable(t)
	return nil
}

func (a *app) printVM(vm providers.VM) error {
	if a.opt.json {
		return a.printJSON(vm)
	}
	s := a.Screen()
	s.PrintRows(vmRows(vm))
	t := terminal.NewTable("DISK", ">SIZE", ">USED", "MODE", "PATH")
	for _, d := range vm.Disks {
		used := ""
		if d.Used > 0 {
			used = terminal.BytesText(d.Used)
		}
		t.Add(d.Label, terminal.BytesText(d.Size), used, d.Mode, d.Path)
	}
	s.Printf("\n")
	s.PrintTable(t)
	return nil
}

// vmRows is a VM in names and values.
func vmRows(vm providers.VM) [][2]string {
	var nics []string
	for _, n := range vm.NICs {
		nics = append(nics, n.Label+": "+n.MAC+" on "+n.Network)
	}
	var snaps []string
	for _, s := range vm.Snapshots {
		snaps = append(snaps, s.Name)
	}
	return [][2]string{
		{"Name", vm.Name}, {"Path", vm.Path}, {"Id", string(vm.ID)}, {"Power", vm.PowerState.Word()}, {"Guest", vm.GuestOS},
		{"Host name", vm.Hostname}, {"Addresses", strings.Join(vm.Addresses, ", ")}, {"CPUs", strconv.Itoa(vm.NumCPU)},
		{"Memory", terminal.BytesText(vm.MemoryMB << 20)}, {"Storage", terminal.BytesText(vm.StorageBytes)}, {"Firmware", vm.Firmware},
		{"Hardware", vm.HardwareVersion}, {"Runs on", vm.Host}, {"Networks", strings.Join(nics, "\n")},
		{"Snapshots", strings.Join(snaps, ", ")}, {"Annotation", vm.Annotation},
	}
}
