package endtoend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/raw"
)

// A chain on this host is looked at, flattened and merged without a daemon; whatever is killed on the way
// leaves a whole chain and goes on when it is asked for again.
func TestChainWithoutADaemon(t *testing.T) {
	t.Parallel()
	const size = 768 * mib
	dir, out := t.TempDir(), t.TempDir()
	disk := rawImage(t, filepath.Join(t.TempDir(), "disk.raw"), size, 1)
	newest := writeLocalChain(t, dir, disk, size, 3)

	hyperctl := func(args ...string) *process {
		return start(t, nil, "hyperctl", append([]string{"image", "chain"}, args...)...)
	}
	run := func(code int, args ...string) string {
		t.Helper()
		p := hyperctl(args...)
		require.Equal(t, code, p.wait(2*time.Minute), p.output())
		return p.output()
	}
	// killed runs a command until a file that it writes is so long, and kills it.
	killed := func(file string, args ...string) {
		t.Helper()
		p := hyperctl(args...)
		require.Eventually(t, func() bool {
			info, err := os.Stat(file)
			return p.ended() || err == nil && info.Size() > 200*mib
		}, 2*time.Minute, time.Millisecond)
		p.kill()
		require.Error(t, p.err, "it was not done yet")
	}

	require.Contains(t, run(0, "list", dir), "first point of the chain")
	require.Contains(t, run(0, "check", dir), "No errors were found in the chain: 3 points in 3 files")

	flat := filepath.Join(out, "flat.qcow2")
	flatten := []string{"flatten", "-O", "qcow2", "-m", "1", dir, flat}
	killed(filepath.Join(out, ".flat.qcow2.part"), flatten...)
	require.NoFileExists(t, flat)
	require.Contains(t, run(0, flatten...), "going on at ")
	qemu(t, "compare", "-f", "qcow2", "-F", "raw", flat, disk)
	require.Contains(t, run(1, flatten...), "exists already")

	killed(filepath.Join(dir, ".disk0-000002.qcow2.part"), "merge", "-m", "1", "--up-to", "2", dir)
	require.Contains(t, run(3, "check", dir), "left over: .disk0-000002.qcow2.part")
	qemu(t, "compare", "-f", "qcow2", "-F", "raw", filepath.Join(dir, newest), disk)
	run(0, "merge", "--up-to", "2", dir)
	require.Contains(t, run(0, "check", dir), "2 points in 2 files")
	qemu(t, "compare", "-f", "qcow2", "-F", "raw", filepath.Join(dir, newest), disk)

	require.NoError(t, os.Remove(filepath.Join(dir, "disk0-000002.qcow2")))
	require.Contains(t, run(2, "check", dir), "problem: point 2, disk scsi0:0, disk0-000002.qcow2: it is missing")
	var report cbt.CheckReport
	require.NoError(t, json.Unmarshal([]byte(run(2, "check", "--json", "--depth", "links", dir)), &report))
	require.Equal(t, "disk0-000002.qcow2", report.Problems[0].File)
	require.Contains(t, run(1, "flatten", "--force", "-O", "qcow2", dir, flat), "disk0-000002.qcow2")
	qemu(t, "compare", "-f", "qcow2", "-F", "raw", flat, disk)
}

// writeLocalChain makes a chain of so many points of a disk, which it changes in between, and answers the
// file of the newest.
func writeLocalChain(t *testing.T, dir, disk string, size int64, points int) (file string) {
	t.Helper()
	c, err := cbt.Create(t.Context(), dir, cbt.VM{ID: "vm-1", Name: "web-01"}, cbt.Options{})
	require.NoError(t, err)
	defer c.Close()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	for n := range points {
		p := cbt.NewPoint{Key: fmt.Sprint(n), Time: time.Now(), Disks: []cbt.NewDisk{{Disk: "scsi0:0", Size: size}}}
		if n > 0 {
			_, err := f.WriteAt(bytes.Repeat([]byte{byte(n)}, mib), int64(n)*99*mib)
			require.NoError(t, err)
		}
		img, err := raw.Open(t.Context(), f, size, formats.OpenOptions{})
		require.NoError(t, err)
		if n > 0 {
			changes, err := c.Compare(t.Context(), p, "scsi0:0", img, formats.VerifyOptions{})
			require.NoError(t, err)
			require.EqualValues(t, mib, changes.Ranges.Bytes())
			p.Disks[0].Changes = &changes
		}
		a, err := c.Begin(t.Context(), p)
		require.NoError(t, err)
		_, err = a.Copy(t.Context(), "scsi0:0", img, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, a.Verify(t.Context(), "scsi0:0", formats.VerifyOptions{}))
		require.NoError(t, a.Commit(t.Context()))
	}
	m := c.Manifest()
	return m.Newest().Disks[0].File
}
