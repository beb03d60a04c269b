package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hypersdk/workflows/job"
)

// staleAfter is when a call that was cut off is no longer gone on with by the same command: what it
// completed is exported again then. What is under way goes on however old it is.
const staleAfter = 12 * time.Hour

// request remembers the jobs of a call for as long as it runs, so that the same command after a kill
// does not begin again with what was completed.
type request struct {
	path string
	Jobs map[string]string `json:"jobs"` // ids, by keyOf
}

// openRequest finds what is remembered of the same call; nothing is the beginning of one.
func openRequest(dir string, specs []job.Spec) (*request, error) {
	keys := make([]string, len(specs))
	for i, s := range specs {
		keys[i] = keyOf(s)
	}
	slices.Sort(keys)
	sum := sha256.Sum256([]byte(strings.Join(keys, "\x01")))
	r := &request{path: filepath.Join(dir, "requests", hex.EncodeToString(sum[:12])+".json"), Jobs: map[string]string{}}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o700); err != nil {
		return nil, fmt.Errorf("private folder: %w", err)
	}
	st, err := os.Stat(r.path)
	if err != nil || time.Since(st.ModTime()) > staleAfter {
		return r, nil
	}
	b, err := os.ReadFile(r.path)
	if err == nil && json.Unmarshal(b, r) != nil {
		r.Jobs = map[string]string{} // torn: as if it had not been begun
	}
	if r.Jobs == nil {
		r.Jobs = map[string]string{}
	}
	return r, err
}

// note remembers the job of an export.
func (r *request) note(x *export) error {
	r.Jobs[keyOf(x.spec)] = x.id
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(r.path, b)
}

// forget ends the call.
func (r *request) forget() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile replaces a private file, whole or not at all.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
