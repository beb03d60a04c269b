// Command bench measures the built programs beside the tools that people would use instead, in ratios of
// one run, and prints a table in Markdown. It needs curl, sync and the programs in bin/.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	api "hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const (
	user     = "bench"
	password = "bench"
)

func main() {
	rounds := flag.Int("rounds", 5, "rounds of each transfer; the median counts")
	only := flag.String("only", "", "comma-separated parts: start, list, transfer, lease, lease-memory, memory, latency, convert, chain, incremental")
	match := flag.String("match", "", "of convert, only the lines whose name matches this regular expression")
	disks := flag.String("disks", "", "of convert, folder in which the disks are made, and kept for the next run; a temporary one by default")
	dir := flag.String("dir", "", "folder to work in; a temporary one by default")
	flag.Parse()
	if err := run(*rounds, *only, *match, *disks, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is the place where all is measured.
type bench struct {
	dir, bin string
	rounds   int
	match    *regexp.Regexp // of the names of conversions
	disks    string         // where those that are converted are kept
	sim      string         // URL of the fake vCenter
	daemon   *exec.Cmd
	api      *client.Client
	rows     [][]string
}

func run(rounds int, only, match, disks, dir string) (err error) {
	lines, err := regexp.Compile(match)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	b := &bench{rounds: rounds, match: lines, disks: disks}
	if b.bin, err = filepath.Abs("bin"); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(dir, "hypersdk-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if only != "convert" && only != "chain" && only != "incremental" { // which need no daemon, or have a vCenter of their own
		stopSim, err := b.startSim()
		if err != nil {
			return err
		}
		defer stopSim()
		defer b.stop()
	}
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"start", b.start}, {"list", b.list}, {"transfer", b.transfers}, {"lease", b.leases}, {"lease-memory", b.leaseMemory}, {"memory", b.memory}, {"latency", b.latency}, {"convert", b.convert}, {"chain", b.chain}, {"incremental", b.incremental}} {
		if only != "" && !slices.Contains(strings.Split(only, ","), part.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring:", part.name)
		if err = part.do(context.Background()); err != nil {
			err = fmt.Errorf("%s: %w", part.name, err)
			break
		}
	}
	b.print()
	return err
}

func (b *bench) add(what, got, wanted string) { b.rows = append(b.rows, []string{what, got, wanted}) }

func (b *bench) print() {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%s, %d cores, %s, load at the end %s\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), strings.Fields(string(load))[0])
	fmt.Println("| what | measured | wanted |\n|---|---|---|")
	for _, r := range b.rows {
		fmt.Printf("| %s |\n", strings.Join(r, " | "))
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startSim runs the fake vCenter: a disk of 4 GiB with 2 GiB of data, a VM with 8 disks, 1,000 others.
func (b *bench) startSim() (stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	b.sim = fmt.Sprintf("http://127.0.0.1:%d", port)
	args := []string{"--listen", fmt.Sprint("127.0.0.1:", port), "--username", user, "--password", password,
		"--data", filepath.Join(b.dir, "vcenter"), "--vms", "1000", "--vm", "name=big,disk=4GiB:2GiB",
		"--vm", "name=eight" + strings.Repeat(",disk=1GiB:512MiB", 8)}
	for i := range 4 {
		args = append(args, "--vm", fmt.Sprintf("name=busy-%d,disk=4GiB:2GiB:%d", i, i+10))
	}
	sim := exec.Command(filepath.Join(b.bin, "hypersim"), args...)
	sim.Stderr = os.Stderr
	if err := sim.Start(); err != nil {
		return nil, err
	}
	stop = func() { _ = sim.Process.Kill(); _ = sim.Wait() }
	if err := wait(5*time.Minute, func() bool { return reachable(b.sim + "/hypersim/state") }); err != nil {
		stop()
		return nil, fmt.Errorf("the fake vCenter: %w", err)
	}
	unix.Sync() // else what follows is measured while the new disks are still being written back
	return stop, nil
}

func reachable(url string) bool {
	r, err := http.Get(url)
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

func wait(most time.Duration, ok func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(most); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("gave up after %s", most)
		}
	}
	return nil
}

// up starts a daemon on a new data folder, and says how long it took to answer.
func (b *bench) up(args ...string) (time.Duration, error) {
	b.stop()
	ports := make([]int, 3)
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return 0, err
		}
	}
	data, err := os.MkdirTemp(b.dir, "data")
	if err != nil {
		return 0, err
	}
	server := fmt.Sprint("http://127.0.0.1:", ports[0])
	b.daemon = exec.Command(filepath.Join(b.bin, "hypervisord"), append([]string{"--data-dir", data, "--log-level", "warn",
		"--daemon-addr", fmt.Sprint("127.0.0.1:", ports[0]), "--frontend-addr", fmt.Sprint("127.0.0.1:", ports[1]), "--ui-addr", fmt.Sprint("127.0.0.1:", ports[2])}, args...)...)
	b.daemon.Env = append(os.Environ(), "GOVC_URL="+b.sim+"/sdk", "GOVC_USERNAME="+user, "GOVC_PASSWORD="+password, "GOVC_INSECURE=1")
	b.daemon.Stderr = os.Stderr
	begin := time.Now()
	if err := b.daemon.Start(); err != nil {
		return 0, err
	}
	if err := wait(time.Minute, func() bool { return reachable(server + "/health") }); err != nil {
		return 0, fmt.Errorf("the daemon: %w", err)
	}
	took := time.Since(begin)
	b.api, err = client.New(server, "bench")
	return took, err
}

func (b *bench) stop() {
	if b.daemon != nil {
		_ = b.daemon.Process.Signal(os.Interrupt)
		_ = b.daemon.Wait()
		b.daemon = nil
	}
}

func (b *bench) start(context.Context) error {
	var all []time.Duration
	for range b.rounds {
		took, err := b.up()
		if err != nil {
			return err
		}
		all = append(all, took)
	}
	b.add("`hypervisord` start to `/health`, new data folder", median(all).Round(10*time.Millisecond).String(), "under 2 s")
	return nil
}

func (b *bench) list(ctx context.Context) error {
	if _, err := b.up(); err != nil {
		return err
	}
	var all []time.Duration
	for range b.rounds {
		begin := time.Now()
		vms, err := b.api.VMs(ctx, "", providers.Filter{})
		if err != nil {
			return err
		}
		if len(vms) < 1000 {
			return fmt.Errorf("%d VMs are listed", len(vms))
		}
		all = append(all, time.Since(begin))
	}
	b.add("`GET /vms/list` of 1,006 VMs", median(all).Round(10*time.Millisecond).String(), "under 3 s")
	return nil
}

func median[T cmp.Ordered](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// transfers compares the transfer phase with curl of the same file and sync.
func (b *bench) transfers(ctx context.Context) error {
	if _, err := b.up(); err != nil {
		return err
	}
	formats := []struct {
		name, format string
		compress     bool
		wanted       string
	}{{"raw", "raw", false, "at least 0.85"}, {"qcow2", "qcow2", false, "at least 0.75"}, {"qcow2, compressed", "qcow2", true, ""}}
	curl := []time.Duration{}
	copied, verified := map[string][]time.Duration{}, map[string][]time.Duration{}
	for round := range b.rounds {
		took, err := b.curl(ctx)
		if err != nil {
			return err
		}
		curl = append(curl, took)
		for _, f := range formats {
			out := filepath.Join(b.dir, "out", fmt.Sprint(round), f.name)
			if err := os.MkdirAll(out, 0o755); err != nil {
				return err
			}
			j, err := b.export(ctx, job.Spec{VMPath: "big", OutputPath: out, Format: f.format, Compress: f.compress})
			if err != nil {
				return err
			}
			c, v, err := b.took(ctx, j.ID)
			if err != nil {
				return err
			}
			copied[f.name], verified[f.name] = append(copied[f.name], c), append(verified[f.name], v)
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	b.add("`curl` of a flat file of 4 GiB (2 GiB of data), and `sync -d`", median(curl).Round(10*time.Millisecond).String(), "")
	for _, f := range formats {
		c := median(copied[f.name])
		b.add("transfer of the same disk into "+f.name, fmt.Sprintf("%s: %.2f of curl's rate; verified in %s",
			c.Round(10*time.Millisecond), median(curl).Seconds()/c.Seconds(), median(verified[f.name]).Round(10*time.Millisecond)), f.wanted)
	}
	return nil
}

func (b *bench) curl(ctx context.Context) (time.Duration, error) {
	file := filepath.Join(b.dir, "curl.raw")
	defer os.Remove(file)
	begin := time.Now()
	url := b.sim + "/folder/big/big-flat.vmdk?dcPath=DC0&dsName=datastore1"
	if out, err := exec.CommandContext(ctx, "curl", "-fsS", "-u", user+":"+password, "-o", file, url).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("curl: %w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "sync", "-d", file).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("sync: %w: %s", err, out)
	}
	return time.Since(begin), nil
}

// export runs a job to its end.
func (b *bench) export(ctx context.Context, s job.Spec) (job.Job, error) {
	out, err := b.api.Submit(ctx, "", api.Submission{Spec: s})
	if err != nil {
		return job.Job{}, err
	}
	var j job.Job
	err = errors.Join(wait(10*time.Minute, func() bool {
		j, err = b.api.Job(ctx, out.JobIDs[0])
		return err != nil || j.Status.Ended()
	}), err)
	if err == nil && j.Status != job.Completed {
		err = fmt.Errorf("job %s %s: %s", j.ID, j.Status, j.Error)
	}
	return j, err
}

// took reads from the log of a job how long copying and verifying its disk took.
func (b *bench) took(ctx context.Context, id string) (copied, verified time.Duration, err error) {
	var text strings.Builder
	if _, err := b.api.Log(ctx, id, client.LogOptions{}, &text); err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text.String()) {
		for msg, into := range map[string]*time.Duration{"copied": &copied, "verified": &verified} {
			if strings.Contains(line, " "+msg+" ") {
				_, after, _ := strings.Cut(line, "took=")
				value, _, _ := strings.Cut(after, " ")
				if *into, err = time.ParseDuration(strings.TrimSpace(value)); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	if copied == 0 {
		return 0, 0, fmt.Errorf("the log of job %s does not say how long copying took", id)
	}
	return copied, verified, nil
}

// memory is the peak of the daemon over idle with 8 disks at once.
func (b *bench) memory(ctx context.Context) error {
	for _, compress := range []bool{false, true} {
		if _, err := b.up(); err != nil {
			return err
		}
		if _, err := b.api.VMs(ctx, "", providers.Filter{Name: "eight"}); err != nil {
			return err
		}
		idle, err := b.status("VmRSS")
		if err != nil {
			return err
		}
		out := filepath.Join(b.dir, fmt.Sprint("memory", compress))
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
		if _, err := b.export(ctx, job.Spec{VMPath: "eight", OutputPath: out, Format: "qcow2", Compress: compress}); err != nil {
			return err
		}
		peak, err := b.status("VmHWM")
		if err != nil {
			return err
		}
		if err := os.RemoveAll(out); err != nil {
			return err
		}
		b.add(fmt.Sprintf("memory over idle, 8 disks of 1 GiB at once, qcow2, compressed %t", compress), fmt.Sprintf("%d MiB (idle %d MiB)", peak-idle, idle), "under 200 MiB")
	}
	return nil
}

// status is a field of /proc/PID/status in MiB.
func (b *bench) status(field string) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.daemon.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if name, rest, _ := strings.Cut(line, ":"); name == field {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s", field)
}

// latency is how long the API takes while four exports run and others wait.
func (b *bench) latency(ctx context.Context) error {
	if _, err := b.up("--max-jobs", "4"); err != nil {
		return err
	}
	for i := range 4 {
		s := job.Spec{VMPath: fmt.Sprint("busy-", i), OutputPath: filepath.Join(b.dir, "busy"), Format: "qcow2"}
		s.Options.LimitMBps = 20
		if err := os.MkdirAll(s.OutputPath, 0o755); err != nil {
			return err
		}
		if _, err := b.api.Submit(ctx, "", api.Submission{Spec: s}); err != nil {
			return err
		}
	}
	if err := wait(time.Minute, func() bool { // else what is submitted next may come first
		running, err := b.api.Jobs(ctx, api.Query{Status: api.States{job.Running}})
		return err == nil && len(running.Jobs) == 4 && !slices.ContainsFunc(running.Jobs, func(j job.Job) bool { return j.Progress.Phase != job.Transfer })
	}); err != nil {
		return fmt.Errorf("four jobs that run: %w", err)
	}
	const rate, seconds = 20, 30
	var (
		mu      sync.Mutex
		took    []time.Duration
		ids     []string
		failed  error
		pending sync.WaitGroup
	)
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for i := range rate * seconds {
		<-tick.C
		pending.Go(func() {
			s := job.Spec{VMPath: fmt.Sprintf("vm-%05d", i), OutputPath: filepath.Join(b.dir, "busy"), Format: "raw"}
			begin := time.Now()
			out, err := b.api.Submit(ctx, "", api.Submission{Spec: s})
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(begin))
			if err != nil {
				failed = err
			} else {
				ids = append(ids, out.JobIDs...)
			}
		})
	}
	pending.Wait()
	if failed != nil {
		return failed
	}
	b.add("`POST /jobs/submit`, 20 a second for 30 s, four jobs running", percentiles(took), "p50 under 15 ms, p99 under 50 ms")

	running, err := b.api.Jobs(ctx, api.Query{Status: api.States{job.Running}, Limit: 4})
	if err != nil {
		return err
	}
	took = nil
	for i := range 500 {
		id := ids[i%len(ids)]
		if i%2 == 0 && len(running.Jobs) > 0 {
			id = running.Jobs[i/2%len(running.Jobs)].ID
		}
		begin := time.Now()
		if _, err := b.api.Job(ctx, id); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	b.add("`GET /jobs/{id}`, four exports running, 600 jobs waiting", percentiles(took), "p99 under 50 ms")
	return nil
}

func percentiles(v []time.Duration) string {
	slices.Sort(v)
	return fmt.Sprintf("p50 %s, p99 %s", v[len(v)/2].Round(100*time.Microsecond), v[len(v)*99/100].Round(100*time.Microsecond))
}
