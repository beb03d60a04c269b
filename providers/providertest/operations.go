package providertest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
)

// powered waits until the VM is in a power state.
func powered(t *testing.T, p providers.PowerManager, vm providers.VMID, want providers.Power) {
	t.Helper()
	require.Eventually(t, func() bool {
		is, err := p.Power(t.Context(), vm)
		return err == nil && is == want
	}, 20*time.Second, 10*time.Millisecond, "the VM becomes %s", want)
}

// power switches the VM off and on. It runs, with tools in its guest, before and after.
func (h Harness) power(t *testing.T) {
	p := h.open(t)
	power := capability[providers.PowerManager](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()
	require.Equal(t, providers.PowerOn, vm.PowerState, "the VM runs to begin with")
	t.Cleanup(func() { _ = power.PowerOn(context.Background(), vm.ID) })

	for range 2 {
		require.NoError(t, power.PowerOn(ctx, vm.ID), "what is on is on")
	}
	for range 2 {
		require.NoError(t, power.PowerOff(ctx, vm.ID), "what is off is off")
		powered(t, power, vm.ID, providers.PowerOff)
	}
	require.NoError(t, power.ShutDown(ctx, vm.ID), "what is off has shut down")
	require.NoError(t, power.PowerOn(ctx, vm.ID))
	powered(t, power, vm.ID, providers.PowerOn)
	require.NoError(t, power.ShutDown(ctx, vm.ID))
	powered(t, power, vm.ID, providers.PowerOff)
	require.NoError(t, power.PowerOn(ctx, vm.ID))
	powered(t, power, vm.ID, providers.PowerOn)

	_, err := power.Power(ctx, h.Absent)
	require.ErrorIs(t, err, providers.NotFound)
	for name, do := range map[string]func(context.Context, providers.VMID) error{
		"on": power.PowerOn, "off": power.PowerOff, "shut down": power.ShutDown,
	} {
		require.ErrorIs(t, do(ctx, h.Absent), providers.NotFound, name)
		require.ErrorIs(t, do(cancelled(t), vm.ID), context.Canceled, name)
	}
}

// drives removes the drives of the VM and puts them back, while it runs and while it is off.
func (h Harness) drives(t *testing.T) {
	p := h.open(t)
	drives := capability[providers.DriveManager](t, p)
	power := capability[providers.PowerManager](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()
	require.NotEmpty(t, vm.CDROMs, "the VM has a drive")
	was, err := drives.Drives(ctx, vm.ID)
	require.NoError(t, err)
	require.Len(t, was, len(vm.CDROMs))
	t.Cleanup(func() {
		_ = drives.RestoreDrives(context.Background(), vm.ID, was)
		_ = power.PowerOn(context.Background(), vm.ID)
	})

	for _, running := range []bool{true, false} {
		if !running {
			require.NoError(t, power.PowerOff(ctx, vm.ID))
		}
		was, err := drives.Drives(ctx, vm.ID)
		require.NoError(t, err)
		require.NoError(t, drives.RestoreDrives(ctx, vm.ID, was), "what is there is left alone")
		require.Equal(t, was, mustDrives(t, drives, vm.ID))
		for range 2 {
			require.NoError(t, drives.RemoveDrives(ctx, vm.ID, was))
			for _, d := range mustDrives(t, drives, vm.ID) {
				require.Empty(t, d.Media, "nothing is in it any more")
				require.False(t, d.Connected)
			}
		}
		for range 2 {
			require.NoError(t, drives.RestoreDrives(ctx, vm.ID, was))
			require.Equal(t, was, mustDrives(t, drives, vm.ID), "each is as it was, in its place")
		}
	}
	_, err = drives.Drives(ctx, h.Absent)
	require.ErrorIs(t, err, providers.NotFound)
	require.ErrorIs(t, drives.RemoveDrives(ctx, h.Absent, was), providers.NotFound)
	require.ErrorIs(t, drives.RestoreDrives(ctx, h.Absent, was), providers.NotFound)
	broken := []providers.Drive{{Form: []byte(`"no drive"`)}}
	require.ErrorIs(t, drives.RestoreDrives(ctx, vm.ID, broken), providers.Invalid)
}

func mustDrives(t *testing.T, d providers.DriveManager, vm providers.VMID) []providers.Drive {
	t.Helper()
	out, err := d.Drives(t.Context(), vm)
	require.NoError(t, err)
	return out
}

// clone clones the VM. The clones stay: no provider need be able to delete VMs.
func (h Harness) clone(t *testing.T) {
	p := h.open(t)
	cloner := capability[providers.Cloner](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()
	opt := providers.CloneOptions{Key: "exam/clone", Name: vm.Name + " of an exam/100%"}

	first, err := cloner.Clone(ctx, vm.ID, opt)
	require.NoError(t, err)
	require.Equal(t, opt.Name, first.Name)
	require.NotEqual(t, vm.ID, first.ID)
	require.Len(t, first.Disks, len(vm.Disks))
	again, err := cloner.Clone(ctx, vm.ID, opt)
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID, "the same key is the same clone")
	_, err = cloner.Clone(ctx, vm.ID, providers.CloneOptions{Key: "exam/other", Name: opt.Name})
	require.ErrorIs(t, err, providers.Exists, "what is there is not replaced")

	for _, on := range []bool{true, true, false, false} {
		require.NoError(t, cloner.SetTemplate(ctx, first.ID, on), "what is as it should be stays so")
		now, err := capability[providers.Inventory](t, p).VM(ctx, string(first.ID))
		require.NoError(t, err)
		require.Equal(t, on, now.Template)
	}
	gold, err := cloner.Clone(ctx, first.ID, providers.CloneOptions{Key: "exam/gold", Name: "gold of an exam", Template: true})
	require.NoError(t, err)
	require.True(t, gold.Template)
	fromGold, err := cloner.Clone(ctx, gold.ID, providers.CloneOptions{Key: "exam/from gold", Name: "from gold of an exam"})
	require.NoError(t, err)
	require.False(t, fromGold.Template)

	for name, bad := range map[string]struct {
		change func(*providers.CloneOptions)
		reason providers.Reason
	}{
		"no key":          {func(o *providers.CloneOptions) { o.Key = "" }, providers.Invalid},
		"no name":         {func(o *providers.CloneOptions) { o.Name = " " }, providers.Invalid},
		"no such folder":  {func(o *providers.CloneOptions) { o.Folder = "/no/such/folder" }, providers.NotFound},
		"no such storage": {func(o *providers.CloneOptions) { o.Datastore = "no such datastore" }, providers.NotFound},
		"no such pool":    {func(o *providers.CloneOptions) { o.ResourcePool = "no such pool" }, providers.NotFound},
		"no such host":    {func(o *providers.CloneOptions) { o.Host = "no such host" }, providers.NotFound},
	} {
		o := providers.CloneOptions{Key: "exam/bad", Name: "bad of an exam"}
		bad.change(&o)
		_, err := cloner.Clone(ctx, vm.ID, o)
		require.ErrorIs(t, err, bad.reason, name)
	}
	_, err = cloner.Clone(ctx, h.Absent, opt)
	require.ErrorIs(t, err, providers.NotFound)
	require.ErrorIs(t, cloner.SetTemplate(ctx, h.Absent, true), providers.NotFound)
}
