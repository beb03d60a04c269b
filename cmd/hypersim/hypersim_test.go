package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"

	"hypersdk/providers/vsphere/vspheretest"
)

// build makes the binary once for all tests of the package.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hypersim")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// process is a hypersim that runs.
type process struct {
	t          *testing.T
	cmd        *exec.Cmd
	url, print string
}

func start(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "HYPERSIM_PASSWORD=geheim")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	m := regexp.MustCompile(`^hypersim: ready (\S+/sdk)(?: thumbprint (\S+))? user `).FindStringSubmatch(line)
	require.NotNil(t, m, line)
	return &process{t: t, cmd: cmd, url: m[1], print: m[2]}
}

func (p *process) stop(signal os.Signal) error {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(signal))
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		p.t.Fatal("it does not stop")
		return nil
	}
}

func (p *process) login() *govmomi.Client {
	p.t.Helper()
	u, err := url.Parse(p.url)
	require.NoError(p.t, err)
	u.User = url.UserPassword("administrator@vsphere.local", "geheim")
	c, err := govmomi.NewClient(p.t.Context(), u, true)
	require.NoError(p.t, err)
	p.t.Cleanup(c.CloseIdleConnections)
	return c
}

func (p *process) state() (s vspheretest.State) {
	p.t.Helper()
	res, err := http.Get(strings.TrimSuffix(p.url, "sdk") + "hypersim/state")
	require.NoError(p.t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(p.t, err)
	require.NoError(p.t, json.Unmarshal(data, &s), "%s", data)
	return s
}

func TestProcess(t *testing.T) {
	binary, data := build(t), t.TempDir()
	image := filepath.Join(t.TempDir(), "a,b.img")
	require.NoError(t, os.WriteFile(image, []byte(strings.Repeat("content ", 4096)), 0o600))
	args := []string{
		"--listen", "127.0.0.1:0", "--data", data, "--vms", "3",
		"--vm", "name=web-01,folder=a/b,cpu=4,memory=8GiB,disk=" + strings.ReplaceAll(image, ",", `\,`) + ",disk=64MiB:8MiB:5",
		"--fault", "call=CreateSnapshot_Task,fault=FileLocked,task,times=1",
	}
	p := start(t, binary, args...)
	c := p.login()
	vm, err := find.NewFinder(c.Client).VirtualMachine(t.Context(), "/DC0/vm/a/b/web-01")
	require.NoError(t, err)
	snapshot := func() error {
		task, err := vm.CreateSnapshot(t.Context(), "a", "", false, false)
		require.NoError(t, err)
		return task.Wait(t.Context())
	}
	require.Error(t, snapshot(), "the fault of the command line")
	require.NoError(t, snapshot())
	before := p.state()
	require.Len(t, before.VMs, 4)
	require.Equal(t, int64(32768), before.VMs[0].Disks[0].Size)
	require.Equal(t, int64(64<<20), before.VMs[0].Disks[1].Size)
	raw, err := os.ReadFile(before.VMs[0].Disks[0].File)
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("content ", 4096), string(raw))

	require.Error(t, p.stop(syscall.SIGKILL))
	require.NoError(t, os.Remove(image)) // not needed again
	p = start(t, binary, args...)
	after := p.state()
	require.Equal(t, before.VMs, after.VMs)
	require.Equal(t, before.Snapshots, after.Snapshots)
	require.NoError(t, p.stop(syscall.SIGTERM), "a clean stop")

	p = start(t, binary, "--listen", "127.0.0.1:0", "--tls")
	require.Regexp(t, `^https://127\.0\.0\.1:\d+/sdk$`, p.url)
	require.Regexp(t, `^([0-9A-F]{2}:){19}[0-9A-F]{2}$`, p.print)
	require.NoError(t, p.login().Logout(t.Context()))
	require.NoError(t, p.stop(os.Interrupt))
}

func TestFailsInOneSentence(t *testing.T) {
	for want, args := range map[string][]string{
		`--vm "cpu=4": it needs a name`:                               {"--vm", "cpu=4"},
		`there is no property "colour" of a VM`:                       {"--vm", "name=a,colour=red"},
		`cpu: strconv.Atoi: parsing "many": invalid syntax`:           {"--vm", "name=a,cpu=many"},
		`data of "2GiB" do not fit into 1GiB`:                         {"--vm", "name=a,disk=1GiB:2GiB"},
		`no such file or directory`:                                   {"--listen", "127.0.0.1:0", "--vm", "name=a,disk=/nowhere/a.img"},
		`fault: it needs a call or a file`:                            {"--fault", "times=1"},
		`unknown type "zfs"`:                                          {"--datastore", "a:zfs"},
		`vspheretest: listen: listen tcp: address mars: missing port`: {"--listen", "mars"},
	} {
		c := command()
		c.SetArgs(args)
		c.SetOut(io.Discard)
		require.ErrorContains(t, c.ExecuteContext(t.Context()), want)
	}
}

func TestParseVM(t *testing.T) {
	vm, err := parseVM(`name=a\,b "c",folder=x/y,datastore=fast,datacenter=DC1,cpu=8,memory=16GiB,guest=rhel9_64Guest,firmware=efi,` +
		`host=db-01,ip=192.0.2.1,ip=2001:db8::1,iso=[fast] a.iso,nics=2,off,template,annotation=all=of it,disk=1T,disk=512`)
	require.NoError(t, err)
	require.Equal(t, vspheretest.VM{
		Name: `a,b "c"`, Folder: "x/y", Datastore: "fast", Datacenter: "DC1", NumCPU: 8, MemoryMB: 16384, GuestID: "rhel9_64Guest",
		Firmware: "efi", Hostname: "db-01", Addresses: []string{"192.0.2.1", "2001:db8::1"}, ISO: "[fast] a.iso", NICs: 2,
		PoweredOff: true, Template: true, Annotation: "all=of it", Disks: []vspheretest.Disk{{Size: 1 << 40}, {Size: 512}},
	}, vm)
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "512B": 512, "4K": 4096, "4KiB": 4096, "3M": 3 << 20, "2GiB": 2 << 30, "1T": 1 << 40} {
		n, err := parseSize(text)
		require.NoError(t, err)
		require.Equal(t, want, n, text)
	}
	for _, text := range []string{"", "0", "-1", "4X", "G", "4 GiB", "4iB", "99999999T", "1e3", "/a/file"} {
		_, err := parseSize(text)
		require.Error(t, err, text)
	}
}
