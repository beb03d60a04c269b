package activities

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// packer is a bench with a VM of several disks, all like the one of the platform, that are copied.
type packer struct {
	*bench
	target Target
	vm     providers.VM
	disks  []PackagedDisk
	done   []Transferred
}

func newPackBench(t *testing.T, kind string, disks int) *packer {
	t.Helper()
	p := &packer{bench: newBench(t)}
	p.platform.disk = newNoise(7, 2*mib+512)
	p.target = Target{Output: p.out, Folder: "web-01", Format: "vmdk", Compress: true, Package: kind, Base: "web-01"}
	p.vm = providers.VM{Name: "web-01", NumCPU: 2, MemoryMB: 1024, GuestID: "ubuntu64Guest"}
	for i := range disks {
		p.disks = append(p.disks, PackagedDisk{
			Disk: providers.Disk{ID: providers.DiskID(fmt.Sprint(2000 + i)), Label: fmt.Sprintf("Hard disk %d", i+1), Size: p.platform.disk.Size(), Controller: "pvscsi", Unit: i},
			File: fmt.Sprintf("web-01-disk-%d.vmdk", i+1),
		})
	}
	p.done = make([]Transferred, disks)
	p.prepared()
	for i := range p.disks {
		p.copied(i)
	}
	return p
}

func (p *packer) prepared() {
	p.t.Helper()
	_, err := p.bench.prepare(func(in *PrepareRequest) {
		in.Target, in.Files = p.target, nil
		for _, d := range p.disks {
			in.Files = append(in.Files, d.File)
		}
		in.Files = append(in.Files, p.target.PackageFiles()...)
	})
	require.NoError(p.t, err)
}

func (p *packer) ref(i int) providers.DiskRef {
	return providers.DiskRef{VM: "vm-42", Snapshot: "s1", Disk: p.disks[i].Disk.ID}
}

// copied copies a disk, or finds that it is.
func (p *packer) copied(i int) {
	p.t.Helper()
	in := p.bench.request()
	in.Ref, in.Target, in.File = p.ref(i), p.target, p.disks[i].File
	out, err := call(p.bench, p.data.TransferDisk, in)
	require.NoError(p.t, err)
	p.done[i] = out
	p.disks[i].Inode, p.disks[i].Stored = out.Inode, out.Stored
}

func (p *packer) request() PackageRequest {
	return PackageRequest{Job: "job-1", Target: p.target, VM: p.vm, Disks: p.disks}
}

func (p *packer) begin() BegunPackage {
	p.t.Helper()
	out, err := call(p.bench, p.data.BeginPackage, p.request())
	require.NoError(p.t, err)
	return out
}

func (p *packer) pack(b BegunPackage, i int, set ...func(*testsuite.TestActivityEnvironment)) (PackedDisk, error) {
	p.t.Helper()
	return call(p.bench, p.data.PackDisk, PackRequest{
		Job: "job-1", Ref: p.ref(i), Size: p.disks[i].Disk.Size, Target: p.target, Disk: p.disks[i], Offset: b.Offsets[i],
	}, set...)
}

// packed packs all disks.
func (p *packer) packed() BegunPackage {
	p.t.Helper()
	b := p.begin()
	for i := range p.disks {
		out, err := p.pack(b, i)
		require.NoError(p.t, err)
		p.disks[i].SHA256 = out.SHA256
	}
	return b
}

func (p *packer) sealed() SealedPackage {
	p.t.Helper()
	out, err := call(p.bench, p.data.SealPackage, p.request())
	require.NoError(p.t, err)
	return out
}

func (p *packer) check() (CheckedPackage, error) {
	p.t.Helper()
	return call(p.bench, p.data.CheckPackage, CheckPackageRequest{Job: "job-1", Target: p.target})
}

func (p *packer) verified(i int) (Verified, error) {
	p.t.Helper()
	return call(p.bench, p.data.VerifyDisk, VerifyRequest{
		Job: "job-1", Disk: string(p.disks[i].Disk.ID), Label: p.disks[i].Disk.Label, Size: p.disks[i].Disk.Size, Target: p.target,
		File: p.disks[i].File, Digest: p.done[i].Digest,
	})
}

func (p *packer) finished(s SealedPackage, change ...func(*FinishRequest)) (Finished, error) {
	p.t.Helper()
	return p.bench.finish(Transferred{}, Verified{}, append([]func(*FinishRequest){func(in *FinishRequest) {
		in.Target, in.Package, in.Disks = p.target, s.Files, nil
		for i, d := range p.disks {
			in.Disks = append(in.Disks, FinishDisk{DiskResult: job.DiskResult{
				Disk: string(d.Disk.ID), File: d.File, Format: "vmdk", Size: d.Disk.Size, Stored: d.Stored, Digest: p.done[i].Digest, SHA256: d.SHA256,
				Archive: p.target.Archive(),
			}, Inode: d.Inode})
		}
	}}, change...)...)
}

// sameDisk compares a disk of a package with that of the platform.
func (p *packer) sameDisk(r io.ReaderAt, size int64) {
	p.t.Helper()
	img, err := vmdk.Open(p.t.Context(), r, size, formats.OpenOptions{})
	require.NoError(p.t, err)
	defer img.Close()
	want, got := make([]byte, p.platform.disk.Size()), make([]byte, p.platform.disk.Size())
	_, err = p.platform.disk.ReadAt(want, 0)
	require.True(p.t, err == nil || errors.Is(err, io.EOF))
	_, err = img.ReadAt(got, 0)
	require.True(p.t, err == nil || errors.Is(err, io.EOF))
	require.Equal(p.t, sha256.Sum256(want), sha256.Sum256(got))
}

func (p *packer) openArchive(name string) (*ovf.Package, *os.File) {
	p.t.Helper()
	f, err := os.Open(p.path(name))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	require.NoError(p.t, err)
	pkg, err := ovf.Index(p.t.Context(), f, st.Size())
	require.NoError(p.t, err)
	return pkg, f
}

func TestArchive(t *testing.T) {
	p := newPackBench(t, PackageOVA, 2)
	b := p.begin()
	require.Len(t, b.Offsets, 2)
	require.Equal(t, b, p.begin(), "beginning again finds what is there")
	p.packed()
	require.NoFileExists(t, p.path(".web-01-disk-1.vmdk.part"), "a disk that is in the archive is nowhere else")
	require.NoFileExists(t, p.path(".web-01-disk-2.vmdk.part"))
	s := p.sealed()
	require.Equal(t, s, p.sealed(), "sealing again gives the same")
	c, err := p.check()
	require.NoError(t, err)
	require.Equal(t, b.Size, c.Stored)
	for i, d := range p.disks {
		v, err := p.verified(i)
		require.NoError(t, err)
		require.Equal(t, Verified{SHA256: d.SHA256, Stored: d.Stored}, v)
	}
	s.Files[0].SHA256 = c.SHA256
	out, err := p.finished(s)
	require.NoError(t, err)
	require.Equal(t, []string{"manifest.json", "web-01-disk-1.vmdk.digests", "web-01-disk-2.vmdk.digests", "web-01.ova"}, p.names())
	require.Equal(t, []string{p.path("web-01.ova"), p.path("web-01-disk-1.vmdk.digests"), p.path("web-01-disk-2.vmdk.digests"), p.path("manifest.json")}, out.Files)
	again, err := p.finished(s)
	require.NoError(t, err)
	require.Equal(t, out, again)

	pkg, f := p.openArchive("web-01.ova")
	_, err = pkg.Verify(t.Context())
	require.NoError(t, err)
	for i, file := range pkg.Envelope.Files {
		o, err := pkg.OpenFile(file)
		require.NoError(t, err)
		p.sameDisk(o, o.Size)
		require.EqualValues(t, p.disks[i].Disk.Size, pkg.Envelope.Disks[i].Populated, "noise has no zeros")
	}
	_, err = f.Seek(0, io.SeekStart)
	require.NoError(t, err)
	h := sha256.New()
	var names []string
	for r := tar.NewReader(io.TeeReader(f, h)); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, head.Name)
	}
	require.Equal(t, []string{"web-01.ovf", "web-01.mf", "web-01-disk-1.vmdk", "web-01-disk-2.vmdk"}, names)
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	require.Equal(t, hex.EncodeToString(h.Sum(nil)), c.SHA256)
	m := p.manifestFile()
	require.Equal(t, &PackageRecord{Format: "ova", Files: []FileRecord{{File: "web-01.ova", Stored: c.Stored, SHA256: c.SHA256}}}, m.Package)
	require.Equal(t, "web-01.ova", m.Disks[1].Archive)
}

func (p *packer) manifestFile() Manifest {
	p.t.Helper()
	f, err := p.site.openFolder(p.target, false)
	require.NoError(p.t, err)
	defer f.Close()
	m, ok, err := f.readManifest()
	require.NoError(p.t, err)
	require.True(p.t, ok)
	return m
}

func TestPackageInAFolder(t *testing.T) {
	for _, verified := range []bool{true, false} {
		p := newPackBench(t, PackageOVF, 2)
		for i := range p.disks {
			if v, err := p.verified(i); verified {
				require.NoError(t, err)
				p.disks[i].SHA256 = v.SHA256
			}
		}
		s := p.sealed()
		require.Equal(t, s, p.sealed())
		out, err := p.finished(s, func(in *FinishRequest) {
			for i := range in.Disks {
				in.Disks[i].Archive = ""
			}
		})
		require.NoError(t, err)
		require.Equal(t, p.path("web-01.ovf"), out.Files[0])
		require.Equal(t, []string{
			"manifest.json", "web-01-disk-1.vmdk", "web-01-disk-1.vmdk.digests", "web-01-disk-2.vmdk", "web-01-disk-2.vmdk.digests", "web-01.mf", "web-01.ovf",
		}, p.names())
		root, err := os.OpenRoot(p.path(""))
		require.NoError(t, err)
		defer root.Close()
		pkg, err := ovf.Open("web-01.ovf", func(name string) (formats.Opened, error) {
			f, err := root.Open(name)
			if err != nil {
				return formats.Opened{}, err
			}
			st, err := f.Stat()
			return formats.Opened{ReaderAt: f, Closer: f, Size: st.Size(), Name: name}, err
		})
		require.NoError(t, err)
		_, err = pkg.Verify(t.Context())
		require.NoError(t, err, "the manifest names the sums of all files, taken or not while verifying")
	}
}

// Whatever ends packing, it goes on where it was, or with what is there.
func TestPackingIsCutOff(t *testing.T) {
	t.Run("the worker is killed after every step", func(t *testing.T) {
		p := newPackBench(t, PackageOVA, 2)
		b := p.begin()
		first, err := p.pack(b, 0)
		require.NoError(t, err)
		again, err := p.pack(b, 0)
		require.NoError(t, err, "the answer was lost")
		require.Equal(t, first, again)
		require.Equal(t, b, p.begin())
	})
	t.Run("between the last byte and the removal of the file", func(t *testing.T) {
		p := newPackBench(t, PackageOVA, 1)
		b := p.begin()
		require.NoError(t, os.Link(p.path(".web-01-disk-1.vmdk.part"), p.path("kept")))
		first, err := p.pack(b, 0)
		require.NoError(t, err)
		require.NoError(t, os.Rename(p.path("kept"), p.path(".web-01-disk-1.vmdk.part")))
		again, err := p.pack(b, 0)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.NoFileExists(t, p.path(".web-01-disk-1.vmdk.part"))
	})
	t.Run("the whole job is placed on this host again", func(t *testing.T) {
		p := newPackBench(t, PackageOVA, 2)
		b := p.begin()
		_, err := p.pack(b, 0)
		require.NoError(t, err)
		p.prepared()
		read := p.platform.read
		before := p.done[0]
		p.copied(0)
		p.copied(1)
		require.Equal(t, read, p.platform.read, "no byte is read from the source again")
		require.Equal(t, before.Digest, p.done[0].Digest)
		require.Equal(t, before.Inode, p.done[0].Inode)
		p.packed()
		p.sealed()
		_, err = p.check()
		require.NoError(t, err)
	})
	t.Run("the archive is gone, and the disk with it", func(t *testing.T) {
		p := newPackBench(t, PackageOVA, 2)
		b := p.begin()
		_, err := p.pack(b, 0)
		require.NoError(t, err)
		require.NoError(t, os.Remove(p.path(".web-01.ova.part")))
		_, err = call(p.bench, p.data.BeginPackage, p.request())
		require.Equal(t, string(providers.NotFound), failure(t, err).Type())
		read := p.platform.read
		p.copied(0)
		require.Greater(t, p.platform.read, read, "it is copied again")
		p.packed()
		p.sealed()
		_, err = p.check()
		require.NoError(t, err)
	})
	t.Run("cancelled", func(t *testing.T) {
		p := newPackBench(t, PackageOVA, 1)
		b := p.begin()
		var cancel context.CancelCauseFunc
		set := cancellable(&cancel)
		cancel(context.Canceled)
		_, err := p.pack(b, 0, set)
		require.Error(t, err)
		require.FileExists(t, p.path(".web-01-disk-1.vmdk.part"))
		require.NoError(t, do(p.bench, p.control.Discard, DiscardRequest{Job: "job-1", Target: p.target}))
		require.Empty(t, p.names())
	})
}

// What was copied of a disk stays copied, and its sum goes on.
func TestPackingGoesOnInTheMiddle(t *testing.T) {
	p := newPackBench(t, PackageOVA, 1)
	b := p.begin()
	f, err := p.site.openFolder(p.target, false)
	require.NoError(t, err)
	defer f.Close()
	archive, err := f.open(partName("web-01.ova"), os.O_RDWR)
	require.NoError(t, err)
	defer archive.Close()
	half := p.disks[0].Stored / 2
	pk := &packing{Site: p.site, folder: f, archive: archive, m: newMeter(job.DiskProgress{}),
		in: PackRequest{Job: "job-1", Target: p.target, Disk: p.disks[0]},
		at: packed{Offset: b.Offsets[0], Stored: p.disks[0].Stored, Inode: p.disks[0].Inode}}
	j, jf, _, err := f.openPacked(p.disks[0].File, p.ref(0), p.disks[0].Disk.Size, p.target, archive)
	require.NoError(t, err)
	pk.journal = j
	src, err := f.openDisk(p.disks[0])
	require.NoError(t, err)
	defer src.Close()
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(h, io.NewOffsetWriter(archive, b.Offsets[0])), io.NewSectionReader(src, 0, half))
	require.NoError(t, err)
	require.NoError(t, pk.durable(half, h))
	require.NoError(t, jf.Close())
	// What is behind the checkpoint is copied, what is before it is not: a mark there stays.
	require.NoError(t, os.WriteFile(p.path("untouched"), nil, 0o600))
	out, err := p.pack(b, 0)
	require.NoError(t, err)
	require.Contains(t, p.log(), fmt.Sprintf(`"from":%d`, half))
	p.disks[0].SHA256 = out.SHA256
	require.NoError(t, os.Remove(p.path("untouched")))
	p.sealed()
	_, err = p.check()
	require.NoError(t, err, "the sum that went on is that of the whole")
}

// A rotten archive is found, wherever it rots.
func TestRottenArchive(t *testing.T) {
	p := newPackBench(t, PackageOVA, 1)
	b := p.packed()
	p.sealed()
	f, err := os.OpenFile(p.path(".web-01.ova.part"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	for _, off := range []int64{600, b.Offsets[0] + p.disks[0].Stored/2} {
		var was, now [1]byte
		_, err = f.ReadAt(was[:], off)
		require.NoError(t, err)
		now[0] = was[0] ^ 1
		_, err = f.WriteAt(now[:], off)
		require.NoError(t, err)
		_, err = p.check()
		require.Equal(t, string(providers.Corrupt), failure(t, err).Type(), "at %d", off)
		_, err = f.WriteAt(was[:], off)
		require.NoError(t, err)
	}
	_, err = p.check()
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{1, 2, 3}, b.Offsets[0]+p.disks[0].Stored/2)
	require.NoError(t, err)
	_, err = p.verified(0)
	require.Equal(t, string(providers.Corrupt), failure(t, err).Type())
}

// A new export takes away what the earlier one of another format left, and nothing else.
func TestPackageReplacesAnEarlierExport(t *testing.T) {
	p := newPackBench(t, PackageOVF, 1)
	_, err := p.finished(p.sealed(), func(in *FinishRequest) { in.Disks[0].Archive = "" })
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p.path("notes.txt"), []byte("mine"), 0o600))
	m, err := os.ReadFile(p.path("manifest.json"))
	require.NoError(t, err)
	m = bytes.Replace(m, []byte(`"job": "job-1"`), []byte(`"job": "job-0"`), 1)
	require.NoError(t, os.WriteFile(p.path("manifest.json"), bytes.Replace(m, []byte(`"web-01-disk-1.vmdk.digests"`), []byte(`"notes.txt"`), 1), 0o600))

	q := *p
	q.target.Package, q.target.Overwrite = PackageOVA, true
	q.disks = []PackagedDisk{{Disk: p.disks[0].Disk, File: "web-01-disk-1.vmdk"}}
	q.prepared()
	q.copied(0)
	q.packed()
	_, err = q.finished(q.sealed())
	require.NoError(t, err)
	require.Equal(t, []string{"manifest.json", "notes.txt", "web-01-disk-1.vmdk.digests", "web-01.ova"}, q.names(),
		"what a manifest names that no export made is not touched")
}
