package endtoend

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	api "hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

func TestInventory(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{Datacenters: []string{"DC0", "DC 1"}, Datastores: []vspheretest.Datastore{{Name: "fast"}, {Name: "share", Type: "NFS"}},
		VMs: []vspheretest.VM{vm("web-01", 4*mib)}})
	l.up()
	for kind, want := range map[string]string{
		"datacenters": `(?m)^DC 1 .*/DC 1$`, "clusters": `(?m)^DC0_C0 +3 .*/DC0/host/DC0_C0$`, "hosts": `(?m)^DC0_C0_H0 +connected .*/DC0/host/DC0_C0/DC0_C0_H0$`,
		"datastores": `(?m)^share +NFS .*/DC0/datastore/share$`, "networks": `(?m)^VM Network +standard .*/DC 1/network/VM Network$`,
		"pools": `(?m)^Resources .*/DC0/host/DC0_C0/Resources$`, "folders": `(?m)^vm +vms .*/DC0/vm$`,
	} {
		require.Regexp(t, want, l.says(0, "inventory", kind), kind)
	}
	var stores api.Datastores
	l.saysJSON(&stores, "inventory", "datastores", "--datacenter", "/DC0", "--name", "FAS")
	require.Len(t, stores.Datastores, 1)
	require.Equal(t, "/DC0", stores.Datastores[0].Datacenter)
	require.Positive(t, stores.Datastores[0].Free)
	require.Contains(t, l.says(0, "inventory", "hosts", "--name", "nobody"), "No hosts.")

	l.completed(l.submit(l.spec("web-01", "raw")), "web-01", time.Minute)
	require.Contains(t, l.says(0, "inventory", "tasks", "--limit", "50"), "createSnapshot")
	events, err := l.api.Events(t.Context(), client.History{VM: "web-01", Since: "1h", Limit: 5})
	require.NoError(t, err)
	for _, e := range events.Events {
		require.Equal(t, "web-01", e.VM)
	}
	require.Contains(t, l.says(0, "inventory", "events"), "UserLoginSessionEvent")
	require.Contains(t, l.says(0, "inventory", "events", "--since", "2099-01-01T00:00:00Z"), "No events.")
	require.Regexp(t, `(?m)^cpu.usage.average +percent`, l.says(0, "inventory", "metrics", "--vm", "web-01"))
	require.Regexp(t, `(?m)^mem.usage.average +percent`, l.says(0, "inventory", "metrics", "--host", "DC0_C0_H1"))
	l.says(exitUsage, "inventory", "metrics")
	l.says(exitNotFound, "inventory", "metrics", "--vm", "nobody")
	l.says(exitFailure, "inventory", "events", "--since", "yesterday")
	l.says(exitNotFound, "inventory", "hosts", "--connection", "nowhere")
}

// Two vCenters in one daemon, each by its name.
func TestTwoConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 4*mib), vm("both", 4*mib)}})
	lab := vspheretest.Start(t, vspheretest.Options{Datacenters: []string{"Lab"}, TLS: true, VMs: []vspheretest.VM{vm("test-01", 8*mib), vm("both", 8*mib)}})
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `connections:
  lab:
    kind: vsphere
    server: %s
    username: %s
    password: %s
    thumbprint: %q
`, lab.URL(), lab.Username(), lab.Password(), lab.ThumbprintSHA256()), 0o600))
	l.up("--config", config)

	var vms []providers.VM
	l.saysJSON(&vms, "vms", "list")
	require.Equal(t, []string{"/DC0/vm/both", "/DC0/vm/web-01"}, paths(vms))
	l.saysJSON(&vms, "vms", "list", "--connection", "lab")
	require.Equal(t, []string{"/Lab/vm/both", "/Lab/vm/test-01"}, paths(vms))
	for connection, size := range map[string]int64{"": 4 * mib, "default": 4 * mib, "lab": 8 * mib} {
		one, err := l.api.VM(t.Context(), api.VMInfoRequest{VMPath: "both", Connection: connection})
		require.NoError(t, err)
		require.Equal(t, size, one.Disks[0].Size, connection)
	}
	require.Contains(t, l.says(0, "vms", "info", "test-01", "--connection", "lab"), "/Lab/vm/test-01")
	l.says(exitNotFound, "vms", "info", "test-01")
	require.Regexp(t, `(?m)^Lab_C0 `, l.says(0, "inventory", "clusters", "--connection", "lab"))
	require.NotContains(t, l.says(0, "inventory", "clusters"), "Lab_C0")

	here := l.submit(l.spec("web-01", "raw"))
	there := l.submit(job.Spec{VMPath: "/Lab/vm/test-01", OutputPath: l.exports, Format: "raw", Connection: "lab"})
	l.completed(here, "web-01", time.Minute)
	j := l.end(there, time.Minute)
	require.Equal(t, job.Completed, j.Status, "%s", j.Error)
	truth, err := lab.Disk("test-01", 0)
	require.NoError(t, err)
	require.Equal(t, digestOf(t, truth, truth.Size()), j.Result.Disks[0].Digest)

	// From one vCenter into the other.
	path := l.ova("moved", l.raw("web-01", 0))
	out, err := l.api.Import(t.Context(), "", api.ImportRequest{ImportSpec: job.ImportSpec{
		PackagePath: path, Connection: "lab", Networks: map[string]string{"office": "VM Network"},
	}})
	require.NoError(t, err)
	l.arrived(out.JobID, "/Lab/vm/moved")
	_, err = lab.Disk("moved", 0)
	require.NoError(t, err)
}

func paths(vms []providers.VM) (out []string) {
	for _, vm := range vms {
		out = append(out, vm.Path)
	}
	return out
}
