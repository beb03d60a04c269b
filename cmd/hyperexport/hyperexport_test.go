package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// world is a call of the program, without a platform.
type world struct {
	t        *testing.T
	out, err bytes.Buffer
	env      map[string]string
	in       string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	for _, name := range []string{"GOVC_URL", "GOVC_USERNAME", "GOVC_PASSWORD", "GOVC_INSECURE", "XDG_CONFIG_HOME", "TEMPORAL_ADDRESS"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	return &world{t: t, env: map[string]string{"HYPEREXPORT_DATA_DIR": t.TempDir()}}
}

func (w *world) call(args ...string) int {
	w.out.Reset()
	w.err.Reset()
	return execute(w.t.Context(), "test", args, terminal.Streams{
		In: strings.NewReader(w.in), Out: &w.out, Err: &w.err, Env: func(n string) string { return w.env[n] },
		Size: func() (int, int, bool) { return 0, 0, false },
	})
}

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	w := newWorld(t)
	t.Setenv("GOVC_URL", "127.0.0.1:1")
	t.Setenv("GOVC_USERNAME", "u")
	t.Setenv("GOVC_PASSWORD", "p")
	for line, want := range map[string]string{
		"":                                    "name a VM",
		"web-01":                              "--output",
		"--vm a -o /x --folder /DC0":          "not both",
		"--batch f --vm a -o /x":              "--batch names the VMs itself",
		"--batch /nonexistent -o /x":          "", // the platform is asked first, and is away
		"a -o /x --dry-run --validate-only":   "--dry-run and --validate-only exclude each other",
		"--list a":                            "--list takes",
		"--list --power maybe":                "",
		"a -o /x --parallel 0":                "--parallel must be",
		"a -o /x --skip-existing --overwrite": "exclude each other",
		"a -o /x --nonsense":                  "unknown flag",
		"a -o /x --limit fast":                "--limit",
		"a -o /x --profile night":             `no profile "night"`,
		"a -o /x --connection east":           `no connection "east"`,
		"report --format xml":                 "none of text, json, csv",
		"history --status maybe":              "none of completed",
		"cancel":                              "--all",
		"history extra":                       "unknown command",
	} {
		if want == "" {
			continue
		}
		code := w.call(strings.Fields(line)...)
		require.Contains(t, w.err.String(), want, line)
		require.Equal(t, map[bool]int{true: exitNotFound, false: exitUsage}[strings.Contains(line, "east")], code, "%s: %s", line, w.err.String())
	}
}

func TestNoPasswordAndNobodyToAsk(t *testing.T) {
	w := newWorld(t)
	t.Setenv("GOVC_URL", "127.0.0.1:1")
	t.Setenv("GOVC_USERNAME", "u")
	require.Equal(t, exitUsage, w.call("a", "-o", "/x"))
	require.Contains(t, w.err.String(), "GOVC_PASSWORD or give --password-file")
	w.in = "secret\n"
	require.Equal(t, exitUnreachable, w.call("a", "-o", "/x", "--password-file", "-"))
	require.NotContains(t, w.err.String(), "secret")
}

func TestNoPlatformAtAll(t *testing.T) {
	w := newWorld(t)
	require.Equal(t, exitUsage, w.call("a", "-o", "/x"))
	require.Contains(t, w.err.String(), "set GOVC_URL")
}

func parsed(t *testing.T, config string, args ...string) (*app, *pflag.FlagSet, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	a := &app{Streams: terminal.Streams{Err: &bytes.Buffer{}, Env: os.Getenv}, cfg: daemon.Default()}
	root := a.root()
	require.NoError(t, root.ParseFlags(append(args, "--config", file)))
	return a, root.Flags(), a.configure(root.Flags())
}

func TestProfilesAreUnderTheFlags(t *testing.T) {
	newWorld(t)
	const config = `
Profiles:
  night: {format: raw, compress: true, limit: 50, metadata: [a=b, c=d], username: backup, parallel_downloads: 3}
  odd: {formt: raw}
  wrong: {limit: fast}
`
	a, _, err := parsed(t, config, "--profile", "night", "--format", "vmdk")
	require.NoError(t, err)
	s, err := a.template()
	require.NoError(t, err)
	require.Equal(t, "vmdk", s.Format, "the flag goes before the profile")
	require.True(t, s.Compress)
	require.InDelta(t, 50, s.Options.LimitMBps, 0)
	require.Equal(t, 3, s.Options.ParallelDownloads)
	require.Equal(t, map[string]any{"a": "b", "c": "d"}, s.Metadata)
	require.Equal(t, "backup", a.cfg.Username)
	for profile, want := range map[string]string{"odd": "no flag --formt", "wrong": "profile wrong", "none": "there are: night, odd, wrong"} {
		_, _, err := parsed(t, config, "--profile", profile)
		require.ErrorContains(t, err, want)
	}
}

// The daemon's file is shared, but not its folder, its ports or its cluster.
func TestTheDaemonsConfiguration(t *testing.T) {
	newWorld(t)
	t.Setenv("TEMPORAL_ADDRESS", "temporal:7233")
	a, _, err := parsed(t, "DataDir: /srv/hypersdk\nDaemonAddr: 0.0.0.0:8080\nMaxJobs: many\nDefaultFormat: raw\nVCenterURL: vc.example.com\nUsername: u\nPassword: p\n")
	require.NoError(t, err)
	require.NotEqual(t, "/srv/hypersdk", a.cfg.DataDir)
	require.Equal(t, daemon.Default().DaemonAddr, a.cfg.DaemonAddr)
	require.Empty(t, a.cfg.TemporalAddress)
	s, err := a.template()
	require.NoError(t, err)
	require.Equal(t, "raw", a.inFormat(s).Format)
	s.Incremental = true
	require.Equal(t, "qcow2", a.inFormat(s).Format, "that of chains, whatever others get")
	p, err := a.platform()
	require.NoError(t, err)
	require.Equal(t, "vc.example.com", p.server)
	require.Regexp(t, `^vc\.example\.com-[0-9a-f]{12}$`, p.id)
}

// Every server and user has a folder of its own, whatever they are called.
func TestPlatformsAreKeptApart(t *testing.T) {
	newWorld(t)
	ids := map[string]string{}
	for _, config := range []string{
		"VCenterURL: vc.example.com\nUsername: a\nPassword: p", "VCenterURL: vc.example.com\nUsername: b\nPassword: p",
		"VCenterURL: https://vc.example.com:8443/sdk\nUsername: a\nPassword: p", "VCenterURL: \"[::1]\"\nUsername: a\nPassword: p",
		"VCenterURL: https://c:p@vc.example.com/sdk",
	} {
		a, _, err := parsed(t, config)
		require.NoError(t, err)
		p, err := a.platform()
		require.NoError(t, err, config)
		require.Regexp(t, `^[a-z0-9_][a-z0-9._-]*$`, p.id)
		require.Empty(t, ids[p.id], "%s and %s share a folder", config, ids[p.id])
		ids[p.id] = config
	}
	a, _, err := parsed(t, "VCenterURL: https://VC.example.com:443/sdk\nUsername: a\nPassword: other")
	require.NoError(t, err)
	p, err := a.platform()
	require.NoError(t, err)
	require.NotEmpty(t, ids[p.id], "another spelling and another password are the same folder")
}

func TestNamedConnections(t *testing.T) {
	newWorld(t)
	const config = "Connections:\n  east: {kind: vsphere, server: east.example.com, username: u, password: p}\n  west: {kind: vsphere, server: west.example.com, username: u, password: p}\n"
	a, _, err := parsed(t, config, "--connection", "west")
	require.NoError(t, err)
	p, err := a.platform()
	require.NoError(t, err)
	require.Equal(t, "west.example.com", p.server)
	a, _, err = parsed(t, config)
	require.NoError(t, err)
	_, err = a.platform()
	require.ErrorContains(t, err, "--connection to use: east, west")
}

func TestFaultsOfAJobAreSaidByTheirFlags(t *testing.T) {
	newWorld(t)
	for line, want := range map[string]string{
		"-o /x -f docx": "--format", "-o /x --compress --thick": "--thin", "-o /x --limit -1": "--limit must not be negative",
		"-o /x --parallel-downloads 99": "--parallel-downloads", "-o /x --power-on never": "--power-on", "-o /x --transport pigeon": "--transport",
	} {
		a, _, err := parsed(t, "", strings.Fields(line)...)
		require.NoError(t, err)
		s, err := a.template()
		require.NoError(t, err)
		s.VMPath = "a"
		require.ErrorContains(t, check(s), want)
	}
}

func TestFilters(t *testing.T) {
	for pattern, names := range map[string]map[string]bool{
		"web-*": {"web-01": true, "WEB-x": true, "my-web-01": false}, "*db?": {"db1": true, "old db2": true, "db12": false},
		"a*": {"a/b": true}, "[ab]1": {"a1": true, "c1": false},
	} {
		a := &app{opt: options{filter: pattern}}
		_, match, err := a.filter()
		require.NoError(t, err)
		for name, want := range names {
			require.Equal(t, want, match(name), "%s of %s", name, pattern)
		}
	}
	a := &app{opt: options{filter: "web", folder: "/DC0", power: "ON"}}
	f, _, err := a.filter()
	require.NoError(t, err)
	require.Equal(t, providers.Filter{Name: "web", Folder: "/DC0", Power: providers.PowerOn}, f)
	_, _, err = (&app{opt: options{filter: "[a"}}).filter()
	require.ErrorContains(t, err, "not a pattern")
}

func TestExitCodes(t *testing.T) {
	codes := map[providers.Reason]int{
		providers.NotFound: 3, providers.Auth: 4, providers.Denied: 4, providers.Canceled: 5, providers.Unavailable: 6, providers.Throttled: 6,
		providers.Exists: 7, providers.Exhausted: 8, providers.Corrupt: 9, providers.Unsupported: 10, providers.Invalid: 10, providers.Precondition: 10, "": 1,
	}
	a := &app{began: true}
	for reason, want := range codes {
		require.Equal(t, want, a.exitCode(t.Context(), verdict([]providers.Reason{reason, reason})), reason)
		if reason != "" {
			require.Equal(t, want, a.exitCode(t.Context(), fmt.Errorf("x: %w", &providers.Error{Reason: reason})), reason)
		}
	}
	require.NoError(t, verdict(nil))
	require.Equal(t, 1, a.exitCode(t.Context(), verdict([]providers.Reason{providers.Exists, providers.Corrupt})), "different reasons")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, 130, a.exitCode(gone, context.Canceled))
}

func entry1(i int, status job.State) historyEntry {
	at := job.Time{Time: time.Date(2026, 3, 1, 0, 0, i, 0, time.UTC)}
	return historyEntry{ID: fmt.Sprint("id-", i), VM: fmt.Sprint("vm-", i%3), Path: fmt.Sprint("/DC0/vm/vm-", i%3), Server: "vc", Status: status,
		Format: "raw", Started: at, Ended: at, Duration: time.Second, DiskBytes: 1e6, FileBytes: 5e5}
}

func TestHistoryKeepsTheLastThousand(t *testing.T) {
	dir := t.TempDir()
	var all []historyEntry
	for i := range 1100 {
		all = append(all, entry1(i, job.Completed))
	}
	require.NoError(t, appendHistory(dir, all[:600]))
	require.NoError(t, appendHistory(dir, all[500:]), "what is in it already is not there twice")
	got, err := readHistory(dir)
	require.NoError(t, err)
	require.Len(t, got, maxHistory)
	require.Equal(t, "id-100", got[0].ID)
	require.Equal(t, "id-1099", got[maxHistory-1].ID)
	st, err := os.Stat(filepath.Join(dir, historyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	require.NoError(t, os.WriteFile(filepath.Join(dir, historyFile), []byte("{\"id\":\"a\"}\nnot JSON\n{\"id\":\"b\"}\n"), 0o600))
	got, err = readHistory(dir)
	require.NoError(t, err)
	require.Len(t, got, 2, "a torn line does not take the others with it")
}

func TestHistoryIsWrittenByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error)
	for i := range 20 {
		go func() { done <- appendHistory(dir, []historyEntry{entry1(i, job.Completed)}) }()
	}
	for range 20 {
		require.NoError(t, <-done)
	}
	got, err := readHistory(dir)
	require.NoError(t, err)
	require.Len(t, got, 20)
}

func TestHistoryAndReportCommands(t *testing.T) {
	w := newWorld(t)
	require.Zero(t, w.call("history"), w.err.String())
	require.Contains(t, w.out.String(), "No exports yet")
	bad := entry1(1, job.Failed)
	bad.Error, bad.Reason, bad.VM = "no space", "exhausted", "=cmd|'/c calc'!A1"
	require.NoError(t, appendHistory(w.env["HYPEREXPORT_DATA_DIR"], []historyEntry{entry1(0, job.Completed), bad, entry1(2, job.Completed)}))

	require.Zero(t, w.call("history", "--status", "failed", "--json"))
	var h historyEntry
	require.NoError(t, json.Unmarshal(w.out.Bytes(), &h))
	require.Equal(t, "no space", h.Error)
	require.Zero(t, w.call("history", "--limit", "1"))
	require.Contains(t, w.out.String(), "vm-2")
	require.NotContains(t, w.out.String(), "vm-0")

	require.Zero(t, w.call("report"))
	require.Contains(t, w.out.String(), "2 completed, 1 failed")
	require.Contains(t, w.out.String(), "1 exhausted")
	require.Zero(t, w.call("report", "--json"))
	var r report
	require.NoError(t, json.Unmarshal(w.out.Bytes(), &r))
	require.Equal(t, 3, r.Exports)
	require.Equal(t, 3, r.VMs)
	require.Zero(t, w.call("report", "--format", "csv"))
	rows, err := csv.NewReader(&w.out).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 4)
	require.Equal(t, "'=cmd|'/c calc'!A1", rows[2][1], "a name is no formula")
	require.Zero(t, w.call("report", "--since", "1h"))
	require.Contains(t, w.out.String(), "Exports   0")
}

func TestARequestIsRememberedUntilItIsDone(t *testing.T) {
	dir := t.TempDir()
	a, b := job.Spec{VMPath: "a", OutputPath: "/x", Format: "raw"}, job.Spec{VMPath: "b", OutputPath: "/x", Format: "raw"}
	r, err := openRequest(dir, []job.Spec{a, b})
	require.NoError(t, err)
	require.NoError(t, r.note(&export{spec: a, id: "1"}))
	again, err := openRequest(dir, []job.Spec{b, a})
	require.NoError(t, err)
	require.Equal(t, "1", again.Jobs[keyOf(a)], "in any order")
	other, err := openRequest(dir, []job.Spec{a})
	require.NoError(t, err)
	require.Empty(t, other.Jobs, "another command")
	require.NoError(t, os.Chtimes(r.path, time.Time{}, time.Now().Add(-staleAfter-time.Minute)))
	old, err := openRequest(dir, []job.Spec{a, b})
	require.NoError(t, err)
	require.Empty(t, old.Jobs, "that of last night")
	require.NoError(t, r.forget())
	require.NoError(t, r.forget())
}

func TestUnfinishedExportsAreFoundByAnyName(t *testing.T) {
	open := []job.Job{
		{ID: "1", Definition: job.Spec{VMPath: "/dc/vm/a", Name: "a"}}, {ID: "2", Definition: job.Spec{VMPath: "/dc/vm/b", Name: "b"}},
	}
	for name, id := range map[string]string{"2": "2", "/dc/vm/a": "1", "b": "2"} {
		got, err := choose(open, []string{name})
		require.NoError(t, err)
		require.Equal(t, id, got[0].ID)
	}
	_, err := choose(open, []string{"c"})
	require.ErrorContains(t, err, `"c"`)
	got, err := choose(open, nil)
	require.NoError(t, err)
	require.Len(t, got, 2)
}
