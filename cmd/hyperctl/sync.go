package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/cmd/hyperctl/image"
	"hypersdk/workflows/job"
)

// syncing is the flags of sync start.
type syncing struct {
	api.SyncRequest
	vcenter                             vcenter
	interval, downtime, shutdownTimeout time.Duration
	threshold, key                      string
	metadata                            []string
	auto, follow                        bool
}

func (a *app) syncCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "sync", Short: "Copy a VM while it runs, and keep the copy in sync until the cutover",
		Long: `A warm copy is a durable job. It copies the disks of a VM once in full while the VM runs, and then in rounds
what changed of them, in place. At the cutover the guest is shut down, where that was asked for, and one
last, short round makes the copy complete. So a VM of terabytes is down for minutes.`,
		Example: `  hyperctl sync start web-01 -o /exports --max-downtime 2m --shutdown
  hyperctl sync status 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11
  hyperctl sync cutover 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.syncStartCommand(), a.syncCutoverCommand(), a.syncStatusCommand())
	return c
}

func (a *app) syncStartCommand() *cobra.Command {
	var s syncing
	c := &cobra.Command{
		Use: "start VM", Short: "Start a warm copy of a VM",
		Long: `Starts a warm copy of the disks of a VM into a folder on the daemon's host (or a worker's) that is named
after the VM. Nothing has its final name before the cutover is complete.

Rounds begin --interval apart. When it is time for the cutover, by --max-rounds, --threshold or
--max-downtime, the job says so and goes on with rounds until "hyperctl sync cutover" asks for it, which may
be at any time; with --auto it cuts over by itself.

Where the platform tracks changes ("hyperctl cbt enable"), a round reads only what changed. Where it does
not, a round reads the disks and writes what differs.

The id of the job is printed: "hyperctl watch", "logs", "pause", "resume", "limit" and "cancel" take it.`,
		Example: `  hyperctl sync start web-01 -o /exports
  hyperctl sync start web-01 -o /exports -O raw --interval 10m --max-downtime 90s --shutdown --auto --follow
  hyperctl sync start /DC0/vm/db-01 -o /exports --threshold 256M --shutdown --shutdown-then poweroff`,
		Args: exactly(1, "the name or path of a VM"),
		RunE: func(c *cobra.Command, args []string) error { return a.syncStart(c, &s, args[0]) },
	}
	f := c.Flags()
	f.StringVarP(&s.OutputPath, "output", "o", "", "folder on the daemon's host")
	f.StringVarP(&s.Format, "format", "O", "", "format of the disks: qcow2 (default) or raw")
	f.DurationVar(&s.interval, "interval", 0, "how far apart two rounds begin (default 5m)")
	f.IntVar(&s.MaxRounds, "max-rounds", 0, "after so many rounds it is time for the cutover")
	f.StringVar(&s.threshold, "threshold", "", "once a round had at most that many changed bytes it is time for it, such as 256M")
	f.DurationVar(&s.downtime, "max-downtime", 0, "once the downtime is forecast to be at most that long it is time for it")
	f.BoolVar(&s.auto, "auto", false, "cut over when it is time, without being asked")
	f.BoolVar(&s.Shutdown, "shutdown", false, "shut the guest down for the cutover; it stays off")
	f.DurationVar(&s.shutdownTimeout, "shutdown-timeout", 0, "with --shutdown: what the guest has (default 5m)")
	f.StringVar((*string)(&s.ShutdownThen), "shutdown-then", "", "with --shutdown: what follows where it does not: fail (default), which calls the cutover off, or poweroff")
	f.BoolVar(&s.Quiesce, "quiesce", false, "bring the guest's file systems to rest for each snapshot")
	f.BoolVar(&s.Overwrite, "overwrite", false, "replace an earlier export of the VM in the same place")
	f.StringVar(&s.Transport, "transport", "", "force a way to read the disks (default: the best that is safe)")
	f.Float64Var(&s.LimitMBps, "limit", 0, "bandwidth limit in MB/s; 0 is none")
	f.IntVar(&s.Priority, "priority", 0, "0 to 100; higher ones are admitted first")
	f.IntVar(&s.Parallel, "parallel", 0, "ranges of one disk that are read at once")
	f.BoolVar(&s.NoVerify, "no-verify", false, "do not read the targets again at the end to compare them")
	f.StringVar(&s.Name, "name", "", "free name for people")
	f.StringArrayVar(&s.metadata, "metadata", nil, "key=value to keep with the job; may be repeated")
	f.StringVar(&s.key, "key", "", "idempotency key: the same request under the same key is started once")
	f.BoolVarP(&s.follow, "follow", "w", false, "show the progress until the job has ended")
	s.vcenter.flags(c)
	_ = c.RegisterFlagCompletionFunc("format", words("qcow2", "raw")) // the flag is there
	return c
}

func (a *app) syncStart(c *cobra.Command, s *syncing, vm string) (err error) {
	if s.OutputPath == "" {
		return usageError("say where to copy to (--output)")
	}
	if s.OutputPath, err = filepath.Abs(s.OutputPath); err != nil {
		return err
	}
	s.VMPath = vm
	s.Interval, s.MaxDowntime, s.ShutdownTimeout = job.Duration(s.interval), job.Duration(s.downtime), job.Duration(s.shutdownTimeout)
	if s.auto {
		s.Cutover = job.CutoverAuto
	}
	if s.threshold != "" {
		if s.ThresholdBytes, err = image.ParseSize(s.threshold); err != nil {
			return usageError("--threshold %q is not a size such as 256M", clean(s.threshold))
		}
	}
	if s.Metadata, err = pairs(s.metadata); err != nil {
		return err
	}
	if s.VCenter, err = s.vcenter.credentials(a); err != nil {
		return err
	}
	s.Connection = s.vcenter.connection
	out, err := a.client.Sync(c.Context(), s.key, s.SyncRequest)
	if err != nil {
		return err
	}
	return a.started(c.Context(), out, out.JobID, s.follow)
}

func (a *app) syncCutoverCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "cutover JOB", Short: "Ask a warm copy for its cutover", Args: exactly(1, "the id of a warm copy"),
		Long: `Asks a warm copy for its cutover: the round that is under way is finished; the guest is shut down, where
that was asked for when the copy was started; and one last round is copied, verified and named.

A guest that does not shut down calls the cutover off, and the job goes on with rounds. With --follow the
progress is shown until the job has ended, or the cutover is called off, which is a failure.`,
		Example: "  hyperctl sync cutover 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11 --follow",
		RunE: func(c *cobra.Command, args []string) error {
			out, err := a.client.Cutover(c.Context(), args[0])
			if err != nil {
				return err
			}
			switch {
			case a.json && !follow:
				return a.printJSON(out)
			case !a.json:
				a.printf("%s cuts over%s\n", clean(out.JobID), forecastText(out.Sync.Forecast))
			}
			if follow {
				return a.watchCutover(c.Context(), out.JobID)
			}
			return nil
		},
		ValidArgsFunction: first(a.completeJobs(job.Pending, job.Running)),
	}
	c.Flags().BoolVarP(&follow, "follow", "w", false, "show the progress until the job has ended")
	return c
}

// watchCutover shows the progress of a cutover until the job has ended. One that is called off does not end:
// its job goes on.
func (a *app) watchCutover(ctx context.Context, id string) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	why := make(chan string, 1)
	go func() {
		defer close(why)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-tick.C:
			}
			if j, err := a.client.Job(watching, id); err == nil && j.Sync != nil && j.Sync.CalledOff != "" {
				why <- j.Sync.CalledOff
				stop()
				return
			}
		}
	}()
	err := a.watch(watching, []string{id}, 0)
	stop()
	if off, ok := <-why; ok {
		return fmt.Errorf("the cutover was called off: %s; the rounds go on", off)
	}
	return err
}

// forecastText is what a cutover is forecast to cost, behind something else.
func forecastText(f *job.SyncForecast) string {
	if f == nil {
		return ""
	}
	return fmt.Sprintf("; the downtime is forecast to be %s", short(f.Downtime))
}

func (a *app) syncStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status JOB", Short: "Show how far a warm copy is, with its rounds", Args: exactly(1, "the id of a warm copy"),
		Example: "  hyperctl sync status 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11",
		RunE: func(c *cobra.Command, args []string) error {
			j, err := a.client.Job(c.Context(), args[0])
			switch {
			case err != nil:
				return err
			case j.Sync == nil:
				return fmt.Errorf("%s is no warm copy", clean(args[0]))
			case a.json:
				return a.printJSON(j.Sync)
			}
			a.printJob(j)
			return nil
		},
		ValidArgsFunction: first(a.completeJobs()),
	}
}

// short is a duration as exact as people want it.
func short(d job.Duration) string {
	t := time.Duration(d)
	switch {
	case t >= time.Minute:
		t = t.Round(time.Second)
	case t >= time.Second:
		t = t.Round(100 * time.Millisecond)
	}
	return t.String()
}

// syncRows are the rows of a warm copy among those of a job; none where it is none.
func syncRows(s *job.SyncView, ended bool) [][2]string {
	if s == nil {
		return nil
	}
	rows := [][2]string{{"Round", strconv.Itoa(s.Round)}}
	if f := s.Forecast; f != nil && !ended {
		changes := "nothing"
		if f.ChangeRate > 0 {
			changes = rateText(f.ChangeRate)
		}
		rows = append(rows, [2]string{"Forecast", fmt.Sprintf("down for %s; the guest changes %s, and %s are copied",
			short(f.Downtime), changes, rateText(f.TransferRate))})
	}
	if !ended {
		rows = append(rows, [2]string{"Ready", s.Ready}, [2]string{"Called off", s.CalledOff})
	}
	return rows
}

// printRounds prints the last rounds of a warm copy.
func (a *app) printRounds(s *job.SyncView) {
	if s == nil || len(s.Rounds) == 0 {
		return
	}
	t := newTable(">ROUND", "BEGAN", ">TOOK", ">CHANGED", ">READ", "REMARK")
	for _, r := range s.Rounds {
		note := strings.Join(r.Notes, "; ")
		if r.Final {
			note = strings.TrimSuffix("the last one; "+note, "; ")
		}
		t.add(strconv.Itoa(r.Round), r.Began.Local().Format("2006-01-02 15:04:05"), short(r.Took), bytesText(r.Changed), bytesText(r.Read), note)
	}
	a.printf("\n")
	a.printTable(t)
}
