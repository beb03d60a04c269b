package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
)

func (a *app) inventoryCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "inventory", Aliases: []string{"inv"}, Short: "Show what VMs run on, and what happened there", Args: noArgs,
		Example: `  hyperctl inventory datastores
  hyperctl inventory hosts --connection lab --json
  hyperctl inventory events --vm web-01 --since 24h`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		listing(a, providers.KindDatacenter, "List datacenters", func(o api.Datacenters) table {
			t := newTable("NAME", "?ID", "PATH")
			for _, d := range o.Datacenters {
				t.add(d.Name, d.ID, d.Path)
			}
			return t
		}),
		listing(a, providers.KindCluster, "List clusters", func(o api.Clusters) table {
			t := newTable("NAME", ">HOSTS", ">CORES", ">CPU", ">MEMORY", "?DRS", "?HA", "PATH")
			for _, d := range o.Clusters {
				t.add(d.Name, strconv.Itoa(d.Hosts), strconv.Itoa(d.CPUCores), mhzText(d.CPUMHz), bytesText(d.MemoryBytes), yes(d.Balanced), yes(d.Restarts), d.Path)
			}
			return t
		}),
		listing(a, providers.KindHost, "List hosts", func(o api.Hosts) table {
			t := newTable("NAME", "STATE", ">CORES", ">CPU USED", ">MEMORY USED", ">MEMORY", "?PRODUCT", "PATH")
			for _, d := range o.Hosts {
				state := d.Connection
				if d.Maintenance {
					state = "maintenance"
				}
				t.add(d.Name, state, strconv.Itoa(d.CPUCores), mhzText(d.CPUUsedMHz), bytesText(d.MemoryUsed), bytesText(d.MemoryBytes), cut(d.Product, 30), d.Path)
			}
			return t
		}),
		listing(a, providers.KindDatastore, "List datastores", func(o api.Datastores) table {
			t := newTable("NAME", "TYPE", ">CAPACITY", ">FREE", "?SHARED", "STATE", "PATH")
			for _, d := range o.Datastores {
				state := "ok"
				switch {
				case !d.Accessible:
					state = "not accessible"
				case d.Maintenance:
					state = "maintenance"
				}
				t.add(d.Name, d.Type, bytesText(d.Capacity), bytesText(d.Free), yes(d.Shared), state, d.Path)
			}
			return t
		}),
		listing(a, providers.KindNetwork, "List networks", func(o api.Networks) table {
			t := newTable("NAME", "TYPE", "?ID", "PATH")
			for _, d := range o.Networks {
				t.add(d.Name, d.Type, d.ID, d.Path)
			}
			return t
		}),
		listing(a, providers.KindPool, "List resource pools", func(o api.Pools) table {
			t := newTable("NAME", ">CPU USED", ">MEMORY USED", "?CLUSTER", "PATH")
			for _, d := range o.Pools {
				t.add(d.Name, mhzText(d.CPUUsedMHz), bytesText(d.MemoryUsed), d.Cluster, d.Path)
			}
			return t
		}),
		listing(a, providers.KindFolder, "List folders", func(o api.Folders) table {
			t := newTable("NAME", "HOLDS", "?ID", "PATH")
			for _, d := range o.Folders {
				t.add(d.Name, d.Holds, d.ID, d.Path)
			}
			return t
		}),
		a.eventsCommand(), a.tasksCommand(), a.metricsCommand(),
	)
	return c
}

// listing is the command that lists the things of one kind.
func listing[Out any](a *app, kind providers.Kind, short string, show func(Out) table) *cobra.Command {
	var f client.Places
	name := string(kind)
	c := &cobra.Command{
		Use: name, Aliases: []string{strings.TrimSuffix(name, "s")}, Short: short, Args: noArgs,
		Example: "  hyperctl inventory " + name + " --connection lab",
		RunE: func(c *cobra.Command, _ []string) error {
			var out Out
			if err := a.client.Inventory(c.Context(), kind, f, &out); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			a.printRowsOr("No "+name+".", show(out))
			return nil
		},
	}
	connectionFlag(c, &f.Connection)
	c.Flags().StringVar(&f.Name, "name", "", "only those with this in their name")
	c.Flags().StringVar(&f.Datacenter, "datacenter", "", "only those in the datacenter with this inventory path")
	return c
}

func connectionFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "connection", "", "configured connection of the daemon (default: its default one)")
}

func historyFlags(c *cobra.Command, h *client.History, limit string) {
	connectionFlag(c, &h.Connection)
	c.Flags().StringVar(&h.VM, "vm", "", "only of this VM: its path, id or name")
	c.Flags().StringVar(&h.Since, "since", "", "nothing before: a time (2026-03-01T12:00:00Z), or so long ago (24h)")
	c.Flags().IntVarP(&h.Limit, "limit", "n", 0, limit)
}

func (a *app) eventsCommand() *cobra.Command {
	var h client.History
	c := &cobra.Command{
		Use: "events", Aliases: []string{"event"}, Short: "Show what happened, the newest first", Args: noArgs,
		Example: "  hyperctl inventory events --vm web-01 --since 24h",
		RunE: func(c *cobra.Command, _ []string) error {
			out, err := a.client.Events(c.Context(), h)
			if err != nil || a.json {
				return a.orJSON(out, err)
			}
			t := newTable("TIME", "TYPE", "?VM", "?USER", "MESSAGE")
			for _, e := range out.Events {
				t.add(stampText(e.Time), e.Type, e.VM, e.User, e.Message)
			}
			a.printRowsOr("No events.", t)
			return nil
		},
	}
	historyFlags(c, &h, "at most so many (default 100)")
	return c
}

func (a *app) tasksCommand() *cobra.Command {
	var h client.History
	c := &cobra.Command{
		Use: "tasks", Aliases: []string{"task"}, Short: "Show what the platform does and did, the newest first", Args: noArgs,
		Example: "  hyperctl inventory tasks --limit 20",
		RunE: func(c *cobra.Command, _ []string) error {
			out, err := a.client.Tasks(c.Context(), h)
			if err != nil || a.json {
				return a.orJSON(out, err)
			}
			t := newTable("TASK", "STATE", ">DONE", "QUEUED", "?USER", "ON", "OPERATION")
			for _, k := range out.Tasks {
				what := k.Operation
				if k.Error != "" {
					what += ": " + k.Error
				}
				t.add(k.ID, k.State, strconv.Itoa(k.Progress)+"%", stampText(k.Queued), k.User, k.Entity, what)
			}
			a.printRowsOr("No tasks.", t)
			return nil
		},
	}
	historyFlags(c, &h, "at most so many (default 100)")
	return c
}

func (a *app) metricsCommand() *cobra.Command {
	var h client.History
	c := &cobra.Command{
		Use: "metrics", Aliases: []string{"metric"}, Short: "Show how busy a VM or a host was lately", Args: noArgs,
		Example: "  hyperctl inventory metrics --vm web-01\n  hyperctl inventory metrics --host esx-01 --limit 60 --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if (h.VM == "") == (h.Host == "") {
				return usageError("name a VM (--vm) or a host (--host)")
			}
			out, err := a.client.Metrics(c.Context(), h)
			if err != nil || a.json {
				return a.orJSON(out, err)
			}
			t := newTable("METRIC", "UNIT", ">LAST", ">LEAST", ">MOST", "?>SAMPLES")
			for _, m := range out.Metrics {
				if len(m.Samples) == 0 {
					continue
				}
				least, most := m.Samples[0].Value, m.Samples[0].Value
				for _, s := range m.Samples {
					least, most = min(least, s.Value), max(most, s.Value)
				}
				t.add(m.Name, m.Unit, number(m.Samples[len(m.Samples)-1].Value), number(least), number(most), strconv.Itoa(len(m.Samples)))
			}
			a.printRowsOr("No samples: it does not run.", t)
			return nil
		},
	}
	historyFlags(c, &h, "at most so many samples, 20 seconds apart (default 15)")
	c.Flags().StringVar(&h.Host, "host", "", "of this host instead of a VM")
	return c
}

// printRowsOr prints a table, or a word instead of one without rows.
func (a *app) printRowsOr(none string, t table) {
	if len(t.Lines(0)) < 2 { // the head
		a.printf("%s\n", none)
		return
	}
	a.printTable(t)
}

func (a *app) orJSON(v any, err error) error {
	if err != nil {
		return err
	}
	return a.printJSON(v)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func mhzText(n int64) string {
	if n >= 10_000 {
		return fmt.Sprintf("%.0f GHz", float64(n)/1000)
	}
	return fmt.Sprintf("%d MHz", n)
}

func number(f float64) string { return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64) }

func stampText(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
