package endtoend

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/ovf"
	"golang.org/x/sys/unix"

	"hypersdk/activities"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// packaged waits for an export as a package to be completed, unpacks it as anybody would, and checks every
// byte of it with programs of others. It answers the folder with the unpacked files.
func (l *lab) packaged(id, vm string, within time.Duration) (job.Job, string) {
	l.t.Helper()
	j := l.end(id, within)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.Empty(l.t, j.Result.Leftover)
	l.tidy(vm)
	dir := j.Result.OutputDir
	if strings.HasSuffix(j.Result.OVFPath, ".ova") {
		dir = l.t.TempDir()
		out, err := exec.CommandContext(l.t.Context(), "tar", "-C", dir, "-xvf", j.Result.OVFPath).CombinedOutput()
		require.NoError(l.t, err, "%s", out)
		members := strings.Fields(string(out))
		require.Equal(l.t, ".ovf", filepath.Ext(members[0]), "the descriptor comes first")
		require.Equal(l.t, ".mf", filepath.Ext(members[1]))
	}
	for _, f := range j.Result.Files {
		require.FileExists(l.t, f)
	}
	entries, err := os.ReadDir(j.Result.OutputDir)
	require.NoError(l.t, err)
	require.Len(l.t, j.Result.Files, len(entries), "nothing is there that the result does not name")
	l.sums(dir)
	l.described(dir, j)
	for i, d := range j.Result.Disks {
		file := filepath.Join(dir, d.File)
		truth, err := l.sim.Disk(vm, i)
		require.NoError(l.t, err)
		require.Equal(l.t, digestOf(l.t, truth, truth.Size()), digestOfFile(l.t, file, "vmdk"))
		require.Equal(l.t, digestOf(l.t, truth, truth.Size()), d.Digest)
		out, err := exec.CommandContext(l.t.Context(), "qemu-img", "check", file).CombinedOutput()
		require.NoError(l.t, err, "%s", out)
		raw := filepath.Join(l.t.TempDir(), "raw")
		l.write(truth, truth.Size(), raw)
		out, err = exec.CommandContext(l.t.Context(), "qemu-img", "compare", "-f", "vmdk", "-F", "raw", file, raw).CombinedOutput()
		require.NoError(l.t, err, "%s", out)
		require.NoError(l.t, os.Remove(raw))
	}
	return j, dir
}

// write writes a disk into a raw file.
func (l *lab) write(r interface {
	ReadAt([]byte, int64) (int, error)
}, size int64, path string) {
	l.t.Helper()
	f, err := os.Create(path)
	require.NoError(l.t, err)
	defer f.Close()
	require.NoError(l.t, f.Truncate(size))
	b := make([]byte, mib)
	for off := int64(0); off < size; off += mib {
		n := min(mib, size-off)
		if got, err := r.ReadAt(b[:n], off); int64(got) < n {
			require.NoError(l.t, err)
		}
		_, err := f.WriteAt(b[:n], off)
		require.NoError(l.t, err)
	}
}

// sums checks the manifest of a package with sha256sum.
func (l *lab) sums(dir string) {
	l.t.Helper()
	manifests, err := filepath.Glob(filepath.Join(dir, "*.mf"))
	require.NoError(l.t, err)
	require.Len(l.t, manifests, 1)
	b, err := os.ReadFile(manifests[0])
	require.NoError(l.t, err)
	line := regexp.MustCompile(`(?m)^SHA256\((.*)\)= ([0-9a-f]{64})$`)
	require.Len(l.t, line.FindAll(b, -1), strings.Count(string(b), "\n"), "%s", b)
	cmd := exec.CommandContext(l.t.Context(), "sha256sum", "-c", "-")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(line.ReplaceAllString(string(b), "$2  $1"))
	out, err := cmd.CombinedOutput()
	require.NoError(l.t, err, "%s", out)
}

// described reads the descriptor with VMware's own code.
func (l *lab) described(dir string, j job.Job) {
	l.t.Helper()
	descriptors, err := filepath.Glob(filepath.Join(dir, "*.ovf"))
	require.NoError(l.t, err)
	require.Len(l.t, descriptors, 1)
	f, err := os.Open(descriptors[0])
	require.NoError(l.t, err)
	defer f.Close()
	e, err := ovf.Unmarshal(f)
	require.NoError(l.t, err)
	require.Len(l.t, e.References, len(j.Result.Disks))
	for i, d := range j.Result.Disks {
		require.Equal(l.t, d.File, e.References[i].Href)
		require.EqualValues(l.t, d.Stored, e.References[i].Size)
		require.Equal(l.t, fmt.Sprint(d.Size), e.Disk.Disks[i].Capacity)
		require.Equal(l.t, e.References[i].ID, *e.Disk.Disks[i].FileRef)
	}
	require.NotNil(l.t, e.VirtualSystem)
	require.Equal(l.t, "ubuntu64Guest", *e.VirtualSystem.OperatingSystem.OSType)
	if xmllint, err := exec.LookPath("xmllint"); err == nil {
		out, err := exec.CommandContext(l.t.Context(), xmllint, "--noout", descriptors[0]).CombinedOutput()
		require.NoError(l.t, err, "%s", out)
	} else {
		l.t.Log("xmllint is not installed (package libxml2-utils): no other parser has read the descriptor")
	}
}

func TestPackages(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 130*mib, 33*mib), vm(strings.Repeat("long", 45), 2*mib)}})
	l.up()
	names := func(j job.Job) (out []string) {
		entries, err := os.ReadDir(j.Result.OutputDir)
		require.NoError(t, err)
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	s := l.spec("web-01", "qcow2")
	l.completed(l.submit(s), "web-01", time.Minute)
	s.Options.Overwrite = true

	t.Run("ova, in place of an export as qcow2", func(t *testing.T) {
		s.Format = "ova"
		j, _ := l.packaged(l.submit(s), "web-01", time.Minute)
		require.Equal(t, filepath.Join(l.exports, "web-01", "web-01.ova"), j.Result.OVFPath)
		require.Equal(t, []string{"manifest.json", "web-01-disk-1.vmdk.digests", "web-01-disk-2.vmdk.digests", "web-01.ova"}, names(j))
		var m activities.Manifest
		b, err := os.ReadFile(filepath.Join(j.Result.OutputDir, "manifest.json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &m))
		require.Equal(t, sha256File(t, j.Result.OVFPath), m.Package.Files[0].SHA256)
		require.Equal(t, "web-01.ova", m.Disks[0].Archive)
	})
	t.Run("ovf, in place of an ova", func(t *testing.T) {
		s.Format = "ovf"
		j, _ := l.packaged(l.submit(s), "web-01", time.Minute)
		require.Equal(t, j.Result.OVFPath, j.Result.Files[0])
		require.NotContains(t, names(j), "web-01.ova")
		for _, d := range j.Result.Disks {
			require.Equal(t, d.SHA256, sha256File(t, filepath.Join(j.Result.OutputDir, d.File)))
		}
	})
	t.Run("without verification", func(t *testing.T) {
		for _, format := range []string{"ova", "ovf"} {
			s := s
			s.Format, s.Options.NoVerify = format, true
			l.packaged(l.submit(s), "web-01", time.Minute)
		}
	})
	for _, compress := range []bool{true, false} {
		t.Run(fmt.Sprintf("vmdk, compressed %t, in place of a package", compress), func(t *testing.T) {
			s := s
			s.Format, s.Compress = "vmdk", compress
			j := l.completed(l.submit(s), "web-01", time.Minute)
			require.Empty(t, j.Result.OVFPath)
			require.Equal(t, []string{"manifest.json", "web-01-disk-1.vmdk", "web-01-disk-1.vmdk.digests", "web-01-disk-2.vmdk", "web-01-disk-2.vmdk.digests"}, names(j))
			out, err := exec.CommandContext(t.Context(), "qemu-img", "info", filepath.Join(j.Result.OutputDir, "web-01-disk-1.vmdk")).CombinedOutput()
			require.NoError(t, err)
			want := "create type: monolithicSparse"
			if compress {
				want = "create type: streamOptimized"
			}
			require.Contains(t, string(out), want)
		})
	}
	t.Run("not over an earlier export unasked", func(t *testing.T) {
		s := s
		s.Format, s.Options.Overwrite = "ova", false
		j := l.end(l.submit(s), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "overwrite")
		l.tidy("web-01")
	})
	t.Run("what cannot be is refused in a sentence", func(t *testing.T) {
		no := false
		s := s
		s.Format, s.Thin = "ova", &no
		j := l.end(l.submit(s), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "leave out thin: false")
	})
	t.Run("a name that is too long for an archive is shortened", func(t *testing.T) {
		j, _ := l.packaged(l.submit(l.spec(strings.Repeat("long", 45), "ova")), strings.Repeat("long", 45), time.Minute)
		require.LessOrEqual(t, len(j.Result.Disks[0].File), 100)
	})
}

// The daemon is killed while it packs: what was copied is not copied again, and nothing is there twice.
func TestArchiveKilledWhilePacking(t *testing.T) {
	t.Parallel()
	const size = 420 * mib
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", size, 120*mib)}})
	l.up()
	id := l.submit(l.spec("web-01", "ova"))
	for i := range 4 {
		j := l.until(id, 2*time.Minute, "it is packing or further", func(j job.Job) bool {
			return j.Progress != nil && (j.Progress.Phase == job.Package || j.Progress.Phase == job.Verify)
		})
		pause(t, time.Duration(i)*150*time.Millisecond) // further on, or in the verification
		t.Logf("killed at %s, %d of %d bytes", j.Progress.Phase, j.Progress.BytesTransferred, j.Progress.TotalBytes)
		l.daemon.kill()
		l.up()
	}
	l.packaged(id, "web-01", 2*time.Minute)
	c, err := l.sim.ServedDisk("web-01", 0)
	require.NoError(t, err)
	require.LessOrEqual(t, c.Again(), int64(512), "nothing was read from the source again")
}

// The target is full while a disk is put into the archive.
func TestArchiveDiskFull(t *testing.T) {
	t.Parallel()
	folder, ok := small(t, "900m")
	if !ok {
		return
	}
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 420*mib, 60*mib)}})
	// How large the disks become is found out beside.
	l.up("--space-pace", "1s")
	first, _ := l.packaged(l.submit(l.spec("web-01", "ova")), "web-01", 2*time.Minute)
	l.exports = folder
	ballast := filepath.Join(folder, "something else")

	// full submits a job that gets no further than some way into the first disk of its archive.
	full := func(t *testing.T) string {
		s := l.spec("web-01", "ova")
		s.Options.LimitMBps = 40
		id := l.submit(s)
		l.moved(id, 10*mib)
		f, err := os.Create(ballast)
		require.NoError(t, err)
		defer f.Close()
		parts := first.Result.Disks[0].Stored + first.Result.Disks[1].Stored
		used := int64(0)
		for _, h := range l.hidden() {
			st, err := os.Stat(h)
			require.NoError(t, err)
			used += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		room := parts - used + first.Result.Disks[0].Stored*3/4
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, free(t, folder)-room))
		l.unlimited(id)
		j := l.until(id, 2*time.Minute, "it waits for room", func(j job.Job) bool { return j.Progress.WaitingFor != "" && j.Progress.Phase == job.Package })
		require.Contains(t, j.Progress.WaitingFor, "into web-01.ova")
		return id
	}
	t.Run("the job goes on when there is room, also after a kill", func(t *testing.T) {
		l.sim.ResetRecord()
		id := full(t)
		l.daemon.kill()
		l.up("--space-pace", "1s")
		l.until(id, time.Minute, "it waits for room again", func(j job.Job) bool { return strings.Contains(j.Progress.WaitingFor, "room") })
		require.NoError(t, os.Remove(ballast))
		j, _ := l.packaged(id, "web-01", 2*time.Minute)
		require.Equal(t, first.Result.Disks[0].SHA256, j.Result.Disks[0].SHA256)
		log, _, _ := l.hyperctl("logs", id)
		require.Regexp(t, `packed.*from=?\S*67108864`, log, "what was in the archive was not copied again")
		require.NoError(t, os.RemoveAll(filepath.Join(folder, "web-01")))
	})
	t.Run("cancelled, it leaves nothing", func(t *testing.T) {
		id := full(t)
		_, err := l.api.Cancel(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, job.Cancelled, l.end(id, time.Minute).Status)
		l.tidy("web-01")
		require.NoDirExists(t, filepath.Join(folder, "web-01"))
		require.NoError(t, os.Remove(ballast))
	})
	require.Zero(t, l.daemon.stop(30*time.Second))
}
