package ovf_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/ovf"
	"hypersdk/formats/vmdk"
)

// machine is an envelope with those disk files.
func machine(files ...ovf.File) ovf.Envelope {
	e := ovf.Envelope{Systems: []ovf.System{{ID: "m", Name: "m", OS: ovf.OS{ID: 1}, HardwareVersion: "vmx-13", CPUs: 1, Memory: 1 << 30, Firmware: ovf.BIOS,
		Controllers: []ovf.Controller{{ID: "1", Bus: ovf.SCSI, Model: "VirtualSCSI"}}}}}
	for i, f := range files {
		e.Files = append(e.Files, f)
		e.Disks = append(e.Disks, ovf.Disk{ID: "disk-" + f.ID, File: f.ID, Capacity: 1 << 20, Format: ovf.StreamVMDK})
		e.Systems[0].Drives = append(e.Systems[0].Drives, ovf.Drive{ID: fmt.Sprint(10 + i), Kind: ovf.HardDisk, Disk: "disk-" + f.ID, Controller: "1", Unit: i})
	}
	return e
}

// drain reads a whole OVA front to back; what it holds, by the names of its files.
func drain(t testing.TB, r io.Reader) (map[string]string, error) {
	t.Helper()
	o, err := ovf.NewReader(r)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for {
		p, err := o.Next(t.Context())
		if errors.Is(err, io.EOF) && !isRefusal(err) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(p)
		if err != nil {
			return nil, err
		}
		all[p.File.Href] = string(b)
	}
}

// indexed reads the same through an index.
func indexed(t testing.TB, b []byte) (map[string]string, error) {
	t.Helper()
	p, err := ovf.Index(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	if p.Manifest != nil {
		if _, err := p.Verify(t.Context()); err != nil {
			return nil, err
		}
	}
	all := make(map[string]string)
	for _, f := range p.Envelope.Files {
		r, err := p.Stream(f)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		all[f.Href] = string(b)
	}
	return all, nil
}

type entry struct{ name, content string }

// archive is a tar of those members, as the standard library writes it.
func archive(t testing.TB, format tar.Format, members ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: m.name, Size: int64(len(m.content)), Mode: 0o644, Format: format}))
		_, err := io.WriteString(w, m.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func text(t testing.TB, e ovf.Envelope) string {
	t.Helper()
	var b bytes.Buffer
	_, err := e.WriteTo(&b)
	require.NoError(t, err)
	return b.String()
}

func zipped(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, s)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

func sums(members ...entry) string {
	var s string
	for _, m := range members {
		s += fmt.Sprintf("SHA256(%s)= %x\n", m.name, sha256.Sum256([]byte(m.content)))
	}
	return s
}

func TestReadsArchivesOfAllKinds(t *testing.T) {
	const disk = "the bytes of a disk, not many of them"
	plain := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: int64(len(disk))})
	z := zipped(t, disk)
	gz := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: int64(len(z)), Gzip: true})
	chunked := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: int64(len(disk)), ChunkSize: 10}, ovf.File{ID: "b", Href: "b.vmdk", Size: 3})
	unsized := machine(ovf.File{ID: "a", Href: "a.vmdk", ChunkSize: 10}, ovf.File{ID: "b", Href: "b.vmdk"})
	both := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: int64(len(z)), ChunkSize: 25, Gzip: true})
	chunks := func(s string, n int) (out []entry) {
		for i := 0; len(s) > 0; i++ {
			c := s[:min(n, len(s))]
			s = s[len(c):]
			out = append(out, entry{fmt.Sprintf("a.vmdk.%09d", i), c})
		}
		return out
	}
	b := entry{"b.vmdk", "bbb"}
	for _, c := range []struct {
		name    string
		e       ovf.Envelope
		members []entry
	}{
		{"plain", plain, []entry{{"a.vmdk", disk}}},
		{"gzip", gz, []entry{{"a.vmdk", z}}},
		{"chunks", chunked, append(chunks(disk, 10), b)},
		{"chunks of unknown size", unsized, append(chunks(disk, 10), b)},
		{"chunks of gzip", both, chunks(z, 25)},
	} {
		head := entry{"m.ovf", text(t, c.e)}
		manifest := entry{"m.mf", sums(append([]entry{head}, c.members...)...)}
		want := map[string]string{"a.vmdk": disk}
		if len(c.e.Files) == 2 {
			want["b.vmdk"] = "bbb"
		}
		for order, members := range map[string][]entry{
			"no manifest":         append([]entry{head}, c.members...),
			"manifest first":      append([]entry{head, manifest}, c.members...),
			"manifest last":       append(append([]entry{head}, c.members...), manifest),
			"others between them": append([]entry{head, {"readme.txt", "hello"}, manifest, {"license", "free"}}, c.members...),
		} {
			for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatGNU, tar.FormatPAX} {
				a := archive(t, format, members...)
				got, err := drain(t, struct{ io.Reader }{bytes.NewReader(a)})
				require.NoError(t, err, "%s, %s, %v", c.name, order, format)
				require.Equal(t, want, got, "%s, %s, %v", c.name, order, format)
				got, err = indexed(t, a)
				require.NoError(t, err, "%s, %s, %v", c.name, order, format)
				require.Equal(t, want, got, "%s, %s, %v", c.name, order, format)
				require.True(t, ovf.IsArchive(a[:512]))
			}
		}
	}
}

func TestReadsOldManifests(t *testing.T) {
	e := machine(ovf.File{ID: "a", Href: "a.vmdk"})
	d := text(t, e)
	for _, manifest := range []string{
		fmt.Sprintf("SHA1(m.ovf)= %x\nSHA1(a.vmdk)= %x\n", sha1.Sum([]byte(d)), sha1.Sum([]byte("x"))),
		fmt.Sprintf("SHA512(m.ovf)= %x\nSHA1 (./a.vmdk) = %x\n", sha512.Sum512([]byte(d)), sha1.Sum([]byte("x"))),
	} {
		for _, a := range [][]byte{
			archive(t, tar.FormatUSTAR, entry{"./m.ovf", d}, entry{"./m.mf", manifest}, entry{"./a.vmdk", "x"}),
			archive(t, tar.FormatUSTAR, entry{"m.ovf", d}, entry{"a.vmdk", "x"}, entry{"m.mf", manifest}),
		} {
			_, err := drain(t, bytes.NewReader(a))
			require.NoError(t, err)
			_, err = indexed(t, a)
			require.NoError(t, err)
		}
	}
}

func TestRefusesArchivesThatLie(t *testing.T) {
	e := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: 4})
	head, a := entry{"m.ovf", text(t, e)}, entry{"a.vmdk", "disk"}
	good := entry{"m.mf", sums(head, a)}
	special := func(kind byte, link string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "m.ovf", Size: int64(len(head.content)), Mode: 0o644}))
		_, err := io.WriteString(w, head.content)
		require.NoError(t, err)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "a.vmdk", Typeflag: kind, Linkname: link}))
		require.NoError(t, w.Close())
		return b.Bytes()
	}
	tarOf := func(m ...entry) []byte { return archive(t, tar.FormatUSTAR, m...) }
	chunked := entry{"m.ovf", text(t, machine(ovf.File{ID: "a", Href: "a.vmdk", Size: 8, ChunkSize: 4}))}
	zip := entry{"m.ovf", text(t, machine(ovf.File{ID: "a", Href: "a.vmdk", Gzip: true}))}
	whole := tarOf(head, good, a)
	for name, file := range map[string][]byte{
		"empty":                       nil,
		"no archive":                  bytes.Repeat([]byte("text\n"), 500),
		"only the end":                make([]byte, 1024),
		"descriptor not first":        tarOf(a, head),
		"no descriptor":               tarOf(a),
		"disk missing":                tarOf(head),
		"disk missing, with manifest": tarOf(head, good),
		"disk cut":                    whole[:len(whole)-1024-512],
		"cut in a header":             whole[:len(whole)-1024-512-100],
		"cut in the descriptor":       whole[:700],
		"size":                        tarOf(head, entry{"a.vmdk", "disks"}),
		"sum":                         tarOf(head, good, entry{"a.vmdk", "desk"}),
		"sum, manifest last":          tarOf(head, entry{"a.vmdk", "desk"}, good),
		"sum of the descriptor":       tarOf(entry{"m.ovf", head.content + "\n"}, good, a),
		"manifest without the disk":   tarOf(head, entry{"m.mf", sums(head)}, a),
		"manifest last without it":    tarOf(head, a, entry{"m.mf", sums(head)}),
		"manifest with another file":  tarOf(head, entry{"m.mf", good.content + sums(entry{"b.vmdk", ""})}, a),
		"manifest that is none":       tarOf(head, entry{"m.mf", "SHA256"}, a),
		"certificate of nobody":       tarOf(head, good, entry{"m.cert", "SHA256(m.mf)= 00\n"}, a),
		"twice":                       tarOf(head, a, a),
		"out of the package":          tarOf(head, entry{"../a.vmdk", "disk"}, a),
		"absolute":                    tarOf(head, entry{"/a.vmdk", "disk"}, a),
		"in a folder":                 tarOf(head, entry{"x/a.vmdk", "disk"}, a),
		"symbolic link":               special(tar.TypeSymlink, "/etc/passwd"),
		"hard link":                   special(tar.TypeLink, "m.ovf"),
		"device":                      special(tar.TypeChar, ""),
		"pipe":                        special(tar.TypeFifo, ""),
		"chunk missing":               tarOf(chunked, entry{"a.vmdk.000000000", "1234"}),
		"chunk too short":             tarOf(chunked, entry{"a.vmdk.000000000", "12"}, entry{"a.vmdk.000000001", "345678"}),
		"chunks out of order":         tarOf(chunked, entry{"a.vmdk.000000001", "5678"}, entry{"a.vmdk.000000000", "1234"}),
		"too many chunks":             tarOf(chunked, entry{"a.vmdk.000000000", "1234"}, entry{"a.vmdk.000000001", "5678"}, entry{"a.vmdk.000000002", "9"}),
		"not gzip":                    tarOf(zip, a),
		"gzip cut":                    tarOf(zip, entry{"a.vmdk", zipped(t, strings.Repeat("disk", 100))[:25]}),
		"gzip sum":                    tarOf(zip, entry{"a.vmdk", zipped(t, "disk")[:20] + "\x00\x00\x00\x00\x00\x00\x00\x00"}),
	} {
		_, err := drain(t, bytes.NewReader(file))
		require.True(t, isRefusal(err), "%s, front to back: %v", name, err)
		if name == "chunks out of order" {
			continue // of no concern to who looks for them by name
		}
		_, err = indexed(t, file)
		require.True(t, isRefusal(err) || errors.Is(err, fs.ErrNotExist), "%s, at random: %v", name, err)
	}
}

// pack writes both ways and compares.
func pack(t testing.TB, c ovf.Content) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, ovf.Write(t.Context(), struct{ io.Writer }{&b}, c))
	f := formatstest.NewMemFile()
	_, err := f.WriteAt([]byte("what was there before"), 1<<20)
	require.NoError(t, err)
	require.NoError(t, ovf.WriteFile(t.Context(), f, c))
	formatstest.RequireEqual(t, formatstest.MemFileOf(b.Bytes()), f)
	return b.Bytes()
}

func contents(all map[string]string) func(context.Context, ovf.File, io.Writer) error {
	return func(_ context.Context, f ovf.File, w io.Writer) error {
		_, err := io.WriteString(w, all[f.Href])
		return err
	}
}

func TestWritesArchivesThatItReads(t *testing.T) {
	want := map[string]string{"disk-1.vmdk": strings.Repeat("one ", 300), "disk 2.vmdk": "", "nvram": "\x00\x01"}
	s := signer(t)
	for _, sign := range []*ovf.Signer{nil, s} {
		for _, h := range []crypto.Hash{0, crypto.SHA1, crypto.SHA512} {
			a := pack(t, ovf.Content{
				Name: "web", Hash: h, Sign: sign, Write: contents(want),
				Envelope: machine(ovf.File{ID: "a", Href: "disk-1.vmdk"}, ovf.File{ID: "b", Href: "disk 2.vmdk"}, ovf.File{ID: "c", Href: "nvram"}),
			})
			got, err := drain(t, bytes.NewReader(a))
			require.NoError(t, err)
			require.Equal(t, want, got)
			got, err = indexed(t, a)
			require.NoError(t, err)
			require.Equal(t, want, got)

			p, err := ovf.Index(t.Context(), bytes.NewReader(a), int64(len(a)))
			require.NoError(t, err)
			require.EqualValues(t, 1200, p.Envelope.Files[0].Size)
			chain, err := p.Verify(t.Context())
			require.NoError(t, err)
			require.Equal(t, sign != nil, len(chain) == 1)

			names := ""
			for r := tar.NewReader(bytes.NewReader(a)); ; {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				require.Equal(t, tar.FormatUSTAR, h.Format)
				names += h.Name + " "
			}
			if sign == nil {
				require.Equal(t, "web.ovf web.mf disk-1.vmdk disk 2.vmdk nvram ", names)
			} else {
				require.Equal(t, "web.ovf web.mf web.cert disk-1.vmdk disk 2.vmdk nvram ", names)
			}
		}
	}
}

// TestTarAgrees unpacks an archive with tar and reads the folder as a package.
func TestTarAgrees(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed: nothing to compare with")
	}
	want := map[string]string{"d.vmdk": strings.Repeat("disk", 1000)}
	a := pack(t, ovf.Content{Name: "web", Write: contents(want), Envelope: machine(ovf.File{ID: "a", Href: "d.vmdk"})})
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "web.ova"), a, 0o600))
	out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "-xvf", filepath.Join(dir, "web.ova")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "web.ovf\nweb.mf\nd.vmdk\n", string(out))
	p, err := ovf.Open("web.ovf", func(name string) (formats.Opened, error) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return formats.Opened{}, err
		}
		st, err := f.Stat()
		return formats.Opened{ReaderAt: f, Closer: f, Size: st.Size(), Name: name}, err
	})
	require.NoError(t, err)
	_, err = p.Verify(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "d.vmdk"), []byte(strings.Repeat("desk", 1000)), 0o600))
	_, err = p.Verify(t.Context())
	require.ErrorIs(t, err, formats.ErrCorrupt)
}

func TestWriteRefusesWhatItCannotKeep(t *testing.T) {
	for name, c := range map[string]ovf.Content{
		"a path":           {Name: "m", Envelope: machine(ovf.File{ID: "a", Href: "../a"})},
		"a path as a name": {Name: "../m", Envelope: machine()},
		"a long name":      {Name: "m", Envelope: machine(ovf.File{ID: "a", Href: strings.Repeat("a", 101)})},
		"gzip":             {Name: "m", Envelope: machine(ovf.File{ID: "a", Href: "a", Gzip: true})},
		"MD5":              {Name: "m", Envelope: machine(), Hash: crypto.MD5},
		"a second .ovf":    {Name: "m", Envelope: machine(ovf.File{ID: "a", Href: "x.ovf"})},
	} {
		c.Write = contents(nil)
		require.True(t, isRefusal(ovf.Write(t.Context(), io.Discard, c)), name)
		require.True(t, isRefusal(ovf.WriteFile(t.Context(), formatstest.NewMemFile(), c)), name)
	}
	n := 0
	err := ovf.Write(t.Context(), io.Discard, ovf.Content{Name: "m", Envelope: machine(ovf.File{ID: "a", Href: "a"}),
		Write: func(_ context.Context, _ ovf.File, w io.Writer) error {
			n++
			_, err := fmt.Fprint(w, n)
			return err
		}})
	require.ErrorIs(t, err, formats.ErrCorrupt, "a file that is another one the second time")
	boom := errors.New("boom")
	c := ovf.Content{Name: "m", Envelope: machine(ovf.File{ID: "a", Href: "a"}),
		Write: func(context.Context, ovf.File, io.Writer) error { return boom }}
	require.ErrorIs(t, ovf.Write(t.Context(), io.Discard, c), boom)
	f := formatstest.NewMemFile()
	require.ErrorIs(t, ovf.WriteFile(t.Context(), f, c), boom)
	_, err = ovf.Index(t.Context(), f, f.Size())
	require.Error(t, err, "an archive that was not completed is none")
}

// TestDisksGoStraightThrough: from an OVA read front to back into another, and at random out of it.
func TestDisksGoStraightThrough(t *testing.T) {
	d := formatstest.NewDisk(1, 5<<20)
	encode := func(ctx context.Context, src formats.Source, w io.Writer) error {
		out, err := vmdk.Encode(ctx, w, src.Size(), formats.CreateOptions{})
		if err != nil {
			return err
		}
		defer out.Close()
		if _, err := formats.Copy(ctx, out, src, formats.CopyOptions{}); err != nil {
			return err
		}
		return out.Commit(ctx)
	}
	e := machine(ovf.File{ID: "a", Href: "a.vmdk"})
	e.Disks[0].Capacity = d.Size()
	first := pack(t, ovf.Content{Name: "m", Envelope: e, Write: func(ctx context.Context, _ ovf.File, w io.Writer) error { return encode(ctx, d, w) }})

	p, err := ovf.Index(t.Context(), bytes.NewReader(first), int64(len(first)))
	require.NoError(t, err)
	o, err := p.OpenFile(p.Envelope.Files[0])
	require.NoError(t, err)
	img, err := vmdk.Open(t.Context(), o, o.Size, formats.OpenOptions{Beside: o.Beside})
	require.NoError(t, err)
	formatstest.CheckImage(t, img, d, false)

	second := pack(t, ovf.Content{Name: "m", Envelope: e, Write: func(ctx context.Context, _ ovf.File, w io.Writer) error {
		r, err := ovf.NewReader(bytes.NewReader(first))
		if err != nil {
			return err
		}
		part, err := r.Next(ctx)
		if err != nil {
			return err
		}
		src, err := vmdk.Stream(ctx, part)
		if err != nil {
			return err
		}
		return encode(ctx, src, w)
	}})
	require.True(t, bytes.Equal(first, second))
}

func TestCancelEndsReading(t *testing.T) {
	a := archive(t, tar.FormatUSTAR, entry{"m.ovf", text(t, machine(ovf.File{ID: "a", Href: "a.vmdk"}))}, entry{"a.vmdk", "disk"})
	o, err := ovf.NewReader(bytes.NewReader(a))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := o.Next(ctx)
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(p)
	require.ErrorIs(t, err, context.Canceled)
}

func FuzzArchive(f *testing.F) {
	e := machine(ovf.File{ID: "a", Href: "a.vmdk", Size: 4}, ovf.File{ID: "b", Href: "b.vmdk", ChunkSize: 2})
	head := entry{"m.ovf", text(f, e)}
	members := []entry{{"a.vmdk", "disk"}, {"b.vmdk.000000000", "12"}, {"b.vmdk.000000001", "3"}}
	f.Add(archive(f, tar.FormatUSTAR, append([]entry{head, {"m.mf", sums(append([]entry{head}, members...)...)}}, members...)...))
	f.Add(archive(f, tar.FormatPAX, append([]entry{head}, members...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := drain(t, bytes.NewReader(b))
		if err != nil && !isRefusal(err) {
			t.Fatal(err)
		}
		two, err2 := indexed(t, b)
		if err2 != nil && !isRefusal(err2) && !errors.Is(err2, fs.ErrNotExist) {
			t.Fatal(err2)
		}
		if err == nil && err2 == nil {
			for name, content := range one {
				if two[name] != content {
					t.Fatalf("%q differs", name)
				}
			}
		}
	})
}
