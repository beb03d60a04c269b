package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

func (a *app) queryCommand() *cobra.Command {
	var q api.Query
	var states []string
	c := &cobra.Command{
		Use: "query [JOB...]", Aliases: []string{"jobs", "list", "ls"}, Short: "List jobs, the newest first",
		Example: "  hyperctl query\n  hyperctl query --status running,pending",
		RunE: func(c *cobra.Command, args []string) error {
			q.JobIDs = args
			for _, st := range states {
				if !slices.Contains(allStates, st) {
					return usageError("--status %q is none of %s", clean(st), strings.Join(allStates, ", "))
				}
				q.Status = append(q.Status, job.State(st))
			}
			jobs, err := a.client.Jobs(c.Context(), q)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(jobs)
			} else {
				a.printJobs(jobs)
			}
			if missing := absent(args, jobs.Jobs); err == nil && len(missing) > 0 {
				return &codeError{exitNotFound, fmt.Errorf("no such job: %s", strings.Join(missing, ", "))}
			}
			return err
		},
		ValidArgsFunction: a.completeJobs(),
	}
	c.Flags().StringSliceVar(&states, "status", nil, "only jobs in these states: "+strings.Join(allStates, ", "))
	c.Flags().BoolVarP(&q.All, "all", "a", false, "all jobs, not only the newest 100")
	c.Flags().IntVarP(&q.Limit, "limit", "n", 0, "at most so many")
	_ = c.RegisterFlagCompletionFunc("status", words(allStates...)) // the flag is there
	return c
}

var allStates = []string{"pending", "running", "completed", "failed", "cancelled"}

func absent(ids []string, jobs []job.Job) (missing []string) {
	for _, id := range ids {
		if !slices.ContainsFunc(jobs, func(j job.Job) bool { return j.ID == id }) {
			missing = append(missing, id)
		}
	}
	return missing
}

func (a *app) printJobs(jobs api.Jobs) {
	if len(jobs.Jobs) == 0 {
		a.printf("No jobs.\n")
		return
	}
	t := newTable("JOB", "NAME", "STATUS", "?PHASE", "?>DONE", "?>RATE", "?>LEFT", "?>CREATED", "REMARK")
	for _, j := range jobs.Jobs {
		phase, done, rate, left := "", "", "", ""
		if p := j.Progress; p != nil && j.Status == job.Running {
			phase, done, rate, left = string(p.Phase), percentText(p.PercentComplete), rateText(p.TransferRateMBps), p.EstimatedRemaining
		}
		t.add(j.ID, cut(title(j), 40), string(j.Status), phase, done, rate, left, sinceText(j.CreatedAt.Time, jobs.Timestamp.Time), remark(j))
	}
	a.printTable(t)
	if n := jobs.Total - len(jobs.Jobs); n > 0 {
		a.printf("%d more; --all lists them.\n", n)
	}
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status [JOB...]", Short: "Show the daemon, or jobs in detail",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.daemonStatus(c)
			}
			for i, id := range args {
				j, err := a.client.Job(c.Context(), id)
				if err != nil {
					return err
				}
				if a.json {
					err = a.printJSON(j)
				} else {
					if i > 0 {
						a.printf("\n")
					}
					a.printJob(j)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: a.completeJobs(),
	}
}

func (a *app) daemonStatus(c *cobra.Command) error {
	st, err := a.client.Status(c.Context())
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(st)
	}
	rows := [][2]string{
		{"Server", a.client.Server()}, {"Version", st.Version}, {"Up for", st.Uptime},
		{"Jobs", fmt.Sprintf("%d (%d running, %d pending, %d completed, %d failed, %d cancelled)",
			st.TotalJobs, st.RunningJobs, st.PendingJobs, st.CompletedJobs, st.FailedJobs, st.CancelledJobs)},
		{"Documentation", a.client.Server() + "/docs"},
	}
	if st.TemporalURL != "" {
		rows = append(rows, [2]string{"Temporal UI", st.TemporalURL})
	}
	a.printRows(rows)
	return nil
}

func (a *app) printRows(rows [][2]string) { a.Screen().PrintRows(rows) }

func (a *app) printJob(j job.Job) {
	stamp := func(t *job.Time) string {
		if t == nil {
			return ""
		}
		return t.Local().Format("2006-01-02 15:04:05")
	}
	d := j.Definition
	rows := [][2]string{
		{"Job", j.ID}, {"Name", d.Name}, {"Status", string(j.Status)}, {"VM", d.VMPath}, {"Images", imagesText(j.Conversion)}, {"Package", packageText(j.Import)}, {"Chain", chainText(j.Chain)}, {"To", targetText(j)},
		{"Created", stamp(&j.CreatedAt)}, {"Started", stamp(j.StartedAt)}, {"Completed", stamp(j.CompletedAt)}, {"Host", j.Host},
	}
	if p := j.Progress; p != nil && !j.Status.Ended() {
		done := percentText(p.PercentComplete)
		if p.TotalBytes > 0 {
			done += " of " + bytesText(p.TotalBytes)
		}
		for _, s := range []string{rateText(p.TransferRateMBps), p.EstimatedRemaining} {
			if s != "" {
				done += ", " + s
			}
		}
		if p.EstimatedRemaining != "" {
			done += " left"
		}
		rows = append(rows, [2]string{"Phase", string(p.Phase)}, [2]string{"Done", done}, [2]string{"Transport", because(p.Transport, p.TransportReason)})
		if p.LimitMBps > 0 {
			rows = append(rows, [2]string{"Limit", rateText(p.LimitMBps)})
		}
		rows = append(rows, [2]string{"", remark(j)})
	}
	rows = append(rows, syncRows(j.Sync, j.Status.Ended())...)
	if j.Error != "" {
		rows = append(rows, [2]string{"Error", j.Error})
	}
	if r := j.Result; r != nil {
		rows = append(rows, [2]string{"Took", r.Duration.Round(100 * time.Millisecond).String()}, [2]string{"Files", strings.Join(r.Files, "\n")},
			[2]string{"Size", writtenText(r)}, [2]string{"Point", pointText(r.Point)}, [2]string{"Alerts", strings.Join(r.Alerts, "\n")}, [2]string{"Left behind", strings.Join(r.Leftover, "\n")})
	}
	a.printRows(append(rows, [2]string{"Temporal UI", j.TemporalURL}))
	a.printDisks(j)
	a.printRounds(j.Sync)
	if r := j.Result; r != nil && r.Chain != nil && r.Chain.Check != nil {
		a.printf("\n")
		a.printCheck(*r.Chain.Check)
	}
}

// writtenText is how much a job has written; "" of one on a chain that writes nothing.
func writtenText(r *job.Result) string {
	if r.Chain != nil && len(r.Files) == 0 {
		return ""
	}
	return bytesText(r.TotalSize)
}

// imagesText is a line for each image of a conversion; "" where the job is none.
func imagesText(c *job.Conversion) string {
	if c == nil {
		return ""
	}
	lines := make([]string, len(c.Disks))
	for i, d := range c.Disks {
		if lines[i] = d.SourcePath; len(c.Disks) > 1 {
			lines[i] += " to " + d.OutputPath
		}
	}
	return strings.Join(lines, "\n")
}

// chainText is the folder of the chain that a job works on; "" where it works on none.
func chainText(w *job.ChainWork) string {
	if w == nil {
		return ""
	}
	return w.Path
}

// targetText says where a job writes to, and in what format.
func packageText(i *job.ImportSpec) string {
	if i == nil {
		return ""
	}
	return i.PackagePath
}

func targetText(j job.Job) string {
	d := j.Definition
	switch {
	case j.Conversion != nil && len(j.Conversion.Disks) > 1:
		return d.Format
	case j.Import != nil && j.Result != nil:
		return j.Result.VMPath
	case j.Import != nil, j.Chain != nil && d.OutputPath == "":
		return ""
	}
	return d.OutputPath + " (" + d.Format + ")"
}

func (a *app) printDisks(j job.Job) {
	switch {
	case j.Result != nil && j.Result.Point != nil:
		a.printPoint(j.Result.Disks)
	case j.Result != nil && len(j.Result.Disks) > 0:
		t := newTable("FILE", "FORMAT", ">SIZE", ">STORED", "DIGEST")
		for _, d := range j.Result.Disks {
			t.add(d.File, d.Format, bytesText(d.Size), bytesText(d.Stored), d.Digest)
		}
		a.printf("\n")
		a.printTable(t)
	case j.Progress != nil && !j.Status.Ended() && len(j.Progress.Disks) > 0:
		t := newTable("FILE", "PHASE", ">DONE", ">SIZE", ">RATE", "REMARK")
		for _, d := range j.Progress.Disks {
			t.add(d.File, string(d.Phase), percentText(percent(d)), bytesText(d.Total), rateText(d.RateMBps), d.Waiting)
		}
		a.printf("\n")
		a.printTable(t)
	}
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel JOB...", Short: "Cancel jobs; they clean up and end within seconds", Args: someArgs("the id of a job"),
		RunE: func(c *cobra.Command, args []string) error {
			out, err := a.client.Cancel(c.Context(), args...)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(out)
			} else {
				for _, id := range out.Cancelled {
					a.printf("%s\n", clean(id))
				}
			}
			unknown := 0
			for _, id := range out.Failed {
				a.complain("%s was not cancelled: %s", clean(id), clean(out.Errors[id]))
				if strings.HasPrefix(out.Errors[id], "no such job") {
					unknown++
				}
			}
			switch {
			case err != nil || len(out.Failed) == 0:
				return err
			case unknown == len(out.Failed):
				return &codeError{code: exitNotFound}
			}
			return &codeError{code: exitFailure}
		},
		ValidArgsFunction: a.completeJobs(job.Pending, job.Running),
	}
}

func (a *app) pauseCommand() *cobra.Command {
	return a.steerCommand("pause JOB...", "Pause jobs", func(c *cobra.Command, id string) (api.Controlled, error) {
		return a.client.Pause(c.Context(), id)
	})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.steerCommand("resume JOB...", "Let paused jobs go on", func(c *cobra.Command, id string) (api.Controlled, error) {
		return a.client.Resume(c.Context(), id)
	})
}

func (a *app) steerCommand(use, short string, do func(*cobra.Command, string) (api.Controlled, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: someArgs("the id of a job"),
		RunE: func(c *cobra.Command, args []string) error {
			for _, id := range args {
				out, err := do(c, id)
				if err != nil {
					return err
				}
				if err := a.printControlled(out); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: a.completeJobs(job.Pending, job.Running),
	}
}

func (a *app) limitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "limit JOB MBPS", Short: "Limit the bandwidth of a job, in MB/s; 0 is no limit", Args: exactly(2, "the id of a job and a number of MB/s"),
		Example: "  hyperctl limit 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11 50",
		RunE: func(c *cobra.Command, args []string) error {
			mbps, err := strconv.ParseFloat(strings.TrimSuffix(strings.ToLower(args[1]), "mb/s"), 64)
			if err != nil || job.CheckLimit(mbps) != "" {
				return usageError("%q is no bandwidth limit: give a number of MB/s, or 0 for none", clean(args[1]))
			}
			out, err := a.client.Limit(c.Context(), args[0], mbps)
			if err != nil {
				return err
			}
			return a.printControlled(out)
		},
		ValidArgsFunction: first(a.completeJobs(job.Pending, job.Running)),
	}
}

func (a *app) printControlled(c api.Controlled) error {
	if a.json {
		return a.printJSON(c)
	}
	words := []string{"goes on"}
	if c.Paused {
		words[0] = "is paused"
	}
	if c.LimitMBps > 0 {
		words = append(words, "limited to "+rateText(c.LimitMBps))
	} else {
		words = append(words, "without a limit")
	}
	a.printf("%s %s\n", clean(c.JobID), strings.Join(words, ", "))
	return nil
}

// because is a choice and the reason for it, where there is one.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + " (" + why + ")"
}

// started tells of a job that was started, and follows it to its end where that is wanted: then its answer
// is what is seen of it.
func (a *app) started(ctx context.Context, answer any, id string, follow bool) error {
	switch {
	case !a.json:
		a.printf("%s\n", clean(id))
	case !follow:
		return a.printJSON(answer)
	}
	if !follow {
		return nil
	}
	return a.watch(ctx, []string{id}, 0)
}
