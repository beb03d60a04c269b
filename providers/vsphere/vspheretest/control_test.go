package vspheretest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
)

// control calls the control endpoint of a server and decodes the answer.
func control(t *testing.T, s *vspheretest.Server, method, path, body string, dst any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.URL().Host+"/hypersim/"+path, strings.NewReader(body))
	require.NoError(t, err)
	res, err := plain(t).Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, dst), "%s", data)
	return res.StatusCode
}

func TestControl(t *testing.T) {
	before := pattern(2*MiB, 1)
	s := one(t, before)
	s.Handle(vspheretest.ControlPath, vspheretest.Control(s))
	c := login(t, s)
	var ok struct {
		OK    bool   `json:"ok"`
		Error string `json:"error"`
	}
	state := func() (st vspheretest.State) {
		t.Helper()
		require.Equal(t, 200, control(t, s, "GET", "state", "", &st))
		return st
	}
	ref := c.snapshot(c.vm("web-01"), "a")
	_, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", bytesRange(0, MiB))
	require.NoError(t, err)
	st := state()
	require.Len(t, st.Sessions, 1)
	require.Equal(t, ref.Value, st.Snapshots[0].ID)
	require.Equal(t, "web-01", st.Snapshots[0].VM)
	require.Equal(t, "/DC0/vm/web-01", st.VMs[0].Path)
	disk := st.VMs[0].Disks[0]
	require.Equal(t, []vspheretest.Span{{Off: 0, Len: MiB, Times: 1}}, st.Served[disk.Base].Spans)
	require.FileExists(t, disk.File)
	require.True(t, strings.HasSuffix(disk.Live, "web-01-000001-delta.vmdk"))
	require.Equal(t, 1, st.Calls["CreateSnapshot_Task"])

	require.Equal(t, 200, control(t, s, "POST", "guest-write", `{"vm":"web-01","disk":0,"offset":5,"data":"`+"aGVsbG8="+`"}`, &ok))
	require.Equal(t, 200, control(t, s, "POST", "guest-write", `{"vm":"web-01","disk":0,"offset":1048576,"length":65536,"seed":7}`, &ok))
	live, err := s.Disk("web-01", 0)
	require.NoError(t, err)
	now := content(t, live)
	require.Equal(t, "hello", string(now[5:10]))
	require.False(t, bytes.Equal(before[MiB:MiB+65536], now[MiB:MiB+65536]))

	var in vspheretest.FaultState
	require.Equal(t, 200, control(t, s, "POST", "faults", `{"file":"*-flat.vmdk","status":503,"retry_after":"2s"}`, &in))
	require.Equal(t, 200, control(t, s, "POST", "faults", `{"call":"PowerOffVM_Task","fault":"InvalidState","task":true}`, &in))
	res, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "")
	require.NoError(t, err)
	require.Equal(t, 503, res.StatusCode)
	require.Equal(t, 1, state().Faults[0].Struck)
	require.Equal(t, 400, control(t, s, "DELETE", "faults?id=99", "", &ok))
	require.Equal(t, 200, control(t, s, "DELETE", "faults?id=1", "", &ok))
	require.Len(t, state().Faults, 1)
	require.Equal(t, 200, control(t, s, "DELETE", "faults", "", &ok))
	require.Empty(t, state().Faults)

	var requests []vspheretest.Request
	require.Equal(t, 200, control(t, s, "GET", "requests", "", &requests))
	require.Len(t, requests, 2)
	require.Equal(t, 200, control(t, s, "DELETE", "requests", "", &ok))
	require.Equal(t, 200, control(t, s, "GET", "requests", "", &requests))
	require.Empty(t, requests)

	require.Equal(t, 200, control(t, s, "POST", "sessions/expire", "", &ok))
	require.Empty(t, state().Sessions)
	require.Equal(t, 200, control(t, s, "POST", "connections/cut", "", &ok))
	require.Equal(t, 200, control(t, s, "POST", "vm/delete", `{"vm":"web-01"}`, &ok))
	require.Empty(t, state().VMs)

	for path, body := range map[string]string{
		"guest-write": `{"vm":"web-01"}`, "vm/delete": `{"vm":"web-01"}`, "faults": `{"file":"*","task":true}`,
	} {
		ok.Error = ""
		require.Equal(t, 400, control(t, s, "POST", path, body, &ok), path)
		require.NotEmpty(t, ok.Error)
		require.Equal(t, 400, control(t, s, "POST", path, `{"unknown":1}`, &ok), path)
		require.Contains(t, ok.Error, "unknown")
		require.Equal(t, 400, control(t, s, "POST", path, `not JSON`, &ok), path)
	}
}
