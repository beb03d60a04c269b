package vspheretest_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers/vsphere/vspheretest"
)

func inject(t *testing.T, s *vspheretest.Server, f vspheretest.Fault) *vspheretest.Injection {
	t.Helper()
	in, err := s.Inject(f)
	require.NoError(t, err)
	return in
}

func TestCallFaultsStrikeSoOftenAfterSoMany(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	c := login(t, s)
	in := inject(t, s, vspheretest.Fault{Call: "CurrentTime", Skip: 1, Times: 2, Fault: "HostCommunication", Message: "the host is away"})
	for i, fails := range []bool{false, true, true, false, false} {
		_, err := methods.GetCurrentTime(c.ctx, c)
		if !fails {
			require.NoError(t, err, "call %d", i)
			continue
		}
		requireFault(t, err, &types.HostCommunication{})
		require.ErrorContains(t, err, "the host is away")
	}
	require.Equal(t, 2, in.Struck())
	in.Remove()
	inject(t, s, vspheretest.Fault{Call: "CurrentTime", Every: 3, Drop: true})
	failed := 0
	for range 9 {
		if _, err := methods.GetCurrentTime(c.ctx, c); err != nil {
			failed++
		}
	}
	require.Equal(t, 3, failed)
}

func TestCallFaultsOnAnObject(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}, {Name: "web-02"}}})
	c := login(t, s)
	in := inject(t, s, vspheretest.Fault{Call: "*", Object: "web-02", Cause: &types.NoPermission{PrivilegeId: "VirtualMachine.State.CreateSnapshot"}})
	c.snapshot(c.vm("web-01"), "a")
	_, err := c.vm("web-02").CreateSnapshot(c.ctx, "a", "", false, false)
	requireFault(t, err, &types.NoPermission{})
	in.Remove()
	ref := c.snapshot(c.vm("web-02"), "a")
	inject(t, s, vspheretest.Fault{Call: "RemoveSnapshot_Task", Object: "web-02", Status: 503, RetryAfter: vspheretest.Duration(7 * time.Second)})
	_, err = c.vm("web-02").RemoveSnapshot(c.ctx, ref.Value, false, nil)
	require.ErrorContains(t, err, "503")
}

func TestTaskFaults(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	vm := c.vm("web-01")
	for _, f := range []vspheretest.Fault{
		{Call: "CreateSnapshot_Task", Task: true, Fault: "ApplicationQuiesceFault", Message: "cannot quiesce", Times: 1}, // answered here
		{Call: "PowerOffVM_Task", Task: true, Fault: "ApplicationQuiesceFault", Message: "cannot quiesce", Times: 1},     // answered by the simulator
	} {
		inject(t, s, f)
		start := func() (*object.Task, error) {
			if f.Call == "PowerOffVM_Task" {
				return vm.PowerOff(c.ctx)
			}
			return vm.CreateSnapshot(c.ctx, "a", "", false, true)
		}
		task, err := start()
		require.NoError(t, err, "the call itself succeeds")
		err = task.Wait(c.ctx)
		requireFault(t, err, &types.ApplicationQuiesceFault{})
		require.ErrorContains(t, err, "cannot quiesce")
		power, err := vm.PowerState(c.ctx)
		require.NoError(t, err)
		require.Equal(t, types.VirtualMachinePowerStatePoweredOn, power)
		left, err := s.Snapshots("")
		require.NoError(t, err)
		require.Empty(t, left)
		task, err = start()
		require.NoError(t, err)
		require.NoError(t, task.Wait(c.ctx))
		require.NoError(t, dropAll(c, vm))
	}
}

func dropAll(c *client, vm *object.VirtualMachine) error {
	task, err := vm.RemoveAllSnapshot(c.ctx, nil)
	if err != nil {
		return err
	}
	return task.Wait(c.ctx)
}

func TestTaskTakesItsTimeAndTheVMCanBeLookedAtMeanwhile(t *testing.T) {
	const delay = time.Second
	s := vspheretest.Start(t, vspheretest.Options{
		TaskDelay: delay,
		VMs:       []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: MiB}}}},
	})
	c := login(t, s)
	vm := c.vm("web-01")
	for name, start := range map[string]func() (*object.Task, error){
		"own":       func() (*object.Task, error) { return vm.CreateSnapshot(c.ctx, "a", "", false, false) },
		"simulator": func() (*object.Task, error) { return vm.PowerOff(c.ctx) },
	} {
		begin := time.Now()
		task, err := start()
		require.NoError(t, err)
		var o mo.Task
		c.props(task, &o, "info")
		require.Equal(t, types.TaskInfoStateRunning, o.Info.State, name)
		require.Equal(t, "web-01", o.Info.EntityName)
		var m mo.VirtualMachine
		c.props(vm, &m, "name")
		c.props(task, &o, "info")
		require.Equal(t, types.TaskInfoStateRunning, o.Info.State, name)
		require.NoError(t, task.Wait(c.ctx))
		require.GreaterOrEqual(t, time.Since(begin), delay)
	}
	left, err := s.Snapshots("web-01")
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestOneTaskAtATimeOnAVM(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	vm := c.vm("web-01")
	in := inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", Task: true, Delay: vspheretest.Duration(20 * time.Millisecond)})
	var tasks []*object.Task
	for range 8 {
		task, err := vm.CreateSnapshot(c.ctx, "a", "", false, false)
		require.NoError(t, err)
		tasks = append(tasks, task)
	}
	made := 0
	for _, task := range tasks {
		if err := task.Wait(c.ctx); err != nil {
			requireFault(t, err, &types.TaskInProgress{})
			continue
		}
		made++
	}
	require.Equal(t, 8, in.Struck())
	left, err := s.Snapshots("web-01")
	require.NoError(t, err)
	require.Len(t, left, made)
	require.Positive(t, made)
}

func TestCanceledTaskDoesNothing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01"}}, TaskDelay: 200 * time.Millisecond})
	c := login(t, s)
	task, err := c.vm("web-01").CreateSnapshot(c.ctx, "a", "", false, false)
	require.NoError(t, err)
	require.NoError(t, task.Cancel(c.ctx))
	requireFault(t, task.Wait(c.ctx), &types.RequestCanceled{})
	_, err = c.vm("web-01").CreateSnapshot(c.ctx, "b", "", false, false)
	require.NoError(t, err)
	eventually(t, func() bool {
		left, err := s.Snapshots("web-01")
		require.NoError(t, err)
		return len(left) == 1 && left[0].Name == "b"
	})
}

func TestLostAnswerOfACallThatWasCarriedOut(t *testing.T) {
	s := one(t, pattern(MiB, 1))
	c := login(t, s)
	inject(t, s, vspheretest.Fault{Call: "CreateSnapshot_Task", Times: 1, Drop: true, After: true})
	_, err := c.vm("web-01").CreateSnapshot(c.ctx, "a", "", false, false)
	require.ErrorIs(t, err, io.EOF)
	eventually(t, func() bool {
		left, err := s.Snapshots("web-01")
		require.NoError(t, err)
		return len(left) == 1
	})
}

func TestCallIsDroppedDelayedOrAnsweredWithAStatus(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{})
	c := login(t, s)
	inject(t, s, vspheretest.Fault{Call: "CurrentTime", Times: 1, Drop: true})
	inject(t, s, vspheretest.Fault{Call: "CurrentTime", Skip: 1, Times: 1, Status: 503})
	inject(t, s, vspheretest.Fault{Call: "CurrentTime", Skip: 2, Times: 1, Delay: vspheretest.Duration(150 * time.Millisecond)})
	_, err := methods.GetCurrentTime(c.ctx, c)
	require.ErrorIs(t, err, io.EOF)
	_, err = methods.GetCurrentTime(c.ctx, c)
	require.ErrorContains(t, err, "503")
	begin := time.Now()
	_, err = methods.GetCurrentTime(c.ctx, c)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(begin), 150*time.Millisecond)
}

func TestReadFaults(t *testing.T) {
	data := pattern(2*MiB, 1)
	const off, n = MiB / 2, MiB // what is asked for
	want := data[off : off+n]
	at := func(n int64) *int64 { return &n }
	for name, test := range map[string]struct {
		fault vspheretest.Fault
		check func(t *testing.T, res *http.Response, body []byte, err error)
	}{
		"cut after so many bytes": {vspheretest.Fault{CutAfter: at(1000)}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.True(t, bytes.Equal(want[:1000], body))
		}},
		"cut before the first byte": {vspheretest.Fault{CutAfter: at(0)}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.Empty(t, body)
		}},
		"cut at an offset of the file": {vspheretest.Fault{CutAt: at(off + 77777)}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.True(t, bytes.Equal(want[:77777], body))
		}},
		"cut at an offset that was not asked for": {vspheretest.Fault{CutAt: at(off + n)}, whole(want)},
		"only reads of another part":              {vspheretest.Fault{Status: 500, From: off + n, To: 2 * MiB}, whole(want)},
		"only reads of this part": {vspheretest.Fault{Status: 500, From: off + n - 1, To: off + n}, func(t *testing.T, res *http.Response, _ []byte, err error) {
			require.Equal(t, 500, res.StatusCode)
		}},
		"503 with Retry-After": {vspheretest.Fault{Status: 503, RetryAfter: vspheretest.Duration(1500 * time.Millisecond)}, func(t *testing.T, res *http.Response, _ []byte, err error) {
			require.NoError(t, err)
			require.Equal(t, 503, res.StatusCode)
			require.Equal(t, "2", res.Header.Get("Retry-After"))
		}},
		// Twice, because net/http by itself tries once more on a connection that it had used before.
		"connection closed": {vspheretest.Fault{Drop: true, Times: 2}, func(t *testing.T, res *http.Response, _ []byte, err error) {
			require.ErrorIs(t, err, io.EOF)
			require.Nil(t, res)
		}},
		"a body that is too short": {vspheretest.Fault{Short: 100}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.NoError(t, err, "the client sees a clean end")
			require.True(t, bytes.Equal(want[:n-100], body))
			require.Equal(t, "bytes 524288-1572863/2097152", res.Header.Get("Content-Range"))
		}},
		"a wrong Content-Range": {vspheretest.Fault{WrongRange: true}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.NoError(t, err)
			require.Equal(t, "bytes 524800-1573375/2097152", res.Header.Get("Content-Range"))
			require.True(t, bytes.Equal(want, body))
		}},
		"the range is ignored": {vspheretest.Fault{NoRange: true}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.NoError(t, err)
			require.Equal(t, 200, res.StatusCode)
			require.True(t, bytes.Equal(data, body))
		}},
		"a byte is inverted": {vspheretest.Fault{FlipAt: at(off + 5)}, func(t *testing.T, res *http.Response, body []byte, err error) {
			require.NoError(t, err)
			require.Equal(t, want[5]^0xff, body[5])
			body[5] ^= 0xff
			require.True(t, bytes.Equal(want, body))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := one(t, data)
			c := login(t, s)
			test.fault.File, test.fault.Times = "*-flat.vmdk", max(1, test.fault.Times)
			inject(t, s, test.fault)
			_, _, err := c.get("datastore1", "web-01/web-01.vmdk", "")
			require.NoError(t, err, "other files are spared")
			_, _, err = c.request(http.MethodHead, "datastore1", "web-01/web-01-flat.vmdk", map[string]string{"Range": bytesRange(off, n)})
			require.NoError(t, err, "so is HEAD")
			res, body, err := c.get("datastore1", "web-01/web-01-flat.vmdk", bytesRange(off, n))
			test.check(t, res, body, err)
			res, body, err = c.get("datastore1", "web-01/web-01-flat.vmdk", bytesRange(off, n))
			whole(want)(t, res, body, err)
		})
	}
}

func whole(want []byte) func(t *testing.T, res *http.Response, body []byte, err error) {
	return func(t *testing.T, res *http.Response, body []byte, err error) {
		require.NoError(t, err)
		require.Equal(t, 206, res.StatusCode)
		require.True(t, bytes.Equal(want, body))
	}
}

func TestCutIsCountedAsFarAsItCame(t *testing.T) {
	s := one(t, pattern(2*MiB, 1))
	c := login(t, s)
	n := int64(300_000)
	inject(t, s, vspheretest.Fault{File: "*", Times: 1, CutAfter: &n})
	_, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", bytesRange(MiB, MiB))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	eventually(t, func() bool { return len(s.Requests()) == 1 })
	cov, err := s.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.Equal(t, []vspheretest.Span{{Off: MiB, Len: n, Times: 1}}, cov.Spans)
}

func TestStallLastsUntilSomebodyGivesUp(t *testing.T) {
	s := one(t, pattern(2*MiB, 1))
	c := login(t, s)
	after := int64(1000)
	inject(t, s, vspheretest.Fault{File: "*-flat.vmdk", Stall: true, CutAfter: &after})
	u := object.NewDatastoreURL(*s.URL(), "/DC0", "datastore1", "web-01/web-01-flat.vmdk")
	res, err := c.Client.Client.DownloadRequest(c.ctx, u, &soap.DefaultDownload)
	require.NoError(t, err)
	defer res.Body.Close()
	_, err = io.ReadFull(res.Body, make([]byte, 1000))
	require.NoError(t, err)
	more := make(chan error, 1)
	go func() {
		_, err := res.Body.Read(make([]byte, 1))
		more <- err
	}()
	select {
	case err := <-more:
		t.Fatalf("no byte may come after the stall: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	s.CloseConnections()
	require.Error(t, <-more)
}

func TestRates(t *testing.T) {
	s := one(t, pattern(2*MiB, 1))
	c := login(t, s)
	took := func(streams int) time.Duration {
		begin := time.Now()
		done := make(chan error)
		for i := range streams {
			go func() {
				_, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", bytesRange(int64(i)*MiB/2, MiB/2))
				done <- err
			}()
		}
		for range streams {
			require.NoError(t, <-done)
		}
		return time.Since(begin)
	}
	in := inject(t, s, vspheretest.Fault{File: "*-flat.vmdk", Rate: 2 * MiB})
	require.GreaterOrEqual(t, took(1), 200*time.Millisecond)
	eventually(t, func() bool { return took(4) < 600*time.Millisecond }) // each connection has its own rate
	in.Remove()
	inject(t, s, vspheretest.Fault{File: "*-flat.vmdk", Rate: 2 * MiB, Shared: true})
	require.GreaterOrEqual(t, took(4), 900*time.Millisecond, "all share one rate")
}

func TestReadFaultsAddUp(t *testing.T) {
	data := pattern(2*MiB, 1)
	s := one(t, data)
	c := login(t, s)
	cut := int64(MiB)
	inject(t, s, vspheretest.Fault{File: "*-flat.vmdk", Rate: 4 * MiB})
	inject(t, s, vspheretest.Fault{File: "*-flat.vmdk", CutAt: &cut, Times: 1})
	begin := time.Now()
	_, body, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.True(t, bytes.Equal(data[:MiB], body))
	require.GreaterOrEqual(t, time.Since(begin), 200*time.Millisecond)
}

func TestVMDeletedWhileItIsRead(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{{Size: 256 * MiB}}}}})
	c := login(t, s)
	vm := c.vm("web-01")
	c.snapshot(vm, "a")
	u := object.NewDatastoreURL(*s.URL(), "/DC0", "datastore1", "web-01/web-01-flat.vmdk")
	res, err := c.Client.Client.DownloadRequest(c.ctx, u, &soap.DefaultDownload)
	require.NoError(t, err)
	defer res.Body.Close()
	_, err = io.ReadFull(res.Body, make([]byte, MiB))
	require.NoError(t, err)
	require.NoError(t, s.DeleteVM("web-01"))
	n, err := io.Copy(io.Discard, res.Body)
	require.Error(t, err, "the read breaks off")
	require.Less(t, n, int64(200*MiB))
	again, _, err := c.get("datastore1", "web-01/web-01-flat.vmdk", "")
	require.NoError(t, err)
	require.Equal(t, 404, again.StatusCode)
	_, err = vm.PowerState(c.ctx)
	requireFault(t, err, &types.ManagedObjectNotFound{})
	left, err := s.Snapshots("")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestFaultsThatMakeNoSenseAreRefused(t *testing.T) {
	n := int64(1)
	for want, f := range map[string]vspheretest.Fault{
		"needs a call or a file":   {},
		"go with a call":           {File: "*", Task: true},
		"go with a file":           {Call: "*", CutAt: &n},
		"no fault \"Nonsense\"":    {Call: "*", Fault: "Nonsense"},
		"no fault \"VirtualDisk\"": {Call: "*", Fault: "VirtualDisk"},
		"pattern":                  {File: "["},
		"no HTTP status":           {Call: "*", Status: 99},
		"not negative":             {Call: "*", Skip: -1},
		"not of its task":          {Call: "*", Task: true, Drop: true},
	} {
		require.ErrorContains(t, f.Validate(), want)
	}
}

func TestParseFault(t *testing.T) {
	cut := int64(1_000_000)
	for text, want := range map[string]vspheretest.Fault{
		"file=*-flat.vmdk,cut_after=1000000,times=3":                          {File: "*-flat.vmdk", CutAfter: &cut, Times: 3},
		"call=CreateSnapshot_Task,fault=FileLocked,message=in use,task":       {Call: "CreateSnapshot_Task", Fault: "FileLocked", Message: "in use", Task: true},
		"call=*,status=503,retry_after=1.5s,skip=2,every=3":                   {Call: "*", Status: 503, RetryAfter: vspheretest.Duration(1500 * time.Millisecond), Skip: 2, Every: 3},
		"file=*,rate=1048576,shared=true,stall=false,from=1,to=2,delay=100ms": {File: "*", Rate: 1 << 20, Shared: true, From: 1, To: 2, Delay: vspheretest.Duration(100 * time.Millisecond)},
	} {
		f, err := vspheretest.ParseFault(text)
		require.NoError(t, err, text)
		require.Equal(t, want, f, text)
	}
	for text, want := range map[string]string{
		"":                       "no field",
		"file=*,cutafter=5":      `no field "cutafter"`,
		"file=*,cut_after=x":     "cut_after",
		"call=*,delay=5":         "delay",
		"call=*,drop=perhaps":    "drop",
		"call=*,file=*":          "a call or a file",
		"call=*,-=x":             "no field",
		"file=*,rate=1,times=1x": "times",
	} {
		_, err := vspheretest.ParseFault(text)
		require.ErrorContains(t, err, want, text)
	}
}
