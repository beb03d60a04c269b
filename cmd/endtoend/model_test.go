package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/client"
	"hypersdk/cbt"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// modelSeed is a variable of the environment: "7" plays the guest of this seed, "7:50" for so many rounds.
const modelSeed = "HYPERSDK_MODEL"

// livingVM is the chain of a VM whose vCenter is a process of its own, too.
type livingVM struct {
	*chainLab
	r     *rand.Rand
	vc    string // address of its vCenter
	sizes []int64
	doubt []bool // by disk: it is to be copied in full
	sums  uint64 // of what the guest writes
	kills int
}

// A guest writes and incremental exports are made of it, while the daemon is killed at any moment: every
// point is what the disks held when its job was submitted.
func TestEveryPointThroughKills(t *testing.T) {
	t.Parallel()
	seed, rounds, longest := uint64(1), 6, 45*time.Second
	if slow {
		rounds, longest = 100, 20*time.Minute
	}
	if one := os.Getenv(modelSeed); one != "" {
		s, n, given := strings.Cut(one, ":")
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, modelSeed)
		if given {
			rounds, err = strconv.Atoi(n)
			require.NoError(t, err, modelSeed)
		}
	}
	l := newLivingVM(t, seed)
	t.Cleanup(func() { t.Logf("%s=%d, %d kills", modelSeed, seed, l.kills) })
	l.up("--enable-cbt")
	by := map[string]int{}
	for round, late := 0, time.Now().Add(longest); round < rounds; round++ {
		if time.Now().After(late) {
			t.Logf("stopped after %d of %d rounds: the machine is slow", round, rounds)
			break
		}
		for range 1 + l.r.IntN(6) {
			l.scribble()
		}
		if l.r.IntN(6) == 0 {
			l.control("POST", "tracking/reset", map[string]any{"vm": l.vm}, nil)
			l.doubt = []bool{true, true}
		}
		if l.r.IntN(6) == 0 {
			l.resize()
		}
		if l.r.IntN(3) == 0 {
			l.trouble()
		}
		j := l.export()
		l.control("DELETE", "faults", nil, nil)
		for i, d := range j.Result.Disks {
			require.Equal(t, l.doubt[i], d.Full, "%s: %s", d.File, d.Reason)
			require.Equal(t, l.doubt[i], d.By == "", "%s: %s", d.File, d.Reason)
			by[d.By]++
		}
		l.doubt = []bool{false, false}
	}
	l.whole()
	require.Equal(t, []string{filepath.Join(l.dir(), ".lock")}, l.hidden(), "hidden files are left")
	require.NotZero(t, by["tracking"])
	require.NotZero(t, l.kills)
	t.Logf("disks of points by how their changes were found: %v", by)
}

func newLivingVM(t *testing.T, seed uint64) *livingVM {
	t.Helper()
	ports := freePorts(t, 4)
	l := &livingVM{r: rand.New(rand.NewPCG(seed, 3)), vc: fmt.Sprintf("http://127.0.0.1:%d", ports[3]), sizes: []int64{40 * mib, 9 * mib}, doubt: []bool{true, true}, chainLab: &chainLab{
		vm: "web-01", frozen: map[int64][]string{},
		lab: &lab{t: t, data: filepath.Join(t.TempDir(), "data"), exports: filepath.Join(t.TempDir(), "exports"), ports: ports[:3], env: []string{
			"GOVC_URL=" + fmt.Sprintf("http://127.0.0.1:%d/sdk", ports[3]), "GOVC_USERNAME=administrator@vsphere.local", "GOVC_PASSWORD=hypersim", "GOVC_INSECURE=1",
		}},
	}}
	require.NoError(t, os.MkdirAll(l.exports, 0o755))
	var err error
	l.api, err = client.New(l.server(), "endtoend")
	require.NoError(t, err)
	t.Cleanup(l.api.Close)
	p := start(t, nil, "hypersim", "--listen", fmt.Sprintf("127.0.0.1:%d", ports[3]), "--data", filepath.Join(t.TempDir(), "vcenter"),
		"--vm", "name=web-01,disk=40MiB:24MiB:7,disk=9437184:4MiB:8")
	l.eventually(time.Minute, "the vCenter is up", func() bool {
		require.False(t, p.ended(), "hypersim ended")
		return strings.Contains(p.output(), "hypersim: ready")
	})
	return l
}

// control tells the vCenter what is to happen.
func (l *livingVM) control(method, path string, in, out any) {
	l.t.Helper()
	body, err := json.Marshal(in)
	require.NoError(l.t, err)
	req, err := http.NewRequestWithContext(l.t.Context(), method, l.vc+vspheretest.ControlPath+path, bytes.NewReader(body))
	require.NoError(l.t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(l.t, err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	require.NoError(l.t, err)
	require.Equal(l.t, http.StatusOK, res.StatusCode, "%s", answer)
	if out != nil {
		require.NoError(l.t, json.Unmarshal(answer, out))
	}
}

func (l *livingVM) state() (s vspheretest.State) {
	l.t.Helper()
	l.control("GET", "state", nil, &s)
	return s
}

// scribble lets the guest write something somewhere, or nothing but zeros.
func (l *livingVM) scribble() {
	l.t.Helper()
	i := l.r.IntN(2)
	n := 1 + l.r.Int64N(1<<l.r.IntN(23))
	w := vspheretest.GuestWriteRequest{VM: l.vm, Disk: i, Offset: l.r.Int64N(l.sizes[i] - n + 1)}
	if l.sums++; l.r.IntN(5) == 0 {
		w.Data = make([]byte, n)
	} else {
		w.Length, w.Seed = n, l.sums
	}
	l.control("POST", "guest-write", w, nil)
}

// resize makes a disk larger.
func (l *livingVM) resize() {
	l.t.Helper()
	i := l.r.IntN(2)
	l.sizes[i] += (1 + l.r.Int64N(3<<10)) << 10
	l.doubt[i] = true
	l.control("POST", "disk/resize", map[string]any{"vm": l.vm, "disk": i, "size": l.sizes[i]}, nil)
}

// trouble lets something go wrong that passes by itself.
func (l *livingVM) trouble() {
	l.t.Helper()
	n := l.r.Int64N(100 << 10)
	all := []vspheretest.Fault{
		{File: "*-flat.vmdk", CutAfter: &n, Times: 3},
		{File: "*-flat.vmdk", Status: http.StatusServiceUnavailable, Times: 1},
		{Call: "QueryChangedDiskAreas", Drop: true, Times: 1},
		{Call: "CreateSnapshot_Task", Fault: "FileLocked", Task: true, Times: 1},
		{Call: "RemoveSnapshot_Task", Drop: true, After: true, Times: 1},
	}
	l.control("POST", "faults", all[l.r.IntN(len(all))], nil)
	if l.r.IntN(2) == 0 {
		l.control("POST", "sessions/expire", nil, nil)
	}
}

// keep copies the disks as they are. Nothing else may be on the VM.
func (l *livingVM) keep() (files []string) {
	l.t.Helper()
	for _, d := range l.state().VMs[0].Disks {
		from, err := os.Open(d.File)
		require.NoError(l.t, err)
		to, err := os.CreateTemp(l.t.TempDir(), "disk-*.raw")
		require.NoError(l.t, err)
		_, err = io.Copy(to, from)
		require.NoError(l.t, err)
		require.NoError(l.t, to.Close())
		require.NoError(l.t, from.Close())
		files = append(files, to.Name())
	}
	return files
}

// export makes an incremental export. In about half of all, the daemon is killed in the middle.
func (l *livingVM) export() job.Job {
	l.t.Helper()
	frozen := l.keep()
	s := l.spec()
	kill := l.r.IntN(2) == 0
	if kill {
		s.Options.LimitMBps = 4
	}
	after := time.Duration(l.r.IntN(2500)) * time.Millisecond
	id := l.submit(s)
	if kill {
		<-time.After(after) // any moment will do: before the snapshot, within the copy, or after it all
		l.daemon.kill()
		l.kills++
		if len(l.state().Snapshots) > 0 { // else what the guest writes now may be part of the point
			l.scribble()
		}
		l.up("--enable-cbt")
		_, _ = l.api.Limit(l.t.Context(), id, 0) // it may be about to end, or not to be known yet
	}
	j := l.end(id, 90*time.Second)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.Empty(l.t, j.Result.Leftover)
	require.Len(l.t, j.Result.Disks, len(frozen))
	require.Empty(l.t, l.state().Snapshots, "a snapshot is left")
	l.frozen[j.Result.Point.Number] = frozen
	c, err := cbt.Open(l.t.Context(), l.dir(), cbt.Options{ReadOnly: true})
	require.NoError(l.t, err)
	defer c.Close()
	r, err := c.Check(l.t.Context(), cbt.CheckOptions{Depth: cbt.CheckTables})
	require.NoError(l.t, err)
	require.Empty(l.t, r.Problems)
	require.Empty(l.t, r.Strays)
	require.Equal(l.t, len(l.frozen), r.Points)
	return j
}
