package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"hypersdk/apiserver"
	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/providers/connections/keys"
)

// Exit codes.
const (
	exitFailed = 1 // it could not start, or had to stop
	exitUsage  = 2 // the command line or the configuration is wrong
)

// execute runs the program and answers its exit code.
func execute(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	cmd := root(version, stdout, stderr)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for _, line := range flatten(err) {
		fmt.Fprintf(stderr, "hypervisord: %s\n", line)
	}
	if errors.As(err, &daemon.Failure{}) {
		return exitFailed
	}
	return exitUsage
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if f, ok := err.(daemon.Failure); ok { //nolint:errorlint // taken apart level by level
		return flatten(f.Err)
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

const long = `hypervisord exports virtual machines by jobs that survive restarts.

Without a subcommand it is everything in one process: the API, a worker, and an embedded Temporal
server that keeps its state in the data folder. With --temporal-address (or TEMPORAL_ADDRESS) it joins
a Temporal cluster instead; all processes on one cluster then share a key file, which "hypervisord
keygen" makes. "hypervisord worker" and "hypervisord api" are one half of it on a cluster.

Configuration comes from flags, before the environment, before the configuration file, before the
defaults. The file is YAML, with keys as "hypervisord config" shows them (VCenterURL, vcenter_url and
vcenterurl are the same); it is --config, or $XDG_CONFIG_HOME/hypersdk/config.yaml, or
/etc/hypersdk/config.yaml. Passwords are given in the file or the environment, never as flags.

The API asks nobody who they are, so it listens on loopback. To listen elsewhere takes
--insecure-listen.`

func root(version string, stdout, stderr io.Writer) *cobra.Command {
	cfg := daemon.Default()
	cfg.Version = version
	settings := daemon.NewSettings(&cfg)
	var file string
	cmd := &cobra.Command{
		Use: "hypervisord", Short: "Export virtual machines by durable jobs", Long: long, Args: cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true, Version: version,
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.SetVersionTemplate("hypervisord {{.Version}}\n")
	flags := cmd.PersistentFlags()
	flags.SortFlags, cmd.Flags().SortFlags = false, false
	flags.StringVar(&file, "config", "", "configuration file")
	settings.AddFlags(flags)

	configured := func() error {
		if err := settings.Load(flags, file); err != nil {
			return err
		}
		return cfg.Validate()
	}
	run := func(p daemon.Parts) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			if err := configured(); err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), cfg, p, daemon.NewLog(stderr, cfg))
		}
	}
	cmd.RunE = run(daemon.Parts{API: true, Worker: true})
	cmd.AddCommand(
		&cobra.Command{Use: "worker", Short: "Run a worker alone, on a Temporal cluster", Args: cobra.NoArgs, RunE: run(daemon.Parts{Worker: true})},
		&cobra.Command{Use: "api", Short: "Run the API alone, on a Temporal cluster", Args: cobra.NoArgs, RunE: run(daemon.Parts{API: true})},
		&cobra.Command{Use: "config", Short: "Show the configuration that is in force, and where it comes from", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				if err := configured(); err != nil {
					return err
				}
				return settings.Show(stdout)
			}},
		keygen(stdout),
		&cobra.Command{Use: "openapi", Short: "Print the OpenAPI 3.1 document of the API", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return printOpenAPI(stdout) }},
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintln(stdout, "hypervisord", version)
				return err
			}},
	)
	return cmd
}

func keygen(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "keygen FILE", Short: "Make a key file for processes that share a Temporal cluster", Args: cobra.ExactArgs(1),
		Long: `Makes a file with a new key, which encrypts what goes through Temporal. Copy it to every host that has a
part of HyperSDK on the same cluster, and pass it with --key-file or HYPERSDK_KEY_FILE. A file that is
there already is left alone. To change the key, put a new one in front: the first key encrypts, all of
them decrypt, so every host needs the new one as a later line before any has it as the first.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := keys.Create(args[0]); err != nil {
				return daemon.Failure{Err: err}
			}
			ring, err := keys.Load(args[0])
			if err != nil {
				return daemon.Failure{Err: err}
			}
			_, err = fmt.Fprintf(stdout, "%s: key %s\n", args[0], ring.IDs()[0])
			return err
		},
	}
}

func printOpenAPI(w io.Writer) error {
	doc, err := apiserver.OpenAPI()
	if err != nil {
		return daemon.Failure{Err: err}
	}
	_, err = w.Write(doc)
	return err
}
