package apiserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/workflows/job"
)

// jobLog is a log that grows.
type jobLog struct {
	mu  sync.Mutex
	all string
	err error
}

func (l *jobLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all += line + "\n"
}

func (l *jobLog) read(_ context.Context, _ string, offset int64) ([]byte, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || offset >= int64(len(l.all)) {
		return nil, offset, l.err
	}
	page := l.all[offset:min(len(l.all), int(offset)+100)]
	page = page[:strings.LastIndexByte(page, '\n')+1]
	return []byte(page), offset + int64(len(page)), nil
}

const (
	line1 = `{"time":"2026-03-01T12:00:00Z","level":"INFO","msg":"job starts","vm":"web 01"}`
	line2 = `{"time":"2026-03-01T12:00:01Z","level":"WARN","msg":"odd\n\u001b[31m","n":3,"x":{"a":1},"s":""}`
	text1 = "2026-03-01T12:00:00Z INFO  job starts vm=\"web 01\"\n"
	text2 = `2026-03-01T12:00:01Z WARN  odd\n\x1b[31m n=3 s="" x={"a":1}` + "\n"
)

func withLog(l *jobLog) func(*apiserver.Config, *apiserver.Deps) {
	return func(_ *apiserver.Config, d *apiserver.Deps) { d.Logs = l.read }
}

func TestLogs(t *testing.T) {
	l := &jobLog{}
	b := start(t, withLog(l))
	b.temporal.Add(running("j"))
	require.Empty(t, b.get("/jobs/logs/j").body, "no log yet")
	for _, s := range []string{line1, line2, "no json"} {
		l.add(s)
	}
	for path, want := range map[string]string{
		"/jobs/logs/j":                                      text1 + text2 + "no json\n",
		"/jobs/logs/j?tail=2":                               text2 + "no json\n",
		"/jobs/logs/j?tail=9":                               text1 + text2 + "no json\n",
		"/jobs/logs/j?format=json&tail=2":                   line2 + "\nno json\n",
		fmt.Sprintf("/jobs/logs/j?offset=%d", len(line1)+1): text2 + "no json\n",
	} {
		a := b.get(path)
		require.Equal(t, http.StatusOK, a.status)
		require.Equal(t, want, a.body, path)
		require.Equal(t, "text/plain; charset=utf-8", a.header.Get("Content-Type"))
		require.Equal(t, fmt.Sprint(len(l.all)), a.header.Get("Log-Offset"))
	}
	b.get("/jobs/logs/j?tail=-1").refused(http.StatusUnprocessableEntity)
	b.get("/jobs/logs/j?format=xml").refused(http.StatusUnprocessableEntity)
	l.err = errors.New("open /var/lib/x: permission denied")
	require.NotContains(t, b.get("/jobs/logs/j").refused(http.StatusInternalServerError), "/var/lib")
}

// A follower gets what is added, and the end of the job is the end of the answer.
func TestFollowLog(t *testing.T) {
	l := &jobLog{}
	b := start(t, withLog(l))
	b.temporal.Add(running("j"))
	l.add(line1)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL+"/jobs/logs/j?follow=true&format=json", nil)
	require.NoError(t, err)
	resp, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	require.True(t, lines.Scan())
	require.Equal(t, line1, lines.Text())
	l.add(line2)
	require.True(t, lines.Scan())
	require.Equal(t, line2, lines.Text())
	b.temporal.Change("j", func(r *apiservertest.Run) { r.End(job.Completed, nil, "") })
	require.False(t, lines.Scan())
	require.NoError(t, lines.Err())
}

// Where the log is on another host, that host is asked.
func TestLogOfAnotherHost(t *testing.T) {
	b := start(t)
	b.temporal.Add(running("j"))
	b.temporal.Log("j", line1+"\n"+line2+"\n")
	require.Equal(t, text1+text2, b.get("/jobs/logs/j").body)

	b.temporal.Add(apiservertest.Run{ID: "pending"})
	require.Empty(t, b.get("/jobs/logs/pending").body, "there is no host yet")

	b.temporal.Add(running("k"))
	b.temporal.Deaf(true)
	require.Contains(t, b.get("/jobs/logs/k").refused(http.StatusGatewayTimeout), "host-1")
}
