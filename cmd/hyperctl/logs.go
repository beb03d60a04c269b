package main

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/client"
)

func (a *app) logsCommand() *cobra.Command {
	var o client.LogOptions
	var follow bool
	c := &cobra.Command{
		Use: "logs JOB", Aliases: []string{"log"}, Short: "Print the log of a job", Args: exactly(1, "the id of a job"),
		Long: `Prints the log of a job. With --follow what is added comes as well, until the job has ended; a daemon that
restarts in between is waited for.`,
		RunE: func(c *cobra.Command, args []string) error {
			o.JSON = a.json
			if follow {
				return a.followLog(c.Context(), args[0], o)
			}
			_, err := a.client.Log(c.Context(), args[0], o, a.logWriter())
			return err
		},
		ValidArgsFunction: first(a.completeJobs()),
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	c.Flags().IntVarP(&o.Tail, "tail", "n", 0, "only the last so many lines")
	return c
}

// followLog prints a log until its job has ended. It asks again and again for what comes behind what it
// has, rather than for one answer that never ends: that would end with the daemon.
func (a *app) followLog(ctx context.Context, id string, o client.LogOptions) error {
	var gone absence
	t := time.NewTicker(livePace)
	defer t.Stop()
	for {
		// Before the log: all that an ended job has logged is in it.
		j, err := a.client.Job(ctx, id)
		var page bytes.Buffer
		var next int64
		if err == nil {
			next, err = a.client.Log(ctx, id, o, &page)
		}
		first := !gone.away()
		if err = gone.forgive(ctx, err); err != nil {
			return err
		}
		switch {
		case !gone.away():
			o.Offset, o.Tail = next, 0
			if _, err := a.logWriter().Write(page.Bytes()); err != nil {
				return err
			}
			if j.Status.Ended() {
				return nil
			}
		case first:
			a.complain("%s", awayNote)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// logWriter keeps what is in a log from doing things to a terminal.
func (a *app) logWriter() io.Writer {
	if _, _, terminal := a.Size(); !terminal {
		return a.Out
	}
	return writerFunc(func(b []byte) (int, error) {
		_, err := io.WriteString(a.Out, clean(string(b)))
		return len(b), err
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
