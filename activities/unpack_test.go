package activities

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/ovf"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// folderPackage writes a package of these files, one disk each, and opens it.
func folderPackage(t *testing.T, s *Site, capacity int64, said int64, files map[string][]byte) *openedPackage {
	t.Helper()
	dir := t.TempDir()
	e := ovf.Envelope{Systems: []ovf.System{{ID: "m", Name: "machine", OS: ovf.OS{ID: 1}, HardwareVersion: "vmx-13", CPUs: 1, Memory: 1 << 30, Firmware: ovf.BIOS,
		Controllers: []ovf.Controller{{ID: "1", Bus: ovf.SCSI, Model: "VirtualSCSI"}}}}}
	for name, b := range files {
		id := fmt.Sprint("f", len(e.Files))
		e.Files = append(e.Files, ovf.File{ID: id, Href: name, Size: said})
		e.Disks = append(e.Disks, ovf.Disk{ID: "d" + id, File: id, Capacity: capacity, Format: ovf.StreamVMDK})
		e.Systems[0].Drives = append(e.Systems[0].Drives, ovf.Drive{ID: fmt.Sprint(10 + len(e.Files)), Kind: ovf.HardDisk, Disk: "d" + id, Controller: "1", Unit: len(e.Files)})
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	var text bytes.Buffer
	_, err := e.WriteTo(&text)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "m.ovf"), text.Bytes(), 0o600))
	p, err := s.openPackage(t.Context(), filepath.Join(dir, "m.ovf"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func TestFilesOfAPackage(t *testing.T) {
	s := &Site{deps: Deps{Format: all.ByName, Probe: all.Probe}, buffers: formats.NewBuffers(64 << 20)}
	disk := bytes.Repeat([]byte("content of a disk"), 100_000)[:1<<20]
	var stream bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &stream, int64(len(disk)), formats.CreateOptions{})
	require.NoError(t, err)
	_, err = w.WriteAt(disk, 0)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))

	p := folderPackage(t, s, 1<<20, 0, map[string][]byte{"a.vmdk": stream.Bytes()})
	require.Equal(t, "machine", p.vmName())
	files, err := s.files(t.Context(), p)
	require.NoError(t, err)
	require.Equal(t, []PackedFile{{Name: "a.vmdk", Size: int64(stream.Len())}}, files, "goes up as it is")
	text, err := p.restated(files)
	require.NoError(t, err)
	require.Equal(t, string(p.Descriptor()), text)

	p = folderPackage(t, s, 1<<20, 7, map[string][]byte{"a.vmdk": stream.Bytes()})
	files, err = s.files(t.Context(), p)
	require.NoError(t, err, "the disk proves itself that it is whole")
	require.EqualValues(t, 7, files[0].Said)
	p = folderPackage(t, s, 1<<20, 7, map[string][]byte{"a.vmdk": stream.Bytes()[:stream.Len()-1024]})
	_, err = s.files(t.Context(), p)
	require.ErrorIs(t, err, formats.ErrCorrupt, "one that is cut does not")

	p = folderPackage(t, s, 1<<20, 0, map[string][]byte{"a.raw": disk})
	files, err = s.files(t.Context(), p)
	require.NoError(t, err)
	require.Equal(t, []PackedFile{{Name: "a.raw", Size: 1 << 20, Convert: true}}, files)
	r, err := (&unpacking{Site: s}).convert(t.Context(), p, p.Envelope.Files[0], &unpackedFile{m: newMeter(job.DiskProgress{Disk: "a.raw", Total: 1 << 20})})
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.True(t, vmdk.EndsInFooter(b[:512]))
	img, err := vmdk.Open(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{})
	require.NoError(t, err)
	defer img.Close()
	got := make([]byte, len(disk))
	_, err = io.ReadFull(io.NewSectionReader(img, 0, img.Size()), got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(disk, got))

	_, err = s.files(t.Context(), folderPackage(t, s, 2<<20, 0, map[string][]byte{"a.raw": disk}))
	require.ErrorIs(t, err, providers.Corrupt, "another size than the descriptor says")
	_, err = s.files(t.Context(), folderPackage(t, s, 1<<20, 0, map[string][]byte{"a.vmdk": disk}))
	require.ErrorIs(t, err, formats.ErrFormat, "no disk that is known")
	_, err = s.openPackage(t.Context(), "/nowhere/a.zip")
	require.ErrorIs(t, err, providers.Invalid)
	_, err = s.openPackage(t.Context(), filepath.Join(t.TempDir(), "a.ova"))
	require.Equal(t, providers.NotFound, reasonOf(err))
	s.Roots = []string{"/exports"}
	_, err = s.openPackage(t.Context(), filepath.Join(t.TempDir(), "a.ova"))
	require.ErrorIs(t, err, providers.Denied, "outside of the folders that jobs may work in")
}
