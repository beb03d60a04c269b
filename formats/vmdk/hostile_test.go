package vmdk_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vmdk"
)

// sparseFile is a monolithicSparse disk as Create writes it.
func sparseFile(t testing.TB, d *formatstest.Disk) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	createPath(t, path, d, formats.CreateOptions{})
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// problems are what opening, reading and checking a file finds.
func problems(t testing.TB, b []byte) string {
	t.Helper()
	var all []string
	img, err := vmdk.Open(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	if err == nil {
		defer img.Close()
		_, err = io.Copy(io.Discard, io.NewSectionReader(img, 0, img.Size()))
	}
	if err != nil {
		all = append(all, err.Error())
	}
	rep, err := vmdk.Check(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	if err != nil {
		all = append(all, err.Error())
	}
	all = append(all, rep.Errors...)
	return strings.Join(append(all, rep.Warnings...), "\n")
}

func TestFindsTheLiesOfASparseDisk(t *testing.T) {
	d := formatstest.NewDisk(21, 40<<20)
	good := sparseFile(t, d)
	require.Empty(t, problems(t, good))
	u64 := func(at int) int { return int(le.Uint64(good[at:])) }
	gd, rgd, data := u64(56)*sector, u64(48)*sector, u64(64)*sector
	gt := int(le.Uint32(good[gd:])) * sector
	rgt := int(le.Uint32(good[rgd:])) * sector
	var used []int // places of the entries of stored grains
	for at := gt; at < gt+2*2048; at += 4 {
		if le.Uint32(good[at:]) != 0 {
			used = append(used, at)
		}
	}
	first := le.Uint32(good[used[0]:])
	for _, c := range []struct {
		name  string
		at    int
		value uint64
		width int
		want  string
	}{
		{"version 4", 4, 4, 4, "version 4"},
		{"capacity 2^63", 12, 1 << 63, 8, "capacity"},
		{"capacity beyond the tables", 12, 1 << 30, 8, "grain directory"},
		{"capacity of one sector more", 12, uint64(d.Size()/sector) + 1, 8, "the header has"},
		{"grain size", 20, 100, 8, "grain size"},
		{"descriptor behind the end", 28, 1 << 35, 8, "descriptor"},
		{"descriptor beyond belief", 28, 1 << 60, 8, "descriptor"},
		{"descriptor over the grains", 28, uint64(data / sector), 8, "descriptor"},
		{"no descriptor", 28, 0, 8, "open the descriptor"},
		{"descriptor of exabytes", 36, 1 << 55, 8, "descriptor"},
		{"entries of a table", 44, 1 << 20, 4, "entries in a grain table"},
		{"redundant directory", 48, 1 << 50, 8, "grain directories"},
		{"redundant directory behind the end", 48, 1 << 30, 8, "redundant grain directory"},
		{"directory in the header", 56, 0, 8, "grain directory"},
		{"directory behind the end", 56, 1 << 30, 8, "grain directory"},
		{"directory beyond belief", 56, 1 << 60, 8, "grain directories"},
		{"directory at the end", 56, 1<<64 - 1, 8, "footer"},
		{"not closed", 72, 1, 1, "not closed"},
		{"table behind the end", gd, 1 << 31, 4, "grain table 0"},
		{"table in the header", gd, 0, 4, "redundant grain table 0"},
		{"table in the directory", gd, uint64(gd / sector), 4, "grain table 0 at byte"},
		{"two tables in one", gd + 4, uint64(gt / sector), 4, "grain table 1 at byte"},
		{"redundant table behind the end", rgd, 1 << 31, 4, "redundant grain table 0"},
		{"redundant table differs", rgt + used[0] - gt, 0, 4, "redundant grain table 0 is not"},
		{"grain behind the end", used[0], 1 << 31, 4, "the file ends at"},
		{"grain in the header", used[0], 0xff, 4, "with something else"},
		{"grain in the descriptor", used[0], 3, 4, "in the descriptor"},
		{"grain in the directory", used[0], uint64(gd / sector), 4, "in the grain directory"},
		{"grain in a table", used[0], uint64(gt / sector), 4, "with something else"},
		{"two grains in one", used[1], uint64(first), 4, "with something else"},
		{"a grain half in another", used[1], uint64(first) + 64, 4, "with something else"},
	} {
		bad := bytes.Clone(good)
		for i := range c.width {
			bad[c.at+i] = byte(c.value >> (8 * i))
		}
		start := time.Now()
		require.Contains(t, problems(t, bad), c.want, c.name)
		require.Less(t, time.Since(start), time.Minute, c.name)
	}
}

func TestFindsTheLiesOfAStream(t *testing.T) {
	good, _ := esxiStream(3)
	marks := markers(good)
	table := marks[6] + sector
	footer := len(good) - 2*sector
	for _, c := range []struct {
		name  string
		at    int
		value uint32
		want  string
	}{
		{"table behind the end", int(le.Uint64(good[footer+56:])) * sector, 1 << 31, "grain table 0"},
		{"grain behind the end", table, 1 << 31, "grain 0"},
		{"grain of another place", table, uint32(marks[0] / sector), "sector 896"},
		{"grain in the middle of one", table, uint32(marks[3]/sector) + 1, "grain 0"},
		{"packed size of a grain", marks[3] + 8, 1 << 20, "grain 0"},
		{"packed size 0", marks[3] + 8, 0, "grain 0"},
		{"packed size behind the end", marks[5] + 8, 66000, "grain 10"},
		{"packed into the next", marks[0] + 8, 60000, "with something else"},
	} {
		bad := bytes.Clone(good)
		le.PutUint32(bad[c.at:], c.value)
		require.Contains(t, problems(t, bad), c.want, c.name)
	}
}

func TestChainsThatBiteTheirTail(t *testing.T) {
	dir := t.TempDir()
	write := func(name, parent string) {
		text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=00000001\ncreateType=\"vmfs\"\nparentFileNameHint=%q\nRW 8 ZERO\n", parent)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("a.vmdk", "b.vmdk")
	write("b.vmdk", "c.vmdk")
	write("c.vmdk", "b.vmdk")
	_, err := openPath(t, filepath.Join(dir, "a.vmdk"), formats.OpenOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "leads back")
	for i := range 100 {
		write(fmt.Sprintf("d%d.vmdk", i), fmt.Sprintf("d%d.vmdk", i+1))
	}
	_, err = openPath(t, filepath.Join(dir, "d0.vmdk"), formats.OpenOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "more than")
}

// TestNothingIsOpenedButWhatTheCallerAllows: every name goes through Beside, as it is stored.
func TestNothingIsOpenedButWhatTheCallerAllows(t *testing.T) {
	var asked []string
	beside := func(name string) (formats.Opened, error) {
		asked = append(asked, name)
		return formats.Opened{}, os.ErrPermission
	}
	for _, name := range []string{"/etc/passwd", "../../etc/passwd", `\\.\PhysicalDrive0`, "json:{}", "nbd://host/x"} {
		text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"%s\" 0\n", name)
		asked = nil
		_, err := vmdk.Open(t.Context(), strings.NewReader(text), int64(len(text)), formats.OpenOptions{Beside: beside})
		require.ErrorIs(t, err, os.ErrPermission)
		require.Equal(t, []string{name}, asked)

		text = fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=2\nparentFileNameHint=\"%s\"\ncreateType=\"vmfs\"\nRW 8 ZERO\n", name)
		asked = nil
		_, err = vmdk.Open(t.Context(), strings.NewReader(text), int64(len(text)), formats.OpenOptions{Beside: beside})
		require.ErrorIs(t, err, os.ErrPermission)
		for _, a := range asked {
			require.False(t, filepath.IsAbs(a), "an absolute name becomes the name of a file beside the image")
		}
	}
}

func TestExtentsOfADescriptorMayNotBeDescriptorsOrDevices(t *testing.T) {
	for kind, want := range map[string]string{
		"SPARSE": "no sparse extent", "VMFSSPARSE": "no sparse extent", "SESPARSE": "no seSparse",
		"VMFSRDM": "device", "WHATEVER": "not known",
	} {
		_, err := openPath(t, described(t, "custom", kind, "", 8, append([]byte("# Disk DescriptorFile\nversion=1\n"), make([]byte, 600)...)), formats.OpenOptions{})
		require.ErrorContains(t, err, want, kind)
	}
	path := described(t, "monolithicFlat", "FLAT", "NOACCESS 8 ZERO\nNOACCESS 8 FLAT \"extent.vmdk\" 0", 8, make([]byte, 4096))
	_, err := openPath(t, path, formats.OpenOptions{})
	require.ErrorContains(t, err, "must not be read")
}

// TestLargeDisksNeedLittleMemory walks a disk of 16 TiB of each kind that has tables.
func TestLargeDisksNeedLittleMemory(t *testing.T) {
	const size = 16 << 40
	for _, o := range []formats.CreateOptions{{}, {Subformat: vmdk.StreamOptimized}} {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk.vmdk"))
		require.NoError(t, err)
		defer f.Close()
		var peak uint64
		measure := func() {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
		w, err := vmdk.Create(t.Context(), f, size, o, formats.Checkpoint{})
		require.NoError(t, err)
		for off := int64(0); off < size; off += size / 1000 / grain * grain {
			_, err := w.WriteAt(pattern(byte(off>>40), grain), off)
			require.NoError(t, err)
			if off%7 == 0 {
				measure()
			}
		}
		require.NoError(t, w.Commit(t.Context()))
		measure()
		st, err := f.Stat()
		require.NoError(t, err)
		img, err := vmdk.Open(t.Context(), f, st.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		n := 0
		for e, err := range img.Extents(t.Context(), 0, size) {
			require.NoError(t, err)
			if e.Kind == formats.Data {
				n++
			}
			if n%100 == 0 {
				measure()
			}
		}
		require.Greater(t, n, 999)
		require.NoError(t, img.Close())
		require.Less(t, peak, uint64(64<<20))
	}
}

func TestCancelEndsWalksThatFindNothing(t *testing.T) {
	d := formatstest.NewDisk(22, 2<<20)
	b := sparseFile(t, d)
	img, err := vmdk.Open(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range img.Extents(ctx, 0, img.Size()) {
		require.ErrorIs(t, err, context.Canceled)
	}
	_, err = vmdk.Check(ctx, bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	require.ErrorIs(t, err, context.Canceled)
}
