package vsphere_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
)

func TestAListingTakesAsManyCallsAsPages(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(40)})
	p := connect(t, s)
	s.ResetRecord()
	var got []providers.VM
	for vm, err := range p.VMs(t.Context(), providers.Filter{}) {
		require.NoError(t, err)
		got = append(got, vm)
	}
	require.Len(t, got, 40)
	require.Equal(t, "/DC0/vm/team-0/vm-00000", got[0].Path)
	require.Equal(t, providers.PowerOn, got[0].PowerState)
	require.Equal(t, 2, got[0].NumCPU)
	require.EqualValues(t, 2048, got[0].MemoryMB)
	require.Equal(t, map[string]int{"CreateContainerView": 1, "RetrievePropertiesEx": 1, "DestroyView": 1}, s.Calls())
}

func TestASessionThatEndsInTheMiddleOfAListing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(3)})
	p := connect(t, s)
	// The view is made, then the session ends, and the view with it.
	in := inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Delay: vspheretest.Duration(100 * time.Millisecond), Times: 1})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if eventually(t, func() bool { return in.Struck() > 0 }) {
			s.ExpireSessions()
		}
	}()
	defer func() { <-done }()
	n := 0
	for _, err := range p.VMs(t.Context(), providers.Filter{}) {
		require.NoError(t, err)
		n++
	}
	require.Equal(t, 3, n)
	require.Equal(t, 2, s.Calls()["Login"])
	require.Equal(t, 2, s.Calls()["CreateContainerView"])
}
