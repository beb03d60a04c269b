package endtoend

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// insideVariable tells a test that it runs again in a namespace where it may mount.
const insideVariable = "ENDTOEND_MOUNTS"

// small is a file system of its own with so little room, for a lab's exports. Who may not mount runs
// the test again in a namespace of its own, where everybody may; false where that has been done.
func small(t *testing.T, size string) (folder string, ok bool) {
	t.Helper()
	folder = t.TempDir()
	err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size="+size)
	if err == nil {
		t.Cleanup(func() { require.NoError(t, unix.Unmount(folder, unix.MNT_DETACH)) })
		return folder, true
	}
	if !errors.Is(err, unix.EPERM) || os.Getenv(insideVariable) != "" {
		t.Skipf("no file system of its own can be mounted, so none can be filled: %s", err)
	}
	own := []string{"--user", "--map-root-user", "--mount"}
	if out, err := exec.CommandContext(t.Context(), "unshare", append(own, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted: this is not root, and unshare gives no namespace: %s: %s", err, out)
	}
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "unshare", append(own, self, "-test.v", "-test.run", "^"+t.Name()+"$")...)
	cmd.Env = append(os.Environ(), insideVariable+"=1", "HYPERSDK_BIN="+bin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("%s", out)
	}
	return folder, false
}

// free is the bytes that are free where path is.
func free(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return int64(st.Bavail) * st.Bsize
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	folder, ok := small(t, "160m")
	if !ok {
		return
	}
	const size = 96 * mib
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", size), vm("large-01", 400*mib)}})
	l.exports = folder
	l.up("--space-pace", "2s")

	t.Run("a job waits until there is room", func(t *testing.T) {
		s := l.spec("web-01", "raw")
		s.Options.LimitMBps = 10
		id := l.submit(s)
		l.moved(id, 10*mib)
		ballast := filepath.Join(folder, "something else")
		f, err := os.Create(ballast)
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, free(t, folder)-8*mib))
		l.unlimited(id)

		j := l.until(id, time.Minute, "it waits for room", func(j job.Job) bool { return j.Progress.WaitingFor != "" })
		require.Equal(t, job.Running, j.Status)
		require.Equal(t, job.Transfer, j.Progress.Phase)
		require.Contains(t, j.Progress.WaitingFor, "room")
		require.Contains(t, j.Progress.WaitingFor, folder, "it says where")
		out, _, code := l.hyperctl("status", id)
		require.Zero(t, code)
		require.Contains(t, out, "no space left")

		require.NoError(t, os.Remove(ballast))
		require.NoError(t, f.Close())
		l.completed(id, "web-01", 2*time.Minute)
		c, err := l.sim.ServedDisk("web-01", 0)
		require.NoError(t, err)
		require.LessOrEqual(t, c.Again(), int64(segment), "what was copied before it was full is not read again")
		require.NoError(t, os.RemoveAll(j.Definition.OutputPath+"/web-01"))
	})
	t.Run("a job that cannot fit is refused before it begins", func(t *testing.T) {
		j := l.end(l.submit(l.spec("large-01", "raw")), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "not enough space in "+folder)
		require.Zero(t, l.sim.Calls()["CreateSnapshot_Task"]-1, "no snapshot is taken for it")
		l.tidy("large-01")
		served, err := l.sim.ServedDisk("large-01", 0)
		require.NoError(t, err)
		require.Zero(t, served.Sent())
	})
	require.Zero(t, l.daemon.stop(30*time.Second))
}
