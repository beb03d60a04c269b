package activities

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJobLog(t *testing.T) {
	var daemon bytes.Buffer
	l := NewLogs(t.TempDir(), 1<<20)
	log := l.Logger(slog.New(slog.NewJSONHandler(&daemon, nil)), "job-1")
	page, next, err := l.Read(t.Context(), "job-1", 0)
	require.NoError(t, err)
	require.Empty(t, page, "a log that is not there is empty")
	require.Zero(t, next)

	log.With("disk", "Hard disk 1").Info("copying", "from", 7)
	page, next, err = l.Read(t.Context(), "job-1", 0)
	require.NoError(t, err)
	var line map[string]any
	require.NoError(t, json.Unmarshal(page, &line))
	require.Equal(t, "copying", line["msg"])
	require.Equal(t, "Hard disk 1", line["disk"])
	require.EqualValues(t, 7, line["from"])
	require.Contains(t, daemon.String(), `"job":"job-1"`, "it is in the program's log too")

	page, again, err := l.Read(t.Context(), "job-1", next)
	require.NoError(t, err)
	require.Empty(t, page)
	require.Equal(t, next, again)
	_, _, err = l.Read(t.Context(), "job-1", -1)
	require.Error(t, err)
}

// readAll follows a log to its end.
func readAll(t *testing.T, l *Logs, job string, offset int64) (string, int64) {
	t.Helper()
	var all strings.Builder
	for {
		page, next, err := l.Read(t.Context(), job, offset)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page), logPage)
		if len(page) == 0 {
			return all.String(), next
		}
		require.Equal(t, byte('\n'), page[len(page)-1], "pages are whole lines")
		all.Write(page)
		offset = next
	}
}

func TestJobLogIsBounded(t *testing.T) {
	const max = 256 << 10
	dir := t.TempDir()
	l := NewLogs(dir, max)
	log := l.Logger(slog.New(slog.DiscardHandler), "job-1")
	var offset int64
	var followed strings.Builder
	for i := range 5000 {
		log.Info(fmt.Sprintf("line %04d", i), "padding", strings.Repeat("x", 100))
		if i%500 == 0 {
			page, next := readAll(t, l, "job-1", offset)
			followed.WriteString(page)
			offset = next
		}
	}
	page, _ := readAll(t, l, "job-1", offset)
	followed.WriteString(page)
	require.Equal(t, 5000, strings.Count(followed.String(), "\n"), "who follows misses nothing, however the files are cut")

	var size int64
	entries, err := os.ReadDir(filepath.Join(dir, "jobs", "job-1"))
	require.NoError(t, err)
	for _, e := range entries {
		st, err := e.Info()
		require.NoError(t, err)
		size += st.Size()
	}
	require.LessOrEqual(t, size, int64(max))
	all, end := readAll(t, l, "job-1", 0)
	require.Contains(t, all, "line 4999")
	require.NotContains(t, all, "line 0000", "the oldest is dropped")
	require.Greater(t, end, int64(max))
}

func TestHalfALine(t *testing.T) {
	dir := t.TempDir()
	l := NewLogs(dir, 1<<20)
	l.Logger(slog.New(slog.DiscardHandler), "job-1").Info("whole")
	f, err := os.OpenFile(filepath.Join(dir, "jobs", "job-1", "log.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"msg":"ha`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	page, _, err := l.Read(t.Context(), "job-1", 0)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(page, []byte("\n")))
	require.NotContains(t, string(page), "ha\"")
}

func TestJobFolders(t *testing.T) {
	for id, inside := range map[string]string{
		"job-1": "/jobs/job-1", "a.b_c": "/jobs/a.b_c",
		"../x": "/jobs/x-", "a/b": "/jobs/x-", "": "/jobs/x-", ".": "/jobs/x-", strings.Repeat("a", 200): "/jobs/x-",
	} {
		require.True(t, strings.HasPrefix(jobDir("/jobs", id), inside), id)
		require.Equal(t, "/jobs", filepath.Dir(jobDir("/jobs", id)), id)
	}
	require.NotEqual(t, jobDir("/jobs", "a/b"), jobDir("/jobs", "a/c"))
}
