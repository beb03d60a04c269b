package activities

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// house is a platform whose VM can be switched, emptied and cloned.
type house struct {
	*platform
	mu    sync.Mutex
	power providers.Power
	slow  int // so many looks pass before a guest that was asked has shut down; negative: it never does
	asked bool
	err   error // of everything that changes the VM
	calls []string
}

func (h *house) do(call string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
	return h.err
}

func (h *house) Power(context.Context, providers.VMID) (providers.Power, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked && h.slow >= 0 {
		if h.slow--; h.slow < 0 {
			h.power = providers.PowerOff
		}
	}
	return h.power, nil
}

func (h *house) PowerOn(context.Context, providers.VMID) error {
	h.power = providers.PowerOn
	return h.do("on")
}

func (h *house) PowerOff(context.Context, providers.VMID) error {
	h.power = providers.PowerOff
	return h.do("off")
}

func (h *house) ShutDown(context.Context, providers.VMID) error {
	h.asked = h.err == nil
	return h.do("shut down")
}

func (h *house) Drives(context.Context, providers.VMID) ([]providers.Drive, error) {
	return []providers.Drive{{CDROM: providers.CDROM{ID: "3000"}}}, h.do("drives")
}

func (h *house) RemoveDrives(context.Context, providers.VMID, []providers.Drive) error {
	return h.do("remove drives")
}

func (h *house) RestoreDrives(context.Context, providers.VMID, []providers.Drive) error {
	return h.do("restore drives")
}

func newHouse(t *testing.T) (*bench, *house) {
	b := newBench(t)
	h := &house{platform: b.platform, power: providers.PowerOn}
	b.conns.provider = h
	return b, h
}

var touchVM = Touch{Job: "job-1", VM: "vm-42"}

func TestShutDownWaits(t *testing.T) {
	b, h := newHouse(t)
	h.slow = 1
	out, err := call(b, b.control.ShutDown, ShutDownRequest{Touch: touchVM, Within: time.Minute})
	require.NoError(t, err)
	require.Equal(t, providers.PowerOff, out.Power)
	require.Equal(t, []string{"shut down"}, h.calls)

	h.power, h.slow = providers.PowerOn, -1
	begin := time.Now()
	out, err = call(b, b.control.ShutDown, ShutDownRequest{Touch: touchVM, Within: 10 * time.Millisecond})
	require.NoError(t, err, "that it does not is no failure: who asked decides what follows")
	require.Equal(t, providers.PowerOn, out.Power)
	require.Less(t, time.Since(begin), 10*time.Second)

	h.err = &providers.Error{Op: "fake: shut down", Reason: providers.Precondition, Msg: "no tools"}
	_, err = call(b, b.control.ShutDown, ShutDownRequest{Touch: touchVM, Within: time.Minute})
	require.Equal(t, string(providers.Precondition), failure(t, err).Type())
}

// What somebody waits for is not tried again for ever.
func TestPatience(t *testing.T) {
	b, h := newHouse(t)
	h.err = &providers.Error{Op: "fake: off", Reason: providers.Unavailable}
	in := PowerRequest{Touch: touchVM, Want: providers.PowerOff}
	_, err := call(b, b.control.Power, in)
	require.False(t, failure(t, err).NonRetryable())
	in.Patience = time.Nanosecond
	_, err = call(b, b.control.Power, in)
	require.True(t, failure(t, err).NonRetryable())
	require.Equal(t, string(providers.Unavailable), failure(t, err).Type())
}

// A guest that was asked is waited for before the VM is made sure to run.
func TestPowerSettles(t *testing.T) {
	b, h := newHouse(t)
	h.asked, h.slow = true, 1
	_, err := call(b, b.control.Power, PowerRequest{Touch: touchVM, Want: providers.PowerOn, Settle: time.Minute})
	require.NoError(t, err)
	require.Equal(t, []string{"on"}, h.calls)
	require.Equal(t, providers.PowerOn, h.power)
}

// What a job has changed of its source is put back by the sweep where the job could not any more.
func TestSweepRestoresTheSource(t *testing.T) {
	b, h := newHouse(t)
	_, err := b.prepare()
	require.NoError(t, err)
	_, err = call(b, b.control.ShutDown, ShutDownRequest{Touch: touchVM, Within: time.Minute, Again: true})
	require.NoError(t, err)
	drives := DrivesRequest{Touch: touchVM, Again: true, Drives: []providers.Drive{{CDROM: providers.CDROM{ID: "3000"}, Form: []byte(`{"key":3000}`)}}}
	require.NoError(t, do(b, b.control.RemoveDrives, drives))
	b.engine.ended["job-1"] = true
	h.calls = nil
	require.NoError(t, b.site.Sweep(t.Context()))
	require.Equal(t, []string{"restore drives", "on"}, h.calls)
	h.calls = nil
	require.NoError(t, b.site.Sweep(t.Context()))
	require.Empty(t, h.calls, "once")
}

// What a job has put back itself, or was told to leave, is left alone by the sweep.
func TestSweepLeavesTheSourceAlone(t *testing.T) {
	b, h := newHouse(t)
	_, err := b.prepare()
	require.NoError(t, err)
	form := []providers.Drive{{Form: []byte(`{}`)}}
	require.NoError(t, do(b, b.control.RemoveDrives, DrivesRequest{Touch: touchVM, Again: true, Drives: form}))
	require.NoError(t, do(b, b.control.RestoreDrives, DrivesRequest{Touch: touchVM, Drives: form}))
	_, err = call(b, b.control.ShutDown, ShutDownRequest{Touch: touchVM, Within: time.Minute, Again: true})
	require.NoError(t, err)
	_, err = call(b, b.control.Power, PowerRequest{Touch: touchVM, Want: providers.PowerOn})
	require.NoError(t, err)
	require.NoError(t, do(b, b.control.RemoveDrives, DrivesRequest{Touch: touchVM, Drives: form}))
	b.engine.ended["job-1"] = true
	h.calls = nil
	require.NoError(t, b.site.Sweep(t.Context()))
	require.Empty(t, h.calls)
}

func TestDeleteSnapshotOfAJob(t *testing.T) {
	b, h := newHouse(t)
	h.vm.Snapshots = []providers.Snapshot{
		{ID: "snapshot-1", Name: "hypersdk hypersdk-job-2"}, {ID: "snapshot-2", Name: "twin"}, {ID: "snapshot-3", Name: "twin"},
	}
	for _, c := range []struct {
		ref, says string
		ended     bool
		reason    providers.Reason
	}{
		{"hypersdk hypersdk-job-2", "job job-2 reads from this snapshot", false, providers.Precondition},
		{"snapshot-1", "", true, ""},
		{"twin", "2 snapshots of the name", true, providers.Invalid},
		{"snapshot-3", "", true, ""},
		{"nothing", "has no snapshot", true, providers.NotFound},
	} {
		b.engine.ended["job-2"] = c.ended
		s, err := call(b, b.control.DeleteSnapshot, DeleteSnapshotRequest{Touch: touchVM, Snapshot: c.ref})
		if c.reason == "" {
			require.NoError(t, err)
			require.EqualValues(t, c.ref, s.ID)
			continue
		}
		f := failure(t, err)
		require.Equal(t, string(c.reason), f.Type())
		require.True(t, f.NonRetryable())
		require.Contains(t, f.Message(), c.says)
	}
}

// A platform that cannot do something says so, and nothing is written down of an operation.
func TestOperationsThatAPlatformLacks(t *testing.T) {
	b := newBench(t)
	_, err := call(b, b.control.Power, PowerRequest{Touch: touchVM, Want: providers.PowerOn})
	require.Equal(t, string(providers.Unsupported), failure(t, err).Type())
	_, err = call(b, b.control.Clone, CloneRequest{Touch: touchVM, CloneRequest: job.CloneRequest{Name: "x"}})
	require.Equal(t, string(providers.Unsupported), failure(t, err).Type())
	entries, err := os.ReadDir(b.site.records())
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, strings.HasSuffix(e.Name(), ".json"), filepath.Join(b.site.records(), e.Name()))
	}
}
