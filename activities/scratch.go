package activities

import (
	"bytes"
	"errors"
	"io"
)

// scratch is a sparse file in memory, for trying out how a disk would be laid out.
type scratch struct {
	pages map[int64][]byte
	size  int64
}

const (
	scratchPage = 64 << 10
	// maxScratch is how many bytes that are not zero it holds: more than the metadata of any disk.
	maxScratch = 64 << 20
)

// errScratch says nothing about the layout, only that it cannot be tried.
var errScratch = errors.New("too large to be tried in memory")

func newScratch() *scratch { return &scratch{pages: map[int64][]byte{}} }

func (s *scratch) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < s.size {
		b := p[n:min(int64(len(p)), int64(n)+min(s.size-off, scratchPage-off%scratchPage))]
		if page := s.pages[off/scratchPage]; page != nil {
			copy(b, page[off%scratchPage:])
		} else {
			clear(b)
		}
		n, off = n+len(b), off+int64(len(b))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *scratch) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		b := p[n:min(int64(len(p)), int64(n)+scratchPage-off%scratchPage)]
		page := s.pages[off/scratchPage]
		if page == nil && !zero(b) {
			if len(s.pages) >= maxScratch/scratchPage {
				return n, errScratch
			}
			page = make([]byte, scratchPage)
			s.pages[off/scratchPage] = page
		}
		if page != nil {
			copy(page[off%scratchPage:], b)
		}
		n, off = n+len(b), off+int64(len(b))
		s.size = max(s.size, off)
	}
	return n, nil
}

func (s *scratch) Truncate(size int64) error {
	if size < s.size {
		for i, page := range s.pages {
			switch at := i * scratchPage; {
			case at >= size:
				delete(s.pages, i)
			case at+scratchPage > size:
				clear(page[size-at:])
			}
		}
	}
	s.size = size
	return nil
}

func (s *scratch) Sync() error { return nil }

var scratchZeros [scratchPage]byte

func zero(b []byte) bool { return bytes.Equal(b, scratchZeros[:len(b)]) }
