package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
)

// importing is the flags of vms import.
type importing struct {
	api.ImportRequest
	networks []string
	key      string
	follow   bool
}

func (a *app) vmsImportCommand() *cobra.Command {
	var v importing
	c := &cobra.Command{
		Use: "import FILE", Short: "Make a VM of an OVF or OVA, by a durable job",
		Long: `Makes a VM of a package that lies on the daemon's host (or on a worker's): an archive (.ova), which is not
unpacked, or a descriptor (.ovf) with its files beside it. Every byte is compared with the package's
manifest while it goes up. Disks in another format than importers take are converted on the way.

Places are named by inventory path, id or name, and may be left out where there is only one. A network of
the package goes to the network of the same name, unless --network says otherwise. "hyperctl inventory"
lists what there is. The VM is off when it is complete; one that does not become complete is removed.

The id of the job is printed: "hyperctl watch", "logs", "pause", "resume", "limit" and "cancel" take it. With
--follow the progress is shown until the job has ended.`,
		Example: `  hyperctl vms import /exports/web-01/web-01.ova --name web-02 --datastore fast --follow
  hyperctl vms import appliance.ovf --folder /DC0/vm/test --network "VM Network=lab" --network Backup=lab`,
		Args: exactly(1, "the path of a package"),
		RunE: func(c *cobra.Command, args []string) error { return a.importPackage(c, &v, args[0]) },
	}
	f := c.Flags()
	f.StringVar(&v.Name, "name", "", "name of the VM (default: the one in the package)")
	f.StringVar(&v.Connection, "connection", "", "configured connection of the daemon (default: its default one)")
	f.StringVar(&v.Datastore, "datastore", "", "datastore for the disks")
	f.StringVar(&v.Folder, "folder", "", "folder of VMs (default: that of the datacenter)")
	f.StringVar(&v.ResourcePool, "pool", "", "resource pool, or cluster")
	f.StringVar(&v.Host, "host", "", "host that the VM is to be on")
	f.StringArrayVar(&v.networks, "network", nil, "SRC=DST: a network of the package and where it goes; may be repeated")
	f.BoolVar(&v.Thick, "thick", false, "allocate the whole disks")
	f.Float64Var(&v.LimitMBps, "limit", 0, "bandwidth limit in MB/s; 0 is none")
	f.IntVar(&v.Priority, "priority", 0, "0 to 100; higher ones are admitted first")
	f.StringVar(&v.key, "key", "", "idempotency key: the same request under the same key is started once")
	f.BoolVarP(&v.follow, "follow", "w", false, "show the progress until the job has ended")
	return c
}

func (a *app) importPackage(c *cobra.Command, v *importing, file string) (err error) {
	if v.PackagePath, err = filepath.Abs(file); err != nil {
		return err
	}
	if v.Networks, err = mapping(v.networks); err != nil {
		return err
	}
	out, err := a.client.Import(c.Context(), v.key, v.ImportRequest)
	if err != nil {
		return err
	}
	return a.started(c.Context(), out, out.JobID, v.follow)
}

// mapping reads SRC=DST.
func mapping(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, m := range list {
		from, to, ok := strings.Cut(m, "=")
		if !ok || strings.TrimSpace(from) == "" || strings.TrimSpace(to) == "" {
			return nil, usageError("--network %q is not SRC=DST", clean(m))
		}
		out[from] = to
	}
	return out, nil
}
