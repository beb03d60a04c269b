package formatstest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// MemFile is a formats.File in memory. Holes take no room. It remembers what the last Sync made
// durable, so that a crash can be tried.
type MemFile struct {
	mu    sync.RWMutex
	size  int64
	pages map[int64]*[page]byte
	// undo holds, for each page changed since the last Sync, what it was then; nil: a hole.
	undo   map[int64]*[page]byte
	synced int64 // size at the last Sync
	syncs  int
}

// NewMemFile is an empty file.
func NewMemFile() *MemFile {
	return &MemFile{pages: make(map[int64]*[page]byte), undo: make(map[int64]*[page]byte)}
}

// MemFileOf is a file of those bytes.
func MemFileOf(b []byte) *MemFile {
	f := NewMemFile()
	f.WriteAt(b, 0) // cannot fail
	return f
}

// Size is the size of the file.
func (f *MemFile) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// Stored is how many bytes the file takes, holes not counted.
func (f *MemFile) Stored() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.pages)) * page
}

// Syncs counts the calls of Sync.
func (f *MemFile) Syncs() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.syncs
}

// ReadAt reads the file.
func (f *MemFile) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("memfile: negative offset")
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := 0
	for n < len(b) {
		at := off + int64(n)
		if at >= f.size {
			return n, io.EOF
		}
		to := b[n:min(len(b), n+int(page-at%page))]
		if left := f.size - at; left < int64(len(to)) {
			to = to[:left]
		}
		if pg := f.pages[at/page]; pg != nil {
			copy(to, pg[at%page:])
		} else {
			clear(to)
		}
		n += len(to)
	}
	return n, nil
}

// WriteAt writes the file.
func (f *MemFile) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("memfile: negative offset")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := 0; n < len(b); {
		at := off + int64(n)
		n += copy(f.change(at / page)[at%page:], b[n:])
	}
	f.size = max(f.size, off+int64(len(b)))
	return len(b), nil
}

// change answers a page that may be written to.
func (f *MemFile) change(i int64) *[page]byte {
	old := f.pages[i]
	pg := old
	if _, ok := f.undo[i]; !ok {
		f.undo[i] = old
		pg = nil
	}
	if pg == nil {
		pg = new([page]byte)
		if old != nil {
			*pg = *old
		}
		f.pages[i] = pg
	}
	return pg
}

// Truncate sets the size of the file; what is added is a hole.
func (f *MemFile) Truncate(size int64) error {
	if size < 0 {
		return errors.New("memfile: negative size")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if size < f.size {
		if size%page != 0 && f.pages[size/page] != nil {
			clear(f.change(size / page)[size%page:])
		}
		for i, pg := range f.pages {
			if i*page >= size {
				if _, ok := f.undo[i]; !ok {
					f.undo[i] = pg
				}
				delete(f.pages, i)
			}
		}
	}
	f.size = size
	return nil
}

// Sync makes durable what was written.
func (f *MemFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.undo)
	f.synced = f.size
	f.syncs++
	return nil
}

// Clone is a copy of the file as it stands.
func (f *MemFile) Clone() *MemFile { return f.after(func() bool { return false }) }

// Synced is the file as the last Sync left it.
func (f *MemFile) Synced() *MemFile { return f.after(func() bool { return true }) }

// Crash is the file after a loss of power: of every page changed since the last Sync either the old
// or the new content is there, as seed decides, and of the size likewise.
func (f *MemFile) Crash(seed uint64) *MemFile {
	r := rand.New(rand.NewPCG(seed, 0x6372617368))
	return f.after(func() bool { return r.IntN(2) == 0 })
}

// after copies the file; lost decides for each page changed since the last Sync whether it is lost.
func (f *MemFile) after(lost func() bool) *MemFile {
	f.mu.RLock()
	defer f.mu.RUnlock()
	c := NewMemFile()
	c.size = f.size
	if lost() {
		c.size = f.synced
	}
	put := func(i int64, pg *[page]byte) {
		if pg != nil && i*page < c.size {
			b := *pg
			if left := c.size - i*page; left < page {
				clear(b[left:])
			}
			c.pages[i] = &b
		}
	}
	for i, pg := range f.pages {
		if _, ok := f.undo[i]; !ok {
			put(i, pg)
		}
	}
	for i, old := range f.undo {
		if lost() {
			put(i, old)
		} else {
			put(i, f.pages[i])
		}
	}
	c.synced = c.size
	return c
}

// Save writes the file to path, sparsely.
func (f *MemFile) Save(t testing.TB, path string) {
	t.Helper()
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	f.mu.RLock()
	defer f.mu.RUnlock()
	require.NoError(t, out.Truncate(f.size))
	for i, pg := range f.pages {
		_, err := out.WriteAt(pg[:min(page, f.size-i*page)], i*page)
		require.NoError(t, err)
	}
}

// RequireEqual fails the test where two files differ.
func RequireEqual(t testing.TB, want, got *MemFile) {
	t.Helper()
	require.Equal(t, want.Size(), got.Size(), "size of the file")
	first, found := int64(0), false
	note := func(a, b *MemFile) {
		var hole [page]byte
		for i, pg := range a.pages {
			other := b.pages[i]
			if other == nil {
				other = &hole
			}
			if *pg == *other || found && i*page > first {
				continue
			}
			for j := range pg {
				if pg[j] != other[j] {
					first, found = i*page+int64(j), true
					break
				}
			}
		}
	}
	note(want, got)
	note(got, want)
	if found {
		require.FailNow(t, fmt.Sprintf("the files differ from byte %d on", first))
	}
}

// FileSize is the size of a file that a disk was laid out in.
func FileSize(t testing.TB, f io.ReaderAt) int64 {
	t.Helper()
	switch f := f.(type) {
	case interface{ Size() int64 }:
		return f.Size()
	case interface{ Stat() (os.FileInfo, error) }:
		st, err := f.Stat()
		require.NoError(t, err)
		return st.Size()
	}
	require.FailNow(t, fmt.Sprintf("%T does not know its size", f))
	return 0
}
