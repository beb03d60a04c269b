// Package formatstest is the exam of a disk format, and what its tests are made of: disks of known
// content ([Disk]), files in memory that can crash ([MemFile]), files that fail as told ([Faulty]),
// and qemu-img as an oracle.
//
// A format's test fills in a [Harness] for each of its variants and calls [Run]. A reader is examined
// on files made by other programs with [CheckImage].
package formatstest

import (
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/formats"
)

// Harness says what the exam has to know of one variant of a format. Only Format is required.
type Harness struct {
	Format formats.Format
	// Options of every disk that the exam creates.
	Options formats.CreateOptions
	// Open is how its disks are read again.
	Open formats.OpenOptions

	// Qemu is qemu-img's name of the format ("vpc"); with it qemu-img checks and compares what was
	// written. "": qemu-img cannot judge this format.
	Qemu string
	// QemuOptions are added to "qemu-img convert -O Qemu" when the exam lets qemu-img write a disk
	// that the format has to read ("-c", "-o", "subformat=fixed"). Nil: no options.
	QemuOptions []string

	// Unit divides the size of every disk; 0: 512.
	Unit int64
	// MaxSize is the size of the largest disk tried, nearly all of it zeros; 0: 16 TiB. A format that
	// stores zeros wants a small one.
	MaxSize int64
	// Sizes are tried besides the usual ones.
	Sizes []int64
	// ExamSize is about how large the disks of checks are that need just one: some blocks of the
	// format; 0: 6 MiB.
	ExamSize int64

	// Ascending: the writer takes each block once, front to back (a format that is written as a
	// stream). It is then expected to refuse anything else.
	Ascending bool
	// Dense: zeros may be stored, so a region that was never written may be reported as Data.
	Dense bool
	// Headerless: any bytes are a disk (raw), so nothing can be known of a file cut short.
	Headerless bool
	// Unchecked: blocks hold no checksum and metadata has a lazy corner, so a byte that was flipped
	// may go unnoticed. It does not excuse errors from below.
	Unchecked bool
	// Overlay: with Options.Backing the writer makes an overlay; the exam sets Backing itself.
	Overlay bool

	// NewFile makes an empty file to lay a disk out in; nil: a MemFile. What needs a crash always
	// runs on a MemFile.
	NewFile func(t testing.TB) formats.File
}

func (h Harness) unit() int64 {
	if h.Unit == 0 {
		return 512
	}
	return h.Unit
}

func (h Harness) maxSize() int64 {
	if h.MaxSize == 0 {
		return 16 << 40
	}
	return h.MaxSize
}

func (h Harness) newFile(t testing.TB) formats.File {
	if h.NewFile == nil {
		return NewMemFile()
	}
	return h.NewFile(t)
}

// sizes are those that the exam creates disks of, ascending in cost.
func (h Harness) sizes() []int64 {
	u := h.unit()
	all := []int64{u, 3 * u, 4096, 64<<10 - u, 64 << 10, 64<<10 + u, 1 << 20, 2<<20 + 7*u, 9<<20 - 3*u}
	if !testing.Short() {
		all = append(all, h.Sizes...)
		all = append(all, h.maxSize()/u*u)
	}
	var fit []int64
	for _, n := range all {
		if n%u == 0 && n <= h.maxSize() {
			fit = append(fit, n)
		}
	}
	return fit
}

// examSize is ExamSize as no round number.
func (h Harness) examSize() int64 {
	n := h.ExamSize
	if n == 0 {
		n = 6 << 20
	}
	return min(n/h.unit()*h.unit()+5*h.unit(), h.maxSize()/h.unit()*h.unit())
}

// Run examines the format. In short mode, which is for runs under the race detector, it leaves out what
// takes long and runs on one goroutine.
func Run(t *testing.T, h Harness) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	if h.Format.Create != nil {
		for _, size := range h.sizes() {
			t.Run(fmt.Sprintf("round trip of %d bytes", size), func(t *testing.T) { h.roundTrip(t, size) })
		}
		t.Run("empty disk", h.empty)
		if h.Options.Compression != "" {
			t.Run("blocks are packed", h.packs)
		}
		t.Run("same writes give the same bytes", h.sameBytes)
		if !testing.Short() {
			t.Run("crash and resume", h.crash)
			t.Run("a resume goes on from many places", h.resumeAnywhere)
			t.Run("errors below a writer surface", h.writeFaults)
			t.Run("errors below a reader surface", h.readFaults)
			t.Run("a file cut short is no whole disk", h.truncated)
		}
		t.Run("the last write counts", h.lastWriteCounts)
		t.Run("writes that do not fit are refused", h.misfits)
		t.Run("what was not committed is no disk", h.uncommitted)
		t.Run("a cancelled context ends reading", h.cancelled)
		if h.Format.Update != nil {
			t.Run("overwritten in place", h.update)
			if !testing.Short() {
				t.Run("crashes while it is overwritten", h.updateCrashes)
			}
		}
		if h.Overlay {
			t.Run("an overlay holds only what was written", h.overlay)
		}
	}
	if h.Format.Encode != nil {
		for _, size := range h.sizes() {
			if size <= 64<<20 {
				t.Run(fmt.Sprintf("encoding %d bytes", size), func(t *testing.T) { h.encode(t, size) })
			}
		}
	}
	if h.Format.Stream != nil {
		t.Run("reading front to back", h.stream)
	}
	if h.Qemu != "" {
		t.Run("qemu-img", h.qemu)
	}
}

// CreateDisk lays d out in a new file as h says and answers the file.
func (h Harness) CreateDisk(t testing.TB, d *Disk) formats.File {
	t.Helper()
	f := h.newFile(t)
	h.createIn(t, f, d)
	return f
}

func (h Harness) createIn(t testing.TB, f formats.File, d *Disk) {
	t.Helper()
	w, err := h.Format.Create(t.Context(), f, d.Size(), h.Options, formats.Checkpoint{})
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, Fill(w, d, 0, d.Size()))
	require.NoError(t, w.Commit(t.Context()))
	require.NoError(t, w.Close())
}

// OpenDisk opens what CreateDisk made.
func (h Harness) OpenDisk(t testing.TB, f io.ReaderAt) formats.Image {
	t.Helper()
	img, err := h.Format.Open(t.Context(), f, FileSize(t, f), h.Open)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, img.Close()) })
	return img
}
