package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

// logs adds to the log of every job.
func (l *lab) logs(lines string) {
	_, _ = l.log.Write([]byte(lines)) // it never fails
}

func TestLogs(t *testing.T) {
	l := newLab(t)
	l.job("j1")
	l.logs(`{"time":"2026-03-01T12:00:00Z","level":"INFO","msg":"job starts","vm":"web-01"}` + "\n" + "raw \x1b[31m line\n")
	require.Equal(t, "2026-03-01T12:00:00Z INFO  job starts vm=web-01\nraw \x1b[31m line\n", l.ok("logs", "j1"))
	require.Equal(t, l.log.String(), l.ok("logs", "j1", "--json"))
	require.Equal(t, "raw \x1b[31m line\n", l.ok("logs", "-n", "1", "j1"))
	l.terminal = [2]int{80, 24}
	require.NotContains(t, l.ok("logs", "j1"), "\x1b", "a log does nothing to a terminal")
	l.end("j1", job.Completed)
	require.Contains(t, l.ok("logs", "-f", "j1"), "job starts")
}

// A log that is followed goes on after the daemon was away, with nothing left out and nothing said twice.
func TestLogsOverARestart(t *testing.T) {
	l := newLab(t)
	l.job("j1")
	l.logs("one\ntwo\nthree\n")
	w := l.watch("logs", "-f", "-n", "2", "j1")
	w.says("three")
	l.down.Store(true)
	w.says("its jobs go on when it is back")
	l.logs("four\n")
	l.down.Store(false)
	w.says("four")
	l.logs("five\n")
	l.end("j1", job.Completed)
	require.Zero(t, w.ends())
	require.Equal(t, "two\nthree\nfour\nfive\n", w.out.String())
	require.Equal(t, 1, strings.Count(w.errs.String(), "does not answer"))
}
