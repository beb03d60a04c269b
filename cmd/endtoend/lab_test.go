// Package endtoend drives the built programs as their users do: hypervisord and hyperctl as processes
// of their own, against the fake vCenter, with real files and real kills. Whether an export is right is
// decided by reading it with code of formats and comparing it with what the fake vCenter holds.
package endtoend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/activities"
	api "hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

const mib = 1 << 20

// bin is the folder of the programs under test.
var bin string

// slow asks for everything, however long it takes.
var slow = os.Getenv("HYPERSDK_SLOW") != ""

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	bin = os.Getenv("HYPERSDK_BIN")
	if bin == "" {
		dir, err := os.MkdirTemp("", "hypersdk-bin")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/", "hypersdk/cmd/hypervisord", "hypersdk/cmd/hyperctl", "hypersdk/cmd/hyperexport", "hypersdk/cmd/hypersim")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the programs: %w\n%s", err, out)
		}
		bin = dir
	}
	return m.Run(), nil
}

// lab is a fake vCenter and the folders of a daemon.
type lab struct {
	t       *testing.T
	sim     *vspheretest.Server
	data    string // of the daemon
	exports string
	ports   []int // API, Temporal frontend, Temporal UI
	env     []string
	daemon  *process
	api     *client.Client
}

// newLab starts a vCenter with these VMs, and no daemon.
func newLab(t *testing.T, o vspheretest.Options) *lab {
	t.Helper()
	l := &lab{t: t, sim: vspheretest.Start(t, o), data: filepath.Join(t.TempDir(), "data"), exports: filepath.Join(t.TempDir(), "exports")}
	require.NoError(t, os.MkdirAll(l.exports, 0o755))
	l.ports = freePorts(t, 3)
	l.env = []string{
		"GOVC_URL=" + l.sim.URL().String(), "GOVC_USERNAME=" + l.sim.Username(), "GOVC_PASSWORD=" + l.sim.Password(), "GOVC_INSECURE=1",
	}
	var err error
	l.api, err = client.New(l.server(), "endtoend")
	require.NoError(t, err)
	t.Cleanup(l.api.Close)
	return l
}

func (l *lab) server() string { return fmt.Sprintf("http://127.0.0.1:%d", l.ports[0]) }

// vm is a VM with disks of generated content.
func vm(name string, disks ...int64) vspheretest.VM {
	v := vspheretest.VM{Name: name}
	for i, size := range disks {
		v.Disks = append(v.Disks, vspheretest.Disk{Size: size, Content: vspheretest.Generated(uint64(len(name)+i), size*2/3)})
	}
	return v
}

// lastPort counts the ports that tests have been given.
var lastPort atomic.Int64

// freePorts are ports that nobody listens on. They lie below those that the system gives to
// connections: nobody takes them while a daemon is down that shall come back.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	const first, count = 20_000, 12_000
	var ports []int
	for range count {
		port := first + int(lastPort.Add(1)+int64(os.Getpid())*97)%count
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			require.NoError(t, l.Close())
			if ports = append(ports, port); len(ports) == n {
				return ports
			}
		}
	}
	require.FailNow(t, "no port is free")
	return nil
}

// process is a program that runs.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  string // file with all that it says
	done chan struct{}
	err  error
}

// start runs a program until it ends, is killed, or the test is over.
func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), name+"-*.log")
	require.NoError(t, err)
	defer f.Close()
	p := &process{t: t, cmd: exec.Command(filepath.Join(bin, name), args...), log: f.Name(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Env = append(clean(os.Environ()), env...)
	require.NoError(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s %s said:\n%s", name, strings.Join(args, " "), tail(p.output(), 6000))
		}
	})
	return p
}

// clean is env without what would configure a daemon.
func clean(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "GOVC_") && !strings.HasPrefix(e, "HYPERSDK_") && !strings.HasPrefix(e, "TEMPORAL_") && !strings.HasPrefix(e, "LOG_LEVEL") {
			out = append(out, e)
		}
	}
	return out
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

func (p *process) output() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process as a power cut would, if it still runs.
func (p *process) kill() {
	if !p.ended() {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// stop asks the process to end and answers its exit code.
func (p *process) stop(within time.Duration) int {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	return p.wait(within)
}

func (p *process) wait(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		require.FailNow(p.t, "the process did not end", "%s", within)
	}
	return p.cmd.ProcessState.ExitCode()
}

// up starts the daemon, all in one, and waits for it.
func (l *lab) up(args ...string) {
	l.t.Helper()
	l.daemon = start(l.t, l.env, "hypervisord", append([]string{"--data-dir", l.data, "--log-level", "debug",
		"--daemon-addr", fmt.Sprint("127.0.0.1:", l.ports[0]), "--frontend-addr", fmt.Sprint("127.0.0.1:", l.ports[1]),
		"--ui-addr", fmt.Sprint("127.0.0.1:", l.ports[2])}, args...)...)
	l.ready(l.daemon)
}

func (l *lab) ready(p *process) {
	l.t.Helper()
	l.eventually(60*time.Second, "the daemon is up", func() bool {
		require.False(l.t, p.ended(), "the daemon ended")
		_, err := l.api.Health(l.t.Context())
		return err == nil
	})
}

// eventually waits for a condition.
func (l *lab) eventually(within time.Duration, what string, cond func() bool) {
	l.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(within)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			require.FailNow(l.t, "it did not happen: "+what, "within %s", within)
		}
	}
}

// spec is a job for a VM of the lab.
func (l *lab) spec(name, format string) job.Spec {
	return job.Spec{VMPath: "/DC0/vm/" + strings.ReplaceAll(name, "/", "%2f"), OutputPath: l.exports, Format: format}
}

// submit submits a job that is expected to be accepted.
func (l *lab) submit(s job.Spec) string {
	l.t.Helper()
	out, err := l.api.Submit(l.t.Context(), "", api.Submission{Spec: s})
	require.NoError(l.t, err)
	require.Len(l.t, out.JobIDs, 1, "%+v", out)
	return out.JobIDs[0]
}

func (l *lab) job(id string) job.Job {
	l.t.Helper()
	j, err := l.api.Job(l.t.Context(), id)
	require.NoError(l.t, err)
	return j
}

// until waits until a job is as cond wants it.
func (l *lab) until(id string, within time.Duration, what string, cond func(job.Job) bool) job.Job {
	l.t.Helper()
	var j job.Job
	l.eventually(within, what, func() bool {
		var err error
		if j, err = l.api.Job(l.t.Context(), id); err != nil {
			return false // the daemon may be on its way up
		}
		if cond(j) {
			return true
		}
		if j.Status.Ended() {
			require.FailNow(l.t, "the job has ended while waiting: "+what, "%s: %s", j.Status, j.Error)
		}
		return false
	})
	return j
}

// moved waits until a job has dealt with so many bytes.
func (l *lab) moved(id string, bytes int64) {
	l.t.Helper()
	l.until(id, time.Minute, fmt.Sprintf("%d bytes are copied", bytes), func(j job.Job) bool {
		return j.Progress != nil && j.Progress.Phase == job.Transfer && j.Progress.BytesTransferred >= bytes
	})
}

// unlimited takes the limit off a job, unless it has ended by now, or is about to.
func (l *lab) unlimited(id string) {
	l.t.Helper()
	if _, err := l.api.Limit(l.t.Context(), id, 0); err != nil {
		var refused *api.Error
		require.ErrorAs(l.t, err, &refused)
		require.Equal(l.t, http.StatusConflict, refused.Status, "%s", err)
		l.end(id, time.Minute)
	}
}

// end waits for a job to end, and says how.
func (l *lab) end(id string, within time.Duration) job.Job {
	l.t.Helper()
	return l.until(id, within, "the job has ended", func(j job.Job) bool { return j.Status.Ended() })
}

// completed waits for a job to be completed, checks every byte of it, and that nothing is left behind.
func (l *lab) completed(id, vm string, within time.Duration) job.Job {
	l.t.Helper()
	j := l.end(id, within)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.NotNil(l.t, j.Result)
	require.Empty(l.t, j.Result.Leftover)
	l.same(j, vm)
	l.tidy(vm)
	return j
}

// same compares the files of a job, and what its manifest says of them, with the disks of the VM.
func (l *lab) same(j job.Job, vm string) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(j.Result.OutputDir, "manifest.json"))
	require.NoError(l.t, err)
	var m activities.Manifest
	require.NoError(l.t, json.Unmarshal(b, &m))
	require.Equal(l.t, j.ID, m.Job)
	require.Len(l.t, m.Disks, len(j.Result.Disks))
	for i, d := range m.Disks {
		truth, err := l.sim.Disk(vm, i)
		require.NoError(l.t, err)
		file := filepath.Join(j.Result.OutputDir, d.File)
		require.Equal(l.t, digestOf(l.t, truth, truth.Size()), digestOfFile(l.t, file, d.Format), "%s is not the disk", file)
		require.Equal(l.t, digestOf(l.t, truth, truth.Size()), d.Digest, "the manifest does not name the digest of the disk")
		if d.SHA256 != "" {
			require.Equal(l.t, d.SHA256, sha256File(l.t, file))
		}
		if d.Format == "qcow2" {
			out, err := exec.CommandContext(l.t.Context(), "qemu-img", "check", file).CombinedOutput()
			require.NoError(l.t, err, "%s", out)
		}
	}
	for _, f := range j.Result.Files {
		require.FileExists(l.t, f)
	}
}

// tidy makes sure that no snapshot, hidden file or second session is left.
func (l *lab) tidy(vm string) {
	l.t.Helper()
	snaps, err := l.sim.Snapshots(vm)
	require.NoError(l.t, err)
	require.Empty(l.t, snaps, "snapshots are left on %s", vm)
	require.Empty(l.t, l.hidden(), "hidden files are left")
	require.LessOrEqual(l.t, len(l.sim.Sessions()), 1, "sessions are left")
}

// hidden is the hidden files below the exports.
func (l *lab) hidden() []string {
	l.t.Helper()
	var out []string
	err := filepath.WalkDir(l.exports, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".") {
			out = append(out, path)
		}
		return nil
	})
	require.NoError(l.t, err)
	return out
}

func digestOf(t *testing.T, r io.ReaderAt, size int64) string {
	t.Helper()
	f, err := all.ByName("raw")
	require.NoError(t, err)
	img, err := f.Open(t.Context(), r, size, formats.OpenOptions{})
	require.NoError(t, err)
	defer img.Close()
	return contentDigest(t, img)
}

func digestOfFile(t *testing.T, path, format string) string {
	t.Helper()
	f, err := all.ByName(format)
	require.NoError(t, err)
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	st, err := file.Stat()
	require.NoError(t, err)
	img, err := f.Open(t.Context(), file, st.Size(), formats.OpenOptions{})
	require.NoError(t, err)
	defer img.Close()
	return contentDigest(t, img)
}

func contentDigest(t *testing.T, img formats.Image) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "digests"))
	require.NoError(t, err)
	defer f.Close()
	d, err := formats.CreateDigests(f, img.Size())
	require.NoError(t, err)
	sum, err := formats.DigestOf(t.Context(), img, d, formats.VerifyOptions{})
	require.NoError(t, err)
	return sum.String()
}

func sha256File(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// hyperctl runs the command line against the lab's daemon.
func (l *lab) hyperctl(args ...string) (stdout, stderr string, code int) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "hyperctl"), args...)
	cmd.Env = append(clean(os.Environ()), "HYPERSDK_SERVER="+l.server())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
