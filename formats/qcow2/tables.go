package qcow2

import (
	"container/list"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Tables are read in pages, of which a few are kept: the tables of a large image do not fit in memory. Who
// reads through a chain needs a page of each of its files at a time, two where their L1 tables are large.
const (
	tablePage   = 32 << 10
	cachedPages = 192
	// keptL1 is how long an L1 table may be, in bytes, to be kept whole by its image: that of 1 TiB in
	// clusters of 64 KiB.
	keptL1 = 16 << 10
)

// tables caches pages of the tables of all files of a chain. Pages never change.
type tables struct {
	mu    sync.Mutex
	pages map[pageKey]*list.Element
	used  list.List // of *tablesPage, the last used first
}

type pageKey struct {
	file int
	page int64
}

type tablesPage struct {
	key  pageKey
	data []byte
}

func newTables() *tables { return &tables{pages: make(map[pageKey]*list.Element)} }

// at answers the bytes of a file from off on, as far as they are in one page: at least one, and whole
// entries where off is aligned to them.
func (t *tables) at(f *file, off int64) ([]byte, error) {
	if off < 0 || off >= f.size {
		return nil, corrupt("a table at %d lies behind the end of the file, %d", off, f.size)
	}
	key := pageKey{f.id, off / tablePage}
	p := f.last.Load()
	if p == nil || p.key != key {
		var err error
		if p, err = t.page(f, key); err != nil {
			return nil, fmt.Errorf("qcow2: read a table at %d: %w", off, err)
		}
		f.last.Store(p)
	}
	return p.data[off%tablePage:], nil
}

// page answers a page, from the cache or from the file.
func (t *tables) page(f *file, key pageKey) (*tablesPage, error) {
	if p := t.cached(key); p != nil {
		return p, nil
	}
	base := key.page * tablePage
	p := &tablesPage{key: key, data: make([]byte, min(tablePage, f.size-base))}
	if n, err := f.r.ReadAt(p.data, base); n < len(p.data) {
		return nil, unexpected(err)
	}
	t.put(p)
	return p, nil
}

func (t *tables) cached(key pageKey) *tablesPage {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.pages[key]
	if e == nil {
		return nil
	}
	t.used.MoveToFront(e)
	return e.Value.(*tablesPage)
}

func (t *tables) put(p *tablesPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages[p.key] != nil {
		return // another reader was faster
	}
	t.pages[p.key] = t.used.PushFront(p)
	if t.used.Len() > cachedPages {
		last := t.used.Back()
		t.used.Remove(last)
		delete(t.pages, last.Value.(*tablesPage).key)
	}
}

// file is one file of a chain.
type file struct {
	r    io.ReaderAt
	size int64
	id   int
	// last is the page of its tables that was used last: mostly the one that is needed next.
	last atomic.Pointer[tablesPage]
}
