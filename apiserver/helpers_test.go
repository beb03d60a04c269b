package apiserver_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/apiserver"
	"hypersdk/apiserver/api"
	"hypersdk/apiserver/apiservertest"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a server on what it stands on.
type bench struct {
	*httptest.Server
	t           *testing.T
	temporal    *apiservertest.Temporal
	connections *apiservertest.Connections
	log         *buffer
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, change ...func(*apiserver.Config, *apiserver.Deps)) *bench {
	t.Helper()
	b := &bench{t: t, temporal: apiservertest.NewTemporal(), log: &buffer{}}
	b.connections = &apiservertest.Connections{Default: &apiservertest.Platform{List: []providers.VM{
		{ID: "vm-1", Name: "db-01", Path: "/dc/vm/db-01", PowerState: providers.PowerOff, MemoryMB: 2048, NumCPU: 1},
		{ID: "vm-2", Name: "web-01", Path: "/dc/vm/web-01", PowerState: providers.PowerOn, GuestOS: "Debian", MemoryMB: 4096, NumCPU: 2, StorageBytes: 1 << 30},
	}}}
	cfg := apiserver.Config{DefaultFormat: "qcow2", PollInterval: 20 * time.Millisecond}
	deps := apiserver.Deps{
		Temporal: b.temporal, Connections: b.connections, CanStoreCredentials: true, Version: "1.2.3",
		Formats: []string{"qcow2", "raw"}, TemporalUI: "http://127.0.0.1:8233",
		Providers: []api.ProviderKind{{Kind: "vsphere", Title: "VMware vSphere", Capabilities: []string{"inventory"}, Transports: []string{"datastore"}}},
		Log:       slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg, &deps)
	}
	s, err := apiserver.New(cfg, deps)
	require.NoError(t, err)
	b.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		b.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return b
}

type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// json is the body as a value.
func (a answer) json() map[string]any {
	a.t.Helper()
	var v map[string]any
	require.NoError(a.t, json.Unmarshal([]byte(a.body), &v), a.body)
	return v
}

// refused makes sure that the answer is an error as all errors are.
func (a answer) refused(status int) string {
	a.t.Helper()
	require.Equal(a.t, status, a.status, a.body)
	require.Equal(a.t, "application/json", strings.Split(a.header.Get("Content-Type"), ";")[0])
	v := a.json()
	require.NotEmpty(a.t, v["error"])
	_, err := time.Parse("2006-01-02T15:04:05.000Z", v["timestamp"].(string))
	require.NoError(a.t, err)
	require.NotContains(a.t, v, "$schema")
	return v["error"].(string)
}

func (a answer) ok() map[string]any {
	a.t.Helper()
	require.Equal(a.t, http.StatusOK, a.status, a.body)
	return a.json()
}

// send sends a request; header are names and values in turn.
func (b *bench) send(method, path, body string, header ...string) answer {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.URL+path, strings.NewReader(body))
	require.NoError(b.t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(b.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(b.t, err)
	return answer{b.t, resp.StatusCode, resp.Header, string(raw)}
}

func (b *bench) get(path string) answer        { return b.send(http.MethodGet, path, "") }
func (b *bench) post(path, body string) answer { return b.send(http.MethodPost, path, body) }
func (b *bench) submit(body string) []string   { return ids(b.post("/jobs/submit", body).ok()) }
func keys(v any) (names []string) {
	for k := range v.(map[string]any) {
		names = append(names, k)
	}
	return names
}

func ids(submitted map[string]any) (list []string) {
	for _, id := range submitted["job_ids"].([]any) {
		list = append(list, id.(string))
	}
	return list
}

const web = `{"vm_path": "/dc/vm/web-01", "output_path": "/exports"}`

var spec = job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/exports", Format: "qcow2"}

// running is a run of an export in its transfer phase.
func running(id string) apiservertest.Run {
	at := job.Time{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	snap := job.Snapshot{
		Status: job.Running, StartedAt: &at, UpdatedAt: at, Host: "host-1",
		Progress: job.Progress{Phase: job.Transfer, CurrentStep: "copying the disks", TotalBytes: 3000, Transport: "datastore",
			Disks: []job.DiskProgress{
				{Disk: "2000", File: "a.qcow2", Phase: job.Transfer, Total: 1000},
				{Disk: "2001", File: "b.qcow2", Phase: job.Transfer, Total: 2000},
			}},
	}
	return apiservertest.Run{ID: id, Started: at.Time, Snapshot: snap, Memo: map[string]any{
		workflows.MemoSpec: spec, workflows.MemoStatus: snap,
	}}
}
