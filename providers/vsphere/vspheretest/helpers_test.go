package vspheretest_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"go.uber.org/goleak"

	"hypersdk/providers/vsphere/vspheretest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the simulator's
	goleak.VerifyTestMain(m)
}

const MiB = 1 << 20

// client is a logged-in client of a server, and its connections.
type client struct {
	*govmomi.Client
	t   *testing.T
	ctx context.Context
}

func login(t *testing.T, s *vspheretest.Server) *client {
	t.Helper()
	c, err := govmomi.NewClient(t.Context(), s.LoginURL(), true)
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return &client{Client: c, t: t, ctx: t.Context()}
}

// vm finds a VM by its inventory path.
func (c *client) vm(path string) *object.VirtualMachine {
	c.t.Helper()
	vm, err := find.NewFinder(c.Client.Client).VirtualMachine(c.ctx, path)
	require.NoError(c.t, err)
	return vm
}

// props reads properties of an object.
func (c *client) props(ref mo.Reference, dst any, names ...string) {
	c.t.Helper()
	require.NoError(c.t, property.DefaultCollector(c.Client.Client).RetrieveOne(c.ctx, ref.Reference(), names, dst))
}

// snapshot takes a snapshot and answers its id.
func (c *client) snapshot(vm *object.VirtualMachine, name string) types.ManagedObjectReference {
	c.t.Helper()
	task, err := vm.CreateSnapshot(c.ctx, name, "for a test", false, false)
	require.NoError(c.t, err)
	info, err := task.WaitForResult(c.ctx)
	require.NoError(c.t, err)
	return info.Result.(types.ManagedObjectReference)
}

func (c *client) removeSnapshot(vm *object.VirtualMachine, ref types.ManagedObjectReference) {
	c.t.Helper()
	task, err := vm.RemoveSnapshot(c.ctx, ref.Value, false, nil)
	require.NoError(c.t, err)
	require.NoError(c.t, task.Wait(c.ctx))
}

// disks is the virtual disks of a VM or snapshot.
func disks(devices []types.BaseVirtualDevice) []*types.VirtualDisk {
	var out []*types.VirtualDisk
	for _, d := range devices {
		if disk, ok := d.(*types.VirtualDisk); ok {
			out = append(out, disk)
		}
	}
	return out
}

// chain is the file names of a disk's backing and its parents.
func chain(d *types.VirtualDisk) []string {
	var out []string
	for b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); b != nil; b = b.Parent {
		out = append(out, b.FileName)
	}
	return out
}

// liveChain is the backing of disk i of a VM as it runs.
func (c *client) liveChain(vm *object.VirtualMachine, i int) []string {
	c.t.Helper()
	var o mo.VirtualMachine
	c.props(vm, &o, "config.hardware.device")
	return chain(disks(o.Config.Hardware.Device)[i])
}

// snapshotChain is the backing of disk i as a snapshot has it.
func (c *client) snapshotChain(ref types.ManagedObjectReference, i int) []string {
	c.t.Helper()
	var o mo.VirtualMachineSnapshot
	c.props(ref, &o, "config.hardware.device")
	return chain(disks(o.Config.Hardware.Device)[i])
}

// get is a GET of a file in a datastore in the client's session; rng is a Range header or "".
func (c *client) get(ds, file, rng string) (*http.Response, []byte, error) {
	return c.request(http.MethodGet, ds, file, map[string]string{"Range": rng})
}

func (c *client) request(method, ds, file string, header map[string]string) (*http.Response, []byte, error) {
	u := object.NewDatastoreURL(*c.URL(), "/DC0", ds, file)
	req := &soap.Download{Method: method, Headers: map[string]string{}}
	for k, v := range header {
		if v != "" {
			req.Headers[k] = v
		}
	}
	res, err := c.Client.Client.DownloadRequest(c.ctx, u, req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

func bytesRange(off, n int64) string { return fmt.Sprintf("bytes=%d-%d", off, off+n-1) }

// pattern is n bytes that differ from those of another seed everywhere.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8)*31 ^ byte(i) ^ seed
	}
	return p
}

// content reads all of a disk.
func content(t *testing.T, i *vspheretest.Image) []byte {
	t.Helper()
	p := make([]byte, i.Size())
	_, err := i.ReadAt(p, 0)
	require.NoError(t, err)
	return p
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	require.Eventually(t, f, time.Minute, 5*time.Millisecond)
}

// requireFault checks the kind of a fault, of a call or of a task.
func requireFault(t *testing.T, err error, kind types.BaseMethodFault) {
	t.Helper()
	require.Error(t, err)
	require.True(t, fault.Is(err, kind), "%v is not a %T", err, kind)
}

func waitTask(c *client, ref types.ManagedObjectReference) error {
	return object.NewTask(c.Client.Client, ref).Wait(c.ctx)
}

func (c *client) PropertyCollector() *property.Collector {
	return property.DefaultCollector(c.Client.Client)
}
