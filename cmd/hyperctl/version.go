package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release, set by the linker.
var version string

// programVersion is what this program calls itself: its release, or the commit it was built from.
func programVersion() string {
	if version != "" && version != "dev" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "dev-" + s.Value[:12]
			}
		}
	}
	return "dev"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": programVersion()})
			}
			a.printf("hyperctl %s\n", programVersion())
			return nil
		},
	}
}
