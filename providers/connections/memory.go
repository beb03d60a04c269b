package connections

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"hypersdk/providers"
	"hypersdk/providers/connections/keys"
)

const (
	memoryEnding = ".session"
	nextEnding   = ".next" // of one that is being written
	memoryLock   = "lock"
	maxMemory    = 64 << 10 // bytes that a provider may keep
)

// memories is a folder in which providers keep what they need to take up their sessions again after
// the process was killed: a file for each configuration, encrypted and bound to it. Its name is one
// that does not let anybody try guesses at the passwords in the configuration.
//
// One process at a time has the folder; another one gets no memories. For two of them would take up
// the same session, and the first to log out would end it for both.
type memories struct {
	dir    string
	sealer *keys.Sealer

	mu   sync.Mutex
	lock *os.File // the kernel lets go of it when the process ends, however it ends
}

// of is the memory of a configuration; nil where there is no folder. The error says why it is not
// ours to use.
func (m *memories) of(id sessionID) (providers.Memory, error) {
	if m.dir == "" || m.sealer == nil {
		return nil, nil
	}
	if err := m.take(); err != nil {
		return nil, fmt.Errorf("the folder of sessions %s: %w", m.dir, err)
	}
	return m.memory(id), nil
}

func (m *memories) memory(id sessionID) memory {
	aad := append([]byte("session\x00"), id[:]...)
	return memory{path: filepath.Join(m.dir, m.sealer.Pseudonym(aad)+memoryEnding), aad: aad, sealer: m.sealer}
}

// take makes the folder this process's.
func (m *memories) take() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lock != nil {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(m.dir, memoryLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return errors.New("another process has it")
		}
		return err
	}
	m.lock = f
	return nil
}

// release lets another process have the folder.
func (m *memories) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}

// mine says whether there is a folder and no other process has it.
func (m *memories) mine() bool { return m.dir != "" && m.sealer != nil && m.take() == nil }

// has says whether something is kept for a configuration.
func (m *memories) has(id sessionID) bool {
	if !m.mine() {
		return false
	}
	_, err := os.Stat(m.memory(id).path)
	return err == nil
}

// keepOnly deletes what is kept for other configurations than these, and what a process that was
// killed while it wrote has left.
func (m *memories) keepOnly(ids map[sessionID]bool) error {
	known := map[string]bool{}
	for id := range ids {
		known[filepath.Base(m.memory(id).path)] = true
	}
	entries, err := os.ReadDir(m.dir)
	for _, e := range entries {
		ours := strings.HasSuffix(e.Name(), memoryEnding) || strings.HasSuffix(e.Name(), nextEnding)
		if ours && !known[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(m.dir, e.Name())))
		}
	}
	return err
}

// memory is a file.
type memory struct {
	path   string
	aad    []byte
	sealer *keys.Sealer
}

// Load is nil where there is no file.
func (m memory) Load() ([]byte, error) {
	f, err := os.Open(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, maxMemory+keys.Overhead))
	if err != nil {
		return nil, err
	}
	return m.sealer.Open(sealed, m.aad)
}

// Save replaces the file before it makes it durable: what a provider keeps of a session that has just
// begun must be there as soon as can be if the process is killed, and a power cut that spoils it costs
// no more than that session.
func (m memory) Save(b []byte) error {
	if b == nil {
		if err := os.Remove(m.path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if len(b) > maxMemory {
		return fmt.Errorf("what is to be kept of a session is larger than %d bytes", maxMemory)
	}
	next := m.path + nextEnding // always the same, so that no more than one is left
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(m.sealer.Seal(b, m.aad)); err != nil {
		return err
	}
	if err := os.Rename(next, m.path); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(m.path))
}
