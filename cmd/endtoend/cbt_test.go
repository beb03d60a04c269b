package endtoend

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

func TestChangeTracking(t *testing.T) {
	t.Parallel()
	old := vm("old", mib)
	old.Hardware = "vmx-04"
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib, mib), old}})
	l.up()
	ctx := t.Context()
	on := func(name string) api.VMRequest { return api.VMRequest{Target: api.Target{VMPath: name}} }

	ok := func(args ...string) string {
		t.Helper()
		out, errs, code := l.hyperctl(args...)
		require.Zero(t, code, errs)
		return out
	}
	status := ok("cbt", "status", "web-01")
	require.Contains(t, status, "tracking is not switched on")
	for range 2 {
		out, err := l.api.EnableCBT(ctx, on("web-01"))
		require.NoError(t, err)
		require.Equal(t, job.EnableCBT, out.Action)
		require.True(t, out.Tracking.Enabled)
		require.False(t, out.Tracking.Active, "the VM runs, and has not stood still yet")
		require.Contains(t, out.Message, "take a snapshot and delete it")
	}
	require.True(t, l.info("web-01").ChangeTracking)

	ok("vms", "snapshot", "create", "web-01", "--name", "first")
	status = ok("cbt", "status", "web-01")
	require.Contains(t, status, "the changes of web-01 are tracked")
	require.Equal(t, 2, strings.Count(status, "yes"), status)
	out, err := l.api.CBTStatus(ctx, on("web-01"))
	require.NoError(t, err)
	require.True(t, out.Tracking.Active)
	require.NotEmpty(t, out.Tracking.Disks[0].ChangeID)
	again, err := l.api.Operation(ctx, out.OperationID)
	require.NoError(t, err)
	require.Equal(t, out.Tracking, again.Tracking, "asked again, it is told the same")

	ok("cbt", "disable", "web-01", "--yes")
	require.False(t, l.info("web-01").ChangeTracking)
	_, err = l.api.EnableCBT(ctx, on("web-01"))
	require.Equal(t, 409, refused(t, err))
	require.ErrorContains(t, err, "delete its snapshots first")
	_, err = l.api.EnableCBT(ctx, on("old"))
	require.Error(t, err)
	require.ErrorContains(t, err, "upgrade the virtual hardware")
	_, err = l.api.CBTStatus(ctx, on("nobody"))
	require.Equal(t, 404, refused(t, err))
}
