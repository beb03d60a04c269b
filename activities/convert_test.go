package activities

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// lay writes a raw disk of n bytes, all of them different from zero.
func (b *bench) lay(name string, n int) string {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), name)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7/3) | 1
	}
	require.NoError(b.t, os.WriteFile(path, data, 0o600))
	return path
}

// rawTo is a conversion of raw disks into others below the folder of the bench.
func (b *bench) rawTo(format string, sources ...string) job.Conversion {
	c := job.Conversion{TargetFormat: format}
	for _, s := range sources {
		c.Disks = append(c.Disks, job.ConversionDisk{SourcePath: s, SourceFormat: "raw", OutputPath: filepath.Join(b.out, filepath.Base(s)+"."+format)})
	}
	return c
}

func (b *bench) look(c job.Conversion) Looked {
	b.t.Helper()
	seen, err := call(b, b.control.Look, LookRequest{Job: "j1", Spec: c})
	require.NoError(b.t, err)
	return seen
}

func target(c job.Conversion, i int) Target {
	layout := Layout(c)
	return Target{
		Output: filepath.Dir(c.Disks[i].OutputPath), Alone: filepath.Base(c.Disks[i].OutputPath), Format: c.TargetFormat,
		Create: &layout, Overwrite: c.Overwrite,
	}
}

func prepareRequest(c job.Conversion, id string) PrepareImagesRequest {
	r := PrepareImagesRequest{Job: id}
	for i := range c.Disks {
		r.Images = append(r.Images, PrepareImage{Target: target(c, i), Need: mib})
	}
	return r
}

func copyRequest(c job.Conversion, seen Looked, i int) TransferRequest {
	return TransferRequest{
		Job: "j1", Label: "disk", Size: seen.Images[i].Size, Need: mib, Ref: providers.DiskRef{Disk: providers.DiskID(c.Disks[i].SourcePath)},
		Image: &seen.Images[i].Image, Target: target(c, i), File: filepath.Base(c.Disks[i].OutputPath),
	}
}

func TestConversionStepByStep(t *testing.T) {
	b := newBench(t)
	c := b.rawTo("vmdk", b.lay("a.raw", 3*mib+100), b.lay("b.raw", mib))
	seen := b.look(c)
	require.Empty(t, seen.Missing)
	require.Equal(t, "vmdk", seen.Format.Name)
	require.EqualValues(t, 3*mib+512, seen.Images[0].Size, "in whole sectors")
	require.Equal(t, "raw", seen.Images[0].Image.Format)

	_, err := call(b, b.control.PrepareImages, prepareRequest(c, "j1"))
	require.NoError(t, err)
	require.Equal(t, []string{".a.raw.vmdk.job", ".b.raw.vmdk.job"}, b.list())

	fin := FinishImagesRequest{Job: "j1"}
	for i := range c.Disks {
		out, err := call(b, b.data.TransferDisk, copyRequest(c, seen, i))
		require.NoError(t, err)
		require.NotEmpty(t, out.Digest)
		sum, err := call(b, b.data.VerifyDisk, VerifyRequest{
			Job: "j1", Disk: c.Disks[i].SourcePath, Size: seen.Images[i].Size, Target: target(c, i), File: filepath.Base(c.Disks[i].OutputPath), Digest: out.Digest,
		})
		require.NoError(t, err)
		require.NotEmpty(t, sum.SHA256)
		fin.Images = append(fin.Images, FinishImage{Target: target(c, i), Inode: out.Inode})
	}
	for range 2 { // as if the answer to the first had been lost
		done, err := call(b, b.control.FinishImages, fin)
		require.NoError(t, err)
		require.Equal(t, []string{c.Disks[0].OutputPath, c.Disks[1].OutputPath}, done.Files)
		require.Positive(t, done.Total)
	}
	require.Equal(t, []string{"a.raw.vmdk", "b.raw.vmdk"}, b.list())

	f, err := os.Open(c.Disks[0].OutputPath)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	img, err := vmdk.Format().Open(t.Context(), f, st.Size(), formats.OpenOptions{})
	require.NoError(t, err)
	defer img.Close()
	want, err := os.ReadFile(c.Disks[0].SourcePath)
	require.NoError(t, err)
	got := make([]byte, len(want))
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// list is all that is in the folder of the bench.
func (b *bench) list() []string {
	b.t.Helper()
	entries, err := os.ReadDir(b.out)
	require.NoError(b.t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// What a host does not have is for another one; what it cannot read is for nobody.
func TestLook(t *testing.T) {
	b := newBench(t)
	good := b.lay("a.raw", mib)
	seen := b.look(b.rawTo("raw", filepath.Join(b.out, "none.raw")))
	require.Contains(t, seen.Missing, "no such file")
	require.Equal(t, providers.NotFound, seen.Reason)
	require.Equal(t, 4, seen.Free)

	for _, c := range []struct {
		name   string
		change func(*job.Conversion)
		reason providers.Reason
		why    string
	}{
		{"a folder", func(c *job.Conversion) { c.Disks[0].SourcePath = b.out }, providers.Unsupported, "is not a file"},
		{"a relative path", func(c *job.Conversion) { c.Disks[0].SourcePath = "a.raw" }, providers.Invalid, "not absolute"},
		{"content that nobody knows", func(c *job.Conversion) { c.Disks[0].SourceFormat = "" }, providers.Unsupported, "no known disk format"},
		{"not what it was called", func(c *job.Conversion) { c.Disks[0].SourceFormat = "vmdk" }, providers.Unsupported, "a.raw"},
		{"an unknown target", func(c *job.Conversion) { c.TargetFormat = "floppy" }, providers.Unsupported, "floppy"},
		{"an option that the target has not", func(c *job.Conversion) { c.Subformat = "streamOptimized" }, providers.Unsupported, "cannot be written as asked"},
		{"the source as its own target", func(c *job.Conversion) { c.Disks[0].OutputPath = good }, providers.Invalid, "one of the files that are read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := b.rawTo("raw", good)
			c.change(&spec)
			_, err := call(b, b.control.Look, LookRequest{Job: "j1", Spec: spec})
			require.Equal(t, string(c.reason), failure(t, err).Type(), "%s", err)
			require.True(t, failure(t, err).NonRetryable())
			require.ErrorContains(t, err, c.why)
		})
	}
}

// Where the operator has named folders, sources are read below them only, whatever links say.
func TestSourcesBelowTheRoots(t *testing.T) {
	root := t.TempDir()
	b := newBench(t, func(c *Config) { c.Roots = []string{root} })
	outside := b.lay("secret.raw", mib)
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "link.raw")))
	require.NoError(t, os.WriteFile(filepath.Join(root, "a.raw"), make([]byte, mib), 0o600))

	seen := b.look(b.rawTo("raw", filepath.Join(root, "a.raw")))
	require.Empty(t, seen.Missing)
	for _, path := range []string{outside, filepath.Join(root, "link.raw")} {
		seen := b.look(b.rawTo("raw", path))
		require.NotEmpty(t, seen.Missing, "%s", path)
		require.Equal(t, providers.Denied, seen.Reason)
	}
	c := b.rawTo("raw", filepath.Join(root, "a.raw"))
	c.AllowDir = filepath.Dir(outside)
	require.Equal(t, providers.Denied, b.look(c).Reason, "nor is anything opened beside them")
}

// Two jobs never write one file, and what is there already is not replaced.
func TestTargetsAreClaimed(t *testing.T) {
	b := newBench(t)
	c := b.rawTo("raw", b.lay("a.raw", mib))
	_, err := call(b, b.control.PrepareImages, prepareRequest(c, "j1"))
	require.NoError(t, err)
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j1"))
	require.NoError(t, err, "a job may claim again")
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j2"))
	require.Equal(t, string(providers.Precondition), failure(t, err).Type())
	require.ErrorContains(t, err, "a.raw.raw is being written by job j1")
	b.engine.ended["j1"] = true
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j2"))
	require.NoError(t, err, "a job that has ended has no claim")

	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "j2", Target: target(c, 0)}))
	require.Empty(t, b.list())

	require.NoError(t, os.WriteFile(c.Disks[0].OutputPath, []byte("precious"), 0o600))
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j3"))
	require.Equal(t, string(providers.Exists), failure(t, err).Type())
	c.Overwrite = true
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j3"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(c.Disks[0].OutputPath))
	require.NoError(t, os.Mkdir(c.Disks[0].OutputPath, 0o700))
	_, err = call(b, b.control.PrepareImages, prepareRequest(c, "j3"))
	require.ErrorContains(t, err, "not a regular file")

	r := prepareRequest(b.rawTo("raw", b.lay("big.raw", mib)), "j4")
	r.Images[0].Need = 1 << 60
	_, err = call(b, b.control.PrepareImages, r)
	require.Equal(t, string(providers.Exhausted), failure(t, err).Type())
	require.True(t, failure(t, err).NonRetryable())
}

// A job that fails between the names of its files takes back what it has named, and a host does so for
// one that died.
func TestNamedFilesAreTakenBack(t *testing.T) {
	for _, c := range []struct {
		name string
		back func(*bench, job.Conversion)
	}{
		{"by the job", func(b *bench, c job.Conversion) {
			for i := range c.Disks {
				require.NoError(b.t, do(b, b.control.Discard, DiscardRequest{Job: "j1", Target: target(c, i)}))
			}
		}},
		{"by a sweep", func(b *bench, _ job.Conversion) {
			b.engine.ended["j1"] = true
			require.NoError(b.t, b.site.Sweep(b.t.Context()))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			spec := b.rawTo("raw", b.lay("a.raw", mib), b.lay("b.raw", mib))
			seen := b.look(spec)
			_, err := call(b, b.control.PrepareImages, prepareRequest(spec, "j1"))
			require.NoError(t, err)
			fin := FinishImagesRequest{Job: "j1"}
			for i := range spec.Disks {
				out, err := call(b, b.data.TransferDisk, copyRequest(spec, seen, i))
				require.NoError(t, err)
				fin.Images = append(fin.Images, FinishImage{Target: target(spec, i), Inode: out.Inode})
			}
			require.NoError(t, os.WriteFile(spec.Disks[1].OutputPath, []byte("appeared"), 0o600))
			_, err = call(b, b.control.FinishImages, fin)
			require.Equal(t, string(providers.Exists), failure(t, err).Type())
			require.FileExists(t, spec.Disks[0].OutputPath)
			c.back(b, spec)
			require.Equal(t, []string{"b.raw.raw"}, b.list(), "what appeared is not the job's")
		})
	}
}

// The source is what it was, or the job fails.
func TestChangedSource(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, path string)
	}{
		{"written to", func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("x"), 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}},
		{"cut short", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 1000)) }},
		{"replaced", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path+".new", b, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}},
		{"removed", func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }},
	} {
		for when, whole := range map[string]bool{"before the copy": false, "during the copy": true} {
			t.Run(c.name+" "+when, func(t *testing.T) {
				b := newBench(t)
				path := b.lay("a.raw", mib)
				spec := b.rawTo("raw", path)
				seen := b.look(spec)
				_, err := call(b, b.control.PrepareImages, prepareRequest(spec, "j1"))
				require.NoError(t, err)
				if whole {
					b.wrap = func(f formats.File) formats.File { return &meddler{File: f, do: func() { c.change(t, path) }} }
				} else {
					c.change(t, path)
				}
				_, err = call(b, b.data.TransferDisk, copyRequest(spec, seen, 0))
				require.ErrorContains(t, err, "the source changed while it was converted")
				require.True(t, failure(t, err).NonRetryable())
			})
		}
	}
}

// meddler does something before the first write.
type meddler struct {
	formats.File
	do func()
}

func (m *meddler) WriteAt(p []byte, off int64) (int, error) {
	if m.do != nil {
		m.do()
		m.do = nil
	}
	return m.File.WriteAt(p, off)
}

func TestSettleAndHosts(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Places = 1 })
	h, err := call(b, b.control.Settle, SettleRequest{Job: "j1"})
	require.NoError(t, err)
	require.Equal(t, "h1", h.ID)
	_, err = call(b, b.control.Settle, SettleRequest{Job: "j1"})
	require.NoError(t, err, "it has its place")
	_, err = call(b, b.control.Settle, SettleRequest{Job: "j2"})
	require.Equal(t, string(providers.Precondition), failure(t, err).Type())
	require.False(t, failure(t, err).NonRetryable())

	hosts, err := call(b, b.control.Hosts, HostsRequest{Job: "j1"})
	require.NoError(t, err)
	require.Equal(t, []string{"h1", "h2"}, hosts.IDs)

	asked, err := call(b, b.control.AskConversion, AskConversionRequest{Job: "j1", Title: "a.raw", Priority: 7})
	require.NoError(t, err)
	require.Positive(t, asked.Terms.HostAway)
	require.Equal(t, []Ticket{{Job: "j1", Key: "j1", VM: "a.raw", Priority: 7}}, b.engine.tickets)
}

// probe is what recognises a format here.
func (b *bench) probe(r io.ReaderAt, size int64) (formats.Format, error) {
	head := make([]byte, min(size, 512))
	if _, err := r.ReadAt(head, 0); err == nil && vmdk.Format().Probe(head, head) {
		return vmdk.Format(), nil
	}
	return formats.Format{}, refuse(providers.Unsupported, "the file is in no known disk format")
}
