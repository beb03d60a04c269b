package vsphere_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// stand is a host with a program that stands for nbdkit with the VDDK plugin. It notes what it was
// given, looks at the password, and serves, with the real nbdkit, the disk that it was asked for.
type stand struct {
	*testing.T
	dir     string
	program string
}

// stands is the program. What it serves with is in a file of its own, for tests to replace.
const stands = `#!/bin/sh
lab='%s'
if [ "$1" = --dump-plugin ]; then
  printf '%%s\n' "$*" >>"$lab/probes"
  exec cat "$lab/dump"
fi
printf '%%s\n' "$@" >"$lab/argv"
env >"$lab/env"
echo $$ >"$lab/pid"
if [ "$(cat <&3)" != "$(cat "$lab/password")" ]; then
  echo 'nbdkit: vddk[1]: error: VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password.' >&2
  exit 1
fi
exec 3<&-
options=
while [ "$1" != vddk ]; do options="$options $1"; shift; done
for a; do case $a in snapshot=*) snapshot=${a#*=};; file=*) file=${a#*=};; esac; done
disk="$lab/disks/$snapshot/$(basename "$file" | sed 's/-[0-9]\{6\}\.vmdk$/.vmdk/')"
. "$lab/serve"
`

const works = "path=/usr/lib/nbdkit/plugins/nbdkit-vddk-plugin.so\nname=vddk\nversion=1.32.5\nvddk_default_libdir=/usr/lib64/vmware-vix-disklib\nvddk_library_version=8\n"

func newStand(t *testing.T, password string) *stand {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed; .ci/packages installs it")
	}
	s := &stand{T: t, dir: t.TempDir()}
	s.program = filepath.Join(s.dir, "nbdkit-stand")
	s.write("nbdkit-stand", fmt.Sprintf(stands, s.dir), 0o700)
	s.write("password", password, 0o600)
	s.write("dump", works, 0o600)
	s.serve(`exec nbdkit $options file "$disk"`)
	t.Cleanup(func() { s.gone(0) })
	return s
}

func (s *stand) write(name, text string, mode os.FileMode) {
	s.Helper()
	require.NoError(s, os.WriteFile(filepath.Join(s.dir, name), []byte(text), mode))
}

func (s *stand) read(name string) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	require.NoError(s, err)
	return string(b)
}

// serve says in sh how the disk is served.
func (s *stand) serve(how string) { s.write("serve", how+"\n", 0o600) }

func (s *stand) configure(c *vsphere.Config) {
	c.VDDK.LibDir, c.VDDK.NBDKit = "/opt/vmware-vix-disklib-distrib", s.program
}

var deltaName = regexp.MustCompile(`-\d{6}\.vmdk$`)

// disk puts the content of a disk where the program finds it, with its holes.
func (s *stand) disk(snapshot, file string, content []byte) {
	s.Helper()
	name := filepath.Join(s.dir, "disks", snapshot, deltaName.ReplaceAllString(path.Base(file), ".vmdk"))
	require.NoError(s, os.MkdirAll(filepath.Dir(name), 0o700))
	f, err := os.Create(name)
	require.NoError(s, err)
	defer f.Close()
	require.NoError(s, f.Truncate(int64(len(content))))
	const block = 64 << 10
	zeros := make([]byte, block)
	for off := 0; off < len(content); off += block {
		b := content[off:min(off+block, len(content))]
		if !bytes.Equal(b, zeros[:len(b)]) {
			_, err = f.WriteAt(b, int64(off))
			require.NoError(s, err)
		}
	}
}

// pid is that of the program that was started last, 0 where none was.
func (s *stand) pid() int {
	b, _ := os.ReadFile(filepath.Join(s.dir, "pid"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// gone waits until the program that was started last is no more.
func (s *stand) gone(within time.Duration) {
	s.Helper()
	ended := func() bool { return s.pid() == 0 || syscall.Kill(s.pid(), 0) != nil }
	if !ended() {
		require.Positive(s, within, "nbdkit is still there")
		require.Eventually(s, ended, within, time.Millisecond, "nbdkit is still there after %s", within)
	}
}

// vddkBench is a VM on a TLS server, with a snapshot, and a stand that serves its disk.
type vddkBench struct {
	*stand
	server *vspheretest.Server
	p      *vsphere.Provider
	vm     providers.VM
	snap   providers.Snapshot
	ref    providers.DiskRef
	truth  []byte
}

func setupVDDK(t *testing.T, size int64, change ...func(*vsphere.Config)) *vddkBench {
	t.Helper()
	server := vspheretest.Start(t, vspheretest.Options{TLS: true, VMs: []vspheretest.VM{{Name: "web-01", Disks: []vspheretest.Disk{disk(7, size)}}}})
	b := &vddkBench{stand: newStand(t, server.Password()), server: server}
	b.p = connect(t, server, append([]func(*vsphere.Config){b.configure}, change...)...)
	b.snapshot("job/1")
	return b
}

func (b *vddkBench) snapshot(key string) {
	b.Helper()
	var err error
	b.vm, err = b.p.VM(b.Context(), "web-01")
	require.NoError(b, err)
	b.snap, err = b.p.Snapshot(b.Context(), b.vm.ID, providers.SnapshotOptions{Key: key})
	require.NoError(b, err)
	b.ref = providers.DiskRef{VM: b.vm.ID, Snapshot: b.snap.ID, Disk: b.snap.Disks[0].ID, Transport: vsphere.VDDK}
	b.truth = content(b.T, b.server, "web-01", 0, string(b.snap.ID))
	b.disk(string(b.snap.ID), b.snap.Disks[0].Path, b.truth)
}

func (b *vddkBench) open(ctx context.Context) formats.Image {
	b.Helper()
	im, err := b.p.OpenDisk(ctx, b.ref)
	require.NoError(b, err)
	b.Cleanup(func() { im.Close() })
	return im
}
