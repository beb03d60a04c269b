package vsphere_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// one is a fake vCenter with one VM, and a connection to it.
func one(t *testing.T, vm vspheretest.VM) (*vspheretest.Server, *vsphere.Provider, providers.VMID) {
	t.Helper()
	vm.Name = "web-01"
	vm.Disks = []vspheretest.Disk{disk(1, mib)}
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{vm}})
	p := connect(t, s)
	found, err := p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	return s, p, found.ID
}

func TestAGuestTakesItsTimeToShutDown(t *testing.T) {
	_, p, vm := one(t, vspheretest.VM{Hostname: "web", ShutdownTime: vspheretest.Duration(200 * time.Millisecond)})
	require.NoError(t, p.ShutDown(t.Context(), vm))
	is, err := p.Power(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, providers.PowerOn, is, "the guest was asked, and has not done it yet")
	err = p.ShutDown(t.Context(), vm)
	require.ErrorIs(t, err, providers.Precondition, "its tools have gone down already")
	require.Eventually(t, func() bool {
		is, err := p.Power(t.Context(), vm)
		return err == nil && is == providers.PowerOff
	}, time.Minute, 10*time.Millisecond)
}

func TestAGuestThatCannotBeAsked(t *testing.T) {
	_, p, vm := one(t, vspheretest.VM{})
	err := p.ShutDown(t.Context(), vm)
	require.ErrorIs(t, err, providers.Precondition)
	require.ErrorContains(t, err, "VMware Tools do not run")
}

func TestPowerIsRefused(t *testing.T) {
	s, p, vm := one(t, vspheretest.VM{Hostname: "web"})
	for _, c := range []struct {
		call, fault string
		task        bool
		reason      providers.Reason
		do          func(context.Context, providers.VMID) error
	}{
		{"PowerOffVM_Task", "NoPermission", false, providers.Denied, p.PowerOff},
		{"PowerOffVM_Task", "TaskInProgress", true, providers.Precondition, p.PowerOff},
		{"ShutdownGuest", "NoPermission", false, providers.Denied, p.ShutDown},
		{"ReconfigVM_Task", "NoPermission", false, providers.Denied, func(ctx context.Context, vm providers.VMID) error {
			return p.RestoreDrives(ctx, vm, []providers.Drive{{Form: []byte(
				`{"_typeName":"VirtualCdrom","key":3000,"controllerKey":15000,"unitNumber":0,"backing":{"_typeName":"VirtualCdromIsoBackingInfo","fileName":"[a] b.iso"}}`)}})
		}},
		{"CloneVM_Task", "NoDiskSpace", true, providers.Exhausted, func(ctx context.Context, vm providers.VMID) error {
			_, err := p.Clone(ctx, vm, providers.CloneOptions{Key: "k", Name: "n"})
			return err
		}},
	} {
		t.Run(c.call+" "+c.fault, func(t *testing.T) {
			f := inject(t, s, vspheretest.Fault{Call: c.call, Fault: c.fault, Task: c.task})
			defer f.Remove()
			require.ErrorIs(t, c.do(t.Context(), vm), c.reason)
		})
	}
	is, err := p.Power(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, providers.PowerOn, is, "nothing has come of all that")
}

// The answer to a call may be lost after the work was done: asked again, it is done.
func TestPowerWhoseAnswerIsLost(t *testing.T) {
	s, p, vm := one(t, vspheretest.VM{})
	inject(t, s, vspheretest.Fault{Call: "PowerOffVM_Task", After: true, Drop: true, Times: 1})
	require.ErrorIs(t, p.PowerOff(t.Context(), vm), providers.Unavailable)
	require.NoError(t, patiently(func() error { return p.PowerOff(t.Context(), vm) }))
}

func TestAGuestHoldsOnToItsCD(t *testing.T) {
	_, p, vm := one(t, vspheretest.VM{ISO: "[datastore1] iso/debian.iso", LockedDrive: true})
	was, err := p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.NoError(t, p.RemoveDrives(t.Context(), vm, was), "what the VM asks is answered")
	now, err := p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.False(t, now[0].Connected)
	require.NoError(t, p.RestoreDrives(t.Context(), vm, was))
	now, err = p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, was, now)
}

// A drive that was taken out while the VM was off cannot come back while it runs: that is said, and
// works once it is off.
func TestADriveThatCannotBePluggedIn(t *testing.T) {
	_, p, vm := one(t, vspheretest.VM{ISO: "[datastore1] iso/debian.iso", PoweredOff: true})
	was, err := p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.NoError(t, p.RemoveDrives(t.Context(), vm, was))
	none, err := p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.Empty(t, none)
	require.NoError(t, p.PowerOn(t.Context(), vm))
	require.ErrorIs(t, p.RestoreDrives(t.Context(), vm, was), providers.Unsupported, "trying again does not help")
	require.NoError(t, p.PowerOff(t.Context(), vm))
	require.NoError(t, p.RestoreDrives(t.Context(), vm, was))
	now, err := p.Drives(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, was, now)
}

func TestSnapshotsWithMemoryOrAtRest(t *testing.T) {
	for _, c := range []struct {
		name             string
		vm               vspheretest.VM
		opt              providers.SnapshotOptions
		memory, quiesced bool
	}{
		{"memory", vspheretest.VM{}, providers.SnapshotOptions{Memory: true}, true, false},
		{"memory of a VM that is off", vspheretest.VM{PoweredOff: true}, providers.SnapshotOptions{Memory: true}, false, false},
		{"at rest", vspheretest.VM{Hostname: "web"}, providers.SnapshotOptions{Quiesce: true}, false, true},
		{"at rest without tools", vspheretest.VM{}, providers.SnapshotOptions{Quiesce: true}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, p, vm := one(t, c.vm)
			c.opt.Key, c.opt.Name = "k", "before"
			s, err := p.Snapshot(t.Context(), vm, c.opt)
			require.NoError(t, err)
			require.Equal(t, c.memory, s.Memory)
			require.Equal(t, c.quiesced, s.Quiesced)
		})
	}
}

// A clone that another attempt began is waited for, and taken as its own.
func TestACloneThatIsUnderWay(t *testing.T) {
	s, p, vm := one(t, vspheretest.VM{})
	inject(t, s, vspheretest.Fault{Call: "CloneVM_Task", Task: true, Delay: vspheretest.Duration(300 * time.Millisecond), Times: 2})
	opt := providers.CloneOptions{Key: "op/1", Name: "web-02"}
	type result struct {
		vm  providers.VM
		err error
	}
	results := make(chan result)
	for range 2 {
		go func() {
			c, err := p.Clone(t.Context(), vm, opt)
			results <- result{c, err}
		}()
	}
	a, b := <-results, <-results
	require.NoError(t, a.err)
	require.NoError(t, b.err)
	require.Equal(t, a.vm.ID, b.vm.ID)
}
