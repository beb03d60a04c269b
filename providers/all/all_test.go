package all

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
)

func TestEveryDriverIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range Drivers() {
		require.NotEmpty(t, d.Kind)
		require.NotEmpty(t, d.Title, d.Kind)
		require.NotNil(t, d.Open, d.Kind)
		require.False(t, seen[d.Kind], "two drivers are named %s", d.Kind)
		seen[d.Kind] = true
		require.ErrorIs(t, d.Check([]byte(`{"no_such_field":1}`)), providers.Invalid, d.Kind)
	}
	require.True(t, seen["vsphere"])
}
