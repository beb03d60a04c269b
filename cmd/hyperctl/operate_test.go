package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func TestVMOperations(t *testing.T) {
	l := newLab(t)
	var got []job.Operation
	l.temporal.Operate(func(o job.Operation) (*job.Operated, error) {
		got = append(got, o)
		return &job.Operated{Message: "db-01 is done with"}, nil
	})
	for _, args := range []string{
		"poweron db-01", "poweroff db-01", "shutdown db-01 --timeout 2m --then poweroff", "remove-cdrom db-01",
		"snapshot create db-01 --name before --memory", "snapshot delete db-01 before", "clone db-01 --name db-02 --template", "template db-01 --undo",
	} {
		got = nil
		require.Equal(t, "db-01 is done with\n", l.ok(append([]string{"vms"}, strings.Fields(args)...)...), args)
		require.Len(t, got, 1)
		require.Equal(t, "db-01", got[0].VMPath)
	}
	require.Equal(t, job.Template, got[0].Action)
	require.False(t, got[0].Template)
	require.Contains(t, l.ok("vms", "poweron", "db-01", "--json"), `"success": true`)
	require.Contains(t, l.ok("vms", "snapshots", "vm-2"), "before")
	require.Equal(t, "No snapshots.\n", l.ok("vms", "snapshots", "db-01"))
}

// On a terminal a person is asked before anything is lost.
func TestVMOperationsAreConfirmed(t *testing.T) {
	for _, c := range []struct {
		args, in string
		done     bool
	}{
		{"poweroff db-01", "", false}, {"poweroff db-01", "n\n", false}, {"poweroff db-01", "y\n", true}, {"poweroff db-01", "YES\n", true},
		{"poweroff db-01 --yes", "", true}, {"shutdown db-01", "no\n", false}, {"remove-cdrom db-01", "\n", false},
		{"snapshot delete db-01 before", "q\n", false}, {"poweron db-01", "", true}, {"clone db-01 --name x", "", true},
	} {
		l := newLab(t)
		l.ask = func(string) (string, error) { return "", nil }
		l.in = c.in
		done := false
		l.temporal.Operate(func(job.Operation) (*job.Operated, error) { done = true; return &job.Operated{}, nil })
		code, _, errs := l.run(append([]string{"vms"}, strings.Fields(c.args)...)...)
		require.Equal(t, c.done, done, "%s with %q", c.args, c.in)
		if !c.done {
			require.Equal(t, 1, code)
			require.Contains(t, errs, "[y/N]")
			require.Contains(t, errs, "nothing was done")
		}
	}
}

func TestVMOperationsFail(t *testing.T) {
	for _, c := range []struct {
		args   string
		reason providers.Reason
		code   int
		says   string
	}{
		{"poweroff db-01", providers.NotFound, 3, "no"}, {"poweroff db-01", providers.Denied, 1, "no"},
		{"poweroff", "", 2, "needs the path"}, {"shutdown db-01 --then explode", "", 2, "none of fail, poweroff"},
		{"snapshot create db-01", "", 2, "--name"}, {"snapshot delete db-01", "", 2, "id or name of a snapshot"}, {"clone db-01", "", 2, "--name"},
		{"snapshot create db-01 --name x --memory --quiesce", "", 2, "exclude each other"},
		{"clone db-01 --name x --template --power-on", "", 2, "a template does not run"},
		{"operation nothing", "", 3, "no such operation"},
	} {
		l := newLab(t)
		l.temporal.Operate(func(job.Operation) (*job.Operated, error) {
			return nil, temporal.NewNonRetryableApplicationError("no", string(c.reason), nil)
		})
		code, _, errs := l.run(append([]string{"vms"}, strings.Fields(c.args)...)...)
		require.Equal(t, c.code, code, "%s: %s", c.args, errs)
		require.Contains(t, errs, c.says, c.args)
	}
}
