package activities

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// tracker is a platform that tracks changes.
type tracker struct {
	*platform
	on    bool
	err   error
	calls int
}

func (k *tracker) SetTracking(_ context.Context, _ providers.VMID, on bool) error {
	k.calls++
	if k.err == nil {
		k.on = on
	}
	return k.err
}

func (k *tracker) Tracking(_ context.Context, vm providers.VMID) (providers.TrackingStatus, error) {
	return providers.TrackingStatus{VM: vm, Enabled: k.on}, nil
}

func (k *tracker) Changes(context.Context, providers.DiskRef, cbt.Point) (cbt.Changes, error) {
	return cbt.Changes{}, nil
}

func TestTracking(t *testing.T) {
	b := newBench(t)
	k := &tracker{platform: b.platform}
	b.conns.provider = k
	on, off := true, false
	ask := func(want *bool) (providers.TrackingStatus, error) {
		return call(b, b.control.Tracking, TrackingRequest{Touch: touchVM, Want: want})
	}
	out, err := ask(nil)
	require.NoError(t, err)
	require.Equal(t, providers.TrackingStatus{VM: touchVM.VM}, out)
	require.Zero(t, k.calls, "whoever only looks changes nothing")
	out, err = ask(&on)
	require.NoError(t, err)
	require.True(t, out.Enabled)
	out, err = ask(&off)
	require.NoError(t, err)
	require.False(t, out.Enabled)

	k.err = &providers.Error{Op: "fake: track", Reason: providers.Precondition, Msg: "it has a snapshot"}
	_, err = ask(&on)
	require.True(t, failure(t, err).NonRetryable(), "a snapshot does not go away while somebody waits")
	k.err = &providers.Error{Op: "fake: track", Reason: providers.Unavailable}
	_, err = ask(&on)
	require.False(t, failure(t, err).NonRetryable())

	b.conns.provider = b.platform
	_, err = ask(nil)
	require.Equal(t, string(providers.Unsupported), failure(t, err).Type(), "a platform without tracking says so")
}
