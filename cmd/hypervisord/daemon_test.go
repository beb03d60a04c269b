package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests drive the program as it is built: bin/ of the environment variable HYPERSDK_BIN, or one
// built for them.

var buildDir string // set once, by TestMain

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "hypervisord-test-")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("HYPERSDK_BIN"); dir != "" {
		return filepath.Join(dir, "hypervisord"), nil
	}
	bin := filepath.Join(buildDir, "hypervisord")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return bin, err
})

func TestStartStopStart(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	d := launch(t, data)
	var health struct{ Status, Timestamp string }
	d.get("/health", &health)
	require.Equal(t, "healthy", health.Status)
	require.NoError(t, filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, "%s is for nobody else to read", path)
		return nil
	}))
	begun := time.Now()
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.wait(), d.stderr)
	require.Less(t, time.Since(begun), 15*time.Second)
	require.Contains(t, d.stderr.String(), `"stopped"`)

	d = launch(t, data)
	d.signal(syscall.SIGINT)
	require.Zero(t, d.wait(), d.stderr)

	d = launch(t, data)
	d.signal(syscall.SIGKILL)
	d.wait()
	d = launch(t, data)
	d.get("/health", nil)
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.wait(), d.stderr)
}

func TestWhatItRefusesToStartWith(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	addr := taken.Addr().String()
	running := launch(t, filepath.Join(t.TempDir(), "data"))
	aFile := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(aFile, []byte("FooBar: 1\nDaemonAdr: x\n"), 0o600))

	const usage, failed = 2, 1
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"the API's port is taken":              {[]string{"--daemon-addr", addr}, failed, []string{addr + " is taken", "--daemon-addr"}},
		"the Web UI's port is taken":           {[]string{"--ui-addr", addr}, failed, []string{addr + " is taken", "--ui-addr"}},
		"the server's port is taken":           {[]string{"--frontend-addr", addr}, failed, []string{addr + " is taken", "--frontend-addr"}},
		"the Web UI where others reach it":     {[]string{"--ui-addr", "0.0.0.0:0"}, failed, []string{"not a loopback address"}},
		"the data folder is in use":            {[]string{"--data-dir", running.data}, failed, []string{"data folder " + running.data + " is in use by process " + fmt.Sprint(running.cmd.Process.Pid)}},
		"the data folder is a file":            {[]string{"--data-dir", aFile}, failed, []string{"data folder " + aFile, "--data-dir"}},
		"the data folder cannot be written":    {[]string{"--data-dir", "/proc/self"}, failed, []string{"data folder /proc/self is not writable"}},
		"the database is of a newer version":   {[]string{"--data-dir", newerDatabase(t)}, failed, []string{"newer version of this program"}},
		"a key file that is none":              {[]string{"--key-file", aFile}, failed, []string{aFile, "line 1"}},
		"a Temporal cluster that is not there": {[]string{"--temporal-address", addr + "0", "--key-file", aKey(t)}, failed, []string{"the Temporal cluster at " + addr + "0 cannot be reached"}},
		"a wrong configuration file":           {[]string{"--config", aFile}, usage, []string{aFile + ", line 2", "did you mean DaemonAddr?"}},
		"a configuration file that is absent":  {[]string{"--config", aFile + "x"}, usage, []string{aFile + "x"}},
		"a wrong flag":                         {[]string{"--max-jobs", "many"}, usage, []string{"--max-jobs"}},
		"an unknown flag":                      {[]string{"--max-jops", "1"}, usage, []string{"--max-jops"}},
		"an unknown command":                   {[]string{"serve"}, usage, []string{"serve"}},
		"an open address":                      {[]string{"--daemon-addr", "0.0.0.0:0"}, usage, []string{"--insecure-listen"}},
		"half a daemon alone":                  {[]string{"worker"}, usage, []string{"--temporal-address"}},
		"a cluster without keys":               {[]string{"api", "--temporal-address", addr}, usage, []string{"hypervisord keygen", "--key-file"}},
		"a connection without a user":          {[]string{"--vcenter-url", "vc.example.com"}, usage, []string{"connection default", "username"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := c.args
			if !strings.Contains(strings.Join(args, " "), "--data-dir") {
				args = append(args, "--data-dir", filepath.Join(t.TempDir(), "data"))
			}
			code, stderr := try(t, args...)
			require.Equal(t, c.code, code, stderr)
			said := ""
			for line := range strings.Lines(stderr) {
				if !strings.HasPrefix(line, "{") { // the log
					said += line
				}
			}
			for _, w := range c.want {
				require.Contains(t, said, w)
			}
			require.True(t, strings.HasPrefix(said, "hypervisord: "), said)
			require.Less(t, strings.Count(said, "\n"), 3, "a sentence for each fault, not a stack: %s", said)
		})
	}
}

func TestTheUsualPortsAreTaken(t *testing.T) {
	for _, usual := range []string{"127.0.0.1:7233", "127.0.0.1:8233"} {
		if l, err := net.Listen("tcp", usual); err == nil { // else somebody else has it, which is as well
			defer l.Close()
		}
	}
	d := start(t, filepath.Join(t.TempDir(), "data"), nil)
	var status struct {
		URL string `json:"temporal_url"`
	}
	d.get("/status", &status)
	require.NotContains(t, status.URL, ":8233")
	res, err := http.Get(status.URL)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
	require.Contains(t, d.stderr.String(), "the usual address is taken")
}

func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer c.Close()
	told := func() string {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
		b := make([]byte, 100)
		n, err := c.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	d := start(t, filepath.Join(t.TempDir(), "data"), []string{"NOTIFY_SOCKET=" + path}, "--frontend-addr=127.0.0.1:0", "--ui-addr=off")
	require.Equal(t, "READY=1", told())
	d.signal(syscall.SIGTERM)
	require.Equal(t, "STOPPING=1", told())
	require.Zero(t, d.wait(), d.stderr)
}

// A job goes through Temporal, its database and its Web UI without a word in plain text, and its
// credentials through nothing at all.
func TestNothingLiesAboutInPlainText(t *testing.T) {
	d := launch(t, filepath.Join(t.TempDir(), "data"))
	const vm, secret = "/dc/vm/very-special-vm", "geheim-4711"
	code, answer := d.post("/jobs/submit", `{"vm_path":"`+vm+`","output_path":"/exports","vcenter":{"server":"127.0.0.1:1","username":"u","password":"`+secret+`"}}`)
	require.Equal(t, http.StatusOK, code, answer)
	var submitted struct {
		IDs []string `json:"job_ids"`
	}
	require.NoError(t, json.Unmarshal([]byte(answer), &submitted))
	require.Len(t, submitted.IDs, 1)
	id := submitted.IDs[0]

	var status struct {
		URL string `json:"temporal_url"`
	}
	d.get("/status", &status)
	history := fetch(t, status.URL+"/api/v1/namespaces/default/workflows/"+id+"/history")
	require.NotContains(t, history, "special")
	type payload struct {
		Metadata map[string]string `json:"metadata"`
		Data     string            `json:"data"`
	}
	var events struct {
		History struct {
			Events []struct {
				Started struct {
					Input struct {
						Payloads []payload `json:"payloads"`
					} `json:"input"`
				} `json:"workflowExecutionStartedEventAttributes"`
			} `json:"events"`
		} `json:"history"`
	}
	require.NoError(t, json.Unmarshal([]byte(history), &events))
	require.NotEmpty(t, events.History.Events)
	input, err := json.Marshal(events.History.Events[0].Started.Input)
	require.NoError(t, err)
	require.Equal(t, "binary/encrypted", decoded(t, events.History.Events[0].Started.Input.Payloads[0].Metadata["encoding"]))

	// The Web UI, and only it, has the payloads decoded by the daemon.
	for origin, want := range map[string]int{status.URL: http.StatusOK, "https://evil.example": http.StatusForbidden} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+"/codec/decode", bytes.NewReader(input))
		require.NoError(t, err)
		r.Header.Set("Origin", origin)
		r.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.Equal(t, want, res.StatusCode, origin)
		if want == http.StatusOK {
			require.Equal(t, origin, res.Header.Get("Access-Control-Allow-Origin"))
			var plain struct{ Payloads []payload }
			require.NoError(t, json.NewDecoder(res.Body).Decode(&plain))
			require.Contains(t, decoded(t, plain.Payloads[0].Data), vm)
		}
		require.NoError(t, res.Body.Close())
	}

	d.signal(syscall.SIGTERM)
	require.Zero(t, d.wait(), d.stderr)
	require.NotContains(t, d.stderr.String(), secret)
	require.NoError(t, filepath.WalkDir(d.data, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NotContains(t, string(b), secret, path)
			if strings.HasPrefix(filepath.Base(path), "temporal.db") {
				require.NotContains(t, string(b), "very-special-vm", path)
			}
		}
		return nil
	}))
}

func TestTwoHalvesOnOneCluster(t *testing.T) {
	// The embedded server of one daemon is the cluster that the halves meet on.
	cluster := launch(t, filepath.Join(t.TempDir(), "data"))
	keyFile := filepath.Join(cluster.data, "keys", "data.key")
	common := []string{"--temporal-address", cluster.field("temporal"), "--key-file", keyFile}
	env := []string{"GOVC_URL=127.0.0.1:1", "GOVC_USERNAME=u", "GOVC_PASSWORD=p"}
	api := start(t, filepath.Join(t.TempDir(), "api"), env, append([]string{"api"}, common...)...)
	worker := startProcess(t, filepath.Join(t.TempDir(), "worker"), env, append([]string{"worker"}, common...)...)
	require.NotEqual(t, cluster.field("host"), worker.field("host"))

	code, answer := api.post("/jobs/submit", `{"vm_path":"vm","output_path":"/exports"}`)
	require.Equal(t, http.StatusOK, code, answer)
	code, answer = api.post("/jobs/submit", `{"vm_path":"vm","output_path":"/exports","vcenter":{"server":"x","username":"u","password":"p"}}`)
	require.Equal(t, http.StatusUnprocessableEntity, code, answer)
	require.Eventually(t, func() bool {
		var jobs struct{ Total int }
		cluster.get("/jobs/query?all=true", &jobs)
		return jobs.Total == 1
	}, time.Minute, 50*time.Millisecond, "both APIs see the same jobs")

	for _, d := range []*process{api, worker} {
		d.signal(syscall.SIGTERM)
		require.Zero(t, d.wait(), d.stderr)
	}
}

func TestKeygen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data.key")
	code, stderr := try(t, "keygen", file)
	require.Zero(t, code, stderr)
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	code, stderr = try(t, "keygen", file)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "exists")
}

// process is a daemon that runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	data   string
	url    string
	stderr *output
	done   chan struct{}
}

// output is what a process writes, while it does.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// launch starts a whole daemon on ports of its own.
func launch(t *testing.T, data string) *process {
	t.Helper()
	return start(t, data, nil, "--frontend-addr=127.0.0.1:0", "--ui-addr=127.0.0.1:0")
}

// start starts a process with an API, and waits until that answers.
func start(t *testing.T, data string, env []string, args ...string) *process {
	t.Helper()
	p := startProcess(t, data, env, append(args, "--daemon-addr=127.0.0.1:0")...)
	p.url = p.field("api")
	p.get("/health", nil)
	return p
}

// startProcess starts a process and waits until it says that it is ready.
func startProcess(t *testing.T, data string, env []string, args ...string) *process {
	t.Helper()
	bin, err := build()
	require.NoError(t, err)
	p := &process{t: t, data: data, stderr: &output{}, done: make(chan struct{})}
	p.cmd = exec.Command(bin, append(args, "--data-dir", data)...)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	p.cmd.Stderr = p.stderr
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	require.Eventually(t, func() bool {
		select {
		case <-p.done:
			return true
		default:
			return strings.Contains(p.stderr.String(), `"msg":"ready"`)
		}
	}, time.Minute, 5*time.Millisecond, p.stderr)
	require.Nil(t, p.cmd.ProcessState, "it has ended: %s", p.stderr)
	return p
}

// field is what the process said of itself when it was ready.
func (p *process) field(name string) string {
	p.t.Helper()
	for line := range strings.Lines(p.stderr.String()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["msg"] == "ready" {
			s, _ := fields[name].(string)
			require.NotEmpty(p.t, s, "%s in %s", name, line)
			return s
		}
	}
	p.t.Fatal("it is not ready")
	return ""
}

func (p *process) signal(s os.Signal) { require.NoError(p.t, p.cmd.Process.Signal(s)) }

// wait waits for the end and answers the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(40 * time.Second):
		p.t.Fatalf("it does not end: %s", p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) get(path string, into any) {
	p.t.Helper()
	body := fetch(p.t, p.url+path)
	if into != nil {
		require.NoError(p.t, json.Unmarshal([]byte(body), into), body)
	}
}

func (p *process) post(path, body string) (code int, answer string) {
	p.t.Helper()
	res, err := http.Post(p.url+path, "application/json", strings.NewReader(body))
	require.NoError(p.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(p.t, err)
	return res.StatusCode, string(b)
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s: %s", url, b)
	return string(b)
}

// try runs the program, which is to end by itself.
func try(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	bin, err := build()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	var b bytes.Buffer
	cmd.Stderr = &b
	_ = cmd.Run()
	require.NoError(t, ctx.Err(), "it does not end: %s", b.String())
	return cmd.ProcessState.ExitCode(), b.String()
}

func aKey(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "data.key")
	code, stderr := try(t, "keygen", file)
	require.Zero(t, code, stderr)
	return file
}

// newerDatabase is a data folder as a later version may leave it.
func newerDatabase(t *testing.T) string {
	t.Helper()
	d := launch(t, filepath.Join(t.TempDir(), "data"))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.wait(), d.stderr)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.data, "temporal.db"))
	require.NoError(t, err)
	_, err = db.ExecContext(t.Context(), `UPDATE hypersdk_meta SET value = '99.1' WHERE key = 'temporal_schema'`)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	return d.data
}

func decoded(t *testing.T, base64 string) string {
	t.Helper()
	var b []byte
	require.NoError(t, json.Unmarshal([]byte(`"`+base64+`"`), &b))
	return string(b)
}
