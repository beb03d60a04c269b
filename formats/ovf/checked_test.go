package ovf_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
)

// beside is a package whose files are in memory.
func beside(files map[string]string) func(string) (formats.Opened, error) {
	return func(name string) (formats.Opened, error) {
		s, ok := files[name]
		if !ok {
			return formats.Opened{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		return formats.Opened{ReaderAt: strings.NewReader(s), Closer: io.NopCloser(nil), Size: int64(len(s)), Name: name}, nil
	}
}

// manifest vouches for files.
func manifest(t *testing.T, files map[string]string) string {
	t.Helper()
	var m ovf.Manifest
	for name, s := range files {
		sum := sha256.Sum256([]byte(s))
		m = append(m, ovf.Sum{Name: name, Hash: crypto.SHA256, Sum: sum[:]})
	}
	var b bytes.Buffer
	_, err := m.WriteTo(&b)
	require.NoError(t, err)
	return b.String()
}

// What is stored is compared while it goes by, however it is stored.
func TestChecked(t *testing.T) {
	content := strings.Repeat("all of the disk ", 1000)
	packed := zipped(t, content)
	for name, c := range map[string]struct {
		file  ovf.File
		files map[string]string
		want  string
	}{
		"plain":  {ovf.File{Href: "d"}, map[string]string{"d": content}, content},
		"empty":  {ovf.File{Href: "d"}, map[string]string{"d": ""}, ""},
		"packed": {ovf.File{Href: "d", Gzip: true}, map[string]string{"d": packed}, content},
		"chunks": {ovf.File{Href: "d", ChunkSize: 7000}, map[string]string{
			"d.000000000": content[:7000], "d.000000001": content[7000:14000], "d.000000002": content[14000:],
		}, content},
		"whole chunks": {ovf.File{Href: "d", ChunkSize: 8000}, map[string]string{"d.000000000": content[:8000], "d.000000001": content[8000:]}, content},
		"packed in chunks": {ovf.File{Href: "d", Gzip: true, ChunkSize: 40}, map[string]string{
			"d.000000000": packed[:40], "d.000000001": packed[40:min(80, len(packed))], "d.000000002": packed[min(80, len(packed)):],
		}, content},
	} {
		t.Run(name, func(t *testing.T) {
			for chunk := range c.files { // an empty one at the end is none
				if c.files[chunk] == "" && chunk != "d" {
					delete(c.files, chunk)
				}
			}
			c.file.ID = "f"
			descriptor := text(t, machine(c.file))
			open := func(change string) *ovf.Package {
				files := map[string]string{"m.ovf": descriptor}
				for n, s := range c.files {
					files[n] = s
				}
				files["m.mf"] = manifest(t, files)
				if s, ok := files[change]; ok && s != "" {
					files[change] = s[:len(s)/2] + string(s[len(s)/2]^1) + s[len(s)/2+1:]
				}
				p, err := ovf.Open("m.ovf", beside(files))
				require.NoError(t, err)
				return p
			}
			p := open("")
			_, err := p.CheckDescriptor()
			require.NoError(t, err)
			came := int64(0)
			r, err := p.Checked(c.file, func(n int64) { came += n })
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, errors.Join(err, r.Close()))
			require.Equal(t, c.want, string(got))
			stored := 0
			for n, s := range c.files {
				stored += len(s)
				require.True(t, p.Vouched(n))
			}
			require.EqualValues(t, stored, came)

			for n, s := range c.files {
				if s == "" {
					continue
				}
				r, err := open(n).Checked(c.file, func(int64) {})
				if err == nil {
					_, err = io.ReadAll(r)
					r.Close()
				}
				require.ErrorIs(t, err, formats.ErrCorrupt, "%s is damaged", n)
			}
		})
	}
}

func TestCheckedSizes(t *testing.T) {
	p, err := ovf.Open("m.ovf", beside(map[string]string{
		"m.ovf": text(t, machine(ovf.File{ID: "f", Href: "d"})), "d": "12345", "e.000000000": "12", "e.000000001": "123",
	}))
	require.NoError(t, err)
	read := func(f ovf.File) error {
		r, err := p.Checked(f, func(int64) {})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	require.NoError(t, read(ovf.File{Href: "d", Size: 5}))
	require.ErrorIs(t, read(ovf.File{Href: "d", Size: 6}), formats.ErrCorrupt)
	require.ErrorIs(t, read(ovf.File{Href: "e", ChunkSize: 3}), formats.ErrCorrupt, "a chunk before the last that is too short")
	require.ErrorIs(t, read(ovf.File{Href: "e", ChunkSize: 1}), formats.ErrCorrupt, "one that is too long")
	require.ErrorIs(t, read(ovf.File{Href: "absent"}), fs.ErrNotExist)
	require.ErrorIs(t, read(ovf.File{Href: "../d"}), formats.ErrCorrupt)
}

func TestRestate(t *testing.T) {
	descriptor := `<?xml version="1.0"?>
<!-- <File ovf:id="a" ovf:size="1"/> stays -->
<Envelope xmlns:ovf="o"><References>
  <File ovf:compression='gzip' ovf:href="a size=&quot;1&quot;.gz"  ovf:id="a" ovf:size="12"	ovf:chunkSize = "4" />
  <File ovf:href="b" ovf:id="b" ovf:size="13"/>
</References><Unknown size="1"><![CDATA[<File id="a" size="1"/>]]></Unknown>
<Disk ovf:diskId="x" ovf:fileRef="a" ovf:format="urn:qcow2"></Disk><Disk ovf:fileRef="b" ovf:format="urn:raw"/></Envelope>`
	same, err := ovf.Restate([]byte(descriptor), nil)
	require.NoError(t, err)
	require.Equal(t, descriptor, string(same))
	got, err := ovf.Restate([]byte(descriptor), map[string]bool{"a": true})
	require.NoError(t, err)
	want := strings.Replace(descriptor, `<File ovf:compression='gzip' ovf:href="a size=&quot;1&quot;.gz"  ovf:id="a" ovf:size="12"	ovf:chunkSize = "4" />`,
		`<File ovf:href="a size=&quot;1&quot;.gz"  ovf:id="a" />`, 1)
	want = strings.Replace(want, "urn:qcow2", ovf.StreamVMDK, 1)
	require.Equal(t, want, string(got))
	for _, broken := range []string{"<File id='a'", "<a", "<File id=\"a\" size=1>", "\xff<File"} {
		_, err := ovf.Restate([]byte(broken), map[string]bool{"a": true})
		require.ErrorIs(t, err, formats.ErrCorrupt, "%q", broken)
	}
}

// Whatever a descriptor says, what is restated can be read, and says no size of what was named.
func FuzzRestate(f *testing.F) {
	f.Add(`<Envelope><File ovf:id="a" ovf:size="1"/><Disk fileRef="a" format="x"/></Envelope>`)
	f.Add(`<File id='a' size="1" / >`)
	f.Fuzz(func(t *testing.T, s string) {
		out, err := ovf.Restate([]byte(s), map[string]bool{"a": true})
		if err != nil {
			return
		}
		again, err := ovf.Restate(out, map[string]bool{"a": true})
		require.NoError(t, err)
		require.Equal(t, string(out), string(again), "once is enough")
	})
}
