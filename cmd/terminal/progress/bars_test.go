package progress

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cmd/terminal"
	"hypersdk/workflows/job"
)

func TestPaintedTextIsCutByWhatIsSeen(t *testing.T) {
	require.Equal(t, "\x1b[1ma…\x1b[0m", cutPainted("\x1b[1mabcdef\x1b[0m", 3))
	require.Equal(t, "ab\x1b[1mcd\x1b[0m", cutPainted("ab\x1b[1mcd\x1b[0m", 5))
}

// Whatever a VM is called and however narrow the terminal is, nothing but our own sequences reaches it,
// and no line is wider than it.
func TestBarsFitAndDoNoHarm(t *testing.T) {
	jobs := []job.Job{{
		Definition: job.Spec{VMPath: "/dc/vm/evil\x1b]0;owned\a\n日本語"}, Status: job.Running,
		Progress: &job.Progress{Phase: job.Transfer, PercentComplete: 41.5, TransferRateMBps: 410, EstimatedRemaining: "2m",
			Disks: []job.DiskProgress{{File: "a\x1b[2J", Total: 10, Done: 4}, {File: "b", Total: 10, Waiting: "\x1b[31m"}}},
	}, {Definition: job.Spec{VMPath: "web"}, Status: job.Failed, Error: "no\x1b[1;1H"}}
	for _, width := range []int{1, 2, 10, 40, 200} {
		var out bytes.Buffer
		s := terminal.Screen{Out: &out, Env: func(string) string { return "" }, Size: func() (int, int, bool) { return width, 10, true }}
		d := New(s, false, nil)
		d.Show(jobs, "the daemon is away")
		d.Show(jobs, "")
		d.End()
		for line := range strings.Lines(out.String()) {
			text := line
			for _, ours := range []string{"\x1b[2K", "\x1b[?25l", "\x1b[?25h", "\x1b[0m", "\x1b[31m", "\x1b[33m", "\x1b[36m", "\r", "\n", "\x1b[5A", "\x1b[6A", "\x1b[1A"} {
				text = strings.ReplaceAll(text, ours, "")
			}
			require.NotContains(t, text, "\x1b", "width %d", width)
			require.NotContains(t, text, "\a")
			require.LessOrEqual(t, terminal.Width(text), width)
		}
	}
}
