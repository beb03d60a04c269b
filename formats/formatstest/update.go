package formatstest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// update overwrites a disk at random, in several sessions, and compares it with a reference.
func (h Harness) update(t *testing.T) {
	m := h.newModel(t, 101)
	if h.Options.Compression != "" {
		_, err := h.Format.Update(t.Context(), m.file, FileSize(t, m.file))
		require.ErrorIs(t, err, formats.ErrFormat, "packed blocks cannot be overwritten in place")
		m.same(t)
		return
	}
	for session := range 6 {
		w := m.open(t)
		require.Equal(t, h.blockSize(t), w.BlockSize())
		for range 12 {
			require.NoError(t, m.change(w))
		}
		switch session % 3 {
		case 0:
			require.NoError(t, w.Sync(t.Context()))
		case 1:
			cp, err := w.Checkpoint(w.BlockSize())
			require.NoError(t, err)
			require.Equal(t, formats.Checkpoint{Off: w.BlockSize()}, cp)
		}
		require.NoError(t, w.Commit(t.Context()))
		_, err := w.WriteAt(make([]byte, w.BlockSize()), 0)
		require.Error(t, err, "a write after the end")
		require.Error(t, w.Commit(t.Context()))
		require.NoError(t, w.Close())
		m.same(t)
	}
	w := m.open(t)
	defer w.Close()
	block := w.BlockSize()
	for _, off := range []int64{-block, int64(len(m.want))/block*block + block, 1<<62 + block} {
		_, err := w.WriteAt(make([]byte, block), off)
		require.Error(t, err, "write at %d of %d", off, len(m.want))
		require.Error(t, w.WriteZeroes(off, block))
	}
	if block > 1 {
		_, err := w.WriteAt(make([]byte, block), 1)
		require.ErrorIs(t, err, formats.ErrAlign)
		require.ErrorIs(t, w.WriteZeroes(0, block+1), formats.ErrAlign)
	}
	// What is synced stays without Commit.
	require.NoError(t, m.change(w))
	require.NoError(t, w.Sync(t.Context()))
	require.NoError(t, w.Close())
	m.judged(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.Format.Update(ended, m.file, FileSize(t, m.file))
	require.ErrorIs(t, err, context.Canceled)
}

// updateCrashes lets the power fail while a disk is overwritten: it is a disk at every moment, what was
// synced and not written since is there, and going on makes it whole.
func (h Harness) updateCrashes(t *testing.T) {
	if h.Options.Compression != "" {
		t.Log("packed blocks cannot be overwritten in place")
		return
	}
	h.NewFile = nil // a MemFile
	for seed := range uint64(16) {
		m := h.newModel(t, 200+seed)
		for range 4 {
			require.NoError(t, m.file.Sync())
			m.crash(t)
		}
		w := m.open(t)
		for range 3 {
			require.NoError(t, m.change(w))
		}
		require.NoError(t, w.Commit(t.Context()))
		require.NoError(t, w.Close())
		if m.same(t); seed < 2 {
			m.judged(t)
		}
	}
}

// model is a disk and what it has to hold.
type model struct {
	h    Harness
	r    *rand.Rand
	file formats.File
	want []byte
	// loose marks bytes that were written since the last Sync: a crash may leave what was there before.
	loose []bool
}

func (h Harness) newModel(t *testing.T, seed uint64) *model {
	d := NewDisk(seed, h.examSize())
	m := &model{h: h, r: rand.New(rand.NewPCG(seed, 1)), file: h.CreateDisk(t, d), want: make([]byte, d.Size())}
	_, err := d.ReadAt(m.want, 0)
	require.NoError(t, noEOF(err))
	return m
}

func (m *model) open(t *testing.T) formats.Writer {
	w, err := m.h.Format.Update(t.Context(), m.file, FileSize(t, m.file))
	require.NoError(t, err)
	return w
}

// crash overwrites some of the disk, until after some writes or syncs, as it happens, the power fails.
func (m *model) crash(t *testing.T) {
	t.Helper()
	below := m.file.(*MemFile)
	f := &Faulty{File: below, Fault: func(Op, int64, int64) error { return nil }}
	w, err := m.h.Format.Update(t.Context(), f, below.Size())
	require.NoError(t, err)
	for range m.r.IntN(6) {
		require.NoError(t, m.change(w))
	}
	require.NoError(t, w.Sync(t.Context()))
	m.loose = make([]bool, len(m.want))
	f.Fault = After([]Op{Write, Sync, Truncate}[m.r.IntN(3)], m.r.Int64N(5), ErrInjected)
	for range m.r.IntN(6) {
		if err = m.change(w); err != nil {
			break
		}
	}
	if err == nil && m.r.IntN(3) > 0 {
		err = w.Commit(t.Context())
	}
	if err != nil {
		require.ErrorIs(t, err, ErrInjected)
		require.Error(t, w.Commit(t.Context()), "what lacks a write is not committed")
	}
	left := below.Crash(m.r.Uint64())
	require.NoError(t, w.Close())
	m.file = left
	if m.h.Format.Check != nil {
		rep, err := m.h.Format.Check(t.Context(), left, left.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		require.Zero(t, rep.Corruptions, "%q", rep.Problems)
	}
	m.adopt(t)
}

// change writes something somewhere: noise, or zeros in one way or the other.
func (m *model) change(w formats.Writer) error {
	block, size := w.BlockSize(), int64(len(m.want))
	blocks := (size + block - 1) / block
	off := m.r.Int64N(blocks) * block
	n := min((1+m.r.Int64N(min(blocks, 1<<m.r.IntN(12))))*block, size-off)
	to := m.want[off : off+n]
	for i := range m.loose[min(off, int64(len(m.loose))):min(off+n, int64(len(m.loose)))] {
		m.loose[off+int64(i)] = true
	}
	if m.r.IntN(3) == 0 {
		clear(to)
		return w.WriteZeroes(off, n)
	}
	for i := range to {
		to[i] = byte(m.r.Uint32())
	}
	_, err := w.WriteAt(to, off)
	return err
}

// same compares the disk with the model, and has the format examine it.
func (m *model) same(t *testing.T) {
	t.Helper()
	require.True(t, bytes.Equal(m.want, m.read(t)), "the disk is not what was written to it")
	if m.h.Format.Check != nil {
		rep, err := m.h.Format.Check(t.Context(), m.file, FileSize(t, m.file), formats.OpenOptions{})
		require.NoError(t, err)
		require.Zero(t, rep.Corruptions+rep.Leaks, "%q", rep.Problems)
	}
}

// judged has qemu-img look at the disk too, which takes its time.
func (m *model) judged(t *testing.T) {
	t.Helper()
	m.same(t)
	if f, ok := m.file.(*MemFile); ok && m.h.Qemu != "" {
		dir := t.TempDir()
		ours, plain := filepath.Join(dir, "ours"), filepath.Join(dir, "plain")
		f.Save(t, ours)
		MemFileOf(m.want).Save(t, plain)
		QemuCheck(t, m.h.Qemu, ours)
		QemuCompare(t, "raw", plain, m.h.Qemu, ours)
	}
}

func (m *model) read(t *testing.T) []byte {
	t.Helper()
	img, err := m.h.Format.Open(t.Context(), m.file, FileSize(t, m.file), m.h.Open)
	require.NoError(t, err)
	defer img.Close()
	got, err := io.ReadAll(io.NewSectionReader(img, 0, img.Size()))
	require.NoError(t, err)
	return got
}

// adopt takes what a crash left for what the disk holds, after a look at what it may not have touched.
func (m *model) adopt(t *testing.T) {
	t.Helper()
	got := m.read(t)
	require.Len(t, got, len(m.want))
	for i := range got {
		if got[i] != m.want[i] && !m.loose[i] {
			require.FailNow(t, "a crash changed what was synced and not written since", "byte %d", i)
		}
	}
	m.want, m.loose = got, nil
}
