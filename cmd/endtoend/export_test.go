package endtoend

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	api "hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

func TestExport(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 200*mib, 64*mib), vm("db-01", 96*mib)}})
	l.up()
	for _, s := range []job.Spec{
		{Format: "raw"}, {Format: "qcow2"}, {Format: "qcow2", Compress: true},
	} {
		t.Run(fmt.Sprintf("%s compressed %t", s.Format, s.Compress), func(t *testing.T) {
			s.VMPath, s.OutputPath = "/DC0/vm/web-01", filepath.Join(l.exports, strings.ReplaceAll(t.Name(), "/", "-"))
			require.NoError(t, os.MkdirAll(s.OutputPath, 0o755))
			j := l.completed(l.submit(s), "web-01", time.Minute)
			require.Equal(t, filepath.Join(s.OutputPath, "web-01"), j.Result.OutputDir)
			require.Equal(t, "manifest.json", filepath.Base(j.Result.Files[len(j.Result.Files)-1]))
			require.Len(t, j.Result.Disks, 2)
			require.Positive(t, j.Result.Duration)
		})
	}

	t.Run("an earlier export is replaced only when asked", func(t *testing.T) {
		s := l.spec("db-01", "raw")
		l.completed(l.submit(s), "db-01", time.Minute)
		j := l.end(l.submit(s), time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.Contains(t, j.Error, "overwrite")
		l.tidy("db-01")
		require.NoError(t, l.sim.GuestWrite("db-01", 0, 5*mib, []byte("something new")))
		s.Options.Overwrite = true
		l.completed(l.submit(s), "db-01", time.Minute)
	})
	t.Run("one session serves all", func(t *testing.T) { require.Len(t, l.sim.Sessions(), 1) })
	t.Run("a clean stop leaves no session", func(t *testing.T) {
		require.Zero(t, l.daemon.stop(30*time.Second))
		require.Empty(t, l.sim.Sessions())
	})
}

func TestNamesThatMakeTrouble(t *testing.T) {
	t.Parallel()
	names := []string{
		"with space", "with/slash", `quote"and'tick`, "ünïcödé 虚拟机", strings.Repeat("long", 50), "..", "-rf", ".hidden",
		"a%2fb", "percent%", "back\\slash", "semi;colon & co", "CON", "trailing.",
	}
	o := vspheretest.Options{}
	for _, n := range names {
		o.VMs = append(o.VMs, vm(n, 2*mib))
	}
	l := newLab(t, o)
	l.up()
	list, err := l.api.VMs(t.Context(), "", providers.Filter{})
	require.NoError(t, err)
	require.Len(t, list, len(names))
	ids := map[string]string{}
	for _, v := range list {
		s := job.Spec{VMPath: v.Path, OutputPath: l.exports, Format: "raw"}
		ids[v.Name] = l.submit(s)
	}
	for _, n := range names {
		require.Contains(t, ids, n, "it is not in the list")
		l.end(ids[n], 2*time.Minute)
	}
	for _, n := range names {
		j := l.completed(ids[n], n, time.Minute)
		rel, err := filepath.Rel(l.exports, j.Result.OutputDir)
		require.NoError(t, err)
		require.NotContains(t, rel, "/", "the folder lies right below the output path")
		require.False(t, strings.HasPrefix(rel, "."), "%q", rel)
	}
	entries, err := os.ReadDir(filepath.Dir(l.exports))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing was written outside the output path")
}

func TestPathsThatAreRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 2*mib)}})
	allowed := filepath.Join(l.exports, "allowed")
	require.NoError(t, os.MkdirAll(allowed, 0o755))
	require.NoError(t, os.Symlink("/", filepath.Join(allowed, "way-out")))
	l.up("--output-roots", allowed)
	for _, path := range []string{"relative/path", "../up", allowed + "/../up", "/exports\x00/x", ""} {
		out, err := l.api.Submit(t.Context(), "", api.Submission{Spec: job.Spec{VMPath: "web-01", OutputPath: path, Format: "raw"}})
		if err == nil {
			require.Empty(t, out.JobIDs, "%q was accepted", path)
		}
	}
	for _, path := range []string{l.exports, "/", filepath.Join(allowed, "way-out", "tmp")} {
		j := l.end(l.submit(job.Spec{VMPath: "web-01", OutputPath: path, Format: "raw"}), time.Minute)
		require.Equal(t, job.Failed, j.Status, "%q", path)
		require.NotEmpty(t, j.Error)
	}
	l.tidy("web-01")
	l.completed(l.submit(job.Spec{VMPath: "web-01", OutputPath: allowed, Format: "raw"}), "web-01", time.Minute)
}

func TestCredentialsInAJob(t *testing.T) {
	t.Parallel()
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 8*mib)}})
	url, user, password := l.sim.URL().String(), l.sim.Username(), l.sim.Password()
	l.env = nil // no connection is configured
	l.up()
	s := l.spec("web-01", "raw")
	out, err := l.api.Submit(t.Context(), "", api.Submission{Spec: s, VCenter: &api.Credentials{Server: url, Username: user, Password: password, Insecure: true}})
	require.NoError(t, err)
	require.Len(t, out.JobIDs, 1)
	j := l.completed(out.JobIDs[0], "web-01", time.Minute)
	require.NotContains(t, fmt.Sprintf("%+v", j), password)
	l.eventually(10*time.Second, "the session of the job is closed", func() bool { return len(l.sim.Sessions()) == 0 })
	stored, err := filepath.Glob(filepath.Join(l.data, "connections", "*"))
	require.NoError(t, err)
	require.Empty(t, stored, "the credentials are deleted when the job has ended")

	t.Run("a wrong password is said once, and not tried again", func(t *testing.T) {
		before := l.sim.Calls()["Login"]
		out, err := l.api.Submit(t.Context(), "", api.Submission{Spec: s, VCenter: &api.Credentials{Server: url, Username: user, Password: "wrong-secret", Insecure: true}})
		require.NoError(t, err)
		j := l.end(out.JobIDs[0], time.Minute)
		require.Equal(t, job.Failed, j.Status)
		require.NotContains(t, j.Error, "wrong-secret")
		require.LessOrEqual(t, l.sim.Calls()["Login"]-before, 2)
	})
	t.Run("no secret on disk or in the log", func(t *testing.T) {
		require.Zero(t, l.daemon.stop(30*time.Second))
		require.NotContains(t, l.daemon.output(), password)
		require.NoError(t, filepath.WalkDir(l.data, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NotContains(t, string(b), "wrong-secret", "%s", path)
			return nil
		}))
	})
}
