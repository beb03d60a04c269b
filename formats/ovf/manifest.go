package ovf

import (
	"bufio"
	"bytes"
	"crypto"
	_ "crypto/sha1"   // manifests of old packages
	_ "crypto/sha256" // of today's
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"hypersdk/formats"
)

// maxManifest is how long a manifest may be.
const maxManifest = 4 << 20

// Manifest is the sums of the files of a package.
type Manifest []Sum

// Sum is the sum of one file.
type Sum struct {
	Name string
	Hash crypto.Hash
	Sum  []byte
}

// hashes are the algorithms by the names that manifests give them, blanks and dashes left out. The
// first name is the one that is written.
var hashes = []struct {
	name string
	hash crypto.Hash
}{
	{"SHA256", crypto.SHA256}, {"SHA512", crypto.SHA512}, {"SHA384", crypto.SHA384}, {"SHA1", crypto.SHA1},
	{"SHA2256", crypto.SHA256}, {"SHA2512", crypto.SHA512}, {"SHA2384", crypto.SHA384},
}

func hashName(h crypto.Hash) string {
	for _, k := range hashes {
		if k.hash == h {
			return k.name
		}
	}
	return ""
}

// ReadManifest reads a manifest in any of the spellings in the wild: "SHA256(name)= hex",
// "SHA256 (name) = hex", "SHA-256(./name)=hex", "SHA2-256(name)= hex".
func ReadManifest(r io.Reader) (Manifest, error) {
	var m Manifest
	lines := bufio.NewScanner(io.LimitReader(r, maxManifest))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseSum(line)
		if err != nil {
			return nil, fmt.Errorf("ovf: manifest: line %d: %w", n, err)
		}
		m = append(m, s)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("ovf: manifest: %w", err)
	}
	return m, nil
}

func parseSum(line string) (Sum, error) {
	algorithm, rest, _ := strings.Cut(line, "(")
	at := strings.LastIndexByte(rest, ')')
	if at < 0 {
		return Sum{}, fmt.Errorf("%.80q: %w", line, formats.ErrCorrupt)
	}
	s := Sum{Name: strings.TrimPrefix(strings.TrimSpace(rest[:at]), "./")}
	value, ok := strings.CutPrefix(strings.TrimSpace(rest[at+1:]), "=")
	algorithm = strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(algorithm))
	for _, k := range hashes {
		if k.name == algorithm {
			s.Hash = k.hash
		}
	}
	if s.Hash == 0 {
		return s, fmt.Errorf("algorithm %.20q: %w", algorithm, formats.ErrFormat)
	}
	var err error
	s.Sum, err = hex.DecodeString(strings.TrimSpace(value))
	if !ok || err != nil || len(s.Sum) != s.Hash.Size() {
		return s, fmt.Errorf("%.80q is no %s: %w", value, hashName(s.Hash), formats.ErrCorrupt)
	}
	return s, checkName(s.Name)
}

// WriteTo writes the manifest in the spelling that every importer reads: "SHA256(name)= hex".
func (m Manifest) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	for _, s := range m {
		name := hashName(s.Hash)
		if name == "" || len(s.Sum) != s.Hash.Size() {
			return 0, fmt.Errorf("ovf: manifest: %q has a sum of %d bytes of algorithm %v: %w", s.Name, len(s.Sum), s.Hash, formats.ErrFormat)
		}
		if err := checkName(s.Name); err != nil {
			return 0, fmt.Errorf("ovf: manifest: %w", err)
		}
		fmt.Fprintf(&b, "%s(%s)= %x\n", name, s.Name, s.Sum)
	}
	n, err := w.Write(b.Bytes())
	if err != nil {
		err = fmt.Errorf("ovf: manifest: %w", err)
	}
	return int64(n), err
}

// of are the sums of a file.
func (m Manifest) of(name string) []Sum {
	var out []Sum
	for _, s := range m {
		if s.Name == name {
			out = append(out, s)
		}
	}
	return out
}

// hashesOf are the algorithms that sums are made with.
func hashesOf(sums []Sum) []crypto.Hash {
	var out []crypto.Hash
	for _, s := range sums {
		if !slices.Contains(out, s.Hash) {
			out = append(out, s.Hash)
		}
	}
	return out
}

// check compares sums that were taken of a file with those of the manifest, all of them.
func (m Manifest) check(name string, got []Sum) error {
	want := m.of(name)
	if len(want) == 0 {
		return fmt.Errorf("ovf: the manifest does not name %q: %w", name, formats.ErrCorrupt)
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(s Sum) bool { return s.Hash == w.Hash })
		if i < 0 {
			return fmt.Errorf("ovf: no %s was taken of %q: %w", hashName(w.Hash), name, formats.ErrFormat)
		}
		if !bytes.Equal(got[i].Sum, w.Sum) {
			return fmt.Errorf("ovf: %s of %q is %x, the manifest has %x: %w", hashName(w.Hash), name, got[i].Sum, w.Sum, formats.ErrCorrupt)
		}
	}
	return nil
}
