package apiserver_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestOperate(t *testing.T) {
	vm := providers.VM{ID: "vm-2", Name: "web-01", Path: "/dc/vm/web-01"}
	for _, c := range []struct {
		path, body string
		want       job.Operation
	}{
		{"/vms/poweron", `{"vm_path":"web-01"}`, job.Operation{Action: job.PowerOn}},
		{"/vms/poweroff", `{"vm_path":"web-01","timeout":30}`, job.Operation{Action: job.PowerOff}},
		{"/vms/shutdown", `{"vm_path":"web-01"}`, job.Operation{Action: job.ShutDown}},
		{"/vms/shutdown", `{"vm_path":"web-01","timeout":300}`, job.Operation{Action: job.ShutDown, Timeout: job.Duration(5 * time.Minute)}},
		{"/vms/shutdown", `{"vm_path":"web-01","timeout":"90s","then":"poweroff"}`,
			job.Operation{Action: job.ShutDown, Timeout: job.Duration(90 * time.Second), Then: job.ThenPowerOff}},
		{"/vms/remove-cdrom", `{"vm_path":"web-01"}`, job.Operation{Action: job.RemoveCDROM}},
		{"/vms/snapshots/create", `{"vm_path":"web-01","name":"before","description":"d","quiesce":true}`,
			job.Operation{Action: job.TakeSnapshot, Snapshot: &job.SnapshotRequest{Name: "before", Description: "d", Quiesce: true}}},
		{"/vms/snapshots/create", `{"vm_path":"web-01","name":"before","memory":true}`,
			job.Operation{Action: job.TakeSnapshot, Snapshot: &job.SnapshotRequest{Name: "before", Memory: true}}},
		{"/vms/snapshots/delete", `{"vm_path":"web-01","snapshot":"snapshot-7"}`,
			job.Operation{Action: job.DeleteSnapshot, Snapshot: &job.SnapshotRequest{Name: "snapshot-7"}}},
		{"/vms/clone", `{"vm_path":"web-01","name":"web-02","folder":"/dc/vm/f","datastore":"ds","resource_pool":"p","host":"h","power_on":true}`,
			job.Operation{Action: job.Clone, Clone: &job.CloneRequest{Name: "web-02", Folder: "/dc/vm/f", Datastore: "ds", ResourcePool: "p", Host: "h", PowerOn: true}}},
		{"/vms/template", `{"vm_path":"web-01"}`, job.Operation{Action: job.Template, Template: true}},
		{"/vms/template", `{"vm_path":"web-01","template":false}`, job.Operation{Action: job.Template}},
		{"/cbt/enable", `{"vm_path":"web-01"}`, job.Operation{Action: job.EnableCBT}},
		{"/cbt/disable", `{"vm_path":"web-01"}`, job.Operation{Action: job.DisableCBT}},
		{"/cbt/status", `{"vm_path":"web-01"}`, job.Operation{Action: job.ReportCBT}},
	} {
		t.Run(c.path+" "+c.body, func(t *testing.T) {
			b := start(t)
			var got job.Operation
			b.temporal.Operate(func(o job.Operation) (*job.Operated, error) {
				got = o
				return &job.Operated{VM: vm, Power: providers.PowerOff, Message: "web-01 is done with"}, nil
			})
			out := b.post(c.path, c.body).ok()
			c.want.VMPath = "web-01"
			require.Equal(t, c.want, got)
			require.Equal(t, string(c.want.Action), out["action"])
			require.Equal(t, "completed", out["status"])
			require.Equal(t, true, out["success"])
			require.Equal(t, "web-01 is done with", out["message"])
			require.Equal(t, "web-01", out["vm_name"])
			require.Equal(t, "poweredOff", out["power_state"])
			again := b.get("/vms/operations/" + out["operation_id"].(string)).ok()
			require.Equal(t, out["message"], again["message"])
			require.Equal(t, out["action"], again["action"])
			require.NotEmpty(t, again["temporal_url"])
			b.get("/jobs/" + out["operation_id"].(string)).refused(404)
		})
	}
}

func TestOperateIsRefused(t *testing.T) {
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/vms/poweroff", `{}`, 422, "vm_path is required"},
		{"/vms/poweroff", `{"vm_path":""}`, 422, "vm_path"},
		{"/vms/poweroff", `{"vm_path":"v","force":true}`, 422, "force is not known"},
		{"/vms/poweroff", `{"vm_path":"v","connection":"job-1"}`, 422, `must not begin with "job-"`},
		{"/vms/poweroff", `{"vm_path":"v","vcenter":{"server":"vc","username":"u","password":""}}`, 422, "vcenter.password is required"},
		{"/vms/poweroff", `{"vm_path":"v","timeout":-1}`, 422, "timeout"},
		{"/vms/poweroff", `{"vm_path":"v","timeout":"soon"}`, 422, "a number of seconds"},
		{"/vms/shutdown", `{"vm_path":"v","timeout":1e9}`, 422, "not be more than a day"},
		{"/vms/shutdown", `{"vm_path":"v","timeout":0.1}`, 422, "at least a second"},
		{"/vms/shutdown", `{"vm_path":"v","then":"explode"}`, 422, "then"},
		{"/vms/snapshots/create", `{"vm_path":"v"}`, 422, "name is required"},
		{"/vms/snapshots/create", `{"vm_path":"v","name":"n","memory":true,"quiesce":true}`, 422, "quiesce must not be given together with memory"},
		{"/vms/snapshots/delete", `{"vm_path":"v"}`, 422, "snapshot is required"},
		{"/vms/clone", `{"vm_path":"v"}`, 422, "name is required"},
		{"/vms/clone", `{"vm_path":"v","name":"n","template":true,"power_on":true}`, 422, "a template does not run"},
		{"/vms/snapshots", `{"vm_path":"nowhere"}`, 404, "there is no such VM"},
	} {
		b := start(t)
		require.Contains(t, b.post(c.path, c.body).refused(c.status), c.says, c.body)
		require.Empty(t, b.temporal.IDs(), "nothing was started")
	}
	b := start(t)
	b.get("/vms/operations/nothing").refused(404)
	b.temporal.Add(running("a-job"))
	b.get("/vms/operations/a-job").refused(404)
}

func TestOperationFails(t *testing.T) {
	for reason, status := range map[providers.Reason]int{
		providers.NotFound: 404, providers.Auth: 403, providers.Denied: 403, providers.Precondition: 409, providers.Exists: 409,
		providers.Unsupported: 422, providers.Unavailable: 502, providers.Exhausted: 507,
	} {
		b := start(t)
		b.temporal.Operate(func(job.Operation) (*job.Operated, error) {
			return nil, temporal.NewNonRetryableApplicationError("vsphere: power off vm-2: no", string(reason), nil)
		})
		require.Equal(t, "vsphere: power off vm-2: no", b.post("/vms/poweroff", `{"vm_path":"web-01"}`).refused(status))
		out := b.get("/vms/operations/" + b.temporal.IDs()[0]).ok()
		require.Equal(t, "failed", out["status"])
		require.Equal(t, string(reason), out["reason"])
		require.Equal(t, "vsphere: power off vm-2: no", out["error"])
	}
}

func TestAnOperationThatTakesLong(t *testing.T) {
	b := start(t)
	a := b.post("/vms/poweroff", `{"vm_path":"web-01","timeout":"50ms"}`)
	require.Equal(t, 202, a.status)
	out := a.json()
	require.Equal(t, "running", out["status"])
	require.Equal(t, false, out["success"])
	require.Equal(t, "/vms/operations/"+out["operation_id"].(string), a.header.Get("Location"))
	require.Equal(t, "running", b.get(a.header.Get("Location")).ok()["status"])
}

// Credentials are stored for the operation alone, and never in what starts it.
func TestOperationWithCredentials(t *testing.T) {
	b := start(t)
	const body = `{"vm_path":"web-01","vcenter":{"server":"vc","username":"u","password":"hunter2"}}`
	var got job.Operation
	b.temporal.Operate(func(o job.Operation) (*job.Operated, error) { got = o; return &job.Operated{}, nil })
	a := b.post("/vms/poweroff", body)
	require.Equal(t, "job-"+a.ok()["operation_id"].(string), got.Connection)
	require.Contains(t, b.connections.Stored(got.Connection), "hunter2")
	require.NotContains(t, a.body, "hunter2")
	run, _ := b.temporal.Run(b.temporal.IDs()[0])
	memo, err := json.Marshal(run.Memo)
	require.NoError(t, err)
	require.NotContains(t, string(memo), "hunter2")
	require.NotContains(t, b.log.String(), "hunter2")

	split := start(t, func(_ *apiserver.Config, d *apiserver.Deps) { d.CanStoreCredentials = false })
	require.Contains(t, split.post("/vms/poweroff", body).refused(422), "name a configured connection")
}
