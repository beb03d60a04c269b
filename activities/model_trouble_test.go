package activities

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
)

// trouble lets something go wrong that passes by itself.
func (r *round) trouble() {
	r.plain = false
	calls := []string{"Login", "QueryChangedDiskAreas", "CreateSnapshot_Task", "RemoveSnapshot_Task", "RetrievePropertiesEx", "*"}
	for range 1 + r.r.IntN(2) {
		f := vspheretest.Fault{Skip: r.r.IntN(12), Times: 1 + r.r.IntN(2)}
		if r.r.IntN(2) == 0 {
			f.Call = calls[r.r.IntN(len(calls))]
			switch f.Skip /= 2; r.r.IntN(6) {
			case 0:
				f.Fault = "HostCommunication"
			case 1:
				f.Status = 503
			case 2:
				f.Drop = true
			case 3:
				f.Fault = "NotAuthenticated"
			case 4:
				f.Delay = vspheretest.Duration(20 * time.Millisecond)
			case 5:
				if f.Drop, f.After = true, true; strings.HasSuffix(f.Call, "_Task") && r.r.IntN(2) == 0 {
					f.Drop, f.After, f.Task, f.Fault = false, false, true, "FileLocked"
				}
			}
		} else {
			n := r.r.Int64N(300 << 10)
			switch f.File, f.Skip = "*-flat.vmdk", f.Skip/2; r.r.IntN(7) {
			case 0:
				f.Status = 503
			case 1:
				f.Drop = true
			case 2:
				f.WrongRange = true
			case 3:
				f.Short = 1
			case 4:
				f.Delay = vspheretest.Duration(20 * time.Millisecond)
			default:
				f.CutAfter = &n
			}
		}
		_, err := r.sim.Inject(f)
		require.NoError(r.t, err)
	}
	if r.r.IntN(3) == 0 {
		r.sim.ExpireSessions()
	}
}

// attempt is one attempt to add the point, while the guest goes on writing. It may be cut off.
func (r *round) attempt(calm bool) (out Appended, err error) {
	// What the guest does and when something happens is drawn beforehand: the walk does not depend on time.
	writes, walk := r.r.IntN(3), rand.New(rand.NewPCG(r.r.Uint64(), 1))
	reads, then := r.r.IntN(6), time.Duration(r.r.IntN(30))*time.Millisecond
	how := r.r.IntN(100)
	if how < 30 && !calm {
		r.plain = false
		slow, err := r.sim.Inject(vspheretest.Fault{File: "*-flat.vmdk", Delay: vspheretest.Duration(3 * time.Millisecond)})
		require.NoError(r.t, err)
		defer slow.Remove()
	}
	wrote := make(chan error, 1)
	go func() {
		var err error
		for range writes {
			if err == nil {
				err = r.write(walk)
			}
		}
		wrote <- err
	}()
	defer func() { require.NoError(r.t, <-wrote) }()
	switch {
	case calm || how >= 30:
		return perform(r.bench.data.AppendPoint, r.in)
	case how < 10:
		r.count("kills")
		return out, r.killed(reads, then)
	case how < 20:
		r.count("stops")
		stop := make(chan struct{})
		defer r.when(reads, then, func() { close(stop) })()
		return perform(r.bench.data.AppendPoint, r.in, func(env *testsuite.TestActivityEnvironment) {
			env.SetWorkerOptions(worker.Options{BackgroundActivityContext: r.t.Context()})
			env.SetWorkerStopChannel(stop)
		})
	}
	var cancel context.CancelCauseFunc
	set := cancellable(&cancel)
	cause := context.Canceled // the attempt is cut off
	if how < 24 {
		cause = temporal.NewCanceledError() // the job is cancelled
	}
	r.count("cut off")
	defer r.when(reads, then, func() { cancel(cause) })()
	return perform(r.bench.data.AppendPoint, r.in, set)
}

// when does something once the vCenter has answered so many more reads of disks, and then some time has
// passed; unless what it returns is called before.
func (r *round) when(reads int, then time.Duration, do func()) (over func()) {
	served := func() (n int) {
		for _, c := range r.sim.Served() {
			n += c.Requests
		}
		return n
	}
	done, ended := make(chan struct{}), make(chan struct{})
	until := served() + reads
	go func() {
		defer close(ended)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for served() < until {
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
		select {
		case <-done:
		case <-time.After(then):
			do()
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// modelAttempt is a variable of the environment: an attempt to be made by a process of its own.
const modelAttempt = "HYPERSDK_MODEL_ATTEMPT"

// attempt is what it holds.
type attempt struct {
	URL, Home, Out string
	Request        AppendRequest
}

// runAttempt is the process that killed starts.
func runAttempt(text string) int {
	var a attempt
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return 2
	}
	b, conns, err := newHost(nil, slog.New(slog.DiscardHandler), a.URL, a.Home, a.Out)
	if err != nil {
		return 2
	}
	defer conns.Close()
	if _, err := perform(b.data.AppendPoint, a.Request); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// killed lets a process of its own make the attempt, and kills it. It is an error in any case: if the
// process came to an end before, nobody heard of it.
func (r *round) killed(reads int, then time.Duration) error {
	t := r.t
	text, err := json.Marshal(attempt{r.sim.URL().String(), r.home, r.out, r.in})
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), modelAttempt+"="+string(text))
	var said strings.Builder
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	over := r.when(reads, then, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	over()
	if state := cmd.ProcessState; state.Exited() {
		require.NotEqual(t, 2, state.ExitCode(), "%s", said.String())
	}
	r.restart()
	return temporal.NewApplicationError(fmt.Sprintf("the worker was killed: %v", err), string(providers.Unavailable))
}
