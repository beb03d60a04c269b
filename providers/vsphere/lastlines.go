package vsphere

import (
	"bytes"
	"sync"
)

// maxLastLines is how much of them is kept.
const maxLastLines = 16 << 10

// lastLines keeps the end of what is written to it, in whole lines.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
	cut bool // something before buf is gone
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	if len(p) > maxLastLines {
		p, l.buf, l.cut = p[len(p)-maxLastLines:], nil, true
	}
	if over := len(l.buf) + len(p) - maxLastLines; over > 0 {
		l.buf, l.cut = append(l.buf[:0], l.buf[over:]...), true
	}
	l.buf = append(l.buf, p...)
	return n, nil
}

// String is what was kept. Half a line is left out: a secret that is to be found and hidden could be
// cut in two in it.
func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf
	if l.cut {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return string(b)
}
