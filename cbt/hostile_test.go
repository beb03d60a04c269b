package cbt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

func TestHostileManifests(t *testing.T) {
	c, dir, _ := three(t, Options{})
	require.NoError(t, c.Close())
	good := c.m
	for name, spoil := range map[string]func(m *Manifest){
		"a file outside":          func(m *Manifest) { m.Points[0].Disks[0].File = "../../etc/passwd" },
		"an index outside":        func(m *Manifest) { m.Points[0].Disks[0].Index = "/etc/passwd" },
		"a label that is a path":  func(m *Manifest) { m.Labels[0].Name = "../x" },
		"a label twice":           func(m *Manifest) { m.Labels = append(m.Labels, Label{"e", m.Labels[0].Name}) },
		"the file of another":     func(m *Manifest) { m.Points[1].Disks[0].File = m.Points[0].Disks[0].File },
		"a backing file of later": func(m *Manifest) { m.Points[1].Disks[0].Backing = m.Points[2].Disks[0].File },
		"a delta without base":    func(m *Manifest) { m.Points = m.Points[1:]; m.Points[0].Parent = 0 },
		"points that descend":     func(m *Manifest) { m.Points[0], m.Points[1] = m.Points[1], m.Points[0] },
		"a number to come":        func(m *Manifest) { m.Next = 2 },
		"a disk twice":            func(m *Manifest) { m.Points[0].Disks = append(m.Points[0].Disks, m.Points[0].Disks[0]) },
		"a negative size":         func(m *Manifest) { m.Points[0].Disks[0].Size = -1 },
		"a digest of nothing":     func(m *Manifest) { m.Points[0].Disks[0].Digest = "sha256-1m:00" },
		"control characters":      func(m *Manifest) { m.VM.Name = "\x1b[2J" },
		"another id":              func(m *Manifest) { m.ID = "../" },
		"no disk of that label":   func(m *Manifest) { m.Labels = nil },
		"compression":             func(m *Manifest) { m.Compression = "lzma" },
	} {
		t.Run(name, func(t *testing.T) {
			m := good.clone()
			spoil(m)
			b, err := seal(m)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, manifestName), b, 0o600))
			_, err = Open(t.Context(), dir, Options{ReadOnly: true})
			require.ErrorIs(t, err, formats.ErrCorrupt)
		})
	}
	b, err := seal(good)
	require.NoError(t, err)
	for name, x := range map[string][]byte{
		"empty":           {},
		"a changed digit": bytes.Replace(b, []byte(`"generation": `), []byte(`"generation": 1`), 1),
		"a later version": bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2`), 1),
		"something more":  append(slices.Clone(b), '{'),
		"too long":        make([]byte, maxManifest+1),
		"a new field":     resealed(t, bytes.Replace(b, []byte(`"vm": {`), []byte(`"wm": 1, "vm": {`), 1)),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, manifestName), x, 0o600))
			_, err = Open(t.Context(), dir, Options{ReadOnly: true})
			require.Error(t, err)
			require.True(t, errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrFormat), "%v", err)
		})
	}
	var compact bytes.Buffer
	require.NoError(t, json.Compact(&compact, b))
	require.NoError(t, os.WriteFile(filepath.Join(dir, manifestName), compact.Bytes(), 0o600))
	c, err = Open(t.Context(), dir, Options{})
	require.NoError(t, err, "white space does not matter")
	require.NoError(t, c.Close())
}

// resealed gives an edited manifest the checksum that fits.
func resealed(t testing.TB, b []byte) []byte {
	t.Helper()
	var s sealed
	require.NoError(t, json.Unmarshal(b, &s))
	var raw bytes.Buffer
	require.NoError(t, json.Compact(&raw, s.Chain))
	sum := sha256.Sum256(raw.Bytes())
	s.SHA256 = hex.EncodeToString(sum[:])
	out, err := json.Marshal(s)
	require.NoError(t, err)
	return out
}

func TestHostileIntents(t *testing.T) {
	c, dir, states := three(t, Options{})
	require.NoError(t, c.Close())
	for name, spoil := range map[string]func(in *intent){
		"removes a file of the chain":  func(in *intent) { in.Removes = []string{in.Manifest.Points[0].Disks[0].File} },
		"removes a file of a stranger": func(in *intent) { in.Removes = []string{"notes.txt"} },
		"removes a path":               func(in *intent) { in.Removes = []string{"../notes.txt"} },
		"names what it has not":        func(in *intent) { in.Renames = []string{"../x"} },
		"of another chain":             func(in *intent) { in.Manifest.ID = strings.Repeat("0", 32) },
		"of another time":              func(in *intent) { in.Manifest.Generation += 7 },
		"no manifest":                  func(in *intent) { in.Manifest = Manifest{} },
		// The part of a merge was lost: what it was to replace is not given up.
		"a part that is not there": func(in *intent) {
			in.Manifest.Points = in.Manifest.Points[1:]
			d := &in.Manifest.Points[0].Disks[0]
			in.Manifest.Points[0].Parent, d.Full, d.Backing = 0, true, ""
			in.Renames = []string{d.File}
			in.Removes = []string{"disk0-000001.qcow2", "disk0-000001.digests"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := &intent{Manifest: *c.m.clone(), Renames: []string{}, Removes: []string{}}
			in.Manifest.Generation++
			spoil(in)
			b, err := seal(in)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, intentName), b, 0o600))
			_, err = Open(t.Context(), dir, Options{})
			require.ErrorIs(t, err, formats.ErrCorrupt)
			require.NoError(t, os.Remove(filepath.Join(dir, intentName)))
			c, err := Open(t.Context(), dir, Options{})
			require.NoError(t, err)
			truth{1: {"d": states[0]}, 2: {"d": states[1]}, 3: {"d": states[2]}}.require(t, c)
			require.NoError(t, c.Close())
			require.Contains(t, names(t, dir), "notes.txt")
		})
	}
}

func FuzzManifest(f *testing.F) {
	c, _, _ := three(f, Options{})
	b, err := seal(c.m)
	require.NoError(f, err)
	var s sealed
	require.NoError(f, json.Unmarshal(b, &s))
	f.Add([]byte(s.Chain))
	in, err := json.Marshal(intent{Manifest: *c.m, Renames: []string{"disk0-000003.qcow2"}, Removes: []string{"disk7-000001.qcow2"}})
	require.NoError(f, err)
	f.Add(in)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		sum := sha256.Sum256(raw)
		b := fmt.Appendf(nil, `{"version":1,"chain":%s,"sha256":%q}`, raw, hex.EncodeToString(sum[:]))
		if m, err := parseManifest(b); err == nil {
			for name := range m.files() {
				require.Equal(t, name, filepath.Base(name))
				require.Regexp(t, fileForm, name)
			}
			for _, p := range m.Points {
				for _, d := range p.Disks {
					_, err := m.links(p.Number, d.Disk)
					require.NoError(t, err)
				}
			}
			again, err := seal(m)
			require.NoError(t, err)
			_, err = parseManifest(again)
			require.NoError(t, err)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, intentName), b, 0o600))
		root, err := os.OpenRoot(dir)
		require.NoError(t, err)
		defer root.Close()
		if in, err := (&folder{root: root}).readIntent(c.m); err == nil {
			for _, name := range slices.Concat(in.Renames, in.Removes) {
				require.Regexp(t, fileForm, name)
			}
		}
	})
}
