package endtoend

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pane is a real terminal: a window of tmux in which a program of ours runs.
type pane struct {
	t    *testing.T
	name string
}

// newPane runs a program in a folder. Its exit code is shown when it has ended.
func newPane(t *testing.T, width, height int, env []string, dir, program string, args ...string) *pane {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed; task setup installs it")
	}
	p := &pane{t, fmt.Sprintf("hypersdk-%d-%d", os.Getpid(), lastPort.Add(1))}
	script := filepath.Join(t.TempDir(), "run")
	var b strings.Builder
	b.WriteString("trap : INT\n") // Ctrl-C is for the program
	for _, e := range append(env, "TERM=screen-256color", "LC_ALL=C.UTF-8") {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&b, "export %s='%s'\n", name, value)
	}
	fmt.Fprintf(&b, "cd '%s'\n'%s' %s\necho \"exit code $?.\"\nexec cat\n", dir, filepath.Join(bin, program), strings.Join(args, " "))
	require.NoError(t, os.WriteFile(script, []byte(b.String()), 0o700))
	// By the shell: a file that was just written may still be open in a process that another test is starting.
	p.tmux("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), "sh '"+script+"'")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", p.screen())
		}
		p.tmux("kill-server")
	})
	return p
}

func (p *pane) tmux(args ...string) string {
	p.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-L", p.name}, args...)...).CombinedOutput()
	require.NoError(p.t, err, "tmux %v: %s", args, out)
	return string(out)
}

func (p *pane) keys(keys ...string) { p.tmux(append([]string{"send-keys"}, keys...)...) }

func (p *pane) screen() string { return p.tmux("capture-pane", "-p") }

// sees waits until each of these has been on the screen.
func (p *pane) sees(texts ...string) string {
	p.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for _, text := range texts {
		for !strings.Contains(p.screen(), text) {
			select {
			case <-tick.C:
			case <-late:
				require.FailNow(p.t, fmt.Sprintf("%q was not on the screen", text))
			}
		}
	}
	return p.screen()
}
