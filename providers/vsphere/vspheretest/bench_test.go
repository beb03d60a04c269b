package vspheretest_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"

	"hypersdk/providers/vsphere/vspheretest"
)

func BenchmarkStart(b *testing.B) {
	for _, n := range []int{0, 1000} {
		b.Run(fmt.Sprintf("vms=%d", n), func(b *testing.B) {
			for range b.N {
				s, err := vspheretest.New(vspheretest.Options{VMs: vspheretest.GeneratedVMs(n)})
				require.NoError(b, err)
				require.NoError(b, s.Close())
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	s := vspheretest.Start(b, vspheretest.Options{VMs: vspheretest.GeneratedVMs(1000)})
	c, err := govmomi.NewClient(b.Context(), s.LoginURL(), true)
	require.NoError(b, err)
	b.Cleanup(c.CloseIdleConnections)
	v, err := view.NewManager(c.Client).CreateContainerView(b.Context(), c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	require.NoError(b, err)
	for _, props := range [][]string{{"name"}, {"name", "parent", "summary.config", "runtime.powerState", "summary.storage"}} {
		b.Run(fmt.Sprintf("vms=1000/props=%d", len(props)), func(b *testing.B) {
			for b.Loop() {
				var vms []mo.VirtualMachine
				require.NoError(b, v.Retrieve(b.Context(), []string{"VirtualMachine"}, props, &vms))
				require.Len(b, vms, 1000)
			}
		})
	}
}

// BenchmarkFolder reads a file from the page cache, over loopback, with client and server in one
// process.
func BenchmarkFolder(b *testing.B) {
	const size = 512 * MiB
	for _, tls := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", tls), func(b *testing.B) {
			s := vspheretest.Start(b, vspheretest.Options{TLS: tls, VMs: []vspheretest.VM{{
				Name: "web-01", Disks: []vspheretest.Disk{{Size: size, Content: vspheretest.Generated(1, size)}},
			}}})
			c, err := govmomi.NewClient(b.Context(), s.LoginURL(), true)
			require.NoError(b, err)
			b.Cleanup(c.CloseIdleConnections)
			u := object.NewDatastoreURL(*s.URL(), "/DC0", "datastore1", "web-01/web-01-flat.vmdk")
			buf := make([]byte, MiB)
			b.SetBytes(size)
			for b.Loop() {
				res, err := c.Client.DownloadRequest(b.Context(), u, &soap.DefaultDownload)
				require.NoError(b, err)
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, buf)
				require.NoError(b, err)
				require.Equal(b, int64(size), n)
				res.Body.Close()
			}
		})
	}
}
