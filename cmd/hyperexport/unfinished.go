package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/cmd/terminal"
	"hypersdk/cmd/terminal/progress"
	"hypersdk/workflows/job"
)

// withEngine runs the engine for what is under way on the platform; nothing is begun for it.
func (a *app) withEngine(c *cobra.Command, use func(ctx context.Context, e *engine, open []job.Job) error) (err error) {
	if err := a.configure(c.Flags()); err != nil {
		return err
	}
	p, err := a.platform()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(p.folder(a.opt.dataDir), lockFile)); errors.Is(err, os.ErrNotExist) {
		return use(c.Context(), nil, nil) // there never was an export
	}
	e, err := a.openEngine(c.Context(), p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	open, err := e.unfinished(c.Context())
	if err != nil {
		return err
	}
	return use(c.Context(), e, open)
}

func (a *app) unfinishedCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unfinished", Short: "List exports that are under way, were stopped or were cut off", Args: cobra.NoArgs,
		Long: `Lists the exports on this vCenter that have not ended. The command that began one goes on with it;
"hyperexport cancel" gives it up.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withEngine(c, func(_ context.Context, _ *engine, open []job.Job) error {
				if a.opt.json {
					for _, j := range open {
						if err := a.printJSON(j); err != nil {
							return err
						}
					}
					return nil
				}
				if len(open) == 0 {
					a.printf("Nothing is unfinished.\n")
					return nil
				}
				t := terminal.NewTable("EXPORT", "VM", "STATE", ">DONE", "?FORMAT", "TO")
				for _, j := range open {
					state, done := string(j.Status), ""
					if p := j.Progress; p != nil {
						done = terminal.PercentText(p.PercentComplete)
						if p.Paused {
							state = "stopped"
						}
					}
					t.Add(j.ID, terminal.Cut(progress.Title(j), 40), state, done, j.Definition.Format, j.Definition.OutputPath)
				}
				a.Screen().PrintTable(t)
				return nil
			})
		},
	}
}

func (a *app) cancelCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "cancel [EXPORT|VM...]", Short: "Give up unfinished exports: what was copied and their snapshots are removed",
		Example: "  hyperexport cancel web-01\n  hyperexport cancel --all",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError("name exports or VMs, or say --all")
			}
			return a.withEngine(c, func(ctx context.Context, e *engine, open []job.Job) error {
				chosen, err := choose(open, args)
				if err != nil {
					return err
				}
				if len(chosen) == 0 {
					a.complain("nothing is unfinished")
					return nil
				}
				return a.cancel(ctx, e, chosen)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all that are unfinished on this vCenter")
	return c
}

// choose finds exports by their id, or by the path or name of the VM; no names are all of them.
func choose(open []job.Job, names []string) ([]job.Job, error) {
	if len(names) == 0 {
		return open, nil
	}
	var out []job.Job
	for _, n := range names {
		found := slices.DeleteFunc(slices.Clone(open), func(j job.Job) bool {
			return j.ID != n && j.Definition.VMPath != n && j.Definition.Name != n
		})
		if len(found) == 0 {
			return nil, &codeError{exitNotFound, fmt.Errorf("no unfinished export is called %q", n)}
		}
		out = append(out, found...)
	}
	return out, nil
}

func (a *app) cancel(ctx context.Context, e *engine, jobs []job.Job) error {
	r := &run{app: a, engine: e, show: silent{}}
	for _, j := range jobs {
		r.exports = append(r.exports, &export{spec: j.Definition, id: j.ID, job: j})
		out, err := e.api.Cancel(ctx, j.ID)
		if err != nil {
			return err
		}
		if why := out.Errors[j.ID]; why != "" && !strings.Contains(why, "ended") {
			return errors.New(why)
		}
	}
	r.request = &request{path: filepath.Join(e.dir, "requests", "none")}
	a.opt.parallel = len(jobs)
	late, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	if err := r.follow(late); err != nil {
		return err
	}
	if err := r.record(); err != nil {
		a.complain("the history was not written: %v", err)
	}
	for _, x := range r.exports {
		a.printf("%s %s: %s\n", x.id, terminal.OneLine(x.spec.VMPath), x.job.Status)
		if strings.Contains(x.job.Error, "left behind") {
			a.complain("%s: %s", x.spec.VMPath, x.job.Error)
		}
	}
	return nil
}
