package endtoend

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// stands is a program in the place of nbdkit with the VDDK plugin: it wants the right password, and lets
// the real nbdkit serve the disk from a file.
const stands = `#!/bin/sh
if [ "$1" = --dump-plugin ]; then printf 'name=vddk\nversion=1.32.5\nvddk_library_version=8\n'; exit; fi
printf '%%s\n' "$@" >>'%[1]s/argv'
echo $$ >>'%[1]s/pids'
if [ "$(cat <&3)" != "$(cat '%[1]s/password')" ]; then
  echo 'nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: Incorrect user name or password' >&2
  exit 1
fi
while [ "$1" != vddk ]; do options="$options $1"; shift; done
exec nbdkit $options file '%[1]s/disk'
`

// vddkLab is a lab whose connection "lab" has a VDDK, and one VM, "web-01", with one disk.
type vddkLab struct {
	*lab
	dir string
}

func newVDDKLab(t *testing.T, size int64, datastore string) *vddkLab {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed; .ci/packages installs it")
	}
	l := &vddkLab{newLab(t, vspheretest.Options{TLS: true, VMs: []vspheretest.VM{vm("web-01", size)},
		Datastores: []vspheretest.Datastore{{Name: "datastore1", Type: datastore}}}), t.TempDir()}
	l.env = nil
	program := filepath.Join(l.dir, "nbdkit-stand")
	require.NoError(t, os.WriteFile(program, fmt.Appendf(nil, stands, l.dir), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "password"), []byte(l.sim.Password()), 0o600))
	im, err := l.sim.Disk("web-01", 0)
	require.NoError(t, err)
	f, err := os.Create(filepath.Join(l.dir, "disk"))
	require.NoError(t, err)
	_, err = io.Copy(f, io.NewSectionReader(im, 0, im.Size()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	l.up("--config", l.config(program))
	return l
}

func (l *vddkLab) config(program string) string {
	return l.connection(fmt.Sprintf("vddk: {libdir: /opt/vmware-vix-disklib-distrib, nbdkit: %q}", program))
}

// pids are those of all that served a disk so far.
func (l *vddkLab) pids() (out []int) {
	b, _ := os.ReadFile(filepath.Join(l.dir, "pids"))
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		require.NoError(l.t, err)
		out = append(out, pid)
	}
	return out
}

// runs says whether a process does more than wait for somebody to ask how it ended.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0
}

func TestExportThroughVDDK(t *testing.T) {
	t.Parallel()
	l := newVDDKLab(t, 300*mib, "VMFS")
	caps, err := l.api.Capabilities(t.Context())
	require.NoError(t, err)
	require.Contains(t, caps.Transports, "vddk")

	s := l.spec("web-01", "qcow2")
	s.Options.Transport, s.Options.LimitMBps = "vddk", 60
	id := l.submit(s)
	l.moved(id, 120*mib)
	serving := l.pids()
	require.Len(t, serving, 1)
	require.True(t, runs(serving[0]))
	l.daemon.kill()
	l.eventually(5*time.Second, "nbdkit ends with its daemon", func() bool { return !runs(serving[0]) })

	l.up(l.daemon.cmd.Args[len(l.daemon.cmd.Args)-2:]...)
	l.unlimited(id)
	j := l.completed(id, "web-01", 2*time.Minute)
	require.Equal(t, "vddk", j.Result.Transport)
	require.Positive(t, j.Result.Disks[0].Retries)
	c, err := l.sim.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.Zero(t, c.Sent(), "not a byte of the disk came over HTTP")
	require.Len(t, l.pids(), 2)
	for _, pid := range l.pids() {
		require.False(t, runs(pid), "nbdkit is still there")
	}
	argv, err := os.ReadFile(filepath.Join(l.dir, "argv"))
	require.NoError(t, err)
	require.Contains(t, string(argv), "file=[datastore1] web-01/")
	for _, text := range []string{string(argv), l.daemon.output()} {
		require.NotContains(t, text, l.sim.Password())
	}
}

func TestVDDKIsTakenWhereTheDatastoreCannotBeRead(t *testing.T) {
	t.Parallel()
	l := newVDDKLab(t, 8*mib, "vsan")
	id := l.submit(l.spec("web-01", "raw"))
	j := l.completed(id, "web-01", time.Minute)
	require.Equal(t, "vddk", j.Result.Transport)
	require.Contains(t, l.job(id).Progress.TransportReason, "datastore: Hard disk 1 is on datastore")

	// What VDDK refuses, a lease may still give.
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "nbdkit-stand"), []byte(`#!/bin/sh
if [ "$1" = --dump-plugin ]; then printf 'name=vddk\nversion=1.32.5\nvddk_library_version=8\n'; exit; fi
echo 'nbdkit: vddk[1]: error: VixDiskLib_Open: You do not have access rights to this file' >&2; exit 1
`), 0o700))
	s := l.spec("web-01", "raw")
	s.Options.Overwrite = true
	id = l.submit(s)
	j = l.completed(id, "web-01", time.Minute)
	require.Equal(t, "nfc", j.Result.Transport)
	require.Contains(t, l.job(id).Progress.TransportReason, "vddk: ")
}

func TestVDDKThatIsNotThere(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib)}})
	l.up()
	s := l.spec("web-01", "raw")
	s.Options.Transport = "vddk"
	j := l.end(l.submit(s), time.Minute)
	require.Equal(t, job.Failed, j.Status)
	require.Contains(t, j.Error, "set vddk.libdir of the connection")
	_, errs, code := l.hyperctl("submit", "--vm", "web-01", "--output", l.exports, "--transport", "pigeon")
	require.NotZero(t, code)
	require.Contains(t, errs, "vddk")
}
