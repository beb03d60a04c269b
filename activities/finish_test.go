package activities

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestFinishIsTakenUp(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(b *bench, d Transferred)
	}{
		{"before anything", func(*bench, Transferred) {}},
		{"after the digests", func(b *bench, d Transferred) {
			b.claimNames()
			require.NoError(b.t, os.Rename(b.path(".web-01-disk-1.raw.digests"), b.path("web-01-disk-1.raw.digests")))
		}},
		{"after the disk", func(b *bench, d Transferred) {
			b.claimNames()
			require.NoError(b.t, os.Rename(b.path(".web-01-disk-1.raw.digests"), b.path("web-01-disk-1.raw.digests")))
			require.NoError(b.t, os.Rename(b.path(".web-01-disk-1.raw.part"), b.path("web-01-disk-1.raw")))
		}},
		{"after all", func(b *bench, d Transferred) {
			_, err := b.finish(d, Verified{Stored: d.Stored})
			require.NoError(b.t, err)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			d, err := b.transfer()
			require.NoError(t, err)
			c.cut(b, d)
			out, err := b.finish(d, Verified{Stored: d.Stored})
			require.NoError(t, err)
			require.Len(t, out.Files, 3)
			require.Equal(t, []string{"manifest.json", "web-01-disk-1.raw", "web-01-disk-1.raw.digests"}, b.names())
			b.sameAsSource(b.path("web-01-disk-1.raw"))
		})
	}
}

func TestFinishRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b *bench)
		reason providers.Reason
		want   string
	}{
		{"a disk appeared", func(b *bench) { b.put("web-01-disk-1.raw", "precious") }, providers.Exists, "appeared while the job was running"},
		{"a manifest appeared", func(b *bench) { b.put("manifest.json", `{"job":"other"}`) }, providers.Exists, "appeared while the job was running"},
		{"the disk was removed", func(b *bench) { require.NoError(b.t, os.Remove(b.path(".web-01-disk-1.raw.part"))) }, providers.NotFound, "was removed before the job was complete"},
		{"the disk was replaced", func(b *bench) {
			b.put("x", "fake")
			require.NoError(b.t, os.Rename(b.path("x"), b.path(".web-01-disk-1.raw.part")))
		}, providers.Corrupt, "is not the file that was written"},
		{"the folder was removed", func(b *bench) { require.NoError(b.t, os.RemoveAll(b.out)) }, providers.NotFound, "no such file"},
		{"the folder is another job's", func(b *bench) { b.put(claimName, `{"job":"other","host":"h1"}`) }, providers.Precondition, "belongs to job other now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			d, err := b.transfer()
			require.NoError(t, err)
			c.change(b)
			_, err = b.finish(d, Verified{Stored: d.Stored})
			app := failure(t, err)
			require.Equal(t, string(c.reason), app.Type(), app.Message())
			require.Contains(t, app.Message(), c.want)
			if c.reason == providers.Exists {
				require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: b.target()}))
				require.Len(t, b.names(), 1, "nothing but what appeared is left: %v", b.names())
			}
		})
	}
}

// An export replaces an earlier one as a whole, and removes what it does not replace.
func TestFinishOverwrites(t *testing.T) {
	b := newBench(t)
	old := Manifest{Version: 1, Job: "job-0", Disks: []DiskRecord{
		{File: "web-01-disk-1.raw", Digests: "web-01-disk-1.raw.digests"}, {File: "web-01-disk-2.qcow2", Digests: "web-01-disk-2.qcow2.digests"},
		{File: "../web-02/x-disk-1.raw"}, {File: "notes.txt"},
	}}
	text, err := json.Marshal(old)
	require.NoError(t, err)
	for name, content := range map[string]string{
		"manifest.json": string(text), "web-01-disk-1.raw": "old", "web-01-disk-2.qcow2": "old", "web-01-disk-2.qcow2.digests": "old", "notes.txt": "mine",
	} {
		b.put(name, content)
	}
	over := func(in *PrepareRequest) { in.Target.Overwrite = true }
	_, err = b.prepare(over)
	require.NoError(t, err)
	d, err := b.transfer()
	require.NoError(t, err)
	require.Equal(t, "old", b.get("web-01-disk-1.raw"))
	_, err = b.finish(d, Verified{Stored: d.Stored}, func(in *FinishRequest) { in.Target.Overwrite = true })
	require.NoError(t, err)
	require.Equal(t, []string{"manifest.json", "notes.txt", "web-01-disk-1.raw", "web-01-disk-1.raw.digests"}, b.names())
	b.sameAsSource(b.path("web-01-disk-1.raw"))
}

func TestManifest(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	d, err := b.transfer()
	require.NoError(t, err)
	v, err := b.verify(d)
	require.NoError(t, err)
	_, err = b.finish(d, v)
	require.NoError(t, err)
	var m Manifest
	require.NoError(t, json.Unmarshal([]byte(b.get("manifest.json")), &m))
	require.False(t, m.Finished.IsZero())
	m.Finished = job.Time{}
	require.Equal(t, Manifest{
		Version: 1, Tool: "hypersdk test", Job: "job-1", Spec: job.Spec{VMPath: "/dc/vm/web-01", OutputPath: b.out},
		Source:  Source{Provider: "fake", Transport: "fast", Snapshot: m.Source.Snapshot, VM: b.platform.vm},
		Started: m.Started, Host: "host one", Verified: true,
		Disks: []DiskRecord{{
			ID: "2000", Label: "Hard disk 1", File: "web-01-disk-1.raw", Format: "raw", Size: b.platform.disk.Size(), Stored: d.Stored,
			Digest: d.Digest, Digests: "web-01-disk-1.raw.digests", SHA256: v.SHA256,
		}},
	}, m)
	require.Equal(t, int64(1010), m.Source.Snapshot.Unix())

	side, err := os.Open(b.path("web-01-disk-1.raw.digests"))
	require.NoError(t, err)
	defer side.Close()
	sums, err := formats.OpenDigests(side)
	require.NoError(t, err)
	top, sealed := sums.Sealed()
	require.True(t, sealed)
	require.Equal(t, d.Digest, top.String())
}
