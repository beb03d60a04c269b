package connections

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"hypersdk/providers"
	"hypersdk/providers/connections/keys"
)

const (
	fileEnding = ".enc"
	maxStored  = 1 << 20 // bytes of a stored connection
)

// nameRule makes a name safe as the name of a file on any file system.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$`)

// checkName refuses what cannot name a connection.
func checkName(name string) error {
	if !nameRule.MatchString(name) {
		return &providers.Error{Op: "connections", Object: name, Reason: providers.Invalid,
			Msg: "the name of a connection is up to 127 letters, digits, dots, dashes and underscores, and begins with a letter or digit"}
	}
	return nil
}

// store is a folder with a file per connection, encrypted and bound to its name. Nothing is kept in
// memory: what another process stores is there at once.
type store struct {
	dir    string
	sealer *keys.Sealer
}

type stored struct {
	Kind   string          `json:"kind"`
	Config json.RawMessage `json:"config"`
}

func (s store) there() bool { return s.dir != "" && s.sealer != nil }

func (s store) path(name string) string { return filepath.Join(s.dir, name+fileEnding) }

func (s store) put(name string, c Config) error {
	if !s.there() {
		return &providers.Error{Op: "connections: store", Object: name, Reason: providers.Unsupported,
			Msg: "credentials cannot be stored here; name a configured connection"}
	}
	if err := checkName(name); err != nil {
		return err
	}
	plain, err := json.Marshal(stored(c))
	if err != nil {
		return &providers.Error{Op: "connections: store", Object: name, Reason: providers.Invalid, Msg: "the connection is not a JSON object"}
	}
	if len(plain) > maxStored {
		return &providers.Error{Op: "connections: store", Object: name, Reason: providers.Invalid, Msg: "the connection is too large"}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return s.fail("store", name, err)
	}
	if err := writeAtomically(s.path(name), s.sealer.Seal(plain, []byte(name))); err != nil {
		return s.fail("store", name, err)
	}
	return nil
}

// get is NotFound for what is not in the store.
func (s store) get(name string) (Config, error) {
	missing := &providers.Error{Op: "connections: read", Object: name, Reason: providers.NotFound}
	if !s.there() {
		return Config{}, missing
	}
	if err := checkName(name); err != nil {
		return Config{}, err
	}
	sealed, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, missing
	}
	if err != nil {
		return Config{}, s.fail("read", name, err)
	}
	plain, err := s.sealer.Open(sealed, []byte(name))
	if err != nil {
		return Config{}, s.fail("read", name, err)
	}
	var c stored
	if err := json.Unmarshal(plain, &c); err != nil {
		return Config{}, s.fail("read", name, errors.New("it is not a connection")) // err might quote a secret
	}
	return Config(c), nil
}

// remove succeeds where there is nothing.
func (s store) remove(name string) error {
	if !s.there() {
		return nil
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.fail("forget", name, err)
	}
	return nil
}

func (s store) names() []string {
	if !s.there() {
		return nil
	}
	entries, _ := os.ReadDir(s.dir) // a folder that is not there yet is an empty one
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), fileEnding); ok && nameRule.MatchString(name) {
			names = append(names, name)
		}
	}
	return names
}

// age is how long ago a connection was stored; nothing for one that is not there.
func (s store) age(name string) time.Duration {
	st, err := os.Stat(s.path(name))
	if err != nil {
		return 0
	}
	return time.Since(st.ModTime())
}

// fail says who is to act: a wrong key or a damaged file is mended by nobody's patience.
func (s store) fail(op, name string, err error) error {
	reason := providers.Unavailable
	switch {
	case errors.Is(err, keys.ErrUnknownKey), errors.Is(err, fs.ErrPermission):
		reason = providers.Denied
	case errors.Is(err, keys.ErrDamaged):
		reason = providers.Corrupt
	}
	return &providers.Error{Op: "connections: " + op, Object: name, Reason: reason, Err: err}
}

// writeAtomically makes a file that only its owner may read, whole or not at all, and durable.
func writeAtomically(path string, b []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".put-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(t.Name()) // does nothing after the rename
	_, err = t.Write(b)
	if err == nil {
		err = t.Sync()
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
