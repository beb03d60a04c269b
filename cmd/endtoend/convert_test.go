package endtoend

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// newImages is a lab with a folder for images, and no VMs to speak of.
func newImages(t *testing.T) (*lab, string) {
	t.Helper()
	return newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib)}}), t.TempDir()
}

// rawImage makes a raw disk of which two thirds are data, in stretches.
func rawImage(t *testing.T, path string, size int64, seed uint64) string {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(size))
	data := rand.NewChaCha8([32]byte{byte(seed)})
	block := make([]byte, mib)
	for off := int64(0); off+int64(len(block)) <= size; off += int64(len(block)) {
		if off/mib%3 == 2 {
			continue
		}
		_, _ = data.Read(block[:len(block)/2]) // the other half compresses
		_, err := f.WriteAt(block, off)
		require.NoError(t, err)
	}
	return path
}

// qemu runs qemu-img.
func qemu(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "qemu-img %s: %s", strings.Join(args, " "), out)
}

// convert starts a conversion that is expected to be accepted.
func (l *lab) convert(r api.ConvertRequest) string {
	l.t.Helper()
	out, err := l.api.Convert(l.t.Context(), "", r)
	require.NoError(l.t, err)
	require.NotEmpty(l.t, out.ConversionID)
	require.Equal(l.t, out.ConversionID, out.JobID)
	return out.ConversionID
}

func one(source, sourceFormat, target, output string) api.ConvertRequest {
	return api.ConvertRequest{SourcePath: source, SourceFormat: sourceFormat, OutputPath: output, Conversion: job.Conversion{TargetFormat: target}}
}

// converted waits for a conversion to be completed.
func (l *lab) converted(id string) job.Job {
	l.t.Helper()
	j := l.end(id, 2*time.Minute)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.Empty(l.t, j.Result.Leftover)
	return j
}

// refused waits for a conversion to fail, and answers why.
func (l *lab) refused(id string) string {
	l.t.Helper()
	j := l.end(id, time.Minute)
	require.Equal(l.t, job.Failed, j.Status)
	require.NotContains(l.t, j.Error, "left behind")
	return j.Error
}

// names lists all that is in a folder, hidden or not.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// A daemon that is killed in the middle goes on where it was, and the file is the one that it would have
// been.
func TestConversionSurvivesAKill(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	raw := rawImage(t, filepath.Join(dir, "disk.raw"), 360*mib, 1)
	stream := filepath.Join(dir, "disk.vmdk")
	qemu(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, stream)
	l.up()
	for _, c := range []struct {
		name, source, from, to string
		change                 func(*job.Conversion)
	}{
		{"stream to compressed qcow2", stream, "", "qcow2", func(c *job.Conversion) { c.Compress = true }},
		{"raw to vhdx", raw, "raw", "vhdx", func(*job.Conversion) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := t.TempDir()
			target, again := filepath.Join(out, "killed."+c.to), filepath.Join(out, "whole."+c.to)
			r := one(c.source, c.from, c.to, target)
			c.change(&r.Conversion)
			r.LimitMBps = 30
			id := l.convert(r)
			l.moved(id, 120*mib)
			l.daemon.kill()
			require.NoFileExists(t, target, "nothing has its name before it is whole")
			l.up()
			j := l.until(id, time.Minute, "it was taken up", func(j job.Job) bool {
				return j.Progress != nil && len(j.Progress.Disks) == 1 && j.Progress.Disks[0].ResumedFrom > 0
			})
			require.GreaterOrEqual(t, j.Progress.Disks[0].ResumedFrom, int64(120*mib-segment), "a kill costs at most one segment")
			l.unlimited(id)
			j = l.converted(id)
			require.Positive(t, j.Result.Disks[0].Retries)
			require.Equal(t, []string{target}, j.Result.Files)
			require.Equal(t, digestOfFile(t, raw, "raw"), j.Result.Disks[0].Digest)
			require.Equal(t, sha256File(t, target), j.Result.Disks[0].SHA256)
			require.Equal(t, []string{filepath.Base(target)}, names(t, out), "nothing else is left")

			r.OutputPath, r.LimitMBps = again, 0
			l.converted(l.convert(r))
			require.Equal(t, sha256File(t, again), sha256File(t, target), "taken up or not, the bytes are the same")
			qemu(t, "compare", "-f", "raw", raw, target)
		})
	}
}

func TestConversionOfTwoDisks(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	a, b := rawImage(t, filepath.Join(dir, "a.raw"), 120*mib, 2), rawImage(t, filepath.Join(dir, "b.raw"), 60*mib, 3)
	out := t.TempDir()
	l.up()
	r := api.ConvertRequest{Conversion: job.Conversion{TargetFormat: "vdi", LimitMBps: 40, Disks: []job.ConversionDisk{
		{SourcePath: a, SourceFormat: "raw", OutputPath: filepath.Join(out, "a.vdi")},
		{SourcePath: b, SourceFormat: "raw", OutputPath: filepath.Join(out, "b.vdi")},
	}}}
	id := l.convert(r)
	j := l.until(id, time.Minute, "both are copied at once", func(j job.Job) bool {
		return j.Progress != nil && len(j.Progress.Disks) == 2 && j.Progress.Disks[0].Done > 0 && j.Progress.Disks[1].Done > 0 &&
			j.Progress.TransferRateMBps > 0
	})
	require.Equal(t, job.Convert, j.Kind)
	require.Equal(t, "a.raw and 1 more", j.Definition.Name)
	require.Equal(t, r.Disks, j.Conversion.Disks)
	require.NotEmpty(t, j.Progress.EstimatedRemaining)
	require.EqualValues(t, 180*mib, j.Progress.TotalBytes)

	_, err := l.api.Pause(t.Context(), id)
	require.NoError(t, err)
	l.until(id, 10*time.Second, "it is paused", func(j job.Job) bool { return j.Progress.Paused && j.Progress.TransferRateMBps == 0 })
	_, err = l.api.Resume(t.Context(), id)
	require.NoError(t, err)
	l.unlimited(id)
	j = l.converted(id)
	require.Len(t, j.Result.Disks, 2)
	qemu(t, "compare", "-f", "raw", a, filepath.Join(out, "a.vdi"))
	qemu(t, "compare", "-f", "raw", b, filepath.Join(out, "b.vdi"))
	require.Equal(t, []string{"a.vdi", "b.vdi"}, names(t, out))

	st, err := l.api.ConvertStatus(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, job.Completed, st.Status)
	require.EqualValues(t, 100, st.Percentage)
	require.Equal(t, a, st.SourcePath)
	var log strings.Builder
	_, err = l.api.Log(t.Context(), id, client.LogOptions{}, &log)
	require.NoError(t, err)
	require.Contains(t, log.String(), "conversion is complete")
}

// A conversion goes to the worker that has its images, waits for that one when it is away, and fails where
// none has them.
func TestConversionInACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", mib)}})
	roots := []string{t.TempDir(), t.TempDir()}
	for i, root := range roots {
		require.Zero(t, c.workers[i].stop(30*time.Second))
		c.workers[i] = c.startWorkerWith(i, root)
		require.Equal(t, c.hosts[i], c.host(i))
	}
	for i, root := range roots {
		raw := rawImage(t, filepath.Join(root, "disk.raw"), 100*mib, uint64(20+i))
		r := one(raw, "raw", "qcow2", filepath.Join(root, "disk.qcow2"))
		r.LimitMBps = 25
		id := c.convert(r)
		c.moved(id, 30*mib)
		require.Equal(t, i, c.worker(id))
		c.workers[i].kill()
		c.workers[i] = c.startWorkerWith(i, root)
		c.unlimited(id)
		require.Equal(t, c.hosts[i], c.converted(id).Result.Host)
		qemu(t, "compare", "-f", "raw", raw, r.OutputPath)
	}
	why := c.refused(c.convert(one("/nowhere/disk.raw", "raw", "qcow2", filepath.Join(roots[0], "none.qcow2"))))
	require.Contains(t, why, "none of 2 hosts has the images")
	require.Contains(t, why, "not below a folder that jobs may work in")
}

// startWorkerWith starts a worker that may work below one folder.
func (c *cluster) startWorkerWith(i int, root string) *process {
	c.t.Helper()
	config := filepath.Join(c.t.TempDir(), "config.yaml")
	require.NoError(c.t, os.WriteFile(config, []byte("OutputRoots: ["+root+"]\n"), 0o600))
	c.args = []string{"--config", config}
	return c.startWorker(i)
}

func TestCancelledConversionLeavesNothing(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	raw := rawImage(t, filepath.Join(dir, "disk.raw"), 200*mib, 4)
	out := t.TempDir()
	l.up()
	r := one(raw, "raw", "qcow2", filepath.Join(out, "disk.qcow2"))
	r.LimitMBps = 20
	id := l.convert(r)
	l.moved(id, 10*mib)
	require.NotEmpty(t, names(t, out))
	began := time.Now()
	_, err := l.api.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, job.Cancelled, l.end(id, 20*time.Second).Status)
	t.Logf("cancelled and clean after %s", time.Since(began))
	require.Empty(t, names(t, out))
}

// What ends a conversion: with one sentence, and nothing left.
func TestConversionsThatFail(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	raw := rawImage(t, filepath.Join(dir, "disk.raw"), 64*mib, 5)
	stream, base, overlay := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "overlay.qcow2")
	qemu(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, stream)
	qemu(t, "convert", "-f", "raw", "-O", "qcow2", raw, base)
	qemu(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
	cut := filepath.Join(dir, "cut.vmdk")
	b, err := os.ReadFile(stream)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cut, b[:len(b)*2/3], 0o600))
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, exec.CommandContext(t.Context(), "mkfifo", pipe).Run())
	l.up()

	out := t.TempDir()
	target := filepath.Join(out, "disk.qcow2")
	for _, c := range []struct {
		name, source, from string
		change             func(*job.Conversion)
		why                string
	}{
		{"a source that is not there", filepath.Join(dir, "nobody.vmdk"), "", nil, "nobody.vmdk: no such file"},
		{"a raw disk that is not named so", raw, "", nil, "a raw disk has to be named so"},
		{"a truncated image", cut, "", nil, "cut.vmdk"},
		{"an image read as another format", raw, "qcow2", nil, "disk.raw"},
		{"a named pipe", pipe, "raw", nil, "is not a file"},
		{"a folder", dir, "raw", nil, "is not a file"},
		{"a backing file that was not allowed", overlay, "", nil, "backing"},
		{"a backing file outside of the folder allowed", overlay, "", func(c *job.Conversion) { c.AllowDir = out }, "outside of the folder allowed"},
		{"an option that the format does not have", stream, "", func(c *job.Conversion) { c.Subformat = "streamOptimized" }, "cannot be written as asked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := one(c.source, c.from, "qcow2", target)
			if c.change != nil {
				c.change(&r.Conversion)
			}
			require.Contains(t, l.refused(l.convert(r)), c.why)
			require.Empty(t, names(t, out))
		})
	}
	t.Run("the backing file is read where that is allowed", func(t *testing.T) {
		r := one(overlay, "", "raw", filepath.Join(out, "flat.raw"))
		r.AllowDir = dir
		l.converted(l.convert(r))
		require.Equal(t, sha256File(t, raw), sha256File(t, filepath.Join(out, "flat.raw")))
		require.NoError(t, os.Remove(filepath.Join(out, "flat.raw")))
	})
	t.Run("a folder that is not there", func(t *testing.T) {
		require.Contains(t, l.refused(l.convert(one(stream, "", "qcow2", filepath.Join(out, "none", "disk.qcow2")))), "no such file")
	})
	t.Run("a target that exists", func(t *testing.T) {
		require.NoError(t, os.WriteFile(target, []byte("precious"), 0o600))
		r := one(stream, "", "qcow2", target)
		require.Contains(t, l.refused(l.convert(r)), "exists already")
		require.Equal(t, []string{"disk.qcow2"}, names(t, out))
		b, err := os.ReadFile(target)
		require.NoError(t, err)
		require.Equal(t, "precious", string(b))

		r.Overwrite = true
		l.converted(l.convert(r))
		qemu(t, "compare", "-f", "raw", raw, target)
		require.Equal(t, []string{"disk.qcow2"}, names(t, out))
		require.NoError(t, os.Remove(target))
	})
	t.Run("the target is the source by another name", func(t *testing.T) {
		link := filepath.Join(out, "link.vmdk")
		require.NoError(t, os.Link(stream, link))
		r := one(stream, "", "vmdk", link)
		r.Overwrite = true
		require.Contains(t, l.refused(l.convert(r)), "one of the files that are read")
		require.NoError(t, os.Remove(link))
	})
	t.Run("a source that is written to in the middle", func(t *testing.T) {
		moving := rawImage(t, filepath.Join(dir, "moving.raw"), 96*mib, 6)
		r := one(moving, "raw", "qcow2", target)
		r.LimitMBps = 20
		id := l.convert(r)
		l.moved(id, 4*mib)
		f, err := os.OpenFile(moving, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("changed"), 90*mib)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		l.unlimited(id)
		require.Contains(t, l.refused(id), "the source changed while it was converted")
		require.Empty(t, names(t, out))
	})
	t.Run("a source that is cut short in the middle", func(t *testing.T) {
		moving := rawImage(t, filepath.Join(dir, "short.raw"), 96*mib, 7)
		r := one(moving, "raw", "qcow2", target)
		r.LimitMBps = 20
		id := l.convert(r)
		l.moved(id, 4*mib)
		require.NoError(t, os.Truncate(moving, 30*mib))
		l.unlimited(id)
		require.Contains(t, l.refused(id), "the source changed while it was converted")
		require.Empty(t, names(t, out))
	})
}

func TestConversionRequests(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	raw := rawImage(t, filepath.Join(dir, "disk.raw"), 8*mib, 8)
	l.up()
	t.Run("faults are named by field", func(t *testing.T) {
		for body, field := range map[string]string{
			`{"source_path": "a.raw", "target_format": "qcow2", "output_path": "/x/b"}`:                               "source_path",
			`{"source_path": "/a.raw", "target_format": "qcow2"}`:                                                     "output_path",
			`{"source_path": "/a.raw", "target_format": "floppy", "output_path": "/x/b"}`:                             "target_format",
			`{"source_path": "/a.raw", "target_format": "qcow2", "output_path": "/x/b", "colour": 1}`:                 "colour",
			`{"disks": [{"source_path": "/a.raw", "output_path": "/a.raw"}], "target_format": "qcow2"}`:               "disks[0].output_path",
			`{"source_path": "/a.raw", "target_format": "vmdk", "output_path": "/b", "subformat": "monolithicFlat"}`:  "subformat",
			`{"source_path": "/a.raw", "target_format": "qcow2", "output_path": "/b", "compression_type": "zstd"}`:    "compression_type",
			`{"source_path": "/../etc/a.raw", "target_format": "qcow2", "output_path": "/b", "cluster_size": 100000}`: "cluster_size",
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.server()+"/convert/format", strings.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			var e api.Error
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&e))
			require.NoError(t, resp.Body.Close())
			require.Equal(t, http.StatusUnprocessableEntity, resp.StatusCode, "%s: %s", body, e.Message)
			var fields []string
			for _, f := range e.Errors {
				fields = append(fields, f.Field)
			}
			require.Contains(t, fields, field, "%s", body)
		}
	})
	t.Run("a key starts one job", func(t *testing.T) {
		r := one(raw, "raw", "vpc", filepath.Join(dir, "disk.vhd"))
		first, err := l.api.Convert(t.Context(), "once", r)
		require.NoError(t, err)
		again, err := l.api.Convert(t.Context(), "once", r)
		require.NoError(t, err)
		require.Equal(t, first.ConversionID, again.ConversionID)
		r.TargetFormat = "qcow2"
		_, err = l.api.Convert(t.Context(), "once", r)
		var refused *api.Error
		require.ErrorAs(t, err, &refused)
		require.Equal(t, http.StatusConflict, refused.Status)
		require.Equal(t, "vhd", l.converted(first.ConversionID).Result.Disks[0].Format)
	})
	t.Run("a job that is none is not found", func(t *testing.T) {
		id := l.submit(l.spec("web-01", "raw"))
		for _, id := range []string{id, "nobody"} {
			_, err := l.api.ConvertStatus(t.Context(), id)
			require.True(t, client.IsNotFound(err), "%v", err)
		}
		l.end(id, time.Minute)
	})
}

func TestHyperctlConvert(t *testing.T) {
	t.Parallel()
	l, dir := newImages(t)
	raw := rawImage(t, filepath.Join(dir, "disk.raw"), 24*mib, 9)
	l.up()
	out, errs, code := l.hyperctl("convert", raw, "-f", "raw", "-O", "vmdk", "--subformat", "streamOptimized", "--follow")
	require.Zero(t, code, errs)
	id, _, _ := strings.Cut(out, "\n")
	require.Contains(t, out, "completed")
	qemu(t, "compare", "-f", "raw", raw, filepath.Join(dir, "disk.vmdk"))

	out, errs, code = l.hyperctl("convert", "status", id)
	require.Zero(t, code, errs)
	require.Contains(t, out, raw)
	require.Contains(t, out, filepath.Join(dir, "disk.vmdk")+" (vmdk)")
	out, _, code = l.hyperctl("convert", "status", id, "--json")
	require.Zero(t, code)
	var st api.ConvertStatus
	require.NoError(t, json.Unmarshal([]byte(out), &st))
	require.Equal(t, id, st.ConversionID)

	_, _, code = l.hyperctl("convert", raw, "-f", "raw", "-O", "vmdk", "--follow")
	require.Equal(t, 4, code, "a job that fails")
	_, _, code = l.hyperctl("convert", raw)
	require.Equal(t, 2, code, "no format")
	_, _, code = l.hyperctl("convert", "status", "nobody")
	require.Equal(t, 3, code)

	folder := filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(folder, 0o755))
	out, errs, code = l.hyperctl("convert", raw, filepath.Join(dir, "disk.vmdk"), "-O", "qcow2", "-o", folder, "--json")
	require.Equal(t, 1, code, "both would have the same name: %s", out)
	require.Contains(t, errs, "named twice")
	out, errs, code = l.hyperctl("convert", filepath.Join(dir, "disk.vmdk"), "-O", "qcow2", "-c", "--compression-type", "zstd", "-o", folder+"/", "--json")
	require.Zero(t, code, errs)
	var started api.ConvertStarted
	require.NoError(t, json.Unmarshal([]byte(out), &started))
	l.converted(started.ConversionID)
	qemu(t, "compare", "-f", "raw", raw, filepath.Join(folder, "disk.qcow2"))
}

// A VM is exported into every format that can be written.
func TestExportIntoEveryFormat(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 20*mib)}})
	l.up()
	caps, err := l.api.Capabilities(t.Context())
	require.NoError(t, err)
	for _, f := range []string{"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"} {
		t.Run(f, func(t *testing.T) {
			require.Contains(t, caps.Formats, f)
			s := l.spec("web-01", f)
			s.OutputPath = filepath.Join(l.exports, f)
			j := l.completed(l.submit(s), "web-01", time.Minute)
			name := map[string]string{"vhd": "vpc"}[f]
			if name == "" {
				name = f
			}
			file := filepath.Join(j.Result.OutputDir, j.Result.Disks[0].File)
			require.Equal(t, "."+f, filepath.Ext(file), fmt.Sprint(j.Result.Files))
			raw := filepath.Join(t.TempDir(), "disk.raw")
			qemu(t, "convert", "-f", name, "-O", "raw", file, raw)
			require.Equal(t, j.Result.Disks[0].Digest, digestOfFile(t, raw, "raw"), "qemu-img reads the same disk")
		})
	}
}
