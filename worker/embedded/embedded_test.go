package embedded_test

import (
	"database/sql"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"hypersdk/worker/embedded"
)

const anyPort = "127.0.0.1:0"

func TestAWorkflowOutlivesTheServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data folder with a % and a ?", "new")
	s := start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	run, err := dial(t, s).ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "w", TaskQueue: "q"}, "double", 21)
	require.NoError(t, err)
	require.NoError(t, s.Durable(t.Context()))
	require.NoError(t, s.Stop())
	require.NoError(t, s.Durable(t.Context()), "what has been stopped has nothing left to sync")

	s = start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	c := dial(t, s)
	w := worker.New(c, "q", worker.Options{})
	w.RegisterWorkflowWithOptions(func(_ workflow.Context, n int) (int, error) { return 2 * n, nil },
		workflow.RegisterOptions{Name: "double"})
	require.NoError(t, w.Start())
	defer w.Stop()
	var got int
	require.NoError(t, c.GetWorkflow(t.Context(), "w", run.GetRunID()).Get(t.Context(), &got))
	require.Equal(t, 42, got)

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, "%s is for nobody else to read", e.Name())
	}
}

func TestTheWebUI(t *testing.T) {
	l := listen(t, anyPort)
	s := start(t, embedded.Options{DataDir: t.TempDir(), FrontendAddr: anyPort, UI: l, CodecEndpoint: "http://127.0.0.1:8080/codec"})
	base := "http://" + l.Addr().String()

	for _, c := range []struct {
		path, host, want string
		status           int
	}{
		{"/", "", "<!doctype html>", 200},
		{"/namespaces/default/workflows", "", "<!doctype html>", 200},
		{"/api/v1/namespaces", "", `"default"`, 200},
		{"/api/v1/settings", "", "http://127.0.0.1:8080/codec", 200},
		{"/", "localhost:8233", "<!doctype html>", 200},
		{"/api/v1/namespaces", "rebound.example", "localhost only", 403},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+c.path, nil)
		require.NoError(t, err)
		r.Host = c.host
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, c.status, res.StatusCode, "%s %s", c.path, c.host)
		require.Contains(t, strings.ToLower(string(body)), strings.ToLower(c.want), c.path)
	}
	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, s.Stop())
	_, err := net.Dial("tcp", l.Addr().String())
	require.Error(t, err, "its port is free again")
}

func TestOneProcessPerFolder(t *testing.T) {
	dir := t.TempDir()
	s := start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	_, err := embedded.Start(embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	require.EqualError(t, err, "data folder "+dir+" is in use by process "+strconv.Itoa(os.Getpid()))
	require.NoError(t, s.Stop())
	start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort})
}

func TestWhatItRefuses(t *testing.T) {
	taken := listen(t, anyPort)
	aFile := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(aFile, nil, 0o600))
	for name, c := range map[string]struct {
		dir, frontend string
		ui            string
		want          string
	}{
		"a port that is taken":                 {dir: t.TempDir(), frontend: taken.Addr().String(), want: "address " + taken.Addr().String() + " is taken"},
		"an address that others reach":         {dir: t.TempDir(), frontend: "0.0.0.0:0", want: "not a loopback address"},
		"a web UI that others reach":           {dir: t.TempDir(), frontend: anyPort, ui: "0.0.0.0:0", want: "not a loopback address"},
		"what is no address":                   {dir: t.TempDir(), frontend: "here", want: "not an address"},
		"a data folder that is a file":         {dir: aFile, frontend: anyPort, want: "not a directory"},
		"a data folder where nothing is made":  {dir: "/proc/self/data", frontend: anyPort, want: "data folder /proc/self/data"},
		"a database of a newer version":        {dir: withMeta(t, "temporal_schema", "99.0"), frontend: anyPort, want: "newer version of this program (temporal_schema 99.0"},
		"a database that somebody else made":   {dir: withTable(t), frontend: anyPort, want: "not made by this program"},
		"a database whose version is nonsense": {dir: withMeta(t, "visibility_schema", "x"), frontend: anyPort, want: `unreadable visibility_schema "x"`},
		"a file that is no database":           {dir: withGarbage(t), frontend: anyPort, want: "not a database"},
	} {
		t.Run(name, func(t *testing.T) {
			o := embedded.Options{DataDir: c.dir, FrontendAddr: c.frontend}
			if c.ui != "" {
				o.UI = listen(t, c.ui)
			}
			_, err := embedded.Start(o)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n", "one sentence")
		})
	}
}

func TestAnOlderSchemaIsRaisedAndACopyKept(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort}).Stop())
	// What 0.10 and 0.11 brought is taken away again: this is how 0.9 left it.
	change(t, dir, `DROP TABLE current_chasm_executions`, `DROP TABLE tasks_v2`, `DROP TABLE task_queues_v2`,
		`UPDATE hypersdk_meta SET value = '0.9' WHERE key = 'temporal_schema'`)

	s := start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	_, err := dial(t, s).ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "w", TaskQueue: "q"}, "any")
	require.NoError(t, err)
	require.NoError(t, s.Stop())

	const versions = `SELECT group_concat(name, ' ') || ' ' || (SELECT value FROM hypersdk_meta WHERE key = 'temporal_schema')
		FROM (SELECT name FROM sqlite_master WHERE name IN ('tasks_v2', 'current_chasm_executions') ORDER BY name)`
	require.Equal(t, "current_chasm_executions tasks_v2 0.11", query(t, filepath.Join(dir, "temporal.db"), versions))
	copies, err := filepath.Glob(filepath.Join(dir, "temporal.db.before-*"))
	require.NoError(t, err)
	require.Len(t, copies, 1)
	st, err := os.Stat(copies[0])
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	require.Equal(t, "0.9", query(t, copies[0], `SELECT value FROM hypersdk_meta WHERE key = 'temporal_schema'`))
}

func TestAFailedRaiseChangesNothing(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, start(t, embedded.Options{DataDir: dir, FrontendAddr: anyPort}).Stop())
	// 0.11 makes a table that is there: its script fails after that of 0.10 went well.
	change(t, dir, `DROP TABLE tasks_v2`, `DROP TABLE task_queues_v2`,
		`UPDATE hypersdk_meta SET value = '0.9' WHERE key = 'temporal_schema'`)
	_, err := embedded.Start(embedded.Options{DataDir: dir, FrontendAddr: anyPort})
	require.ErrorContains(t, err, "it is unchanged")
	require.Equal(t, "0.9 0", query(t, filepath.Join(dir, "temporal.db"),
		`SELECT value || ' ' || (SELECT count(*) FROM sqlite_master WHERE name = 'tasks_v2') FROM hypersdk_meta WHERE key = 'temporal_schema'`))
}

func start(t *testing.T, o embedded.Options) *embedded.Server {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := embedded.Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

func dial(t *testing.T, s *embedded.Server) client.Client {
	t.Helper()
	c, err := client.Dial(client.Options{HostPort: s.FrontendAddr(), Logger: sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler))})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func withMeta(t *testing.T, key, value string) string {
	t.Helper()
	dir := t.TempDir()
	change(t, dir, `CREATE TABLE hypersdk_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)`,
		`INSERT INTO hypersdk_meta VALUES ('temporal_schema', '0.11'), ('visibility_schema', '0.1'), ('history_shards', '4')`,
		`UPDATE hypersdk_meta SET value = '`+value+`' WHERE key = '`+key+`'`)
	return dir
}

func withTable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	change(t, dir, `CREATE TABLE addresses (name TEXT)`)
	return dir
}

func withGarbage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "temporal.db"), []byte(strings.Repeat("garbage ", 1000)), 0o600))
	return dir
}

// change edits the database of a folder from outside.
func change(t *testing.T, dir string, statements ...string) {
	t.Helper()
	db := openFile(t, filepath.Join(dir, "temporal.db"))
	for _, s := range statements {
		_, err := db.ExecContext(t.Context(), s)
		require.NoError(t, err, s)
	}
	require.NoError(t, db.Close())
}

func query(t *testing.T, file, q string) (value string) {
	t.Helper()
	db := openFile(t, file)
	require.NoError(t, db.QueryRowContext(t.Context(), q).Scan(&value))
	require.NoError(t, db.Close())
	return value
}

func openFile(t *testing.T, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout=5000")
	require.NoError(t, err)
	db.SetConnMaxLifetime(time.Minute)
	return db
}
