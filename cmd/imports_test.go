package cmd_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The linter sees what a package imports itself; this sees what that drags in.
func TestNobodyDragsInWhatTheyMayNotKnow(t *testing.T) {
	for _, rule := range []struct {
		pkg   string
		never []string
		why   string
	}{
		{"./formats/all", []string{"go.temporal.io/", "github.com/vmware/", "hypersdk/providers", "hypersdk/activities", "net/http"},
			"formats stand on the standard library and compression alone"},
		{"./cbt", []string{"go.temporal.io/", "github.com/vmware/", "hypersdk/providers", "hypersdk/activities", "hypersdk/formats/all", "net/http"},
			"chains stand on formats alone"},
		{"./providers", []string{"go.temporal.io/", "github.com/vmware/"}, "the vocabulary links no SDK"},
		{"./providers/vsphere", []string{"go.temporal.io/"}, "a provider runs without Temporal"},
		{"./activities", []string{"go.temporal.io/server", "github.com/vmware/", "hypersdk/providers/vsphere"}, "activities speak capabilities"},
		{"./workflows/...", []string{"go.temporal.io/server", "github.com/vmware/"}, "workflows know no vendor"},
		{"./worker", []string{"go.temporal.io/server", "github.com/vmware/", "github.com/labstack/"}, "a worker speaks no HTTP"},
		{"./apiserver", []string{"go.temporal.io/server", "github.com/vmware/", "hypersdk/providers/vsphere"}, "the API knows no vendor"},
		{"./cmd/hyperctl", []string{"go.temporal.io/", "github.com/vmware/"}, "hyperctl is small"},
		{"./cmd/terminal/...", []string{"go.temporal.io/", "github.com/vmware/", "charm.land/"}, "every program on a terminal uses it"},
		{"./cmd/hyperexport/picker", []string{"go.temporal.io/", "github.com/vmware/", "hypersdk/cmd/hypervisord"}, "the picker knows VMs, and asks for all else"},
		{"./cmd/hypersim", []string{"go.temporal.io/"}, "the simulator stands alone"},
	} {
		t.Run(rule.pkg, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", rule.pkg)
			cmd.Dir = ".."
			out, err := cmd.Output()
			require.NoError(t, err)
			for dep := range strings.Lines(string(out)) {
				for _, never := range rule.never {
					require.False(t, strings.HasPrefix(strings.TrimSpace(dep), never), "%s links %s: %s", rule.pkg, dep, rule.why)
				}
			}
		})
	}
}
