package activities

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestAsk(t *testing.T) {
	b := newBench(t)
	for _, ref := range []string{"/dc/vm/web-01", "web-01", "vm-42"} {
		got, err := call(b, b.control.Ask, AskRequest{Job: "job-" + filepath.Base(ref), Spec: job.Spec{VMPath: ref, Options: job.Options{Priority: 7}}})
		require.NoError(t, err)
		require.Equal(t, "web-01", got.VM)
		require.Equal(t, b.site.HostAway, got.Terms.HostAway)
		require.Equal(t, "qcow2", got.Terms.Format)
	}
	require.Len(t, b.engine.tickets, 3)
	require.Equal(t, 7, b.engine.tickets[0].Priority)
	for _, o := range b.engine.tickets[1:] {
		require.Equal(t, b.engine.tickets[0].Key, o.Key, "a VM has one key, whatever it is called")
	}
	b.platform.vm.ID = "vm-43"
	_, err := call(b, b.control.Ask, AskRequest{Job: "job-x", Spec: job.Spec{VMPath: "web-01"}})
	require.NoError(t, err)
	require.NotEqual(t, b.engine.tickets[0].Key, b.engine.tickets[3].Key)
}

func TestAskFails(t *testing.T) {
	b := newBench(t)
	_, err := call(b, b.control.Ask, AskRequest{Job: "job-1", Spec: job.Spec{VMPath: "web-02"}})
	require.Equal(t, string(providers.NotFound), failure(t, err).Type())
	require.True(t, failure(t, err).NonRetryable())

	b.conns.err = &providers.Error{Op: "fake: connect", Reason: providers.Auth, Msg: "the user name or the password is wrong"}
	_, err = call(b, b.control.Ask, AskRequest{Job: "job-1", Spec: job.Spec{VMPath: "web-01"}})
	require.Equal(t, "fake: connect: the user name or the password is wrong", failure(t, err).Message())
	require.True(t, failure(t, err).NonRetryable())
	require.Equal(t, 1, strings.Count(b.log(), "password is wrong"), "said once")
	require.Empty(t, b.engine.tickets)
}

func TestInspect(t *testing.T) {
	b := newBench(t)
	b.platform.vm.Annotation = strings.Repeat("x", 1<<20)
	b.platform.vm.Snapshots = make([]providers.Snapshot, 1000)
	f, err := call(b, b.control.Inspect, InspectRequest{Job: "job-1", Spec: job.Spec{VMPath: "web-01"}, Format: "raw"})
	require.NoError(t, err)
	require.Equal(t, "fake", f.Kind)
	require.Equal(t, []string{"disk-source", "inventory", "snapshot"}, f.Capabilities)
	require.Equal(t, FormatFacts{Name: "raw", Ext: ".raw"}, f.Format)
	require.Equal(t, []providers.Transport{{Name: "fast", Resumable: true}}, f.Transports)
	size, err := json.Marshal(f)
	require.NoError(t, err)
	require.Less(t, len(size), 20_000, "what goes into a history is bounded")
}

func TestInspectTriesTheFormat(t *testing.T) {
	b := newBench(t)
	b.platform.vm.Disks[0].Size = 8 << 40 // far more than can be held
	for _, c := range []struct {
		name   string
		format string
		spec   job.Spec
		why    string
	}{
		{"large", "raw", job.Spec{}, ""},
		{"unknown", "floppy", job.Spec{}, "there is no such format"},
		{"raw compressed", "raw", job.Spec{Compress: true}, "the disks cannot be written as asked: raw: compression"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.VMPath = "web-01"
			f, err := call(b, b.control.Inspect, InspectRequest{Job: "job-1", Spec: c.spec, Format: c.format})
			require.NoError(t, err)
			if c.why == "" {
				require.Empty(t, f.Format.Why)
			}
			require.Contains(t, f.Format.Why, c.why)
		})
	}
}

func TestPrepare(t *testing.T) {
	b := newBench(t)
	got, err := b.prepare()
	require.NoError(t, err)
	require.Equal(t, Prepared{Dir: filepath.Join(b.out, "web-01")}, got)
	require.Equal(t, []string{claimName}, b.names())
	require.FileExists(t, b.site.recordPath("job-1"))
	again, err := b.prepare()
	require.NoError(t, err)
	require.Equal(t, got, again)
}

func TestPrepareRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		setup  func(b *bench)
		in     func(*PrepareRequest)
		reason providers.Reason
		want   string
	}{
		{"disk there", func(b *bench) { b.put("web-01-disk-1.raw", "precious") }, nil, providers.Exists, "web-01-disk-1.raw exists already; set overwrite"},
		{"digests there", func(b *bench) { b.put("web-01-disk-1.raw.digests", "precious") }, nil, providers.Exists, "exists already"},
		{"manifest there", func(b *bench) { b.put("manifest.json", "{}") }, nil, providers.Exists, "manifest.json exists already"},
		{"no room", nil, func(in *PrepareRequest) { in.Need = 1 << 60 }, providers.Exhausted, "not enough space in"},
		{"relative", nil, func(in *PrepareRequest) { in.Target.Output = "exports" }, providers.Invalid, "is not absolute"},
		{"dots", nil, func(in *PrepareRequest) { in.Target.Output += "/../x" }, providers.Invalid, "is not clean"},
		{"double slash", nil, func(in *PrepareRequest) { in.Target.Output += "//x" }, providers.Invalid, "is not clean"},
		{"nul", nil, func(in *PrepareRequest) { in.Target.Output += "/a\x00b" }, providers.Invalid, "is not clean"},
		{"folder with a slash", nil, func(in *PrepareRequest) { in.Target.Folder = "../x" }, providers.Invalid, "is not the name of a folder"},
		{"folder that goes up", nil, func(in *PrepareRequest) { in.Target.Folder = ".." }, providers.Invalid, "is not the name of a folder"},
		{"link out of the output folder", func(b *bench) {
			require.NoError(b.t, os.Symlink(b.t.TempDir(), filepath.Join(b.out, "web-01")))
		}, nil, providers.Denied, "escapes"},
		{"a file in its place", func(b *bench) {
			require.NoError(b.t, os.WriteFile(filepath.Join(b.out, "web-01"), nil, 0o600))
		}, nil, providers.Invalid, "not a directory"},
		{"output is a file", func(b *bench) {
			require.NoError(b.t, os.Remove(b.out))
			require.NoError(b.t, os.WriteFile(b.out, nil, 0o600))
		}, nil, providers.Invalid, "not a directory"},
		{"claim is a folder", func(b *bench) {
			require.NoError(b.t, os.MkdirAll(b.path(claimName), 0o700))
		}, nil, providers.Denied, "is not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			if c.setup != nil {
				c.setup(b)
			}
			_, err := b.prepare(func(in *PrepareRequest) {
				if c.in != nil {
					c.in(in)
				}
			})
			app := failure(t, err)
			require.Equal(t, string(c.reason), app.Type(), app.Message())
			require.True(t, app.NonRetryable())
			require.Contains(t, app.Message(), c.want)
		})
	}
}

func TestThickDisk(t *testing.T) {
	b := newBench(t)
	b.platform.disk = empty{b.platform.disk}
	for _, thick := range []bool{false, true} {
		in := b.request()
		in.Target.Thick = thick
		_, err := b.prepare(func(p *PrepareRequest) { p.Target.Thick = thick })
		require.NoError(t, err)
		_, err = call(b, b.data.TransferDisk, in)
		require.NoError(t, err)
		st, err := os.Stat(b.path(".web-01-disk-1.raw.part"))
		require.NoError(t, err)
		require.Equal(t, in.Size, st.Size())
		if thick {
			require.GreaterOrEqual(t, allocated(st), in.Size, "the space is taken")
		} else {
			require.Less(t, allocated(st), int64(mib), "zeros take no space")
		}
		b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
		require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: b.target()}))
	}
}

func TestPrepareOverwrites(t *testing.T) {
	b := newBench(t)
	b.put("web-01-disk-1.raw", "precious")
	_, err := b.prepare(func(in *PrepareRequest) { in.Target.Overwrite = true })
	require.NoError(t, err)
	require.Equal(t, "precious", b.get("web-01-disk-1.raw"), "the old stays until the new is whole")
}

func TestRoots(t *testing.T) {
	root := t.TempDir()
	b := newBench(t, func(c *Config) { c.Roots = []string{root} })
	_, err := b.prepare()
	require.Equal(t, string(providers.Denied), failure(t, err).Type())
	require.Contains(t, failure(t, err).Message(), "is not below a folder that jobs may write to")

	b.out = filepath.Join(root, "made", "for it")
	_, err = b.prepare()
	require.NoError(t, err)
	require.Equal(t, []string{claimName}, b.names())

	outside := t.TempDir()
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "link")))
	b.out = filepath.Join(root, "link")
	_, err = b.prepare()
	require.Equal(t, string(providers.Denied), failure(t, err).Type())
	b.out = root + "-beside"
	_, err = b.prepare()
	require.Equal(t, string(providers.Denied), failure(t, err).Type())
	left, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Empty(t, left)
}

// A link that was put in the place of a hidden file leads nowhere outside.
func TestLinksInTheFolder(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(victim, b.path(".web-01-disk-1.raw.part")))
	_, err = b.transfer()
	require.Contains(t, failure(t, err).Message(), "is not a regular file")
	got, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(got))
}

func TestTwoJobsOneFolder(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	_, err = b.transfer()
	require.NoError(t, err)

	second := func(in *PrepareRequest) { in.Job = "job-2" }
	_, err = b.prepare(second)
	app := failure(t, err)
	require.Equal(t, string(providers.Precondition), app.Type())
	require.False(t, app.NonRetryable(), "it waits")
	require.Contains(t, app.Message(), "is being written by job job-1")
	require.Len(t, b.names(), 4)

	b.engine.ended["job-1"] = true
	_, err = b.prepare(second)
	require.NoError(t, err)
	require.Equal(t, []string{claimName}, b.names(), "what the dead job left is gone")
	_, err = b.transfer()
	require.Contains(t, failure(t, err).Message(), "belongs to job job-2 now")
}

func TestDiscard(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	_, err = b.transfer()
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: b.target()}))
		require.NoDirExists(t, filepath.Join(b.out, "web-01"), "the folder was the job's own")
	}

	b.put("notes.txt", "mine")
	_, err = b.prepare()
	require.NoError(t, err)
	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-2", Target: b.target()}))
	require.Equal(t, []string{claimName, "notes.txt"}, b.names(), "another job's files are not touched")
	require.NoError(t, do(b, b.control.Discard, DiscardRequest{Job: "job-1", Target: b.target()}))
	require.Equal(t, []string{"notes.txt"}, b.names())
}

func TestSnapshot(t *testing.T) {
	b := newBench(t)
	in := SnapshotRequest{Job: "job-1", VM: "vm-42", Key: "hypersdk-job-1"}
	s, err := call(b, b.control.Snapshot, in)
	require.NoError(t, err)
	again, err := call(b, b.control.Snapshot, in)
	require.NoError(t, err)
	require.Equal(t, s, again)
	require.Len(t, b.platform.snapshots, 1)
	for range 2 {
		require.NoError(t, do(b, b.control.DropSnapshot, DropRequest{Job: "job-1", VM: "vm-42", Key: "hypersdk-job-1"}))
		require.Empty(t, b.platform.snapshots)
	}
	b.conns.err = &providers.Error{Op: "connections: open", Reason: providers.NotFound, Msg: "there is no such connection"}
	require.Error(t, do(b, b.control.DropSnapshot, DropRequest{Job: "job-1", VM: "vm-42", Key: "hypersdk-job-1"}),
		"a connection that is gone is not a snapshot that is gone")
}

func TestPlaceAndLeave(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Places = 1 })
	p := b.site.Places()
	require.NoError(t, p.Reserve(t.Context()))
	h, err := call(b, b.control.Place, PlaceRequest{Job: "job-1"})
	require.NoError(t, err)
	require.Equal(t, Host{ID: "h1", Name: "host one"}, h)
	p.Release()

	full, stop := context.WithCancel(t.Context())
	stop()
	require.ErrorIs(t, p.Reserve(full), context.Canceled, "no place is free")
	_, err = b.prepare()
	require.NoError(t, err)

	require.NoError(t, do(b, b.control.Leave, LeaveRequest{Job: "job-1", Host: "h1", Connection: "job:1", State: job.Failed, Outcome: "it broke"}))
	require.NoError(t, p.Reserve(t.Context()))
	require.FileExists(t, b.site.recordPath("job-1"), "something is left to be cleaned up")
	require.Empty(t, b.conns.forgotten, "with these credentials")
	require.Contains(t, b.log(), `"msg":"job failed","error":"it broke"`)
	require.NoError(t, do(b, b.control.Leave, LeaveRequest{Job: "job-1", Host: "h2", State: job.Completed, Clean: true}))
	require.FileExists(t, b.site.recordPath("job-1"), "what is on this host is this host's")
	require.NoError(t, do(b, b.control.Leave, LeaveRequest{Job: "job-1", Host: "h1", Connection: "job:1", State: job.Completed, Clean: true}))
	require.Equal(t, []string{"", "job:1"}, b.conns.forgotten)
	require.NoFileExists(t, b.site.recordPath("job-1"))
}

func TestEnded(t *testing.T) {
	b := newBench(t)
	b.engine.ended["b"] = true
	got, err := call(b, b.control.Ended, EndedRequest{Jobs: []string{"a", "b", "c"}})
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, got.Jobs)
}

// put writes a file into the output folder.
func (b *bench) put(name, content string) {
	b.t.Helper()
	require.NoError(b.t, os.MkdirAll(filepath.Join(b.out, "web-01"), 0o700))
	require.NoError(b.t, os.WriteFile(b.path(name), []byte(content), 0o600))
}

func (b *bench) get(name string) string {
	b.t.Helper()
	got, err := os.ReadFile(b.path(name))
	require.NoError(b.t, err)
	return string(got)
}

// claimNames is the first thing that Finish does.
func (b *bench) claimNames() {
	b.t.Helper()
	f, err := b.site.openFolder(b.target(), false)
	require.NoError(b.t, err)
	defer f.Close()
	c, err := f.readClaim()
	require.NoError(b.t, err)
	st, err := os.Stat(b.path(".web-01-disk-1.raw.part"))
	require.NoError(b.t, err)
	finish := FinishRequest{Disks: []FinishDisk{{DiskResult: job.DiskResult{File: "web-01-disk-1.raw"}, Inode: inodeOf(st)}}}
	c.Naming, err = f.inodes(finish.namings())
	require.NoError(b.t, err)
	require.NoError(b.t, f.putClaim(c))
}
