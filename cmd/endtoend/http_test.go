package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// answer is what the API says, as it is on the wire.
type answer struct {
	status int
	header http.Header
	body   string
}

// object is the body as JSON, its members untouched.
func (a answer) object(t *testing.T) map[string]json.RawMessage {
	t.Helper()
	var o map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(a.body), &o), "%s", a.body)
	return o
}

// ask sends a request as curl would; header is names and values in turn.
func (l *lab) ask(method, path, body string, header ...string) answer {
	l.t.Helper()
	r, err := http.NewRequestWithContext(l.t.Context(), method, l.server()+path, strings.NewReader(body))
	require.NoError(l.t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(l.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(l.t, err)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// text is a member that is a text.
func text(t *testing.T, o map[string]json.RawMessage, name string) string {
	t.Helper()
	var s string
	require.NoError(t, json.Unmarshal(o[name], &s), "%s is %s", name, o[name])
	return s
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 48*mib)}})
	l.up()

	t.Run("a list is never null", func(t *testing.T) {
		for _, a := range []answer{l.ask("GET", "/jobs/query", ""), l.ask("POST", "/jobs/query", "{}"), l.ask("GET", "/jobs/query?status=failed", "")} {
			require.Equal(t, 200, a.status)
			require.Equal(t, "[]", string(a.object(t)["jobs"]))
			require.Equal(t, "0", string(a.object(t)["total"]))
		}
	})

	frames, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(l.server(), "http")+"/ws", nil)
	require.NoError(t, err)
	defer frames.Close()
	frame := func() map[string]json.RawMessage {
		require.NoError(t, frames.SetReadDeadline(time.Now().Add(time.Minute)))
		_, b, err := frames.ReadMessage()
		require.NoError(t, err)
		return answer{body: string(b)}.object(t)
	}
	first := frame()
	require.Equal(t, "snapshot", text(t, first, "type"))
	require.Equal(t, "[]", string(first["jobs"]))

	body := fmt.Sprintf(`{"vm_path":"web-01","output_path":%q,"format":"qcow2","options":{"limit_mbps":3}}`, l.exports)
	submitted := l.ask("POST", "/jobs/submit", body, "Idempotency-Key", "one")
	require.Equal(t, 200, submitted.status, submitted.body)
	var ids []string
	require.NoError(t, json.Unmarshal(submitted.object(t)["job_ids"], &ids))
	require.Len(t, ids, 1)
	id := ids[0]

	t.Run("Idempotency-Key", func(t *testing.T) {
		again := l.ask("POST", "/jobs/submit", body, "Idempotency-Key", "one")
		require.Equal(t, 200, again.status)
		require.JSONEq(t, string(submitted.object(t)["job_ids"]), string(again.object(t)["job_ids"]))
		require.Equal(t, "1", string(l.ask("GET", "/jobs/query", "").object(t)["total"]))
		other := l.ask("POST", "/jobs/submit", strings.Replace(body, "qcow2", "raw", 1), "Idempotency-Key", "one")
		require.GreaterOrEqual(t, other.status, 400, "another job under the same key is refused")
	})

	l.moved(id, mib)
	t.Run("progress is flat", func(t *testing.T) {
		a := l.ask("GET", "/jobs/progress/"+id, "")
		require.Equal(t, 200, a.status)
		o := a.object(t)
		require.Equal(t, "transfer", text(t, o, "phase"))
		require.Equal(t, id, text(t, o, "job_id"))
		require.Equal(t, fmt.Sprint(48*mib), string(o["total_bytes"]))
		for _, name := range []string{"percentage", "percent_complete", "bytes_transferred", "transfer_rate_mbps"} {
			var n float64
			require.NoError(t, json.Unmarshal(o[name], &n), name)
			require.Positive(t, n, name)
		}
		require.NotContains(t, o, "progress")
	})
	t.Run("eta", func(t *testing.T) {
		l.eventually(30*time.Second, "an end is expected", func() bool {
			o := l.ask("GET", "/jobs/eta/"+id, "").object(t)
			left, err := time.ParseDuration(text(t, o, "estimated_remaining"))
			if err != nil {
				require.Equal(t, "unknown", text(t, o, "estimated_remaining"))
				return false
			}
			at, err := time.Parse(time.RFC3339, text(t, o, "eta"))
			require.NoError(t, err)
			require.WithinDuration(t, time.Now().Add(left), at, 10*time.Second)
			return true
		})
	})
	t.Run("logs", func(t *testing.T) {
		a := l.ask("GET", "/jobs/logs/"+id, "")
		require.Equal(t, 200, a.status)
		require.Equal(t, "text/plain; charset=utf-8", a.header.Get("Content-Type"))
		require.Contains(t, a.body, "copying")
		require.Empty(t, l.ask("GET", "/jobs/logs/"+id+"?offset="+a.header.Get("Log-Offset"), "").body, "all was read")
		require.NotContains(t, a.body, l.sim.Password())
	})

	l.unlimited(id)
	l.completed(id, "web-01", 2*time.Minute)
	t.Run("frames until the end", func(t *testing.T) {
		seen := map[job.State]bool{}
		for !seen[job.Completed] {
			f := frame()
			require.Equal(t, "job", text(t, f, "type"))
			require.NotContains(t, f, "jobs")
			var j job.Job
			require.NoError(t, json.Unmarshal(f["job"], &j))
			require.Equal(t, id, j.ID)
			seen[j.Status] = true
		}
		require.True(t, seen[job.Running], "it was shown while it ran")
	})
	t.Run("a job that has ended", func(t *testing.T) {
		o := l.ask("GET", "/jobs/eta/"+id, "").object(t)
		require.Equal(t, "0s", text(t, o, "estimated_remaining"))
		require.Equal(t, "100", string(l.ask("GET", "/jobs/progress/"+id, "").object(t)["percentage"]))
		o = l.ask("GET", "/jobs/"+id, "").object(t)
		require.Equal(t, "completed", text(t, o, "status"))
		require.NotContains(t, o, "error")
		created := text(t, o, "created_at")
		require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`, created)
	})

	t.Run("what is not there", func(t *testing.T) {
		for _, path := range []string{"/jobs/nope", "/jobs/progress/nope", "/jobs/eta/nope", "/jobs/logs/nope", "/nowhere"} {
			a := l.ask("GET", path, "")
			require.Equal(t, 404, a.status, path)
			require.NotEmpty(t, text(t, a.object(t), "error"), path)
			require.NotEmpty(t, text(t, a.object(t), "timestamp"), path)
		}
		require.Equal(t, 404, l.ask("POST", "/vms/info", `{"vm_path":"nobody"}`).status)
	})
	t.Run("what is wrong is named by its field", func(t *testing.T) {
		a := l.ask("POST", "/jobs/submit", `{"output_path":"relative","options":{"priority":101}}`)
		require.Contains(t, []int{400, 422}, a.status)
		for _, field := range []string{"vm_path", "output_path", "priority"} {
			require.Contains(t, a.body, field)
		}
		require.Equal(t, 400, l.ask("POST", "/jobs/submit", `{"vm_path":`).status)
	})
	t.Run("a body that is too large", func(t *testing.T) {
		large := bytes.Repeat([]byte(" "), 11*mib)
		a := l.ask("POST", "/jobs/submit", string(large)+body)
		require.Equal(t, http.StatusRequestEntityTooLarge, a.status)
		require.NotEmpty(t, text(t, a.object(t), "error"))
	})
}
