package raw_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
)

func file(t testing.TB) *os.File {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// ext4 ends at 16 TiB less a block.
const largest = 15 << 40

func TestExam(t *testing.T) {
	for name, h := range map[string]formatstest.Harness{
		"file":      {NewFile: func(t testing.TB) formats.File { return file(t) }, Qemu: "raw", Unit: 512, MaxSize: largest},
		"odd sizes": {Unit: 1, Sizes: []int64{4097, 1<<20 + 1}, MaxSize: largest + 1, Dense: true},
		"full":      {Options: formats.CreateOptions{Prealloc: "full"}, NewFile: func(t testing.TB) formats.File { return file(t) }, MaxSize: 20 << 20, Dense: true},
	} {
		t.Run(name, func(t *testing.T) {
			h.Format, h.Headerless, h.ExamSize = raw.Format(), true, 3<<19
			formatstest.Run(t, h)
		})
	}
}

func stored(t *testing.T, f *os.File) int64 {
	var st syscall.Stat_t
	require.NoError(t, syscall.Fstat(int(f.Fd()), &st))
	return st.Blocks * 512
}

func TestHolesStayHoles(t *testing.T) {
	f := file(t)
	w, err := raw.Create(t.Context(), f, 64<<20, formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(0, 64<<20))
	require.Zero(t, stored(t, f))
	_, err = w.WriteAt(make([]byte, 1<<20), 8<<20)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, stored(t, f))
	require.NoError(t, w.WriteZeroes(8<<20, 1<<20))
	require.Zero(t, stored(t, f), "zeros over data punch a hole")
	require.NoError(t, w.Commit(t.Context()))
}

func TestWhatACrashLeftBehindTheCheckpointBecomesAHole(t *testing.T) {
	f := file(t)
	junk := make([]byte, 4<<20)
	for i := range junk {
		junk[i] = 0xee
	}
	_, err := f.WriteAt(junk, 0)
	require.NoError(t, err)
	w, err := raw.Create(t.Context(), f, 6<<20, formats.CreateOptions{}, formats.Checkpoint{Off: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(1<<20, 5<<20))
	require.NoError(t, w.Commit(t.Context()))
	require.EqualValues(t, 1<<20, stored(t, f))
	b := make([]byte, 6<<20)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, junk[:1<<20], b[:1<<20])
	require.Equal(t, make([]byte, 5<<20), b[1<<20:])
}

func TestFullReservesTheSpace(t *testing.T) {
	f := file(t)
	opt := formats.CreateOptions{Prealloc: "full"}
	w, err := raw.Create(t.Context(), f, 8<<20, opt, formats.Checkpoint{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, stored(t, f), int64(8<<20))
	_, err = w.WriteAt(make([]byte, 4096), 0)
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(0, 8<<20))
	require.GreaterOrEqual(t, stored(t, f), int64(8<<20), "zeros keep it")
	require.NoError(t, w.Commit(t.Context()))
}

func TestOptionsThatRawDoesNotHave(t *testing.T) {
	for _, o := range []formats.CreateOptions{{Compression: "zlib"}, {Subformat: "fixed"}, {Backing: "a"}, {Prealloc: "metadata"}} {
		_, err := raw.Create(t.Context(), file(t), 1<<20, o, formats.Checkpoint{})
		require.ErrorIs(t, err, formats.ErrFormat, "%+v", o)
	}
}

func TestAFileThatShrankIsNotReadAsZeros(t *testing.T) {
	f := file(t)
	require.NoError(t, f.Truncate(1<<20))
	img, err := raw.Open(t.Context(), f, 2<<20, formats.OpenOptions{})
	require.NoError(t, err)
	for e, err := range img.Extents(t.Context(), 0, 2<<20) {
		require.NoError(t, err)
		if e.End() > 1<<20 {
			require.Equal(t, formats.Data, e.Kind)
		}
	}
	_, err = img.ReadAt(make([]byte, 4096), 1<<20-100)
	require.ErrorIs(t, err, formats.ErrCorrupt)
}

// On a block device what was there before is still there: zeros have to be written.
func TestBlockDevice(t *testing.T) {
	backing := file(t)
	d := formatstest.NewDisk(1, 3<<20)
	require.NoError(t, backing.Truncate(4<<20))
	junk := formatstest.NewDisk(2, 4<<20)
	old := make([]byte, 4<<20)
	_, err := junk.ReadAt(old, 0)
	require.NoError(t, err)
	_, err = backing.WriteAt(old, 0)
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", backing.Name()).Output()
	if err != nil {
		t.Skip("losetup makes no block device here (it needs root): ", err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "--detach", path).Run()) })
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer dev.Close()

	_, err = raw.Create(t.Context(), dev, 5<<20, formats.CreateOptions{}, formats.Checkpoint{})
	require.ErrorIs(t, err, syscall.ENOSPC, "a device smaller than the disk")

	w, err := raw.Create(t.Context(), dev, d.Size(), formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, formatstest.Fill(w, d, 0, d.Size()))
	require.NoError(t, w.WriteZeroes(4096, 4096))
	_, err = w.WriteAt(make([]byte, 0), 0)
	require.NoError(t, err)
	require.NoError(t, formatstest.Fill(w, d, 0, 8192))
	require.NoError(t, w.WriteZeroes(1, 0))
	require.NoError(t, w.Commit(t.Context()))

	img, err := raw.Open(t.Context(), dev, d.Size(), formats.OpenOptions{})
	require.NoError(t, err)
	formatstest.CheckImage(t, img, d, false)
	behind := make([]byte, 1<<20)
	_, err = dev.ReadAt(behind, 3<<20)
	require.NoError(t, err)
	require.Equal(t, old[3<<20:], behind, "what lies behind the disk is left alone")
}

func TestWhatIsWrittenIsKnown(t *testing.T) {
	// More stretches than are remembered, in an order that joins none: zeros over them still count.
	f := file(t)
	const n, step = 10000, 8192
	w, err := raw.Create(t.Context(), f, n*step, formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	for i := range int64(n) {
		_, err := w.WriteAt([]byte{1}, (n-1-i)*step)
		require.NoError(t, err)
	}
	for i := range int64(n) {
		require.NoError(t, w.WriteZeroes(i*step, 4096))
	}
	require.NoError(t, w.Commit(t.Context()))
	b := make([]byte, n*step)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	for i, c := range b {
		if c != 0 {
			require.FailNow(t, "not zero", "byte %d", i)
		}
	}
}
