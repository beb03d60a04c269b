package activities

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Logs are the logs of the jobs of one host: JSON lines in <data>/jobs/<job>/, cut into two files of
// which the older is dropped when both are full. A file is named after the offset that its first byte
// has in the whole log, so that a reader's offset stays right.
type Logs struct {
	dir string
	max int64 // bytes of one job
	mu  sync.Mutex
}

// NewLogs keeps logs in the data folder; max bounds the bytes of one job's.
func NewLogs(data string, max int64) *Logs {
	return &Logs{dir: filepath.Join(data, "jobs"), max: max}
}

// logPage is how much one read answers: as JSON it stays below 100 KB.
const logPage = 64 << 10

// jobDir is the folder of a job; ids that are not plain words go by their digest.
func jobDir(dir, job string) string {
	if !plainID.MatchString(job) {
		sum := sha256.Sum256([]byte(job))
		job = "x-" + hex.EncodeToString(sum[:16])
	}
	return filepath.Join(dir, job)
}

var plainID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Logger writes into the log of a job, and wherever base does.
func (l *Logs) Logger(base *slog.Logger, job string) *slog.Logger {
	file := slog.NewJSONHandler(&jobWriter{l, job}, &slog.HandlerOptions{Level: slog.LevelInfo})
	return slog.New(slog.NewMultiHandler(base.With("job", job).Handler(), file))
}

type jobWriter struct {
	logs *Logs
	job  string
}

// Write appends one line. A log that cannot be written does not stop the job.
func (w *jobWriter) Write(line []byte) (int, error) {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	return len(line), w.logs.append(w.job, line)
}

func (l *Logs) append(job string, line []byte) error {
	dir := jobDir(l.dir, job)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files, err := l.files(dir)
	if err != nil {
		return err
	}
	at := logFile{}
	if n := len(files); n > 0 {
		at = files[n-1]
	}
	if at.size > 0 && at.size+int64(len(line)) > l.max/2 {
		at = logFile{base: at.base + at.size}
		for _, old := range files[:max(0, len(files)-1)] {
			if err := os.Remove(filepath.Join(dir, old.name())); err != nil {
				return err
			}
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, at.name()), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(line)
	return errors.Join(err, f.Close())
}

type logFile struct{ base, size int64 }

func (f logFile) name() string {
	if f.base == 0 {
		return "log.jsonl"
	}
	return fmt.Sprintf("log.%d.jsonl", f.base)
}

// files lists the files of a log, oldest first.
func (l *Logs) files(dir string) ([]logFile, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []logFile
	for _, e := range entries {
		mid, ok := strings.CutPrefix(e.Name(), "log.")
		if !ok {
			continue
		}
		var f logFile
		if mid != "jsonl" {
			n, ok := strings.CutSuffix(mid, ".jsonl")
			if !ok {
				continue
			}
			if f.base, err = strconv.ParseInt(n, 10, 64); err != nil || f.base <= 0 {
				continue
			}
		}
		st, err := e.Info()
		if err != nil {
			continue
		}
		f.size = st.Size()
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b logFile) int { return cmp.Compare(a.base, b.base) })
	return out, nil
}

// Read answers whole lines of a job's log from offset on, and the offset to go on from. The end of
// the log, and a log that is not there, is an empty page with the same offset; what was dropped is
// skipped.
func (l *Logs) Read(_ context.Context, job string, offset int64) (page []byte, next int64, err error) {
	if offset < 0 {
		return nil, 0, fmt.Errorf("log offset %d is negative", offset)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dir := jobDir(l.dir, job)
	files, err := l.files(dir)
	if err != nil {
		return nil, offset, err
	}
	for _, f := range files {
		if offset >= f.base+f.size {
			continue
		}
		offset = max(offset, f.base)
		page, err = readLines(filepath.Join(dir, f.name()), offset-f.base)
		return page, offset + int64(len(page)), err
	}
	return nil, offset, nil
}

func readLines(path string, off int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, logPage)
	n, err := f.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	b = b[:n]
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		return b[:i+1], nil
	}
	if n == logPage {
		return b, nil // one line longer than a page
	}
	return nil, nil // a line that is still being written
}
