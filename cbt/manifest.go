package cbt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hypersdk/formats"
)

const (
	manifestVersion = 1

	maxManifest = 32 << 20
	maxPoints   = 4096
	maxDisks    = 1024
	maxNumber   = 999_999_999
	maxText     = 1024

	// maxLinks is how many files a disk may be read through. Tools open them all.
	maxLinks = 150
)

// Manifest is what a chain is made of. The file chain.json holds it as the value of "chain", with the
// version of its form beside it, and the SHA-256 of that value without white space.
type Manifest struct {
	ID         string `json:"id"`         // of the chain, 32 hex digits
	Generation int64  `json:"generation"` // one more with each change
	VM         VM     `json:"vm"`
	// Compression and ClusterSize are those of the files that are written.
	Compression string  `json:"compression,omitempty"`
	ClusterSize int64   `json:"cluster_size,omitempty"`
	Next        int64   `json:"next"` // number of the next point; numbers are never used again
	Labels      []Label `json:"labels"`
	Points      []State `json:"points"` // ascending
}

// VM is whose disks these are, in the words of its provider.
type VM struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Provider string `json:"provider,omitempty"`
}

// Label is what the files of a disk are called: the n-th disk that the chain saw is "disk<n>".
type Label struct {
	Disk string `json:"disk"` // as the provider calls it
	Name string `json:"name"`
}

// State is the disks of the VM at one point.
type State struct {
	Number int64     `json:"number"`
	Parent int64     `json:"parent,omitempty"` // the point before; 0: none
	Key    string    `json:"key"`              // of the caller: which attempt wrote it
	Time   time.Time `json:"time"`             // of the point
	Disks  []Disk    `json:"disks"`
}

// Disk is a disk at one point, and the file that holds it or what changed of it since the point before.
type Disk struct {
	Disk     string   `json:"disk"` // as the provider calls it
	Size     int64    `json:"size"` // bytes
	ChangeID Point    `json:"change_id,omitempty"`
	Full     bool     `json:"full"`
	Reason   string   `json:"reason,omitempty"` // for being full
	By       Tracking `json:"by,omitempty"`     // how the changes of a delta were found
	File     string   `json:"file"`
	Backing  string   `json:"backing,omitempty"` // file of the point before; of a delta
	Stored   int64    `json:"stored"`            // bytes of File
	Changed  int64    `json:"changed"`           // bytes of the disk that were taken from the source
	Index    string   `json:"index"`             // file of the sums of its blocks
	Digest   string   `json:"digest"`            // content digest of the whole disk at this point
}

type sealed struct {
	Version int             `json:"version"`
	Chain   json.RawMessage `json:"chain"`
	SHA256  string          `json:"sha256"`
}

var errManifest = errors.New("manifest")

// seal encodes v with its version and checksum.
func seal(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	out, err := json.MarshalIndent(sealed{manifestVersion, raw, hex.EncodeToString(sum[:])}, "", "  ")
	if err == nil && len(out) > maxManifest {
		err = fmt.Errorf("it would take %d bytes", len(out))
	}
	return append(out, '\n'), err
}

// unseal decodes what seal made. What this version does not know is refused: writing it again would
// lose it.
func unseal(b []byte, v any) error {
	var s sealed
	if err := strictly(b, &s); err != nil {
		return fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
	}
	if s.Version != manifestVersion {
		return fmt.Errorf("version %d, version %d is known: %w", s.Version, manifestVersion, formats.ErrFormat)
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, s.Chain); err != nil {
		return fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
	}
	if sum := sha256.Sum256(raw.Bytes()); hex.EncodeToString(sum[:]) != s.SHA256 {
		return fmt.Errorf("its checksum does not match: %w", formats.ErrCorrupt)
	}
	if err := strictly(raw.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
	}
	return nil
}

func strictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

// parseManifest decodes and examines chain.json.
func parseManifest(b []byte) (*Manifest, error) {
	m := new(Manifest)
	if err := unseal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", errManifest, err)
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w: %w", errManifest, err, formats.ErrCorrupt)
	}
	return m, nil
}

var (
	idForm    = regexp.MustCompile(`^[0-9a-f]{32}$`)
	labelForm = regexp.MustCompile(`^disk(0|[1-9][0-9]{0,3})$`)
	// fileForm is every name that a chain gives to a file of a disk, hidden ones included.
	fileForm = regexp.MustCompile(`^\.?disk(0|[1-9][0-9]{0,3})-[0-9]{6,9}\.(qcow2|digests|compared)(\.part|\.journal)?$`)
)

func imageName(label string, number int64) string { return fmt.Sprintf("%s-%06d.qcow2", label, number) }
func indexName(label string, number int64) string {
	return fmt.Sprintf("%s-%06d.digests", label, number)
}
func comparedName(label string, number int64) string {
	return fmt.Sprintf("%s-%06d.compared", label, number)
}
func partName(file string) string    { return "." + file + ".part" }
func journalName(file string) string { return "." + file + ".journal" }

// text says whether s can be shown to a person and kept for ever.
func text(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
}

// plain makes text of s.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

func (m *Manifest) validate() error {
	switch {
	case !idForm.MatchString(m.ID):
		return fmt.Errorf("chain id %q", m.ID)
	case m.Generation < 1 || m.Generation == math.MaxInt64:
		return fmt.Errorf("generation %d", m.Generation)
	case !text(m.VM.ID) || !text(m.VM.Name) || !text(m.VM.Provider):
		return errors.New("the name of the VM is no text")
	case m.Next < 1 || m.Next > maxNumber:
		return fmt.Errorf("number of the next point %d", m.Next)
	case len(m.Points) > maxPoints:
		return fmt.Errorf("%d points", len(m.Points))
	case len(m.Labels) > maxDisks:
		return fmt.Errorf("%d disks", len(m.Labels))
	case m.ClusterSize < 0 || m.Compression != "" && m.Compression != "zlib" && m.Compression != "zstd":
		return fmt.Errorf("compression %q, clusters of %d", m.Compression, m.ClusterSize)
	}
	disks, names := make(map[string]string), make(map[string]bool)
	for _, l := range m.Labels {
		if _, twice := disks[l.Disk]; twice || l.Disk == "" || !text(l.Disk) || names[l.Name] || !labelForm.MatchString(l.Name) {
			return fmt.Errorf("label %q of disk %q", l.Name, l.Disk)
		}
		disks[l.Disk], names[l.Name] = l.Name, true
	}
	var before *State
	for i := range m.Points {
		if err := m.Points[i].validate(m, disks, before); err != nil {
			return fmt.Errorf("point %d: %w", m.Points[i].Number, err)
		}
		before = &m.Points[i]
	}
	return nil
}

func (s *State) validate(m *Manifest, labels map[string]string, before *State) error {
	last := int64(0)
	if before != nil {
		last = before.Number
	}
	switch {
	case s.Number <= last || s.Number >= m.Next:
		return fmt.Errorf("it follows point %d, and the next one is %d", last, m.Next)
	case s.Parent != last:
		return fmt.Errorf("its parent is point %d instead of %d", s.Parent, last)
	case !text(s.Key):
		return errors.New("its key is no text")
	case len(s.Disks) > maxDisks:
		return fmt.Errorf("%d disks", len(s.Disks))
	}
	seen := make(map[string]bool)
	for i := range s.Disks {
		d := &s.Disks[i]
		label, ok := labels[d.Disk]
		if !ok || seen[d.Disk] {
			return fmt.Errorf("disk %q has no label, or is here twice", d.Disk)
		}
		seen[d.Disk] = true
		if err := d.validate(s.Number, label, before); err != nil {
			return fmt.Errorf("disk %q: %w", d.Disk, err)
		}
	}
	return nil
}

// validate examines a disk of a point. The names of files follow from its label and the number of the
// point: no other can be named.
func (d *Disk) validate(number int64, label string, before *State) error {
	if d.File != imageName(label, number) || d.Index != indexName(label, number) {
		return fmt.Errorf("files %q and %q", d.File, d.Index)
	}
	if d.Size < 0 || d.Stored < 0 || d.Changed < 0 || !text(string(d.ChangeID)) || !text(d.Reason) || !text(string(d.By)) {
		return errors.New("sizes or texts that cannot be")
	}
	if _, err := formats.ParseDigest(d.Digest); err != nil {
		return err
	}
	if d.Full {
		if d.Backing != "" {
			return fmt.Errorf("it is full and has the backing file %q", d.Backing)
		}
		return nil
	}
	if before == nil || before.disk(d.Disk) == nil || before.disk(d.Disk).File != d.Backing {
		return fmt.Errorf("its backing file %q is not that of the point before", d.Backing)
	}
	return nil
}

// disk finds a disk of the point.
func (s *State) disk(key string) *Disk {
	for i := range s.Disks {
		if s.Disks[i].Disk == key {
			return &s.Disks[i]
		}
	}
	return nil
}

// index is the place of a point in Points, or -1.
func (m *Manifest) index(number int64) int {
	for i := range m.Points {
		if m.Points[i].Number == number {
			return i
		}
	}
	return -1
}

// Newest is the last point; nil: there is none.
func (m *Manifest) Newest() *State {
	if len(m.Points) == 0 {
		return nil
	}
	return &m.Points[len(m.Points)-1]
}

// ByKey is the point that an attempt with a key has written; nil: there is none. The empty key is
// nobody's.
func (m *Manifest) ByKey(key string) *State {
	for i := range m.Points {
		if key != "" && m.Points[i].Key == key {
			return &m.Points[i]
		}
	}
	return nil
}

// clone is a manifest that may be changed.
func (m *Manifest) clone() *Manifest {
	c := *m
	c.Labels = append([]Label{}, m.Labels...)
	c.Points = make([]State, len(m.Points))
	for i, p := range m.Points {
		p.Disks = append([]Disk{}, p.Disks...)
		c.Points[i] = p
	}
	return &c
}

// label is the label of a disk, made where there is none yet.
func (m *Manifest) label(disk string) string {
	used := make(map[string]bool)
	for _, l := range m.Labels {
		if l.Disk == disk {
			return l.Name
		}
		used[l.Name] = true
	}
	n := 0
	for used[fmt.Sprint("disk", n)] {
		n++
	}
	name := fmt.Sprint("disk", n)
	m.Labels = append(m.Labels, Label{disk, name})
	return name
}

// link is a file that a disk is read through.
type link struct {
	point *State
	disk  *Disk
}

// links are the files of a disk at a point, the newest first.
func (m *Manifest) links(number int64, disk string) ([]link, error) {
	i := m.index(number)
	if i < 0 {
		return nil, fmt.Errorf("there is no point %d: %w", number, ErrNotFound)
	}
	var all []link
	for ; i >= 0; i-- {
		d := m.Points[i].disk(disk)
		if d == nil {
			break
		}
		all = append(all, link{&m.Points[i], d})
		if d.Full {
			return all, nil
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("disk %q was not there at point %d: %w", disk, number, ErrNotFound)
	}
	return nil, fmt.Errorf("disk %q has no base: %w", disk, formats.ErrCorrupt) // validate has seen to it
}

// files are the names of all files of the chain, and whose they are.
func (m *Manifest) files() map[string]link {
	all := make(map[string]link)
	for i := range m.Points {
		for j := range m.Points[i].Disks {
			d := &m.Points[i].Disks[j]
			all[d.File], all[d.Index] = link{&m.Points[i], d}, link{&m.Points[i], d}
		}
	}
	return all
}
