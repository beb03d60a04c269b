package endtoend

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	temporal "go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/durationpb"

	api "hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// cluster is two workers and an API on a Temporal server. The server is that of a daemon, which works
// on a namespace of its own and takes no job of the cluster.
type cluster struct {
	*lab
	key     string
	args    []string // of the workers
	workers []*process
	hosts   []string // ids of the workers
}

const namespace = "exports"

func newCluster(t *testing.T, o vspheretest.Options, args ...string) *cluster {
	t.Helper()
	l := newLab(t, o)
	c := &cluster{lab: l, key: filepath.Join(t.TempDir(), "keys"), args: args}
	gen := start(t, nil, "hypervisord", "keygen", c.key)
	require.Zero(t, gen.wait(time.Minute), gen.output())

	start(t, nil, "hypervisord", "--data-dir", filepath.Join(t.TempDir(), "temporal"), "--ui-addr", "off",
		"--daemon-addr", fmt.Sprint("127.0.0.1:", freePorts(t, 1)[0]), "--frontend-addr", c.temporal())
	c.makeNamespace()
	for i := range 2 {
		c.workers = append(c.workers, c.startWorker(i))
		c.hosts = append(c.hosts, c.host(i))
	}
	l.daemon = start(t, l.env, "hypervisord", "api", "--data-dir", filepath.Join(t.TempDir(), "api"), "--key-file", c.key,
		"--temporal-address", c.temporal(), "--temporal-namespace", namespace, "--daemon-addr", fmt.Sprint("127.0.0.1:", l.ports[0]))
	l.ready(l.daemon)
	return c
}

func (c *cluster) temporal() string { return fmt.Sprint("127.0.0.1:", c.ports[1]) }

// makeNamespace waits for the Temporal server, and until it knows the namespace of the cluster.
func (c *cluster) makeNamespace() {
	c.t.Helper()
	ctx := c.t.Context()
	service, err := temporal.NewLazyClient(temporal.Options{HostPort: c.temporal(), Namespace: namespace})
	require.NoError(c.t, err)
	defer service.Close()
	c.eventually(time.Minute, "the namespace is there", func() bool {
		_, err := service.WorkflowService().RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{
			Namespace: namespace, WorkflowExecutionRetentionPeriod: durationpb.New(24 * time.Hour),
		})
		return err == nil || strings.Contains(err.Error(), "already")
	})
	c.eventually(time.Minute, "the namespace is known everywhere", func() bool {
		_, err := service.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Namespace: namespace})
		return err == nil
	})
}

func (c *cluster) folder(i int) string {
	return filepath.Join(filepath.Dir(c.data), fmt.Sprint("worker-", i))
}

func (c *cluster) startWorker(i int) *process {
	c.t.Helper()
	return start(c.t, c.env, "hypervisord", append([]string{"worker", "--data-dir", c.folder(i), "--key-file", c.key, "--log-level", "debug",
		"--temporal-address", c.temporal(), "--temporal-namespace", namespace}, c.args...)...)
}

// host waits until a worker has an id, and works.
func (c *cluster) host(i int) string {
	c.t.Helper()
	c.eventually(time.Minute, "the worker is ready", func() bool {
		require.False(c.t, c.workers[i].ended(), "the worker ended")
		return strings.Contains(c.workers[i].output(), `"msg":"ready"`)
	})
	b, err := os.ReadFile(filepath.Join(c.folder(i), "host-id"))
	require.NoError(c.t, err)
	return strings.TrimSpace(string(b))
}

// worker is the index of the worker that a job is on.
func (c *cluster) worker(id string) int {
	c.t.Helper()
	j := c.until(id, time.Minute, "the job is on a host", func(j job.Job) bool { return j.Host != "" })
	for i, h := range c.hosts {
		if h == j.Host {
			return i
		}
	}
	require.FailNow(c.t, "the job is on no host of the cluster", "%s", j.Host)
	return 0
}

// logged is the log of a job as the API answers it.
func (c *cluster) logged(id string) string {
	c.t.Helper()
	var out strings.Builder
	_, err := c.api.Log(c.t.Context(), id, client.LogOptions{}, &out)
	require.NoError(c.t, err)
	return out.String()
}

func TestClusterSharesTheLoad(t *testing.T) {
	t.Parallel()
	o := vspheretest.Options{}
	for i := range 4 {
		o.VMs = append(o.VMs, vm(fmt.Sprint("web-", i), 24*mib, 8*mib))
	}
	c := newCluster(t, o, "--host-jobs", "2", "--max-jobs", "8")
	ids, on := map[string]string{}, map[string]int{}
	for _, v := range o.VMs {
		s := c.spec(v.Name, "qcow2")
		s.Options.LimitMBps = 2
		ids[v.Name] = c.submit(s)
	}
	for _, id := range ids {
		on[c.hosts[c.worker(id)]]++
	}
	require.Equal(t, map[string]int{c.hosts[0]: 2, c.hosts[1]: 2}, on, "four jobs on two hosts that take two each")

	for name, id := range ids {
		c.unlimited(id)
		j := c.end(id, 3*time.Minute)
		require.Equal(t, job.Completed, j.Status, j.Error)
		require.Empty(t, j.Result.Leftover)
		require.Equal(t, j.Host, j.Result.Host, "all of a job happens on one host")
		c.same(j, name)
		here := c.worker(id)
		require.FileExists(t, filepath.Join(c.folder(here), "jobs", id, "log.jsonl"))
		require.NoFileExists(t, filepath.Join(c.folder(1-here), "jobs", id, "log.jsonl"))
		log := c.logged(id)
		require.Contains(t, log, "copied")
		require.Contains(t, log, "job completed")
	}
	require.Empty(t, c.hidden())

	t.Run("a job that brings credentials is sent to a configured connection", func(t *testing.T) {
		_, err := c.api.Submit(t.Context(), "", api.Submission{Spec: c.spec("web-0", "raw"),
			VCenter: &api.Credentials{Server: c.sim.URL().String(), Username: "u", Password: "p"}})
		var e *api.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, 422, e.Status)
		require.ErrorContains(t, err, "connection")
	})
	t.Run("a clean stop leaves no session", func(t *testing.T) {
		for _, p := range append(c.workers, c.daemon) {
			require.Zero(t, p.stop(30*time.Second))
		}
		require.Empty(t, c.sim.Sessions())
	})
}

func TestClusterWorkerIsKilledAndComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 240*mib)}})
	s := c.spec("web-01", "qcow2")
	s.Options.LimitMBps = 40
	id := c.submit(s)
	c.moved(id, 90*mib)
	here := c.worker(id)
	c.workers[here].kill()
	c.workers[here] = c.startWorker(here)
	c.unlimited(id)
	c.completedOn(here, id) // who comes back in time keeps the job
	require.Positive(t, c.job(id).Result.Disks[0].Retries)
	served, err := c.sim.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.LessOrEqual(t, served.Again(), int64(segment), "a kill costs at most one segment of reading")
}

func TestClusterWorkerThatStaysAwayLosesItsJob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 120*mib)}}, "--host-away", "5s")
	s := c.spec("web-01", "qcow2")
	s.Options.LimitMBps = 15
	id := c.submit(s)
	c.moved(id, 30*mib)
	here := c.worker(id)
	c.workers[here].kill()
	c.until(id, 2*time.Minute, "the job is on the other host", func(j job.Job) bool { return j.Host == c.hosts[1-here] })
	c.unlimited(id)
	c.completedOn(1-here, id)
	require.Contains(t, c.logged(id), "job completed")

	c.workers[here] = c.startWorker(here)
	c.host(here)
	c.same(c.job(id), "web-01")
}

// A host that hangs keeps the files open: whoever takes its job over waits until it has let go of them.
func TestClusterWorkerThatHungDoesNoHarm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 120*mib)}}, "--host-away", "5s")
	s := c.spec("web-01", "raw")
	s.Options.LimitMBps = 8
	id := c.submit(s)
	c.moved(id, 16*mib)
	here := c.worker(id)
	require.NoError(t, c.workers[here].cmd.Process.Signal(syscall.SIGSTOP))
	c.until(id, 2*time.Minute, "the other host waits for the files", func(j job.Job) bool {
		return j.Host == c.hosts[1-here] && strings.Contains(j.Progress.WaitingFor, "still being written")
	})
	require.NoError(t, c.workers[here].cmd.Process.Signal(syscall.SIGCONT))
	c.unlimited(id)
	c.completedOn(1-here, id)
}

// completedOn waits for the job to be completed on a worker, and checks every byte of it.
func (c *cluster) completedOn(worker int, id string) {
	c.t.Helper()
	j := c.end(id, 3*time.Minute)
	require.Equal(c.t, job.Completed, j.Status, j.Error)
	require.Equal(c.t, c.hosts[worker], j.Result.Host)
	require.Empty(c.t, j.Result.Leftover, "the host found the files of the other, and took them over")
	c.same(j, "web-01")
	require.Empty(c.t, c.hidden())
	snaps, err := c.sim.Snapshots("web-01")
	require.NoError(c.t, err)
	require.Empty(c.t, snaps)
}
