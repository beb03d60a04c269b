// Package keys holds the data keys of an installation, which seal what must not lie about in plain
// text: the payloads of workflows and the connections that are stored.
//
// A key file is text: a key per line, as [Create] writes it. The first key seals, all of them open, so
// a key is rotated by putting a new one in front. A key is never used itself: each purpose has a
// subkey of its own, derived by HKDF-SHA-256 from the key and the label of the purpose.
package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	// FileName is the name of the key file in the folder that LoadOrCreate is given.
	FileName = "data.key"

	keySize   = 32
	linePart  = "hypersdk-key-1:" // the version of a line's layout
	maxFile   = 64 << 10
	fileIntro = `# Data keys of a HyperSDK installation. The first key encrypts, all of them decrypt.
# Without them running jobs and stored connections cannot be read: keep a copy, and keep it secret.
`
)

// Ring is the data keys of an installation; there is at least one.
type Ring struct{ keys []key }

type key struct {
	id     [idSize]byte // of the bytes of the key, so that two keys never share one
	secret [keySize]byte
}

// String names the keys, never their bytes.
func (r *Ring) String() string { return "keys " + strings.Join(r.IDs(), ", ") }

// GoString is String.
func (r *Ring) GoString() string { return r.String() }

// IDs are the names of the keys, that of the one that seals first.
func (r *Ring) IDs() []string {
	ids := make([]string, len(r.keys))
	for i, k := range r.keys {
		ids[i] = hex.EncodeToString(k.id[:])
	}
	return ids
}

// LoadOrCreate reads the key file of a folder and makes one, and the folder, where there is none. Of
// several processes that do so at once one makes the file and all read it.
func LoadOrCreate(dir string) (*Ring, error) {
	file := filepath.Join(dir, FileName)
	r, err := Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keys: create folder: %w", err)
	}
	if err := Create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return Load(file)
}

// Create makes a key file with one new key, readable by its owner only. A file that is there already
// is left alone and the error is fs.ErrExist.
func Create(file string) error {
	secret := make([]byte, keySize)
	_, _ = rand.Read(secret) // never fails: the program ends where there is no randomness
	content := fileIntro + linePart + base64.StdEncoding.EncodeToString(secret) + "\n"

	dir := filepath.Dir(file)
	t, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keys: create: %w", err)
	}
	defer os.Remove(t.Name())
	_, err = io.WriteString(t, content)
	if err == nil {
		err = t.Sync()
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return fmt.Errorf("keys: create %s: %w", file, err)
	}
	// A link, unlike a rename, never replaces the keys that another process has just made.
	if err := os.Link(t.Name(), file); err != nil {
		return fmt.Errorf("keys: create: %w", err)
	}
	return syncDir(dir)
}

// Load reads a key file. One that everybody may read is refused.
func Load(file string) (*Ring, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("keys: load: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keys: load: %w", err)
	}
	if st.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("keys: load %s: everybody on this host may read it; run: chmod 600 %[1]s", file)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("keys: load: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("keys: load %s: larger than %d bytes: not a key file", file, maxFile)
	}
	r, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("keys: load %s: %w", file, err)
	}
	return r, nil
}

func parse(b []byte) (*Ring, error) {
	r := &Ring{}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line := strings.TrimSpace(string(line))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		enc, ok := strings.CutPrefix(line, linePart)
		if !ok {
			return nil, fmt.Errorf("line %d does not start with %q", n, linePart)
		}
		secret, err := base64.StdEncoding.DecodeString(enc)
		if err != nil || len(secret) != keySize {
			return nil, fmt.Errorf("line %d does not hold a key of %d bytes in base64", n, keySize)
		}
		k := key{secret: [keySize]byte(secret)}
		sum := sha256.Sum256(append([]byte("hypersdk key id\x00"), secret...))
		copy(k.id[:], sum[:])
		r.keys = append(r.keys, k)
	}
	if len(r.keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return r, nil
}

// subkey is the key for one purpose.
func (k key) subkey(label string) []byte {
	b, err := hkdf.Key(sha256.New, k.secret[:], nil, "hypersdk "+label, keySize)
	if err != nil {
		panic(err) // only for lengths that HKDF cannot give, and this one is constant
	}
	return b
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("keys: sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("keys: sync folder: %w", err)
	}
	return nil
}
