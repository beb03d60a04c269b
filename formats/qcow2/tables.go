package qcow2

import (
	"container/list"
	"fmt"
	"io"
	"sync"
)

// Tables are read in pages, of which a few are kept: the tables of a large image do not fit in memory.
const (
	tablePage   = 64 << 10
	cachedPages = 96
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
	if data := t.cached(key); data != nil {
		return data[off%tablePage:], nil
	}
	base := key.page * tablePage
	data := make([]byte, min(tablePage, f.size-base))
	if n, err := f.r.ReadAt(data, base); n < len(data) {
		return nil, fmt.Errorf("qcow2: read a table at %d: %w", off, unexpected(err))
	}
	t.put(key, data)
	return data[off%tablePage:], nil
}

func (t *tables) cached(key pageKey) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.pages[key]
	if e == nil {
		return nil
	}
	t.used.MoveToFront(e)
	return e.Value.(*tablesPage).data
}

func (t *tables) put(key pageKey, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages[key] != nil {
		return // another reader was faster
	}
	t.pages[key] = t.used.PushFront(&tablesPage{key: key, data: data})
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
}
