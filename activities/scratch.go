package activities

import "io"

// scratch is a small file in memory, for trying out a layout.
type scratch struct{ b []byte }

// maxScratch is far more than the metadata of a small disk takes.
const maxScratch = 64 << 20

func (s *scratch) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(s.b)) {
		return 0, io.EOF
	}
	n := copy(p, s.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *scratch) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(s.b)) {
		if err := s.Truncate(end); err != nil {
			return 0, err
		}
	}
	return copy(s.b[off:], p), nil
}

func (s *scratch) Truncate(size int64) error {
	if size > maxScratch {
		return io.ErrShortWrite
	}
	if size > int64(len(s.b)) {
		s.b = append(s.b, make([]byte, size-int64(len(s.b)))...)
	}
	s.b = s.b[:size]
	return nil
}

func (s *scratch) Sync() error { return nil }
