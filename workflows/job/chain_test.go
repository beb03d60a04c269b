package job

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChainWork(t *testing.T) {
	caps := Caps{Formats: []string{"qcow2", "raw"}}
	flat := ChainWork{Action: FlattenChain, Path: "/b/web-01", TargetFormat: "raw", OutputPath: "/r"}
	for _, c := range []struct {
		name  string
		work  ChainWork
		title string
		bad   []string
	}{
		{"check", ChainWork{Action: CheckChain, Path: "/b/web-01", Depth: "data"}, "check web-01", nil},
		{"merge", ChainWork{Action: MergeChain, Path: "/b/web-01", UpTo: 3}, "merge web-01 up to point 3", nil},
		{"delete the newest", ChainWork{Action: DeletePoint, Path: "/b/web-01"}, "delete web-01 at its newest point", nil},
		{"delete", ChainWork{Action: DeletePoint, Path: "/b/web-01", Point: 4, Name: "mine"}, "mine", nil},
		{"flatten", flat, "flatten web-01 at its newest point", nil},
		{"nothing", ChainWork{}, " . at its newest point", []string{"path", "action"}},
		{"no depth", ChainWork{Action: CheckChain, Path: "b", Depth: "deep"}, "check b", []string{"path", "depth"}},
		{"no point", ChainWork{Action: MergeChain, Path: "/b/../c", Priority: 101, LimitMBps: -1}, "merge c up to point 0", []string{"path", "priority", "limit_mbps", "up_to"}},
		{"a negative point", ChainWork{Action: DeletePoint, Path: "/b", Point: -1}, "delete b at point -1", []string{"point"}},
		{"no target", ChainWork{Action: FlattenChain, Path: "/b"}, "flatten b at its newest point", []string{"target_format", "output_path"}},
		{"no such format", ChainWork{Action: FlattenChain, Path: "/b", TargetFormat: "floppy", OutputPath: "/b"}, "flatten b at its newest point",
			[]string{"target_format", "output_path"}},
		{"a file that has no name", ChainWork{Action: FlattenChain, Path: "/b", Disk: "2000", TargetFormat: "raw", OutputPath: "/"}, "flatten b at its newest point", []string{"output_path"}},
		{"a long name", ChainWork{Action: FlattenChain, Path: "/b", Disk: "2000", TargetFormat: "raw", OutputPath: "/" + strings.Repeat("x", 231)}, "flatten b at its newest point", []string{"output_path"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var fields []string
			for _, f := range c.work.Validate(caps) {
				fields = append(fields, f.Field)
			}
			require.ElementsMatch(t, c.bad, fields)
			require.Equal(t, c.title, c.work.Title())
		})
	}
	d := flat.Definition()
	require.Equal(t, Spec{Name: "flatten web-01 at its newest point", OutputPath: "/r", Format: "raw"}, d)
}

func TestEstimate(t *testing.T) {
	require.Equal(t, "10s", Estimate(1e9, 100))
	require.Equal(t, "1s", Estimate(0, 100), "nothing takes no time at all")
	require.Empty(t, Estimate(1e9, 0), "never invented")
	require.Empty(t, Estimate(1<<62, 0.001))
}
