package main

import (
	"github.com/spf13/cobra"

	"hypersdk/cmd/hyperctl/tui"
)

func (a *app) tuiCommand() *cobra.Command {
	var o tui.Options
	c := &cobra.Command{
		Use: "tui [jobs|vms]", Aliases: []string{"top"}, Short: "Jobs and VMs on a whole screen, live",
		Long: `Shows the daemon's jobs and the VMs that it sees on the whole terminal, live, and steers them: press ? there
for the keys. A daemon that restarts meanwhile is waited for.`,
		Example:   "  hyperctl tui\n  hyperctl tui vms --connection dc2 --output /exports",
		ValidArgs: []string{"jobs", "vms"},
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] != "jobs" && args[0] != "vms" {
				return usageError("%s shows jobs or vms", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if _, _, ok := a.Size(); !ok || a.Ask == nil || a.Env("TERM") == "dumb" {
				return usageError("the screen needs a terminal; elsewhere use \"hyperctl watch\" and \"hyperctl query\"")
			}
			if len(args) == 1 {
				o.View = args[0]
			}
			if _, err := a.client.Health(c.Context()); err != nil {
				return err
			}
			return tui.Run(c.Context(), a.client, o, a.In, a.Out)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Connection, "connection", "", "configured connection whose VMs are shown (default: the daemon's default one)")
	f.StringVar(&o.Output, "output", "", "folder that is proposed for exports")
	f.StringVar(&o.Format, "format", "", "format that is proposed for exports (default: the daemon's)")
	return c
}
