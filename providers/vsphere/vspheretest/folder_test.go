package vspheretest_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"

	"hypersdk/providers/vsphere/vspheretest"
)

// plain is a client without a session.
func plain(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestFolderWantsASessionOrThePassword(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	u := object.NewDatastoreURL(*s.URL(), "/DC0", "datastore1", "web-01/web-01-flat.vmdk").String()
	status := func(prepare func(*http.Request)) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		require.NoError(t, err)
		prepare(req)
		res, err := plain(t).Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		if res.StatusCode == http.StatusUnauthorized {
			require.Contains(t, res.Header.Get("WWW-Authenticate"), "Basic")
		}
		return res.StatusCode
	}
	cookie := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "vmware_soap_session", Value: value}) }
	}
	key := s.Sessions()[0].Key
	require.Equal(t, 401, status(func(*http.Request) {}))
	require.Equal(t, 401, status(cookie("52a1c5d0-0000-0000-0000-000000000000")))
	require.Equal(t, 200, status(cookie(key)))
	require.Equal(t, 200, status(func(r *http.Request) { r.SetBasicAuth(s.Username(), s.Password()) }))
	require.Equal(t, 401, status(func(r *http.Request) { r.SetBasicAuth(s.Username(), "wrong") }))
	require.Equal(t, 401, status(func(r *http.Request) { r.SetBasicAuth("", "") }))
	require.NoError(t, c.Logout(c.ctx))
	require.Equal(t, 401, status(cookie(key)), "a logout ends what the cookie is good for")
}

func TestFolderServesRanges(t *testing.T) {
	data := pattern(3*MiB+1024, 1)
	s := one(t, data)
	c := login(t, s)
	const file = "web-01/web-01-flat.vmdk"

	res, body, err := c.get("datastore1", file, "")
	require.NoError(t, err)
	require.Equal(t, 200, res.StatusCode)
	require.Equal(t, "bytes", res.Header.Get("Accept-Ranges"))
	require.True(t, bytes.Equal(data, body))

	res, body, err = c.get("datastore1", file, bytesRange(MiB+3, 1000))
	require.NoError(t, err)
	require.Equal(t, 206, res.StatusCode)
	require.Equal(t, "bytes 1048579-1049578/3146752", res.Header.Get("Content-Range"))
	require.True(t, bytes.Equal(data[MiB+3:MiB+1003], body))
	modified := res.Header.Get("Last-Modified")

	res, body, err = c.request(http.MethodHead, "datastore1", file, nil)
	require.NoError(t, err)
	require.Equal(t, int64(len(data)), res.ContentLength)
	require.Empty(t, body)

	res, _, err = c.get("datastore1", file, "bytes=99999999-")
	require.NoError(t, err)
	require.Equal(t, 416, res.StatusCode)

	res, _, err = c.request(http.MethodGet, "datastore1", file, map[string]string{"Range": "bytes=0-9", "If-Range": modified})
	require.NoError(t, err)
	require.Equal(t, 206, res.StatusCode)
	res, body, err = c.request(http.MethodGet, "datastore1", file, map[string]string{"Range": "bytes=0-9", "If-Range": "Mon, 02 Jan 2006 15:04:05 GMT"})
	require.NoError(t, err)
	require.Equal(t, 200, res.StatusCode, "another file than the range is for: all of it")
	require.Len(t, body, len(data))

	res, body, err = c.get("datastore1", "web-01/web-01.vmdk", "")
	require.NoError(t, err)
	require.Equal(t, 200, res.StatusCode)
	require.Contains(t, string(body), `RW 6146 VMFS "web-01-flat.vmdk"`)
}

func TestFolderChecksWhereTheFileIs(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		Datacenters: []string{"DC0", "DC1"},
		Datastores:  []vspheretest.Datastore{{Name: "fast"}, {Name: "only0", Datacenter: "DC0"}},
		VMs:         []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}},
	})
	login(t, s)
	get := func(path string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.URL().Host+path, nil)
		require.NoError(t, err)
		req.SetBasicAuth(s.Username(), s.Password())
		res, err := plain(t).Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	const flat = "/folder/web-01/web-01-flat.vmdk"
	require.Equal(t, 200, get(flat+"?dcPath=DC0&dsName=fast"))
	require.Equal(t, 200, get(flat+"?dcPath=/DC0&dsName=fast"))
	require.Equal(t, 404, get(flat+"?dcPath=DC1&dsName=fast"), "datastores of the same name are not the same")
	require.Equal(t, 404, get(flat+"?dcPath=DC1&dsName=only0"))
	require.Equal(t, 404, get(flat+"?dcPath=DC0&dsName=slow"))
	require.Equal(t, 404, get(flat+"?dcPath=DC0"))
	require.Equal(t, 404, get(flat))
	require.Equal(t, 404, get("/folder/web-01/nothing.vmdk?dcPath=DC0&dsName=fast"))
	require.Equal(t, 404, get("/folder/web-01?dcPath=DC0&dsName=fast"), "a folder is no file")
	require.Equal(t, 400, get("/folder/web-01/%2e%2e/web-01/web-01.vmdk?dcPath=DC0&dsName=fast"))
	require.Equal(t, 404, get("/folder/web-01/hypersim.json?dcPath=DC0&dsName=fast"), "our own state is not a file of the VM's")
}

func TestVSANRefusesExtents(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		Datastores: []vspheretest.Datastore{{Name: "vsanDatastore", Type: "vsan"}, {Name: "nfs", Type: "NFS"}},
		VMs:        []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Content: vspheretest.FromBytes(pattern(MiB, 1))}}}},
	})
	c := login(t, s)
	vm := c.vm("web-01")
	path := strings.TrimPrefix(c.liveChain(vm, 0)[0], "[vsanDatastore] ")
	require.NotContains(t, path, "web-01/", "folders are named after objects on vSAN")
	res, _, err := c.get("vsanDatastore", path, "")
	require.NoError(t, err)
	require.Equal(t, 200, res.StatusCode, "the descriptor can be read")
	res, _, err = c.get("vsanDatastore", strings.Replace(path, ".vmdk", "-flat.vmdk", 1), "")
	require.NoError(t, err)
	require.Equal(t, 404, res.StatusCode)
	c.snapshot(vm, "a") // works all the same
	require.Len(t, c.liveChain(vm, 0), 2)
}

func TestUploadIsStored(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	u := object.NewDatastoreURL(*s.URL(), "/DC0", "datastore1", "iso/a b.iso")
	put := func(auth bool) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u.String(), strings.NewReader("content"))
		require.NoError(t, err)
		if auth {
			req.SetBasicAuth(s.Username(), s.Password())
		}
		res, err := plain(t).Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		return res.StatusCode
	}
	require.Equal(t, 401, put(false))
	require.Equal(t, 200, put(true))
	_, body, err := c.get("datastore1", "iso/a b.iso", "")
	require.NoError(t, err)
	require.Equal(t, "content", string(body))
}

func TestRecordTellsWhatWasServed(t *testing.T) {
	s := one(t, pattern(4*MiB, 1))
	c := login(t, s)
	const file = "web-01/web-01-flat.vmdk"
	for _, r := range [][2]int64{{0, MiB}, {MiB, MiB}, {MiB / 2, MiB}, {3 * MiB, MiB}} {
		_, _, err := c.get("datastore1", file, bytesRange(r[0], r[1]))
		require.NoError(t, err)
	}
	// What was sent is noted when the answer has ended, which its reader sees a little sooner.
	eventually(t, func() bool { return len(s.Requests()) == 4 })
	cov, err := s.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.Equal(t, []vspheretest.Span{
		{Off: 0, Len: MiB / 2, Times: 1}, {Off: MiB / 2, Len: MiB, Times: 2},
		{Off: MiB * 3 / 2, Len: MiB / 2, Times: 1}, {Off: 3 * MiB, Len: MiB, Times: 1},
	}, cov.Spans)
	require.Equal(t, int64(4*MiB), cov.Sent())
	require.Equal(t, int64(3*MiB), cov.Distinct())
	require.Equal(t, int64(MiB), cov.Again())
	require.Equal(t, 4, cov.Requests)
	requests := s.Requests()
	require.Equal(t, "[datastore1] "+file, requests[0].File)
	require.Equal(t, int64(MiB), requests[1].Off)
	require.Equal(t, 206, requests[1].Status)
	require.Positive(t, s.Calls()["Login"])
	s.ResetRecord()
	require.Empty(t, s.Requests())
	require.Empty(t, s.Calls())
}
