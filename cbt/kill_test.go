package cbt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

func mkfifo(name string) error { return unix.Mkfifo(name, 0o600) }

// Names of what the test tells the process that it starts.
const (
	killDir = "CBT_TEST_KILL_DIR"
	killAt  = "CBT_TEST_KILL_AT"
)

// TestMain is the test, or the process that is killed by it.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		os.Exit(mergeAndDie(dir))
	}
	goleak.VerifyTestMain(m)
}

// mergeAndDie merges up to point 3 and kills its own process before step n.
func mergeAndDie(dir string) int {
	left, err := strconv.Atoi(os.Getenv(killAt))
	if err != nil {
		return 2
	}
	c, err := Open(context.Background(), dir, Options{step: func(string, string) error {
		if left--; left < 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until it arrives
		}
		return nil
	}})
	if err == nil {
		err = errors.Join(c.Merge(context.Background(), 3, formats.CopyOptions{}), c.Close())
	}
	if err != nil {
		return 1
	}
	return 0
}

// A process is killed before each step of a merge in turn; right after it, and without anybody's help,
// all points that were there, or all that are to be, can be read; a second merge ends what it began.
func TestKilledMerges(t *testing.T) {
	c, dir, states := three(t, Options{})
	before := truth{1: {"d": states[0]}, 2: {"d": states[1]}, 3: {"d": states[2]}}
	after := truth{3: {"d": states[2]}}
	require.NoError(t, c.Close())
	kills := 0
	for step := 0; ; step++ {
		copied := quick(t)
		require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), killDir+"="+copied, killAt+"="+strconv.Itoa(step))
		out, err := cmd.CombinedOutput()
		c, rerr := Open(t.Context(), copied, Options{ReadOnly: true})
		require.NoError(t, rerr, "step %d", step)
		want := before
		if len(c.Manifest().Points) == 1 {
			want = after
		}
		want.require(t, c)
		report, rerr := c.Check(t.Context(), CheckOptions{Depth: CheckData})
		require.NoError(t, rerr)
		require.NoError(t, report.Err(), "step %d", step)
		require.NoError(t, c.Close())
		if err == nil {
			require.Equal(t, after, want)
			break
		}
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", out)
		require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "step %d: %s", step, out)
		kills++

		c, rerr = Open(t.Context(), copied, Options{})
		require.NoError(t, rerr, "step %d", step)
		require.NoError(t, c.Merge(t.Context(), 3, formats.CopyOptions{}))
		after.require(t, c)
		require.Equal(t, []string{".lock", "chain.json", "disk0-000003.digests", "disk0-000003.qcow2"}, names(t, copied), "nothing is left")
		require.NoError(t, c.Close())
	}
	require.Greater(t, kills, 30, "a merge has many steps")
	t.Logf("%d kills", kills)
}
