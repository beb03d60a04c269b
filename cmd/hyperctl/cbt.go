package main

import (
	"context"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
)

func (a *app) cbtCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "cbt", Short: "Track which blocks of a VM's disks change", Args: noArgs,
		Long: `Changed block tracking: the platform notes which blocks of a VM's disks are written, so that a copy
need read only those that changed since the last one.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.cbtEnableCommand(), a.cbtDisableCommand(), a.cbtStatusCommand())
	return c
}

func (a *app) cbtEnableCommand() *cobra.Command {
	var o operation
	return a.operateCommand(&cobra.Command{
		Use: "enable VM", Short: "Track the changes of a VM",
		Long: `Switches changed block tracking of a VM on; what is on stays so and loses nothing. It is refused while
the VM has snapshots. A VM that runs is tracked from its next snapshot or power cycle on.`,
		Example: "  hyperctl cbt enable web-01",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.EnableCBT(ctx, api.VMRequest{Target: t})
	})
}

func (a *app) cbtDisableCommand() *cobra.Command {
	o := operation{question: "Stop tracking %s? Its next copy is a full one."}
	return a.operateCommand(&cobra.Command{
		Use: "disable VM", Short: "Do not track the changes of a VM any more",
		Example: "  hyperctl cbt disable web-01 --yes",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.DisableCBT(ctx, api.VMRequest{Target: t})
	})
}

func (a *app) cbtStatusCommand() *cobra.Command {
	var o operation
	return a.operateCommand(&cobra.Command{
		Use: "status VM", Short: "Show how far the changes of a VM are tracked, and what is missing",
		Example: "  hyperctl cbt status web-01",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		out, err := a.client.CBTStatus(ctx, api.VMRequest{Target: t})
		if err == nil && out.Tracking != nil && !a.json {
			t := newTable("DISK", "LABEL", "TRACKED", "?MISSING")
			for _, d := range out.Tracking.Disks {
				tracked := "no"
				if d.Tracked {
					tracked = "yes"
				}
				t.add(string(d.ID), d.Label, tracked, d.Missing)
			}
			a.printTable(t)
		}
		return out, err
	})
}
