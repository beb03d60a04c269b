package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// completeTimeout is how long a shell may be kept waiting.
const completeTimeout = 2 * time.Second

type completion = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

func words(w ...string) completion {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return w, cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes one word and no more.
func first(next completion) completion {
	return func(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return next(c, args, word)
	}
}

// completing talks to the daemon on behalf of a shell; where it does not answer there is nothing to complete.
func (a *app) completing(c *cobra.Command, do func(ctx context.Context, cl *client.Client)) {
	server := a.server
	if server == "" {
		server = a.Env("HYPERSDK_SERVER")
	}
	cl, err := client.New(server, "hyperctl/"+programVersion())
	if err != nil {
		return
	}
	defer cl.Close()
	parent := c.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	do(ctx, cl)
}

// completeJobs offers the ids of jobs in these states, or of all, that were not named yet.
func (a *app) completeJobs(states ...job.State) completion {
	return func(c *cobra.Command, args []string, _ string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
		a.completing(c, func(ctx context.Context, cl *client.Client) {
			jobs, err := cl.Jobs(ctx, api.Query{Status: states})
			if err != nil {
				return
			}
			for _, j := range jobs.Jobs {
				if !slices.Contains(args, j.ID) {
					out = append(out, cobra.CompletionWithDesc(j.ID, clean(title(j))+", "+string(j.Status)))
				}
			}
		})
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeVMs offers the paths of VMs.
func (a *app) completeVMs(c *cobra.Command, args []string, _ string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
	a.completing(c, func(ctx context.Context, cl *client.Client) {
		vms, err := cl.VMs(ctx, "", providers.Filter{})
		if err != nil {
			return
		}
		for _, vm := range vms {
			if !slices.Contains(args, vm.Path) {
				out = append(out, clean(vm.Path))
			}
		}
	})
	return out, cobra.ShellCompDirectiveNoFileComp
}
