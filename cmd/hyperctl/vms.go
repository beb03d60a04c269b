package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
)

func (a *app) vmsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "vms", Aliases: []string{"vm"}, Short: "List, describe and operate VMs", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.vmsListCommand(), a.vmsInfoCommand(), a.vmsImportCommand())
	c.AddCommand(a.operateCommands()...)
	return c
}

var powers = map[string]providers.Power{
	"on": providers.PowerOn, "off": providers.PowerOff, "suspended": providers.PowerSuspended, "unknown": providers.PowerUnknown,
}

func (a *app) vmsListCommand() *cobra.Command {
	var v vcenter
	var f providers.Filter
	var power string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List VMs", Args: noArgs,
		Example: "  hyperctl vms list --name web --power on\n  hyperctl vms list --vcenter vc.example.org --username backup@vsphere.local",
		RunE: func(c *cobra.Command, _ []string) error {
			creds, err := v.credentials(a)
			if err != nil {
				return err
			}
			if power != "" {
				if f.Power = powers[strings.ToLower(power)]; f.Power == "" {
					return usageError("--power %q is none of on, off, suspended, unknown", clean(power))
				}
			}
			var vms []providers.VM
			if creds == nil {
				vms, err = a.client.VMs(c.Context(), v.connection, f)
			} else {
				vms, err = a.client.VMsOf(c.Context(), *creds)
				vms = filter(vms, f)
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(append([]providers.VM{}, vms...))
			}
			a.printVMs(vms)
			return nil
		},
	}
	v.flags(c)
	c.Flags().StringVar(&f.Name, "name", "", "only VMs with this in their name")
	c.Flags().StringVar(&f.Folder, "folder", "", "only VMs below this inventory path")
	c.Flags().StringVar(&power, "power", "", "only VMs that are on, off, suspended or unknown")
	_ = c.RegisterFlagCompletionFunc("power", words("on", "off", "suspended", "unknown")) // the flag is there
	return c
}

// filter does for a bare list what the server does for its connections.
func filter(vms []providers.VM, f providers.Filter) (some []providers.VM) {
	folder := strings.TrimRight(f.Folder, "/")
	for _, vm := range vms {
		if strings.Contains(strings.ToLower(vm.Name), strings.ToLower(f.Name)) && (f.Power == "" || f.Power == vm.PowerState) &&
			(folder == "" || strings.HasPrefix(vm.Path, folder+"/")) {
			some = append(some, vm)
		}
	}
	return some
}

func (a *app) printVMs(vms []providers.VM) {
	if len(vms) == 0 {
		a.printf("No VMs.\n")
		return
	}
	t := newTable("NAME", "POWER", "?>CPUS", "?>MEMORY", "?>STORAGE", "?GUEST", "PATH")
	for _, vm := range vms {
		t.add(vm.Name, vm.PowerState.Word(), strconv.Itoa(vm.NumCPU), bytesText(vm.MemoryMB<<20), bytesText(vm.StorageBytes), cut(vm.GuestOS, 30), vm.Path)
	}
	a.printTable(t)
}

func (a *app) vmsInfoCommand() *cobra.Command {
	var v vcenter
	c := &cobra.Command{
		Use: "info VM", Short: "Describe a VM: its inventory path, id or name", Args: exactly(1, "the path, id or name of a VM"),
		RunE: func(c *cobra.Command, args []string) error {
			creds, err := v.credentials(a)
			if err != nil {
				return err
			}
			vm, err := a.client.VM(c.Context(), api.VMInfoRequest{VMPath: args[0], Connection: v.connection, VCenter: creds})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(vm)
			}
			a.printVM(vm)
			return nil
		},
		ValidArgsFunction: first(a.completeVMs),
	}
	v.flags(c)
	return c
}

func (a *app) printVM(vm providers.VM) {
	tracking := "off"
	if vm.ChangeTracking {
		tracking = "on"
	}
	a.printRows([][2]string{
		{"Name", vm.Name}, {"Path", vm.Path}, {"Id", string(vm.ID)}, {"Power", vm.PowerState.Word()}, {"Guest", vm.GuestOS},
		{"Host name", vm.Hostname}, {"Addresses", strings.Join(vm.Addresses, ", ")}, {"CPUs", strconv.Itoa(vm.NumCPU)},
		{"Memory", bytesText(vm.MemoryMB << 20)}, {"Storage", bytesText(vm.StorageBytes)}, {"Firmware", vm.Firmware},
		{"Hardware", vm.HardwareVersion}, {"UUID", vm.UUID}, {"Runs on", vm.Host}, {"Change tracking", tracking}, {"Annotation", vm.Annotation},
	})
	if len(vm.Disks) > 0 {
		t := newTable("DISK", ">SIZE", ">USED", "PROVISIONING", "MODE", "PATH")
		for _, d := range vm.Disks {
			used, kind := "", "thick"
			if d.Used > 0 {
				used = bytesText(d.Used)
			}
			if d.Thin {
				kind = "thin"
			}
			t.add(d.Label, bytesText(d.Size), used, kind, d.Mode, d.Path)
		}
		a.printf("\n")
		a.printTable(t)
	}
	if len(vm.NICs) > 0 {
		t := newTable("NETWORK CARD", "MODEL", "MAC", "NETWORK")
		for _, n := range vm.NICs {
			t.add(n.Label, n.Model, n.MAC, n.Network)
		}
		a.printf("\n")
		a.printTable(t)
	}
	if len(vm.Snapshots) > 0 {
		t := newTable("SNAPSHOT", "CREATED", "DESCRIPTION")
		for _, s := range vm.Snapshots {
			t.add(s.Name, s.Created.Local().Format("2006-01-02 15:04:05"), s.Description)
		}
		a.printf("\n")
		a.printTable(t)
	}
	for _, cd := range vm.CDROMs {
		if cd.Media != "" {
			a.printf("%s\n", clean(fmt.Sprintf("\n%s holds %s", cd.Label, cd.Media)))
		}
	}
}
