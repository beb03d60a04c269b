package vspheretest_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

func TestWrongPasswordIsRefused(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{Username: "root", Password: "secret"})
	for _, user := range []*url.Userinfo{url.UserPassword("root", "wrong"), url.UserPassword("other", "secret"), url.UserPassword("root", "")} {
		u := s.URL()
		u.User = user
		_, err := govmomi.NewClient(t.Context(), u, true)
		requireFault(t, err, &types.InvalidLogin{})
	}
	require.Empty(t, s.Sessions())
	login(t, s)
	require.Len(t, s.Sessions(), 1)
}

func TestNothingWithoutASession(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}}})
	c := login(t, s)
	vm := c.vm("web-01")
	sc := soap.NewClient(s.URL(), true)
	t.Cleanup(sc.CloseIdleConnections)
	stranger, err := vim25.NewClient(t.Context(), sc) // this much is open to everybody
	require.NoError(t, err)

	var o mo.VirtualMachine
	err = property.DefaultCollector(stranger).RetrieveOne(t.Context(), vm.Reference(), []string{"name"}, &o)
	requireFault(t, err, &types.NotAuthenticated{})
	require.Empty(t, o.Name)
	_, err = methods.CurrentTime(t.Context(), stranger, &types.CurrentTime{This: vim25.ServiceInstance})
	requireFault(t, err, &types.NotAuthenticated{})
	_, err = methods.CreateSnapshot_Task(t.Context(), stranger, &types.CreateSnapshot_Task{This: vm.Reference(), Name: "a"})
	requireFault(t, err, &types.NotAuthenticated{})
	left, err := s.Snapshots("")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSessionsEnd(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *vspheretest.Server, *client){
		"by logout": func(t *testing.T, s *vspheretest.Server, c *client) { require.NoError(t, c.Logout(c.ctx)) },
		"by an administrator": func(t *testing.T, s *vspheretest.Server, c *client) {
			key := s.Sessions()[0].Key
			require.NoError(t, login(t, s).SessionManager.TerminateSession(c.ctx, []string{key}))
		},
		"by the test": func(_ *testing.T, s *vspheretest.Server, _ *client) { s.ExpireSessions() },
	} {
		t.Run(name, func(t *testing.T) {
			s := one(t, pattern(MiB, 1))
			c := login(t, s)
			vm := c.vm("web-01")
			end(t, s, c)
			_, err := vm.PowerOff(c.ctx)
			requireFault(t, err, &types.NotAuthenticated{})
			res, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "")
			require.NoError(t, err)
			require.Equal(t, 401, res.StatusCode)
			require.NoError(t, c.Login(c.ctx, s.LoginURL().User), "the same client may log in again")
			res, _, err = c.get("datastore1", "web-01/web-01-flat.vmdk", "")
			require.NoError(t, err)
			require.Equal(t, 200, res.StatusCode)
		})
	}
}

func TestIdleSessionExpires(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		SessionTimeout: 500 * time.Millisecond,
		VMs:            []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}},
	})
	c := login(t, s)
	download := func() int {
		res, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "bytes=0-0")
		require.NoError(t, err)
		return res.StatusCode
	}
	// Calls keep it alive.
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		_, err := methods.GetCurrentTime(c.ctx, c)
		require.NoError(t, err)
		require.Equal(t, 206, download())
	}
	// Downloads do not.
	eventually(t, func() bool { return download() == 401 })
	_, err := methods.GetCurrentTime(c.ctx, c)
	requireFault(t, err, &types.NotAuthenticated{})
	require.Empty(t, s.Sessions())
}

func TestWaitingCallKeepsItsSession(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{SessionTimeout: 200 * time.Millisecond, TaskDelay: time.Second, VMs: []vspheretest.VM{{Name: "web-01"}}})
	c := login(t, s)
	c.snapshot(c.vm("web-01"), "a")
	eventually(t, func() bool { return len(s.Sessions()) == 0 })
}

func TestWaitingCallEndsWithItsSession(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}}})
	c := login(t, s)
	vm := c.vm("web-01")
	waiting := make(chan error)
	go func() {
		waiting <- property.Wait(c.ctx, c.PropertyCollector(), vm.Reference(), []string{"runtime.powerState"}, func([]types.PropertyChange) bool { return false })
	}()
	eventually(t, func() bool { return s.Calls()["WaitForUpdatesEx"] >= 2 })
	s.ExpireSessions()
	requireFault(t, <-waiting, &types.NotAuthenticated{})
}

func TestWaitingCallEndsWithItsClient(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}}})
	c := login(t, s)
	vm := c.vm("web-01")
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		waiting <- property.Wait(ctx, c.PropertyCollector(), vm.Reference(), []string{"runtime.powerState"}, func([]types.PropertyChange) bool { return false })
	}()
	eventually(t, func() bool { return s.Calls()["WaitForUpdatesEx"] >= 2 })
	cancel()
	<-waiting
	// That nothing waits on in the server shows in that Close comes back, and that no goroutine leaks.
}
