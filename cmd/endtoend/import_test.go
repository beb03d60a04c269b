package endtoend

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	api "hypersdk/apiserver/api"
	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/ovf"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// govc builds the reference client and answers how to run it against the lab's vCenter.
func (l *lab) govc() func(args ...string) {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "govc")
	out, err := exec.CommandContext(l.t.Context(), "go", "build", "-o", path, "hypersdk/providers/vsphere/vspheretest/govc").CombinedOutput()
	require.NoError(l.t, err, "%s", out)
	return func(args ...string) {
		l.t.Helper()
		cmd := exec.CommandContext(l.t.Context(), path, args...)
		cmd.Env = append(append(clean(os.Environ()), l.env...), "GOVC_PERSIST_SESSION=false")
		out, err := cmd.CombinedOutput()
		require.NoError(l.t, err, "govc %s\n%s", strings.Join(args, " "), out)
	}
}

// raw is all of disk i of a VM.
func (l *lab) raw(vm string, i int) []byte {
	l.t.Helper()
	im, err := l.sim.Disk(vm, i)
	require.NoError(l.t, err)
	b := make([]byte, im.Size())
	_, err = io.ReadFull(io.NewSectionReader(im, 0, im.Size()), b)
	require.NoError(l.t, err)
	return b
}

// sameDisks compares the disks of two VMs byte by byte.
func (l *lab) sameDisks(want, got string, n int) {
	l.t.Helper()
	for i := range n {
		require.True(l.t, bytes.Equal(l.raw(want, i), l.raw(got, i)), "disk %d of %s is not that of %s", i, got, want)
	}
	_, err := l.sim.Disk(got, n)
	require.Error(l.t, err, "%s has more disks", got)
}

// stored writes a disk in a format, with the reference tool where ours could only agree with itself.
func (l *lab) stored(disk []byte, format, options string) []byte {
	l.t.Helper()
	dir := l.t.TempDir()
	in, out := filepath.Join(dir, "in.raw"), filepath.Join(dir, "out")
	require.NoError(l.t, os.WriteFile(in, disk, 0o600))
	args := []string{"convert", "-f", "raw", "-O", format}
	if options != "" {
		args = append(args, "-o", options)
	}
	text, err := exec.CommandContext(l.t.Context(), "qemu-img", append(args, in, out)...).CombinedOutput()
	require.NoError(l.t, err, "%s", text)
	b, err := os.ReadFile(out)
	require.NoError(l.t, err)
	return b
}

// streamed is a disk as packages have it.
func streamed(t *testing.T, disk []byte) []byte {
	t.Helper()
	vmdk, err := all.ByName("vmdk")
	require.NoError(t, err)
	raw, err := all.ByName("raw")
	require.NoError(t, err)
	src, err := raw.Open(t.Context(), bytes.NewReader(disk), int64(len(disk)), formats.OpenOptions{})
	require.NoError(t, err)
	var b bytes.Buffer
	w, err := vmdk.Encode(t.Context(), &b, src.Size(), formats.CreateOptions{})
	require.NoError(t, err)
	_, err = formats.Copy(t.Context(), w, src, formats.CopyOptions{})
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))
	return b.Bytes()
}

// envelope describes a VM with disks of these sizes in these files.
func envelope(name string, sizes []int, files ...ovf.File) ovf.Envelope {
	e := ovf.Envelope{Networks: []ovf.Network{{Name: "office"}}, Systems: []ovf.System{{
		ID: name, Name: name, OS: ovf.OS{ID: 101, Type: "otherLinux64Guest"}, HardwareVersion: "vmx-13", CPUs: 2, Memory: 1 << 30, Firmware: ovf.BIOS,
		Controllers: []ovf.Controller{{ID: "3", Bus: ovf.SCSI, Model: "VirtualSCSI"}},
		NICs:        []ovf.NIC{{ID: "4", Name: "Network adapter 1", Network: "office", Model: "VmxNet3", Unit: 7, Connected: true}},
	}}}
	for i, f := range files {
		f.ID = fmt.Sprint("file", i)
		e.Files = append(e.Files, f)
		e.Disks = append(e.Disks, ovf.Disk{ID: fmt.Sprint("disk", i), File: f.ID, Capacity: int64(sizes[i]), Format: ovf.StreamVMDK})
		e.Systems[0].Drives = append(e.Systems[0].Drives, ovf.Drive{ID: fmt.Sprint(10 + i), Kind: ovf.HardDisk, Disk: fmt.Sprint("disk", i), Controller: "3", Unit: i})
	}
	return e
}

// ova writes an archive with a manifest.
func (l *lab) ova(name string, disks ...[]byte) string {
	l.t.Helper()
	var files []ovf.File
	var sizes []int
	content := map[string][]byte{}
	for i, d := range disks {
		href := fmt.Sprintf("%s-disk%d.vmdk", name, i+1)
		files, sizes = append(files, ovf.File{Href: href}), append(sizes, len(d))
		content[href] = streamed(l.t, d)
	}
	path := filepath.Join(l.exports, name+".ova")
	f, err := os.Create(path)
	require.NoError(l.t, err)
	defer f.Close()
	require.NoError(l.t, ovf.WriteFile(l.t.Context(), f, ovf.Content{
		Name: name, Envelope: envelope(name, sizes, files...),
		Write: func(_ context.Context, f ovf.File, w io.Writer) error {
			_, err := w.Write(content[f.Href])
			return err
		},
	}))
	return path
}

// folder writes a package as a folder without a manifest.
func (l *lab) folder(name string, e ovf.Envelope, files map[string][]byte) string {
	l.t.Helper()
	dir := filepath.Join(l.exports, name)
	require.NoError(l.t, os.MkdirAll(dir, 0o755))
	var text bytes.Buffer
	_, err := e.WriteTo(&text)
	require.NoError(l.t, err)
	require.NoError(l.t, os.WriteFile(filepath.Join(dir, name+".ovf"), text.Bytes(), 0o600))
	for n, b := range files {
		require.NoError(l.t, os.WriteFile(filepath.Join(dir, n), b, 0o600))
	}
	return filepath.Join(dir, name+".ovf")
}

// imported starts an import and answers the job's id.
func (l *lab) imported(spec job.ImportSpec) string {
	l.t.Helper()
	spec.Networks = map[string]string{"office": "VM Network"}
	out, err := l.api.Import(l.t.Context(), "", api.ImportRequest{ImportSpec: spec})
	require.NoError(l.t, err)
	return out.JobID
}

// arrived waits for an import to be completed.
func (l *lab) arrived(id, path string) job.Job {
	l.t.Helper()
	j := l.end(id, time.Minute)
	require.Equal(l.t, job.Completed, j.Status, "%s", j.Error)
	require.Equal(l.t, job.Import, j.Kind)
	require.Equal(l.t, path, j.Result.VMPath)
	require.Empty(l.t, j.Result.Leftover)
	l.noLeases()
	return j
}

func (l *lab) noLeases() {
	l.t.Helper()
	l.eventually(10*time.Second, "no lease is left", func() bool { return l.sim.Leases() == 0 })
}

func (l *lab) noVM(name string) {
	l.t.Helper()
	l.eventually(10*time.Second, name+" is gone", func() bool {
		_, err := l.sim.Disk(name, 0)
		return err != nil
	})
	l.noLeases()
}

func TestImport(t *testing.T) {
	t.Parallel()
	source := vm("web-01", 24*mib, 5*mib)
	source.PoweredOff = true
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{source}, TLS: true})
	l.up()
	govc := l.govc()

	t.Run("what govc exported", func(t *testing.T) {
		dir := t.TempDir()
		govc("export.ovf", "-sha", "256", "-vm", "web-01", dir)
		out := l.says(0, "vms", "import", filepath.Join(dir, "web-01", "web-01.ovf"), "--name", "ours", "--datastore", "datastore1", "--follow")
		require.Contains(t, out, "/DC0/vm/ours")
		l.sameDisks("web-01", "ours", 2)
		l.noLeases()
		var jobs api.Jobs
		l.saysJSON(&jobs, "query")
		require.Equal(t, job.Import, jobs.Jobs[0].Kind)
		require.Equal(t, "ours", jobs.Jobs[0].Import.Name)
		require.Contains(t, l.says(0, "logs", jobs.Jobs[0].ID), "imported")
		require.Contains(t, l.says(0, "status", jobs.Jobs[0].ID), "/DC0/vm/ours")
	})

	t.Run("govc imports what we wrote", func(t *testing.T) {
		path := l.ova("packed", l.raw("web-01", 0), l.raw("web-01", 1))
		govc("import.ova", "-m", "-name", "theirs", "-ds", "datastore1", "-pool", "/DC0/host/DC0_C0/Resources", path)
		l.sameDisks("web-01", "theirs", 2)
		l.arrived(l.imported(job.ImportSpec{PackagePath: path}), "/DC0/vm/packed")
		l.sameDisks("web-01", "packed", 2)
	})

	t.Run("what was imported can be exported", func(t *testing.T) {
		l.completed(l.submit(l.spec("packed", "qcow2")), "packed", time.Minute)
	})

	t.Run("disks in other forms", func(t *testing.T) {
		one, two := l.raw("web-01", 0), l.raw("web-01", 1)
		stream := streamed(t, two)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(stream)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		const chunk = 1_000_000
		files := map[string][]byte{
			"a.vmdk": l.stored(one, "vmdk", ""), "b.vmdk": l.stored(two, "vmdk", "subformat=streamOptimized"), "c.qcow2": l.stored(two, "qcow2", ""), "d.vmdk.gz": z.Bytes(),
		}
		for i := 0; i*chunk < len(stream); i++ {
			files[fmt.Sprintf("e.vmdk.%09d", i)] = stream[i*chunk : min((i+1)*chunk, len(stream))]
		}
		path := l.folder("forms", envelope("forms", []int{len(one), len(two), len(two), len(two), len(two)},
			ovf.File{Href: "a.vmdk"}, ovf.File{Href: "b.vmdk"}, ovf.File{Href: "c.qcow2"}, ovf.File{Href: "d.vmdk.gz", Gzip: true, Size: int64(z.Len())},
			ovf.File{Href: "e.vmdk", ChunkSize: chunk, Size: int64(len(stream))}), files)
		j := l.arrived(l.imported(job.ImportSpec{PackagePath: path}), "/DC0/vm/forms")
		for i, want := range [][]byte{one, two, two, two, two} {
			require.True(t, bytes.Equal(want, l.raw("forms", i)), "disk %d", i)
		}
		require.Contains(t, l.says(0, "logs", j.ID), "no manifest")
	})

	t.Run("what is damaged does not stay", func(t *testing.T) {
		path := l.ova("damaged", l.raw("web-01", 1))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		b[len(b)-100_000] ^= 1 // in the middle of a grain, perhaps: only the manifest is sure to notice
		require.NoError(t, os.WriteFile(path, b, 0o600))
		j := l.end(l.imported(job.ImportSpec{PackagePath: path}), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Equal(t, "corrupt", j.Reason, "%s", j.Error)
		require.Contains(t, j.Error, "manifest")
		l.noVM("damaged")
	})

	t.Run("what cannot be", func(t *testing.T) {
		path := l.ova("taken", l.raw("web-01", 1))
		for says, spec := range map[string]job.ImportSpec{
			"something else of this name": {PackagePath: path, Name: "web-01"},
			"no such datastore":           {PackagePath: path, Datastore: "nowhere"},
			"no such file":                {PackagePath: path + "x.ova"},
		} {
			j := l.end(l.imported(spec), time.Minute)
			require.Equal(t, job.Failed, j.Status)
			require.Contains(t, j.Error, says)
		}
		l.noVM("taken")
		l.says(exitUsage, "vms", "import")
		l.says(exitUsage, "vms", "import", path, "--network", "office")
		l.says(exitFailure, "vms", "import", path+".zip")
	})

	t.Run("over HTTP", func(t *testing.T) {
		path := l.ova("keyed", l.raw("web-01", 1))
		body, err := json.Marshal(map[string]any{"package_path": path, "networks": map[string]string{"office": "VM Network"}})
		require.NoError(t, err)
		post := func(body []byte) (int, map[string]any, http.Header) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.server()+"/vms/import", bytes.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Idempotency-Key", "once")
			res, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			defer res.Body.Close()
			var out map[string]any
			require.NoError(t, json.NewDecoder(res.Body).Decode(&out))
			return res.StatusCode, out, res.Header
		}
		status, out, header := post(body)
		require.Equal(t, http.StatusAccepted, status, "%v", out)
		require.Equal(t, "/jobs/"+out["job_id"].(string), header.Get("Location"))
		_, again, _ := post(body)
		require.Equal(t, out["job_id"], again["job_id"], "the same request under the same key starts nothing")
		l.arrived(out["job_id"].(string), "/DC0/vm/keyed")
		status, _, _ = post([]byte(`{"package_path":"/other.ova"}`))
		require.Equal(t, http.StatusConflict, status)
		status, out, _ = post([]byte(`{"package_path":"relative.ova","priority":101}`))
		require.Equal(t, http.StatusUnprocessableEntity, status)
		require.NotEmpty(t, out["errors"])
	})

	t.Run("cancelled", func(t *testing.T) {
		path := l.ova("cancelled", l.raw("web-01", 0))
		id := l.imported(job.ImportSpec{PackagePath: path, LimitMBps: 1})
		l.moved(id, mib/2)
		require.Contains(t, l.says(0, "pause", id), "is paused")
		require.Contains(t, l.says(0, "resume", id), "goes on")
		require.Equal(t, id, strings.TrimSpace(l.says(0, "cancel", id)))
		require.Equal(t, job.Cancelled, l.end(id, time.Minute).Status)
		l.noVM("cancelled")
	})
}

// The daemon is killed while it uploads: what it has made is found, removed and made again, once.
func TestImportSurvivesAKill(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 12*mib)}, LeaseTimeout: 20 * time.Second})
	l.up()
	path := l.ova("copy", l.raw("web-01", 0))
	id := l.imported(job.ImportSpec{PackagePath: path, LimitMBps: 1})
	l.moved(id, mib)
	l.daemon.kill()
	l.up()
	l.until(id, time.Minute, "it has begun anew", func(job.Job) bool { return l.sim.Calls()["ImportVApp"] > 1 })
	l.unlimited(id)
	l.arrived(id, "/DC0/vm/copy")
	l.sameDisks("web-01", "copy", 1)
	require.Equal(t, 2, l.sim.Calls()["ImportVApp"])
	found := 0
	for _, v := range l.sim.State().VMs {
		if strings.HasPrefix(v.Name, "copy") {
			found++
		}
	}
	require.Equal(t, 1, found)
}
